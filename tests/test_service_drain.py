"""A front that is told to end: no new orders, what runs may end, and what does not is left for the next."""

from __future__ import annotations

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
from lookalike.service.server import AUDIENCE_SERVICE


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
