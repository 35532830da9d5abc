"""Parquet as one table that need not fit in memory: a file, a folder of files or a list, and SQL over it.

Knows `errors`; knows nothing of users, campaigns or features.
"""

from __future__ import annotations

import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import duckdb
import pyarrow as pa
import pyarrow.parquet as pq

from lookalike.errors import DataCorrupted, InvalidInput, NotFound, ResourceExhausted, SchemaError

# Rows of a batch: large enough that a call's overhead vanishes, small enough for the cache of one core.
BATCH_ROWS = 65_536
# Beyond this, sorting and grouping go to disk. A default that leaves room on an 8 GiB machine.
DEFAULT_MEMORY_GIB = 4.0


@dataclass(frozen=True)
class ParquetSource:
    """Files of one schema, read as if they were one table, in the order of `files`."""

    files: tuple[Path, ...]
    schema: pa.Schema
    rows: int

    @staticmethod
    def open(source: Path | Sequence[Path]) -> ParquetSource:
        """Read the footers of `source`: a file, a folder (every `*.parquet` in it, by name) or a list of files.

        Raises:
            NotFound: no such file, or none in the folder. DataCorrupted: a file is not Parquet.
            SchemaError: the files differ in their columns.
        """
        files = _files(source)
        schema: pa.Schema | None = None
        rows = 0
        for path in files:
            with open_parquet(path) as file:
                found = file.schema_arrow.remove_metadata()
                rows += file.metadata.num_rows
            if schema is not None and not found.equals(schema):
                raise SchemaError(
                    f"{path.name} has the columns {_columns(found)}, but {files[0].name} has {_columns(schema)}: "
                    "give files of one schema",
                    field=path.name,
                )
            schema = found
        return ParquetSource(files, schema, rows)

    @property
    def name(self) -> str:
        """What errors call the table: its file name, or the folder's."""
        return self.files[0].name if len(self.files) == 1 else self.files[0].parent.name

    def batches(self, columns: Sequence[str], batch_rows: int = BATCH_ROWS) -> Iterator[pa.RecordBatch]:
        """The rows in order, in batches of at most `batch_rows`.

        Raises:
            DataCorrupted: a file is damaged.
        """
        for path in self.files:
            with open_parquet(path) as file:
                try:
                    yield from file.iter_batches(batch_rows, columns=list(columns))
                except (OSError, pa.ArrowException) as error:
                    raise DataCorrupted(f"{path} is damaged: {error}", field=path.name) from error

    def register(self, connection: duckdb.DuckDBPyConnection, name: str) -> None:
        """Make the table known to SQL as `name`."""
        connection.read_parquet([str(path) for path in self.files]).create_view(name)


def _columns(schema: pa.Schema) -> str:
    return ", ".join(f"{field.name} {field.type}" for field in schema)


def _files(source: Path | Sequence[Path]) -> tuple[Path, ...]:
    if not isinstance(source, Path):
        if not source:
            raise InvalidInput("no Parquet file was given", field="source")
        return tuple(path for item in source for path in _files(Path(item)))
    if not source.is_dir():
        return (source,)
    # Spark and others leave _SUCCESS, .crc and such beside the data.
    files = tuple(sorted(path for path in source.rglob("*.parquet") if path.name[0] not in "._"))
    if not files:
        raise NotFound(f"no *.parquet file in {source}", field=source.name)
    return files


@contextmanager
def open_parquet(path: Path) -> Iterator[pq.ParquetFile]:
    """An open Parquet file.

    Raises:
        NotFound: no such file. DataCorrupted: it is not Parquet.
    """
    try:
        file = pq.ParquetFile(path)
    except FileNotFoundError as error:
        raise NotFound(f"{path} does not exist", field=path.name) from error
    except (OSError, pa.ArrowException) as error:
        raise DataCorrupted(f"{path} is not a Parquet file: {error}", field=path.name) from error
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
