"""TorchServe scores users beside its expansions: the real one, with both models."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import psutil
import pytest
import pytest_asyncio
from serving import CHECKPOINT, SECONDS
from test_runtime_instances import Run, until
from test_runtime_torchserve import STUB

from lookalike import errors
from lookalike.config import Config, RealtimeConfig, TorchServeConfig
from lookalike.expander import Expander
from lookalike.runtime.archive import build_archive, build_scoring_archive, scoring_archive
from lookalike.runtime.score_execute import ScoreExecutor
from lookalike.runtime.score_job import ScoreJob
from lookalike.runtime.torchserve import TorchServeRuntime

pytestmark = pytest.mark.asyncio(loop_scope="module")


@pytest.fixture(scope="module")
def job(expander: Expander, order: dict[str, Any], tmp_path_factory: pytest.TempPathFactory) -> ScoreJob:
    audience = expander.expand(**order, output=tmp_path_factory.mktemp("scores") / "audience")
    return ScoreJob(
        audience=audience.path,
        model_sha256=audience.receipt.model_sha256,
        pool=expander.pool.path,
        user_ids=audience.members(0, 100)["user_id"].combine_chunks(),
        with_ranks=True,
    )


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def runtime(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[TorchServeRuntime]:
    folder = tmp_path_factory.mktemp("both")
    for name in ("model.safetensors", "checkpoint.json"):
        (folder / name).write_text("{}")
    config = Config(
        torchserve=TorchServeConfig(archive=folder / "stub.mar", startup_timeout_seconds=60),
        realtime=RealtimeConfig(host="torchserve", max_waiting=8),
    )
    build_archive(folder, config.torchserve.archive, config, handler=STUB)
    assert build_scoring_archive(config) == scoring_archive(config.torchserve.archive)
    runtime = TorchServeRuntime(
        config.torchserve, log_file=folder / "log", checkpoint=CHECKPOINT, scoring=config.realtime
    )
    async with runtime:
        yield runtime


async def test_users_are_scored_while_every_worker_expands(
    runtime: TorchServeRuntime, job: ScoreJob, tmp_path: Path
) -> None:
    run = Run(runtime, tmp_path, "meanwhile")
    await run.begun()
    assert runtime.instances[0].places == runtime.instances[0].busy == 1
    expected = ScoreExecutor(1).score(job)
    for scores in await asyncio.gather(*(runtime.score(job) for _ in range(5))):
        assert scores.scores.tobytes() == expected.scores.tobytes()
        assert scores.ranks is not None
        assert scores.ranks.tolist() == list(range(1, 101))
    assert (await runtime.score(job)).loaded == 0
    assert not run.task.done()
    await run.end()


async def test_an_error_comes_with_its_class_and_field(runtime: TorchServeRuntime, job: ScoreJob) -> None:
    with pytest.raises(errors.NotFound) as caught:
        await runtime.score(replace(job, audience=job.audience / "none"))
    assert caught.value.field == "audience"


async def test_a_flood_is_refused(runtime: TorchServeRuntime, job: ScoreJob) -> None:
    many = await asyncio.gather(*(runtime.score(job) for _ in range(12)), return_exceptions=True)
    refused = [one for one in many if isinstance(one, errors.ResourceExhausted)]
    assert len(refused) == 4
    assert {one.reason for one in refused} == {"SCORING_BUSY"}
    assert all(one in refused or not isinstance(one, BaseException) for one in many)


async def test_it_scores_again_after_a_killed_jvm(runtime: TorchServeRuntime, job: ScoreJob) -> None:
    (jvm,) = [process for process in map(psutil.Process, runtime.instances[0].pids) if process.name() == "java"]
    jvm.kill()
    jvm.wait(SECONDS)
    with pytest.raises(errors.Unavailable):
        await runtime.score(job)
    await until(lambda: runtime.instances[0].restarts == 1 and runtime.instances[0].up)
    assert (await runtime.score(job)).found.all()
