"""Where held-out seeds would rank among the users of a pool, counted in one pass without keeping a score.

Knows engines, the pool and row numbers; knows nothing of campaigns, of how a model came about, or of what ranks mean.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from lookalike.errors import Cancelled, DataCorrupted, InternalError, InvalidInput
from lookalike.pool.bitmap import Bitmap, count, rows_of
from lookalike.pool.snapshot import Pool
from lookalike.retrieval.placements import Placements, UsersVariance
from lookalike.retrieval.scan import DIVERGED
from lookalike.schema import EncodedColumns
from lookalike.scoring.engine import Engine

# Neighbours in a sample lie on the same pages: of a pool on a disk, so many fewer are read.
RUN = 64
# Users at a time: what is copied out of the pool stays small, and cancelling is prompt.
BLOCK = 1 << 17

Rows = npt.NDArray[np.int64]
Scores = npt.NDArray[np.float32]
Floats = npt.NDArray[np.float64]


@dataclass(frozen=True)
class Fold:
    """An engine and what its model is: `seeds` are rows held out from it, `trained` rows it was trained on."""

    engine: Engine
    seeds: Rows
    trained: Rows


@dataclass(frozen=True)
class Ranks:
    """Of each held-out seed, the share of the pool's users that are ranked before it, half of the ties included.

    Attributes:
        customised: by the model it was held out from, `[seeds]`.
        general: by the general model, among the same users, `[seeds]`.
        variance: of the means of both, as seeds were compared with some users only: those whom the fold's model was
            not trained on.
    """

    customised: Floats
    general: Floats
    variance: UsersVariance

    @property
    def users(self) -> int:
        """Users a seed was compared with, of the fold that has fewest."""
        return self.variance.users


def eligible_rows(skip: Bitmap, num_users: int, most: int, rng: np.random.Generator) -> tuple[Rows, int]:
    """Rows that are not skipped, ascending, and how many there are: all, or about `most` in runs of `RUN`.

    A sample takes one run of each of equal strips; everybody is equally likely to be in it.
    """
    total = num_users - count(skip)
    ranks = None if total <= most else _runs(total, max(1, most // RUN), rng)
    parts: list[Rows] = [np.zeros(0, np.int64)]
    passed = 0
    for piece in rows_of(~skip):
        rows = piece[piece < num_users]
        if ranks is None:
            parts.append(rows)
        else:
            first, last = np.searchsorted(ranks, [passed, passed + len(rows)])
            parts.append(rows[ranks[first:last] - passed])
        passed += len(rows)
    return np.concatenate(parts), total


def _runs(total: int, strips: int, rng: np.random.Generator) -> Rows:
    edges = np.arange(strips + 1, dtype=np.int64) * total // strips
    widths = np.diff(edges)
    starts = rng.integers(0, widths)
    places = (starts[:, None] + np.arange(min(RUN, int(widths.min())))) % widths[:, None]  # around the strip's end
    return np.sort((edges[:-1, None] + places).ravel())


def rank(
    pool: Pool,
    folds: Sequence[Fold],
    general: Engine,
    rows: Rows,
    population: int,
    *,
    visit: Callable[[EncodedColumns], None],
    progress: Callable[[int, int], None] | None = None,
    cancelled: Callable[[], bool] | None = None,
) -> Ranks:
    """Score `rows` with every engine and count who is before each held-out seed.

    A fold's seeds are compared with users its model was not trained on, as they were not: it has learnt to rank its
    negatives low. Only where it was trained on all of `rows` are they compared with all.

    Args:
        rows: eligible users, ascending, no seed among them.
        population: eligible users, of whom `rows` are a uniform sample, or all.
        visit: called with every block of users.
        progress: called with (users scored, all).
        cancelled: asked before every block of every engine.

    Raises:
        Cancelled: `cancelled()` turned true. InternalError: a model gives NaN. DataCorrupted: the pool holds an id
            beyond its vocabulary.
    """
    score = _Scorer(cancelled)
    seeds = [pool.take(fold.seeds) for fold in folds]
    customised = [_Before(score(fold.engine, users)) for fold, users in zip(folds, seeds, strict=True)]
    generally = [_Before(score(general, users)) for users in seeds]
    unseen = [_unseen(rows, fold.trained) for fold in folds]
    placements = Placements([len(fold.seeds) for fold in folds])
    for start in range(0, len(rows), BLOCK):
        block = slice(start, min(start + BLOCK, len(rows)))
        users = pool.take(rows[block])
        visit(users)
        by_general = score(general, users)
        kept = np.stack([one[block] for one in unseen])
        placed = np.stack(
            [
                before.add(score(fold.engine, users), which)
                for before, fold, which in zip(customised, folds, kept, strict=True)
            ]
        )
        generally_placed = np.stack(
            [before.add(by_general, which) for before, which in zip(generally, kept, strict=True)]
        )
        placements.add(kept, placed, generally_placed)
        if progress is not None:
            progress(block.stop, len(rows))
    return Ranks(
        customised=np.concatenate([one.shares() for one in customised]),
        general=np.concatenate([one.shares() for one in generally]),
        variance=placements.variance(population),
    )


def _unseen(rows: Rows, trained: Rows) -> npt.NDArray[np.bool_]:
    unseen = ~np.isin(rows, trained)
    return unseen if unseen.any() else np.ones(len(rows), np.bool_)


class _Before:
    """Counts the users whose score is above, or equal to, each of some scores of seeds."""

    def __init__(self, scores: Scores) -> None:
        self._levels, self._level_of, seeds = np.unique(scores, return_inverse=True, return_counts=True)
        self._above = np.zeros(len(self._levels) + 1, np.int64)  # by how many levels a user is above
        self._equal = np.zeros(len(self._levels) + 1, np.int64)
        self._further = np.concatenate([[0.0], np.cumsum(seeds) / len(scores)])  # share of the seeds on so many levels
        self.users = 0

    def add(self, scores: Scores, which: npt.NDArray[np.bool_]) -> Floats:
        """Count those of some users; the share of the seeds before every one, half of the ties included: `[users]`."""
        below = np.searchsorted(self._levels, scores, side="left")
        reached = np.searchsorted(self._levels, scores, side="right")
        self._above += np.bincount(below[which], minlength=len(self._above))
        self._equal += np.bincount(below[which & (reached > below)], minlength=len(self._equal))
        self.users += int(np.count_nonzero(which))
        placed: Floats = 1 - (self._further[below] + self._further[reached]) / 2
        return placed

    def shares(self) -> Floats:
        """Of the users, the share before each score."""
        above = self.users - np.cumsum(self._above)[:-1]  # who is above j levels or fewer is not above level j
        return ((above + self._equal[:-1] / 2) / max(self.users, 1))[self._level_of]


class _Scorer:
    """Scores users, unless asked to stop, and makes an error of ours of what goes wrong."""

    def __init__(self, cancelled: Callable[[], bool] | None) -> None:
        self._cancelled = cancelled

    def __call__(self, engine: Engine, users: EncodedColumns) -> Scores:
        if self._cancelled is not None and self._cancelled():
            raise Cancelled("the insight was cancelled while scoring")
        try:
            scores = engine.score(users)
        except InvalidInput as error:
            raise DataCorrupted(f"a user of the pool cannot be scored: {error}", field="pool") from error
        if np.isnan(scores).any():
            raise InternalError(DIVERGED)
        return scores
