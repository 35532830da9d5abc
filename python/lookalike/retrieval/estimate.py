"""Numbers with their intervals: a share, a mean, a whole distribution function. Arrays in, arrays out.

Knows nothing of users, seeds or models. All intervals are of 95%.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Final

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.float64]
Counts = npt.NDArray[np.int64]

Z: Final = 1.959964  # of the normal distribution, two-sided 95%

# 95% points of sup_t n KL(F_n(t), F(t)), simulated 2,000 times (n = 20,000) to 200,000 times (n <= 20); the last is
# extrapolated. They are free of F, and grow with log log n.
_BAND_SIZES: Final = (5, 10, 20, 50, 100, 200, 500, 1_000, 5_000, 20_000, 1_000_000)
_BAND_LIMITS: Final = (4.45, 4.72, 4.96, 5.22, 5.36, 5.51, 5.69, 5.84, 6.00, 6.15, 6.50)
# Halvings of an interval no longer than 1.
_BISECTIONS: Final = 50


@dataclass(frozen=True)
class Estimate:
    """A number and its 95% interval."""

    value: float
    low: float
    high: float


def wilson(hits: Counts, total: int) -> tuple[Floats, Floats]:
    """Lower and upper end of a share's interval (Wilson 1927) for each of `hits` out of `total`: `[hits]` each."""
    share = hits / total
    centre = (share + Z**2 / (2 * total)) / (1 + Z**2 / total)
    half = Z / (1 + Z**2 / total) * np.sqrt(share * (1 - share) / total + Z**2 / (4 * total**2))
    return np.where(hits == 0, 0.0, centre - half), np.where(hits == total, 1.0, centre + half)


def share_of(hits: int, total: int) -> Estimate:
    """A share with its Wilson interval."""
    low, high = wilson(np.array([hits]), total)
    return Estimate(hits / total, float(low[0]), float(high[0]))


def band(hits: Counts, total: int) -> tuple[Floats, Floats]:
    """Lower and upper end of a band that holds the whole distribution function with 95%: `[hits]` each.

    All values F that the empirical F_n = hits / total is near to in the sense of Berk and Jones (1979), as Owen (1995)
    makes bands of it: narrow at both ends, where a band of one width (Kolmogorov's) says nothing.
    """
    share = hits / total
    limit = float(np.interp(math.log(total), np.log(_BAND_SIZES), _BAND_LIMITS)) / total
    return _furthest(share, np.zeros_like(share), limit), _furthest(share, np.ones_like(share), limit)


def _furthest(share: Floats, end: Floats, limit: float) -> Floats:
    """Between each share and `end`, the value furthest from it whose divergence is within the limit."""
    near, far = share.copy(), end.copy()
    for _ in range(_BISECTIONS):
        middle = (near + far) / 2
        inside = divergence(share, middle) <= limit
        near, far = np.where(inside, middle, near), np.where(inside, far, middle)
    return np.where(share == end, end, near)


def divergence(share: Floats, expected: Floats) -> Floats:
    """Kullback-Leibler divergence of Bernoulli distributions, in nats."""
    with np.errstate(divide="ignore", invalid="ignore"):
        hit = np.where(share > 0, share * np.log(share / expected), 0.0)
        miss = np.where(share < 1, (1 - share) * np.log((1 - share) / (1 - expected)), 0.0)
    total: Floats = hit + miss
    return total


def mean_of(values: Floats, *, least_error: float = 0.0, other_variance: float = 0.0, other_count: int = 2) -> Estimate:
    """A mean with Student's interval; of one value it is infinite.

    Args:
        least_error: the least standard error it is taken to have.
        other_variance: what a second sample, of `other_count`, adds to its variance; freedom as Welch (1947) has it.
    """
    count = len(values)
    mean = float(values.mean())
    if count < 2 or math.isinf(other_variance):
        return Estimate(mean, -math.inf, math.inf)
    own = max(float(values.std(ddof=1)) / math.sqrt(count), least_error) ** 2
    both = own + other_variance
    spent = own**2 / (count - 1) + other_variance**2 / max(other_count - 1, 1)
    half = _student(both**2 / spent if spent > 0 else count - 1) * math.sqrt(both)
    return Estimate(mean, mean - half, mean + half)


def _student(freedom: float) -> float:
    """Student's two-sided 95% point by its expansion (Abramowitz and Stegun 26.7.5), within 1% from 5 on."""
    return Z + (Z**3 + Z) / (4 * freedom) + (5 * Z**5 + 16 * Z**3 + 3 * Z) / (96 * freedom**2)


def two_sided(z: Floats) -> Floats:
    """p-values of standard normal deviates."""
    return np.array([math.erfc(abs(one) / math.sqrt(2)) for one in z.tolist()], np.float64)


def discoveries(p_values: Floats, rate: float) -> npt.NDArray[np.bool_]:
    """Which may be called findings, so that no more than `rate` of them are false (Benjamini and Hochberg 1995)."""
    order = np.argsort(p_values)
    allowed = rate * np.arange(1, len(p_values) + 1) / max(len(p_values), 1)
    passed = np.flatnonzero(p_values[order] <= allowed)
    found = np.zeros(len(p_values), np.bool_)
    found[order[: passed[-1] + 1 if len(passed) else 0]] = True
    return found
