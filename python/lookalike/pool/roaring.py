"""User ids in Roaring bitmaps, as data warehouses and CRMs hand sets of users on. Knows no pools."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pyarrow as pa
from pyroaring import BitMap, BitMap64

from lookalike.errors import DataCorrupted, InvalidInput, NotFound

# How bitmaps of 32 bits begin; those of 64 begin with how many of these they hold.
_COOKIES_32 = (12346, 12347)


def roaring_ids(path: Path, piece: int, *, field: str) -> Iterator[pa.Array]:
    """Ids of a file that holds a Roaring bitmap in its portable serialisation, of 32 or 64 bits: int64, ascending.

    Args:
        piece: ids at a time.
        field: for errors.

    Raises:
        NotFound: no such file. DataCorrupted: something else is in it. InvalidInput: an id beyond int64.
    """
    try:
        data = path.read_bytes()
    except OSError as error:
        raise NotFound(f"cannot read {path}: {error.strerror}", field=field) from error
    wide = int.from_bytes(data[:2], "little") not in _COOKIES_32
    try:
        ids = (BitMap64 if wide else BitMap).deserialize(data)
    except (ValueError, IndexError) as error:
        raise DataCorrupted(f"{path} is no Roaring bitmap in the portable serialisation", field=field) from error
    if len(ids) and ids.max() >= 2**63:
        raise InvalidInput(f"{path} holds the id {ids.max()}, beyond signed integers of 64 bits", field=field)
    for start in range(0, len(ids), piece):
        yield pa.array(np.asarray(ids[start : start + piece].to_array()).astype(np.int64))
