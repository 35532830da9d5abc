"""`lookalike bench` as a command: the table, what is stored, and mistakes."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from lookalike.cli.app import run
from lookalike.dataset.synthetic import simulate
from lookalike.evaluation.bench import run_bench
from lookalike.evaluation.results import held
from lookalike.evaluation.systems.registry import SYSTEMS, chosen


def test_from_a_dataset_to_the_table(
    sample_dataset: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    order = ["bench", str(sample_dataset), "--systems", "lr", "--limit", "4"]
    assert run([*order, "--runs", "2"]) == 0
    folder = tmp_path / ".bench" / "dataset-limit-4"
    table = json.loads((folder / "table.json").read_text())
    assert table["command"] == f"lookalike bench {sample_dataset} --systems lr --runs 2 --limit 4"
    (lr,) = table["rows"]
    assert lr["metrics"]["all"]["auc"]["mean"] > 0.6
    assert (lr["runs"], lr["offline_samples"]) == ([0, 1], 0)
    rates = [(trial["rate"], trial["auc"]) for trial in table["tuning"]["lr"]["trials"]]
    assert [rate for rate, _ in rates] == list(SYSTEMS["lr"]().online_rates)
    assert max(rates, key=lambda pair: pair[1])[0] == lr["rates"]["online"]
    shown = capsys.readouterr()
    assert "LR" in shown.out
    assert f"{lr['metrics']['all']['auc']['mean']:.4f}" in shown.out
    assert "4 test campaigns a run" in shown.out
    assert "runs: 2 of 2" in shown.err

    before = {path: path.stat().st_mtime_ns for path in (folder / "results").iterdir()}
    assert run([*order, "--runs", "3", "--table-only"]) == 0
    assert "Not finished: LR (2 of 3 runs)." in capsys.readouterr().out
    assert json.loads((folder / "table.json").read_text())["runs"] == 3
    assert run([*order, "--runs", "3", "--threads", "1"]) == 0
    after = {path: path.stat().st_mtime_ns for path in (folder / "results").iterdir()}
    assert len(after) == 3
    assert before.items() <= after.items()


@pytest.mark.parametrize(
    ("arguments", "code", "words"),
    [
        (["--systems", "lr,nobody"], 2, "no system 'nobody'"),
        (["--table-only"], 3, "no results"),
        (["--systems", ","], 2, "no system is named"),
        (["--systems", "lr", "--grouped", "nothing"], 2, "'nothing'"),
        (["--systems", "lr", "--runs", "0"], 2, "runs"),
        (["--runs", "0", "--table-only"], 2, "field: runs"),
        (["--table-only", "--fresh"], 2, "field: fresh"),
        (["--table-only", "--jobs", "-1"], 2, "field: jobs"),
        (["--table-only", "--threads", "1"], 2, "field: threads"),
    ],
)
def test_a_mistake_is_told(
    sample_dataset: Path,
    arguments: list[str],
    code: int,
    words: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    assert run(["bench", str(sample_dataset), *arguments]) == code
    assert words in capsys.readouterr().err


@pytest.fixture(scope="module")
def measured(sample_dataset: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two systems in two runs, of 500 samples and all test campaigns."""
    folder = tmp_path_factory.mktemp("measured") / "bench"
    run_bench(sample_dataset, folder, chosen(["lr", "pinterest"]), runs=2, samples=500)
    return folder


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir() if path.is_file()}


@pytest.mark.parametrize(
    ("data", "options", "words"),
    [
        ("nosuch", [], "no dataset"),
        ("other", [], "dataset was "),
        ("same", ["--limit", "3"], "limit was None, now is 3"),
        ("same", ["--samples", "600"], "samples was 500, now is 600"),
        ("same", ["--grouped", "advertiser"], "grouped was None, now is advertiser"),
        ("same", ["--grouped", "nosuch"], "field: grouped"),
    ],
)
def test_a_table_is_not_shown_under_another_name(
    sample_dataset: Path,
    measured: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    data: str,
    options: list[str],
    words: str,
) -> None:
    places = {"nosuch": tmp_path / "nosuch", "same": sample_dataset, "other": tmp_path / "other"}
    simulate(places["other"], users=300, campaigns=8)
    before = contents(measured)
    assert run(["bench", str(places[data]), "-o", str(measured), "--table-only", *options]) != 0
    shown = capsys.readouterr()
    assert words in shown.err
    assert shown.out == ""
    assert contents(measured) == before


@pytest.mark.parametrize("part", [["--systems", "lr"], ["--runs", "1"]])
def test_a_part_of_the_table_is_shown_and_the_whole_stays(
    sample_dataset: Path, measured: Path, capsys: pytest.CaptureFixture[str], part: list[str]
) -> None:
    order = ["bench", str(sample_dataset), "-o", str(measured), "--table-only"]
    before = contents(measured)
    assert run([*order, *part]) == 0
    shown = capsys.readouterr()
    assert "LR" in shown.out
    assert "are left as they are" in shown.err
    assert contents(measured) == before
    assert run([*order, "--systems", "lr,pinterest", "--runs", "2"]) == 0
    assert str(measured / "table.md") in capsys.readouterr().err
    assert "--systems lr,pinterest" in json.loads((measured / "table.json").read_text())["command"]


def test_showing_makes_no_pool(sample_dataset: Path, measured: Path, tmp_path: Path) -> None:
    copy = tmp_path / "copy"
    shutil.copytree(measured, copy, ignore=shutil.ignore_patterns("pool-*"))
    with held(copy):  # nor does it wait for who measures
        assert run(["bench", str(sample_dataset), "-o", str(copy), "--samples", "500", "--table-only"]) == 0
    assert not list(copy.glob("pool-*"))


def test_the_default_folder_tells_protocols_apart() -> None:
    from lookalike.cli.bench import folder_of

    data = Path("data/ml1m")
    assert folder_of(data, limit=None, samples=None, grouped=None) == Path(".bench/ml1m")
    narrow = folder_of(data, limit=20, samples=None, grouped="genre")
    assert narrow == Path(".bench/ml1m-limit-20-grouped-genre")
