"""Who has opted out, by tenant: durable, in the order in which it was said; the part of the operations database on it.

Knows the tables; knows no audiences.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import sqlalchemy as sa
from sqlalchemy.dialects import postgresql, sqlite

from lookalike.service.audience_records import EVERYONE
from lookalike.service.database import OPT_OUT_LOCK, Database, lock, now, transaction
from lookalike.service.records import OPT_OUTS

PAGE = 50_000  # users read in one transaction, so that nobody else waits long

_INTEGER = "^(0|-?[1-9][0-9]{0,18})$"  # as `str` writes them


class OptOutStore:
    """Every method is awaited. Whoever opted out for everyone has opted out for each tenant."""

    def __init__(self, database: Database) -> None:
        self._database = database

    @transaction
    def add(self, connection: sa.Connection, tenant: str, user_ids: Sequence[int | str]) -> int:
        """Note that users have opted out, for a tenant or for EVERYONE; returns how many had not before."""
        lock(connection, OPT_OUT_LOCK)  # a lower number must not be seen later than a higher one
        number = int(connection.scalar(sa.select(sa.func.max(OPT_OUTS.c.number))) or 0) + 1
        insert: Any = sqlite.insert if connection.dialect.name == "sqlite" else postgresql.insert
        same = {"tenant": tenant, "number": number, "created": connection.scalar(sa.select(now(connection)))}
        rows = [{**same, "user_id": str(user_id)} for user_id in user_ids]
        if rows:
            connection.execute(insert(OPT_OUTS).on_conflict_do_nothing(), rows)
        new = sa.select(sa.func.count()).where(OPT_OUTS.c.tenant == tenant, OPT_OUTS.c.number == number)
        return int(connection.scalar(new) or 0)

    @transaction
    def last(self, connection: sa.Connection, tenant: str) -> int:
        """The number of the last opt-out that is the tenant's; 0 before there is one."""
        return int(connection.scalar(sa.select(sa.func.max(OPT_OUTS.c.number)).where(_of(tenant))) or 0)

    async def between(self, tenant: str, after: int, through: int, kind: pa.DataType) -> pa.Array:
        """Users who opted out by numbers above `after` up to `through`; without ids that cannot be of this type."""
        pieces: list[pa.Array] = [pa.array([], kind)]
        place: tuple[int, str, str] | None = None
        while True:
            rows = await self._page(tenant, after, through, place)
            pieces.append(_typed([row[1] for row in rows], kind))
            if len(rows) < PAGE:
                return pa.concat_arrays(pieces)
            place = rows[-1]

    @transaction
    def _page(
        self, connection: sa.Connection, tenant: str, after: int, through: int, behind: tuple[int, str, str] | None
    ) -> list[tuple[int, str, str]]:
        place = (OPT_OUTS.c.number, OPT_OUTS.c.user_id, OPT_OUTS.c.tenant)
        wanted = [_of(tenant), OPT_OUTS.c.number > after, OPT_OUTS.c.number <= through]
        wanted += [sa.tuple_(*place) > behind] if behind is not None else []
        rows = connection.execute(sa.select(*place).where(*wanted).order_by(*place).limit(PAGE))
        return [(number, user_id, owner) for number, user_id, owner in rows]


def _of(tenant: str) -> Any:
    return OPT_OUTS.c.tenant.in_([tenant, EVERYONE])


def _typed(user_ids: Sequence[str], kind: pa.DataType) -> pa.Array:
    if not pa.types.is_integer(kind):
        return pa.array(user_ids, kind)
    texts = pa.array(user_ids, pa.large_string())
    texts = texts.filter(pc.match_substring_regex(texts, _INTEGER))
    try:
        return texts.cast(kind)
    except pa.ArrowInvalid:  # some are beyond 64 bits
        return pa.array([one for one in map(int, texts.to_pylist()) if -(2**63) <= one < 2**63], kind)
