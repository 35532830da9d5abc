"""The benchmark as a whole: what is finished is kept, and what does not fit is refused."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from fake_system import FakeSystem, Seen, fakes
from made_results import IDENTITY, ORIGIN, made

from lookalike.dataset.layout import Dataset
from lookalike.errors import Cancelled, DataCorrupted, FailedPrecondition, InvalidInput, NotFound
from lookalike.evaluation.bench import run_bench, summary_of
from lookalike.evaluation.results import ResultFolder, Trial, Tuned, held
from lookalike.evaluation.systems.registry import SYSTEMS, chosen
from lookalike.evaluation.systems.system import Rates
from lookalike.evaluation.watch import Watch

RATES = (0.001, 0.01)


@pytest.fixture
def output(tmp_path: Path) -> Path:
    return tmp_path / "bench"


class Two:
    """Two systems to be measured, and what each saw."""

    def __init__(self) -> None:
        self.first, self.seen_first = fakes("first", online_rates=RATES, losses=(0.5, 0.4))
        self.second, self.seen_second = fakes("second")

    @property
    def systems(self) -> dict[str, Callable[[], FakeSystem]]:
        return {"first": self.first, "second": self.second}

    @property
    def seen(self) -> tuple[list[Seen], list[Seen]]:
        return list(self.seen_first), list(self.seen_second)


def stop_in(key: str, run: int) -> Watch:
    """Asks to stop as soon as that system is at that run's campaigns."""
    reached: list[bool] = []

    def report(what: str, done: int, total: int, note: str) -> None:
        if what == "campaigns" and note == f"{key}, run {run}":
            reached.append(True)

    return Watch(report, lambda: bool(reached))


def test_runs_of_all_systems_in_turn_with_seeds_of_their_own(sample_dataset: Path, output: Path) -> None:
    two, order = Two(), []
    watch = Watch(lambda what, done, total, note: order.append((done, total, note)) if what == "runs" else None)
    found = run_bench(sample_dataset, output, two.systems, runs=2, samples=500, watch=watch)
    assert order == [(1, 4, "first, run 0"), (2, 4, "second, run 0"), (3, 4, "first, run 1"), (4, 4, "second, run 1")]
    assert [(row.key, row.runs) for row in found.rows] == [("first", (0, 1)), ("second", (0, 1))]
    assert [(call.stage, call.seed, call.samples) for call in two.seen_second] == [
        *(("pretrain", 0, 500), ("customise", 0, 0)),
        *(("pretrain", 1, 500), ("customise", 1, 0)),
    ]
    assert (output / "table.md").is_file()


def test_no_run_trains_on_what_it_tests_and_tuning_happens_once(sample_dataset: Path, output: Path) -> None:
    two = Two()
    run_bench(sample_dataset, output, two.systems, runs=3)
    stages = [call.stage for call in two.seen_first]
    assert stages == ["pretrain", "customise", "customise"] + ["pretrain", "customise"] * 3
    tuning, runs = two.seen_first[:3], two.seen_first[3:]
    tested = frozenset[object]().union(*(call.campaigns for call in runs if call.stage == "customise"))
    assert not tuning[1].campaigns & tested
    for trained, ranked in zip(runs[::2], runs[1::2], strict=True):
        assert not trained.campaigns & ranked.campaigns
    # Run 0's tests are the dataset's own.
    assert runs[1].campaigns == frozenset(Dataset.open(sample_dataset).campaign_ids("test"))
    assert [call.campaigns for call in two.seen_second if call.stage == "customise"] == [
        call.campaigns for call in runs if call.stage == "customise"
    ]


def test_what_is_finished_is_not_measured_again(sample_dataset: Path, output: Path) -> None:
    two = Two()
    with pytest.raises(Cancelled, match="goes on"):
        run_bench(sample_dataset, output, two.systems, runs=2, watch=stop_in("second", 0))
    assert len(two.seen_first) == 5
    again = Two()
    run_bench(sample_dataset, output, again.systems, runs=2)
    assert [call.seed for call in again.seen_first] == [1, 1]
    assert [call.seed for call in again.seen_second] == [0, 0, 1, 1]
    third = Two()
    found = run_bench(sample_dataset, output, third.systems, runs=3)
    assert [{call.seed for call in seen} for seen in third.seen] == [{2}, {2}]
    assert [row.runs for row in found.rows] == [(0, 1, 2)] * 2


def test_going_on_leads_to_the_same_results(sample_dataset: Path, tmp_path: Path) -> None:
    run_bench(sample_dataset, tmp_path / "whole", Two().systems, runs=2)
    with pytest.raises(Cancelled):
        run_bench(sample_dataset, tmp_path / "parts", Two().systems, runs=2, watch=stop_in("first", 1))
    run_bench(sample_dataset, tmp_path / "parts", Two().systems, runs=2)
    whole, parts = (ResultFolder.open(tmp_path / name).finished(["first", "second"], 2) for name in ("whole", "parts"))
    assert [[result.grades for result in whole[key]] for key in whole] == [
        [result.grades for result in parts[key]] for key in parts
    ]


def test_a_table_of_what_there_is(sample_dataset: Path, output: Path) -> None:
    two = Two()
    with pytest.raises(Cancelled):
        run_bench(sample_dataset, output, two.systems, runs=2, watch=stop_in("second", 0))
    found = summary_of(ResultFolder.open(output), ["first", "second"], name="x", runs=2, command="")
    assert ([row.runs for row in found.rows], found.absent) == ([(0,)], ("second",))
    with pytest.raises(NotFound, match="no finished run of second"):
        summary_of(ResultFolder.open(output), ["second"], name="x", runs=2, command="")


def test_a_damaged_result_is_named(sample_dataset: Path, output: Path) -> None:
    run_bench(sample_dataset, output, Two().systems, runs=1)
    file = output / "results" / "first-0.json"
    file.write_bytes(file.read_bytes()[:-20])
    with pytest.raises(DataCorrupted, match=r"first-0\.json is damaged"):
        run_bench(sample_dataset, output, Two().systems, runs=1)
    shutil.copy(output / "results" / "second-0.json", file)
    with pytest.raises(DataCorrupted, match=r"first-0\.json belongs elsewhere"):
        run_bench(sample_dataset, output, Two().systems, runs=1)
    file.unlink()
    two = Two()
    run_bench(sample_dataset, output, two.systems, runs=1)
    # Its rates are kept, so it is not tuned again.
    assert [[call.stage for call in seen] for seen in two.seen] == [["pretrain", "customise"], []]


def test_results_that_were_measured_otherwise_are_refused(sample_dataset: Path, output: Path) -> None:
    run_bench(sample_dataset, output, Two().systems, runs=1, samples=500)
    with pytest.raises(FailedPrecondition, match=r"samples was 500, now is 600.*--fresh"):
        run_bench(sample_dataset, output, Two().systems, runs=1, samples=600)
    with pytest.raises(FailedPrecondition, match="limit was None, now is 3"):
        run_bench(sample_dataset, output, Two().systems, runs=1, samples=500, limit=3)
    two = Two()
    run_bench(sample_dataset, output, {"second": two.second}, runs=1, samples=600, fresh=True)
    assert len(two.seen_second) == 2
    assert [path.name for path in (output / "results").iterdir()] == ["second-0.json"]
    assert list((output / "rates").iterdir()) == [output / "rates" / "second.json"]


def test_one_benchmark_at_a_time_measures_into_a_folder(sample_dataset: Path, output: Path) -> None:
    """A second one, of another protocol or the same, is refused while the first measures, and takes nothing from it."""
    refused: list[FailedPrecondition] = []

    def report(what: str, done: int, total: int, note: str) -> None:
        if what == "campaigns" and note == "second, run 0" and not refused:
            for options in ({"samples": 600, "fresh": True}, {"samples": 500}):
                with pytest.raises(FailedPrecondition, match="give another --output") as raised:
                    run_bench(sample_dataset, output, Two().systems, runs=1, **options)  # type: ignore[arg-type]
                refused.append(raised.value)

    found = run_bench(sample_dataset, output, Two().systems, runs=1, samples=500, watch=Watch(report))
    assert [(error.field, str(output) in error.message) for error in refused] == [("output", True)] * 2
    assert [row.runs for row in found.rows] == [(0,), (0,)]
    # Over, it is in nobody's way.
    assert run_bench(sample_dataset, output, Two().systems, runs=1, samples=600, fresh=True).identity.samples == 600


def test_a_benchmark_that_failed_holds_nothing(sample_dataset: Path, output: Path) -> None:
    with pytest.raises(Cancelled):
        run_bench(sample_dataset, output, Two().systems, runs=1, watch=stop_in("first", 0))
    with held(output), pytest.raises(FailedPrecondition) as raised, held(output):
        pass
    assert raised.value.reason == "BENCHMARK_RUNNING"
    with held(output):
        pass


def test_who_has_read_a_folder_measures_only_if_it_is_the_same(tmp_path: Path) -> None:
    before = ResultFolder.begin(tmp_path, IDENTITY, fresh=False)
    with before.held():
        pass
    ResultFolder.begin(tmp_path, replace(IDENTITY, samples=7), fresh=True)
    with pytest.raises(FailedPrecondition, match="samples was 1000, now is 7"), before.held():
        pass


@pytest.mark.parametrize("place", ["file", "file/below"])
def test_a_place_that_is_no_folder_is_refused(sample_dataset: Path, tmp_path: Path, place: str) -> None:
    (tmp_path / "file").write_text("mine")
    with pytest.raises(InvalidInput, match="give another --output") as raised:
        run_bench(sample_dataset, tmp_path / place, Two().systems, runs=1)
    assert raised.value.field == "output"
    assert (tmp_path / "file").read_text() == "mine"


def test_fresh_forgets_the_systems_that_are_asked_for(sample_dataset: Path, output: Path) -> None:
    run_bench(sample_dataset, output, Two().systems, runs=2)
    two = Two()
    run_bench(sample_dataset, output, {"second": two.second}, runs=1, fresh=True)
    assert [call.seed for call in two.seen_second] == [0, 0]
    left = sorted(path.name for path in (output / "results").iterdir())
    assert left == ["first-0.json", "first-1.json", "second-0.json"]


def test_the_limit_holds_for_every_system(sample_dataset: Path, output: Path) -> None:
    two = Two()
    run_bench(sample_dataset, output, two.systems, runs=1, limit=3)
    first, second = (next(c for c in reversed(seen) if c.stage == "customise") for seen in two.seen)
    assert first.campaigns == second.campaigns
    assert len(first.campaigns) == 3


def test_the_pool_is_made_once(sample_dataset: Path, output: Path) -> None:
    told: list[str] = []
    watch = Watch(lambda what, done, total, note: told.append(what))
    run_bench(sample_dataset, output, Two().systems, runs=1, watch=watch)
    assert "users" in told
    told.clear()
    run_bench(sample_dataset, output, Two().systems, runs=2, watch=watch)
    assert "users" not in told


@pytest.mark.parametrize("wrong", [{"runs": 0}, {"samples": 0}, {"limit": 0}, {"grouped": "nothing"}])
def test_nonsense_is_refused(sample_dataset: Path, output: Path, wrong: dict[str, object]) -> None:
    with pytest.raises(InvalidInput) as raised:
        run_bench(sample_dataset, output, Two().systems, **wrong)  # type: ignore[arg-type]
    assert raised.value.field == next(iter(wrong))
    assert not output.exists()


# ------------------------------------------------------------------------------------------------------------- folder


def test_what_is_put_is_what_is_read(tmp_path: Path) -> None:
    folder = ResultFolder.begin(tmp_path, IDENTITY, fresh=False)
    result = made("lr", 3, [0.5, 1 / 3], losses=(0.25, float("nan")))
    folder.put(result)
    tuned = Tuned("lr", Rates(0.1, 0.2), (Trial("online", 0.2, None, 1.5, "NaN"),), 4, ORIGIN)
    folder.put_rates(tuned)
    again = ResultFolder.open(tmp_path)
    assert repr(again.result("lr", 3)) == repr(result)  # NaN is not itself
    assert again.rates("lr") == tuned
    assert (again.result("lr", 2), again.rates("mlp")) == (None, None)
    assert list(again.finished(["mlp", "lr"], 4)) == ["lr"]


def test_keys_that_begin_alike_are_not_mistaken(tmp_path: Path) -> None:
    folder = ResultFolder.begin(tmp_path, IDENTITY, fresh=False)
    folder.put(made("mlp", 0, [0.5]))
    folder.put(made("mlp-pre", 0, [0.5]))
    folder.discard(["mlp"])
    assert list(folder.finished(["mlp", "mlp-pre"], 1)) == ["mlp-pre"]


def test_a_folder_without_results_is_not_found(tmp_path: Path) -> None:
    with pytest.raises(NotFound, match="run the benchmark first"):
        ResultFolder.open(tmp_path)
    (tmp_path / "protocol.json").write_text("{}")
    with pytest.raises(DataCorrupted, match=r"protocol\.json is damaged"):
        ResultFolder.open(tmp_path)


# ----------------------------------------------------------------------------------------------------------- registry


@pytest.mark.parametrize("key", SYSTEMS)
def test_every_system_is_what_its_key_says(key: str) -> None:
    system = SYSTEMS[key]()
    assert system.key == key
    assert system.title
    assert len(system.offline_rates) >= 1
    assert len(system.online_rates) >= 1


def test_systems_come_in_the_table_s_order() -> None:
    assert list(chosen(None)) == list(SYSTEMS)
    assert list(chosen(list(reversed(SYSTEMS)))) == list(SYSTEMS)
    with pytest.raises(InvalidInput, match="no system 'rl'; there are lr"):
        chosen(["lr", "rl"])
    with pytest.raises(InvalidInput):
        chosen([])


def test_a_ranking_by_position_is_chance(sample_dataset: Path, output: Path) -> None:
    found = run_bench(sample_dataset, output, {"second": Two().second}, runs=3)
    auc = found.rows[0].metrics["all"]["auc"]
    assert auc is not None
    assert np.isclose(auc.mean, 0.5, atol=0.05)
