"""A pool snapshot, open for reading: user ids to rows, rows to encoded features, blocks for scoring.

Row number = rank of the user id, so row order is id order. Knows `schema` and the files; knows nothing of models.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from lookalike.errors import DataCorrupted, InvalidInput, quoted
from lookalike.files import file_digest
from lookalike.pool.manifest import Manifest
from lookalike.pool.publish import follow
from lookalike.pool.shard import ID_TYPES, OpenShard, Rows, bisect_text
from lookalike.schema import EncodedColumns, FeatureSchema


class Pool:
    """An immutable snapshot. Safe to read from many threads; costs address space, not memory or file descriptors.

    What is not in the page cache comes from the disk by large or by many requests at once, whatever the machine's
    read-ahead: `read` asks for some rows beyond its own, so that a scan goes at the speed of the disk; `take`,
    `user_ids` and `find` for the pages they touch, and for those between where that is sooner.
    """

    def __init__(self, path: Path, manifest: Manifest, shards: Sequence[OpenShard]) -> None:
        self.path = path
        self.manifest = manifest
        self.id_type: pa.DataType = ID_TYPES[manifest.id_type]
        self._shards = shards
        self._starts = np.array([shard.first_row for shard in manifest.shards] + [manifest.rows], np.int64)

    @classmethod
    def open(cls, path: Path) -> Pool:
        """Map every shard, after checking versions, sizes and columns; checksums are `verify`'s.

        Args:
            path: a snapshot, or a folder with a published one, which is then what `Pool.path` names.

        Raises:
            NotFound: no pool there. DataCorrupted: damaged, truncated, foreign, or of another version.
        """
        path = follow(Path(path))
        manifest = Manifest.read(path)
        if manifest.id_type not in ID_TYPES:
            raise DataCorrupted(f"{path} has ids of type {manifest.id_type!r}", field="pool")
        shards = []
        row = 0
        for entry in manifest.shards:
            file = path / entry.file
            size = file.stat().st_size if file.is_file() else None
            if size != entry.bytes or entry.first_row != row or entry.rows < 1:
                state = "missing" if size is None else f"{size:,} bytes"
                raise DataCorrupted(
                    f"{file} is {state}; the manifest says {entry.bytes:,} bytes: ingest the pool again",
                    field=entry.file,
                )
            shards.append(OpenShard(file, manifest.schema, ID_TYPES[manifest.id_type], entry.rows))
            row += entry.rows
        if row != manifest.rows or row == 0:
            raise DataCorrupted(f"the shards of {path} hold {row} rows, not {manifest.rows}", field="pool")
        return cls(path, manifest, shards)

    @property
    def num_users(self) -> int:
        return self.manifest.rows

    @property
    def shard_ends(self) -> tuple[int, ...]:
        """For each shard, the row after its last."""
        return tuple(self._starts[1:].tolist())

    @cached_property
    def _first_ids(self) -> pa.Array:
        """The first id of each shard."""
        first = np.array([0])
        for shard in self._shards:
            shard.will_take_ids(first)
        return pa.concat_arrays([shard.user_ids.slice(0, 1) for shard in self._shards])

    @property
    def schema(self) -> FeatureSchema:
        """Fields of users: what every encoded column means."""
        return self.manifest.schema

    @property
    def fingerprint(self) -> str:
        """SHA-256 that names the content; see `Manifest.fingerprint`."""
        return self.manifest.fingerprint

    def find(
        self, user_ids: pa.Array | pa.ChunkedArray | Sequence[int | str], *, field: str = "seeds", ahead: bool = True
    ) -> Rows:
        """Row of each user, or -1 for one the pool lacks: `[user_ids]`, in the order given.

        Args:
            ahead: ask the disk for what is about to be touched: most of the time this takes where that is in memory.

        Raises:
            InvalidInput: ids of another type than the pool's, or null; it names `field`.
        """
        wanted = self._as_ids(user_ids, field)
        order = pc.sort_indices(wanted)  # neighbours share pages, and each shard gets one slice
        ascending = wanted.take(order)
        edges = [*count_below(ascending, self._first_ids).tolist(), len(ascending)]
        edges[0] = 0  # ids below the first of all are looked for there, in vain
        found = np.full(len(wanted), -1, np.int64)
        for number, shard in enumerate(self._shards):
            start, stop = edges[number], edges[number + 1]
            if start < stop:
                rows = shard.find(ascending.slice(start, stop - start), ahead=ahead)
                found[start:stop] = np.where(rows < 0, -1, rows + self._starts[number])
        result = np.empty_like(found)
        result[order.to_numpy(zero_copy_only=False)] = found
        return result

    def user_ids(self, rows: npt.NDArray[np.integer[Any]]) -> pa.Array:
        """User ids of the rows, in that order.

        Raises:
            InvalidInput: a row outside the pool.
        """
        parts: list[pa.Array] = [pa.array([], self.id_type)]
        order, groups = self._by_shard(rows)
        for shard, local in groups:
            shard.will_take_ids(local)
            parts.append(shard.user_ids.take(pa.array(local)))
        return pa.concat_arrays(parts).take(pa.array(_inverse(order)))

    def take(self, rows: npt.NDArray[np.integer[Any]], *, ahead: bool = True) -> EncodedColumns:
        """Features of the rows, in that order, copied; rows may repeat. `ahead` as of `find`.

        Raises:
            InvalidInput: a row outside the pool.
        """
        order, groups = self._by_shard(rows)
        if not groups:
            return self._shards[0].columns.take(np.zeros(0, np.int64))
        if len(groups) == 1:
            shard, local = groups[0]
            if ahead:
                shard.will_take(local)
            return shard.columns.take(local[_inverse(order)])
        parts = []
        for shard, local in groups:
            if ahead:
                shard.will_take(local)
            parts.append(shard.columns.take(local))
        return EncodedColumns.concat(parts).take(_inverse(order))

    def read(self, start: int, stop: int, fields: Collection[str] | None = None) -> EncodedColumns:
        """Features of rows `start:stop`: views of the file within one shard, a copy across shards.

        Args:
            fields: of these fields only; others are not read from the disk.

        Raises:
            InvalidInput: not `0 <= start <= stop <= num_users`.
        """
        parts = [shard.read(first, last, fields) for shard, first, last in self._between(start, stop)]
        return parts[0] if len(parts) == 1 else EncodedColumns.concat(parts)

    def read_ids(self, start: int, stop: int) -> pa.Array:
        """User ids of rows `start:stop`: a view of the file within one shard, a copy across shards.

        Raises:
            InvalidInput: not `0 <= start <= stop <= num_users`.
        """
        parts = [shard.read_ids(first, last) for shard, first, last in self._between(start, stop)]
        return parts[0] if len(parts) == 1 else pa.concat_arrays(parts)

    def _between(self, start: int, stop: int) -> Iterator[tuple[OpenShard, int, int]]:
        """The shards that hold rows `start:stop`, each with its part of them; one at least."""
        if not 0 <= start <= stop <= self.num_users:
            raise InvalidInput(f"rows {start}:{stop} are not within the pool's 0:{self.num_users}", field="rows")
        first = min(int(np.searchsorted(self._starts, start, side="right")) - 1, len(self._shards) - 1)
        for number in range(first, len(self._shards)):
            base = int(self._starts[number])
            shard = self._shards[number]
            yield shard, start - base if number == first else 0, min(stop - base, shard.rows)
            if stop <= base + shard.rows:
                break

    def blocks(self, size: int) -> Iterator[tuple[int, EncodedColumns]]:
        """The whole pool in row order: block i is rows `i*size : (i+1)*size`, with its first row.

        Raises:
            InvalidInput: `size` is below 1.
        """
        if size < 1:
            raise InvalidInput(f"a block must have 1 row or more, not {size}", field="size")
        for start in range(0, self.num_users, size):
            yield start, self.read(start, min(start + size, self.num_users))

    def verify(self, progress: Callable[[int, int], None] | None = None) -> None:
        """Read everything: checksums, strictly ascending ids, encoded ids within their vocabularies.

        Raises:
            DataCorrupted: something is not as it was written.
        """
        last: pa.Array | None = None
        for entry, shard in zip(self.manifest.shards, self._shards, strict=True):
            if file_digest(self.path / entry.file) != entry.sha256:
                raise DataCorrupted(f"{self.path / entry.file} fails its checksum", field=entry.file)
            ids = shard.read_ids(0, shard.rows)
            ids = ids if last is None else pa.concat_arrays([last, ids])
            if not is_ascending(ids):
                raise DataCorrupted(f"user ids of {self.path / entry.file} are out of order", field=entry.file)
            columns = shard.read(0, shard.rows)
            for field in self.schema.fields:
                column = columns.ids[field.name]
                if column.size and int(column.max()) >= field.size:
                    raise DataCorrupted(
                        f"{self.path / entry.file}: '{field.name}' holds an id beyond its vocabulary", field=entry.file
                    )
            last = shard.user_ids.slice(shard.rows - 1)
            if progress is not None:
                progress(entry.first_row + entry.rows, self.num_users)

    def _as_ids(self, user_ids: pa.Array | pa.ChunkedArray | Sequence[int | str], field: str) -> pa.Array:
        kind = "integers" if pa.types.is_int64(self.id_type) else "strings"
        wrong = f"user ids of this pool are {kind}"
        if isinstance(user_ids, pa.ChunkedArray):
            user_ids = user_ids.combine_chunks()
        try:
            ids = user_ids if isinstance(user_ids, pa.Array) else pa.array(user_ids)
            if pa.types.is_dictionary(ids.type):
                ids = ids.dictionary_decode()
            if not (len(ids) == 0 or _same_kind(ids.type, self.id_type)):
                raise InvalidInput(f"{wrong}, but '{field}' has {_advice(ids)}", field=field)
            ids = pc.cast(ids, self.id_type)
        except (pa.ArrowException, OverflowError, TypeError) as error:
            raise InvalidInput(f"{wrong}: {error}", field=field) from error
        if ids.null_count:
            raise InvalidInput(f"'{field}' holds a null; leave it out", field=field)
        return ids

    def _by_shard(self, rows: npt.NDArray[np.integer[Any]]) -> tuple[Rows, list[tuple[OpenShard, Rows]]]:
        """An order that sorts `rows`, and the sorted rows shard by shard, counted from the shard's first."""
        rows = np.asarray(rows, np.int64)
        if rows.size and not (rows.min() >= 0 and rows.max() < self.num_users):
            raise InvalidInput(f"a row is not within the pool's 0:{self.num_users}", field="rows")
        order = np.argsort(rows, kind="stable")
        ascending = rows[order]
        edges = np.searchsorted(ascending, self._starts)
        groups = [
            (shard, ascending[edges[number] : edges[number + 1]] - self._starts[number])
            for number, shard in enumerate(self._shards)
            if edges[number] < edges[number + 1]
        ]
        return order, groups


def is_ascending(ids: pa.Array) -> bool:
    """Whether each id is greater than the one before."""
    if pa.types.is_int64(ids.type):
        numbers = ids.to_numpy(zero_copy_only=True)
        return bool(np.all(numbers[1:] > numbers[:-1]))
    return len(ids) < 2 or bool(pc.all(pc.greater(ids.slice(1), ids.slice(0, len(ids) - 1))).as_py())


def _same_kind(given: pa.DataType, expected: pa.DataType) -> bool:
    if pa.types.is_int64(expected):
        return bool(pa.types.is_integer(given))
    return bool(pa.types.is_string(given) or pa.types.is_large_string(given))


def _advice(ids: pa.Array) -> str:
    """What is wrong with ids of another type than the pool's: text that is no integer cannot be cast to one."""
    if pa.types.is_string(ids.type) or pa.types.is_large_string(ids.type):
        odd = ids.filter(pc.invert(pc.match_substring_regex(ids, "^-?[0-9]+$")))
        if len(odd):
            return f"{quoted(odd[0].as_py())}: mend it"
    return f"{ids.type}: cast them"


def count_below(ascending: pa.Array, values: pa.Array) -> Rows:
    """How many of `ascending` are below each of `values`."""
    if pa.types.is_int64(values.type):
        below: Rows = np.searchsorted(ascending.to_numpy(zero_copy_only=True), values.to_numpy(zero_copy_only=True))
        return below
    return bisect_text(ascending, values)


def _inverse(order: Rows) -> Rows:
    inverse = np.empty_like(order)
    inverse[order] = np.arange(len(order))
    return inverse
