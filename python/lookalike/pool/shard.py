"""One shard of a pool: an uncompressed Arrow IPC file of one record batch, written whole, read through the page cache.

Columns: `user_id`, then one a field, named as the field. Knows `schema`; knows nothing of other shards.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Collection, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from lookalike.errors import DataCorrupted
from lookalike.pool.mapping import fetch, map_file
from lookalike.schema import EncodedColumns, FeatureSchema, Field, FieldKind, Ids, Offsets

Rows = npt.NDArray[np.int64]

ID_COLUMN = "user_id"
# A scan has the disk read so many rows ahead of it: 8 MB of 14 single-valued fields, four or more requests for each.
AHEAD_ROWS = 1 << 19
# The footer of a shard of hundreds of fields, and as much of its beginning.
_EDGE_BYTES = 16 << 10
# Integer ids, or offsets of text, of the smallest page.
_PAGE_IDS = 512
# Ids kept for one that is sought: with fewer, reading them all is sooner than the pages that the halvings look at.
_SPARSE = 1 << 14
ID_TYPES: dict[str, pa.DataType] = {"int64": pa.int64(), "string": pa.large_string()}


def arrow_schema(schema: FeatureSchema, id_type: pa.DataType) -> pa.Schema:
    """Columns of a shard: the narrowest unsigned integers, lists with 64-bit offsets, no nulls anywhere."""
    columns = [pa.field(ID_COLUMN, id_type, nullable=False)]
    columns += [pa.field(field.name, _arrow_type(field), nullable=False) for field in schema.fields]
    return pa.schema(columns)


def _arrow_type(field: Field) -> pa.DataType:
    ids = pa.from_numpy_dtype(field.dtype)
    return pa.large_list(pa.field("item", ids, nullable=False)) if field.kind is FieldKind.MULTI else ids


def to_arrow(user_ids: pa.Array, columns: EncodedColumns, target: pa.Schema) -> pa.RecordBatch:
    """Encoded rows as a batch of a shard's columns, without a copy."""
    arrays = [user_ids]
    for column in target:
        if column.name == ID_COLUMN:
            continue
        ids = pa.array(columns.ids[column.name])
        offsets = columns.offsets.get(column.name)
        if offsets is not None:
            ids = pa.LargeListArray.from_arrays(pa.array(offsets), ids, type=column.type)
        arrays.append(ids)
    return pa.record_batch(arrays, schema=target)


def write(path: Path, batch: pa.RecordBatch) -> tuple[int, str]:
    """Write a shard; its size in bytes and its SHA-256. The same rows give the same bytes."""
    with path.open("wb") as file:
        sink = _Digesting(file)
        with pa.ipc.new_file(pa.PythonFile(sink, mode="w"), batch.schema) as writer:
            writer.write_batch(batch)
        return file.tell(), sink.digest.hexdigest()


class _Digesting:
    """A file to write to that takes the checksum of what passes, so that nothing is read again for it."""

    closed = False  # as PyArrow asks of a file; whoever opened it closes it

    def __init__(self, file: IO[bytes]) -> None:
        self._file = file
        self.digest = hashlib.sha256()

    def write(self, data: bytes | pa.Buffer) -> int:
        self.digest.update(data)
        return self._file.write(data)


@dataclass(frozen=True)
class _Stored:
    """A column as it lies in the file; with offsets, row r is `values[offsets[r]:offsets[r + 1]]`."""

    values: npt.NDArray[Any]
    offsets: Offsets | None = None


class OpenShard:
    """A memory-mapped shard. Arrays are views of the file: nothing is read until it is touched.

    The kernel reads nothing ahead (see `mapping`), so what is about to be touched is asked for first. `read`,
    `read_ids` and `find` do so; before anything else, call `will_take` or `will_take_ids`.
    """

    def __init__(self, path: Path, schema: FeatureSchema, id_type: pa.DataType, rows: int) -> None:
        """Map the file.

        Raises:
            DataCorrupted: it is not a shard of this schema with so many rows.
        """
        try:
            file = map_file(path)
            # All that opening reads, at once: how the batch lies and the columns' names, at the two ends.
            every = np.frombuffer(file, np.uint8)
            ends = np.array([min(_EDGE_BYTES, len(every)), len(every)])
            fetch(every, np.maximum(ends - _EDGE_BYTES, 0), ends)
            reader = pa.ipc.open_file(pa.BufferReader(file))
            batch = reader.get_batch(0) if reader.num_record_batches == 1 else None
            if batch is None or batch.num_rows != rows or not batch.schema.equals(arrow_schema(schema, id_type)):
                raise DataCorrupted(f"{path} does not hold what the manifest says", field=path.name)
            self.rows = rows
            self.user_ids: pa.Array = batch.column(0)
            self._ids = _stored_ids(self.user_ids)
            ids: dict[str, Ids] = {}
            offsets: dict[str, Offsets] = {}
            for field in schema.fields:
                column = batch.column(field.name)
                if field.kind is FieldKind.MULTI:
                    offsets[field.name] = column.offsets.to_numpy(zero_copy_only=True)
                    column = column.values
                ids[field.name] = column.to_numpy(zero_copy_only=True)
            self.columns = EncodedColumns(rows, ids, offsets)
        except (OSError, pa.ArrowException) as error:
            raise DataCorrupted(f"{path} is no readable shard: {error}", field=path.name) from error
        self._features = {name: _Stored(ids[name], offsets.get(name)) for name in ids}
        self._asked: dict[object, tuple[int, int]] = {}

    def will_take(self, rows: Rows) -> None:
        """Have the features of `rows`, ascending, read from the disk at once."""
        _will_need(self._features.values(), rows, rows + 1)

    def will_take_ids(self, rows: Rows) -> None:
        """Have the user ids of `rows`, ascending, read from the disk at once."""
        _will_need([self._ids], rows, rows + 1)

    def read(self, start: int, stop: int, fields: Collection[str] | None = None) -> EncodedColumns:
        """Features of rows `start:stop`, views of the file; only `fields`, if given."""
        columns = self.columns if fields is None else self.columns.only(fields)
        self._will_read(tuple(columns.ids), [self._features[name] for name in columns.ids], start, stop)
        return columns.slice(start, stop)

    def read_ids(self, start: int, stop: int) -> pa.Array:
        """User ids of rows `start:stop`, a view of the file."""
        self._will_read(ID_COLUMN, [self._ids], start, stop)
        return self.user_ids.slice(start, stop - start)

    def _will_read(self, what: object, columns: Iterable[_Stored], start: int, stop: int) -> None:
        """Have rows `start:stop` and some after them read, if earlier calls of the same scan did not.

        Asking again for what is in memory costs as much as looking at it. A call that is not further on than the last
        one that asked begins another scan: what that one asked for may have left the memory.
        """
        first, end = self._asked.get(what, (0, 0))
        if not first < start <= end:
            end = start
        elif stop <= end - AHEAD_ROWS // 2 or end == self.rows:
            return
        until = min(stop + AHEAD_ROWS, self.rows)
        self._asked[what] = start, until
        _will_need(columns, np.array([end]), np.array([until]))

    def find(self, wanted: pa.Array, *, ahead: bool = True) -> Rows:
        """Row of each of some ids, ascending, or -1: `[wanted]`. Reads O(wanted x log rows), at most all ids."""
        dense = not ahead or len(wanted) * _SPARSE > self.rows
        if dense and ahead:
            _will_need([self._ids], np.array([0]), np.array([self.rows]))
        rows = self._count_below(wanted, None if dense else self.will_take_ids)
        candidates = np.minimum(rows, self.rows - 1)
        if ahead:
            self.will_take_ids(candidates)
        found = _to_bools(pa.compute.equal(self.user_ids.take(pa.array(candidates)), wanted))
        return np.where(found, rows, -1)

    def _count_below(self, wanted: pa.Array, look: Callable[[Rows], None] | None) -> Rows:
        if not pa.types.is_int64(self.user_ids.type):
            return bisect_text(self.user_ids, wanted, look)
        ids, values = self._ids.values, wanted.to_numpy(zero_copy_only=True)
        if look is None:
            rows: Rows = np.searchsorted(ids, values)
            return rows
        return _bisect(self.rows, len(values), lambda rows: ids[rows] < values, look)


def _stored_ids(ids: pa.Array) -> _Stored:
    if pa.types.is_int64(ids.type):
        return _Stored(ids.to_numpy(zero_copy_only=True))
    _, offsets, text = ids.buffers()
    return _Stored(np.frombuffer(text, np.uint8), np.frombuffer(offsets, np.int64))


def _will_need(columns: Iterable[_Stored], starts: Rows, stops: Rows) -> None:
    """Have rows `starts[i]:stops[i]` of the columns read from the disk."""
    columns = list(columns)
    for column in columns:
        if column.offsets is None:
            fetch(column.values, starts, stops)
        else:
            fetch(column.offsets, starts, stops + 1)
    for column in columns:  # by now the offsets of all are on their way
        if column.offsets is not None:
            fetch(column.values, column.offsets[starts], column.offsets[stops])


def bisect_text(ids: pa.Array, wanted: pa.Array, look: Callable[[Rows], None] | None = None) -> Rows:
    """How many of `ids` (ascending by bytes) are below each of `wanted`; `look` as in `_bisect`."""
    return _bisect(
        len(ids), len(wanted), lambda rows: _to_bools(pa.compute.less(ids.take(pa.array(rows)), wanted)), look
    )


def _bisect(
    size: int, count: int, below: Callable[[Rows], npt.NDArray[np.bool_]], look: Callable[[Rows], None] | None
) -> Rows:
    """How many of `size` ascending values are below each of `count` others: one vectorised step a halving.

    Args:
        below: whether the values at `[count]` positions are below the others, each below its own.
        look: told the positions before they are looked at, until neighbours on a page are all that is left.
    """
    low = np.zeros(count, np.int64)
    high = np.full(count, size, np.int64)
    while True:
        open_ = low < high
        if not open_.any():
            return low
        middle = np.minimum((low + high) // 2, size - 1)
        if look is not None and int((high - low).max()) > _PAGE_IDS:
            look(middle)
        less = below(middle)
        low = np.where(open_ & less, middle + 1, low)
        high = np.where(open_ & ~less, middle, high)


def _to_bools(column: pa.Array) -> npt.NDArray[np.bool_]:
    bools: npt.NDArray[Any] = column.to_numpy(zero_copy_only=False)
    return bools.astype(np.bool_, copy=False)
