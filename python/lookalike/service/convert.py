"""What the service's records look like on the wire: operations, progress, audiences.

Knows both sides; decides nothing.
"""

from __future__ import annotations

from collections.abc import Mapping
from datetime import UTC, datetime

import pyarrow as pa
from google.longrunning import operations_pb2
from google.protobuf.timestamp_pb2 import Timestamp

from lookalike.retrieval.audience import Audience
from lookalike.retrieval.receipt import AUDIENCE_NAME, RECEIPT_NAME, Refresh, SeedMatch, Stage
from lookalike.retrieval.revise import capacity
from lookalike.service.audience_records import AudienceRecord
from lookalike.service.records import Operation, Priority, State
from lookalike.service.status import to_status
from lookalike.v1 import audience_pb2

_Metadata = audience_pb2.ExpandAudienceMetadata
_STATES: Mapping[State, audience_pb2.ExpandAudienceMetadata.State.ValueType] = {
    state: _Metadata.State.Value(f"STATE_{state.value}") for state in State
}
_PRIORITIES: Mapping[Priority, audience_pb2.Priority.ValueType] = {
    priority: audience_pb2.Priority.Value(f"PRIORITY_{priority.name}") for priority in Priority
}
_STAGES: Mapping[Stage, audience_pb2.ExpandAudienceMetadata.Stage.ValueType] = {
    stage: _Metadata.Stage.Value(f"STAGE_{stage.value}") for stage in Stage
}


def operation_name(operation_id: str) -> str:
    """Resource name of an operation."""
    return f"operations/{operation_id}"


def audience_name(audience_id: str) -> str:
    """Resource name of an audience."""
    return f"audiences/{audience_id}"


def operation_message(
    operation: Operation, *, audience: audience_pb2.Audience | None = None, remaining: float | None = None
) -> operations_pb2.Operation:
    """A google.longrunning.Operation; `audience` goes with a SUCCEEDED one, `remaining` are seconds."""
    message = operations_pb2.Operation(name=operation_name(operation.id), done=operation.state.done)
    message.metadata.Pack(_metadata(operation, remaining))
    if operation.error is not None:
        message.error.CopyFrom(to_status(operation.error))
    elif audience is not None:
        message.response.Pack(audience_pb2.ExpandAudienceResponse(audience=audience))
    return message


def validation_message(
    match: SeedMatch,
    exclusions: SeedMatch,
    *,
    k: int,
    pool_users: int,
    min_seeds: int,
    wait_seconds: float,
    run_seconds: float,
) -> operations_pb2.Operation:
    """The nameless done operation that answers a validate_only request."""
    verdict = audience_pb2.Validation.SEED_VERDICT_SUFFICIENT
    if match.matched < min_seeds:
        verdict = audience_pb2.Validation.SEED_VERDICT_TOO_FEW
    validation = audience_pb2.Validation(
        seeds=_match(match),
        exclusions=_match(exclusions),
        k=k,
        pool_users=pool_users,
        seed_verdict=verdict,
        min_seeds=min_seeds,
    )
    validation.estimated_wait.FromMilliseconds(round(1000 * wait_seconds))
    validation.estimated_run.FromMilliseconds(round(1000 * run_seconds))
    message = operations_pb2.Operation(done=True)
    message.response.Pack(audience_pb2.ExpandAudienceResponse(validation=validation))
    return message


def audience_message(record: AudienceRecord, audience: Audience, *, privacy_floor: int = 0) -> audience_pb2.Audience:
    """The resource: the receipt's summary, where the files are, and until when."""
    receipt, again = audience.receipt, audience.receipt.rescoring
    message = audience_pb2.Audience(
        name=audience_name(record.audience_id),
        campaign=receipt.campaign,
        create_time=_moment(receipt.created),
        size=receipt.k,
        seeds=_match(receipt.seeds),
        k_requested=receipt.k_requested,
        users_scored=receipt.users_scored,
        users_skipped=receipt.users_skipped,
        cutoff_score=receipt.cutoff_score or 0.0,
        ties_at_cutoff=receipt.ties_at_cutoff,
        ties_selected=receipt.ties_selected,
        stage_seconds=dict(receipt.seconds),
        parquet_path=str((audience.path / AUDIENCE_NAME).absolute()),
        receipt_path=str((audience.path / RECEIPT_NAME).absolute()),
        audience_sha256=receipt.audience_sha256,
        checkpoint_sha256=receipt.checkpoint_sha256,
        pool_sha256=receipt.pool_sha256,
        seeds_sha256=receipt.seeds_sha256,
        model_sha256=receipt.model_sha256,
        held_out_auc=receipt.adaptation.held_out_auc,
        general_auc=receipt.adaptation.general_auc,
        filter=receipt.filter,
        users_filtered=receipt.users_filtered,
        exclusions=_match(receipt.exclusions),
        exclusions_sha256=receipt.exclusions_sha256,
        engine=receipt.engine,
        users_rescored=again.users if again else 0,
        epsilon=again.epsilon if again else 0.0,
        epsilon_kind=again.epsilon_kind if again else "",
        reserve_left=max(0, capacity(receipt)[0] - receipt.k),
        opted_out=receipt.removed.listed,
        revision=receipt.revision,
    )
    if record.expires is not None:
        message.expire_time.CopyFrom(_time(record.expires))
    if receipt.revisions:
        message.update_time.CopyFrom(_moment(receipt.revisions[-1].created))
    if receipt.refresh is not None:
        message.refresh.CopyFrom(_refresh(receipt.refresh, receipt.churn_budget, privacy_floor))
    return message


def bare_audience(record: AudienceRecord) -> audience_pb2.Audience:
    """The resource without what only its files tell."""
    message = audience_pb2.Audience(
        name=audience_name(record.audience_id), campaign=record.campaign, create_time=_time(record.published)
    )
    if record.expires is not None:
        message.expire_time.CopyFrom(_time(record.expires))
    return message


def withheld(floor: int, *counts: int) -> bool:
    """Whether one of the counts of users is of fewer than may be told of; of nobody may."""
    return any(0 < one < floor for one in counts)


def _refresh(refresh: Refresh, budget: float, floor: int) -> audience_pb2.AudienceRefresh:
    message = audience_pb2.AudienceRefresh(
        previous=refresh.previous,
        previous_size=refresh.previous_members,
        churn_budget=budget if budget < 1 else None,
        mean_score=refresh.mean_score or 0.0,
        mean_score_unbounded=refresh.mean_score_unbounded or 0.0,
    )
    if not withheld(floor, refresh.kept, refresh.joined, refresh.left):
        message.kept, message.joined, message.left = refresh.kept, refresh.joined, refresh.left
    return message


def members_page(members: pa.Table) -> list[audience_pb2.AudienceMember]:
    """Rows of a page, one message each."""
    field = "integer_id" if pa.types.is_int64(members.schema.field("user_id").type) else "string_id"
    columns = (members[name].to_pylist() for name in ("rank", "user_id", "score"))
    return [
        audience_pb2.AudienceMember(rank=rank, score=score, **{field: user_id})
        for rank, user_id, score in zip(*columns, strict=True)
    ]


def _metadata(operation: Operation, remaining: float | None) -> audience_pb2.ExpandAudienceMetadata:
    message = _Metadata(
        campaign=operation.job.campaign,
        state=_STATES[operation.state],
        users_scored=operation.users_scored,
        users_total=operation.users_total,
        attempts=operation.attempts,
        cancel_requested=operation.cancel_requested,
        queue_position=operation.queue_position,
        priority=_PRIORITIES[operation.priority],
        audience=audience_name(operation.audience_id),
        create_time=_time(operation.created),
    )
    if operation.progress is not None:
        message.stage = _STAGES[operation.progress.stage]
        message.stage_done, message.stage_total = operation.progress.done, operation.progress.total
    if operation.started is not None:
        message.start_time.CopyFrom(_time(operation.started))
    if operation.ended is not None:
        message.end_time.CopyFrom(_time(operation.ended))
    if operation.audience_gone_at is not None:
        message.audience_delete_time.CopyFrom(_time(operation.audience_gone_at))
    if remaining is not None:
        message.remaining.FromMilliseconds(round(remaining * 1000))
    return message


def _moment(text: str) -> Timestamp:
    """A time as receipts have it."""
    time = Timestamp()
    time.FromDatetime(datetime.fromisoformat(text).astimezone(UTC).replace(tzinfo=None))
    return time


def _time(seconds: float) -> Timestamp:
    time = Timestamp()
    time.FromMicroseconds(round(seconds * 1e6))
    return time


def _match(match: SeedMatch) -> audience_pb2.SeedMatch:
    return audience_pb2.SeedMatch(
        given=match.given, matched=match.matched, duplicates=match.duplicates, not_in_pool=match.not_in_pool
    )
