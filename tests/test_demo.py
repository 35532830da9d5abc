from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import psutil
import pytest

from lookalike.dataset.layout import Dataset
from lookalike.retrieval.audience import Audience

DEMO = Path(__file__).resolve().parents[1] / "examples" / "demo.py"


def demo(*arguments: object) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, str(DEMO), *map(str, arguments)], capture_output=True, text=True, check=False
    )


def test_the_demo_runs_the_main_job_and_leaves_no_process(sample_dataset: Path, tmp_path: Path) -> None:
    done = demo("--data", sample_dataset, "--k", 40, "--seconds", 2, "--work", tmp_path)
    assert done.returncode == 0, done.stderr
    folder = tmp_path / ".demo" / "dataset"
    figures = json.loads((folder / "result.json").read_text())

    dataset = Dataset.open(sample_dataset)
    counts = sorted(int(dataset.samples(campaign, "seed")[1].sum()) for campaign in dataset.campaign_ids("test"))
    chosen = [int(dataset.samples(figure["campaign"], "seed")[1].sum()) for figure in figures]
    assert chosen == [counts[2], counts[4], counts[6]]  # of 8: the 25th, 50th and 75th percentile

    audiences = [Audience.open(path) for path in (folder / "service" / "audiences").iterdir()]
    assert [audience.num_members for audience in audiences] == [40, 40, 40]
    assert all(str(audience.path / "audience.parquet") in done.stdout for audience in audiences)
    for figure in figures:
        assert f"{figure['lookalike']['auc']:.3f}" in done.stdout
        assert f"{figure['logistic_regression']['recall']:.3f}" in done.stdout
    assert (tmp_path / "model_store" / "lookalike.mar").is_file()
    assert [p.pid for p in psutil.process_iter(["cmdline"]) if str(tmp_path) in " ".join(p.info["cmdline"] or [])] == []


def test_what_was_made_of_the_same_inputs_is_used_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(DEMO.parent))
    import demo as module

    ran: list[tuple[str, ...]] = []

    def run(*command: str) -> None:
        ran.append(command)
        (tmp_path / "target").mkdir()

    monkeypatch.setattr(module, "run", run)
    module.make(tmp_path / "target", ["a"], "first")
    module.make(tmp_path / "target", ["a"], "again")
    assert ran == [("first",)]
    module.make(tmp_path / "target", ["b"], "other")
    assert ran == [("first",), ("other",)]


def test_a_data_set_that_is_not_there_is_named(tmp_path: Path) -> None:
    done = demo("--data", tmp_path / "nowhere", "--work", tmp_path)
    assert done.returncode == 3
    assert "nowhere" in done.stderr
    assert "Traceback" not in done.stderr
