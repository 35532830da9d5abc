"""What changed between two snapshots: users added, removed and changed, counted by field.

Both are read once, in order of id, in blocks: memory does not grow with the pools. Knows snapshots and `schema`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from lookalike.errors import FailedPrecondition
from lookalike.pool.shard import Rows
from lookalike.pool.snapshot import Pool, count_below
from lookalike.schema import FIRST_VALUE_ID, EncodedColumns, Field, FieldKind

_BLOCK_ROWS = 1 << 18

Differs = npt.NDArray[np.bool_]


@dataclass(frozen=True, kw_only=True)
class Difference:
    """From an old snapshot to a new one.

    `fields` counts the users, of those in both, whose value differs; a list in another order differs, two values that
    neither vocabulary knows do not. `incomparable` names fields whose kind or bins differ: they count nowhere.
    """

    users_old: int
    users_new: int
    added: int
    removed: int
    changed: int
    unchanged: int
    fields: dict[str, int]
    fields_added: tuple[str, ...]
    fields_removed: tuple[str, ...]
    incomparable: tuple[str, ...]

    def to_json(self) -> dict[str, Any]:
        """Plain data."""
        return asdict(self)


def compare(old: Pool, new: Pool, progress: Callable[[int, int], None] | None = None) -> Difference:
    """Go through both pools side by side.

    Args:
        progress: called with (rows of both done, rows of both); raise from it to stop.

    Raises:
        FailedPrecondition: the ids of one are integers and those of the other strings.
    """
    if old.id_type != new.id_type:
        raise FailedPrecondition(
            f"user ids of {old.path} are {old.manifest.id_type}, those of {new.path} are {new.manifest.id_type}: "
            "they have no user in common",
            field="pool",
        )
    before = {field.name: field for field in old.schema.fields}
    after = {field.name: field for field in new.schema.fields}
    shared = [name for name in before if name in after]
    codes = {name: found for name in shared if (found := _common_codes(before[name], after[name])) is not None}
    fields = dict.fromkeys(codes, 0)
    both = changed = 0
    for (start, stop), (new_start, new_stop) in _side_by_side(old, new):
        rows, new_rows = _matched(old.read_ids(start, stop), new.read_ids(new_start, new_stop))
        ours = old.read(start, stop).take(rows)
        theirs = new.read(new_start, new_stop).take(new_rows)
        any_differs = np.zeros(len(rows), np.bool_)
        for name, (code, new_code) in codes.items():
            differs = _differs(name, ours, theirs, code, new_code)
            fields[name] += int(differs.sum())
            any_differs |= differs
        both += len(rows)
        changed += int(any_differs.sum())
        if progress is not None:
            progress(stop + new_stop, old.num_users + new.num_users)
    return Difference(
        users_old=old.num_users,
        users_new=new.num_users,
        added=new.num_users - both,
        removed=old.num_users - both,
        changed=changed,
        unchanged=both - changed,
        fields=fields,
        fields_added=tuple(name for name in after if name not in before),
        fields_removed=tuple(name for name in before if name not in after),
        incomparable=tuple(name for name in shared if name not in codes),
    )


def _common_codes(old: Field, new: Field) -> tuple[Rows, Rows] | None:
    """For each id of either field a number that is the same for the same value; None if there is no such thing."""
    if old.kind is not new.kind or old.boundaries != new.boundaries:
        return None
    if old.kind is FieldKind.NUMERIC or old.values == new.values:
        same = np.arange(old.size)
        return same, same
    id_of = {value: number for number, value in enumerate(old.values, FIRST_VALUE_ID)}
    new_codes = [id_of.setdefault(value, FIRST_VALUE_ID + len(id_of)) for value in new.values]
    return np.arange(old.size), np.array([*range(FIRST_VALUE_ID), *new_codes], np.int64)


def _side_by_side(old: Pool, new: Pool) -> Iterator[tuple[tuple[int, int], tuple[int, int]]]:
    """Ranges of rows of both that hold the same range of ids: together they are all rows, each once."""
    start = new_start = 0
    while start < old.num_users or new_start < new.num_users:
        ids = old.read_ids(start, min(start + _BLOCK_ROWS, old.num_users))
        new_ids = new.read_ids(new_start, min(new_start + _BLOCK_ROWS, new.num_users))
        count, new_count = len(ids), len(new_ids)
        if count and new_count:  # as far as the end of the one that ends first
            last, new_last = ids.slice(count - 1), new_ids.slice(new_count - 1)
            if pc.less(last, new_last)[0].as_py():
                new_count = _count_up_to(new_ids, last)
            else:
                count = _count_up_to(ids, new_last)
        yield (start, start + count), (new_start, new_start + new_count)
        start, new_start = start + count, new_start + new_count


def _count_up_to(ids: pa.Array, bound: pa.Array) -> int:
    below = int(count_below(ids, bound)[0])
    return below + int(below < len(ids) and ids[below] == bound[0])


def _matched(ids: pa.Array, new_ids: pa.Array) -> tuple[Rows, Rows]:
    """Where the ids that both hold are in either: `[both]`, `[both]`."""
    found = pc.index_in(new_ids, value_set=ids)
    new_rows = np.flatnonzero(pc.is_valid(found).to_numpy(zero_copy_only=False))
    rows: Rows = found.drop_null().to_numpy().astype(np.int64)
    return rows, new_rows


def _differs(name: str, ours: EncodedColumns, theirs: EncodedColumns, code: Rows, new_code: Rows) -> Differs:
    """Whether each row's value differs: `[rows]`."""
    values, new_values = code[ours.ids[name]], new_code[theirs.ids[name]]
    if name not in ours.offsets:
        single: Differs = values != new_values
        return single
    lengths, new_lengths = np.diff(ours.offsets[name]), np.diff(theirs.offsets[name])
    differs: Differs = lengths != new_lengths
    as_long = ~differs
    unequal = values[np.repeat(as_long, lengths)] != new_values[np.repeat(as_long, new_lengths)]
    differs[np.repeat(np.flatnonzero(as_long), lengths[as_long])[unequal]] = True
    return differs
