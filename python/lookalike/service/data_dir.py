"""The data folder: who may use it, and what in it is owed to nobody any more.

`jobs/ID` has an active operation's people, `audiences/ID` finished audiences, `audiences/ID.partial-*` the work of
running ones. With SQLite one server owns the folder; with PostgreSQL several share it, all on the same database. Knows
files, locks and the database's name; knows no operation.
"""

from __future__ import annotations

import asyncio
import fcntl
import logging
import math
import os
import re
import shutil
import time
from collections.abc import AsyncIterator
from collections.abc import Set as AbstractSet
from contextlib import asynccontextmanager
from pathlib import Path

import sqlalchemy as sa

from lookalike.errors import FailedPrecondition
from lookalike.files import write_whole
from lookalike.retrieval.revise import discard
from lookalike.service.database import MIGRATION_LOCK, Database, lock
from lookalike.service.records import INSTALLATION

# A folder that no operation knows of may be one whose operation another server is just accepting, or, among audiences,
# one that a restored database has forgotten.
STAGED_SECONDS = 3600.0
UNKNOWN_AUDIENCE_SECONDS = 7 * 86_400.0

_log = logging.getLogger(__name__)

_ID = re.compile("[0-9a-f]{32}")


class DataDir:
    """An open data folder."""

    def __init__(self, path: Path, *, shared: bool) -> None:
        self.path = path
        self.jobs = path / "jobs"
        self.audiences = path / "audiences"
        self.shared = shared

    def remove_audience(self, audience_id: str) -> None:
        """Remove its files for good; raises `OSError` where they cannot be, for they are people."""
        discard(self.audiences / audience_id)

    def clear(
        self, active: AbstractSet[str], done: AbstractSet[str], audiences: AbstractSet[str], *, alone: bool
    ) -> None:
        """Remove what belongs to no operation any more.

        Args:
            active: ids of operations that are not done. done: of those that are, and need neither seeds nor work.
            audiences: ids of audiences that are there or being made. All were read after this call could see a folder
                of theirs, or the folder is younger than what is removed here.
            alone: nothing is running or being accepted anywhere, so what is staged is left over.
        """
        staged = 0.0 if alone else STAGED_SECONDS
        for folder in self.jobs.iterdir():
            if folder.name not in active and _age(folder) >= (0.0 if folder.name in done else staged):
                shutil.rmtree(folder, ignore_errors=True)
        for folder in self.audiences.iterdir():
            owner, _, rest = folder.name.partition(".")
            if owner in done and (rest or owner not in audiences):  # one that has failed, and was faster than its end
                left = 0.0
            elif rest.startswith(("partial-", "tmp-")):
                left = staged if owner not in active or (alone and rest.startswith("tmp-")) else math.inf
            else:
                left = math.inf if owner in audiences or rest or not _ID.fullmatch(owner) else UNKNOWN_AUDIENCE_SECONDS
            if left < math.inf and _age(folder) >= left:
                shutil.rmtree(folder, ignore_errors=True)


async def bind(folder: DataDir, database: Database) -> None:
    """Tie a data folder and a database to each other for good: by another one's records, all here would look forgotten.

    Raises:
        FailedPrecondition: one of them is tied to another one.
    """
    await database.run(lambda connection: _bind(folder, database.id, connection))


def _bind(folder: DataDir, database_id: str, connection: sa.Connection) -> None:
    lock(connection, MIGRATION_LOCK)  # two servers may be the first ones at once
    path = folder.path / "database-id"
    try:
        bound = path.read_text().strip()
    except FileNotFoundError:
        free = sa.not_(INSTALLATION.c.bound)
        first = connection.execute(INSTALLATION.update().where(free).values(bound=True)).rowcount == 1
        if not folder.shared or (first and not (folder.path / "operations.db").exists()):
            write_whole(path, f"{database_id}\n".encode())
            return
        bound = "operations.db" if first else "none"
    if bound != database_id:
        raise FailedPrecondition(
            f"{folder.path} is not the data folder of this operations database ({database_id}; the folder's is "
            f"{bound}): choose the service.data_dir and the service.database_url that were used together",
            field="service.data_dir",
            reason="DATA_DIR_OF_ANOTHER_DATABASE",
        )


@asynccontextmanager
async def data_dir(path: Path, *, shared: bool) -> AsyncIterator[DataDir]:
    """The data folder, made if need be and ours while the block runs: alone, or together with all who share it too.

    Raises:
        FailedPrecondition: another server uses it, and one of the two does not share.
    """
    opened = await asyncio.to_thread(_make, path, shared)
    descriptor = os.open(opened.path / "lock", os.O_RDWR | os.O_CREAT, 0o600)
    try:
        try:
            fcntl.flock(descriptor, (fcntl.LOCK_SH if shared else fcntl.LOCK_EX) | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise FailedPrecondition(
                f"another server uses {path}; stop it or choose another service.data_dir",
                field="service.data_dir",
                reason="DATA_DIR_IN_USE",
            ) from error
        yield opened
    finally:
        os.close(descriptor)


def _make(path: Path, shared: bool) -> DataDir:
    opened = DataDir(path.absolute(), shared=shared)
    opened.path.mkdir(parents=True, exist_ok=True, mode=0o700)  # seeds and audiences are people
    if opened.path.stat().st_mode & 0o077:
        _log.warning("others on this machine may look into %s, where seeds and audiences are: chmod 700 it", path)
    for folder in (opened.jobs, opened.audiences):
        folder.mkdir(parents=True, exist_ok=True)
    return opened


def _age(path: Path) -> float:
    """Seconds since the newest change in a folder, itself included; 0 for what has just gone."""
    try:
        newest = max(one.stat().st_mtime for one in (path, *path.iterdir())) if path.is_dir() else path.stat().st_mtime
    except OSError:
        return 0.0
    return max(0.0, time.time() - newest)
