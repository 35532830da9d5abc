"""The operations database: opening it, bringing it to this server's version, and running work on it off the event loop.

SQLite in the data folder, owned by one process, or PostgreSQL, which several share. Knows SQLAlchemy and Alembic;
knows no operation.
"""

from __future__ import annotations

import asyncio
import logging
import sqlite3
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Concatenate, ParamSpec, Protocol, TypeVar

import alembic.command
import alembic.config
import sqlalchemy as sa
from alembic.runtime.migration import MigrationContext
from alembic.script import ScriptDirectory

from lookalike.errors import (
    DataCorrupted,
    FailedPrecondition,
    InvalidInput,
    LookalikeError,
    ResourceExhausted,
    Unavailable,
)
from lookalike.files import DISK_FULL
from lookalike.service.group_commit import Lane, sqlite_code
from lookalike.service.records import INSTALLATION
from lookalike.service.statements import execute

_P = ParamSpec("_P")
_T = TypeVar("_T")

_log = logging.getLogger(__name__)

CONNECTIONS = 4  # of one front to PostgreSQL; its calls are short. One more accepts
# Works that share a transaction at most: with more, the disk takes little of each, and the first waits for the last.
GROUP = 64
# Of SQLite's log, 16 MB: the commit that fills it carries it over into the database, and makes all behind it wait. An
# order takes 17 pages, so that with SQLite's own 1000 one commit in 60 did, for 5 ms and more; now one in 235, for 8.
LOG_PAGES = 4000
# Names of our locks in PostgreSQL, where any number will do.
MIGRATION_LOCK = 5_271_009_001
CLAIM_LOCK = 5_271_009_002
OPT_OUT_LOCK = 5_271_009_003


class _HasDatabase(Protocol):
    _database: Database


def transaction(
    method: Callable[Concatenate[Any, sa.Connection, _P], _T],
) -> Callable[Concatenate[Any, _P], asyncio.Future[_T]]:
    """Makes a method awaited: it runs on a thread of the object's `_database`, in a transaction it is handed."""

    def call(owner: _HasDatabase, /, *args: _P.args, **kwargs: _P.kwargs) -> asyncio.Future[_T]:
        return owner._database.run(lambda connection: method(owner, connection, *args, **kwargs))

    call.__doc__ = method.__doc__
    return call


class Database:
    """An open database.

    Attributes:
        id: drawn when the database was made; a data folder belongs to one.
        shared: whether other processes may use it.
    """

    def __init__(self, engine: sa.Engine, database_id: str, on_failure: Callable[[], None]) -> None:
        self._engine = engine
        self.id = database_id
        self.shared = engine.dialect.name != "sqlite"
        # SQLite takes one writer at a time; with one thread nobody waits for a lock. PostgreSQL groups the commits of
        # its connections itself, but for those of one tenant's submissions, which wait for each other.
        threads, most = (CONNECTIONS, 1) if self.shared else (1, GROUP)
        self._lane = Lane(engine, threads=threads, most=most, on_failure=on_failure, name="operations")
        self._accepting = self._lane
        if self.shared:
            self._accepting = Lane(engine, threads=1, most=GROUP, on_failure=on_failure, name="accepting")

    @staticmethod
    async def open(url: sa.URL, *, on_failure: Callable[[], None] = lambda: None) -> Database:
        """Open the database, making it when it is new, bringing it to this server's version when it is older.

        `on_failure`: called on a thread for each transaction that the database fails.

        Raises:
            FailedPrecondition: of a newer version, or we may not use it. DataCorrupted: no database.
            Unavailable: cannot be reached. ResourceExhausted: SQLite's disk is full.
        """
        engine, name = await asyncio.to_thread(_open, url)
        return Database(engine, name, on_failure)

    def empty_log(self) -> None:
        """Carry SQLite's log over into the database: what was deleted is nowhere any more. Blocks for a moment."""
        if self.shared:
            return
        connection = self._engine.raw_connection()
        try:
            connection.cursor().execute("PRAGMA wal_checkpoint(TRUNCATE)")
        finally:
            connection.close()

    async def close(self) -> None:
        """Wait for the work that runs, also where nobody waits for it any more, and close all connections."""
        for lane in (self._lane, self._accepting):
            await asyncio.to_thread(lane.close)
        await asyncio.to_thread(self._engine.dispose)

    def run(self, work: Callable[[sa.Connection], _T]) -> asyncio.Future[_T]:
        """Run `work` on a thread, as one transaction: the event loop never waits for a disk or a server.

        Raises:
            ResourceExhausted: reason DISK_FULL: SQLite's disk is full; nothing is done.
            Unavailable: the database does not answer; whether the work is done is then unknown.
        """
        return self._lane.run(work)

    def accept(self, work: Callable[[sa.Connection], _T], tenant: str) -> asyncio.Future[_T]:
        """As `run`, for what makes all who accept for a tenant take turns: those that wait here share a transaction.

        It takes tenants in order, so that no two servers wait for each other.

        Raises:
            ResourceExhausted, Unavailable: as `run`.
        """
        return self._accepting.run(work, tenant)


def database_url(database_url: str, data_dir: Path) -> sa.URL:
    """Where operations are kept: at `database_url`, or when that is empty in the data folder's own SQLite database.

    Raises:
        InvalidInput: no URL of PostgreSQL.
    """
    if not database_url:
        return sa.URL.create("sqlite", database=str(data_dir / "operations.db"))
    try:
        url = sa.make_url(database_url)
        known = url.drivername in ("postgres", "postgresql", "postgresql+psycopg")
    except (sa.exc.ArgumentError, ValueError):
        known = False
    if not known:
        raise InvalidInput(
            "it must be of the form postgresql://user@host/database, or empty for SQLite in service.data_dir",
            field="service.database_url",
        )
    return url.set(drivername="postgresql+psycopg")


@dataclass(frozen=True)
class Seen:
    """What a look at a database found.

    Attributes:
        version: of its tables; None where it has none, or is not there yet. newest: that this code knows.
        known: whether this code can use it.
        clock_ahead: seconds its clock is before ours.
    """

    name: str
    version: str | None
    newest: str
    known: bool
    clock_ahead: float = 0.0


def look_at(url: sa.URL) -> Seen:
    """Look at a database without changing anything, whether or not a server uses it.

    Raises:
        As `Database.open`.
    """
    shown = url.render_as_string(hide_password=True)
    scripts = ScriptDirectory.from_config(_migrations())
    newest = str(scripts.get_current_head())
    sqlite = url.get_backend_name() == "sqlite"
    if sqlite and not Path(str(url.database)).exists():
        return Seen(shown, None, newest, known=True)
    engine = sa.create_engine("sqlite://", creator=lambda: read_only(url)) if sqlite else sa.create_engine(url)
    try:
        with engine.connect() as connection:
            if not sqlite:
                connection.execute(sa.text("SET TRANSACTION READ ONLY"))
            version = _version(connection)
            ahead = float(connection.scalar(sa.select(now(connection))) or 0.0) - time.time()
    except sa.exc.DBAPIError as error:
        raise _unusable(error, shown, sqlite=sqlite) from error
    finally:
        engine.dispose()
    known = version is None or version in {script.revision for script in scripts.walk_revisions()}
    return Seen(shown, version, newest, known, ahead)


def read_only(url: sa.URL) -> sqlite3.Connection:
    """A connection to a SQLite database that changes nothing, whether or not a server uses it."""
    path = Path(str(url.database))
    # Without a write-ahead log nobody uses it, and SQLite would make one to read it, unless it is told not to.
    alone = "" if path.with_name(path.name + "-wal").exists() else "&immutable=1"
    return sqlite3.connect(f"{path.absolute().as_uri()}?mode=ro{alone}", uri=True)


def now(connection: sa.Connection) -> Any:
    """This moment in Unix seconds, as SQL: by the clock that all who share the database share."""
    if connection.dialect.name == "sqlite":
        return sa.literal(time.time(), sa.Float)
    return sa.cast(sa.extract("epoch", sa.func.clock_timestamp()), sa.Float)


def lock(connection: sa.Connection, name: int) -> None:
    """Take turns with other processes until the transaction ends; SQLite's transactions do so anyway."""
    if connection.dialect.name != "sqlite":
        connection.execute(sa.select(sa.func.pg_advisory_xact_lock(name)))


def _open(url: sa.URL) -> tuple[sa.Engine, str]:
    sqlite = url.get_backend_name() == "sqlite"
    if sqlite:
        engine = sa.create_engine(url, hide_parameters=True)  # seeds are people, and errors are logged
        _prepare_sqlite(engine)
    else:
        engine = sa.create_engine(_impatient(url), pool_size=CONNECTIONS + 1, pool_pre_ping=True, hide_parameters=True)
        _prepare_postgresql(engine)
    shown = url.render_as_string(hide_password=True)
    try:
        with engine.begin() as connection:
            lock(connection, MIGRATION_LOCK)
            _upgrade(connection, shown)
            return engine, str(connection.scalar(sa.select(INSTALLATION.c.id)))
    except sa.exc.DBAPIError as error:
        engine.dispose()
        raise _unusable(error, shown, sqlite=sqlite) from error
    except BaseException:
        engine.dispose()
        raise


def _prepare_sqlite(engine: sa.Engine) -> None:
    @sa.event.listens_for(engine, "connect")
    def set_pragmas(connection: Any, _: Any) -> None:
        connection.isolation_level = None  # else Python's driver leaves changes of the schema out of transactions
        connection.execute("PRAGMA journal_mode=WAL")
        connection.execute("PRAGMA synchronous=FULL")  # an accepted operation survives a power cut
        connection.execute("PRAGMA secure_delete=ON")  # seeds are people: what is deleted is overwritten
        connection.execute(f"PRAGMA wal_autocheckpoint={LOG_PAGES}")

    @sa.event.listens_for(engine, "begin")
    def begin(connection: sa.Connection) -> None:
        execute(connection, "BEGIN IMMEDIATE")


def _impatient(url: sa.URL) -> sa.URL:
    """A server that has vanished is noticed, where the URL does not say how soon."""
    return url.set(query={"connect_timeout": "10", "tcp_user_timeout": "20000", **url.query})


def _prepare_postgresql(engine: sa.Engine) -> None:
    @sa.event.listens_for(engine, "connect")
    def set_timeouts(connection: Any, _: Any) -> None:
        # A front that hangs in the middle of a transaction must not hold its locks against the others for ever.
        connection.execute("SET idle_in_transaction_session_timeout = '10s'")
        connection.execute("SET lock_timeout = '20s'")
        connection.commit()


def _unusable(error: sa.exc.DBAPIError, shown: str, *, sqlite: bool) -> LookalikeError:
    message = f"cannot use the operations database {shown}: {str(error.orig).strip()}"
    if sqlite and sqlite_code(error) in {sqlite3.SQLITE_FULL, sqlite3.SQLITE_IOERR_SHMSIZE}:
        return ResourceExhausted(f"{message}: free some space", field="service.data_dir", reason=DISK_FULL)
    if sqlite:
        return DataCorrupted(message, field="service.data_dir")
    if isinstance(error, (sa.exc.OperationalError, sa.exc.InterfaceError)):
        return Unavailable(message, field="service.database_url", reason="DATABASE_UNAVAILABLE")
    return FailedPrecondition(message, field="service.database_url")


def _migrations() -> alembic.config.Config:
    config = alembic.config.Config()
    config.set_main_option("script_location", str(Path(__file__).parent / "migrations").replace("%", "%%"))
    return config


def _version(connection: sa.Connection) -> str | None:
    current = MigrationContext.configure(connection).get_current_revision()
    if current is None and sa.inspect(connection).has_table("schema_version"):  # from before Alembic
        version = connection.scalar(sa.text("SELECT version FROM schema_version"))
        return f"{1 if version is None else version:04d}"
    return current


def _upgrade(connection: sa.Connection, shown: str) -> None:
    """All of it or, when it fails, nothing: the transaction covers the schema too."""
    config = _migrations()
    config.attributes["connection"] = connection
    scripts = ScriptDirectory.from_config(config)
    newest = scripts.get_current_head()
    current = _version(connection)
    if current == "0001" and MigrationContext.configure(connection).get_current_revision() is None:
        alembic.command.stamp(config, current)
    if current is not None and current not in {script.revision for script in scripts.walk_revisions()}:
        raise FailedPrecondition(
            f"the operations database {shown} is of version {current}, this server knows {newest} and older: run the "
            "server that used it last, or restore what was saved before that one was installed",
            field="service.data_dir" if connection.dialect.name == "sqlite" else "service.database_url",
            reason="SCHEMA_VERSION",
        )
    if current != newest:
        _log.info("bringing the operations database %s from version %s to %s", shown, current, newest)
        alembic.command.upgrade(config, "head")
