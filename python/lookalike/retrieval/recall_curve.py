"""What an audience of K users would find, and how far to go: from where held-out seeds rank among the eligible users.

Pure functions of ranks; they know nothing of models, pools or where ranks come from. A rank is the share of users
before a seed: K of N users find the seeds whose rank is at most K / N.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Final, TypeAlias

import numpy as np

from lookalike.retrieval.estimate import Counts, Estimate, Floats, Z, band, wilson

# Sizes of a curve: 12 a decade draw a smooth line, and a page still shows them in a table.
PER_DECADE: Final = 12
SMALLEST: Final = 10
# Of a small sample, so many users before a cut place it to a fifth, either way, with 95%.
RESOLVED: Final = 96
# How many times as likely as anybody the last user of an audience should be to be like a seed. 1: whoever comes after
# is below the average of the pool, so chance would do better. 2 and 5: what a broad and a narrow audience commonly
# want to be above that; conventions.
MARGINS: Final = (("narrow", 5.0), ("balanced", 2.0), ("broad", 1.0))
# Of the seeds a suggested audience should find at least: fewer than one in ten is a handful, in the audience as among
# the seeds that tell of it.
LEAST_FOUND: Final = 0.1
# The shares of seeds that reach is told for.
SIMILARITIES: Final = (0.9, 0.75, 0.5, 0.25, 0.1)

Interval: TypeAlias = Callable[[Counts, int], tuple[Floats, Floats]]


@dataclass(frozen=True, kw_only=True)
class Point:
    """What an audience of the best `k` users would be.

    Attributes:
        k: users.
        share: of the eligible users.
        recall: share of the held-out seeds it would find; Wilson's interval, for a k chosen before the curve was seen.
        recall_band: the same, with ends that hold at every k at once, so at one that the curve chose, too.
        lift: recall over share: how many times as many as a random audience of k users would find.
        lift_band: the same, with ends that hold at every k at once.
        marginal_lift: how many times as likely as anybody the last user in it is to be like a seed.
        general_recall: share that the general model, not customised, would find.
    """

    k: int
    share: float
    recall: Estimate
    recall_band: Estimate
    lift: Estimate
    lift_band: Estimate
    marginal_lift: float
    general_recall: float


@dataclass(frozen=True, kw_only=True)
class Reach:
    """`users` are at least as similar as the held-out seed that is more similar than a share `similarity` of them."""

    similarity: float
    users: int
    low: int
    high: int


@dataclass(frozen=True, kw_only=True)
class Suggestion:
    """The largest size whose last user has this marginal lift or more, to two digits.

    The curve chose it, so what it would find is between the ends of `recall_band` and `lift_band`: at the place where
    seeds happen to be dense, the interval of one size holds less often than it says.
    """

    name: str
    marginal_lift: float
    point: Point


class RecallCurve:
    """The curve of one campaign.

    Args:
        ranks: of the held-out seeds, under models that were not trained on them: `[seeds]`, 0 to 1.
        general: of the same seeds under the general model.
        population: N, the eligible users.
        users: how many of them the seeds were compared with, a uniform sample.
    """

    def __init__(self, ranks: Floats, general: Floats, population: int, users: int) -> None:
        self.population = population
        self.users = min(users, population)
        self._ranks = np.sort(ranks)
        self._general = np.sort(general)
        self._hull = _majorant(self._ranks, least=0.5 / self.users)

    @property
    def smallest(self) -> int:
        """Below this size the sample of users is too coarse to place the cut; `SMALLEST` if it is no sample."""
        left = self.population - self.users
        return min(max(SMALLEST, math.ceil(RESOLVED * left / self.users)), self.population)

    def sizes(self) -> list[int]:
        """`PER_DECADE` a decade from the smallest to N."""
        decades = math.log10(self.population / self.smallest)
        grid = np.geomspace(self.smallest, self.population, max(2, round(decades * PER_DECADE) + 1))
        return sorted({min(round(k), self.population) for k in grid.tolist()})

    def points(self, sizes: Iterable[int]) -> tuple[Point, ...]:
        """The curve at these sizes; beyond N it is N."""
        wanted = np.array([min(k, self.population) for k in sizes], np.int64)
        share = wanted / self.population
        blur = self._blur(share)
        hits = self._found(share)
        fewer, more = self._found(share - blur), self._found(share + blur)
        recall = hits / len(self._ranks)
        low, high = self._interval(wilson, fewer, more, share)
        band_low, band_high = self._interval(band, fewer, more, share)
        general = np.searchsorted(self._general, share, side="right") / len(self._general)
        return tuple(
            Point(
                k=int(wanted[i]),
                share=float(share[i]),
                recall=Estimate(float(recall[i]), float(low[i]), float(high[i])),
                recall_band=Estimate(float(recall[i]), float(band_low[i]), float(band_high[i])),
                lift=Estimate(*(float(end[i] / share[i]) for end in (recall, low, high))),
                lift_band=Estimate(*(float(end[i] / share[i]) for end in (recall, band_low, band_high))),
                marginal_lift=self._slope(float(share[i])),
                general_recall=float(general[i]),
            )
            for i in range(len(wanted))
        )

    def reach(self) -> tuple[Reach, ...]:
        """How many users are at least as similar as a given share of the held-out seeds."""
        return tuple(self._reach(similarity) for similarity in SIMILARITIES)

    def suggestions(self) -> tuple[Suggestion, ...]:
        """Sizes worth a look, smallest first; none that finds hardly anybody, or is not sure to beat chance.

        Up to there `marginal_lift` is m or more and beyond it less: so recall - m * share is greatest there.
        """
        found = []
        for name, margin in MARGINS:
            x, y = self._hull
            best = float(x[np.argmax(y - margin * x)]) * self.population
            # Never beyond the place for being rounded: there the last user is less than he is said to be.
            sizes = [size for size in _rounded(best) if self._slope(size / self.population) >= margin]
            if not sizes:
                continue
            point = self.points(sizes[:1])[0]
            if point.recall.value >= LEAST_FOUND and point.lift_band.low > 1:
                found.append(Suggestion(name=name, marginal_lift=margin, point=point))
        return tuple(found)

    def _found(self, share: Floats) -> Counts:
        return np.searchsorted(self._ranks, share, side="right").astype(np.int64)

    def _blur(self, share: Floats) -> Floats:
        """How far a cut may be from its place, as only a sample of the users was ranked."""
        left = 1 - self.users / self.population
        blur: Floats = Z * np.sqrt(share * (1 - share) * left / self.users)
        return blur

    def _interval(self, kind: Interval, fewer: Counts, more: Counts, share: Floats) -> tuple[Floats, Floats]:
        low, high = kind(fewer, len(self._ranks))[0], kind(more, len(self._ranks))[1]
        everybody = share == 1  # finds all, for certain
        return np.where(everybody, 1.0, low), np.where(everybody, 1.0, high)

    def _slope(self, share: float) -> float:
        x, y = self._hull
        segment = int(np.clip(np.searchsorted(x, share, side="left"), 1, len(x) - 1))
        return float((y[segment] - y[segment - 1]) / (x[segment] - x[segment - 1]))

    def _reach(self, similarity: float) -> Reach:
        count = len(self._ranks)
        half = Z * math.sqrt(count * similarity * (1 - similarity))
        place = count * (1 - similarity)
        ends = [self._users_before(order) for order in (place, place - half, place + half + 1)]
        return Reach(similarity=similarity, users=ends[0], low=ends[1], high=ends[2])

    def _users_before(self, order: float) -> int:
        """Users before the seed of this order, from 1; the ends of the pool for seeds that there are not."""
        if order < 0.5:
            return 0
        if order > len(self._ranks):
            return self.population
        place = max(math.ceil(order - 1e-9), 1)  # 0.1 and the like are not exact
        return round(float(self._ranks[place - 1]) * self.population)


def _majorant(ranks: Floats, least: float) -> tuple[Floats, Floats]:
    """Corners of the least concave function above the ranks' distribution function, from (0, 0) to (1, 1).

    Its slope is the estimate of a density that falls (Grenander 1956). Ranks below `least` count as that.
    """
    places, counts = np.unique(np.clip(ranks, least, 1.0), return_counts=True)
    x = np.append(places, 1.0) if places[-1] < 1 else places
    y = np.cumsum(counts) / len(ranks)
    heights = np.append(y, 1.0) if len(x) > len(y) else y
    corners = [(0.0, 0.0)]
    for point in zip(x.tolist(), heights.tolist(), strict=True):
        while len(corners) > 1 and _rises(corners[-2], corners[-1], point):
            corners.pop()
        corners.append(point)
    hull = np.array(corners)
    return hull[:, 0], hull[:, 1]


def _rises(first: tuple[float, float], middle: tuple[float, float], last: tuple[float, float]) -> bool:
    """Whether the middle one is on or below the line between the others."""
    (x0, y0), (x1, y1), (x2, y2) = first, middle, last
    return (y1 - y0) * (x2 - x0) <= (y2 - y0) * (x1 - x0)


def _rounded(users: float) -> tuple[int, int]:
    """To two digits, as the curve knows no more: the nearest, and the one not above."""
    least = max(users, 1.0)
    step = 10 ** max(math.floor(math.log10(least)) - 1, 0)
    return round(least / step) * step, math.floor(least / step + 1e-9) * step
