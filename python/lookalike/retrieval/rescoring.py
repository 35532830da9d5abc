"""From an engine's scores, which are near, to the very top K of the reference's.

An engine that is fast rounds. What it ranks best is scored again by the reference, TorchScript in float32 on the CPU,
as far down as anybody could be who belongs to the top K if no score is off by more than a margin. The margin is twice
the largest error among all that were scored again: a statistical bound, over users near the cut-off and better, at
least `LEAST` of them.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import numpy.typing as npt

from lookalike.errors import Cancelled, InternalError
from lookalike.pool.bitmap import Bitmap
from lookalike.pool.snapshot import Pool
from lookalike.retrieval.topk import TopK
from lookalike.scoring.compiled import CPU_BATCH
from lookalike.scoring.engine import Engine

# Scored again in any case: of fewer, the largest error tells little.
LEAST = 2 * CPU_BATCH
# Times the largest error seen.
SAFETY = 2.0
# Of a score, for rounding it to float32, of which it holds whatever the model: 8 units in the last place.
ROUNDING = 2.0**-20

Scores = npt.NDArray[np.float32]
Rows = npt.NDArray[np.integer[Any]]


@dataclass(frozen=True)
class Selection:
    """The exact top K.

    Attributes:
        rows: pool rows `[k]` int64, best first, ties to the lower row.
        scores: `[k]` float32, the reference's.
        users_scored: users that could have been chosen; with `users_skipped` they are the whole pool.
        ties_at_cutoff: users scored exactly at the last score, chosen or not; 0 for an empty selection.
        users_rescored: by the reference, after an engine that is near; 0 if the engine is the reference.
        epsilon: no score s of the engine was taken to be off by more than s (epsilon (1 - s) + 2^-20); 0 likewise.
        largest_error: in the same measure, among `users_rescored`.
    """

    rows: npt.NDArray[np.int64]
    scores: Scores
    users_scored: int
    users_skipped: int
    ties_at_cutoff: int
    users_rescored: int = 0
    epsilon: float = 0.0
    largest_error: float = 0.0

    @classmethod
    def of(cls, top: TopK) -> Selection:
        """The top K of the reference's own scores."""
        rows, scores = top.finish(sorted=True)
        return cls(
            rows=rows.astype(np.int64),
            scores=scores,
            users_scored=top.rows_seen - top.rows_skipped,
            users_skipped=top.rows_skipped,
            ties_at_cutoff=top.ties_at_cutoff,
        )


def candidates(k: int, num_users: int) -> int:
    """How many to keep of an engine's scores that are near: more than are scored again, unless scores are crowded."""
    return min(num_users, k + max(k // 4, 2 * LEAST))


def rescore(
    pool: Pool,
    engine: Engine,
    reference: Engine,
    top: TopK,
    k: int,
    *,
    skip: Bitmap | None = None,
    progress: Callable[[int, int], None] | None = None,
    cancelled: Callable[[], bool] | None = None,
) -> Selection:
    """The reference's top `k` from an engine's top `candidates(k)`.

    Args:
        top: of the whole pool, scored by `engine`.
        skip: the bitmap that `top` was made with.
        progress: called with (users scored again, all that are to be so far).
        cancelled: asked before every batch.

    Raises:
        Cancelled: `cancelled()` turned true. InternalError: the model gives NaN.
    """
    rows, near = top.finish(sorted=True)
    again = _Again(pool, reference, progress, cancelled)
    exact = np.empty(len(rows), np.float32)
    done, wanted = 0, min(len(rows), max(k, LEAST))
    cutoff = -np.inf
    while done < wanted:
        exact[done:wanted] = again.score(rows[done:wanted], near[done:wanted])
        done = wanted
        cutoff = _cutoff(exact[:done], k)
        wanted = int(np.count_nonzero(again.highest(near) >= cutoff))  # of the first: they descend
    eligible = top.rows_seen - top.rows_skipped
    if len(rows) < eligible and again.highest(near[-1:])[0] >= cutoff:
        # Too many have about the score of the cut-off to be kept: users who are alike, or a model that saturates.
        return _among_all(pool, engine, again, k, skip, cutoff)
    best = np.lexsort((rows[:done], -exact[:done]))[:k]
    return Selection(
        rows=rows[best].astype(np.int64),
        scores=exact[best],
        users_scored=eligible,
        users_skipped=top.rows_skipped,
        ties_at_cutoff=int(np.count_nonzero(exact[:done] == exact[best[-1:]])) if len(best) else 0,
        **again.account(),
    )


def _cutoff(scores: Scores, k: int) -> float:
    """The k-th best of the scores; -inf if there are fewer."""
    return float(-np.partition(-scores, k - 1)[k - 1]) if len(scores) >= k else -np.inf


def _among_all(pool: Pool, engine: Engine, again: _Again, k: int, skip: Bitmap | None, cutoff: float) -> Selection:
    """Another pass over the pool: everyone who could reach the cut-off is scored again there and then."""
    while True:
        epsilon = again.epsilon
        top = TopK(k, num_rows=pool.num_users, skip=skip)
        for start in range(0, pool.num_users, engine.batch_size):
            near = engine.score(pool.read(start, min(start + engine.batch_size, pool.num_users)))
            reaching = np.flatnonzero(again.highest(near) >= max(cutoff, top.core.threshold))
            scores = np.full(len(near), -np.inf, np.float32)
            scores[reaching] = again.score(start + reaching, near[reaching])
            top.push(scores, start)
        if again.epsilon == epsilon:  # else some may have been passed over who could have reached it
            return replace(Selection.of(top), **again.account())


class _Again:
    """Scores users by the reference, and keeps account of how far the engine was off."""

    def __init__(
        self,
        pool: Pool,
        reference: Engine,
        progress: Callable[[int, int], None] | None,
        cancelled: Callable[[], bool] | None,
    ) -> None:
        self._pool = pool
        self._reference = reference
        self._progress = progress
        self._cancelled = cancelled
        self._users = 0
        self._largest_error = 0.0

    @property
    def epsilon(self) -> float:
        """What the engine's scores are taken to be off by at most; see `Selection`."""
        return SAFETY * self._largest_error

    def account(self) -> dict[str, Any]:
        """For the selection."""
        return {"users_rescored": self._users, "epsilon": self.epsilon, "largest_error": self._largest_error}

    def highest(self, near: Scores) -> npt.NDArray[np.float64]:
        """What the reference might give those whom the engine gives `near`: no less for more."""
        if self.epsilon >= 1:  # the engine tells nothing
            return np.ones(len(near))
        scores, rest = _both(near)
        return scores + scores * (self.epsilon * rest + ROUNDING)

    def score(self, rows: Rows, near: Scores) -> Scores:
        """The reference's scores of pool rows, which the engine gave `near`: `[rows]`."""
        exact = np.empty(len(rows), np.float32)
        order = np.argsort(rows)  # neighbours share pages
        total = self._users + len(rows)
        for start in range(0, len(rows), self._reference.batch_size):
            if self._cancelled is not None and self._cancelled():
                raise Cancelled("the expansion was cancelled while scoring again")
            batch = order[start : start + self._reference.batch_size]
            exact[batch] = self._reference.score(self._pool.take(rows[batch]))
            self._users += len(batch)
            if self._progress is not None:
                self._progress(self._users, total)
        if np.isnan(exact).any():
            raise InternalError("the customised model scores NaN; the general model or its inner rates have diverged")
        scores, rest = _both(near)
        errors = (np.abs(exact - scores) - ROUNDING * scores) / (scores * rest)
        self._largest_error = max(self._largest_error, float(errors.max(initial=0.0)))
        return exact


def _both(near: Scores) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.float64]]:
    """s and 1 - s, neither of them 0."""
    scores = np.maximum(near.astype(np.float64), np.finfo(np.float32).tiny)
    return scores, np.maximum(1 - scores, 2.0**-24)
