"""An audience on disk: `audience.parquet` in rank order, its receipt, the model that scored it, and the seeds.

Knows Parquet and the receipt; free of torch, so that the front service can read audiences. `revise` changes them: a
revision's files are first beside the old ones as `audience.7.parquet`, and count from when the receipt says 7.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Iterator, Sequence
from functools import cached_property
from pathlib import Path
from types import TracebackType
from typing import Self

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq

from lookalike.errors import DataCorrupted, InvalidInput
from lookalike.retrieval.receipt import (
    AUDIENCE_NAME,
    EXCLUSIONS_NAME,
    PREVIOUS_NAME,
    RECEIPT_NAME,
    RESERVE_NAME,
    SEEDS_NAME,
    Receipt,
)

# A page of members decodes one row group: small enough for a page to be cheap, large enough for a scan to be fast.
ROW_GROUP = 1 << 17
PAGE_BYTES = 1 << 20  # read at once of a file's column whose row groups may be of any size
ID_GROUP = 1 << 20  # of files of ids, which are read from one end to the other


class Audience:
    """A finished audience, open for reading: as it was then, whatever becomes of it. Safe to read from many threads."""

    def __init__(self, path: Path, receipt: Receipt, members: pa.NativeFile) -> None:
        self.path = path
        self.receipt = receipt
        self._file = members

    @classmethod
    def open(cls, path: Path) -> Audience:
        """Open an audience folder.

        Raises:
            NotFound: none there. DataCorrupted: the receipt or the Parquet file is damaged, or they disagree.
        """
        while True:
            version = receipt_version(path)
            receipt = Receipt.read(path)
            try:
                file = _open(path, AUDIENCE_NAME, receipt)
            except DataCorrupted:
                if receipt_version(path) == version:
                    raise
            else:
                if receipt_version(path) == version:  # else the file may be another revision's than the receipt
                    break
        audience = cls(path, receipt, file)
        if audience._metadata.num_rows != audience.receipt.k:
            raise DataCorrupted(
                f"{path / AUDIENCE_NAME} has {audience._metadata.num_rows} members, its receipt {audience.receipt.k}",
                field=AUDIENCE_NAME,
            )
        return audience

    @cached_property
    def _metadata(self) -> pq.FileMetaData:
        try:
            return pq.read_metadata(self._file)
        except (OSError, pa.ArrowInvalid) as error:
            raise DataCorrupted(f"cannot read {self.path / AUDIENCE_NAME}: {error}", field=AUDIENCE_NAME) from error

    @property
    def num_members(self) -> int:
        return self.receipt.k

    @property
    def id_type(self) -> pa.DataType:
        """int64 or large_string."""
        return self._metadata.schema.to_arrow_schema().field("user_id").type

    def members(self, start: int, stop: int) -> pa.Table:
        """Members of rank `start + 1 .. stop`: rank int64, user_id, score float32. Reads only their row groups.

        Raises:
            InvalidInput: not `0 <= start <= stop`. DataCorrupted: the file is damaged.
        """
        if not 0 <= start <= stop:
            raise InvalidInput(f"members {start}:{stop} make no range", field="start")
        stop = min(stop, self.num_members)
        tables, first = [], 0
        with pq.ParquetFile(self._file, metadata=self._metadata) as file:
            for group in range(self._metadata.num_row_groups):
                rows = self._metadata.row_group(group).num_rows
                if first < stop and start < first + rows:
                    low, high = max(start - first, 0), min(stop - first, rows)
                    tables.append(_read_group(file, group).slice(low, high - low))
                first += rows
            return pa.concat_tables(tables) if tables else file.schema_arrow.empty_table()

    def batches(self, size: int, start: int = 0, columns: Sequence[str] | None = None) -> Iterator[pa.RecordBatch]:
        """Members from rank `start + 1` on, `size` or fewer at a time, never more than one row group in memory.

        `columns`: by default all of rank, user_id and score.
        """
        first = 0
        with pq.ParquetFile(self._file, metadata=self._metadata) as file:
            for group in range(self._metadata.num_row_groups):
                rows = self._metadata.row_group(group).num_rows
                if start < first + rows:
                    table = _read_group(file, group, columns).slice(max(start - first, 0))
                    yield from table.combine_chunks().to_batches(max_chunksize=size)
                first += rows

    def reserve_batches(self, size: int, columns: Sequence[str]) -> Iterator[pa.RecordBatch]:
        """Who comes after the members, as `batches`."""
        if self.receipt.reserve is not None:
            yield from self._stream(RESERVE_NAME, size, columns, self.receipt.reserve.size)

    def ids(self, name: str) -> Iterator[pa.Array]:
        """Of a file of ids, as many at a time as one row group of ours has."""
        return (batch["user_id"] for batch in self._stream(name, ID_GROUP, ["user_id"]))

    def reserve(self) -> pa.Table:
        """Who comes after the members, best first, in the form of members; empty if there is none."""
        if self.receipt.reserve is None:
            return self.members(0, 0)
        return self._read(RESERVE_NAME)

    def seeds(self) -> pa.Array:
        """User ids of the seeds that were matched, ascending; those who opted out since are left out."""
        return self._read(SEEDS_NAME)["user_id"].combine_chunks()

    def previous(self) -> pa.Array | None:
        """User ids of the previous members among members and reserve, ascending, where a churn budget limits them."""
        if self.receipt.refresh is None or self.receipt.churn_budget >= 1:
            return None
        return self._read(PREVIOUS_NAME)["user_id"].combine_chunks()

    def exclusions(self) -> Path | None:
        """The file of the excluded users' ids, ascending, if any was in the pool; as of `seeds`."""
        if not self.receipt.exclusions_sha256:
            return None
        return current(self.path, EXCLUSIONS_NAME, self.receipt)

    def _stream(
        self, name: str, size: int, columns: Sequence[str], users: int | None = None
    ) -> Iterator[pa.RecordBatch]:
        """`users`: there must be, if that is known."""
        try:
            with pq.ParquetFile(_open(self.path, name, self.receipt), buffer_size=PAGE_BYTES) as file:
                found = file.metadata.num_rows
                if users is not None and found != users:
                    raise DataCorrupted(f"{self.path / name} has {found} users, its receipt {users}", field=name)
                for group in range(file.metadata.num_row_groups):  # those of one reader stay in memory
                    for batch in file.iter_batches(size, row_groups=[group], columns=columns, use_threads=False):
                        batch["user_id"]
                        yield batch
        except (OSError, pa.ArrowInvalid, KeyError) as error:
            raise DataCorrupted(f"cannot read {self.path / name}: {error}", field=name) from error

    def _read(self, name: str) -> pa.Table:
        try:
            table = pq.read_table(_open(self.path, name, self.receipt))
            table["user_id"]
        except (OSError, pa.ArrowInvalid, KeyError) as error:
            raise DataCorrupted(f"cannot read {self.path / name}: {error}", field=name) from error
        return table


def revised(folder: Path, name: str, revision: int) -> Path:
    """Where a revision's file is before it has its name: beside, with the revision's number."""
    stem, _, suffix = name.rpartition(".")
    return folder / f"{stem}.{revision}.{suffix}"


def current(folder: Path, name: str, receipt: Receipt) -> Path:
    """The path of a file of the audience, while nobody revises it."""
    beside = revised(folder, name, receipt.revision)
    return beside if beside.exists() else folder / name


def _open(folder: Path, name: str, receipt: Receipt) -> pa.NativeFile:
    """A file of the audience, opened; of another revision than the receipt's if that has just been replaced."""
    for path in (revised(folder, name, receipt.revision), folder / name):
        try:
            return pa.OSFile(str(path))
        except FileNotFoundError:
            continue
        except OSError as error:
            raise DataCorrupted(f"cannot read {path}: {error}", field=name) from error
    raise DataCorrupted(f"cannot read {folder / name}: there is no such file", field=name)


def receipt_version(folder: Path) -> tuple[int, int] | None:
    """Another one for every receipt that was ever there: they are replaced, never written to."""
    try:
        status = (folder / RECEIPT_NAME).stat()
    except FileNotFoundError:
        return None
    return status.st_ino, status.st_mtime_ns


def _read_group(file: pq.ParquetFile, group: int, columns: Sequence[str] | None = None) -> pa.Table:
    try:
        return file.read_row_group(group, columns=columns, use_threads=columns is None)
    except (OSError, pa.ArrowInvalid) as error:
        raise DataCorrupted(f"{AUDIENCE_NAME} is damaged: {error}", field=AUDIENCE_NAME) from error


class _Rows:
    """A Parquet file that is being written: the same rows give the same bytes, however they come. One row group of them
    is in memory. `with` it.
    """

    def __init__(self, path: Path, schema: pa.Schema, group: int) -> None:
        self._writer = pq.ParquetWriter(path, schema, compression="zstd")
        self._schema = schema
        self._group = group
        self._waiting: list[pa.RecordBatch] = []
        self._rows = 0  # of them
        self._written = False

    def _append(self, columns: Sequence[pa.Array]) -> None:
        batch = pa.RecordBatch.from_arrays(columns, schema=self._schema)
        while batch.num_rows:
            some = batch.slice(0, self._group - self._rows)
            batch = batch.slice(some.num_rows)
            self._waiting.append(some)
            self._rows += some.num_rows
            if self._rows == self._group:
                self._flush()

    def _flush(self) -> None:
        table = pa.Table.from_batches(self._waiting, self._schema).combine_chunks()  # pages end where chunks do
        self._writer.write_table(table, row_group_size=self._group)
        self._waiting, self._rows, self._written = [], 0, True

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        with self._writer:
            if error is None and (self._rows or not self._written):
                self._flush()


class MembersFile(_Rows):
    """`audience.parquet` or `reserve.parquet`, being written."""

    def __init__(self, path: Path, id_type: pa.DataType, *, first_rank: int = 1) -> None:
        schema = pa.schema([("rank", pa.int64()), ("user_id", id_type), ("score", pa.float32())])
        super().__init__(path, schema, ROW_GROUP)
        self._next = first_rank

    def add(self, user_ids: pa.Array, scores: npt.NDArray[np.float32]) -> None:
        """Who comes next."""
        ranks = np.arange(self._next, self._next + len(scores), dtype=np.int64)
        self._append([pa.array(ranks), user_ids, pa.array(scores, pa.float32())])
        self._next += len(scores)


class IdsFile(_Rows):
    """`seeds.parquet` or `previous.parquet`, being written."""

    def __init__(self, path: Path, id_type: pa.DataType) -> None:
        super().__init__(path, pa.schema([("user_id", id_type)]), ID_GROUP)

    def add(self, user_ids: pa.Array) -> None:
        """Further ids, ascending."""
        self._append([user_ids])


def write_members(path: Path, user_ids: pa.Array, scores: npt.NDArray[np.float32], *, first_rank: int = 1) -> None:
    """Write `audience.parquet` or `reserve.parquet`."""
    with MembersFile(path, user_ids.type, first_rank=first_rank) as file:
        file.add(user_ids, scores)


def write_ids(path: Path, user_ids: pa.Array) -> None:
    """Write `seeds.parquet` or `previous.parquet`: ascending ids."""
    with IdsFile(path, user_ids.type) as file:
        file.add(user_ids)


def write_exclusions(path: Path, id_type: pa.DataType, pieces: Iterable[pa.Array]) -> None:
    """Write `exclusions.parquet`: the excluded users of the pool, ascending, a piece at a time."""
    schema = pa.schema([("user_id", id_type)])
    with pq.ParquetWriter(path, schema, compression="zstd") as writer:
        for ids in pieces:
            writer.write_table(pa.table([ids], schema=schema))


def write_receipt(folder: Path, receipt: Receipt) -> None:
    """Write `manifest.json`."""
    (folder / RECEIPT_NAME).write_bytes(receipt_text(receipt))


def receipt_text(receipt: Receipt) -> bytes:
    """What `manifest.json` holds."""
    return (json.dumps(receipt.to_json(), indent=1, ensure_ascii=False) + "\n").encode()


def ids_digest(pieces: Iterable[pa.Array]) -> str:
    """SHA-256 of ids: eight little-endian bytes each, or UTF-8 each followed by a zero byte."""
    digest = hashlib.sha256()
    for ids in pieces:
        if pa.types.is_int64(ids.type):
            digest.update(ids.to_numpy(zero_copy_only=False).astype("<i8", copy=False))
        else:
            digest.update("".join(f"{user_id}\0" for user_id in ids.to_pylist()).encode())
    return digest.hexdigest()
