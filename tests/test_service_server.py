"""The front service, over real gRPC and on both databases: the door, the queue, idempotency, cancellation, restarts,
errors, the end.
"""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import grpc
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import serving
from google.longrunning import operations_pb2, operations_pb2_grpc
from google.rpc import error_details_pb2, status_pb2
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection_pb2, reflection_pb2_grpc
from serving import CHECKPOINT, SECONDS, Front, ScriptedRuntime, config_for, front, members_of, write_audience

from lookalike import errors
from lookalike.client import Client, Expansion
from lookalike.dataset.layout import Dataset
from lookalike.pool.snapshot import Pool
from lookalike.service import audience_service
from lookalike.service.door import Door
from lookalike.service.leases import Leases
from lookalike.service.operations import OperationStore
from lookalike.service.server import AUDIENCE_SERVICE, OPERATIONS_SERVICE
from lookalike.v1 import audience_pb2, audience_pb2_grpc

Metadata = audience_pb2.ExpandAudienceMetadata
SEEDS = [3, 1, 2]


@pytest.fixture(autouse=True)
def _database(database_url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(serving, "DATABASE_URL", database_url)


@pytest.fixture
def runtime() -> ScriptedRuntime:
    return ScriptedRuntime()


@pytest.fixture
def running(runtime: ScriptedRuntime, sample_pool: Path, tmp_path: Path) -> Iterator[Front]:
    with front(config_for(tmp_path / "data"), sample_pool, runtime) as it:
        yield it


@pytest.fixture
def client(running: Front) -> Iterator[Client]:
    with Client(running.address, timeout=SECONDS) as it:
        yield it


@pytest.fixture
def channel(running: Front) -> Iterator[grpc.Channel]:
    with grpc.insecure_channel(running.address) as it:
        yield it


def order(client: Client, **changes: object) -> Expansion:
    return client.expand(**{"campaign": "spring", "seeds": SEEDS, "k": 5, **changes})


def test_an_expansion_ends_in_an_audience(client: Client, running: Front, runtime: ScriptedRuntime) -> None:
    expansion = order(client, features={"category": "toys"}, random_seed=7, include_seeds=True)
    audience = expansion.result(SECONDS)
    assert audience.campaign == "spring"
    assert (audience.size, audience.k_requested, audience.seeds.given) == (5, 5, 3)
    assert audience.held_out_auc == 0.75
    assert audience.general_auc == 0.5
    assert Path(audience.parquet_path).is_file()
    assert Path(audience.receipt_path).is_file()
    (job,) = runtime.jobs
    assert (job.campaign, job.features, job.k) == ("spring", {"category": "toys"}, 5)
    assert (job.random_seed, job.include_seeds, job.checkpoint) == (7, True, CHECKPOINT)
    assert client.audience(audience.name) == audience
    metadata = expansion.metadata()
    assert metadata.state == Metadata.STATE_SUCCEEDED
    assert metadata.users_scored == metadata.users_total == 1000
    assert metadata.attempts == 1
    assert metadata.create_time.seconds <= metadata.start_time.seconds <= metadata.end_time.seconds


def test_seeds_are_forgotten_when_the_job_is_done(client: Client, running: Front, runtime: ScriptedRuntime) -> None:
    runtime.hold()
    expansion = order(client)
    runtime.wait_for(lambda r: r.running == 1)
    (job,) = runtime.jobs
    assert pq.read_table(job.seeds)["user_id"].to_pylist() == SEEDS
    runtime.release()
    expansion.result(SECONDS)
    running.stop()
    assert list((running.data_dir / "jobs").iterdir()) == []


def test_a_filter_and_exclusions_reach_the_job(
    client: Client, running: Front, runtime: ScriptedRuntime, sample_pool: Path
) -> None:
    known = Pool.open(sample_pool).user_ids(np.arange(4)).to_pylist()
    asked = {"filter": "gender = 'gender_0'", "exclude": [*known, known[0], -1]}
    validation = client.validate(campaign="spring", seeds=SEEDS, k=1, **asked)
    found = validation.exclusions
    assert (found.given, found.matched, found.duplicates, found.not_in_pool) == (6, 4, 1, 1)
    runtime.hold()
    order(client, **asked)
    runtime.wait_for(lambda r: r.running == 1)
    (job,) = runtime.jobs
    assert job.filter == asked["filter"]
    assert job.exclusions is not None
    assert pq.read_table(job.exclusions)["user_id"].to_pylist() == asked["exclude"]
    runtime.release()
    with pytest.raises(errors.InvalidInput, match="no field 'land'") as caught:
        order(client, filter="land = 'DE'")
    assert caught.value.field == "filter"
    with pytest.raises(errors.FailedPrecondition, match="exclude_path"):
        order(client, exclude_path="some.parquet")


def test_what_a_job_has_done_is_removed_when_it_ends(client: Client, running: Front, runtime: ScriptedRuntime) -> None:
    """A worker that dies leaves its work to the next run; there is none after a failure or a cancellation."""
    runtime.hold()
    expansion = order(client)
    runtime.wait_for(lambda r: r.running == 1)
    left = runtime.jobs[0].output.with_name(runtime.jobs[0].output.name + ".partial-0123456789ab")
    left.mkdir()
    expansion.cancel()
    with pytest.raises(errors.Cancelled):
        expansion.result(SECONDS)
    running.stop()
    assert not left.exists()


def test_the_same_request_id_orders_once(client: Client, runtime: ScriptedRuntime) -> None:
    runtime.hold()
    first = order(client, request_id="a")
    assert order(client, request_id="a").name == first.name
    with pytest.raises(errors.AlreadyExists) as caught:
        order(client, request_id="a", k=6)
    assert (caught.value.field, caught.value.reason) == ("request_id", "REQUEST_ID_REUSED")
    runtime.release()
    first.result(SECONDS)
    assert order(client, request_id="a").result(SECONDS).name == first.result().name
    assert len(runtime.jobs) == 1
    assert order(client, request_id="b").name != first.name


def test_one_request_id_from_many_callers_at_once_is_one_operation(client: Client, running: Front) -> None:
    names: list[str] = []
    threads = [
        threading.Thread(target=lambda: names.append(order(client, request_id="same", campaign="once").name))
        for _ in range(8)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(names) == 8
    assert len(set(names)) == 1
    assert [expansion.name for expansion in client.operations('campaign = "once"')] == names[:1]


def test_validate_only_reports_and_stores_nothing(
    client: Client, running: Front, runtime: ScriptedRuntime, sample_pool: Path
) -> None:
    one, two = Pool.open(sample_pool).user_ids(np.array([0, 7])).to_pylist()
    validation = client.validate(campaign="spring", seeds=[one, two, two, -1, -1], pool_share=0.5)
    match = validation.seeds
    assert (match.given, match.matched, match.duplicates, match.not_in_pool) == (5, 2, 1, 2)
    assert (validation.k, validation.pool_users) == (1000, 2000)
    with pytest.raises(errors.InvalidInput):
        client.validate(campaign="", seeds=[1], k=1)
    assert list(client.operations()) == []
    assert list((running.data_dir / "jobs").iterdir()) == []
    assert runtime.jobs == []


def test_a_pool_share_is_a_number_of_users(client: Client) -> None:
    assert order(client, k=None, pool_share=0.01).result(SECONDS).size == 20
    assert order(client, k=None, pool_share=1e-9).result(SECONDS).size == 1


def test_never_more_at_once_than_the_runtime_can(sample_pool: Path, tmp_path: Path) -> None:
    runtime = ScriptedRuntime(capacity=2)
    runtime.hold()
    with front(config_for(tmp_path), sample_pool, runtime) as running, Client(running.address) as client:
        expansions = [order(client, campaign=f"c{n}") for n in range(5)]
        runtime.wait_for(lambda r: r.running == 2)
        states = [expansion.metadata() for expansion in expansions]
        assert [m.state for m in states] == 2 * [Metadata.STATE_RUNNING] + 3 * [Metadata.STATE_QUEUED]
        assert [m.queue_position for m in states] == [0, 0, 0, 1, 2]
        runtime.release()
        for expansion in expansions:
            expansion.result(SECONDS)
    assert runtime.most == 2
    assert sorted(job.campaign for job in runtime.jobs) == [f"c{n}" for n in range(5)]


def test_a_full_queue_says_when_to_come_again(sample_pool: Path, tmp_path: Path) -> None:
    runtime = ScriptedRuntime()
    runtime.hold()
    config = config_for(tmp_path, max_queued=1)
    with front(config, sample_pool, runtime) as running, Client(running.address) as client:
        order(client)
        runtime.wait_for(lambda r: r.running == 1)
        order(client)
        with pytest.raises(errors.ResourceExhausted, match="1 operations are queued"):
            order(client)
        with pytest.raises(grpc.RpcError) as caught, grpc.insecure_channel(running.address) as channel:
            audience_pb2_grpc.AudienceServiceStub(channel).ExpandAudience(request_of())
        retry = detail(caught.value, error_details_pb2.RetryInfo())
        assert retry.retry_delay.seconds > 0
        assert len(list((running.data_dir / "jobs").iterdir())) == 1
        runtime.release()


def test_more_submissions_at_once_than_a_server_takes_are_told_to_come_again(
    running: Front, client: Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    reached, go, find = threading.Event(), threading.Event(), Door.check

    def slow(door: Door, request: Any) -> Any:
        reached.set()
        assert go.wait(SECONDS)
        return find(door, request)

    monkeypatch.setattr(audience_service, "MAX_SUBMITTING", 1)
    monkeypatch.setattr(audience_service, "SHORT_BYTES", 0)  # on a thread, so that the next one is heard
    monkeypatch.setattr(Door, "check", slow)
    with ThreadPoolExecutor(1) as aside:
        first = aside.submit(order, client)
        assert reached.wait(SECONDS)
        with pytest.raises(errors.QuotaExceeded) as caught:
            order(client)
        go.set()
        first.result().result(SECONDS)
    assert (caught.value.quota, caught.value.subject, caught.value.retry_seconds) == (
        "submitting",
        "service",
        1,
    )
    order(client).result(SECONDS)


def test_a_queued_operation_is_cancelled_at_once(client: Client, runtime: ScriptedRuntime) -> None:
    runtime.hold()
    first = order(client)
    runtime.wait_for(lambda r: r.running == 1)
    queued = order(client)
    queued.cancel()
    with pytest.raises(errors.Cancelled):
        queued.result(SECONDS)
    assert queued.metadata().state == Metadata.STATE_CANCELLED
    queued.cancel()  # nothing happens
    runtime.release()
    first.result(SECONDS)
    assert len(runtime.jobs) == 1


def test_a_running_operation_is_cancelled_by_its_flag(client: Client, running: Front, runtime: ScriptedRuntime) -> None:
    runtime.hold()
    expansion = order(client)
    runtime.wait_for(lambda r: r.running == 1)
    expansion.cancel()
    with pytest.raises(errors.Cancelled, match="stopped by its flag"):
        expansion.result(SECONDS)
    metadata = expansion.metadata()
    assert metadata.state == Metadata.STATE_CANCELLED
    assert metadata.cancel_requested
    assert list((running.data_dir / "audiences").iterdir()) == []


def test_progress_is_shown_while_it_runs(client: Client, runtime: ScriptedRuntime) -> None:
    runtime.hold()
    expansion = order(client)
    seen = []
    for step in expansion.progress(interval=0.05):
        seen.append(step)
        if step.stage == Metadata.STAGE_SCORING and step.users_scored == 500:
            assert step.HasField("remaining")
            runtime.release()
    assert seen[-1].state == Metadata.STATE_SUCCEEDED
    assert any(step.users_scored == 500 for step in seen)
    assert [step.users_scored for step in seen] == sorted(step.users_scored for step in seen)


def test_a_died_worker_is_replaced_without_the_client_knowing(client: Client, runtime: ScriptedRuntime) -> None:
    runtime.failures = [errors.Unavailable("worker died")]
    expansion = order(client)
    assert expansion.result(SECONDS).size == 5
    assert expansion.metadata().attempts == 2


def test_a_worker_that_keeps_dying_fails_the_operation(sample_pool: Path, tmp_path: Path) -> None:
    runtime = ScriptedRuntime(failures=[errors.Unavailable("worker died", reason="WORKER_DIED") for _ in range(9)])
    config = config_for(tmp_path, max_attempts=2)
    with front(config, sample_pool, runtime) as running, Client(running.address) as client:
        expansion = order(client)
        with pytest.raises(errors.Unavailable, match=r"given up after 2 runs.*worker died") as caught:
            expansion.result(SECONDS)
        assert caught.value.reason == "WORKER_DIED"
        assert expansion.metadata().state == Metadata.STATE_FAILED
    assert len(runtime.jobs) == 2


def test_the_jobs_own_error_reaches_the_client_whole(client: Client, runtime: ScriptedRuntime) -> None:
    runtime.failures = [errors.EmptySeeds("3 seeds, none in the pool", field="seeds", reason="TOO_FEW_SEEDS")]
    with pytest.raises(errors.EmptySeeds, match="none in the pool") as caught:
        order(client).result(SECONDS)
    assert (caught.value.field, caught.value.reason) == ("seeds", "TOO_FEW_SEEDS")


def test_a_defect_is_logged_and_told_as_an_incident(
    client: Client, runtime: ScriptedRuntime, caplog: pytest.LogCaptureFixture
) -> None:
    runtime.failures = [ZeroDivisionError("secret of the server")]
    with pytest.raises(errors.InternalError, match="incident") as caught:
        order(client).result(SECONDS)
    incident = caught.value.message.rsplit(" ", 1)[1]
    assert "secret" not in caught.value.message
    assert incident in caplog.text
    assert "secret of the server" in caplog.text


def test_no_call_tells_what_broke_inside(
    client: Client, channel: grpc.Channel, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def broken(*args: object) -> None:
        raise ZeroDivisionError("secret of the server")

    monkeypatch.setattr("lookalike.service.door.Door.match", broken)
    monkeypatch.setattr("lookalike.service.audience_service.messages", broken)
    with pytest.raises(errors.InternalError, match="incident") as unary:
        client.validate(campaign="c", seeds=[1], k=1)
    audience = order(client).result(SECONDS)
    with pytest.raises(errors.InternalError, match="incident") as stream:
        list(client.members(audience.name))
    for caught in (unary, stream):
        assert "secret" not in caught.value.message
        assert caught.value.message.rsplit(" ", 1)[1] in caplog.text


def test_what_ran_when_the_server_stopped_runs_again(sample_pool: Path, tmp_path: Path) -> None:
    runtime = ScriptedRuntime()
    runtime.hold()
    config = config_for(tmp_path)
    with front(config, sample_pool, runtime) as running, Client(running.address) as client:
        first, second, third = (order(client, campaign=name, request_id=name) for name in "abc")
        runtime.wait_for(lambda r: r.running == 1)
        third.cancel()
    assert runtime.running == 0
    again = ScriptedRuntime()
    with front(config, sample_pool, again) as running, Client(running.address) as client:
        assert client.operation(first.name).result(SECONDS).campaign == "a"
        assert client.operation(second.name).result(SECONDS).campaign == "b"
        with pytest.raises(errors.Cancelled):
            client.operation(third.name).result(SECONDS)
        assert client.operation(first.name).metadata().attempts == 2
        assert order(client, campaign="a", request_id="a").name == first.name
    assert [job.campaign for job in again.jobs] == ["a", "b"]


def test_a_job_that_had_published_before_the_crash_is_not_run_again(sample_pool: Path, tmp_path: Path) -> None:
    runtime = ScriptedRuntime()
    runtime.hold()
    config = config_for(tmp_path)
    with front(config, sample_pool, runtime) as running, Client(running.address) as client:
        name = order(client).name
        runtime.wait_for(lambda r: r.running == 1)
    write_audience(runtime.jobs[0], pa.array([11, 12], pa.int64()))
    staged = tmp_path / "audiences" / "x.tmp-1-2"  # left by a killed worker
    staged.mkdir()
    os.utime(staged, 2 * (time.time() - 7200,))  # where several servers share the folder, young ones may be alive
    again = ScriptedRuntime()
    with front(config, sample_pool, again, checkpoint="d" * 64) as running, Client(running.address) as client:
        assert client.operation(name).result(SECONDS).size == 2
        metadata = client.operation(name).metadata()
        assert metadata.users_scored == metadata.users_total == 1000
    assert again.jobs == []
    assert not staged.exists()


def test_what_may_have_been_accepted_keeps_its_seeds(
    client: Client, runtime: ScriptedRuntime, monkeypatch: pytest.MonkeyPatch
) -> None:
    create, failures = OperationStore.create, [errors.Unavailable("the connection broke after the commit")]

    async def failing(*args: object) -> object:
        stored = await create(*args)  # type: ignore[arg-type]
        if failures:
            raise failures.pop()
        return stored

    monkeypatch.setattr(OperationStore, "create", failing)
    assert order(client).result(SECONDS).size == 5  # the client has asked again, with the same request_id
    assert failures == []
    assert len(list(client.operations())) == len(runtime.jobs) == 1


@pytest.mark.parametrize("what", ["begin_attempt", "finish"])
def test_what_a_store_that_is_away_cannot_note_is_noted_later(
    what: str, client: Client, runtime: ScriptedRuntime, monkeypatch: pytest.MonkeyPatch
) -> None:
    works, failures = getattr(Leases, what), [errors.Unavailable("no database")]

    async def failing(*args: object) -> object:
        if failures:
            raise failures.pop()
        return await works(*args)

    monkeypatch.setattr(Leases, what, failing)
    expansion = order(client)
    assert expansion.result(SECONDS).size == 5
    assert failures == []
    assert len(runtime.jobs) == 1  # at the second time its audience was there


def test_the_server_stops_in_time_while_a_job_runs_and_a_client_waits(sample_pool: Path, tmp_path: Path) -> None:
    runtime = ScriptedRuntime()
    runtime.hold()
    answers = []
    with (
        front(config_for(tmp_path), sample_pool, runtime) as running,
        grpc.insecure_channel(running.address) as channel,
    ):
        with Client(running.address) as client:
            name = order(client).name
        runtime.wait_for(lambda r: r.running == 1)
        waiting = operations_pb2_grpc.OperationsStub(channel).WaitOperation.future(
            operations_pb2.WaitOperationRequest(name=name), timeout=SECONDS
        )
        watch = health_pb2_grpc.HealthStub(channel).Watch(health_pb2.HealthCheckRequest(service=AUDIENCE_SERVICE))
        assert next(watch).status == health_pb2.HealthCheckResponse.SERVING
        threading.Thread(target=running.stop).start()
        answers.append(waiting.result())
        assert next(watch).status == health_pb2.HealthCheckResponse.NOT_SERVING
        watch.cancel()
    assert not answers[0].done


def test_wait_returns_at_its_time_out(client: Client, channel: grpc.Channel, runtime: ScriptedRuntime) -> None:
    runtime.hold()
    expansion = order(client)
    request = operations_pb2.WaitOperationRequest(name=expansion.name)
    request.timeout.FromMilliseconds(50)
    operation = operations_pb2_grpc.OperationsStub(channel).WaitOperation(request, timeout=SECONDS)
    assert not operation.done
    with pytest.raises(errors.Unavailable, match="goes on") as caught:
        expansion.result(0.05)
    assert caught.value.reason == "WAIT_TIMEOUT"
    runtime.release()
    assert expansion.result(SECONDS).size == 5


def test_operations_are_listed_in_pages_and_filtered(client: Client, channel: grpc.Channel) -> None:
    names = [order(client, campaign=f"c{n % 2}").name for n in range(5)]
    for name in names:
        client.operation(name).result(SECONDS)
    stub = operations_pb2_grpc.OperationsStub(channel)
    listed, token, pages = [], "", 0
    while True:
        page = stub.ListOperations(operations_pb2.ListOperationsRequest(page_size=2, page_token=token))
        listed += [operation.name for operation in page.operations]
        token, pages = page.next_page_token, pages + 1
        if not token:
            break
        with pytest.raises(grpc.RpcError, match="no token of this listing"):
            stub.ListOperations(operations_pb2.ListOperationsRequest(page_token=token, filter="done = true"))
    assert (listed, pages) == (names, 3)
    assert [e.name for e in client.operations('campaign = "c1"')] == names[1::2]
    assert [e.name for e in client.operations('done = true AND state = SUCCEEDED AND campaign = "c0"')] == names[::2]
    assert list(client.operations("done = false")) == []
    with pytest.raises(errors.InvalidInput, match="cannot read the filter's 'size > 3'") as caught:
        list(client.operations("size > 3"))
    assert caught.value.field == "filter"


def test_only_a_done_operation_can_be_deleted(client: Client, runtime: ScriptedRuntime) -> None:
    runtime.hold()
    expansion = order(client)
    with pytest.raises(errors.FailedPrecondition, match="cancel it first") as caught:
        expansion.delete()
    assert caught.value.reason == "OPERATION_ACTIVE"
    runtime.release()
    audience = expansion.result(SECONDS)
    expansion.delete()
    with pytest.raises(errors.NotFound):
        expansion.metadata()
    assert client.audience(audience.name).size == 5


def request_of(**changes: object) -> audience_pb2.ExpandAudienceRequest:
    request = audience_pb2.ExpandAudienceRequest(**{"k": 5, **changes})
    if not request.HasField("campaign"):
        request.campaign.name = "spring"
    if request.WhichOneof("seeds") is None:
        request.seed_ids.integers.values.extend(SEEDS)
    return request


def detail(error: grpc.RpcError, message: object) -> object:
    """The detail of the type of `message` in a failed call's status."""
    (value,) = (value for key, value in error.trailing_metadata() if key == "grpc-status-details-bin")
    for packed in status_pb2.Status.FromString(value).details:
        if packed.Unpack(message):
            return message
    raise AssertionError(f"no {type(message).__name__}")


def test_a_wrong_request_names_every_field(channel: grpc.Channel, client: Client) -> None:
    request = audience_pb2.ExpandAudienceRequest(k=2**32, request_id="x" * 200)
    with pytest.raises(grpc.RpcError) as caught:
        audience_pb2_grpc.AudienceServiceStub(channel).ExpandAudience(request)
    assert caught.value.code() is grpc.StatusCode.INVALID_ARGUMENT
    bad = detail(caught.value, error_details_pb2.BadRequest())
    assert {v.field for v in bad.field_violations} == {"k", "request_id", "campaign.name", "seed_ids"}
    info = detail(caught.value, error_details_pb2.ErrorInfo())
    assert (info.domain, info.reason) == ("lookalike", "INVALID_INPUT")
    assert list(client.operations()) == []


def test_features_the_model_does_not_know_are_refused_at_the_door(
    sample_dataset: Path, sample_pool: Path, tmp_path: Path
) -> None:
    schema = Dataset.open(sample_dataset).campaign_schema()
    with (
        front(config_for(tmp_path), sample_pool, ScriptedRuntime(), campaign_schema=schema) as running,
        Client(running.address) as client,
    ):
        with pytest.raises(errors.SchemaError, match="unknown feature 'colour'") as caught:
            order(client, features={"colour": "red"})
        assert caught.value.field == "campaign.features.colour"
        many = {f"feature_{'é' * 100}_{n}": "x" for n in range(100)}
        with pytest.raises(errors.InvalidInput, match="and 99 more"):  # and not RESOURCE_EXHAUSTED
            order(client, features=many)
        known = {schema.fields[0].name: None}
        assert order(client, features=known).result(SECONDS).size == 5


def test_seeds_by_path_stay_within_their_folder(sample_pool: Path, tmp_path: Path) -> None:
    seeds_dir = tmp_path / "seeds"
    seeds_dir.mkdir()
    pq.write_table(pa.table({"user_id": [1, 2]}), seeds_dir / "good.parquet")
    pq.write_table(pa.table({"user_id": [1, 2]}), tmp_path / "outside.parquet")
    (seeds_dir / "link.parquet").symlink_to(tmp_path / "outside.parquet")
    runtime = ScriptedRuntime()
    config = config_for(tmp_path / "data", seeds_dir=seeds_dir)
    with front(config, sample_pool, runtime) as running, Client(running.address) as client:

        def order_path(path: str) -> Expansion:
            return client.expand(campaign="c", seeds_path=path, k=1)

        first = client.expand(campaign="c", seeds_path="good.parquet", k=1, request_id="r")
        first.result(SECONDS)
        for outside in ("../outside.parquet", str(tmp_path / "outside.parquet"), "link.parquet"):
            with pytest.raises(errors.InvalidInput, match="outside the server's seeds folder") as caught:
                order_path(outside)
            assert caught.value.field == "seeds_path"
        with pytest.raises(errors.NotFound):
            order_path("none.parquet")
        (seeds_dir / "good.parquet").unlink()  # what was accepted stays so
        assert client.expand(campaign="c", seeds_path="good.parquet", k=1, request_id="r").name == first.name
    assert len(runtime.jobs) == 1


def test_no_seeds_path_without_a_folder(client: Client) -> None:
    with pytest.raises(errors.FailedPrecondition, match="seeds_dir"):
        client.expand(campaign="c", seeds_path="x.parquet", k=1)


def test_names_that_are_none(client: Client, channel: grpc.Channel) -> None:
    with pytest.raises(errors.InvalidInput, match="operations/"):
        client.operation("operations/../../etc").metadata()
    with pytest.raises(errors.NotFound):
        client.operation("operations/" + "0" * 32).metadata()
    with pytest.raises(errors.InvalidInput, match="audiences/"):
        client.audience("audiences/..")
    with pytest.raises(errors.NotFound):
        client.audience("audiences/" + "0" * 32)


def test_an_audience_somebody_removed(client: Client, running: Front) -> None:
    expansion = order(client)
    audience = expansion.result(SECONDS)
    folder = running.data_dir / audience.name
    folder.rename(folder.with_name("elsewhere"))
    with pytest.raises(errors.NotFound):
        expansion.result(SECONDS)
    with pytest.raises(errors.NotFound):
        client.audience(audience.name)


def test_members_in_pages(client: Client, channel: grpc.Channel, running: Front) -> None:
    audience = order(client, k=25).result(SECONDS)
    stub = audience_pb2_grpc.AudienceServiceStub(channel)
    token, rows, sizes = "", [], []
    while True:
        page = stub.ListAudienceMembers(
            audience_pb2.ListAudienceMembersRequest(audience=audience.name, page_size=10, page_token=token)
        )
        rows += [(m.rank, m.integer_id, m.score) for m in page.members]
        sizes.append(len(page.members))
        assert page.total_size == 25
        token = page.next_page_token
        if not token:
            break
    expected = members_of(running, audience.name)
    assert rows == list(zip(*(expected[name].to_pylist() for name in ("rank", "user_id", "score")), strict=True))
    assert sizes == [10, 10, 5]
    other = order(client, k=30).result(SECONDS)
    first = stub.ListAudienceMembers(audience_pb2.ListAudienceMembersRequest(audience=other.name, page_size=1))
    with pytest.raises(grpc.RpcError, match="no token of this listing") as caught:
        stub.ListAudienceMembers(
            audience_pb2.ListAudienceMembersRequest(audience=audience.name, page_token=first.next_page_token)
        )
    assert caught.value.code() is grpc.StatusCode.INVALID_ARGUMENT


def test_health_and_reflection(channel: grpc.Channel) -> None:
    health = health_pb2_grpc.HealthStub(channel)
    for service in ("", AUDIENCE_SERVICE, OPERATIONS_SERVICE):
        assert health.Check(health_pb2.HealthCheckRequest(service=service)).status == 1
    with pytest.raises(grpc.RpcError) as caught:
        health.Check(health_pb2.HealthCheckRequest(service="none"))
    assert caught.value.code() is grpc.StatusCode.NOT_FOUND
    stub = reflection_pb2_grpc.ServerReflectionStub(channel)
    asked = [reflection_pb2.ServerReflectionRequest(list_services="")]
    (answer,) = stub.ServerReflectionInfo(iter(asked))
    names = {service.name for service in answer.list_services_response.service}
    assert {AUDIENCE_SERVICE, OPERATIONS_SERVICE, "grpc.health.v1.Health"} <= names


@pytest.mark.parametrize("listen", ["0.0.0.0:0", "[::]:0", "example.com:80", "127.0.0.1", "127.0.0.1:99999"])
def test_only_loopback_without_tls(listen: str, sample_pool: Path, tmp_path: Path) -> None:
    with (
        pytest.raises(errors.InvalidInput) as caught,
        front(config_for(tmp_path, listen=listen), sample_pool, ScriptedRuntime()),
    ):
        pass
    assert caught.value.field == "service.listen"


def test_a_taken_port_and_a_taken_folder_are_told(running: Front, sample_pool: Path, tmp_path: Path) -> None:
    with (
        pytest.raises(errors.FailedPrecondition, match="another server uses"),
        front(config_for(running.data_dir, database_url=""), sample_pool, ScriptedRuntime()),
    ):
        pass
    with (
        pytest.raises(errors.Unavailable, match="cannot listen"),
        front(config_for(tmp_path / "other", listen=running.address, database_url=""), sample_pool, ScriptedRuntime()),
    ):
        pass
