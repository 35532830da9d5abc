"""The queue as a front works it off: claims with a lease, signs of life, ends, and taking over what a dead front left.

Knows the tables; one object for each front. What a front claimed is its own while it renews the lease; a claim counts
the operation's `fence` up, and only the holder of the last one may write.
"""

from __future__ import annotations

import uuid
from collections.abc import Collection, Sequence

import sqlalchemy as sa

from lookalike.errors import DataCorrupted, LookalikeError, Unavailable, quoted
from lookalike.retrieval.receipt import Progress
from lookalike.service.database import CLAIM_LOCK, Database, lock, now, transaction
from lookalike.service.fairness import Quotas, Turn, Waiting
from lookalike.service.operations import cancel, end_without_audience, select
from lookalike.service.people import NAME, People
from lookalike.service.records import (
    AUDIENCES,
    INSTALLATION,
    OPERATIONS,
    PEOPLE,
    TENANTS,
    Operation,
    State,
    error_text,
)

_QUEUED = OPERATIONS.c.state == State.QUEUED.value
_RUNNING = OPERATIONS.c.state == State.RUNNING.value

# A front dies for many reasons; what has been there so often is looked at by itself.
LOST_IN_COMPANY = 2


class Leases:
    """Every method is awaited."""

    def __init__(self, database: Database, quotas: Quotas, *, lease_seconds: float, max_lost_runs: int) -> None:
        """`max_lost_runs`: of one job that ended with their front; then it is failed."""
        self._database = database
        self._quotas = quotas
        self._max_lost_runs = max_lost_runs
        self._owner = uuid.uuid4().hex
        self.lease_seconds = lease_seconds

    @property
    def shared(self) -> bool:
        """Whether other fronts may work off the same queue."""
        return self._database.shared

    def suspect(self, operation: Operation) -> bool:
        """Whether it may be what its fronts died of: run alone, so that what runs beside it does not fail with it."""
        return 0 < min(LOST_IN_COMPANY, self._max_lost_runs - 1) <= operation.lost

    @transaction
    def claim(self, connection: sa.Connection) -> Operation | None:
        """Take the operation whose turn it is and make it RUNNING; None when there is none that may run."""
        lock(connection, CLAIM_LOCK)  # else two fronts would give the same tenant the same turn
        for turn in self._turns(connection):
            head = (
                sa.select(OPERATIONS.c.id)
                .where(_QUEUED, OPERATIONS.c.tenant == turn.tenant)
                .order_by(OPERATIONS.c.due, OPERATIONS.c.number)
                .limit(1)
                .with_for_update(skip_locked=True)  # it is just being cancelled
            )
            operation_id = connection.scalar(head)
            if operation_id is not None:
                self._take(connection, operation_id, turn)
                return select(connection, OPERATIONS.c.id == operation_id)[0]
        return None

    @transaction
    def people(self, connection: sa.Connection, operation: Operation) -> People | None:
        """Its seeds and exclusions; None: they are files.

        Raises:
            DataCorrupted: under a name by which whoever can write to the database might lead out of a folder.
        """
        wanted = sa.select(PEOPLE.c.file, PEOPLE.c.content).where(PEOPLE.c.id == operation.id)
        files = {row.file: row.content for row in connection.execute(wanted)}
        for name in files:
            if NAME.fullmatch(name) is None:
                raise DataCorrupted(f"the operations database holds {quoted(name)} where a name of a file should be")
        return People(files) if files else None

    @transaction
    def cancel_requested(self, connection: sa.Connection, operation: Operation) -> bool:
        """Whether it is to be cancelled."""
        return bool(connection.scalar(sa.select(OPERATIONS.c.cancel_requested).where(OPERATIONS.c.id == operation.id)))

    @transaction
    def begin_attempt(self, connection: sa.Connection, operation: Operation) -> bool:
        """Count a run; whether the operation is still ours."""
        return self._update(connection, operation, attempts=OPERATIONS.c.attempts + 1)

    @transaction
    def note_progress(
        self, connection: sa.Connection, operation: Operation, progress: Progress, users_scored: int, users_total: int
    ) -> bool:
        """Remember how far it is, for whoever asks elsewhere or after a restart; whether it is still ours."""
        return self._update(
            connection,
            operation,
            stage=progress.stage.value,
            stage_done=progress.done,
            stage_total=progress.total,
            users_scored=users_scored,
            users_total=users_total,
        )

    @transaction
    def finish(
        self, connection: sa.Connection, operation: Operation, state: State, error: LookalikeError | None = None
    ) -> bool:
        """Make it done, and its audience known when it succeeded; false, and nothing done, when it was ours no more."""
        ended = now(connection)
        if not self._update(connection, operation, state=state.value, ended=ended, error=error_text(error)):
            return False
        connection.execute(PEOPLE.delete().where(PEOPLE.c.id == operation.id))
        audience = AUDIENCES.c.id == operation.id
        if state is State.SUCCEEDED:
            expires = sa.func.coalesce(AUDIENCES.c.expires, ended + AUDIENCES.c.ttl)
            connection.execute(AUDIENCES.update().where(audience).values(published=ended, expires=expires))
            seconds = sa.select(OPERATIONS.c.ended - OPERATIONS.c.started).where(OPERATIONS.c.id == operation.id)
            _learn(connection, max(0.0, connection.scalar(seconds) or 0.0))
        else:
            connection.execute(AUDIENCES.delete().where(audience))
        return True

    @transaction
    def give_back(self, connection: sa.Connection, operation: Operation) -> list[Operation]:
        """Put an operation of ours back into its old place; returns it if it was cancelled instead, as asked for."""
        mine = (OPERATIONS.c.id == operation.id, OPERATIONS.c.fence == operation.fence)
        # What we wrote last may still be at it.
        return _requeue(connection, sa.and_(*mine, OPERATIONS.c.owner == self._owner), skip_locked=False)

    @transaction
    def renew(self, connection: sa.Connection, operations: Collection[Operation]) -> dict[str, bool]:
        """Give a sign of life for what we run; returns what is still ours, by id, and whether to cancel it."""
        held = {}
        for operation in operations:
            if self._update(connection, operation, lease_until=now(connection) + self.lease_seconds):
                wanted = sa.select(OPERATIONS.c.cancel_requested).where(OPERATIONS.c.id == operation.id)
                held[operation.id] = bool(connection.scalar(wanted))
        return held

    @transaction
    def requeue_abandoned(
        self, connection: sa.Connection, keep: Collection[str], *, everything: bool = False
    ) -> list[Operation]:
        """Put what nobody runs any more back into its old places; returns what was ended instead: what was to be
        cancelled, and what has lost too many runs with their fronts.

        That is what has no lease any more, but for `keep`, which runs here; or `everything`, when no other front is.
        Whatever a front leaves behind when it dies comes by here, and nothing that it hands over when it is stopped.
        """
        over = sa.or_(
            sa.literal(everything), OPERATIONS.c.lease_until.is_(None), OPERATIONS.c.lease_until < now(connection)
        )
        left = sa.and_(OPERATIONS.c.id.not_in(keep), over)
        return _requeue(connection, left, skip_locked=True, max_lost_runs=self._max_lost_runs)

    def _turns(self, connection: sa.Connection) -> Sequence[Turn]:
        running = sa.select(OPERATIONS.c.tenant, sa.func.count()).where(_RUNNING).group_by(OPERATIONS.c.tenant)
        counts = {row[0]: row[1] for row in connection.execute(running)}
        turns = sa.select(TENANTS.c.tenant, TENANTS.c.start).where(TENANTS.c.start.is_not(None))
        starts = {row[0]: row[1] for row in connection.execute(turns)}
        heads = (
            sa.select(OPERATIONS.c.tenant, sa.func.min(OPERATIONS.c.due)).where(_QUEUED).group_by(OPERATIONS.c.tenant)
        )
        waiting = [
            Waiting(tenant, counts.get(tenant, 0), starts.get(tenant), due) for tenant, due in connection.execute(heads)
        ]
        return self._quotas.turns(waiting, max(starts.values(), default=0.0))

    def _take(self, connection: sa.Connection, operation_id: str, turn: Turn) -> None:
        moment = now(connection)
        connection.execute(
            OPERATIONS.update()
            .where(OPERATIONS.c.id == operation_id)
            .values(
                state=State.RUNNING.value,
                started=sa.func.coalesce(OPERATIONS.c.started, moment),
                owner=self._owner,
                lease_until=moment + self.lease_seconds,
                fence=OPERATIONS.c.fence + 1,
            )
        )
        if not connection.execute(
            TENANTS.update().where(TENANTS.c.tenant == turn.tenant).values(start=turn.start)
        ).rowcount:
            row = {"tenant": turn.tenant, "start": turn.start, "day": 0, "accepted": 0}
            connection.execute(TENANTS.insert().values(row))

    def _update(self, connection: sa.Connection, operation: Operation, **values: object) -> bool:
        mine = (
            OPERATIONS.c.id == operation.id,
            _RUNNING,
            OPERATIONS.c.owner == self._owner,
            OPERATIONS.c.fence == operation.fence,
        )
        return connection.execute(OPERATIONS.update().where(*mine).values(values)).rowcount == 1


def _learn(connection: sa.Connection, seconds: float) -> None:
    mean = INSTALLATION.c.run_seconds
    connection.execute(INSTALLATION.update().values(run_seconds=sa.func.coalesce(0.9 * mean + 0.1 * seconds, seconds)))


def _requeue(
    connection: sa.Connection, which: sa.ColumnElement[bool], *, skip_locked: bool, max_lost_runs: int | None = None
) -> list[Operation]:
    """Returns those that were ended instead. `max_lost_runs`: their fronts are lost; so often, and they fail."""
    columns = OPERATIONS.c.id, OPERATIONS.c.cancel_requested, OPERATIONS.c.lost
    found = sa.select(*columns).where(_RUNNING, which).with_for_update(skip_locked=skip_locked)
    ended = []
    for operation_id, wanted, before in connection.execute(found).all():
        lost = before if max_lost_runs is None else before + 1
        if wanted:
            cancel(connection, operation_id)
        elif max_lost_runs is not None and lost >= max_lost_runs:
            end_without_audience(connection, operation_id, State.FAILED, _server_died(lost), lost=lost)
        else:
            back = {"state": State.QUEUED.value, "owner": None, "lease_until": None, "lost": lost}
            connection.execute(OPERATIONS.update().where(OPERATIONS.c.id == operation_id).values(back))
            continue
        ended += select(connection, OPERATIONS.c.id == operation_id)
    return ended


def _server_died(lost: int) -> LookalikeError:
    return Unavailable(
        f"given up after {lost} runs whose server died, or was silent for too long, before they ended; if the job "
        "takes more memory than there is, give the server more, or run jobs apart from it (service.runtime=torchserve)",
        reason="SERVER_DIED",
    )
