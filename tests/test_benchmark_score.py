"""The benchmark of engines, on a few thousand users: every figure it promises, a real model, and refusals."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from lookalike.config import ModelConfig
from lookalike.dataset.profiles import PROFILES
from lookalike.model.metaheac import MetaHeac
from lookalike.pool.simulated import simulate_pool
from lookalike.schema import FeatureSchema, Field, FieldKind
from lookalike.scoring.compiled import compile_model

PROGRAM = Path(__file__).resolve().parents[1] / "benchmarks" / "score.py"
QUICK = ("--threads", 1, "--repeat", 1, "--seconds", 0.01, "--users", 3000, "--skip", "compile")


def benchmark(*arguments: object) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, str(PROGRAM), *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, check=False)


@pytest.fixture(scope="module")
def document(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    file = tmp_path_factory.mktemp("score") / "score.json"
    done = benchmark(*QUICK, "--case", "lean", "--case", "tencent", "--json", file)
    assert done.returncode == 0, done.stderr
    assert "goal" in done.stdout
    found: dict[str, Any] = json.loads(file.read_text())
    return found


def test_it_measures_every_engine(document: dict[str, Any]) -> None:
    assert [case["case"] for case in document["cases"]] == ["lean", "tencent"]
    for case in document["cases"]:
        ways = {way["way"]: way for way in case["ways"]}
        assert list(ways) == ["torchscript float32", "torchscript bfloat16", "native"]
        reference, half, native = ways.values()
        assert reference["ratio"] == 1
        assert reference["error"]["p"]["max"] == 0
        assert 0 < native["error"]["p"]["max"] < half["error"]["p"]["max"]
        for way in ways.values():
            rate = way["users_per_second"]
            assert 0 < rate["min"] <= rate["median"] <= rate["max"]
            assert 0 < way["users"] <= 3000
            assert way["batch"] is None or str(way["batch"]) in way["sweep"]
            assert {"wrong", "failed"}.isdisjoint(way)
        best = ways[case["best_pytorch"]]["users_per_second"]["median"]
        assert case["native_to_best"] == pytest.approx(native["users_per_second"]["median"] / best)


def test_it_counts_what_a_user_costs(document: dict[str, Any]) -> None:
    lean, tencent = document["cases"]
    # 14 fields of 16 by 5 experts of 64 and two gates of 64; 64 x 64 an expert; gates, mean, critics.
    rest = 5 * 64 * 64 + 2 * 64 * 5 + 64 * 5 + 64 * 5
    assert lean["work"]["model_multiply_adds"] == 14 * 16 * 448 + rest
    assert lean["work"]["scorer_multiply_adds"] == rest
    assert lean["work"]["scorer_table_bytes"] == 14 * 448 * 2  # no two of them are small enough to share a table
    assert tencent["work"]["scorer_multiply_adds"] < tencent["work"]["model_multiply_adds"]
    for case in document["cases"]:
        assert min(bound["users_per_second"] for bound in case["bounds"].values()) > 0


def test_goals_are_judged_by_their_figures(document: dict[str, Any]) -> None:
    cases = {case["case"]: case for case in document["cases"]}
    assert [(goal["case"], goal["goal"]) for goal in document["goals"]] == [
        ("lean", 3.5e6),
        ("lean", 15),
        ("lean", 5),
        ("tencent", 8),
    ]
    for goal in document["goals"]:
        assert goal["met"] == (goal["value"] >= goal["goal"])
    assert document["goals"][3]["value"] == cases["tencent"]["native_to_torchscript"]


@pytest.fixture
def model(tmp_path: Path) -> Path:
    campaigns = FeatureSchema((Field("kind", FieldKind.CATEGORICAL, ("a",)),))
    network = MetaHeac(PROFILES["lean"].schema, campaigns, ModelConfig(num_experts=3))
    compile_model(network, campaigns.encode_features({}, where="campaign"), tmp_path / "model.pt", {})
    return tmp_path / "model.pt"


def test_it_measures_a_model_of_ours(model: Path, tmp_path: Path) -> None:
    simulate_pool(tmp_path / "pool", PROFILES["lean"], users=1500)
    done = benchmark(*QUICK, "--model", model, "--pool", tmp_path / "pool", "--json", "-")
    assert done.returncode == 0, done.stderr
    document = json.loads(done.stdout)
    (case,) = document["cases"]
    assert (case["case"], case["model"], case["experts"], case["users_made"]) == ("model.pt", str(model), 3, 1500)
    assert document["goals"] == []


def test_a_model_wants_its_pool(model: Path, tmp_path: Path) -> None:
    done = benchmark(*QUICK, "--model", model)
    assert done.returncode == 2
    assert "--model and --pool go together" in done.stderr
    simulate_pool(tmp_path / "pool", PROFILES["tencent"], users=10)
    done = benchmark(*QUICK, "--model", model, "--pool", tmp_path / "pool")
    assert done.returncode == 1
    assert f"{model} was not made for users of {tmp_path / 'pool'}" in done.stderr
