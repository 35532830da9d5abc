"""One pass over the pool: score a block, push it into the top-K while it is in cache, forget it.

Knows `scoring`, `pool` and `topk`; knows nothing of campaigns or files.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import numpy.typing as npt

from lookalike.errors import Cancelled, InternalError
from lookalike.pool.bitmap import Bitmap, count, empty_bitmap, mark
from lookalike.pool.exclusions import Exclusions
from lookalike.pool.filters import Filter
from lookalike.pool.snapshot import Pool
from lookalike.retrieval.topk import TopK
from lookalike.schema import EncodedColumns


class Engine(Protocol):
    """What scores: `score` gives `[rows]` float32 for a block of `batch_size` users or fewer."""

    name: str
    batch_size: int

    def score(self, users: EncodedColumns) -> npt.NDArray[np.float32]: ...


@dataclass(frozen=True)
class Selection:
    """The exact top K.

    Attributes:
        rows: pool rows `[k]` int64, best first, ties to the lower row.
        scores: `[k]` float32.
        users_scored: users that could have been chosen; with `users_skipped` they are the whole pool.
        ties_at_cutoff: users scored exactly at the last score, chosen or not; 0 for an empty selection.
        select_seconds: spent in the top-K, by this run.
    """

    rows: npt.NDArray[np.int64]
    scores: npt.NDArray[np.float32]
    users_scored: int
    users_skipped: int
    ties_at_cutoff: int
    select_seconds: float


@dataclass(frozen=True)
class Skipped:
    """Rows that are not to be chosen, for any reason; `filtered` of them for failing the filter."""

    bitmap: Bitmap
    filtered: int


def skipped(
    pool: Pool,
    seed_rows: npt.NDArray[np.int64],
    exclusions: Exclusions | None = None,
    filter: Filter | None = None,  # noqa: A002
    *,
    threads: int = 1,
) -> Skipped:
    """Seeds to leave out, exclusions and who fails the filter, as one bitmap."""
    bitmap = empty_bitmap(pool.num_users) if filter is None else filter.ineligible(pool, threads)
    filtered = 0 if filter is None else count(bitmap)
    if exclusions is not None:
        bitmap |= exclusions.bitmap
    mark(bitmap, seed_rows)
    return Skipped(bitmap, filtered)


def select(
    pool: Pool,
    engine: Engine,
    top: TopK,
    *,
    save: Callable[[TopK], None] | None = None,
    progress: Callable[[int, int], None] | None = None,
    cancelled: Callable[[], bool] | None = None,
) -> Selection:
    """Score every user from row `top.rows_seen` on, and finish.

    Args:
        top: new, or as it was after a stretch of an earlier run over the same pool with the same engine.
        save: called after every stretch; `top.rows_seen` is then the watermark, for rows are scored in order.
        progress: called with (rows scored, all) after every block.
        cancelled: asked before every block.

    Raises:
        Cancelled: `cancelled()` turned true. InternalError: the model gives NaN.
    """
    total = pool.num_users
    select_seconds = 0.0
    for start, stop in stretches(pool.shard_ends, engine.batch_size, top.rows_seen):
        select_seconds += _score(pool, engine, top, start, stop, progress, cancelled)
        if save is not None:
            save(top)
    started = time.perf_counter()
    rows, scores = top.finish(sorted=True)
    select_seconds += time.perf_counter() - started
    if top.rows_seen != total:
        raise InternalError(f"{top.rows_seen} of {total} users were scored")
    return Selection(
        rows=rows.astype(np.int64),
        scores=scores,
        users_scored=top.rows_seen - top.rows_skipped,
        users_skipped=top.rows_skipped,
        ties_at_cutoff=top.ties_at_cutoff,
        select_seconds=select_seconds,
    )


def stretches(ends: Sequence[int], batch_size: int, first: int = 0) -> Iterator[tuple[int, int]]:
    """Rows `first` to the last in stretches of about a shard, cut where batches of the whole pool are cut.

    Scores depend by rounding on where batches begin; a run that goes on must cut as one that was never stopped.
    """
    for end in ends:
        stop = end if end == ends[-1] else end - end % batch_size
        if first < stop:
            yield first, stop
            first = stop


def _score(
    pool: Pool,
    engine: Engine,
    top: TopK,
    start: int,
    stop: int,
    progress: Callable[[int, int], None] | None,
    cancelled: Callable[[], bool] | None,
) -> float:
    """Score and push rows `start:stop`; returns the seconds spent pushing."""
    seconds = 0.0
    for first_row in range(start, stop, engine.batch_size):
        if cancelled is not None and cancelled():
            raise Cancelled("the expansion was cancelled while scoring")
        scores = engine.score(pool.read(first_row, min(first_row + engine.batch_size, stop)))
        if np.isnan(scores).any():
            raise InternalError("the customised model scores NaN; the general model or its inner rates have diverged")
        started = time.perf_counter()
        top.push(scores, first_row)
        seconds += time.perf_counter() - started
        if progress is not None:
            progress(first_row + len(scores), pool.num_users)
    return seconds
