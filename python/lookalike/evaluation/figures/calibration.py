"""What insights foretold against what audiences found. Knows what the study found."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from matplotlib.figure import Figure

from lookalike.evaluation.comparison import mean_interval
from lookalike.evaluation.figures.style import COLOURS
from lookalike.evaluation.observations import Calibration
from lookalike.retrieval.estimate import Estimate


@dataclass(frozen=True)
class Agreement:
    """How foretold shares and those that came agree over campaigns.

    Attributes:
        bias: foretold minus found, mean over campaigns. low, high: its 95% interval; None of too few campaigns.
        correlation: Pearson's; NaN where one of them is the same for all.
        within: share of campaigns where both may be equal, by the 95% interval of their difference (Newcombe 1998).
    """

    bias: float
    low: float | None
    high: float | None
    correlation: float
    within: float

    @property
    def bias_text(self) -> str:
        """The bias and its interval."""
        if self.low is None or self.high is None:
            return f"{self.bias:+.3f} (too few campaigns for an interval)"
        return f"{self.bias:+.3f} ({self.low:+.3f} to {self.high:+.3f})"


def agreement(found: Calibration) -> Agreement:
    """Of all forecasts."""
    pairs = [(one.foretold, one.found) for one in found.forecasts]
    foretold, came = (np.array([pair[i].value for pair in pairs]) for i in (0, 1))
    bias, low, high = mean_interval(foretold - came, np.arange(len(pairs)))
    constant = np.ptp(foretold) == 0 or np.ptp(came) == 0
    return Agreement(
        bias=bias,
        low=low,
        high=high,
        correlation=math.nan if constant else float(np.corrcoef(foretold, came)[0, 1]),
        within=float(np.mean([_may_be_equal(*pair) for pair in pairs])),
    )


def _may_be_equal(one: Estimate, other: Estimate) -> bool:
    difference = one.value - other.value
    below = math.hypot(one.value - one.low, other.high - other.value)
    above = math.hypot(one.high - one.value, other.value - other.low)
    return difference - below <= 0 <= difference + above


def draw(found: Calibration) -> Figure:
    """A point a campaign, with the 95% intervals of both shares; on the diagonal the forecast is right."""
    figure = Figure(figsize=(3.8, 3.8), layout="constrained")
    axes = figure.subplots()
    foretold, came = ([getattr(one, name) for one in found.forecasts] for name in ("foretold", "found"))
    x, y = (np.array([one.value for one in estimates]) for estimates in (foretold, came))
    axes.errorbar(
        x, y, xerr=_bars(foretold), yerr=_bars(came), fmt="none", ecolor=COLOURS[5], elinewidth=0.5, alpha=0.5
    )
    axes.plot(x, y, "o", color=COLOURS[0], markersize=3, markeredgewidth=0)
    top = min(1.0, 1.05 * max(one.high for one in (*foretold, *came)))
    axes.plot([0, top], [0, top], color="black", linestyle="--", linewidth=0.8)
    told = agreement(found)
    note = f"{len(x)} campaigns\nbias {told.bias_text}\ncorrelation {told.correlation:.2f}"
    axes.text(0.03, 0.97, note, transform=axes.transAxes, va="top", fontsize=7)
    axes.set_xlim(0, top)
    axes.set_ylim(0, top)
    axes.set_aspect("equal")
    axes.set_xlabel(f"recall foretold by held-out seeds, best {found.share:.0%} of the pool")
    axes.set_ylabel("recall among those who came later, same audience")
    return figure


def _bars(estimates: list[Estimate]) -> list[list[float]]:
    return [[one.value - one.low for one in estimates], [one.high - one.value for one in estimates]]
