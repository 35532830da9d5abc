"""What the operations database keeps: an operation, the tables, and the way from one to the other.

Knows jobs and SQLAlchemy's tables; runs no SQL. The tables are as the last of `migrations` leaves them.
"""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from enum import IntEnum, StrEnum
from typing import Any

import sqlalchemy as sa

from lookalike.errors import DataCorrupted, InvalidInput, LookalikeError, quoted
from lookalike.retrieval.receipt import Progress, Stage
from lookalike.runtime.job import ExpansionJob
from lookalike.runtime.wire import error_from_json, error_to_json, job_from_json, job_to_json

# What a priority is worth: HIGH goes before what was accepted up to so long earlier, LOW after what comes up to so long
# later. So nothing waits for ever, however many come with a higher priority.
PRIORITY_SECONDS = 600.0


_ID = re.compile("[A-Za-z0-9_-]{1,64}")


class State(StrEnum):
    QUEUED = "QUEUED"
    RUNNING = "RUNNING"
    SUCCEEDED = "SUCCEEDED"
    FAILED = "FAILED"
    CANCELLED = "CANCELLED"

    @property
    def done(self) -> bool:
        return self not in (State.QUEUED, State.RUNNING)


class Gone(StrEnum):
    """Why an audience is there no more."""

    DELETED = "DELETED"
    EXPIRED = "EXPIRED"


class Priority(IntEnum):
    """Among the operations of one tenant."""

    LOW = 1
    NORMAL = 2
    HIGH = 3


@dataclass(frozen=True, kw_only=True)
class Operation:
    """One expansion, from acceptance to its end. Times are Unix seconds.

    Attributes:
        id: 32 hexadecimal digits, unique over all tenants; also the audience's folder.
        audience_id: what the tenant knows the audience by: its own choice, or `id`.
        number: order of acceptance.
        request_sha256: of the request's content, to tell a repetition from a misuse of its `request_id`.
        attempts: runs begun. lost: those that ended with their server, which died or was silent.
        fence: counts claims; who holds an older one has lost the operation.
        queue_position: the tenant's operations ahead in the queue; 0 when not queued.
        audience_ttl, audience_expires: seconds, and a time, after which its audience goes; of a new one alone.
        audience_gone, audience_gone_at: why its audience is there no more, and since when.
    """

    id: str
    tenant: str
    request_id: str | None
    request_sha256: str
    audience_id: str
    job: ExpansionJob
    users_total: int
    created: float
    priority: Priority = Priority.NORMAL
    number: int = 0
    state: State = State.QUEUED
    progress: Progress | None = None
    users_scored: int = 0
    attempts: int = 0
    lost: int = 0
    fence: int = 0
    cancel_requested: bool = False
    started: float | None = None
    ended: float | None = None
    error: LookalikeError | None = None
    queue_position: int = 0
    audience_ttl: float | None = None
    audience_expires: float | None = None
    audience_gone: Gone | None = None
    audience_gone_at: float | None = None

    @property
    def due(self) -> float:
        """Place in the tenant's queue: the least goes first, then the least `number`."""
        return self.created - PRIORITY_SECONDS * (self.priority - Priority.NORMAL)


METADATA = sa.MetaData()
OPERATIONS = sa.Table(
    "operations",
    METADATA,
    sa.Column("number", sa.Integer, primary_key=True, autoincrement=True),
    sa.Column("id", sa.String(64), nullable=False, unique=True),
    sa.Column("request_id", sa.String(128)),
    sa.Column("request_sha256", sa.String(64), nullable=False),
    sa.Column("campaign", sa.Text, nullable=False),
    sa.Column("job", sa.Text, nullable=False),
    sa.Column("state", sa.String(16), nullable=False),
    sa.Column("stage", sa.String(16)),
    sa.Column("stage_done", sa.BigInteger, nullable=False),
    sa.Column("stage_total", sa.BigInteger, nullable=False),
    sa.Column("users_scored", sa.BigInteger, nullable=False),
    sa.Column("users_total", sa.BigInteger, nullable=False),
    sa.Column("attempts", sa.Integer, nullable=False),
    sa.Column("lost", sa.Integer, nullable=False),
    sa.Column("cancel_requested", sa.Boolean, nullable=False),
    sa.Column("created", sa.Float, nullable=False),
    sa.Column("started", sa.Float),
    sa.Column("ended", sa.Float),
    sa.Column("error", sa.Text),
    sa.Column("tenant", sa.String(128), nullable=False),
    sa.Column("audience_id", sa.String(64), nullable=False),
    sa.Column("priority", sa.Integer, nullable=False),
    sa.Column("due", sa.Float, nullable=False),
    sa.Column("fence", sa.Integer, nullable=False),
    sa.Column("owner", sa.String(64)),  # the front that runs it, and how long it may without a sign of life
    sa.Column("lease_until", sa.Float),
    sa.Column("audience_gone", sa.String(16)),
    sa.Column("audience_gone_at", sa.Float),
    sa.UniqueConstraint("tenant", "request_id", name="operations_tenant_request_id_key"),
    sa.Index("operations_queue", "state", "tenant", "due", "number"),
    sa.Index("operations_listing", "tenant", "number"),
    sqlite_autoincrement=True,  # a number is never used twice, so that a page token stays true
)
# A row from acceptance on, so that a name is taken while its audience is made; it goes when that fails, and stays when
# its operation is deleted.
AUDIENCES = sa.Table(
    "audiences",
    METADATA,
    sa.Column("id", sa.String(64), primary_key=True),  # of the operation; the folder's name
    sa.Column("tenant", sa.String(128), nullable=False),
    sa.Column("audience_id", sa.String(64), nullable=False),
    sa.Column("published", sa.Float),  # None while it is made
    sa.Column("campaign", sa.Text, nullable=False),
    sa.Column("ttl", sa.Float),  # seconds from `published` to `expires`
    sa.Column("expires", sa.Float),
    sa.Column("deleted", sa.Float),  # since then nobody sees it, and its files are being removed
    sa.Column("opted_out_through", sa.BigInteger, nullable=False),  # opt-outs up to this number are in it no more
    sa.UniqueConstraint("tenant", "audience_id", name="audiences_tenant_audience_id_key"),
    sa.Index("audiences_listing", "tenant", "published", "id"),
)
# Who is to be left out; those of the tenant "" for everyone. Whoever reads a number has seen all lower ones: they are
# given in the order of commits.
OPT_OUTS = sa.Table(
    "opt_outs",
    METADATA,
    sa.Column("tenant", sa.String(128), primary_key=True),
    sa.Column("user_id", sa.Text, primary_key=True),  # integers in decimal
    sa.Column("number", sa.BigInteger, nullable=False),  # of the call that added it
    sa.Column("created", sa.Float, nullable=False),
    sa.Index("opt_outs_of_tenant", "tenant", "number"),
    sa.Index("opt_outs_by_number", "number"),
)
TENANTS = sa.Table(
    "tenants",
    METADATA,
    sa.Column("tenant", sa.String(128), primary_key=True),
    sa.Column("start", sa.Float),  # of its last turn, in the virtual time of `fairness`; None before the first
    sa.Column("day", sa.Integer, nullable=False),  # days since 1970, UTC
    sa.Column("accepted", sa.Integer, nullable=False),  # operations on that day
)
PEOPLE = sa.Table(  # of operations that are not done, where they are few enough for a record
    "people",
    METADATA,
    sa.Column("id", sa.String(64), primary_key=True),  # of the operation
    sa.Column("file", sa.String(64), primary_key=True),
    sa.Column("content", sa.LargeBinary, nullable=False),
)
INSTALLATION = sa.Table(  # one row
    "installation",
    METADATA,
    sa.Column("id", sa.String(32), primary_key=True),  # drawn when the database was made
    sa.Column("bound", sa.Boolean, nullable=False),  # to a data folder
    sa.Column("run_seconds", sa.Float),  # of successful operations, a mean in which the last ones weigh most
)


def error_text(error: LookalikeError | None) -> str | None:
    """As the column `error` holds it."""
    return json.dumps(error_to_json(error)) if error is not None else None


def to_row(operation: Operation) -> dict[str, Any]:
    """Columns of a new one."""
    return {
        "id": operation.id,
        "tenant": operation.tenant,
        "request_id": operation.request_id,
        "request_sha256": operation.request_sha256,
        "audience_id": operation.audience_id,
        "campaign": operation.job.campaign,
        "job": json.dumps(job_to_json(operation.job)),
        "priority": int(operation.priority),
        "due": operation.due,
        "state": operation.state.value,
        "stage": None,
        "stage_done": 0,
        "stage_total": 0,
        "users_scored": 0,
        "users_total": operation.users_total,
        "attempts": 0,
        "lost": 0,
        "fence": 0,
        "cancel_requested": False,
        "created": operation.created,
    }


def as_id(value: object) -> str:
    """An id from a row, which becomes part of paths: whoever can write to the database must not lead out by it.

    Raises:
        DataCorrupted: it is none.
    """
    if not isinstance(value, str) or _ID.fullmatch(value) is None:
        raise DataCorrupted(f"the operations database holds {quoted(str(value))} where an id should be")
    return value


def from_row(row: Any) -> Operation:
    """The operation a row describes; `queue_position` is another query's.

    Raises:
        DataCorrupted: it describes none.
    """
    try:
        return _from_row(row)
    except (ValueError, TypeError, InvalidInput) as error:
        # An InvalidInput's message has what it found, which may be people.
        why = error.field if isinstance(error, InvalidInput) else error
        raise DataCorrupted(
            f"row {row['number']} of the operations database describes no operation ({why}): restore it from a backup"
        ) from error


def _from_row(row: Any) -> Operation:
    stage = row["stage"]
    return Operation(
        id=as_id(row["id"]),
        tenant=row["tenant"],
        request_id=row["request_id"],
        request_sha256=row["request_sha256"],
        audience_id=row["audience_id"],
        job=job_from_json(json.loads(row["job"])),
        users_total=row["users_total"],
        created=row["created"],
        priority=Priority(row["priority"]),
        number=row["number"],
        state=State(row["state"]),
        progress=Progress(Stage(stage), row["stage_done"], row["stage_total"]) if stage else None,
        users_scored=row["users_scored"],
        attempts=row["attempts"],
        lost=row["lost"],
        fence=row["fence"],
        cancel_requested=row["cancel_requested"],
        started=row["started"],
        ended=row["ended"],
        error=error_from_json(json.loads(row["error"])) if row["error"] else None,
        audience_gone=Gone(row["audience_gone"]) if row["audience_gone"] else None,
        audience_gone_at=row["audience_gone_at"],
    )


def audience_row(operation: Operation) -> dict[str, Any]:
    """Columns of the audience a new operation makes."""
    return {
        "id": operation.id,
        "tenant": operation.tenant,
        "audience_id": operation.audience_id,
        "campaign": operation.job.campaign,
        "ttl": operation.audience_ttl,
        "expires": operation.audience_expires,
        "opted_out_through": 0,
    }
