"""Sets of rows as packed bits: row r is bit `r & 7` of byte `r >> 3`, as the top-K takes them. Knows no pools."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import numpy.typing as npt

Bitmap = npt.NDArray[np.uint8]

_PIECE = 1 << 17  # bytes: a million rows at a time


def empty_bitmap(total: int) -> Bitmap:
    """`total` bits, none set: `[ceil(total / 8)]`."""
    return np.zeros((total + 7) // 8, np.uint8)


def mark(bitmap: Bitmap, rows: npt.NDArray[np.int64]) -> None:
    """Set the bit of each of `rows`; they may repeat."""
    np.bitwise_or.at(bitmap, rows >> 3, np.left_shift(1, rows & 7).astype(np.uint8))


def marked(bitmap: Bitmap, rows: npt.NDArray[np.int64]) -> npt.NDArray[np.bool_]:
    """Whether the bit of each of `rows` is set."""
    bits: npt.NDArray[np.bool_] = (bitmap[rows >> 3] >> (rows & 7).astype(np.uint8)) & 1 != 0
    return bits


def count(bitmap: Bitmap) -> int:
    """Bits set."""
    return int(np.bitwise_count(bitmap).sum(dtype=np.int64))


def rows_of(bitmap: Bitmap) -> Iterator[npt.NDArray[np.int64]]:
    """Rows of the set bits, ascending, a piece at a time; none is empty."""
    for start in range(0, len(bitmap), _PIECE):
        piece = bitmap[start : start + _PIECE]
        if piece.any():
            yield np.flatnonzero(np.unpackbits(piece, bitorder="little")) + start * 8
