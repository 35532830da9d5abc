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
# Two systems that compute the same by other sums.
_ALIKE = 1e-12


@dataclass(frozen=True)
class Difference:
    """Of two systems in one metric over paired campaigns.

    Attributes:
        mean: over all pairs. low, high: 95% interval of it by bootstrap.
        p: that there is no difference, two-sided, by the same bootstrap.
        wins, ties, losses: campaigns, by their mean over runs.
    """

    mean: float
    low: float
    high: float
    p: float
    wins: int
    ties: int
    losses: int


def paired_bootstrap(differences: Floats, campaigns: npt.ArrayLike, *, seed: int = 0) -> Difference:
    """Resample campaigns with replacement, each with its pairs of all runs: runs of one campaign are not independent.

    Args:
        differences: `[pairs]`, one for each campaign and run. campaigns: `[pairs]`, whose pair it is.

    Raises:
        InvalidInput: no pairs, or other lengths.
    """
    sums, pairs, means = _resampled(differences, campaigns, seed)
    low, high = _interval(means)
    beyond = min(np.count_nonzero(means <= 0), np.count_nonzero(means >= 0))
    return Difference(
        mean=float(sums.sum() / pairs.sum()),
        low=low,
        high=high,
        p=min(1.0, 2 * (int(beyond) + 1) / (RESAMPLES + 1)),
        wins=int(np.count_nonzero(sums > 0)),
        ties=int(np.count_nonzero(sums == 0)),
        losses=int(np.count_nonzero(sums < 0)),
    )


def mean_interval(values: Floats, campaigns: npt.ArrayLike, *, seed: int = 0) -> tuple[float, float, float]:
    """Mean and 95% interval of `[pairs]` by the same bootstrap.

    Raises:
        InvalidInput: as `paired_bootstrap`.
    """
    sums, pairs, means = _resampled(values, campaigns, seed)
    return float(sums.sum() / pairs.sum()), *_interval(means)


def _resampled(values: Floats, campaigns: npt.ArrayLike, seed: int) -> tuple[Floats, Floats, Floats]:
    """Sums and numbers of pairs `[campaigns]`, and the means of the resamples."""
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
    parts = np.array_split(_draws(len(pairs), seed), 20)  # becoming float64, they would fill memory all at once
    return sums, pairs, np.concatenate([(part @ sums) / (part @ pairs) for part in parts])


def _interval(means: Floats) -> tuple[float, float]:
    tail = (1 - CONFIDENCE) / 2
    low, high = np.quantile(means, [tail, 1 - tail])
    return float(low), float(high)


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


def holm(p_values: Sequence[float]) -> list[float]:
    """Adjusted p-values in the same order (Holm 1979): significant at a level if so for the whole family."""
    order = np.argsort(p_values, kind="stable")
    factors = np.arange(len(p_values), 0, -1)
    adjusted = np.empty(len(p_values))
    adjusted[order] = np.minimum(1.0, np.maximum.accumulate(np.asarray(p_values, np.float64)[order] * factors))
    return [float(p) for p in adjusted]
