"""An audience on disk: `audience.parquet` in rank order, its receipt, the model that scored it, and the seeds.

Knows Parquet and the receipt; free of torch, so that the front service can read audiences.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Iterator, Sequence
from functools import cached_property
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq

from lookalike.errors import DataCorrupted, InvalidInput
from lookalike.retrieval.receipt import AUDIENCE_NAME, EXCLUSIONS_NAME, RECEIPT_NAME, SEEDS_NAME, Receipt

# A page of members decodes one row group: small enough for a page to be cheap, large enough for a scan to be fast.
ROW_GROUP = 1 << 17


class Audience:
    """A finished audience, open for reading. Safe to read from many threads."""

    def __init__(self, path: Path, receipt: Receipt) -> None:
        self.path = path
        self.receipt = receipt

    @classmethod
    def open(cls, path: Path) -> Audience:
        """Open an audience folder.

        Raises:
            NotFound: none there. DataCorrupted: the receipt or the Parquet file is damaged, or they disagree.
        """
        audience = cls(path, Receipt.read(path))
        if audience._metadata.num_rows != audience.receipt.k:
            raise DataCorrupted(
                f"{path / AUDIENCE_NAME} has {audience._metadata.num_rows} members, its receipt {audience.receipt.k}",
                field=AUDIENCE_NAME,
            )
        return audience

    @cached_property
    def _metadata(self) -> pq.FileMetaData:
        try:
            return pq.read_metadata(self.path / AUDIENCE_NAME)
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
        with pq.ParquetFile(self.path / AUDIENCE_NAME) as file:
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
        with pq.ParquetFile(self.path / AUDIENCE_NAME) as file:
            for group in range(self._metadata.num_row_groups):
                rows = self._metadata.row_group(group).num_rows
                if start < first + rows:
                    table = _read_group(file, group, columns).slice(max(start - first, 0))
                    yield from table.combine_chunks().to_batches(max_chunksize=size)
                first += rows

    def seeds(self) -> pa.Array:
        """User ids of the seeds that were matched, ascending."""
        try:
            return pq.read_table(self.path / SEEDS_NAME)["user_id"].combine_chunks()
        except (OSError, pa.ArrowInvalid, KeyError) as error:
            raise DataCorrupted(f"cannot read {self.path / SEEDS_NAME}: {error}", field=SEEDS_NAME) from error

    def exclusions(self) -> Path | None:
        """The file of the excluded users' ids, ascending, if any was in the pool."""
        return self.path / EXCLUSIONS_NAME if self.receipt.exclusions_sha256 else None


def _read_group(file: pq.ParquetFile, group: int, columns: Sequence[str] | None = None) -> pa.Table:
    try:
        return file.read_row_group(group, columns=columns, use_threads=columns is None)
    except (OSError, pa.ArrowInvalid) as error:
        raise DataCorrupted(f"{AUDIENCE_NAME} is damaged: {error}", field=AUDIENCE_NAME) from error


def write_members(path: Path, user_ids: pa.Array, scores: npt.NDArray[np.float32]) -> None:
    """Write `audience.parquet`: the same members give the same bytes."""
    table = pa.table(
        {
            "rank": pa.array(np.arange(1, len(scores) + 1, dtype=np.int64)),
            "user_id": user_ids,
            "score": pa.array(scores, pa.float32()),
        }
    )
    pq.write_table(table, path, row_group_size=ROW_GROUP, compression="zstd")


def write_seeds(path: Path, user_ids: pa.Array) -> None:
    """Write `seeds.parquet`: the matched seeds, ascending."""
    pq.write_table(pa.table({"user_id": user_ids}), path, compression="zstd")


def write_exclusions(path: Path, id_type: pa.DataType, pieces: Iterable[pa.Array]) -> None:
    """Write `exclusions.parquet`: the excluded users of the pool, ascending, a piece at a time."""
    schema = pa.schema([("user_id", id_type)])
    with pq.ParquetWriter(path, schema, compression="zstd") as writer:
        for ids in pieces:
            writer.write_table(pa.table([ids], schema=schema))


def write_receipt(folder: Path, receipt: Receipt) -> None:
    """Write `manifest.json`."""
    (folder / RECEIPT_NAME).write_text(
        json.dumps(receipt.to_json(), indent=1, ensure_ascii=False) + "\n", encoding="utf-8"
    )


def ids_digest(pieces: Iterable[pa.Array]) -> str:
    """SHA-256 of ids: eight little-endian bytes each, or UTF-8 each followed by a zero byte."""
    digest = hashlib.sha256()
    for ids in pieces:
        if pa.types.is_int64(ids.type):
            digest.update(ids.to_numpy(zero_copy_only=False).astype("<i8", copy=False))
        else:
            digest.update("".join(f"{user_id}\0" for user_id in ids.to_pylist()).encode())
    return digest.hexdigest()
