"""What users did, as multi-valued features: their most frequent or their latest values, a few each.

Knows arrays only; which behaviour may be looked at is the caller's business.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from lookalike.stretches import places

Rows = npt.NDArray[np.int64]


def spoken(users: Rows, items: Rows, column: pa.Array) -> tuple[Rows, Rows, pa.Array]:
    """Events on items as events on what `column` (text or lists of text, `[items]`) says of the items.

    Each event counts once for every member of its item's list, and not at all where the column is null. Returns user
    rows and value codes `[spoken events]`, and the values' texts `[codes]`.
    """
    if pa.types.is_list(column.type):
        lengths = pc.fill_null(pc.list_value_length(column), 0).to_numpy().astype(np.int64)
        values = pc.dictionary_encode(pc.list_flatten(column))
    else:
        lengths = pc.is_valid(column).to_numpy(zero_copy_only=False).astype(np.int64)
        values = pc.dictionary_encode(pc.drop_null(column))
    starts = np.cumsum(lengths) - lengths
    count = lengths[items]
    member = places(starts[items], count)
    return np.repeat(users, count), values.indices.to_numpy().astype(np.int64)[member], values.dictionary


def most_frequent(users: Rows, codes: Rows, names: pa.Array, num_users: int, limit: int) -> pa.Array:
    """Per user the `limit` most frequent values, most frequent first, ties by code: lists of strings `[num_users]`.

    `users` and `codes` are `[events]`: user row and value; `names[code]` is the value's text.
    """
    pairs, counts = np.unique(users * len(names) + codes, return_counts=True)
    return _lists(pairs // len(names), pairs % len(names), -counts, names, num_users, limit)


def latest(users: Rows, codes: Rows, times: Rows, names: pa.Array, num_users: int, limit: int) -> pa.Array:
    """Per user the `limit` values seen last, latest first, ties by code, none twice: lists of strings `[num_users]`."""
    order = np.argsort(-times, kind="stable")
    pairs, first = np.unique((users * len(names) + codes)[order], return_index=True)
    return _lists(pairs // len(names), pairs % len(names), -times[order][first], names, num_users, limit)


def _lists(users: Rows, codes: Rows, keys: Rows, names: pa.Array, num_users: int, limit: int) -> pa.Array:
    order = np.lexsort((codes, keys, users))
    users, codes = users[order], codes[order]
    starts = np.searchsorted(users, np.arange(num_users + 1))
    place = np.arange(len(users)) - starts[users]
    kept = place < limit
    lengths = np.minimum(np.diff(starts), limit)
    offsets = np.concatenate(([0], np.cumsum(lengths))).astype(np.int32)
    return pa.ListArray.from_arrays(pa.array(offsets), names.take(pa.array(codes[kept])))
