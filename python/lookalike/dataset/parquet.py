"""Parquet as one table that need not fit in memory, wherever its files lie, and SQL over it.

Knows `errors`; knows nothing of users, campaigns or features.
"""

from __future__ import annotations

import tempfile
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

import duckdb
import pyarrow as pa
import pyarrow.parquet as pq
from pyarrow import fs
from pyarrow.dataset import dataset

from lookalike.dataset.location import Source, locate, telling
from lookalike.errors import DataCorrupted, ResourceExhausted, SchemaError

# Rows of a batch: large enough that a call's overhead vanishes, small enough for the cache of one core.
BATCH_ROWS = 65_536
# Beyond this, sorting and grouping go to disk. A default that leaves room on an 8 GiB machine.
DEFAULT_MEMORY_GIB = 4.0
# A footer is a round trip or two: a folder of a thousand files on an object store would take minutes one by one.
_FOOTERS_AT_ONCE = 16


@dataclass(frozen=True)
class ParquetSource:
    """Files of one schema on one filesystem, read as if they were one table, in the order of `files`."""

    files: tuple[str, ...]
    schema: pa.Schema
    rows: int
    filesystem: fs.FileSystem

    @staticmethod
    def open(source: Source, filesystem: fs.FileSystem | None = None) -> ParquetSource:
        """Read the footers of `source`: a file, a folder (every `*.parquet` in it, by name), a glob or a list of these.

        Args:
            filesystem: where the paths lie; default: what a URI says (`s3://`, `gs://`, `file://`), else local.

        Raises:
            NotFound, Unauthenticated, Unavailable, InvalidInput: as `locate`. DataCorrupted: a file is not Parquet.
            SchemaError: the files differ in their columns.
        """
        filesystem, files = locate(source, filesystem, ".parquet")

        def footer(path: str) -> tuple[pa.Schema, int]:
            with open_parquet(path, filesystem) as file:
                return file.schema_arrow.remove_metadata(), file.metadata.num_rows

        schema: pa.Schema | None = None
        rows = 0
        with ThreadPoolExecutor(_FOOTERS_AT_ONCE) as threads:
            for path, (found, count) in zip(files, threads.map(footer, files), strict=True):
                if schema is not None and not found.equals(schema):
                    raise SchemaError(
                        f"{_name(path)} has the columns {_columns(found)}, but {_name(files[0])} has "
                        f"{_columns(schema)}: give files of one schema",
                        field=_name(path),
                    )
                schema = found
                rows += count
        return ParquetSource(files, schema, rows, filesystem)

    @property
    def name(self) -> str:
        """What errors call the table: its file name, or the folder's."""
        return _name(self.files[0]) if len(self.files) == 1 else PurePosixPath(self.files[0]).parent.name

    def batches(
        self, columns: Sequence[str], batch_rows: int = BATCH_ROWS, *, dictionaries: bool = False
    ) -> Iterator[pa.RecordBatch]:
        """The rows in order, in batches of at most `batch_rows`.

        Args:
            dictionaries: strings come as Arrow dictionaries, which is how Parquet keeps what repeats: no text is made.

        Raises:
            DataCorrupted: a file is damaged. NotFound, Unauthenticated, Unavailable: it can no longer be read.
        """
        as_dictionaries = [name for name in columns if _is_text(self.schema.field(name).type)] if dictionaries else None
        for path in self.files:
            with open_parquet(path, self.filesystem, read_dictionary=as_dictionaries) as file, telling(path):
                # Group by group: what is read ahead is then one group, and a batch has one dictionary.
                for group in range(file.num_row_groups):
                    yield from file.iter_batches(batch_rows, row_groups=[group], columns=list(columns))

    def register(self, connection: duckdb.DuckDBPyConnection, name: str) -> None:
        """Make the table known to SQL as `name`."""
        if isinstance(self.filesystem, fs.LocalFileSystem):  # the engine's own reader is quicker
            connection.read_parquet(list(self.files)).create_view(name)
        else:
            connection.register(name, dataset(list(self.files), filesystem=self.filesystem, format="parquet"))


def _columns(schema: pa.Schema) -> str:
    return ", ".join(f"{field.name} {field.type}" for field in schema)


def _is_text(kind: pa.DataType) -> bool:
    return bool(pa.types.is_string(kind) or pa.types.is_large_string(kind))


def _name(path: str) -> str:
    return PurePosixPath(path).name


@contextmanager
def open_parquet(path: str | Path, filesystem: fs.FileSystem | None = None, **options: Any) -> Iterator[pq.ParquetFile]:
    """An open Parquet file; `options` are `pyarrow.parquet.ParquetFile`'s.

    Raises:
        NotFound: no such file. DataCorrupted: it is not Parquet. Unauthenticated, Unavailable: as `telling`.
    """
    filesystem = filesystem or fs.LocalFileSystem()
    with telling(str(path)):
        source = filesystem.open_input_file(str(path))
    with source:
        try:
            # Read ahead by ranges: an object store answers few large requests sooner than many small ones.
            file = pq.ParquetFile(source, pre_buffer=True, **options)
        except pa.ArrowException as error:
            raise DataCorrupted(f"{path} is not a Parquet file: {error}", field=_name(str(path))) from error
        with file:
            yield file


@contextmanager
def sql(scratch: Path | None = None, memory_gib: float = DEFAULT_MEMORY_GIB) -> Iterator[duckdb.DuckDBPyConnection]:
    """A private SQL engine that sorts and groups in `memory_gib` and spills to `scratch` (default: the temp folder).

    Raises:
        ResourceExhausted: memory and disk ran out. DataCorrupted: what was read is damaged.
    """
    with tempfile.TemporaryDirectory(prefix="lookalike-sql-", dir=scratch) as spill:
        config: dict[str, str | bool | int | float | list[str]] = {
            "memory_limit": f"{max(1, round(memory_gib * 1024))}MiB",
            "temp_directory": spill,
            "preserve_insertion_order": "false",  # an ORDER BY says what order matters; the rest may stream
            "arrow_large_buffer_size": "true",  # 64-bit offsets: a shard's lists and strings may pass 2 GiB
            "autoinstall_known_extensions": "false",  # never the network
        }
        try:
            with duckdb.connect(":memory:", config=config) as connection:
                connection.execute("SET enable_progress_bar = false")  # what is shown is for the caller to decide
                yield connection
        except (duckdb.OutOfMemoryException, duckdb.IOException) as error:
            raise ResourceExhausted(f"memory ({memory_gib} GiB) and disk ({spill}) ran out: {error}") from error
        except (duckdb.Error, RuntimeError) as error:
            # The engine polls for signals while it runs, and swallows the KeyboardInterrupt.
            if isinstance(error, duckdb.InterruptException) or "Query interrupted" in str(error):
                raise KeyboardInterrupt from None
            if isinstance(error, duckdb.Error):  # the queries are ours and fixed, so it is what they read
                raise DataCorrupted(f"the data cannot be read: {error}") from error
            raise


def quoted(name: str) -> str:
    """A column name as SQL."""
    return '"' + name.replace('"', '""') + '"'
