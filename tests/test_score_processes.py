"""Processes that score: real ones, killed, stopped and flooded."""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import sys
from collections.abc import AsyncIterator, Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pytest
import pytest_asyncio
from processes import wait_until
from serving import SECONDS

from lookalike import errors
from lookalike.config import RealtimeConfig
from lookalike.expander import Expander
from lookalike.runtime.score_execute import ScoreExecutor
from lookalike.runtime.score_job import ScoreJob
from lookalike.runtime.score_processes import ScoreProcesses
from lookalike.runtime.score_wire import LENGTH, OK

pytestmark = pytest.mark.asyncio(loop_scope="module")

WAITING = 4


@pytest.fixture(scope="module")
def job(expander: Expander, order: dict[str, Any], tmp_path_factory: pytest.TempPathFactory) -> ScoreJob:
    audience = expander.expand(**order, output=tmp_path_factory.mktemp("processes") / "audience")
    return ScoreJob(
        audience=audience.path,
        model_sha256=audience.receipt.model_sha256,
        pool=expander.pool.path,
        user_ids=expander.pool.user_ids(np.arange(0, 2000, 7)),
    )


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def processes(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[ScoreProcesses]:
    log = tmp_path_factory.mktemp("scoring") / "logs" / "scoring.log"
    async with ScoreProcesses(RealtimeConfig(workers=2, max_waiting=WAITING), log_file=log) as it:
        yield it
        pids = it.pids
    assert not any(psutil.pid_exists(pid) for pid in pids)


async def until(condition: Callable[[], bool]) -> None:
    await asyncio.to_thread(wait_until, condition)


async def test_scores_are_those_of_this_process(processes: ScoreProcesses, job: ScoreJob) -> None:
    expected = ScoreExecutor(1).score(replace(job, with_ranks=True))
    first, *rest = await asyncio.gather(*(processes.score(replace(job, with_ranks=True)) for _ in range(WAITING)))
    for scores in (first, *rest):
        assert scores.scores.tobytes() == expected.scores.tobytes()
        assert scores.ranks is not None
        assert expected.ranks is not None
        assert scores.ranks.tolist() == expected.ranks.tolist()


async def test_one_audience_is_one_workers_while_that_has_time(processes: ScoreProcesses, job: ScoreJob) -> None:
    await processes.score(job)
    assert [(await processes.score(job)).loaded for _ in range(4)] == [0, 0, 0, 0]


async def test_an_error_comes_with_its_class_and_field(processes: ScoreProcesses, job: ScoreJob) -> None:
    with pytest.raises(errors.NotFound) as caught:
        await processes.score(replace(job, audience=job.audience / "none"))
    assert caught.value.field == "audience"
    await processes.score(job)


async def test_a_flood_is_refused_and_ebbs(processes: ScoreProcesses, job: ScoreJob) -> None:
    await processes.score(job)
    stopped = [psutil.Process(pid) for pid in processes.pids]
    for process in stopped:
        process.suspend()
    try:
        waiting = [asyncio.create_task(processes.score(job)) for _ in range(2 * WAITING)]
        await asyncio.sleep(0)
        with pytest.raises(errors.ResourceExhausted) as caught:
            await processes.score(job)
        assert caught.value.reason == "SCORING_BUSY"
        given_up = waiting.pop(0)
        given_up.cancel()
    finally:
        for process in stopped:
            process.resume()
    for scores in await asyncio.wait_for(asyncio.gather(*waiting), SECONDS):
        assert scores.found.all()
    await processes.score(job)  # whoever gave up is in nobody's way, and got nobody's answer


async def test_a_killed_worker_fails_its_requests_and_is_replaced(processes: ScoreProcesses, job: ScoreJob) -> None:
    before = processes.pids
    for pid in before:
        os.kill(pid, signal.SIGSTOP)
    waiting = [asyncio.create_task(processes.score(job)) for _ in range(2)]
    await asyncio.sleep(0)
    for pid in before:
        os.kill(pid, signal.SIGKILL)
    for one in waiting:
        with pytest.raises(errors.Unavailable) as caught:
            await asyncio.wait_for(one, SECONDS)
        assert caught.value.reason == "WORKER_DIED"
    await until(lambda: len(processes.pids) == 2 and all(worker.ready for worker in processes._workers))
    assert set(processes.pids).isdisjoint(before)
    assert (await processes.score(job)).found.all()


async def test_one_that_cannot_start_says_where_its_log_is(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "executable", "/bin/false")
    it = ScoreProcesses(RealtimeConfig(), log_file=tmp_path / "scoring.log")
    with pytest.raises(errors.Unavailable, match=r"scoring\.log"):
        await it.start()


async def test_a_worker_ends_with_whoever_started_it(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "lookalike.runtime.score_worker", "1000", "text"]
    process = await asyncio.create_subprocess_exec(*command, stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    assert process.stdout is not None
    assert process.stdin is not None
    assert await process.stdout.readexactly(LENGTH.size + 1) == LENGTH.pack(1) + OK
    process.stdin.close()
    assert await asyncio.wait_for(process.wait(), SECONDS) == 0
