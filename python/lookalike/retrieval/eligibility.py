"""Who is not to be chosen, as one bitmap. Knows the pool; knows nothing of scores."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from lookalike.pool.bitmap import Bitmap, count, empty_bitmap, mark
from lookalike.pool.exclusions import Exclusions
from lookalike.pool.filters import Filter
from lookalike.pool.snapshot import Pool


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
    opted_out: Exclusions | None = None,
    threads: int = 1,
) -> Skipped:
    """Seeds to leave out, exclusions, who has opted out and who fails the filter, as one bitmap."""
    bitmap = empty_bitmap(pool.num_users) if filter is None else filter.ineligible(pool, threads)
    filtered = 0 if filter is None else count(bitmap)
    for listed in (exclusions, opted_out):
        if listed is not None:
            bitmap |= listed.bitmap
    mark(bitmap, seed_rows)
    return Skipped(bitmap, filtered)
