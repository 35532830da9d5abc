"""One shard of a pool: an uncompressed Arrow IPC file of one record batch, written whole, read through the page cache.

Columns: `user_id`, then one a field, named as the field. Knows `schema`; knows nothing of other shards.
"""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import IO, Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from lookalike.errors import DataCorrupted
from lookalike.schema import EncodedColumns, FeatureSchema, Field, FieldKind, Ids, Offsets

ID_COLUMN = "user_id"
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


class OpenShard:
    """A memory-mapped shard. Arrays are views of the file: nothing is read until it is touched."""

    def __init__(self, path: Path, schema: FeatureSchema, id_type: pa.DataType, rows: int) -> None:
        """Map the file.

        Raises:
            DataCorrupted: it is not a shard of this schema with so many rows.
        """
        try:
            reader = pa.ipc.open_file(pa.memory_map(str(path)))
            batch = reader.get_batch(0) if reader.num_record_batches == 1 else None
        except (OSError, pa.ArrowException) as error:
            raise DataCorrupted(f"{path} is no readable shard: {error}", field=path.name) from error
        if batch is None or batch.num_rows != rows or not batch.schema.equals(arrow_schema(schema, id_type)):
            raise DataCorrupted(f"{path} does not hold what the manifest says", field=path.name)
        self.rows = rows
        self.user_ids: pa.Array = batch.column(0)
        ids: dict[str, Ids] = {}
        offsets: dict[str, Offsets] = {}
        for field in schema.fields:
            column = batch.column(field.name)
            if field.kind is FieldKind.MULTI:
                offsets[field.name] = column.offsets.to_numpy(zero_copy_only=True)
                column = column.values
            ids[field.name] = column.to_numpy(zero_copy_only=True)
        self.columns = EncodedColumns(rows, ids, offsets)

    def find(self, wanted: pa.Array) -> npt.NDArray[np.int64]:
        """Row of each id in the shard, or -1: `[wanted]`. Reads O(wanted x log rows)."""
        if pa.types.is_int64(self.user_ids.type):
            ids = self.user_ids.to_numpy(zero_copy_only=True)
            values = wanted.to_numpy(zero_copy_only=True)
            rows = np.searchsorted(ids, values)
            found = ids[np.minimum(rows, self.rows - 1)] == values
        else:
            rows = bisect_text(self.user_ids, wanted)
            candidates = self.user_ids.take(pa.array(np.minimum(rows, self.rows - 1)))
            found = _to_bools(pa.compute.equal(candidates, wanted))
        return np.where(found, rows, -1)


def bisect_text(ids: pa.Array, wanted: pa.Array) -> npt.NDArray[np.int64]:
    """How many of `ids` (ascending by bytes) are below each of `wanted`: one vectorised step a halving."""
    low = np.zeros(len(wanted), np.int64)
    high = np.full(len(wanted), len(ids), np.int64)
    while True:
        open_ = low < high
        if not open_.any():
            return low
        middle = (low + high) // 2
        below = _to_bools(pa.compute.less(ids.take(pa.array(np.minimum(middle, len(ids) - 1))), wanted))
        low = np.where(open_ & below, middle + 1, low)
        high = np.where(open_ & ~below, middle, high)


def _to_bools(column: pa.Array) -> npt.NDArray[np.bool_]:
    bools: npt.NDArray[Any] = column.to_numpy(zero_copy_only=False)
    return bools.astype(np.bool_, copy=False)
