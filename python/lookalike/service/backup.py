"""Saves what a service keeps while it serves: a copy of its data folder, from which one can be served.

First the people of active operations, then the database as it is at one moment, then what that speaks of; so whatever
the service does meanwhile, an operation that is done has its audience in the copy. Saving again to the same folder
copies what is new, and removes what was forgotten: people who were deleted do not live on there.

Knows the data folder and each database's own way of being saved; knows no operation.
"""

from __future__ import annotations

import asyncio
import contextlib
import fcntl
import os
import shutil
import sqlite3
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import sqlalchemy as sa

from lookalike.config import ServiceConfig
from lookalike.errors import FailedPrecondition, InvalidInput, LookalikeError, NotFound, Unavailable
from lookalike.files import file_digest, staged_folder, sync, write_whole
from lookalike.retrieval.audience import receipt_version
from lookalike.retrieval.receipt import AUDIENCE_NAME, RECEIPT_NAME, Receipt
from lookalike.retrieval.revise import finish
from lookalike.service.database import database_url, read_only
from lookalike.service.operations import ACTIVE
from lookalike.service.records import AUDIENCES, OPERATIONS, as_id

SQLITE_NAME = "operations.db"
ATTEMPTS = 5  # to copy an audience; a change of one takes less than a copy
DUMP_NAME = "operations.dump"  # pg_dump's custom format, for pg_restore


@dataclass(frozen=True)
class Saved:
    """What a copy has.

    Attributes:
        audiences: all that it has. copied: of these, the ones that it had not before. jobs: active operations.
        missing: audiences that the database knew and the folder had no more.
        damaged: audiences that do not fit their receipt, there as in the copy.
    """

    audiences: int
    copied: int
    jobs: int
    missing: tuple[str, ...]
    damaged: tuple[str, ...] = ()


async def back_up(config: ServiceConfig, output: Path) -> Saved:
    """Save the service's data folder and database to `output`, which is made if need be. The service may run.

    Raises:
        InvalidInput: `output` and the data folder lie in each other. NotFound: there is no data folder.
        FailedPrecondition: `output` has something else, is in use, or PostgreSQL's pg_dump is not there.
        DataCorrupted: the database has ids that are none.
        Unavailable: the database cannot be saved.
    """
    return await asyncio.to_thread(_back_up, config, output)


def _back_up(config: ServiceConfig, output: Path) -> Saved:
    source, output = config.data_dir.absolute(), output.absolute()
    if output.resolve().is_relative_to(source.resolve()) or source.resolve().is_relative_to(output.resolve()):
        raise InvalidInput(f"{output} and the data folder {source} lie in each other: choose another", field="output")
    if not (source / "database-id").exists():
        raise NotFound(
            f"{source} is no data folder that was ever served: see service.data_dir", field="service.data_dir"
        )
    url = database_url(config.database_url, source)
    with _own(output, (source / "database-id").read_bytes()):
        for name in ("jobs", "audiences"):
            (output / name).mkdir(exist_ok=True, mode=0o700)
        accepted = {one.name for one in (source / "jobs").iterdir() if "." not in one.name}  # not those half written
        _copy_new(source / "jobs", output / "jobs", accepted)
        active, audiences = _save_sqlite(url, output) if url.get_backend_name() == "sqlite" else _dump(url, output)
        _copy_new(source / "jobs", output / "jobs", active)
        copied, missing, damaged = _copy_new(source / "audiences", output / "audiences", audiences)
        for folder, wanted in (("jobs", active), ("audiences", audiences)):
            for one in (output / folder).iterdir():
                if one.name not in wanted:
                    shutil.rmtree(one)
        for path in (config.tokens or source / "tokens.json", config.audit_log or source / "audit.jsonl"):
            if path.parent.absolute() == source and path.exists():
                _copy(path, output / path.name)
    return Saved(len(audiences) - len(missing), copied, len(active), tuple(missing), tuple(damaged))


def _copy(source: Path, target: Path) -> None:
    staged = target.with_name(f"{target.name}.tmp")
    shutil.copyfile(source, staged)
    staged.chmod(0o600)
    sync(staged)
    staged.replace(target)


@contextlib.contextmanager
def _own(output: Path, database_id: bytes) -> Iterator[None]:
    """Make `output` a copy of this data folder, and nobody else's while the block runs."""
    output.mkdir(parents=True, exist_ok=True, mode=0o700)  # seeds and audiences are people
    mark = output / "database-id"
    if any(output.iterdir()) and not (mark.exists() and mark.read_bytes() == database_id):
        raise FailedPrecondition(
            f"{output} is neither empty nor a copy of this data folder: choose another", field="output"
        )
    lock = os.open(output / "lock", os.O_RDWR | os.O_CREAT, 0o600)  # which a service takes, too
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        write_whole(mark, database_id)
        yield
    except BlockingIOError as error:
        raise FailedPrecondition(f"{output} is in use: by a service, or another backup", field="output") from error
    finally:
        os.close(lock)


def _copy_new(source: Path, target: Path, names: set[str]) -> tuple[int, list[str], list[str]]:
    """Copy folders that the target lacks or has otherwise.

    How many, which the source has no more, and which are no whole audiences there either.
    """
    copied, missing, damaged = 0, [], []
    for name in sorted(names):
        if _same(source / name, target / name):
            continue
        try:
            with staged_folder(target / name, overwrite=True) as staged:
                if not _copy_whole(source / name, staged):
                    damaged.append(name)
            copied += 1
        except FileNotFoundError:  # it ended, or expired, meanwhile
            if not (target / name).exists():
                missing.append(name)
    return copied, missing, damaged


def _copy_whole(source: Path, target: Path) -> bool:
    """Copy a folder; again, if its audience was changed meanwhile. Whether it fits its receipt in the end."""
    failure: Exception | None = None
    for _ in range(ATTEMPTS):
        for left in target.iterdir():
            left.unlink()
        before = receipt_version(source)
        try:
            shutil.copytree(source, target, dirs_exist_ok=True)
        except (FileNotFoundError, shutil.Error) as error:  # the latter of whatever kind: a full disk, too
            if not source.exists():
                raise FileNotFoundError(source) from error
            failure = error
            continue
        failure = None
        if not (target / RECEIPT_NAME).exists():  # a job's
            return True
        if receipt_version(source) != before:  # seeds or reserve may be of before the change, with people who opted out
            continue
        with contextlib.suppress(LookalikeError, OSError):
            finish(target)  # what was copied between the change and its end
            if file_digest(target / AUDIENCE_NAME) == Receipt.read(target).audience_sha256:
                return True
    if failure is not None:
        raise Unavailable(f"cannot copy {source}: {failure}", field="output") from failure
    return False


def _same(source: Path, target: Path) -> bool:
    """Whether a folder was copied before: none changes but as a whole, and an audience's receipt with it."""
    if not target.exists():
        return False
    try:
        theirs, ours = (source / RECEIPT_NAME).stat(), (target / RECEIPT_NAME).stat()
    except FileNotFoundError:  # a job's, or it is gone; many people of a new one may have been half written
        return not source.exists() or _names(source) <= _names(target)
    return (theirs.st_size, theirs.st_mtime_ns) == (ours.st_size, ours.st_mtime_ns)


def _names(folder: Path) -> set[str]:
    return {one.name for one in folder.iterdir()}


def _save_sqlite(url: sa.URL, output: Path) -> tuple[set[str], set[str]]:
    staged = output / f"{SQLITE_NAME}.tmp"
    staged.unlink(missing_ok=True)
    staged.touch(0o600, exist_ok=False)
    try:
        with contextlib.closing(read_only(url)) as source, contextlib.closing(sqlite3.connect(staged)) as copy:
            source.backup(copy)
            copy.execute("PRAGMA journal_mode=DELETE")  # one file, whole by itself
        engine = sa.create_engine(url.set(database=str(staged)))
        try:
            with engine.connect() as connection:
                known = _known(connection)
        finally:
            engine.dispose()
    except (sqlite3.Error, sa.exc.DBAPIError) as error:
        raise Unavailable(f"cannot save {url.database}: {error}", field="service.data_dir") from error
    staged.replace(output / SQLITE_NAME)
    return known


def _dump(url: sa.URL, output: Path) -> tuple[set[str], set[str]]:
    program = shutil.which("pg_dump")
    if program is None:
        raise FailedPrecondition(
            "pg_dump is not on PATH: install PostgreSQL's client programs, of the server's version or newer",
            field="service.database_url",
        )
    staged = output / f"{DUMP_NAME}.tmp"
    engine = sa.create_engine(url, isolation_level="REPEATABLE READ")
    try:
        with engine.connect() as connection:
            # What is dumped and what is copied are of one moment.
            snapshot = str(connection.scalar(sa.select(sa.func.pg_export_snapshot())))
            known = _known(connection)
            _pg_dump(program, url, snapshot, staged)
    except sa.exc.DBAPIError as error:
        raise Unavailable(f"cannot save the database: {error.orig}", field="service.database_url") from error
    finally:
        engine.dispose()
    staged.replace(output / DUMP_NAME)
    return known


def _pg_dump(program: str, url: sa.URL, snapshot: str, staged: Path) -> None:
    # A password is not in its arguments, which everybody on the machine can read.
    secret = {"PGPASSWORD": str(url.password)} if url.password else {}
    plain = url._replace(drivername="postgresql", password=None).render_as_string(hide_password=False)
    command = [
        program,
        "--format=custom",
        "--no-owner",
        f"--snapshot={snapshot}",
        f"--file={staged}",
        f"--dbname={plain}",
    ]
    done = subprocess.run(command, env=os.environ | secret, capture_output=True, text=True, check=False)
    if done.returncode:
        staged.unlink(missing_ok=True)
        raise Unavailable(f"pg_dump failed: {done.stderr.strip()[-500:]}", field="service.database_url")
    staged.chmod(0o600)


def _known(connection: sa.Connection) -> tuple[set[str], set[str]]:
    """Ids of active operations, and of audiences that are finished."""
    active = connection.scalars(sa.select(OPERATIONS.c.id).where(OPERATIONS.c.state.in_(ACTIVE)))
    finished = connection.scalars(sa.select(AUDIENCES.c.id).where(AUDIENCES.c.published.is_not(None)))
    return set(map(as_id, active)), set(map(as_id, finished))
