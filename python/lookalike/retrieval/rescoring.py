"""From an engine's scores, which are near, to the very top K of the reference's.

An engine that is fast rounds. What it ranks best is scored again by the reference, TorchScript in float32 on the CPU,
as far down as anybody could be who belongs to the top K, if no score is off by more than a margin: twice the largest
error among all that are scored again, a sample of the whole pool and at least `LEAST` of the best among them. So the
bound is statistical: an engine that is far off for few users who are like none of those would go unnoticed.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import numpy.typing as npt

from lookalike.errors import Cancelled, InternalError
from lookalike.pool.bitmap import Bitmap, marked
from lookalike.pool.snapshot import Pool
from lookalike.retrieval.scan import DIVERGED
from lookalike.retrieval.topk import TopK
from lookalike.scoring.compiled import CPU_BATCH
from lookalike.scoring.engine import Engine

# The best that are scored again in any case: of fewer, the largest error tells little.
LEAST = 2 * CPU_BATCH
# The sample of the pool: so many places, and neighbours at each, who lie on the same pages.
PLACES, NEIGHBOURS = 64, 256
# Times the largest error seen.
SAFETY = 2.0
# Of a score, for rounding it to float32, of which it holds whatever the model: 8 units in the last place.
ROUNDING = 2.0**-20

# What scores that underflow count as.
_LEAST_SCORE: Any = np.finfo(np.float32).tiny

Scores = npt.NDArray[np.float32]
Rows = npt.NDArray[np.int64]


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

    rows: Rows
    scores: Scores
    users_scored: int
    users_skipped: int
    ties_at_cutoff: int
    users_rescored: int = 0
    epsilon: float = 0.0
    largest_error: float = 0.0

    @classmethod
    def of(cls, top: TopK, threads: int = 1) -> Selection:
        """The top K of the reference's own scores."""
        rows, scores = top.finish(sorted=True, threads=threads)
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
    threads: int = 1,
    progress: Callable[[int, int], None] | None = None,
    cancelled: Callable[[], bool] | None = None,
) -> Selection:
    """The reference's top `k` from an engine's top `candidates(k)`.

    Args:
        top: of the whole pool, scored by `engine`.
        k: not more than there are users.
        skip: the bitmap that `top` was made with.
        progress: called with (users looked at, most that may have to be); where scores are crowded, the second number
            grows by the pool, once.
        cancelled: asked before every batch.

    Raises:
        Cancelled: `cancelled()` turned true. InternalError: the model gives NaN.
    """
    found, near = top.finish(sorted=True, threads=threads)
    rows = found.astype(np.int64)
    again = _Again(pool, engine, reference, progress, cancelled, total=len(rows))
    exact = np.empty(len(rows), np.float32)
    done, wanted, cutoff = 0, min(len(rows), max(k, LEAST)), -np.inf
    while done < wanted:
        exact[done:wanted] = again.score(rows[done:wanted], near[done:wanted])
        done = wanted
        cutoff = _cutoff(exact[:done], k)
        wanted += int(np.count_nonzero(highest(near[done:], again.epsilon) >= cutoff))  # the first: they descend
    eligible = top.rows_seen - top.rows_skipped
    if len(rows) < eligible and highest(near[-1:], again.epsilon)[0] >= cutoff:
        # Too many have about the score of the cut-off to be kept: users who are alike, or a model that saturates.
        return _among_all(pool, engine, again, k, skip, rows[:done], exact[:done], threads)
    again.finish()
    rows, scores = best(rows[:done], exact[:done], k)
    return Selection(
        rows=rows,
        scores=scores,
        users_scored=eligible,
        users_skipped=top.rows_skipped,
        ties_at_cutoff=int(np.count_nonzero(exact[:done] == scores[-1:])) if len(scores) else 0,
        users_rescored=again.users,
        epsilon=again.epsilon,
        largest_error=again.largest_error,
    )


def score_exactly(pool: Pool, reference: Engine, rows: Rows, *, cancelled: Callable[[], bool] | None = None) -> Scores:
    """The reference's scores of pool rows, in that order: `[rows]`.

    Raises:
        Cancelled: `cancelled()` turned true. InternalError: the model gives NaN.
    """
    exact = np.empty(len(rows), np.float32)
    order = np.argsort(rows)  # neighbours share pages
    for start in range(0, len(rows), CPU_BATCH):
        if cancelled is not None and cancelled():
            raise Cancelled("the expansion was cancelled while scoring again")
        batch = order[start : start + CPU_BATCH]
        exact[batch] = reference.score(pool.take(rows[batch]))
    if np.isnan(exact).any():
        raise InternalError(DIVERGED)
    return exact


def highest(near: Scores, epsilon: float) -> npt.NDArray[np.float64]:
    """What the reference might give those whom an engine gives `near`: no less for more."""
    if epsilon >= 1:  # the engine tells nothing
        return np.full(len(near), np.inf)
    scores, rest = _both(near)
    return scores + scores * (epsilon * rest + ROUNDING)


def _sample(num_users: int) -> Rows:
    """Rows here and there: always the same."""
    if num_users <= PLACES * NEIGHBOURS:
        return np.arange(num_users)
    places = np.random.default_rng(num_users).integers(0, num_users // NEIGHBOURS, PLACES)
    return (np.unique(places)[:, None] * NEIGHBOURS + np.arange(NEIGHBOURS)).ravel()


def _cutoff(scores: Scores, k: int) -> float:
    """The k-th best of the scores; -inf if there are fewer."""
    return float(-np.partition(-scores, k - 1)[k - 1]) if len(scores) >= k else -np.inf


def best(rows: Rows, scores: Scores, k: int) -> tuple[Rows, Scores]:
    """The k best in order, ties to the lower row: as integers, which sort in a tenth of the time of two keys."""
    bits = np.abs(scores).view(np.uint32)  # those of floats from 0 on ascend with them
    keys = (np.uint64(0xFFFFFFFF) - bits.astype(np.uint64)) << np.uint64(32) | rows.astype(np.uint64)
    keys = np.sort(np.partition(keys, k)[:k] if k < len(keys) else keys)
    bits = (np.uint64(0xFFFFFFFF) - (keys >> np.uint64(32))).astype(np.uint32)
    return (keys & np.uint64(0xFFFFFFFF)).astype(np.int64), bits.view(np.float32)


def _among_all(
    pool: Pool, engine: Engine, again: _Again, k: int, skip: Bitmap | None, rows: Rows, exact: Scores, threads: int
) -> Selection:
    """Another pass over the pool: everyone who could reach the cut-off is scored again there and then.

    `rows` have been already, as `exact`; the k-th best of them is where the cut-off begins.
    """
    cutoff = _cutoff(exact, k)
    order = np.argsort(rows)
    rows, exact = rows[order], exact[order]
    known_users = again.users
    while True:
        again.users, again.done, again.total = known_users, 0, pool.num_users
        epsilon = SAFETY * again.epsilon  # larger than what is needed now, for what the pass may find
        top = TopK(k, num_rows=pool.num_users, skip=skip)
        for start in range(0, pool.num_users, engine.batch_size):
            again.poll()
            stop = min(start + engine.batch_size, pool.num_users)
            near = engine.score(pool.read(start, stop))
            reaching = highest(near, epsilon) >= max(cutoff, top.core.threshold)
            if skip is not None:
                reaching &= ~marked(skip, np.arange(start, stop))
            scores = np.full(len(near), -np.inf, np.float32)
            first, last = np.searchsorted(rows, (start, stop))
            known = rows[first:last] - start
            reaching[known] = False
            scores[known] = exact[first:last]
            asked = np.flatnonzero(reaching)
            scores[asked] = again.score(start + asked, near[asked])
            top.push(scores, start)
            again.done += stop - start - len(asked)
        if again.epsilon <= epsilon:  # else some may have been passed over who could have reached it
            break
    again.finish()
    # None of them is -inf: at least k are known.
    return replace(
        Selection.of(top, threads), users_rescored=again.users, epsilon=epsilon, largest_error=again.largest_error
    )


class _Again:
    """Scores users by the reference, and keeps account of how far the engine was off.

    Attributes:
        users: scored again so far, the sample among them.
        largest_error: in the measure of `Selection.epsilon`.
        done, total: for progress.
    """

    def __init__(
        self,
        pool: Pool,
        engine: Engine,
        reference: Engine,
        progress: Callable[[int, int], None] | None,
        cancelled: Callable[[], bool] | None,
        total: int,
    ) -> None:
        """Begins with a sample of the pool."""
        self._pool = pool
        self._reference = reference
        self._progress = progress
        self._cancelled = cancelled
        self.users = 0
        self.largest_error = 0.0
        self.done = 0
        self._sampled = np.zeros(0, np.int64)
        sampled = _sample(pool.num_users)
        self.total = total + len(sampled)
        self.score(sampled, engine.score(pool.take(sampled)))
        self._sampled = sampled

    @property
    def epsilon(self) -> float:
        """What the engine's scores are taken to be off by at most, for what has been seen."""
        return SAFETY * self.largest_error

    def poll(self) -> None:
        """Report, and stop if asked to."""
        if self._cancelled is not None and self._cancelled():
            raise Cancelled("the expansion was cancelled while scoring again")
        if self._progress is not None:
            self._progress(min(self.done, self.total), self.total)

    def finish(self) -> None:
        """Report that nobody else has to be looked at."""
        self.done = self.total
        self.poll()

    def score(self, rows: Rows, near: Scores) -> Scores:
        """The reference's scores of pool rows, which the engine gave `near`: `[rows]`."""
        exact = np.empty(len(rows), np.float32)
        order = np.argsort(rows)  # neighbours share pages
        for start in range(0, len(rows), CPU_BATCH):
            self.poll()
            batch = order[start : start + CPU_BATCH]
            exact[batch] = self._reference.score(self._pool.take(rows[batch]))
            self.done += len(batch)
        places = np.searchsorted(self._sampled, rows)
        self.users += len(rows) - int(np.count_nonzero(np.append(self._sampled, -1)[places] == rows))
        if np.isnan(exact).any():
            raise InternalError(DIVERGED)
        scores, rest = _both(near)
        errors = (np.abs(np.maximum(exact, _LEAST_SCORE) - scores) - ROUNDING * scores) / (scores * rest)
        self.largest_error = max(self.largest_error, float(errors.max(initial=0.0)))
        return exact


def _both(near: Scores) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.float64]]:
    """s and 1 - s, neither of them 0."""
    scores = np.maximum(near.astype(np.float64), _LEAST_SCORE)
    return scores, np.maximum(1 - scores, 2.0**-24)
