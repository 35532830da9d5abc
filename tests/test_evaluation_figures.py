"""The figures: drawn from what there is, and the same bytes every time."""

from __future__ import annotations

from pathlib import Path
from xml.etree import ElementTree as ET

import numpy as np
import pytest
from made_results import made, summary

from lookalike.evaluation.figures.results import draw_all
from lookalike.evaluation.results import RunResult

SYSTEMS = ("lr", "mlp", "metaheac", "lookalike")


@pytest.fixture(scope="module")
def results() -> dict[str, list[RunResult]]:
    rng = np.random.default_rng(0)
    losses = (0.5, 0.4, 0.35)
    return {
        key: [
            made(key, run, rng.uniform(0.6, 0.9, 12).tolist(), losses=() if key == "lr" else losses) for run in range(2)
        ]
        for key in SYSTEMS
    }


def draw(results: dict[str, list[RunResult]], folder: Path) -> dict[str, bytes]:
    found = summary([result for some in results.values() for result in some])
    paths = draw_all(results, found, folder)
    assert sorted(paths) == sorted(folder.iterdir())
    return {path.name: path.read_bytes() for path in paths}


def test_every_figure_as_png_and_svg_the_same_twice(results: dict[str, list[RunResult]], tmp_path: Path) -> None:
    drawn = draw(results, tmp_path / "one")
    names = ("adaptation_loss", "auc_by_group", "auc_by_seeds")
    assert sorted(drawn) == [f"{name}.{kind}" for name in names for kind in ("png", "svg")]
    assert drawn == draw(results, tmp_path / "two")
    for name, content in drawn.items():
        if name.endswith("png"):
            assert content.startswith(b"\x89PNG")
        else:
            assert ET.fromstring(content).tag.endswith("svg")
            assert b"<dc:date>" not in content


def test_other_results_are_another_figure(results: dict[str, list[RunResult]], tmp_path: Path) -> None:
    other = dict(results, mlp=[made("mlp", 0, [0.5] * 12), made("mlp", 1, [0.6] * 12)])
    one, two = draw(results, tmp_path / "one"), draw(other, tmp_path / "two")
    assert all(one[name] != two[name] for name in one)


def test_without_losses_or_ours_the_rest_is_drawn(tmp_path: Path) -> None:
    drawn = draw({"lr": [made("lr", 0, [0.7, 0.8])]}, tmp_path / "figures")
    assert sorted({Path(name).stem for name in drawn}) == ["auc_by_group", "auc_by_seeds"]


def test_the_user_s_own_style_changes_nothing(results: dict[str, list[RunResult]], tmp_path: Path) -> None:
    import matplotlib as mpl

    plain = draw(results, tmp_path / "one")
    with mpl.rc_context({"font.size": 30, "svg.hashsalt": "other", "axes.grid": False}):
        assert draw(results, tmp_path / "two") == plain
        assert mpl.rcParams["font.size"] == 30
