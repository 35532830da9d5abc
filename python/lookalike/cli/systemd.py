"""Tells a systemd unit of Type=notify that the service is ready, lives, and ends: sd_notify(3), without its library.

Knows the two variables that systemd sets, and sockets. Outside a unit nothing is told.
"""

from __future__ import annotations

import asyncio
import os
import socket
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress


def notify(*lines: str) -> None:
    """Tell systemd, as in `READY=1`. That it does not hear is no reason to end."""
    address = os.environ.get("NOTIFY_SOCKET", "")
    if not address.startswith(("/", "@")):
        return
    with suppress(OSError), socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sender:
        # "@" stands for the zero byte with which an abstract address begins.
        sender.sendto("\n".join(lines).encode(), "\0" + address[1:] if address[0] == "@" else address)


@asynccontextmanager
async def watched() -> AsyncIterator[None]:
    """While the block runs, say that the event loop turns, twice as often as the unit's WatchdogSec asks for it."""
    period = os.environ.get("WATCHDOG_USEC", "")
    meant = os.environ.get("WATCHDOG_PID", str(os.getpid())) == str(os.getpid())
    if not (period.isdecimal() and int(period) and meant):
        yield
        return
    task = asyncio.create_task(_beat(int(period) / 2e6))
    try:
        yield
    finally:
        task.cancel()
        with suppress(asyncio.CancelledError):
            await task


async def _beat(seconds: float) -> None:
    while True:
        notify("WATCHDOG=1")
        await asyncio.sleep(seconds)
