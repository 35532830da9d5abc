"""What the operations store keeps: an operation, its table, and the way from one to the other.

Knows jobs and SQLAlchemy's tables; runs no SQL.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from enum import StrEnum
from typing import Any

import sqlalchemy as sa

from lookalike.errors import LookalikeError
from lookalike.retrieval.receipt import Progress, Stage
from lookalike.runtime.job import ExpansionJob
from lookalike.runtime.wire import error_from_json, error_to_json, job_from_json, job_to_json

SCHEMA_VERSION = 1


class State(StrEnum):
    QUEUED = "QUEUED"
    RUNNING = "RUNNING"
    SUCCEEDED = "SUCCEEDED"
    FAILED = "FAILED"
    CANCELLED = "CANCELLED"

    @property
    def done(self) -> bool:
        return self not in (State.QUEUED, State.RUNNING)


@dataclass(frozen=True, kw_only=True)
class Operation:
    """One expansion, from acceptance to its end. Times are Unix seconds.

    Attributes:
        number: order of acceptance, which is the order of the queue.
        request_sha256: of the request's content, to tell a repetition from a misuse of its `request_id`.
        attempts: runs begun.
        queue_position: operations ahead in the queue; 0 when not queued.
    """

    id: str
    request_id: str | None
    request_sha256: str
    job: ExpansionJob
    users_total: int
    created: float
    number: int = 0
    state: State = State.QUEUED
    progress: Progress | None = None
    users_scored: int = 0
    attempts: int = 0
    cancel_requested: bool = False
    started: float | None = None
    ended: float | None = None
    error: LookalikeError | None = None
    queue_position: int = 0


METADATA = sa.MetaData()
VERSION = sa.Table("schema_version", METADATA, sa.Column("version", sa.Integer, nullable=False))
OPERATIONS = sa.Table(
    "operations",
    METADATA,
    sa.Column("number", sa.Integer, primary_key=True, autoincrement=True),
    sa.Column("id", sa.String(64), nullable=False, unique=True),
    sa.Column("request_id", sa.String(128), unique=True),
    sa.Column("request_sha256", sa.String(64), nullable=False),
    sa.Column("campaign", sa.Text, nullable=False),
    sa.Column("job", sa.Text, nullable=False),
    sa.Column("state", sa.String(16), nullable=False, index=True),
    sa.Column("stage", sa.String(16)),
    sa.Column("stage_done", sa.BigInteger, nullable=False),
    sa.Column("stage_total", sa.BigInteger, nullable=False),
    sa.Column("users_scored", sa.BigInteger, nullable=False),
    sa.Column("users_total", sa.BigInteger, nullable=False),
    sa.Column("attempts", sa.Integer, nullable=False),
    sa.Column("cancel_requested", sa.Boolean, nullable=False),
    sa.Column("created", sa.Float, nullable=False),
    sa.Column("started", sa.Float),
    sa.Column("ended", sa.Float),
    sa.Column("error", sa.Text),
    sqlite_autoincrement=True,  # a number is never used twice, so that a page token stays true
)


def error_text(error: LookalikeError | None) -> str | None:
    """As the column `error` holds it."""
    return json.dumps(error_to_json(error)) if error is not None else None


def to_row(operation: Operation) -> dict[str, Any]:
    """Columns of a new one."""
    return {
        "id": operation.id,
        "request_id": operation.request_id,
        "request_sha256": operation.request_sha256,
        "campaign": operation.job.campaign,
        "job": json.dumps(job_to_json(operation.job)),
        "state": operation.state.value,
        "stage": None,
        "stage_done": 0,
        "stage_total": 0,
        "users_scored": 0,
        "users_total": operation.users_total,
        "attempts": 0,
        "cancel_requested": False,
        "created": operation.created,
    }


def from_row(row: Any) -> Operation:
    """The operation a row describes; `queue_position` is another query's."""
    stage = row["stage"]
    return Operation(
        id=row["id"],
        request_id=row["request_id"],
        request_sha256=row["request_sha256"],
        job=job_from_json(json.loads(row["job"])),
        users_total=row["users_total"],
        created=row["created"],
        number=row["number"],
        state=State(row["state"]),
        progress=Progress(Stage(stage), row["stage_done"], row["stage_total"]) if stage else None,
        users_scored=row["users_scored"],
        attempts=row["attempts"],
        cancel_requested=row["cancel_requested"],
        started=row["started"],
        ended=row["ended"],
        error=error_from_json(json.loads(row["error"])) if row["error"] else None,
    )
