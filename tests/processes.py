"""Test help: programs that do not outlive their test, the processes of a group, waiting for what nobody tells of."""

from __future__ import annotations

import contextlib
import os
import subprocess
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import psutil

SECONDS = 60.0  # more than anything here takes; only a hang gets there


@contextlib.contextmanager
def child(command: Sequence[str], **how: Any) -> Iterator[subprocess.Popen[Any]]:
    """A program that has ended when the block has, by force if need be. Popen alone would wait for ever."""
    with subprocess.Popen(command, **how) as process:
        try:
            yield process
        finally:
            process.kill()


def alive(group: int) -> list[psutil.Process]:
    """Live members of a process group."""
    found = []
    for process in psutil.process_iter():
        with contextlib.suppress(psutil.NoSuchProcess, ProcessLookupError):
            if os.getpgid(process.pid) == group and process.status() != psutil.STATUS_ZOMBIE:
                found.append(process)
    return found


def wait_until(condition: Callable[[], bool]) -> None:
    """For what nobody tells of: processes and other people's logs."""
    give_up = time.monotonic() + SECONDS
    while not condition():
        assert time.monotonic() < give_up, "it did not come to that"
        time.sleep(0.05)


def workers(group: int) -> list[psutil.Process]:
    return [p for p in alive(group) if any("model_service_worker" in part for part in p.cmdline())]
