"""One job in this process: from the job's files to the receipt, on the real expander."""

from __future__ import annotations

import asyncio
import shutil
import threading
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from lookalike import errors
from lookalike.config import AdaptationConfig, Config, ScoringConfig
from lookalike.pool.snapshot import Pool
from lookalike.retrieval.audience import Audience
from lookalike.retrieval.receipt import Progress, Stage
from lookalike.runtime.execute import CancelFlag, Executor, read_seeds
from lookalike.runtime.inprocess import InProcessRuntime
from lookalike.runtime.job import ExpansionJob
from lookalike.training.checkpoint import fingerprint

# Small tensors are slower with more threads.
CONFIG = Config(adaptation=AdaptationConfig(max_epochs=2), scoring=ScoringConfig(device="cpu", threads=1))
SECONDS = 60.0


@pytest.fixture
def job(sample_pool: Path, sample_checkpoint: Path, tmp_path: Path) -> ExpansionJob:
    seeds = Pool.open(sample_pool).user_ids(np.arange(0, 2000, 40))
    pq.write_table(pa.table({"user_id": seeds}), tmp_path / "seeds.parquet")
    return ExpansionJob(
        job_id="a job",
        campaign="spring",
        seeds=tmp_path / "seeds.parquet",
        k=100,
        pool=sample_pool,
        output=tmp_path / "audience",
        cancel_flag=tmp_path / "cancel",
        checkpoint=fingerprint(sample_checkpoint),
    )


@pytest.fixture
def executor(sample_checkpoint: Path) -> Executor:
    return Executor(sample_checkpoint, CONFIG)


def never() -> bool:
    return False


def ignore(step: Progress) -> None:
    pass


def test_a_job_becomes_an_audience(executor: Executor, job: ExpansionJob) -> None:
    steps: list[Progress] = []
    receipt = executor.run(job, steps.append, never)
    assert list(dict.fromkeys(step.stage for step in steps)) == list(Stage)
    assert (receipt.job_id, receipt.campaign, receipt.k) == ("a job", "spring", 100)
    assert (receipt.seeds.given, receipt.seeds.matched) == (50, 50)
    assert Audience.open(job.output).receipt == receipt
    assert executor.run(job, ignore, never) == receipt  # done already


def test_another_checkpoint_is_refused(executor: Executor, job: ExpansionJob) -> None:
    with pytest.raises(errors.FailedPrecondition, match="wants checkpoint dddd") as caught:
        executor.run(replace(job, checkpoint="d" * 64), ignore, never)
    assert caught.value.reason == "CHECKPOINT_MISMATCH"
    assert not job.output.exists()


def test_the_flag_and_the_caller_stop_it(executor: Executor, job: ExpansionJob) -> None:
    with pytest.raises(errors.Cancelled):
        executor.run(job, ignore, lambda: True)

    def raise_flag(step: Progress) -> None:
        if step.stage is Stage.ADAPTING:
            job.cancel_flag.touch()

    with pytest.raises(errors.Cancelled):
        executor.run(replace(job, k=1), raise_flag, never)
    assert not job.output.exists()


def test_a_filter_and_exclusions(executor: Executor, job: ExpansionJob, sample_pool: Path, tmp_path: Path) -> None:
    excluded = Pool.open(sample_pool).user_ids(np.arange(1, 2000, 3))
    pq.write_table(pa.table({"user_id": excluded}), tmp_path / "exclusions.parquet")
    text = "gender = 'gender_1'"
    receipt = executor.run(replace(job, filter=text, exclusions=tmp_path / "exclusions.parquet", k=2000), ignore, never)
    assert receipt.filter == "\"gender\" = 'gender_1'"
    assert (receipt.exclusions.given, receipt.exclusions.matched) == (len(excluded), len(excluded))
    members = Audience.open(job.output).members(0, 2000)["user_id"].to_pylist()
    assert members
    assert not set(members) & set(excluded.to_pylist())
    with pytest.raises(errors.InvalidInput) as caught:
        executor.run(replace(job, filter="gender = 'x'", output=tmp_path / "other"), ignore, never)
    assert caught.value.field == "filter"


def test_what_was_stopped_goes_on_and_what_was_cancelled_leaves_nothing(
    executor: Executor, job: ExpansionJob, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Stopped when it begins to score: the customised model is kept."""
    steps: list[Progress] = []

    def scoring() -> bool:
        return bool(steps) and steps[-1].stage is Stage.SCORING

    with pytest.raises(errors.Cancelled, match="stopped"):
        executor.run(job, steps.append, scoring)
    (left,) = tmp_path.glob("audience.partial-*")
    steps.clear()
    executor.run(job, steps.append, never)
    assert Stage.ADAPTING not in {step.stage for step in steps}
    assert not left.exists()

    def raise_flag(step: Progress) -> None:
        if step.stage is Stage.COMPILING:
            job.cancel_flag.touch()

    monkeypatch.setattr(CancelFlag.__init__, "__defaults__", (0.0,))
    with pytest.raises(errors.Cancelled):
        executor.run(replace(job, output=tmp_path / "other"), raise_flag, never)
    assert not list(tmp_path.glob("other*"))


def test_a_pool_is_opened_once_and_again_when_it_was_replaced(
    executor: Executor, job: ExpansionJob, sample_pool: Path, tmp_path: Path
) -> None:
    first = executor._expander(sample_pool)
    assert executor._expander(sample_pool) is first
    link = tmp_path / "current"
    link.symlink_to(sample_pool)
    assert executor._expander(link) is first
    copy, newer = tmp_path / "copy", tmp_path / "newer"
    for path in (copy, newer):
        shutil.copytree(sample_pool, path)
    older = executor._expander(copy)
    copy.rename(tmp_path / "older")
    newer.rename(copy)
    assert executor._expander(copy) is not older
    with pytest.raises(errors.NotFound) as caught:
        executor._expander(tmp_path / "none")
    assert caught.value.field == "pool"


def test_a_flag_is_looked_for_at_most_every_so_often(tmp_path: Path) -> None:
    flag = CancelFlag(tmp_path / "flag", interval=3600.0)
    assert not flag()
    (tmp_path / "flag").touch()
    assert not flag()
    other = CancelFlag(tmp_path / "flag", interval=0.0)
    assert other()
    (tmp_path / "flag").unlink()
    assert other()


def test_a_job_whose_folder_is_gone_is_nobodys(tmp_path: Path) -> None:
    (tmp_path / "job").mkdir()
    flag = CancelFlag(tmp_path / "job" / "flag", interval=0.0)
    assert not flag()
    (tmp_path / "job").rmdir()
    assert flag()


def test_seeds_that_are_not_there(tmp_path: Path) -> None:
    with pytest.raises(errors.NotFound):
        read_seeds(tmp_path / "none.parquet")
    (tmp_path / "bad.parquet").write_text("x")
    with pytest.raises(errors.InternalError):
        read_seeds(tmp_path / "bad.parquet")


async def test_in_process_reports_on_the_loops_thread(sample_checkpoint: Path, job: ExpansionJob) -> None:
    threads = set()
    async with InProcessRuntime(sample_checkpoint, CONFIG) as runtime:
        assert runtime.capacity == 1
        assert await runtime.ready()
        receipt = await runtime.run(job, lambda step: threads.add(threading.current_thread()))
    assert threads == {threading.current_thread()}
    assert receipt.k == 100
    assert not await runtime.ready()
    with pytest.raises(errors.Unavailable):
        await runtime.run(job, ignore)


async def test_in_process_a_cancelled_call_stops_its_job(sample_checkpoint: Path, job: ExpansionJob) -> None:
    began = asyncio.Event()
    async with InProcessRuntime(sample_checkpoint, CONFIG) as runtime:
        run = asyncio.create_task(runtime.run(job, lambda step: began.set()))
        await asyncio.wait_for(began.wait(), SECONDS)
        run.cancel()
        with pytest.raises(asyncio.CancelledError):
            await run
        assert not job.output.exists()
        assert (await runtime.run(replace(job, k=5), ignore)).k == 5  # its thread is free again


async def test_in_process_stopping_is_no_cancellation(sample_checkpoint: Path, job: ExpansionJob) -> None:
    began = asyncio.Event()
    runtime = InProcessRuntime(sample_checkpoint, CONFIG)
    run = asyncio.create_task(runtime.run(job, lambda step: began.set()))
    await asyncio.wait_for(began.wait(), SECONDS)
    await runtime.stop()
    with pytest.raises(errors.Unavailable, match="stopped"):
        await run
