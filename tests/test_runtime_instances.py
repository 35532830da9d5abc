"""Two TorchServes behind one runtime: who gets a job, what a dead one costs, and how they come and go."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from dataclasses import replace
from pathlib import Path

import psutil
import pytest
import pytest_asyncio
from processes import alive, wait_until
from serving import CHECKPOINT, SECONDS
from test_runtime_torchserve import STUB, job_of

from lookalike import errors
from lookalike.config import Config, TorchServeConfig
from lookalike.retrieval.receipt import Progress
from lookalike.runtime.archive import build_archive
from lookalike.runtime.job import NOT_RUNNING, ExpansionJob
from lookalike.runtime.torchserve import TorchServeRuntime
from lookalike.runtime.torchserve_instance import TorchServeInstance
from lookalike.runtime.torchserve_logfile import LogFile

pytestmark = pytest.mark.asyncio(loop_scope="module")


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def runtime(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[TorchServeRuntime]:
    folder = tmp_path_factory.mktemp("instances")
    for name in ("model.safetensors", "checkpoint.json"):
        (folder / name).write_text("{}")
    served = TorchServeConfig(archive=folder / "stub.mar", instances=2, startup_timeout_seconds=60)
    build_archive(folder, served.archive, Config(torchserve=served), handler=STUB)
    async with TorchServeRuntime(served, log_file=folder / "torchserve.log", checkpoint=CHECKPOINT) as it:
        yield it
        groups = [instance.pid for instance in it.instances]
    assert [alive(group) for group in groups if group is not None] == [[] for _ in groups]


class Run:
    """A job that runs until its flag is there, and where it runs."""

    def __init__(self, runtime: TorchServeRuntime, folder: Path, name: str) -> None:
        (folder / name).mkdir()
        self.job: ExpansionJob = replace(job_of(folder / name, "until cancelled"), job_id=name)
        self.worker = 0
        self.task = asyncio.create_task(runtime.run(self.job, self._note))

    def _note(self, step: Progress) -> None:
        self.worker = step.done or self.worker

    async def begun(self) -> None:
        await until(lambda: bool(self.worker))

    async def end(self) -> None:
        self.job.cancel_flag.touch()
        with pytest.raises(errors.Cancelled, match="as the flag said"):
            await asyncio.wait_for(self.task, SECONDS)


async def until(condition: Callable[[], bool]) -> None:
    await asyncio.to_thread(wait_until, condition)


def instance_of(runtime: TorchServeRuntime, worker: int) -> TorchServeInstance:
    (found,) = [instance for instance in runtime.instances if worker in instance.pids]
    return found


async def test_jobs_go_to_the_least_busy_and_never_more_than_workers(
    runtime: TorchServeRuntime, tmp_path: Path
) -> None:
    assert runtime.capacity == runtime.health().workers == runtime.health().workers_ready == 2
    first, second = Run(runtime, tmp_path, "first"), Run(runtime, tmp_path, "second")
    await first.begun()
    await second.begun()
    assert instance_of(runtime, first.worker) is not instance_of(runtime, second.worker)
    third = Run(runtime, tmp_path, "third")
    with pytest.raises(TimeoutError):
        await asyncio.wait_for(asyncio.shield(third.task), 0.5)
    assert [instance.busy for instance in runtime.instances] == [1, 1]
    await second.end()
    await third.begun()
    assert third.worker == second.worker
    await first.end()
    await third.end()


async def test_each_has_a_log_of_its_own(runtime: TorchServeRuntime) -> None:
    first, second = (instance.log_file for instance in runtime.instances)
    assert (first.name, second.name) == ("torchserve.log", "torchserve-2.log")
    other = LogFile(first)  # as of another service on this data folder
    assert other.path.name == "torchserve-3.log"
    other.release()


async def test_a_killed_jvm_costs_its_own_jobs_and_no_others(runtime: TorchServeRuntime, tmp_path: Path) -> None:
    doomed, safe = Run(runtime, tmp_path, "doomed"), Run(runtime, tmp_path, "safe")
    await doomed.begun()
    await safe.begun()
    instance = instance_of(runtime, doomed.worker)
    before = instance.restarts
    (jvm,) = [process for process in map(psutil.Process, instance.pids) if process.name() == "java"]
    jvm.kill()
    with pytest.raises(errors.Unavailable):
        await asyncio.wait_for(doomed.task, SECONDS)
    assert instance.places == 0
    assert runtime.capacity == 1
    again = Run(runtime, tmp_path, "again")  # waits for the place that is being made for it
    await again.begun()
    assert instance_of(runtime, again.worker) is instance
    assert (runtime.capacity, instance.restarts) == (2, before + 1)
    assert not safe.task.done()
    await safe.end()
    await again.end()


async def test_in_doubt_a_canary_decides(runtime: TorchServeRuntime) -> None:
    instance = runtime.instances[0]
    instance._doubt()
    assert (instance.places, runtime.capacity, instance.take()) == (0, 1, False)
    await until(lambda: runtime.capacity == 2)


async def test_an_abandoned_job_keeps_its_place_until_the_worker_is_done(
    runtime: TorchServeRuntime, tmp_path: Path
) -> None:
    run = Run(runtime, tmp_path, "abandoned")
    await run.begun()
    instance = instance_of(runtime, run.worker)
    run.task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await run.task
    assert instance.busy == instance.places == 1
    run.job.cancel_flag.touch()
    await until(lambda: instance.busy == 0)


async def test_scaling_down_and_up_loses_no_job_and_runs_none_twice(runtime: TorchServeRuntime, tmp_path: Path) -> None:
    runs = [Run(runtime, tmp_path, "one"), Run(runtime, tmp_path, "other")]
    for run in runs:
        await run.begun()
    before = runtime._config
    went, stays = runtime.instances
    await runtime.scale(replace(before, instances=1))
    assert runtime.instances == (stays,)
    assert runtime.capacity == 2  # what runs goes on
    waiting = Run(runtime, tmp_path, "waiting")
    (leaving,) = [run for run in runs if run.worker in went.pids]
    (staying,) = [run for run in runs if run is not leaving]
    group = went.pid
    assert group is not None
    workers = [run.worker for run in runs]
    await leaving.end()
    await until(lambda: alive(group) == [])
    await until(lambda: runtime.capacity == 1)
    assert not waiting.worker  # the place it left is gone with it
    assert [run.worker for run in runs] == workers  # neither was begun again
    await staying.end()
    await waiting.begun()
    await runtime.scale(replace(before, instances=2))
    assert runtime.capacity == runtime.health().workers_ready == 2
    assert not waiting.task.done()
    await waiting.end()


async def test_another_number_of_workers_replaces_instances_and_no_job(
    runtime: TorchServeRuntime, tmp_path: Path
) -> None:
    run = Run(runtime, tmp_path, "through it all")
    await run.begun()
    worker, former = run.worker, runtime.instances
    served = replace(runtime._config, instances=1, workers=2)
    build_archive(served.archive.parent, served.archive, Config(torchserve=served), handler=STUB)
    await runtime.scale(served)
    (fresh,) = runtime.instances
    assert fresh not in former
    assert (fresh.ready_workers, runtime.capacity, runtime.health().workers) == (2, 3, 2)  # and the job's own place
    more = [Run(runtime, tmp_path, name) for name in ("third", "fourth")]
    for one in more:
        await one.begun()
    assert {instance_of(runtime, one.worker) for one in more} == {fresh}
    assert run.worker == worker
    for one in (run, *more):
        await one.end()
    await until(lambda: runtime.capacity == 2)
    assert not any(instance.pids for instance in former)


async def test_without_any_it_says_so(runtime: TorchServeRuntime, tmp_path: Path) -> None:
    none = TorchServeRuntime(replace(runtime._config, startup_timeout_seconds=1), log_file=tmp_path / "log")
    with pytest.raises(errors.Unavailable) as caught:
        await none.run(job_of(tmp_path, "quick"), lambda step: None)
    assert caught.value.reason == NOT_RUNNING
    assert (none.capacity, none.health().up, await none.ready()) == (0, False, False)
