"""The front service, over real gRPC and on both databases: orders, the queue, idempotency, cancellation, progress,
lists and pages, health.
"""

from __future__ import annotations

import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import grpc
import numpy as np
import orders
import pyarrow.parquet as pq
import pytest
from google.longrunning import operations_pb2, operations_pb2_grpc
from google.rpc import error_details_pb2
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection_pb2, reflection_pb2_grpc
from orders import SEEDS, detail, order, request_of
from serving import CHECKPOINT, SECONDS, Front, ScriptedRuntime, config_for, front, members_of

from lookalike import errors
from lookalike.client import Client
from lookalike.pool.snapshot import Pool
from lookalike.service import audience_service
from lookalike.service.door import Door
from lookalike.service.server import AUDIENCE_SERVICE, OPERATIONS_SERVICE
from lookalike.v1 import audience_pb2, audience_pb2_grpc

pytestmark = pytest.mark.usefixtures("each_database")
each_database, runtime, running = orders.each_database, orders.runtime, orders.running
client, channel = orders.client, orders.channel

Metadata = audience_pb2.ExpandAudienceMetadata


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
