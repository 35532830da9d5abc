"""Works that share a transaction: each of them is done, or undone alone, and told when it is on the disk.

A commit waits for the disk, for milliseconds; works that come meanwhile share the next one. Knows SQLAlchemy's
connections; knows no table and no operation.
"""

from __future__ import annotations

import asyncio
import logging
import sqlite3
import threading
from collections.abc import Callable
from contextlib import suppress
from contextvars import Context, copy_context
from dataclasses import dataclass
from itertools import count
from queue import Empty, SimpleQueue
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
    future: asyncio.Future[Any]


_End = tuple[_Waiting, Any, BaseException | None]


class Lane:
    """Threads that take what waits, `most` at a time, and do it in one transaction. Of one event loop; close it."""

    def __init__(
        self, engine: sa.Engine, *, threads: int, most: int, on_failure: Callable[[], None], name: str
    ) -> None:
        """`on_failure`: called on a thread for each work that the database fails."""
        self._engine = engine
        self._most = most
        self._on_failure = on_failure
        self._waiting: SimpleQueue[_Waiting | None] = SimpleQueue()
        self._closed = False
        self._undone = count()
        # Executors hand every work over by two futures and a wake-up of its own, which costs as much as small works do.
        self._threads = [
            threading.Thread(target=self._work, name=f"{name}-{number}", daemon=True) for number in range(threads)
        ]
        for thread in self._threads:
            thread.start()

    def run(self, work: Callable[[sa.Connection], _T], turn: str = "") -> asyncio.Future[_T]:
        """Have `work` done; of those that share a transaction the least `turn` is first.

        Raises:
            ResourceExhausted: reason DISK_FULL: SQLite's disk is full; nothing is done.
            Unavailable: the database does not answer; whether the work is done is then unknown. Or the lane is closed.
        """
        if self._closed:  # no thread would ever come to it
            raise Unavailable("the server is shutting down; try again soon", reason="SHUTTING_DOWN")
        future: asyncio.Future[_T] = asyncio.get_running_loop().create_future()
        self._waiting.put(_Waiting(work, turn, copy_context(), future))
        return future

    def close(self) -> None:
        """Wait for all that was begun, also where nobody waits for it any more."""
        self._closed = True
        for _ in self._threads:
            self._waiting.put(None)
        for thread in self._threads:
            thread.join()

    def _work(self) -> None:
        while (first := self._waiting.get()) is not None:
            if group := self._joined(first):
                ends = self._transact(group)
                with suppress(RuntimeError):  # the event loop is closed: nobody waits any more
                    group[0].future.get_loop().call_soon_threadsafe(_tell, ends)

    def _joined(self, first: _Waiting) -> list[_Waiting]:
        """With what waits behind it and nobody has given up, in the order in which they are done."""
        group = [first]
        with suppress(Empty):
            while len(group) < self._most:
                one = self._waiting.get_nowait()
                if one is None:  # for whoever looks next
                    self._waiting.put(None)
                    break
                group.append(one)
        return sorted((one for one in group if not one.future.cancelled()), key=lambda one: one.turn)

    def _transact(self, group: list[_Waiting]) -> list[_End]:
        try:
            with self._engine.begin() as connection:
                if len(group) == 1:
                    return [(group[0], group[0].context.run(group[0].work, connection), None)]
                return [self._apart(connection, one) for one in group]
        except BaseException as raised:  # nothing of it is done
            failure = self._told(raised)
            return [(one, None, failure) for one in group]

    def _apart(self, connection: sa.Connection, one: _Waiting) -> _End:
        """What a work of a group returns, or raises: then it has done nothing, and the transaction goes on."""
        driver: Any = connection.connection.driver_connection
        _execute(driver, "SAVEPOINT work")
        try:
            result = one.context.run(one.work, connection)
        except Exception as raised:
            # A full disk makes SQLite undo all of the transaction; what came after would not be in one.
            if isinstance(driver, sqlite3.Connection) and not driver.in_transaction:
                raise
            # What psycopg was preparing when a pipeline broke is not prepared, though it believes so. It forgets that
            # when it sees things undone: by a statement of a text that it does not know yet.
            _execute(driver, f"ROLLBACK TO SAVEPOINT work /* {next(self._undone)} */")
            return one, None, self._told(raised)
        _execute(driver, "RELEASE SAVEPOINT work")
        return one, result, None

    def _told(self, error: BaseException) -> BaseException:
        """What whoever waits is told."""
        if isinstance(error, StopIteration):  # which no future takes
            return RuntimeError(f"a work raised {error!r}")
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


def _tell(ends: list[_End]) -> None:
    for one, result, failure in ends:
        if one.future.cancelled():
            continue
        if failure is None:
            one.future.set_result(result)
        else:
            one.future.set_exception(failure)


def _execute(driver: Any, statement: str) -> None:
    """Past SQLAlchemy, whose own savepoints take as long as all else that a work does."""
    try:
        driver.execute(statement)
    except Exception as error:
        raise sa.exc.OperationalError(statement, None, error) from error


def sqlite_code(error: sa.exc.DBAPIError) -> int | None:
    """Its extended result code; None where another database fails."""
    return getattr(error.orig, "sqlite_errorcode", None)
