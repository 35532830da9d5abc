"""Works that share a transaction: each of them is done, or undone alone, and told when it is on the disk.

A commit waits for the disk, for milliseconds; works that come meanwhile share the next one. Knows SQLAlchemy's
connections; knows no table and no operation.
"""

from __future__ import annotations

import asyncio
import logging
import sqlite3
from collections import deque
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from contextvars import Context, copy_context
from dataclasses import dataclass
from typing import Any, TypeVar

import sqlalchemy as sa

from lookalike.errors import LookalikeError, ResourceExhausted, Unavailable
from lookalike.files import DISK_FULL

_T = TypeVar("_T")

_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class _Waiting:
    work: Callable[[sa.Connection], Any]
    turn: str
    context: Context  # the caller's, so that what is logged is about the same operation
    future: Future[Any]


class Lane:
    """Threads that take what waits, `most` at a time, and do it in one transaction."""

    def __init__(
        self, engine: sa.Engine, *, threads: int, most: int, on_failure: Callable[[], None], name: str
    ) -> None:
        """`on_failure`: called on a thread for each work that the database fails."""
        self._engine = engine
        self._most = most
        self._on_failure = on_failure
        self._waiting: deque[_Waiting] = deque()
        self._threads = ThreadPoolExecutor(max_workers=threads, thread_name_prefix=name)

    def run(self, work: Callable[[sa.Connection], _T], turn: str = "") -> asyncio.Future[_T]:
        """Have `work` done; of those that share a transaction the least `turn` is first.

        Raises:
            ResourceExhausted: reason DISK_FULL: SQLite's disk is full; nothing is done.
            Unavailable: the database does not answer; whether the work is done is then unknown.
        """
        future: Future[_T] = Future()
        self._waiting.append(_Waiting(work, turn, copy_context(), future))
        self._threads.submit(self._transact)
        return asyncio.wrap_future(future)

    def close(self) -> None:
        """Wait for all that was begun, also where nobody waits for it any more."""
        self._threads.shutdown()

    def _transact(self) -> None:
        group = self._taken()
        if not group:
            return
        ends: list[tuple[Any, BaseException | None]]
        try:
            with self._engine.begin() as connection:
                if len(group) == 1:
                    ends = [(group[0].context.run(group[0].work, connection), None)]
                else:
                    ends = [self._apart(connection, one) for one in group]
        except BaseException as raised:  # nothing of it is done
            ends = [(None, self._told(raised))] * len(group)
        for one, (result, failure) in zip(group, ends, strict=True):
            if failure is None:
                one.future.set_result(result)
            else:
                one.future.set_exception(failure)

    def _taken(self) -> list[_Waiting]:
        group: list[_Waiting] = []
        while len(group) < self._most:
            try:
                one = self._waiting.popleft()
            except IndexError:
                break
            if one.future.set_running_or_notify_cancel():
                group.append(one)
        return sorted(group, key=lambda one: one.turn)

    def _apart(self, connection: sa.Connection, one: _Waiting) -> tuple[Any, BaseException | None]:
        """What a work of a group returns, or raises: then it has done nothing, and the transaction goes on."""
        driver: Any = connection.connection.driver_connection
        _execute(driver, "SAVEPOINT work")
        try:
            result = one.context.run(one.work, connection)
        except Exception as raised:
            # A full disk makes SQLite undo all of the transaction; what came after would not be in one.
            if isinstance(driver, sqlite3.Connection) and not driver.in_transaction:
                raise
            _execute(driver, "ROLLBACK TO SAVEPOINT work")
            return None, self._told(raised)
        _execute(driver, "RELEASE SAVEPOINT work")
        return result, None

    def _told(self, error: BaseException) -> BaseException:
        """What whoever waits is told."""
        if not isinstance(error, (sa.exc.OperationalError, sa.exc.InterfaceError)):
            return error
        self._on_failure()
        _log.error("the operations database fails: %s", error.orig)
        told: LookalikeError
        if sqlite_code(error) == sqlite3.SQLITE_FULL:
            told = ResourceExhausted("the disk of the operations database is full; try again later", reason=DISK_FULL)
        else:
            told = Unavailable("the operations database does not answer; try again", reason="DATABASE_UNAVAILABLE")
        told.__cause__ = error
        return told


def _execute(driver: Any, statement: str) -> None:
    """Past SQLAlchemy, whose own savepoints take as long as all else that a work does."""
    try:
        driver.execute(statement)
    except Exception as error:
        raise sa.exc.OperationalError(statement, None, error) from error


def sqlite_code(error: sa.exc.DBAPIError) -> int | None:
    """Its extended result code; None where another database fails."""
    return getattr(error.orig, "sqlite_errorcode", None)
