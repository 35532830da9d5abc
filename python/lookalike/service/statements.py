"""Statements that every submission runs, made once and handed to the driver as they are.

SQLAlchemy takes ten times as long over a small statement as SQLite does. Knows SQLAlchemy's compiler and the drivers of
both databases; knows no table. What is rare or has to be put together stays SQLAlchemy's to run.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import sqlalchemy as sa


class Statement:
    """One that takes the same parameters each time, all of plain types: texts, numbers and bytes."""

    def __init__(self, made: sa.Select[Any] | sa.Insert | sa.Update) -> None:
        self._made = made
        self._compiled: dict[str, tuple[str, Mapping[str, Any], list[str] | None]] = {}

    def run(self, connection: sa.Connection, values: Mapping[str, object]) -> Any:
        """The driver's cursor. Between the statements of `together` it must not be read.

        Raises:
            sqlalchemy.exc.DBAPIError: as SQLAlchemy itself does.
        """
        dialect = connection.dialect
        if dialect.name not in self._compiled:
            columns = list(values) if isinstance(self._made, sa.Insert) else None
            compiled: Any = self._made.compile(dialect=dialect, column_keys=columns)
            fixed = {name: value for name, value in compiled.params.items() if value is not None}
            self._compiled[dialect.name] = (str(compiled), fixed, compiled.positiontup)
        text, constants, order = self._compiled[dialect.name]
        given = {**constants, **values}
        return execute(connection, text, given if order is None else [given[name] for name in order])


def execute(connection: sa.Connection, text: str, values: Any = ()) -> Any:
    """Past SQLAlchemy, but for its errors."""
    driver: Any = connection.connection.driver_connection
    try:
        return driver.execute(text, values)
    except connection.dialect.loaded_dbapi.Error as error:
        raise _told(connection, text, error) from error


@contextmanager
def together(connection: sa.Connection) -> Iterator[None]:
    """Statements of the block go to PostgreSQL in one go; none is known to be done before the block ends."""
    if connection.dialect.name == "sqlite":
        yield
        return
    driver: Any = connection.connection.driver_connection
    try:
        with driver.pipeline():
            yield
    except connection.dialect.loaded_dbapi.Error as error:
        raise _told(connection, "", error) from error


def _told(connection: sa.Connection, text: str, error: Any) -> BaseException:
    dialect, base = connection.dialect, connection.dialect.loaded_dbapi.Error
    told: BaseException = sa.exc.DBAPIError.instance(text, None, error, base, hide_parameters=True, dialect=dialect)
    return told
