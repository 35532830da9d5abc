"""The figures: drawn from what there is, and the same bytes every time."""

from __future__ import annotations

from pathlib import Path
from xml.etree import ElementTree as ET

import numpy as np
import pytest
from made_results import ORIGIN, made, summary

from lookalike.evaluation.categories import Categories
from lookalike.evaluation.figures.calibration import agreement
from lookalike.evaluation.figures.convergence import draw as draw_convergence
from lookalike.evaluation.figures.mixtures import gates, representations
from lookalike.evaluation.figures.results import NAMES, auc_by_seeds, draw_named
from lookalike.evaluation.figures.style import styled
from lookalike.evaluation.observations import Calibration, Convergence, Followed, Forecast, Mixtures, SeenBy
from lookalike.evaluation.results import RunResult
from lookalike.retrieval.estimate import share_of

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
    paths = draw_named(results, found, folder, NAMES)
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


# -------------------------------------------------------------------------------------------------------- looks inside


def calibrated(pairs: list[tuple[int, int]], total: int = 100) -> Calibration:
    """Forecasts of so many of a hundred held-out seeds, and of a hundred who came later."""
    forecasts = tuple(
        Forecast(number, 1000, 50, total, share_of(foretold, total), total, share_of(found, total))
        for number, (foretold, found) in enumerate(pairs)
    )
    return Calibration(origin=ORIGIN, settings={}, share=0.05, forecasts=forecasts, left_out=0)


def test_agreement_by_hand() -> None:
    told = agreement(calibrated([(10, 19), (30, 30), (50, 80)]))
    assert told.bias == pytest.approx((-0.09 + 0.0 - 0.3) / 3)
    assert told.bias_text == "-0.130 (too few campaigns for an interval)"
    assert told.correlation == pytest.approx(np.corrcoef([10, 30, 50], [19, 30, 80])[0, 1])
    # 10 and 19 of 100 may be equal, for Newcombe's interval ends at 0.009; 50 and 80 may not.
    assert told.within == pytest.approx(2 / 3)
    assert np.isnan(agreement(calibrated([(10, 20), (10, 30)])).correlation)


def test_an_interval_of_the_bias_where_there_are_campaigns_enough() -> None:
    told = agreement(calibrated([(10, 19), (30, 30), (50, 80)] * 10))
    assert told.low is not None
    assert told.high is not None
    assert told.low < told.bias < told.high
    assert told.bias_text == f"-0.130 ({told.low:+.3f} to {told.high:+.3f})"


def test_bands_of_auc_only_where_there_are_campaigns_enough(results: dict[str, list[RunResult]]) -> None:
    rng = np.random.default_rng(1)
    plenty = {"lr": [made("lr", 0, rng.uniform(0.6, 0.9, 240).tolist())]}
    for kept, banded in ((results, False), (plenty, True)):
        found = summary([result for some in kept.values() for result in some])
        with styled():
            panel = auc_by_seeds(kept, found).axes[0]
        assert panel.get_lines()
        assert any(len(path.vertices) for band in panel.collections for path in band.get_paths()) == banded


def test_more_seeds_tell_the_same_difference_apart() -> None:
    few, many = (agreement(calibrated([(size // 5, size // 4)], size)) for size in (100, 10_000))
    assert few.bias == pytest.approx(many.bias)
    assert (few.within, many.within) == (1.0, 0.0)


def test_a_fit_that_ends_is_drawn_to_its_end() -> None:
    curves = ((0.6, 0.5, 0.4, 0.4), (0.8, 0.5, 0.4, 0.4))
    systems = (
        Followed("mlp", "MLP", curves, curves, (0.5, 0.5), (None, None)),
        Followed("ours", "Ours", curves, curves, (0.4, 0.4), (2, 1)),
    )
    found = Convergence(origin=ORIGIN, settings={}, campaigns=(1, 2), steps=(0, 1, 2, 10), systems=systems)
    with styled():
        loss, auc = draw_convergence(found, "ours").axes
    drawn = {str(line.get_label()): np.array(line.get_xydata()) for line in loss.get_lines()}
    np.testing.assert_allclose(drawn["MLP"], [(0, 0.7), (1, 0.5), (2, 0.4), (10, 0.4)])
    np.testing.assert_allclose(drawn["Ours: Newton steps"], [(0, 0.7), (1, 0.5), (2, 0.4)])
    ends = [np.array(line.get_xydata())[0].tolist() for line in auc.get_lines() if line.get_marker() == "<"]
    assert ends == [[10, 0.5], [10, 0.4]]


def test_gates_are_drawn_category_by_category() -> None:
    weights = ((0.2, 0.8), (0.6, 0.4), (0.3, 0.7), (0.5, 0.5))
    seen = SeenBy("ours", "Ours", weights, weights, weights)
    found = Mixtures(origin=ORIGIN, settings={}, campaigns=(1, 2, 3, 4), systems=(seen,))
    with styled():
        axes = gates(found, Categories("kind", ("b", "a", "b", ""))).axes[0]
    (image,) = axes.get_images()
    shown = np.array(image.get_array())
    kept = np.array([weights[0], weights[2], weights[1]]).T  # b is the most common; the last has no category
    np.testing.assert_allclose(shown, kept - kept.mean(1, keepdims=True))
    assert [label.get_text() for label in axes.get_yticklabels()] == ["1 (0.37)", "2 (0.63)"]


def test_a_map_shows_every_campaign_in_its_category() -> None:
    of = (*"aabbccddeeffgg", "")
    points = tuple((float(number), 0.0) for number in range(len(of)))
    found = Mixtures(
        origin=ORIGIN,
        settings={},
        campaigns=tuple(range(len(of))),
        systems=(SeenBy("ours", "Ours", points, points, points),),
    )
    with styled():
        figure = representations(found, Categories("kind", of))
    groups = {
        str(group.get_label()): np.array(group.get_offsets())[:, 0].tolist() for group in figure.axes[0].collections
    }
    assert groups == {**{v: [2.0 * i, 2.0 * i + 1] for i, v in enumerate("abcdef")}, "others": [12.0, 13.0, 14.0]}
