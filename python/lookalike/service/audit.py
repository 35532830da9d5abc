"""The audit log: who expanded, read, cancelled and deleted what, and who was turned away. One JSON object a line.

A line is in the file before the answer leaves, so that it outlives this process however it ends, and on the disk a
second later, which is what a power cut may take. The file is only ever appended to; one that was moved away, as
logrotate does, is begun anew.

Knows files; knows neither gRPC nor tokens: whoever writes sees to it that neither a token nor a user id is in a line.
"""

from __future__ import annotations

import asyncio
import json
import logging
import os
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from datetime import UTC, datetime
from pathlib import Path

from lookalike.errors import Unavailable

SYNC_SECONDS = 1.0
# A minute: whoever may knock at the port must not be able to fill the disk. The next line says how many are missing.
MAX_REFUSALS = 600

_log = logging.getLogger(__name__)


class AuditLog:
    """All on one event loop; the file is a thread's. Close it at the end."""

    def __init__(self, path: Path) -> None:
        """Raises `OSError` where the file cannot be written: better now than at the first call."""
        self.path = path
        self._thread = ThreadPoolExecutor(max_workers=1, thread_name_prefix="audit")
        self._syncing = ThreadPoolExecutor(max_workers=1, thread_name_prefix="audit-sync")  # no line waits for a disk
        self._sync: asyncio.TimerHandle | None = None
        self._torn = False
        self._minute = 0
        self._refusals = 0
        self._open()

    async def note(self, event: str, **fields: object) -> None:
        """Write a line: time, event, and the fields that are not None.

        Raises:
            Unavailable: it cannot be written, so that what it tells of must not go on.
        """
        line: dict[str, object] = {"time": datetime.now(UTC).isoformat(timespec="milliseconds"), "event": event}
        line |= {name: value for name, value in fields.items() if value is not None}
        loop = asyncio.get_running_loop()
        try:
            await loop.run_in_executor(self._thread, self._append, json.dumps(line).encode() + b"\n")
        except OSError as error:
            _log.error("cannot write the audit log %s: %s", self.path, error)
            raise Unavailable("the server cannot write its audit log", reason="AUDIT_UNAVAILABLE") from error
        if self._sync is None:
            self._sync = loop.call_later(SYNC_SECONDS, self._sync_soon)

    async def note_refusal(self, **fields: object) -> None:
        """Write a line of a call that was turned away, unless there were too many of late; never raises for it."""
        minute = int(time.monotonic() // 60)
        missing = max(0, self._refusals - MAX_REFUSALS) if minute != self._minute else 0
        self._refusals = self._refusals + 1 if minute == self._minute else 1
        self._minute = minute
        if self._refusals <= MAX_REFUSALS:
            with suppress(Unavailable):  # logged; and nobody was let in
                await self.note("refused", **fields, missing=missing or None)

    async def close(self) -> None:
        """Wait until everything is on the disk."""
        if self._sync is not None:
            self._sync.cancel()
        await asyncio.get_running_loop().run_in_executor(self._thread, lambda: self._end(self._file))
        self._thread.shutdown()
        await asyncio.to_thread(self._syncing.shutdown)

    def _sync_soon(self) -> None:
        self._sync = None
        self._thread.submit(lambda: self._syncing.submit(self._end, os.dup(self._file)))

    def _append(self, line: bytes) -> None:
        if not self._is_current():
            former = self._file
            self._open()
            self._end(former)
        # After a write that a full disk, or a crash, cut short: what is there of its line is not to spoil this one.
        line = b"\n" + line if self._torn else line
        self._torn = True
        if os.write(self._file, line) < len(line):
            raise OSError(f"only a part of a line fitted into {self.path}")
        self._torn = False

    def _is_current(self) -> bool:
        try:
            there, ours = self.path.stat(), os.fstat(self._file)
        except FileNotFoundError:
            return False
        return (there.st_dev, there.st_ino) == (ours.st_dev, ours.st_ino)

    def _open(self) -> None:
        self._file = os.open(self.path, os.O_RDWR | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o600)
        size = os.fstat(self._file).st_size
        self._torn = size > 0 and os.pread(self._file, 1, size - 1) != b"\n"

    def _flush(self, file: int) -> None:
        try:
            os.fsync(file)
        except OSError as error:
            _log.error("cannot flush the audit log %s: %s", self.path, error)

    def _end(self, file: int) -> None:
        self._flush(file)
        os.close(file)
