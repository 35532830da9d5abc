"""The whole of it: client, front, TorchServe, handler, expander, on a small pool; and what happens when parts die."""

from __future__ import annotations

import contextlib
import os
import subprocess
import sys
from collections.abc import AsyncIterator, Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from processes import alive, child, wait_until, workers
from serving import SECONDS, Front, config_for, front

import lookalike
from lookalike import errors
from lookalike.client import Client, Expansion
from lookalike.config import AdaptationConfig, Config, ScoringConfig, TorchServeConfig
from lookalike.pool.snapshot import Pool
from lookalike.retrieval.audience import Audience
from lookalike.runtime.archive import build_archive
from lookalike.runtime.inprocess import InProcessRuntime
from lookalike.runtime.torchserve import TorchServeRuntime
from lookalike.service.server import read_campaign_schema
from lookalike.training.checkpoint import fingerprint
from lookalike.v1 import audience_pb2

ADAPTING = audience_pb2.ExpandAudienceMetadata.STAGE_ADAPTING
# All epochs are run, so that a job of many seeds takes seconds: long enough to be caught in the middle of it.
SLOW = AdaptationConfig(optimizer="adam", max_epochs=60, patience=60)
SCORING = ScoringConfig(device="cpu", threads=1)  # small tensors are slower with more
VOLATILE = {"created": "", "seconds": {}, "job_id": ""}


def settings(data_dir: Path, archive: Path) -> Config:
    served = TorchServeConfig(archive=archive, startup_timeout_seconds=60)
    return replace(config_for(data_dir), adaptation=SLOW, scoring=SCORING, torchserve=served)


@pytest.fixture(scope="module")
def archive(sample_checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("store") / "lookalike.mar"
    return build_archive(sample_checkpoint, path, settings(path.parent, path))


class Stack:
    """A front over TorchServe, and a client of it."""

    def __init__(self, running: Front, client: Client, runtime: TorchServeRuntime) -> None:
        self.running, self.client, self.runtime = running, client, runtime

    @property
    def group(self) -> int:
        assert self.runtime.pid is not None
        return self.runtime.pid


@pytest.fixture(scope="module")
def stack(
    archive: Path, sample_checkpoint: Path, sample_pool: Path, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Stack]:
    config = settings(tmp_path_factory.mktemp("torchserve"), archive)
    name = fingerprint(sample_checkpoint)
    runtimes: list[TorchServeRuntime] = []

    @contextlib.asynccontextmanager
    async def runtime() -> AsyncIterator[TorchServeRuntime]:
        log = config.service.data_dir / "logs" / "torchserve.log"
        async with TorchServeRuntime(config.torchserve, log_file=log, checkpoint=name) as it:
            runtimes.append(it)
            yield it

    schema = read_campaign_schema(sample_checkpoint)
    with (
        front(config, sample_pool, runtime, checkpoint=name, campaign_schema=schema) as running,
        Client(running.address) as client,
    ):
        it = Stack(running, client, runtimes[0])
        group = it.group
        yield it
    assert alive(group) == []


@contextlib.contextmanager
def in_process(data_dir: Path, checkpoint: Path, pool: Path) -> Iterator[Client]:
    config = settings(data_dir, Path("unused"))

    def runtime() -> InProcessRuntime:
        return InProcessRuntime(checkpoint, config)

    with front(config, pool, runtime, checkpoint=fingerprint(checkpoint)) as running, Client(running.address) as client:
        yield client


def order(client: Client, pool: Path, seeds: int, **changes: object) -> Expansion:
    ids = Pool.open(pool).user_ids(np.arange(seeds))
    return client.expand(**{"campaign": "spring", "seeds": ids, "k": 150, "random_seed": 5, **changes})


def catch_adapting(expansion: Expansion) -> None:
    for step in expansion.progress(interval=0.02):
        if step.stage == ADAPTING:
            return
    raise AssertionError("it was over before it could be caught")


def test_both_runtimes_give_the_same_audience(
    stack: Stack, sample_checkpoint: Path, sample_pool: Path, tmp_path: Path
) -> None:
    asked = {"features": {read_campaign_schema(sample_checkpoint).fields[0].name: "1"}}
    served = order(stack.client, sample_pool, 1200, **asked).result(SECONDS)
    with in_process(tmp_path, sample_checkpoint, sample_pool) as client:
        direct = order(client, sample_pool, 1200, **asked).result(SECONDS)
        batches = pa.Table.from_batches(stack.client.members(served.name))
        assert batches == pa.Table.from_batches(client.members(direct.name))
    assert served.size == 150
    assert Path(served.parquet_path).read_bytes() == Path(direct.parquet_path).read_bytes()
    receipts = [Audience.open(Path(one.parquet_path).parent).receipt for one in (served, direct)]
    assert replace(receipts[0], **VOLATILE) == replace(receipts[1], **VOLATILE)
    assert receipts[0].campaign == "spring"
    assert receipts[0].users_scored + receipts[0].users_skipped == Pool.open(sample_pool).num_users


def test_the_expanders_error_crosses_with_field_and_reason(stack: Stack) -> None:
    with pytest.raises(errors.EmptySeeds) as caught:
        stack.client.expand(campaign="c", seeds=[-1, -2, -3], k=5).result(SECONDS)
    assert caught.value.field == "seeds"


def test_a_running_expansion_is_cancelled(stack: Stack, sample_pool: Path) -> None:
    expansion = order(stack.client, sample_pool, 1500)
    catch_adapting(expansion)
    (worker,) = workers(stack.group)
    worker.suspend()  # lest it be faster than the cancellation
    expansion.cancel()
    worker.resume()
    with pytest.raises(errors.Cancelled):
        expansion.result(SECONDS)
    audiences = stack.running.data_dir / "audiences"
    assert not (audiences / expansion.name.removeprefix("operations/")).exists()
    assert not list(audiences.glob("*.tmp-*"))


def test_a_worker_killed_at_work_costs_time_and_nothing_else(
    stack: Stack, sample_checkpoint: Path, sample_pool: Path, tmp_path: Path
) -> None:
    expansion = order(stack.client, sample_pool, 1500)
    catch_adapting(expansion)
    (worker,) = workers(stack.group)
    worker.kill()
    served = expansion.result(SECONDS)
    assert expansion.metadata().attempts == 2
    with in_process(tmp_path, sample_checkpoint, sample_pool) as client:
        direct = order(client, sample_pool, 1500).result(SECONDS)
    assert Path(served.parquet_path).read_bytes() == Path(direct.parquet_path).read_bytes()


def test_a_front_killed_at_work_leaves_no_process_and_its_jobs_to_the_next(
    archive: Path, sample_checkpoint: Path, sample_pool: Path, tmp_path: Path
) -> None:
    folder = str(Path(__file__).parent)
    code = f"""
import asyncio
from pathlib import Path
from test_service_end_to_end import settings
from lookalike.runtime.torchserve import TorchServeRuntime
from lookalike.service.server import serve
from lookalike.training.checkpoint import fingerprint

config = settings(Path({str(tmp_path)!r}), Path({str(archive)!r}))
name = fingerprint(Path({str(sample_checkpoint)!r}))

async def main():
    log = config.service.data_dir / "torchserve.log"
    async with TorchServeRuntime(config.torchserve, log_file=log, checkpoint=name) as runtime:
        def ready(address):
            print(address, runtime.pid, flush=True)
        await serve(config, pool=Path({str(sample_pool)!r}), checkpoint_fingerprint=name, runtime=runtime,
                    ready=ready, stop=asyncio.Event())

asyncio.run(main())
"""
    path = os.pathsep.join([folder, str(Path(lookalike.__file__).parents[1])])
    command, environment = [sys.executable, "-c", code], {**os.environ, "PYTHONPATH": path}
    with child(command, stdout=subprocess.PIPE, text=True, env=environment) as process:
        assert process.stdout is not None
        address, group = process.stdout.readline().split()
        with Client(address) as client:
            expansion = order(client, sample_pool, 1500)
            waiting = order(client, sample_pool, 1200, campaign="next")
            catch_adapting(expansion)
        (worker,) = workers(int(group))
        worker.suspend()  # lest it finish the job in the second the JVM takes to end
    wait_until(lambda: alive(int(group)) == [])
    with in_process(tmp_path, sample_checkpoint, sample_pool) as client:
        audience = client.operation(expansion.name).result(SECONDS)
        assert client.operation(expansion.name).metadata().attempts == 2
        assert client.operation(waiting.name).result(SECONDS).campaign == "next"
        assert order(client, sample_pool, 1500).result(SECONDS).audience_sha256 == audience.audience_sha256
    assert not list((tmp_path / "audiences").glob("*.tmp-*"))
