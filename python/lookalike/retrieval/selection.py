"""One pass over the pool: score a block, push it into the top-K while it is in cache, forget it.

Knows `scoring`, `pool` and `topk`; knows nothing of campaigns or files.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import numpy.typing as npt

from lookalike.errors import Cancelled, InternalError
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
        select_seconds: spent in the top-K.
    """

    rows: npt.NDArray[np.int64]
    scores: npt.NDArray[np.float32]
    users_scored: int
    users_skipped: int
    ties_at_cutoff: int
    select_seconds: float


def select(
    pool: Pool,
    engine: Engine,
    k: int,
    skip_rows: npt.NDArray[np.int64],
    *,
    progress: Callable[[int, int], None] | None = None,
    cancelled: Callable[[], bool] | None = None,
) -> Selection:
    """Score every user and keep the best `k` who are not in `skip_rows`.

    Raises:
        Cancelled: `cancelled()`, asked once a block, turned true. InternalError: the model gives NaN.
    """
    total = pool.num_users
    top = TopK(min(k, total), num_rows=total, skip=row_bitmap(skip_rows, total) if len(skip_rows) else None)
    select_seconds = 0.0
    for first_row, block in pool.blocks(engine.batch_size):
        if cancelled is not None and cancelled():
            raise Cancelled("the expansion was cancelled while scoring")
        scores = engine.score(block)
        if np.isnan(scores).any():
            raise InternalError("the customised model scores NaN; the general model or its inner rates have diverged")
        started = time.perf_counter()
        top.push(scores, first_row)
        select_seconds += time.perf_counter() - started
        if progress is not None:
            progress(first_row + block.length, total)
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


def row_bitmap(rows: npt.NDArray[np.int64], total: int) -> npt.NDArray[np.uint8]:
    """`total` bits, bit `r & 7` of byte `r >> 3` set for each of `rows`."""
    bitmap = np.zeros((total + 7) // 8, np.uint8)
    np.bitwise_or.at(bitmap, rows >> 3, np.left_shift(1, rows & 7).astype(np.uint8))
    return bitmap
