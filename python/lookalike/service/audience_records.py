"""The operations database's part on finished audiences: whose they are, until when, and how far opt-outs have come.

Knows the tables; knows neither the folders nor gRPC.
"""

from __future__ import annotations

import builtins
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import Any

import sqlalchemy as sa

from lookalike.errors import NotFound
from lookalike.service.database import Database, now, transaction
from lookalike.service.records import AUDIENCES, OPERATIONS, OPT_OUTS, Gone, as_id

EVERYONE = ""  # the tenant of opt-outs that are everyone's
DAY = 86_400.0


@dataclass(frozen=True, kw_only=True)
class AudienceRecord:
    """A finished audience. Times are Unix seconds.

    Attributes:
        id: of the operation that made it; its folder's name.
        audience_id: what the tenant knows it by.
        expires: when it goes, by its own time or the server's; None: never.
        opted_out_through: opt-outs up to this number are in it no more; opt_outs: the last there is for its tenant.
    """

    id: str
    tenant: str
    audience_id: str
    campaign: str
    published: float
    expires: float | None
    opted_out_through: int
    opt_outs: int

    @property
    def behind(self) -> bool:
        """Whether users who opted out may still be in it."""
        return self.opted_out_through < self.opt_outs


@dataclass(frozen=True)
class Pending:
    """Opt-outs that are not carried out yet: in how many audiences, and for how many seconds the oldest."""

    audiences: int
    oldest_seconds: float


class AudienceRecords:
    """Every method is awaited. What belongs to another tenant, has expired or was deleted is NotFound."""

    def __init__(self, database: Database, *, audience_days: float) -> None:
        """`audience_days`: audiences go after so long in any case; 0: never."""
        self._database = database
        self._days = audience_days

    @transaction
    def find(self, connection: sa.Connection, tenant: str, audience_id: str) -> AudienceRecord:
        """A tenant's audience by its own name.

        Raises:
            NotFound: the tenant has none of this name, or it is not finished.
        """
        return self._one(connection, tenant, audience_id)

    @transaction
    def by_id(self, connection: sa.Connection, operation_id: str) -> AudienceRecord | None:
        """The audience of an operation, whoever's it is."""
        found = self._select(connection, AUDIENCES.c.id == operation_id)
        return found[0] if found else None

    @transaction
    def list(
        self, connection: sa.Connection, tenant: str, *, after: tuple[float, str] | None, limit: int, where: Any = None
    ) -> Sequence[AudienceRecord]:
        """Up to `limit` of the tenant's, in order of `published` and `id`, from behind these two on.

        `where`: a condition on the columns of AUDIENCES, see `filters`.
        """
        wanted = [AUDIENCES.c.tenant == tenant, *(() if where is None else (where,))]
        if after is not None:
            wanted.append(sa.tuple_(AUDIENCES.c.published, AUDIENCES.c.id) > after)
        return self._select(connection, *wanted, limit=limit)

    @transaction
    def behind(self, connection: sa.Connection, tenant: str | None = None) -> Sequence[AudienceRecord]:
        """Audiences, of one tenant or of all, in which users who opted out may still be."""
        mine = () if tenant is None else (AUDIENCES.c.tenant == tenant,)
        return self._select(connection, AUDIENCES.c.opted_out_through < _last_opt_out(), *mine)

    @transaction
    def pending(self, connection: sa.Connection) -> Pending:
        """How far behind the audiences of all tenants are."""
        missing = [
            sa.select(sa.func.min(OPT_OUTS.c.number))
            .where(OPT_OUTS.c.tenant == tenant, OPT_OUTS.c.number > AUDIENCES.c.opted_out_through)
            .scalar_subquery()
            for tenant in (AUDIENCES.c.tenant, EVERYONE)
        ]
        oldest = [sa.func.min(number) for number in missing]
        behind = sa.or_(*(number.is_not(None) for number in missing))
        query = sa.select(sa.func.count(), *oldest).select_from(AUDIENCES).where(*self._there(connection), behind)
        count, *numbers = connection.execute(query).one()
        if not count:
            return Pending(0, 0.0)
        first = OPT_OUTS.c.number == min(one for one in numbers if one is not None)
        age = connection.scalar(sa.select(now(connection) - OPT_OUTS.c.created).where(first).limit(1))
        return Pending(count, max(0.0, age or 0.0))

    @transaction
    def note_opted_out(self, connection: sa.Connection, operation_id: str, number: int) -> None:
        """Opt-outs up to `number` are not in this audience, nor will they be in the one that is being made."""
        mine = (AUDIENCES.c.id == operation_id, AUDIENCES.c.opted_out_through < number)
        connection.execute(AUDIENCES.update().where(*mine).values(opted_out_through=number))

    @transaction
    def set_expiry(self, connection: sa.Connection, tenant: str, audience_id: str, expires: float | None) -> None:
        """Let it expire then, or never by a time of its own.

        Raises:
            NotFound: as `find`.
        """
        found = self._one(connection, tenant, audience_id)
        connection.execute(AUDIENCES.update().where(AUDIENCES.c.id == found.id).values(expires=expires, ttl=None))

    @transaction
    def begin_delete(self, connection: sa.Connection, tenant: str, audience_id: str) -> str:
        """From now on nobody sees it, and its operation knows why; returns its id. May be repeated.

        Raises:
            NotFound: as `find`.
        """
        mine = (AUDIENCES.c.tenant == tenant, AUDIENCES.c.audience_id == audience_id)
        begun = connection.scalar(sa.select(AUDIENCES.c.id).where(*mine, AUDIENCES.c.deleted.is_not(None)))
        if begun is not None:
            return as_id(begun)
        found = self._one(connection, tenant, audience_id)
        self._mark(connection, [found.id], Gone.DELETED)
        return found.id

    @transaction
    def begin_expiry(self, connection: sa.Connection) -> builtins.list[str]:
        """Do likewise with all that have expired; returns the ids of all whose files are to be removed."""
        gone = sa.select(AUDIENCES.c.id).where(
            AUDIENCES.c.published.is_not(None), AUDIENCES.c.deleted.is_(None), sa.not_(self._lasts(connection))
        )
        self._mark(connection, builtins.list(connection.scalars(gone)), Gone.EXPIRED)
        return [
            as_id(one) for one in connection.scalars(sa.select(AUDIENCES.c.id).where(AUDIENCES.c.deleted.is_not(None)))
        ]

    @transaction
    def forget(self, connection: sa.Connection, operation_ids: Collection[str]) -> None:
        """Audiences whose files are removed; their names are free again."""
        gone = (AUDIENCES.c.id.in_(operation_ids), AUDIENCES.c.deleted.is_not(None))
        connection.execute(AUDIENCES.delete().where(*gone))

    def _one(self, connection: sa.Connection, tenant: str, audience_id: str) -> AudienceRecord:
        found = self._select(connection, AUDIENCES.c.tenant == tenant, AUDIENCES.c.audience_id == audience_id)
        if not found:
            raise NotFound(f"there is no audiences/{audience_id}", field="name")
        return found[0]

    def _select(
        self, connection: sa.Connection, *wanted: Any, limit: int | None = None
    ) -> builtins.list[AudienceRecord]:
        query = sa.select(AUDIENCES, _last_opt_out().label("opt_outs")).where(*self._there(connection), *wanted)
        rows = connection.execute(query.order_by(AUDIENCES.c.published, AUDIENCES.c.id).limit(limit)).mappings()
        return [
            AudienceRecord(
                id=as_id(row["id"]),
                tenant=row["tenant"],
                audience_id=row["audience_id"],
                campaign=row["campaign"],
                published=row["published"],
                expires=self._expires(row["published"], row["expires"]),
                opted_out_through=row["opted_out_through"],
                opt_outs=row["opt_outs"],
            )
            for row in rows
        ]

    def _there(self, connection: sa.Connection) -> tuple[Any, ...]:
        return AUDIENCES.c.published.is_not(None), AUDIENCES.c.deleted.is_(None), self._lasts(connection)

    def _lasts(self, connection: sa.Connection) -> Any:
        """Whether an audience has not expired."""
        moment = now(connection)
        own = sa.or_(AUDIENCES.c.expires.is_(None), AUDIENCES.c.expires > moment)
        return sa.and_(own, AUDIENCES.c.published > moment - self._days * DAY) if self._days else own

    def _expires(self, published: float, own: float | None) -> float | None:
        times = [] if own is None else [own]
        times += [published + self._days * DAY] if self._days else []
        return min(times, default=None)

    def _mark(self, connection: sa.Connection, operation_ids: Collection[str], why: Gone) -> None:
        moment = now(connection)
        connection.execute(AUDIENCES.update().where(AUDIENCES.c.id.in_(operation_ids)).values(deleted=moment))
        made = OPERATIONS.update().where(OPERATIONS.c.id.in_(operation_ids))
        connection.execute(made.values(audience_gone=why.value, audience_gone_at=moment))


def _last_opt_out() -> Any:
    """The number of the last opt-out for an audience's tenant; 0 before there is one."""
    mine = sa.select(sa.func.max(OPT_OUTS.c.number)).where(OPT_OUTS.c.tenant == AUDIENCES.c.tenant)
    everyones = sa.select(sa.func.max(OPT_OUTS.c.number)).where(OPT_OUTS.c.tenant == EVERYONE)
    first, second = (sa.func.coalesce(one.scalar_subquery(), 0) for one in (mine, everyones))
    return sa.case((first > second, first), else_=second)
