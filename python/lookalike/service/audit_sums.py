"""Lines of the audit log that tell of many calls at once: calls that come a hundred times a second fill no disk.

Knows the audit log; who calls and what is asked are fields to it.
"""

from __future__ import annotations

import asyncio
import logging
from contextlib import suppress
from dataclasses import dataclass

from lookalike.errors import Unavailable
from lookalike.service.audit import AuditLog

SUM_SECONDS = 60.0

_log = logging.getLogger(__name__)


@dataclass
class _Sum:
    event: str
    fields: dict[str, object]
    calls: int = 0
    members: int = 0


class AuditSums:
    """All on one event loop. Calls with the same event and fields are summed up; close it before the log."""

    def __init__(self, audit: AuditLog, seconds: float = SUM_SECONDS) -> None:
        self._audit = audit
        self._seconds = seconds
        self._sums: dict[tuple[object, ...], _Sum] = {}
        self._tasks: set[asyncio.Task[None]] = set()

    async def note(self, event: str, *, members: int, **fields: object) -> None:
        """Count a call. The first of its kind has a line before this returns, all have one after `seconds`.

        Raises:
            Unavailable: the log cannot be written.
        """
        key = (event, *sorted((name, str(value)) for name, value in fields.items()))
        one = self._sums.get(key)
        if one is None:
            one = self._sums[key] = _Sum(event, fields)
            try:
                await self._audit.note(event, **fields, phase="begin")
            except BaseException:
                self._sums.pop(key, None)
                raise
            task = asyncio.create_task(self._later(key))
            self._tasks.add(task)
            task.add_done_callback(self._tasks.discard)
        one.calls += 1
        one.members += members

    async def close(self) -> None:
        """Write the lines of what has been counted so far."""
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        for key in list(self._sums):
            await self._end(key)

    async def _later(self, key: tuple[object, ...]) -> None:
        await asyncio.sleep(self._seconds)
        await self._end(key)

    async def _end(self, key: tuple[object, ...]) -> None:
        one = self._sums.pop(key)
        with suppress(Unavailable):  # logged; the callers have long had their answers
            await self._audit.note(one.event, **one.fields, phase="end", calls=one.calls, members=one.members)
