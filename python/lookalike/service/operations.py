"""What callers ask of the operations store: accept, look up, list, cancel, forget; each tenant sees its own alone.

Knows the tables; knows neither gRPC nor runtimes, nor how the queue is worked off (`leases`).
"""

from __future__ import annotations

import asyncio
import builtins
import time
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import sqlalchemy as sa
from sqlalchemy.dialects import postgresql, sqlite

from lookalike.errors import AlreadyExists, Cancelled, FailedPrecondition, LookalikeError, NotFound, QuotaExceeded
from lookalike.service.database import Database, now, transaction
from lookalike.service.fairness import Quotas
from lookalike.service.metrics import Metrics
from lookalike.service.people import People
from lookalike.service.records import (
    AUDIENCES,
    INSTALLATION,
    OPERATIONS,
    PEOPLE,
    TENANTS,
    Operation,
    State,
    audience_row,
    error_text,
    from_row,
    to_row,
)
from lookalike.service.statements import Statement, together

DAY = 86_400
RUN_SECONDS = 30.0  # of an operation, while none has succeeded
RETRY_LIMITS = (1.0, 3600.0)

_QUEUED = OPERATIONS.c.state == State.QUEUED.value
ACTIVE = (State.QUEUED.value, State.RUNNING.value)

# What every look at an operation runs is made here, once: making a statement takes SQLAlchemy five times as long as
# running it. What every submission runs is not run by SQLAlchemy at all.
_MINE = sa.select(OPERATIONS).where(OPERATIONS.c.tenant == sa.bindparam("tenant"))
_BY_ID = _MINE.where(OPERATIONS.c.id == sa.bindparam("id"))
_BY_ID_LOCKED = _BY_ID.with_for_update()
_BY_REQUEST_ID = _MINE.where(OPERATIONS.c.request_id == sa.bindparam("request_id"))
_HOLDER = sa.select(AUDIENCES.c.id).where(
    AUDIENCES.c.tenant == sa.bindparam("tenant"), AUDIENCES.c.audience_id == sa.bindparam("audience_id")
)
_COUNTS = (
    sa.select(OPERATIONS.c.state, OPERATIONS.c.tenant, sa.func.count())
    .where(OPERATIONS.c.state.in_(ACTIVE))
    .group_by(OPERATIONS.c.state, OPERATIONS.c.tenant)
)
_RUN_SECONDS = sa.select(INSTALLATION.c.run_seconds)
_QUEUE_OF = sa.select(sa.func.count()).where(_QUEUED, OPERATIONS.c.tenant == sa.bindparam("tenant"))
_AHEAD = _QUEUE_OF.where(
    sa.tuple_(OPERATIONS.c.due, OPERATIONS.c.number)
    < sa.tuple_(sa.bindparam("due", type_=sa.Float), sa.bindparam("number", type_=sa.Integer))
)
_BEHIND = _QUEUE_OF.where(OPERATIONS.c.due > sa.bindparam("due", type_=sa.Float))
_HOLD_TENANT = Statement(
    sa.select(TENANTS.c.day, TENANTS.c.accepted).where(TENANTS.c.tenant == sa.bindparam("tenant")).with_for_update()
)
_LOOK = Statement(
    sa.select(
        sa.select(OPERATIONS.c.number)
        .where(
            OPERATIONS.c.tenant == sa.bindparam("tenant"),
            OPERATIONS.c.request_id == sa.bindparam("request_id", type_=sa.String),
        )
        .scalar_subquery(),
        _QUEUE_OF.scalar_subquery(),
        _BEHIND.scalar_subquery(),
        sa.select(sa.func.count()).where(_QUEUED).scalar_subquery(),
    )
)
_COUNT_ACCEPTED = Statement(
    TENANTS.update()
    .where(TENANTS.c.tenant == sa.bindparam("of"))
    .values(day=sa.bindparam("today"), accepted=sa.bindparam("count"))
)
_INSERT_OPERATION = Statement(OPERATIONS.insert())
_INSERT_AUDIENCE = Statement(AUDIENCES.insert())
_INSERT_PEOPLE = Statement(PEOPLE.insert())


@dataclass(frozen=True)
class Load:
    """How busy all servers are.

    Attributes:
        run_seconds: of an operation, as the last ones had it; a guess while none has succeeded.
        queued: the tenant's operations. queued_by_all, running: everyone's.
        tenants: that have something in the queue, this one counted in.
    """

    run_seconds: float
    queued: int
    queued_by_all: int
    running: int
    tenants: int

    def wait_seconds(self, slots: int) -> float:
        """Until one more operation of the tenant would run, if `slots` may run at once and the others have as much."""
        slots = max(slots, self.running, 1)
        if not self.queued_by_all and self.running < slots:
            return 0.0
        ahead = min(self.queued_by_all, self.queued * self.tenants + self.tenants - 1)
        return (ahead + 1) / slots * self.run_seconds


@dataclass(frozen=True)
class _Seen:
    """What a submission looks at.

    Attributes:
        known: whether its `request_id` names an operation already.
        accepted: the tenant's operations of today.
        queued: those that wait. behind: those of them that would go after it. queued_by_all: everyone's.
    """

    known: bool
    accepted: int
    queued: int
    behind: int
    queued_by_all: int


@dataclass(frozen=True)
class Queue:
    """What waits to run, on whatever server: how much, and for how many seconds the oldest of it."""

    depth: int
    oldest_seconds: float


class OperationStore:
    """Every method is awaited. What belongs to another tenant is NotFound."""

    def __init__(self, database: Database, quotas: Quotas, *, max_queued: int, metrics: Metrics | None = None) -> None:
        """`max_queued`: of all tenants together; two servers that accept at once may exceed it by one."""
        self._database = database
        self._quotas = quotas
        self._max_queued = max_queued
        self._metrics = metrics or Metrics()

    def create(self, operation: Operation, people: People | None = None) -> asyncio.Future[tuple[Operation, bool]]:
        """Accept the operation, or return the one its `request_id` or `audience_id` already names; whether it is new.

        `people`: of the operation; None: they are files already.

        Raises:
            AlreadyExists: one of them was used with other content. QuotaExceeded: too many are queued, or were accepted
                today.
        """
        return self._database.accept(lambda connection: self._create(connection, operation, people), operation.tenant)

    def _create(self, connection: sa.Connection, operation: Operation, people: People | None) -> tuple[Operation, bool]:
        tenant = operation.tenant
        seen = _look(connection, operation)
        own = operation.audience_id if operation.audience_id != operation.id else None
        if seen.known or own:
            known = _known(connection, tenant, operation.request_id, own, operation.request_sha256)
            if known is not None:
                return known, False
        try:
            self._admit(connection, tenant, seen)
        except QuotaExceeded as refused:
            self._metrics.refused(refused.quota)
            raise
        with together(connection):
            inserted = _INSERT_OPERATION.run(connection, to_row(operation))
            _INSERT_AUDIENCE.run(connection, audience_row(operation))
            for name, content in people.files.items() if people is not None else ():
                _INSERT_PEOPLE.run(connection, {"id": operation.id, "file": name, "content": content})
            _COUNT_ACCEPTED.run(connection, {"of": tenant, "today": _today(), "count": seen.accepted + 1})
        number = inserted.lastrowid if connection.dialect.name == "sqlite" else inserted.fetchone()[0]
        return replace(operation, number=number, queue_position=seen.queued - seen.behind), True

    @transaction
    def find(
        self, connection: sa.Connection, tenant: str, *, request_id: str, audience_id: str, request_sha256: str
    ) -> Operation | None:
        """The operation that either of the ids names, if any; empty ids name none.

        Raises:
            AlreadyExists: it was used with other content.
        """
        return _known(connection, tenant, request_id or None, audience_id or None, request_sha256)

    @transaction
    def get(self, connection: sa.Connection, tenant: str, operation_id: str) -> Operation:
        """The operation.

        Raises:
            NotFound: the tenant has none of this id.
        """
        return one_of(connection, tenant, operation_id)

    @transaction
    def list(
        self, connection: sa.Connection, tenant: str, *, after: int, limit: int, where: Any = None
    ) -> Sequence[Operation]:
        """Up to `limit` of the tenant's operations numbered above `after`, in order of acceptance.

        `where`: a condition on the columns of OPERATIONS, see `filters`.
        """
        wanted = [OPERATIONS.c.tenant == tenant, OPERATIONS.c.number > after]
        return select(connection, *wanted, *(() if where is None else (where,)), limit=limit)

    @transaction
    def request_cancel(self, connection: sa.Connection, tenant: str, operation_id: str) -> Operation:
        """Cancel it at once when queued, note the wish when running; a done one stays as it is.

        Raises:
            NotFound: the tenant has none of this id.
        """
        operation = one_of(connection, tenant, operation_id, lock_it=True)
        if operation.state is State.QUEUED:
            cancel(connection, operation_id)
            self._metrics.ended(operation.progress, Cancelled("cancelled"))
        elif operation.state is State.RUNNING:
            connection.execute(OPERATIONS.update().where(OPERATIONS.c.id == operation_id).values(cancel_requested=True))
        return one_of(connection, tenant, operation_id)

    @transaction
    def delete(self, connection: sa.Connection, tenant: str, operation_id: str) -> None:
        """Forget a done operation; its audience stays.

        Raises:
            NotFound: the tenant has none of this id. FailedPrecondition: it is not done.
        """
        if not one_of(connection, tenant, operation_id, lock_it=True).state.done:
            raise FailedPrecondition(
                f"operations/{operation_id} is not done: cancel it first", field="name", reason="OPERATION_ACTIVE"
            )
        connection.execute(OPERATIONS.delete().where(OPERATIONS.c.id == operation_id))

    @transaction
    def ended(self, connection: sa.Connection, operation_ids: Collection[str]) -> builtins.list[str]:
        """Which of these are done or gone."""
        ids = sa.select(OPERATIONS.c.id).where(OPERATIONS.c.id.in_(operation_ids), OPERATIONS.c.state.in_(ACTIVE))
        active = set(connection.scalars(ids))
        return [one for one in operation_ids if one not in active]

    @transaction
    def load(self, connection: sa.Connection, tenant: str) -> Load:
        """How busy all servers are, as this tenant would feel it."""
        return _load(connection, tenant)

    @transaction
    def queue(self, connection: sa.Connection) -> Queue:
        """What waits, of all tenants."""
        moment = now(connection)
        query = sa.select(sa.func.count(), moment - sa.func.min(OPERATIONS.c.created)).where(_QUEUED)
        depth, oldest = connection.execute(query).one()
        return Queue(depth, max(0.0, oldest or 0.0))

    def _admit(self, connection: sa.Connection, tenant: str, seen: _Seen) -> None:
        quota = self._quotas.of(tenant)
        if quota.per_day is not None and seen.accepted >= quota.per_day:
            raise QuotaExceeded(
                f"{seen.accepted} operations were accepted since midnight UTC, the most allowed in a day",
                quota="quotas.per_day",
                subject=f"tenant:{tenant}",
                retry_seconds=DAY - time.time() % DAY,
            )
        if seen.queued < quota.queued and seen.queued_by_all < self._max_queued:
            return
        load = _load(connection, tenant)
        least, most = RETRY_LIMITS
        soon = min(max(load.run_seconds / max(1, load.running), least), most)
        if seen.queued >= quota.queued:
            raise QuotaExceeded(
                f"{seen.queued} operations are queued, the most allowed; try again later",
                quota="quotas.queued",
                subject=f"tenant:{tenant}",
                retry_seconds=min(max(soon * max(1, load.tenants), least), most),
            )
        raise QuotaExceeded(
            f"{seen.queued_by_all} operations are queued, the most this server takes; try again later",
            quota="service.max_queued",
            subject="service",
            retry_seconds=soon,
        )


def select(connection: sa.Connection, *wanted: Any, limit: int | None = None) -> list[Operation]:
    """Operations in order of acceptance, with their places in the queue."""
    return _found(connection, sa.select(OPERATIONS).where(*wanted).order_by(OPERATIONS.c.number).limit(limit))


def one_of(connection: sa.Connection, tenant: str, operation_id: str, *, lock_it: bool = False) -> Operation:
    """A tenant's operation.

    Raises:
        NotFound: it has none of this id.
    """
    query = _BY_ID_LOCKED if lock_it else _BY_ID
    found = _found(connection, query, {"tenant": tenant, "id": operation_id})
    if not found:
        raise NotFound(f"there is no operations/{operation_id}", field="name")
    return found[0]


def cancel(connection: sa.Connection, operation_id: str) -> None:
    """End it as CANCELLED."""
    error = Cancelled("cancelled by CancelOperation")
    end_without_audience(connection, operation_id, State.CANCELLED, error, cancel_requested=True)


def end_without_audience(
    connection: sa.Connection, operation_id: str, state: State, error: LookalikeError, **values: object
) -> None:
    """End it whoever has it; its audience's name is free again."""
    connection.execute(
        OPERATIONS.update()
        .where(OPERATIONS.c.id == operation_id)
        .values(state=state.value, ended=now(connection), error=error_text(error), **values)
    )
    connection.execute(AUDIENCES.delete().where(AUDIENCES.c.id == operation_id))
    connection.execute(PEOPLE.delete().where(PEOPLE.c.id == operation_id))


def _found(
    connection: sa.Connection, query: sa.Select[Any], values: Mapping[str, object] | None = None
) -> list[Operation]:
    rows = connection.execute(query, values).mappings().all()
    return _placed(connection, [from_row(row) for row in rows])


def _placed(connection: sa.Connection, operations: list[Operation]) -> list[Operation]:
    queued = [one for one in operations if one.state is State.QUEUED]
    if len(queued) == 1 == len(operations):  # the common case must not read the whole queue
        one = {"tenant": queued[0].tenant, "due": queued[0].due, "number": queued[0].number}
        return [replace(queued[0], queue_position=connection.scalar(_AHEAD, one) or 0)]
    tenants = {one.tenant for one in queued}
    if not tenants:
        return operations
    rows = connection.execute(
        sa.select(OPERATIONS.c.tenant, OPERATIONS.c.id)
        .where(_QUEUED, OPERATIONS.c.tenant.in_(tenants))
        .order_by(OPERATIONS.c.due, OPERATIONS.c.number)
    )
    places: dict[str, int] = {}
    seen = dict.fromkeys(tenants, 0)
    for tenant, operation_id in rows:
        places[operation_id] = seen[tenant]
        seen[tenant] += 1
    return [replace(one, queue_position=places.get(one.id, 0)) for one in operations]


def _look(connection: sa.Connection, operation: Operation) -> _Seen:
    """Make all who accept for the operation's tenant take turns, and look at what it has."""
    values = {"tenant": operation.tenant, "request_id": operation.request_id, "due": operation.due}
    with together(connection):
        held = _HOLD_TENANT.run(connection, values)
        look = _LOOK.run(connection, values)  # a statement of its own, so that it sees what others did before its turn
    mine = held.fetchall()
    if not mine:
        insert: Any = sqlite.insert if connection.dialect.name == "sqlite" else postgresql.insert
        row = {"tenant": operation.tenant, "start": None, "day": 0, "accepted": 0}
        connection.execute(insert(TENANTS).values(row).on_conflict_do_nothing())
        return _look(connection, operation)
    ((day, accepted),), ((number, queued, behind, by_all),) = mine, look.fetchall()
    return _Seen(number is not None, int(accepted) if day == _today() else 0, queued, behind, by_all)


def _known(
    connection: sa.Connection, tenant: str, request_id: str | None, audience_id: str | None, sha256: str
) -> Operation | None:
    if request_id is not None:
        for known in _found(connection, _BY_REQUEST_ID, {"tenant": tenant, "request_id": request_id}):
            if known.request_sha256 != sha256:
                raise AlreadyExists(
                    f"request_id '{request_id}' was used with other content for operations/{known.id}; choose a new "
                    "one",
                    field="request_id",
                    reason="REQUEST_ID_REUSED",
                )
            return known
    if audience_id is None:
        return None
    holder = connection.scalar(_HOLDER, {"tenant": tenant, "audience_id": audience_id})
    if holder is None:
        return None
    for known in _found(connection, _BY_ID, {"tenant": tenant, "id": holder}):
        if known.request_sha256 == sha256:
            return known
    raise AlreadyExists(
        f"audiences/{audience_id} exists, or is being made of another request; choose another audience_id",
        field="audience_id",
        reason="AUDIENCE_EXISTS",
    )


def _load(connection: sa.Connection, tenant: str) -> Load:
    queued: dict[str, int] = {}
    running = 0
    for state, owner, count in connection.execute(_COUNTS):
        if state == State.RUNNING.value:
            running += count
        else:
            queued[owner] = count
    seconds = connection.scalar(_RUN_SECONDS)
    return Load(
        run_seconds=RUN_SECONDS if seconds is None else seconds,
        queued=queued.get(tenant, 0),
        queued_by_all=sum(queued.values()),
        running=running,
        tenants=len(queued.keys() | {tenant}),
    )


def _today() -> int:
    return int(time.time() // DAY)
