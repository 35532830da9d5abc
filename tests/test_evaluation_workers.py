"""The benchmark in several processes: the same results, one end for all, whatever ends it."""

from __future__ import annotations

import multiprocessing
import os
import signal
import subprocess
import sys
import time
from functools import partial
from pathlib import Path

import numpy as np
import psutil
import pytest
from fake_system import FakeSystem, Scores, by_position
from processes import child

from lookalike.errors import Cancelled, DataCorrupted, FailedPrecondition, InvalidInput, ResourceExhausted
from lookalike.evaluation.bench import run_bench
from lookalike.evaluation.results import ResultFolder, held
from lookalike.evaluation.systems.registry import chosen
from lookalike.evaluation.systems.system import Rates, SeededCampaign
from lookalike.evaluation.watch import Watch
from lookalike.evaluation.workers import Workers

SAMPLES = 500
STUCK_SECONDS = 600.0


# What the systems of these tests do in a worker, which imports this module to do it.
def diverged(campaign: SeededCampaign, rates: Rates) -> Scores:
    return np.full(len(campaign.candidates), np.nan)


def killed(campaign: SeededCampaign, rates: Rates) -> Scores:
    os.kill(os.getpid(), signal.SIGKILL)
    raise AssertionError("it is dead")


def slow(campaign: SeededCampaign, rates: Rates) -> Scores:
    time.sleep(0.2)  # time to be told; how long does not matter
    return by_position(campaign, rates)


def stuck(campaign: SeededCampaign, rates: Rates) -> Scores:
    time.sleep(STUCK_SECONDS)
    raise AssertionError("nobody ended it")


def systems(**ranks: object) -> dict[str, partial[FakeSystem]]:
    return {key: partial(FakeSystem, key=key, title=key.title(), rank=rank) for key, rank in ranks.items()}


def no_worker_left() -> bool:
    return not [child for child in multiprocessing.active_children() if child.name.startswith("Spawn")]


def test_any_number_of_jobs_has_the_same_results(sample_dataset: Path, tmp_path: Path) -> None:
    rows = chosen(["lr", "pinterest"])
    told: list[tuple[str, int, int, str]] = []
    for jobs in (1, 2):
        found = run_bench(
            *(sample_dataset, tmp_path / str(jobs), rows),
            runs=2,
            samples=SAMPLES,
            limit=3,
            jobs=jobs,
            watch=Watch(lambda *report: told.append(report)),
        )
        assert [(row.key, row.runs) for row in found.rows] == [(key, (0, 1)) for key in rows]
        assert (tmp_path / str(jobs) / "table.md").is_file()
    one, two = (ResultFolder.open(tmp_path / str(jobs)) for jobs in (1, 2))
    for key in rows:
        assert one.rates(key).rates == two.rates(key).rates  # type: ignore[union-attr]
        for run in (0, 1):
            campaigns = [folder.result(key, run).grades.campaigns for folder in (one, two)]  # type: ignore[union-attr]
            first, second = ([(c.campaign_id, c.auc, c.precision, c.losses) for c in of] for of in campaigns)
            assert first == second
    assert {what for what, *_ in told} >= {"runs", "worker 1", "worker 2"}
    assert [(done, total) for what, done, total, _ in told if what == "runs"] == [(n, 4) for n in range(1, 5)] * 2


def test_the_parent_holds_the_folder_for_its_workers(sample_dataset: Path, tmp_path: Path) -> None:
    refused: list[str] = []

    def report(what: str, done: int, total: int, note: str) -> None:
        if what == "runs" and done == 1:
            with pytest.raises(FailedPrecondition) as raised, held(tmp_path):
                pass
            refused.append(raised.value.reason)

    rows = systems(one=by_position, other=by_position)
    found = run_bench(sample_dataset, tmp_path, rows, runs=1, samples=SAMPLES, jobs=2, watch=Watch(report))
    assert ([row.runs for row in found.rows], refused) == ([(0,), (0,)], ["BENCHMARK_RUNNING"])


def test_what_goes_wrong_in_a_worker_is_told_here(sample_dataset: Path, tmp_path: Path) -> None:
    with pytest.raises(InvalidInput, match="Bad, campaign .* NaN") as raised:
        run_bench(sample_dataset, tmp_path, systems(bad=diverged, good=slow), runs=2, samples=SAMPLES, jobs=2)
    assert raised.value.field == "systems"
    assert no_worker_left()


def damaged(watch: Watch) -> None:
    raise DataCorrupted("the pool is damaged", field="pool")


def test_what_cannot_be_opened_is_told_by_the_work(tmp_path: Path) -> None:
    with Workers(1, 1, damaged, Watch()) as workers, pytest.raises(DataCorrupted, match="the pool is damaged"):
        workers.first_of([workers.submit(print)])


def test_a_killed_worker_is_not_waited_for(sample_dataset: Path, tmp_path: Path) -> None:
    with pytest.raises(ResourceExhausted, match="fewer --jobs") as raised:
        run_bench(sample_dataset, tmp_path, systems(good=by_position, bad=killed), runs=1, samples=SAMPLES, jobs=2)
    assert raised.value.field == "jobs"
    assert no_worker_left()


def test_stopping_keeps_what_is_finished(sample_dataset: Path, tmp_path: Path) -> None:
    told: list[str] = []
    rows = systems(quick=by_position, other=by_position, slow=slow)
    watch = Watch(lambda what, done, total, note: told.append(what), lambda: told.count("runs") == 2)
    with pytest.raises(Cancelled, match="goes on"):
        run_bench(sample_dataset, tmp_path, rows, runs=2, samples=SAMPLES, jobs=2, watch=watch)
    assert no_worker_left()
    kept = {path.name: path.stat().st_mtime_ns for path in (tmp_path / "results").iterdir()}
    assert 2 <= len(kept) < 6
    found = run_bench(sample_dataset, tmp_path, rows, runs=2, samples=SAMPLES, jobs=2)
    assert [row.runs for row in found.rows] == [(0, 1)] * 3
    assert {name: (tmp_path / "results" / name).stat().st_mtime_ns for name in kept} == kept


def test_who_does_not_want_to_wait_for_a_step_need_not(sample_dataset: Path, tmp_path: Path) -> None:
    def report(what: str, done: int, total: int, note: str) -> None:
        if what.startswith("worker"):
            raise KeyboardInterrupt  # as a second Ctrl-C does

    rows = systems(one=stuck, two=stuck)
    with pytest.raises(KeyboardInterrupt):
        run_bench(sample_dataset, tmp_path, rows, runs=1, samples=SAMPLES, jobs=2, watch=Watch(report))
    assert no_worker_left()


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGKILL])
def test_workers_end_with_the_command(sample_dataset: Path, tmp_path: Path, number: signal.Signals) -> None:
    command = [sys.executable, "-m", "lookalike.cli", "bench", str(sample_dataset), "-o", str(tmp_path / "bench")]
    command += ["--systems", "mmoe,metaheac", "--samples", "1000000", "--jobs", "2"]
    with child(command, stderr=subprocess.PIPE, text=True) as bench:
        assert bench.stderr is not None
        line = next(line for line in bench.stderr if line.startswith("worker"))
        assert "tuning, offline rate" in line
        workers = psutil.Process(bench.pid).children(recursive=True)
        assert len(workers) >= 2
        bench.send_signal(number)
        said = bench.stderr.read()
    assert ("goes on" in said) == (number == signal.SIGINT)
    assert psutil.wait_procs(workers, timeout=60)[1] == []


@pytest.mark.parametrize("wrong", [{"jobs": 0}, {"threads": 0}])
def test_nonsense_is_refused(sample_dataset: Path, tmp_path: Path, wrong: dict[str, int]) -> None:
    with pytest.raises(InvalidInput) as raised:
        run_bench(sample_dataset, tmp_path, systems(one=by_position), **wrong)  # type: ignore[arg-type]
    assert raised.value.field == next(iter(wrong))
