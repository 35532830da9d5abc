"""What a front takes from the queue, and what it does when it is told to end: what does not end is for the next."""

from __future__ import annotations

import contextlib
import sqlite3
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import grpc
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc
from processes import wait_until
from serving import SECONDS, Front, ScriptedRuntime, config_for, front

from lookalike import errors
from lookalike.client import Client, Expansion
from lookalike.retrieval.receipt import Receipt
from lookalike.runtime.job import ExpansionJob, ProgressCallback
from lookalike.service.server import AUDIENCE_SERVICE
from lookalike.v1.audience_pb2 import ExpandAudienceMetadata as Metadata


def order(client: Client, campaign: str) -> Expansion:
    return client.expand(campaign=campaign, seeds=[1, 2, 3], k=5)


def serving(running: Front) -> bool:
    with grpc.insecure_channel(running.address) as channel:
        request = health_pb2.HealthCheckRequest(service=AUDIENCE_SERVICE)
        status = health_pb2_grpc.HealthStub(channel).Check(request, timeout=SECONDS).status
    return status == health_pb2.HealthCheckResponse.SERVING


@contextmanager
def being_stopped(running: Front) -> Iterator[threading.Thread]:
    thread = threading.Thread(target=running.stop)
    thread.start()
    try:
        yield thread
    finally:
        thread.join(SECONDS)


def test_what_runs_ends_and_what_waits_is_left_for_the_next(sample_pool: Path, tmp_path: Path) -> None:
    runtime = ScriptedRuntime()
    runtime.hold()
    config = config_for(tmp_path, drain_seconds=SECONDS)
    with front(config, sample_pool, runtime) as running, Client(running.address, timeout=2.0) as client:
        first = order(client, "runs")
        runtime.wait_for(lambda it: it.running == 1)
        second = order(client, "waits")
        assert serving(running)
        with being_stopped(running) as stopping:
            wait_until(lambda: not serving(running))
            with pytest.raises(errors.Unavailable) as caught:
                order(client, "too late")
            assert caught.value.reason == "SHUTTING_DOWN"
            assert first.metadata().users_scored == 500  # it goes on, and can be asked about
            assert stopping.is_alive()
            runtime.release()
            assert first.result(SECONDS).campaign == "runs"
    assert len(runtime.jobs) == 1
    with front(config_for(tmp_path), sample_pool, ScriptedRuntime()) as running, Client(running.address) as client:
        assert client.operation(second.name).result(SECONDS).campaign == "waits"
        assert client.operation(first.name).metadata().attempts == 1


def test_what_does_not_end_in_time_is_run_again(sample_pool: Path, tmp_path: Path) -> None:
    runtime = ScriptedRuntime()
    runtime.hold()
    with (
        front(config_for(tmp_path, drain_seconds=0.2), sample_pool, runtime) as running,
        Client(running.address) as client,
    ):
        expansion = order(client, "long")
        runtime.wait_for(lambda it: it.running == 1)
        running.stop()
    with front(config_for(tmp_path), sample_pool, ScriptedRuntime()) as running, Client(running.address) as client:
        assert client.operation(expansion.name).result(SECONDS).campaign == "long"
        assert client.operation(expansion.name).metadata().attempts == 2


def test_more_workers_are_used_when_they_come(sample_pool: Path, tmp_path: Path) -> None:
    runtime = ScriptedRuntime()
    runtime.hold()
    with front(config_for(tmp_path), sample_pool, runtime) as running, Client(running.address) as client:
        both = [order(client, name) for name in ("first", "second")]
        runtime.wait_for(lambda it: it.running == 1)
        runtime.capacity = 2
        runtime.wait_for(lambda it: it.running == 2)
        runtime.release()
        for expansion in both:
            expansion.result(SECONDS)


class Neighbours(ScriptedRuntime):
    """Notes whose jobs were at it at once, as pairs of campaigns."""

    def __init__(self) -> None:
        super().__init__(capacity=0)
        self.at_work: set[str] = set()
        self.pairs: set[tuple[str, str]] = set()

    async def run(self, job: ExpansionJob, progress: ProgressCallback) -> Receipt:
        self.pairs |= {(min(one, job.campaign), max(one, job.campaign)) for one in self.at_work}
        self.at_work.add(job.campaign)
        try:
            return await super().run(job, progress)
        finally:
            self.at_work.remove(job.campaign)


def test_what_its_fronts_may_have_died_of_runs_alone(sample_pool: Path, tmp_path: Path) -> None:
    runtime = Neighbours()
    runtime.hold()
    with front(config_for(tmp_path), sample_pool, runtime) as running, Client(running.address) as client:
        names = [order(client, f"c{number}").name for number in range(6)]
        with contextlib.closing(sqlite3.connect(tmp_path / "operations.db")) as database, database:
            suspect = names[2].removeprefix("operations/")
            assert database.execute("UPDATE operations SET lost = 2 WHERE id = ?", [suspect]).rowcount == 1
        runtime.capacity = 4
        wait_until(lambda: client.operation(names[2]).metadata().state == Metadata.STATE_RUNNING)
        runtime.wait_for(lambda it: it.running == 2)
        runtime.release()
        for name in names:
            client.operation(name).result(SECONDS)
    assert ("c0", "c1") in runtime.pairs
    assert not [pair for pair in runtime.pairs if "c2" in pair]
