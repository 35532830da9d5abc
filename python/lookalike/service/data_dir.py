"""The data folder: who may use it, and what in it is owed to nobody any more.

`jobs/ID` has an active operation's people, `audiences/ID` finished audiences, `audiences/ID.partial-*` the work of
running ones. With SQLite one server owns the folder; with PostgreSQL several share it, all on the same database. Knows
files and locks, and ids by what they mean; knows no operation.
"""

from __future__ import annotations

import asyncio
import fcntl
import os
import re
import shutil
import time
from collections.abc import AsyncIterator, Set
from contextlib import asynccontextmanager
from pathlib import Path

from lookalike.errors import FailedPrecondition
from lookalike.files import write_whole

# A folder that no operation knows of may be one whose operation another server is just accepting, or, among audiences,
# one that a restored database has forgotten.
STAGED_SECONDS = 3600.0
UNKNOWN_AUDIENCE_SECONDS = 7 * 86_400.0

_ID = re.compile("[0-9a-f]{32}")


class DataDir:
    """An open data folder."""

    def __init__(self, path: Path, *, shared: bool) -> None:
        self.path = path
        self.jobs = path / "jobs"
        self.audiences = path / "audiences"
        self.shared = shared

    def bind(self, database_id: str) -> None:
        """Tie the folder to a database for good: by another one's records, everything here would look forgotten.

        Raises:
            FailedPrecondition: it is tied to another one.
        """
        path = self.path / "database-id"
        try:
            bound = path.read_text().strip()
        except FileNotFoundError:
            if not (self.shared and (self.path / "operations.db").exists()):
                write_whole(path, f"{database_id}\n".encode())
                return
            bound = "of operations.db"
        if bound != database_id:
            raise FailedPrecondition(
                f"{self.path} belongs to another operations database ({bound}): choose the database it was used with, "
                "or another service.data_dir",
                field="service.data_dir",
                reason="DATA_DIR_OF_ANOTHER_DATABASE",
            )

    def remove_audience(self, audience_id: str) -> None:
        shutil.rmtree(self.audiences / audience_id, ignore_errors=True)

    def clear(self, active: Set[str], audiences: Set[str], *, alone: bool) -> None:
        """Remove what belongs to no operation any more.

        Args:
            active: ids of operations that are not done.
            audiences: ids of audiences that are there or being made. Both were read after this call could see a folder
                of theirs, or the folder is younger than what is removed here.
            alone: nothing is running or being accepted anywhere, so what is staged is left over.
        """
        staged = 0.0 if alone else STAGED_SECONDS
        for folder in self.jobs.iterdir():
            if folder.name not in active and _age(folder) >= staged:
                shutil.rmtree(folder, ignore_errors=True)
        for folder in self.audiences.iterdir():
            owner, _, rest = folder.name.partition(".")
            whole = not rest and _ID.fullmatch(owner)
            if whole and owner not in audiences and _age(folder) >= UNKNOWN_AUDIENCE_SECONDS:
                shutil.rmtree(folder, ignore_errors=True)
            elif rest.startswith("partial-") and owner not in active and _age(folder) >= staged:
                shutil.rmtree(folder, ignore_errors=True)
            elif rest.startswith("tmp-") and (alone or owner not in active) and _age(folder) >= staged:
                shutil.rmtree(folder, ignore_errors=True)


@asynccontextmanager
async def data_dir(path: Path, *, shared: bool) -> AsyncIterator[DataDir]:
    """The data folder, made if need be and ours while the block runs: alone, or together with all who share it too.

    Raises:
        FailedPrecondition: another server uses it, and one of the two does not share.
    """
    opened = DataDir(path.absolute(), shared=shared)
    await asyncio.to_thread(_make, opened)
    lock = os.open(opened.path / "lock", os.O_RDWR | os.O_CREAT, 0o600)
    try:
        try:
            fcntl.flock(lock, (fcntl.LOCK_SH if shared else fcntl.LOCK_EX) | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise FailedPrecondition(
                f"another server uses {path}; stop it or choose another service.data_dir",
                field="service.data_dir",
                reason="DATA_DIR_IN_USE",
            ) from error
        yield opened
    finally:
        os.close(lock)


def _make(opened: DataDir) -> None:
    for folder in (opened.jobs, opened.audiences):
        folder.mkdir(parents=True, exist_ok=True)


def _age(path: Path) -> float:
    """Seconds since the newest change in a folder, itself included; 0 for what has just gone."""
    try:
        newest = max(one.stat().st_mtime for one in (path, *path.iterdir())) if path.is_dir() else path.stat().st_mtime
    except OSError:
        return 0.0
    return max(0.0, time.time() - newest)
