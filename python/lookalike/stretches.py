"""Stretches of a long array: the one way to gather many of them at once. Knows numpy only."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt


def places(starts: npt.NDArray[np.integer[Any]], lengths: npt.NDArray[np.integer[Any]]) -> npt.NDArray[np.int64]:
    """The numbers `start, start + 1, ...`, `length` of them, for each pair in turn: `[lengths.sum()]`."""
    ends = np.cumsum(lengths, dtype=np.int64)
    return np.repeat(starts - (ends - lengths), lengths) + np.arange(ends[-1] if len(ends) else 0)
