"""Figures from stored results: AUC against seeds, losses of adaptation, AUC of the two groups.

Knows results. Same results, same bytes.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Mapping, Sequence
from itertools import cycle
from pathlib import Path

import numpy as np
import numpy.typing as npt
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator, MaxNLocator, NullLocator, StrMethodFormatter

from lookalike.evaluation.comparison import mean_interval
from lookalike.evaluation.figures.style import COLOURS, DASHES, OURS, save, styled
from lookalike.evaluation.results import RunResult
from lookalike.evaluation.summary import Row, Summary

Floats = npt.NDArray[np.float64]
Results = Mapping[str, Sequence[RunResult]]

_BINS = 6


def draw_named(results: Results, summary: Summary, folder: Path, names: Collection[str]) -> list[Path]:
    """The figures of these names that the results have data for; returns the paths."""
    written: list[Path] = []
    with styled():
        for name, draw in _FIGURES.items():
            figure = draw(results, summary) if name in names else None
            if figure is not None:
                written += save(figure, folder, name)
    return written


def auc_by_seeds(results: Results, summary: Summary) -> Figure:
    """A panel a system: mean AUC of campaigns with about as many seeds, and its 95% interval; ours dashed in each.

    Of too few campaigns for an interval, only the mean.
    """
    edges = _edges(results)
    shown = [row for row in summary.rows if row.key != summary.ours] or list(summary.rows)
    columns = min(4, len(shown))
    lines = math.ceil(len(shown) / columns)
    figure = Figure(figsize=(2.1 * columns + 0.6, 1.8 * lines + 0.6), layout="constrained")
    panels = figure.subplots(lines, columns, sharex=True, sharey=True, squeeze=False).ravel()
    for panel in panels[len(shown) :]:
        panel.set_axis_off()
    for panel, row in zip(panels, shown, strict=False):
        _curve(panel, results[row.key], edges, COLOURS[0], "-", "as named above")
        if summary.ours in results and row.key != summary.ours:
            ours = next(other.title for other in summary.rows if other.key == summary.ours)
            _curve(panel, results[summary.ours], edges, OURS, "--", ours)
        panel.set_xscale("log")
        panel.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
        panel.xaxis.set_major_formatter(StrMethodFormatter("{x:,.0f}"))
        panel.xaxis.set_minor_locator(NullLocator())
        panel.set_title(row.title, fontsize=7)
    panels[0].legend(fontsize=7)
    figure.supxlabel("seeds of the campaign")
    figure.supylabel("AUC")
    return figure


def auc_by_group(_results: Results, summary: Summary) -> Figure:
    """Bars of AUC from 0.5, which is chance: campaigns of at most T seeds, and of more. Whiskers: one sd of runs."""
    threshold = summary.identity.threshold
    figure = Figure(figsize=(5.2, 0.34 * len(summary.rows) + 1.1), layout="constrained")
    axes = figure.subplots()
    places = np.arange(len(summary.rows))[::-1]
    groups = (("few", 0.19, COLOURS[0], "", f"at most {threshold:,} seeds"), ("many", -0.19, "white", "///", "more"))
    for group, shift, colour, hatch, label in groups:
        spreads = [row.metrics["few" if group == "few" else "many"]["auc"] for row in summary.rows]
        axes.barh(
            places + shift,
            [0.0 if spread is None else spread.mean - 0.5 for spread in spreads],
            height=0.36,
            left=0.5,
            xerr=[(spread.deviation or 0.0) if spread else 0.0 for spread in spreads],
            color=colour,
            edgecolor=COLOURS[0],
            hatch=hatch,
            label=label,
            error_kw={"elinewidth": 0.8},
        )
    axes.set_ylim(-0.6, len(summary.rows) - 0.4)
    axes.set_yticks(places, [row.title for row in summary.rows])
    for name, row in zip(axes.get_yticklabels(), summary.rows, strict=True):
        name.set_fontweight("bold" if row.key == summary.ours else "normal")
    axes.grid(visible=False, axis="y")
    axes.set_xlabel("AUC, mean over campaigns (0.5 is chance)")
    figure.legend(loc="outside lower center", ncols=2, title="seeds of the campaign")
    return figure


def adaptation_loss(results: Results, summary: Summary) -> Figure | None:
    """Mean training loss over campaigns by epoch of adaptation; one that stopped early counts on with its last."""
    with_losses = [row for row in summary.rows if any(_losses(results[row.key]))]
    if not with_losses:
        return None
    figure = Figure(figsize=(6.4, 3.2), layout="constrained")
    axes = figure.subplots()
    for row, (colour, dashes) in zip(with_losses, _looks(summary, with_losses), strict=True):
        curve = _mean_curve(_losses(results[row.key]))
        axes.plot(np.arange(1, len(curve) + 1), curve, color=colour, linestyle=dashes, label=row.title)
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes.set_xlabel("epochs of adaptation")
    axes.set_ylabel("training loss, mean over campaigns")
    figure.legend(loc="outside right upper", fontsize=7)
    return figure


def _looks(summary: Summary, rows: Sequence[Row]) -> list[tuple[str, object]]:
    """A colour and dashes for each row, no two alike; ours is black and solid."""
    others = cycle((colour, dashes) for dashes in DASHES for colour in COLOURS)
    return [(OURS, "-") if row.key == summary.ours else next(others) for row in rows]


def _edges(results: Results) -> Floats:
    """Of bins with about as many campaigns each, by seeds; the last one's upper edge is open."""
    seeds = [c.seeds for result in next(iter(results.values())) for c in result.grades.campaigns]
    return np.unique(np.quantile(seeds, np.linspace(0, 1, _BINS + 1)[:-1], method="lower")).astype(np.float64)


def _curve(panel: Axes, results: Sequence[RunResult], edges: Floats, colour: str, dashes: str, label: str) -> None:
    campaigns = [campaign for result in results for campaign in result.grades.campaigns]
    seeds = np.array([campaign.seeds for campaign in campaigns])
    aucs = np.array([campaign.auc for campaign in campaigns])
    numbers = np.unique([str(campaign.campaign_id) for campaign in campaigns], return_inverse=True)[1]
    bins = np.searchsorted(edges, seeds, side="right")
    places, found = [], []
    for number in np.unique(bins):
        inside = bins == number
        places.append(float(np.exp(np.log(seeds[inside]).mean())))
        found.append(mean_interval(aucs[inside], numbers[inside]))
    means, low, high = zip(*found, strict=True)
    panel.plot(places, means, color=colour, linestyle=dashes, marker="o", markersize=2.5, linewidth=1.2, label=label)
    below, above = (np.array(ends, np.float64) for ends in (low, high))  # None becomes NaN, which is not filled
    panel.fill_between(places, below, above, color=colour, alpha=0.15, linewidth=0)


def _losses(results: Sequence[RunResult]) -> list[tuple[float, ...]]:
    return [campaign.losses for result in results for campaign in result.grades.campaigns]


def _mean_curve(losses: Sequence[tuple[float, ...]]) -> Floats:
    told = [curve for curve in losses if curve]
    longest = max(map(len, told))
    table = np.array([curve + (curve[-1],) * (longest - len(curve)) for curve in told])
    mean: Floats = table.mean(axis=0)
    return mean


_FIGURES: dict[str, Callable[[Results, Summary], Figure | None]] = {
    "auc_by_seeds": auc_by_seeds,
    "auc_by_group": auc_by_group,
    "adaptation_loss": adaptation_loss,
}
NAMES = tuple(_FIGURES)
