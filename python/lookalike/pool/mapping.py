"""A file in the address space whose pages come when they are asked for, many at once; the kernel guesses at none.

Knows files and arrays; knows nothing of what is in them.
"""

from __future__ import annotations

import ctypes
import mmap
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa

Positions = npt.NDArray[np.int64]

_PAGE = mmap.PAGESIZE
# What lies no further apart is read as one: at the 1 GB/s of a plain SSD, 32 KiB more take as long as one request more.
_GAP = max(1, (32 << 10) // _PAGE)
# One call reads no more than the device's read-ahead, which is 128 KiB unless somebody raised it.
_CHUNK = max(1, (128 << 10) // _PAGE)


def _find_madvise() -> Callable[[int, int, int], int] | None:
    """The C library's, for Python's own is a method of `mmap.mmap`, which holds a file descriptor for every file."""
    if not (hasattr(mmap, "MADV_RANDOM") and hasattr(mmap, "MADV_WILLNEED")):
        return None
    function: Any = getattr(ctypes.CDLL(None), "madvise", None)
    if function is not None:
        function.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int]
    return function  # type: ignore[no-any-return]


_madvise = _find_madvise()


def map_file(path: Path) -> pa.Buffer:
    """The whole file, read-only, without a file descriptor; unmapped with the last view of it.

    The kernel reads nothing around what is touched: around each of a few scattered pages it would read megabytes. So
    whoever is about to touch more than a page calls `fetch` first, or waits for one page at a time.

    Raises:
        OSError: it cannot be opened or mapped.
    """
    with pa.memory_map(str(path)) as file:
        size = file.size()
        # Arrow asks the kernel for all that is read from its mapping, hence a byte, which holds the mapping.
        start = file.read_buffer(1)
    whole = pa.foreign_buffer(start.address, size, base=start)
    if _madvise is not None:
        _madvise(whole.address, size, mmap.MADV_RANDOM)
    return whole


def fetch(array: npt.NDArray[Any], starts: Positions, stops: Positions) -> None:
    """Have the disk read `array[starts[i]:stops[i]]` for all i, while the caller goes on. Reads of memory cost a call.

    Args:
        array: one dimension, contiguous, of a mapped file.
        starts: `[n]` ascending, of its elements.
        stops: `[n]` ascending; not below `starts`.
    """
    if _madvise is None or not len(starts) or not array.size:
        return
    base = array.__array_interface__["data"][0]
    # Clipped, for offsets of a damaged file may lead anywhere.
    first = (base + np.clip(starts, 0, array.size) * array.itemsize) // _PAGE
    after = -(-(base + np.clip(stops, 0, array.size) * array.itemsize) // _PAGE)
    cuts = np.flatnonzero(first[1:] - after[:-1] > _GAP) + 1
    begins, ends = first[np.append(0, cuts)], after[np.append(cuts - 1, len(after) - 1)]
    for begin, end in zip(begins.tolist(), ends.tolist(), strict=True):
        for page in range(begin, end, _CHUNK):
            _madvise(page * _PAGE, min(_CHUNK, end - page) * _PAGE, mmap.MADV_WILLNEED)
