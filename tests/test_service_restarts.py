"""What goes wrong in the front service's house: runs that fail, a store that is away, crashes, stops, restarts."""

from __future__ import annotations

import os
import threading
import time
from pathlib import Path

import grpc
import orders
import pyarrow as pa
import pytest
from google.longrunning import operations_pb2, operations_pb2_grpc
from grpc_health.v1 import health_pb2, health_pb2_grpc
from orders import order
from serving import SECONDS, ScriptedRuntime, config_for, front, write_audience

from lookalike import errors
from lookalike.client import Client
from lookalike.service.leases import Leases
from lookalike.service.operations import OperationStore
from lookalike.service.server import AUDIENCE_SERVICE
from lookalike.v1 import audience_pb2

pytestmark = pytest.mark.usefixtures("each_database")
each_database, runtime, running = orders.each_database, orders.runtime, orders.running
client, channel = orders.client, orders.channel

Metadata = audience_pb2.ExpandAudienceMetadata


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
