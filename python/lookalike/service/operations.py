"""The operations store: what was ordered and what became of it, in SQL, so that it survives every restart.

Knows SQLAlchemy; knows neither gRPC nor runtimes. SQLite today; nothing here is SQLite's own but the pragmas.
"""

from __future__ import annotations

import asyncio
import time
from bisect import bisect_left
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any, Concatenate, ParamSpec, TypeVar

import sqlalchemy as sa

from lookalike.errors import (
    AlreadyExists,
    Cancelled,
    DataCorrupted,
    FailedPrecondition,
    LookalikeError,
    NotFound,
    ResourceExhausted,
)
from lookalike.retrieval.receipt import Progress
from lookalike.service.records import (
    METADATA,
    OPERATIONS,
    SCHEMA_VERSION,
    VERSION,
    Operation,
    State,
    error_text,
    from_row,
    to_row,
)

_P = ParamSpec("_P")
_T = TypeVar("_T")

_ACTIVE = (State.QUEUED.value, State.RUNNING.value)


def _off_loop(
    method: Callable[Concatenate[OperationStore, _P], _T],
) -> Callable[Concatenate[OperationStore, _P], asyncio.Future[_T]]:
    """Runs the method on the store's one thread: the event loop never waits for a disk, and writes never collide."""

    def call(store: OperationStore, /, *args: _P.args, **kwargs: _P.kwargs) -> asyncio.Future[_T]:
        return asyncio.get_running_loop().run_in_executor(store._thread, lambda: method(store, *args, **kwargs))

    call.__doc__ = method.__doc__
    return call


class OperationStore:
    """Every method but `open` is awaited. One process at a time owns the store."""

    def __init__(self, engine: sa.Engine, thread: ThreadPoolExecutor) -> None:
        self._engine = engine
        self._thread = thread

    @staticmethod
    async def open(url: str) -> OperationStore:
        """Open the database at an SQLAlchemy URL, making its tables when it is new.

        Raises:
            FailedPrecondition: made by another version. DataCorrupted: no database.
        """
        thread = ThreadPoolExecutor(max_workers=1, thread_name_prefix="operations")
        try:
            engine = await asyncio.get_running_loop().run_in_executor(thread, _open, url)
        except BaseException:
            thread.shutdown()
            raise
        return OperationStore(engine, thread)

    async def close(self) -> None:
        await asyncio.get_running_loop().run_in_executor(self._thread, self._engine.dispose)
        self._thread.shutdown()

    @_off_loop
    def create(self, operation: Operation, max_queued: int) -> tuple[Operation, bool]:
        """Accept the operation, or return the one its `request_id` already names, and whether it is new.

        Raises:
            AlreadyExists: the `request_id` was used with other content. ResourceExhausted: the queue is full.
        """
        with self._engine.begin() as connection:
            if operation.request_id is not None:
                known = _select(connection, OPERATIONS.c.request_id == operation.request_id)
                if known:
                    return _same_request(known[0], operation.request_sha256), False
            queued = connection.scalar(
                sa.select(sa.func.count()).select_from(OPERATIONS).where(OPERATIONS.c.state == State.QUEUED.value)
            )
            if queued is not None and queued >= max_queued:
                raise ResourceExhausted(f"{queued} operations are queued, the most allowed; try again later")
            connection.execute(OPERATIONS.insert().values(to_row(operation)))
            return _one(connection, operation.id), True

    @_off_loop
    def find_request(self, request_id: str, request_sha256: str) -> Operation | None:
        """The operation a `request_id` names, if any.

        Raises:
            AlreadyExists: it was used with other content.
        """
        with self._engine.begin() as connection:
            known = _select(connection, OPERATIONS.c.request_id == request_id)
            return _same_request(known[0], request_sha256) if known else None

    @_off_loop
    def get(self, operation_id: str) -> Operation:
        """The operation.

        Raises:
            NotFound: there is none of this id.
        """
        with self._engine.begin() as connection:
            return _one(connection, operation_id)

    @_off_loop
    def list(
        self, *, after: int, limit: int, states: Sequence[State] | None = None, campaign: str | None = None
    ) -> Sequence[Operation]:
        """Up to `limit` operations numbered above `after`, in order."""
        wanted = [OPERATIONS.c.number > after]
        if states is not None:
            wanted.append(OPERATIONS.c.state.in_([state.value for state in states]))
        if campaign is not None:
            wanted.append(OPERATIONS.c.campaign == campaign)
        with self._engine.begin() as connection:
            return _select(connection, *wanted, limit=limit)

    @_off_loop
    def claim(self) -> Operation | None:
        """Take the operation at the head of the queue and make it RUNNING; None when the queue is empty."""
        with self._engine.begin() as connection:
            head = _select(connection, OPERATIONS.c.state == State.QUEUED.value, limit=1)
            if not head:
                return None
            _update(
                connection,
                head[0].id,
                state=State.RUNNING.value,
                started=head[0].started or time.time(),
            )
            return _one(connection, head[0].id)

    @_off_loop
    def begin_attempt(self, operation_id: str) -> None:
        """Count a run."""
        with self._engine.begin() as connection:
            _update(connection, operation_id, attempts=OPERATIONS.c.attempts + 1)

    @_off_loop
    def note_progress(self, operation_id: str, progress: Progress, users_scored: int, users_total: int) -> None:
        """Remember how far it is, for whoever asks after a restart."""
        with self._engine.begin() as connection:
            _update(
                connection,
                operation_id,
                stage=progress.stage.value,
                stage_done=progress.done,
                stage_total=progress.total,
                users_scored=users_scored,
                users_total=users_total,
            )

    @_off_loop
    def finish(self, operation_id: str, state: State, error: LookalikeError | None = None) -> None:
        """Make it done."""
        with self._engine.begin() as connection:
            _update(connection, operation_id, state=state.value, ended=time.time(), error=error_text(error))

    @_off_loop
    def request_cancel(self, operation_id: str) -> Operation:
        """Cancel it at once when queued, note the wish when running; a done one stays as it is.

        Raises:
            NotFound: there is none of this id.
        """
        with self._engine.begin() as connection:
            operation = _one(connection, operation_id)
            if operation.state is State.QUEUED:
                _cancel(connection, operation_id)
            elif operation.state is State.RUNNING:
                _update(connection, operation_id, cancel_requested=True)
            return _one(connection, operation_id)

    @_off_loop
    def requeue_running(self) -> None:
        """After a restart: what ran runs again, in its old place, unless its cancellation was asked for."""
        with self._engine.begin() as connection:
            running = OPERATIONS.c.state == State.RUNNING.value
            for operation in _select(connection, running, OPERATIONS.c.cancel_requested):
                _cancel(connection, operation.id)
            connection.execute(OPERATIONS.update().where(running).values(state=State.QUEUED.value))

    @_off_loop
    def active_ids(self) -> set[str]:
        """Ids of all operations that are not done."""
        with self._engine.begin() as connection:
            return set(connection.scalars(sa.select(OPERATIONS.c.id).where(OPERATIONS.c.state.in_(_ACTIVE))))

    @_off_loop
    def delete(self, operation_id: str) -> None:
        """Forget a done operation; its audience stays.

        Raises:
            NotFound: there is none of this id. FailedPrecondition: it is not done.
        """
        with self._engine.begin() as connection:
            if not _one(connection, operation_id).state.done:
                raise FailedPrecondition(
                    f"operations/{operation_id} is not done: cancel it first", field="name", reason="OPERATION_ACTIVE"
                )
            connection.execute(OPERATIONS.delete().where(OPERATIONS.c.id == operation_id))


def _open(url: str) -> sa.Engine:
    engine = sa.create_engine(url)
    if engine.dialect.name == "sqlite":

        @sa.event.listens_for(engine, "connect")
        def set_pragmas(connection: Any, _: Any) -> None:
            connection.execute("PRAGMA journal_mode=WAL")
            connection.execute("PRAGMA synchronous=FULL")  # an accepted operation survives a power cut

    try:
        with engine.begin() as connection:
            METADATA.create_all(connection)
            version = connection.scalar(sa.select(VERSION.c.version))
            if version is None:
                connection.execute(VERSION.insert().values(version=SCHEMA_VERSION))
    except sa.exc.DatabaseError as error:
        engine.dispose()
        raise DataCorrupted(f"cannot use the operations database {url}: {error.orig}", field="data_dir") from error
    if version not in (None, SCHEMA_VERSION):
        engine.dispose()
        raise FailedPrecondition(
            f"the operations database {url} is of version {version}, this server reads {SCHEMA_VERSION}",
            field="data_dir",
            reason="SCHEMA_VERSION",
        )
    return engine


def database_url(data_dir: Path) -> str:
    """The SQLite database of a data folder."""
    return str(sa.URL.create("sqlite", database=str(data_dir / "operations.db")))


def _select(connection: sa.Connection, *wanted: Any, limit: int | None = None) -> list[Operation]:
    rows = (
        connection.execute(sa.select(OPERATIONS).where(*wanted).order_by(OPERATIONS.c.number).limit(limit))
        .mappings()
        .all()
    )
    operations = [from_row(row) for row in rows]
    if any(operation.state is State.QUEUED for operation in operations):
        queue = connection.scalars(
            sa.select(OPERATIONS.c.number).where(OPERATIONS.c.state == State.QUEUED.value).order_by(OPERATIONS.c.number)
        ).all()
        operations = [
            replace(one, queue_position=bisect_left(queue, one.number)) if one.state is State.QUEUED else one
            for one in operations
        ]
    return operations


def _one(connection: sa.Connection, operation_id: str) -> Operation:
    found = _select(connection, OPERATIONS.c.id == operation_id)
    if not found:
        raise NotFound(f"there is no operations/{operation_id}", field="name")
    return found[0]


def _update(connection: sa.Connection, operation_id: str, **values: Any) -> None:
    connection.execute(OPERATIONS.update().where(OPERATIONS.c.id == operation_id).values(values))


def _cancel(connection: sa.Connection, operation_id: str) -> None:
    error = error_text(Cancelled("cancelled by CancelOperation"))
    _update(
        connection,
        operation_id,
        state=State.CANCELLED.value,
        cancel_requested=True,
        ended=time.time(),
        error=error,
    )


def _same_request(known: Operation, request_sha256: str) -> Operation:
    if known.request_sha256 != request_sha256:
        raise AlreadyExists(
            f"request_id '{known.request_id}' was used with other content for operations/{known.id}; choose a new one",
            field="request_id",
            reason="REQUEST_ID_REUSED",
        )
    return known
