"""Whether one row of the results beats another: paired tests over runs and over campaigns, corrected for their number.

Knows arrays only.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
import numpy.typing as npt
from scipy.stats import ttest_rel

from lookalike.errors import InvalidInput

Floats = npt.NDArray[np.float64]

# The ends of the 95% interval are then its 250th from either side, and the smallest p is 0.0002.
RESAMPLES = 10_000
CONFIDENCE = 0.95
# Of fewer campaigns a bootstrap says too much. Without a difference, so many of 2,000 simulations had p < .05:
#   campaigns              2    3    5   10   15   20   30   64
#   normal              .486 .231 .160 .090 .073 .072 .058 .067
#   skewed exponential  .537 .303 .219 .154 .122 .090 .075 .064
# and as many intervals missed the truth. From 20 on they are fewer than twice the .05 that is claimed.
FEWEST_CAMPAIGNS = 20
# Two systems that compute the same by other sums.
_ALIKE = 1e-12


@dataclass(frozen=True)
class Difference:
    """Of two systems in one metric over paired campaigns.

    Attributes:
        mean: over all pairs. low, high: 95% interval of it by bootstrap.
        p: that there is no difference, two-sided, by the same bootstrap.
        wins, ties, losses: campaigns, by their mean over runs.
    Interval and p are None of fewer campaigns than `FEWEST_CAMPAIGNS`.
    """

    mean: float
    low: float | None
    high: float | None
    p: float | None
    wins: int
    ties: int
    losses: int

    @property
    def campaigns(self) -> int:
        """How many were compared."""
        return self.wins + self.ties + self.losses


def paired_bootstrap(differences: Floats, campaigns: npt.ArrayLike, *, seed: int = 0) -> Difference:
    """Resample campaigns with replacement, each with its pairs of all runs: runs of one campaign are not independent.

    Args:
        differences: `[pairs]`, one for each campaign and run. campaigns: `[pairs]`, whose pair it is.

    Raises:
        InvalidInput: no pairs, or other lengths.
    """
    sums, pairs, means = _resampled(differences, campaigns, seed)
    low, high = _interval(means)
    return Difference(
        mean=float(sums.sum() / pairs.sum()),
        low=low,
        high=high,
        p=_p(means),
        wins=int(np.count_nonzero(sums > 0)),
        ties=int(np.count_nonzero(sums == 0)),
        losses=int(np.count_nonzero(sums < 0)),
    )


def mean_interval(
    values: Floats, campaigns: npt.ArrayLike, *, seed: int = 0
) -> tuple[float, float | None, float | None]:
    """Mean and 95% interval of `[pairs]` by the same bootstrap; no interval of fewer than `FEWEST_CAMPAIGNS`.

    Raises:
        InvalidInput: as `paired_bootstrap`.
    """
    sums, pairs, means = _resampled(values, campaigns, seed)
    return float(sums.sum() / pairs.sum()), *_interval(means)


def _resampled(values: Floats, campaigns: npt.ArrayLike, seed: int) -> tuple[Floats, Floats, Floats | None]:
    """Sums and numbers of pairs `[campaigns]`, and the means of the resamples; None: too few to resample."""
    values, campaigns = np.asarray(values, np.float64), np.asarray(campaigns)
    if values.ndim != 1 or values.shape != campaigns.shape or not len(values):
        raise InvalidInput(
            f"differences {values.shape} and campaigns {campaigns.shape} must be one row each, and not empty",
            field="differences",
        )
    _, cluster = np.unique(campaigns, return_inverse=True)
    pairs: Floats = np.bincount(cluster).astype(np.float64)
    sums = np.bincount(cluster, weights=values).astype(np.float64)
    sums[np.abs(sums) < _ALIKE] = 0.0
    if len(pairs) < FEWEST_CAMPAIGNS:
        return sums, pairs, None
    parts = np.array_split(_draws(len(pairs), seed), 20)  # becoming float64, they would fill memory all at once
    return sums, pairs, np.concatenate([(part @ sums) / (part @ pairs) for part in parts])


def _interval(means: Floats | None) -> tuple[float, float] | tuple[None, None]:
    if means is None:
        return None, None
    tail = (1 - CONFIDENCE) / 2
    low, high = np.quantile(means, [tail, 1 - tail])
    return float(low), float(high)


def _p(means: Floats | None) -> float | None:
    if means is None:
        return None
    beyond = min(np.count_nonzero(means <= 0), np.count_nonzero(means >= 0))
    return min(1.0, 2 * (int(beyond) + 1) / (RESAMPLES + 1))


@lru_cache(maxsize=8)
def _draws(clusters: int, seed: int) -> npt.NDArray[np.uint16]:
    """How often each cluster is drawn: `[RESAMPLES, clusters]`. Kept, since every comparison needs the same."""
    rng = np.random.default_rng(seed)
    counts = np.empty((RESAMPLES, clusters), np.uint16)
    for row in counts:
        row[:] = np.bincount(rng.integers(clusters, size=clusters), minlength=clusters)
    return counts


def paired_t_test(ours: Sequence[float], theirs: Sequence[float]) -> float | None:
    """Two-sided p over runs, as the paper has it; None with fewer than two runs, or where all differ by the same.

    Raises:
        InvalidInput: other numbers of runs.
    """
    if len(ours) != len(theirs):
        raise InvalidInput(f"{len(ours)} runs cannot be paired with {len(theirs)}", field="runs")
    differences = np.subtract(ours, theirs)
    if len(differences) < 2 or np.ptp(differences) < _ALIKE:
        return None
    return float(ttest_rel(ours, theirs).pvalue)


def holm(p_values: Sequence[float | None]) -> list[float | None]:
    """Adjusted p-values in the same order (Holm 1979): significant at a level if so for the whole family.

    None was not tested: it stays None, and the family is the others.
    """
    tested = np.array([p for p in p_values if p is not None], np.float64)
    order = np.argsort(tested, kind="stable")
    factors = np.arange(len(tested), 0, -1)
    adjusted = np.empty(len(tested))
    adjusted[order] = np.minimum(1.0, np.maximum.accumulate(tested[order] * factors))
    found = iter(adjusted)
    return [None if p is None else float(next(found)) for p in p_values]
