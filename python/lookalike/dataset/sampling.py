"""Negative sampling: users drawn at random from a pool, never from those already taken.

Knows row numbers only.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from lookalike.errors import InvalidInput

Rows = npt.NDArray[np.int64]


def sample_rows(
    num_users: int, count: int, exclude_rows: npt.NDArray[np.integer[Any]], rng: np.random.Generator
) -> Rows:
    """`count` distinct rows of `0:num_users`, none of `exclude_rows`, uniform over all such choices, in random order.

    Time and memory grow with `count` and the exclusions, not with `num_users`.

    Raises:
        InvalidInput: fewer than `count` rows are left, or an excluded row is not within the pool.
    """
    taken = np.unique(np.asarray(exclude_rows, np.int64))
    if taken.size and not (taken[0] >= 0 and taken[-1] < num_users):
        raise InvalidInput(f"an excluded row is not within the pool's 0:{num_users}", field="exclude_rows")
    left = num_users - taken.size
    if not 0 <= count <= left:
        raise InvalidInput(
            f"cannot draw {count} users: {left} of {num_users} are left; give fewer seeds, fewer negatives a seed, "
            "or a larger pool",
            field="count",
        )
    ranks = _distinct(left, count, rng)
    # The r-th free row lies behind as many taken ones as have at most r free rows before them.
    return ranks + np.searchsorted(taken - np.arange(taken.size), ranks, side="right")


def _distinct(total: int, count: int, rng: np.random.Generator) -> Rows:
    """`count` distinct numbers of `0:total`, uniform, in random order."""
    if 2 * count > total:
        return rng.permutation(total)[:count]
    # The first `count` different values of a stream of independent draws; at most half are hit, so few repeat.
    drawn = np.zeros(0, np.int64)
    while drawn.size < count:
        drawn = np.concatenate([drawn, rng.integers(total, size=2 * (count - drawn.size) + 8)])
        drawn = drawn[np.sort(np.unique(drawn, return_index=True)[1])]
    return drawn[:count]
