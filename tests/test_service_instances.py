"""A front over two TorchServes with the real handler: one dies at work, and the audiences are the same."""

from __future__ import annotations

import contextlib
from collections.abc import AsyncIterator, Iterator
from dataclasses import replace
from pathlib import Path

import psutil
import pytest
from processes import wait_until, workers
from serving import SECONDS, front
from test_service_end_to_end import archive, catch_adapting, in_process, order, settings

from lookalike.client import Client
from lookalike.runtime.torchserve import TorchServeRuntime
from lookalike.training.checkpoint import fingerprint

__all__ = ["archive"]  # a fixture


@pytest.fixture
def two(
    archive: Path,
    sample_checkpoint: Path,
    sample_pool: Path,
    tmp_path: Path,
) -> Iterator[tuple[Client, TorchServeRuntime]]:
    config = settings(tmp_path / "two", archive)
    config = replace(config, torchserve=replace(config.torchserve, instances=2))
    name = fingerprint(sample_checkpoint)
    runtimes: list[TorchServeRuntime] = []

    @contextlib.asynccontextmanager
    async def runtime() -> AsyncIterator[TorchServeRuntime]:
        log = config.service.data_dir / "torchserve.log"
        async with TorchServeRuntime(config.torchserve, log_file=log, checkpoint=name) as it:
            runtimes.append(it)
            yield it

    with front(config, sample_pool, runtime, checkpoint=name) as running, Client(running.address) as client:
        yield client, runtimes[0]


def test_a_killed_jvm_costs_its_own_expansion_a_run_and_the_other_nothing(
    two: tuple[Client, TorchServeRuntime], sample_checkpoint: Path, sample_pool: Path, tmp_path: Path
) -> None:
    client, runtime = two
    expansions = []
    for instance, seeds in zip(runtime.instances, (1200, 1199), strict=True):
        expansions.append(order(client, sample_pool, seeds, campaign=str(seeds)))
        catch_adapting(expansions[-1])
        assert instance.pid is not None
        (worker,) = workers(instance.pid)
        worker.suspend()  # lest it be faster than we
    assert [instance.busy for instance in runtime.instances] == [1, 1]
    (jvm,) = [p for p in map(psutil.Process, runtime.instances[0].pids) if p.name() == "java"]
    jvm.kill()
    wait_until(lambda: runtime.capacity == 1)
    worker.resume()
    served = [expansion.result(10 * SECONDS) for expansion in expansions]
    assert [expansion.metadata().attempts for expansion in expansions] == [2, 1]
    wait_until(lambda: runtime.capacity == 2)
    with in_process(tmp_path / "direct", sample_checkpoint, sample_pool) as direct:
        for seeds, audience in zip((1200, 1199), served, strict=True):
            again = order(direct, sample_pool, seeds, campaign=str(seeds)).result(10 * SECONDS)
            assert Path(audience.parquet_path).read_bytes() == Path(again.parquet_path).read_bytes()
