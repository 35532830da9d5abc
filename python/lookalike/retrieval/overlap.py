"""Who is in two audiences: counts for any number of them, and flags for two. Exact, whatever the ids are.

Integers are sorted once and merged from there: an audience's ids are in memory while they are sorted, 8 bytes a member,
and then in an unnamed file, for what else there may be of them. Strings are looked up in hash tables of a part of the
other side at a time. Knows audiences on disk; free of torch.
"""

from __future__ import annotations

import tempfile
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from itertools import combinations
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from lookalike.errors import InvalidInput
from lookalike.retrieval.audience import Audience

# Users that are merged, or that a hash table is made of, at once: some tens of MB.
BLOCK = 1 << 20

Sorted = npt.NDArray[np.int64]
Flags = npt.NDArray[np.bool_]


def overlaps(audiences: Sequence[Audience], scratch: Path) -> list[int]:
    """How many users are in both of every two audiences, in the order of `itertools.combinations`.

    Args:
        audiences: two or more, of ids of one type.
        scratch: a folder on a disk with 8 bytes for each member.

    Raises:
        InvalidInput: ids of different types. DataCorrupted: a file is damaged.
    """
    _require_one_type(audiences)
    if not pa.types.is_int64(audiences[0].id_type):
        return [_common_strings(first, second) for first, second in combinations(audiences, 2)]
    with ExitStack() as stack:
        spilled = [_spill(audience, stack, scratch) for audience in audiences]
        return [sum(int(one.sum()) for one in _blocks_in(a, b)) for a, b in combinations(spilled, 2)]


def missing(before: Audience, after: Audience) -> Flags:
    """Which members of one audience are not in the other, in order of rank: `[before.num_members]`.

    Raises:
        InvalidInput: ids of different types. DataCorrupted: a file is damaged.
    """
    _require_one_type([before, after])
    if not pa.types.is_int64(before.id_type):
        ids = _ids(before)
        there = np.zeros(len(ids), np.bool_)
        for part in _parts(_ids(after)):
            there |= pc.is_in(ids, value_set=part).to_numpy(zero_copy_only=False)
        return ~there
    ids = _integers(before)
    order = np.argsort(ids)
    flags = np.ones(len(ids), np.bool_)
    other = np.sort(_integers(after))
    flags[order] = ~np.concatenate([np.zeros(0, np.bool_), *_blocks_in(ids[order], other)])
    return flags


def _require_one_type(audiences: Sequence[Audience]) -> None:
    if len({str(audience.id_type) for audience in audiences}) > 1:
        raise InvalidInput("the audiences' user ids are of different types, so nobody can be in both")


def _blocks_in(users: Sorted, others: Sorted) -> Iterator[Flags]:
    """Whether each of the ascending `users` is among the ascending `others`, a block at a time."""
    for start in range(0, len(users), BLOCK):
        block = users[start : start + BLOCK]
        low, high = np.searchsorted(others, [block[0], block[-1]])
        near = others[low : high + 1]
        places = np.minimum(np.searchsorted(near, block), max(len(near) - 1, 0))
        yield near[places] == block if len(near) else np.zeros(len(block), np.bool_)


def _spill(audience: Audience, stack: ExitStack, scratch: Path) -> Sorted:
    ids = np.sort(_integers(audience))
    if not len(ids):
        return ids
    file: Any = tempfile.TemporaryFile(dir=scratch)  # noqa: SIM115  the stack closes it
    stack.enter_context(file)
    ids.tofile(file)
    file.flush()
    return np.memmap(file, np.int64, "r")


def _integers(audience: Audience) -> Sorted:
    ids = np.empty(audience.num_members, np.int64)
    done = 0
    for batch in audience.batches(BLOCK):
        ids[done : done + batch.num_rows] = batch["user_id"].to_numpy()
        done += batch.num_rows
    return ids


def _ids(audience: Audience) -> pa.Array:
    pieces = [batch["user_id"] for batch in audience.batches(BLOCK)]
    return pa.concat_arrays([pa.array([], audience.id_type), *pieces])


def _parts(ids: pa.Array) -> Iterator[pa.Array]:
    for start in range(0, len(ids), BLOCK):
        yield ids.slice(start, BLOCK)


def _common_strings(first: Audience, second: Audience) -> int:
    ids = _ids(first)
    return sum(int(pc.sum(pc.is_in(ids, value_set=part)).as_py() or 0) for part in _parts(_ids(second)))
