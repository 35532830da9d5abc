"""From Parquet of any size to a pool snapshot: encode, sort by user id out of core, write shards, publish.

Each row passes once, in batches; memory is the sorter's limit plus one shard. Knows `schema`, Parquet and shards.
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterator, Sequence
from contextlib import closing
from datetime import UTC, datetime
from pathlib import Path

import duckdb
import pyarrow as pa
import pyarrow.compute as pc

from lookalike.dataset.parquet import DEFAULT_MEMORY_GIB, ParquetSource, sql
from lookalike.dataset.vocabulary import build_schema
from lookalike.errors import InternalError, InvalidInput
from lookalike.files import file_digest, staged_folder
from lookalike.pool.manifest import Manifest, Shard
from lookalike.pool.shard import ID_COLUMN, arrow_schema, to_arrow, write
from lookalike.pool.snapshot import Pool, is_ascending
from lookalike.schema import FeatureSchema, as_ids, id_type, require_column

# 4,194,304: a multiple of every power-of-two block, so blocks are views; some 0.5 GB a shard, 240 shards a billion.
SHARD_ROWS = 1 << 22

ProgressCallback = Callable[[int, int], None]


def ingest(
    source: Path | Sequence[Path],
    output: Path,
    *,
    schema: FeatureSchema | None = None,
    progress: ProgressCallback | None = None,
    overwrite: bool = False,
    as_of: datetime | None = None,
    shard_rows: int = SHARD_ROWS,
    memory_gib: float = DEFAULT_MEMORY_GIB,
) -> Pool:
    """Write a snapshot folder and open it. On any failure, Ctrl-C too, nothing is left behind.

    Args:
        source: Parquet with a column `user_id` (integers or strings) and the features; file, folder or list.
        schema: what to encode, usually the checkpoint's; default: every column, vocabularies from these rows.
        progress: called with (rows done, rows in all); raise from it to stop. It may run on another thread.
        overwrite: replace an existing `output`; pools open on the old one keep reading it.
        as_of: when the data was taken; default now.
        shard_rows: rows of a shard.
        memory_gib: what the sort may use before it spills to the disk of `output`.

    Raises:
        NotFound, DataCorrupted: as `ParquetSource.open`. AlreadyExists: `output` exists.
        SchemaError: a column is missing or of a wrong type. ResourceExhausted: disk or memory ran out.
        InvalidInput: no users, null or duplicate ids, or a nonsensical limit.
    """
    if shard_rows < 1:
        raise InvalidInput(f"shard_rows must be 1 or more, not {shard_rows}", field="shard_rows")
    if as_of is not None and as_of.tzinfo is None:
        raise InvalidInput(f"as_of {as_of} has no time zone; give one", field="as_of")
    parquet = ParquetSource.open(source)
    where = f"{parquet.name}:{ID_COLUMN}"
    kept_id_type = id_type(require_column(parquet.schema, ID_COLUMN, where=parquet.name).type, where=where)
    if parquet.rows == 0:
        raise InvalidInput(f"{parquet.name} holds no users", field=where)
    now = datetime.now(UTC)
    with staged_folder(Path(output), overwrite=overwrite) as folder:
        if schema is None:
            schema = build_schema(parquet.files, where=parquet.name, scratch=folder, memory_gib=memory_gib)
        columns = arrow_schema(schema, kept_id_type)
        counter = _Progress(parquet.rows, progress)
        encoded = _encoded(parquet, schema, columns, counter)
        with closing(_sorted(encoded, columns, folder, memory_gib)) as batches:
            shards = _write_shards(folder, _cut(batches, columns, shard_rows), where, counter)
        Manifest(
            id_type="int64" if pa.types.is_int64(kept_id_type) else "string",
            rows=parquet.rows,
            schema=schema,
            shards=shards,
            created=now.isoformat(timespec="seconds"),
            as_of=(as_of or now).isoformat(timespec="seconds"),
        ).write(folder)
    return Pool.open(Path(output))


def _write_shards(folder: Path, batches: Iterator[pa.RecordBatch], where: str, counter: _Progress) -> tuple[Shard, ...]:
    shards: list[Shard] = []
    first_row = 0
    last: pa.Array | None = None
    for batch in batches:
        user_ids = batch.column(0)
        _refuse_duplicates(user_ids if last is None else pa.concat_arrays([last, user_ids]), where)
        last = user_ids.slice(len(user_ids) - 1)
        path = folder / f"users-{len(shards):05d}.arrow"
        write(path, batch)
        size = path.stat().st_size
        shards.append(
            Shard(file=path.name, first_row=first_row, rows=batch.num_rows, bytes=size, sha256=file_digest(path))
        )
        first_row += batch.num_rows
        counter.written(batch.num_rows)
    return tuple(shards)


class _Progress:
    """A row is half done when read and done when written."""

    def __init__(self, total: int, callback: ProgressCallback | None) -> None:
        self._total = total
        self._callback = callback
        self._halves = 0

    def read(self, rows: int) -> None:
        self._halves += rows
        if self._callback is not None:
            self._callback(self._halves // 2, self._total)

    written = read


def _encoded(
    parquet: ParquetSource, schema: FeatureSchema, columns: pa.Schema, counter: _Progress
) -> Iterator[pa.RecordBatch]:
    names = [ID_COLUMN] + [field.name for field in schema.fields]
    where = f"{parquet.name}:{ID_COLUMN}"
    for field in schema.fields:
        require_column(parquet.schema, field.name, where=parquet.name)
    for batch in parquet.batches(names):
        user_ids = as_ids(batch[ID_COLUMN], where=where)
        if user_ids.null_count:
            raise InvalidInput(f"'{where}' holds a null; every row needs an id", field=where, reason="NULL_ID")
        encoded = schema.encode(pa.Table.from_batches([batch]), where=parquet.name)
        yield to_arrow(user_ids, encoded, columns)
        counter.read(batch.num_rows)


def _sorted(
    batches: Iterator[pa.RecordBatch], columns: pa.Schema, scratch: Path, memory_gib: float
) -> Generator[pa.RecordBatch, None, None]:
    """The rows in order of user id: int64 by value, strings by UTF-8 bytes."""
    # SQL tells no two names apart that differ by case only, so columns travel by number.
    numbered = pa.schema([column.with_name(f"c{number}") for number, column in enumerate(columns)])
    failure: list[BaseException] = []

    def feed() -> Iterator[pa.RecordBatch]:
        try:
            for batch in batches:
                yield batch.rename_columns(numbered.names)
        except BaseException as error:  # the engine would pass on no more than its text
            failure.append(error)
            raise

    with sql(scratch, memory_gib) as connection:
        try:
            connection.register("encoded", pa.RecordBatchReader.from_batches(numbered, feed()))
            reader = connection.sql("SELECT * FROM encoded ORDER BY c0").to_arrow_reader(1 << 16)
            for batch in reader:
                yield pa.record_batch([pc.cast(a, c.type) for a, c in zip(batch, columns, strict=True)], schema=columns)
        except (duckdb.Error, RuntimeError):
            if failure:
                raise failure[0] from None
            raise


def _cut(batches: Iterator[pa.RecordBatch], columns: pa.Schema, rows: int) -> Iterator[pa.RecordBatch]:
    """The same rows in batches of exactly `rows`, but for the last."""
    held: list[pa.RecordBatch] = []
    count = 0
    for batch in batches:
        start = 0
        while start < batch.num_rows:
            part = batch.slice(start, rows - count)
            held.append(part)
            start += part.num_rows
            count += part.num_rows
            if count == rows:
                yield _joined(held, columns)
                held, count = [], 0
    if held:
        yield _joined(held, columns)


def _joined(parts: list[pa.RecordBatch], columns: pa.Schema) -> pa.RecordBatch:
    arrays = [pa.concat_arrays([part.column(number) for part in parts]) for number in range(len(columns))]
    return pa.record_batch(arrays, schema=columns)


def _refuse_duplicates(ids: pa.Array, where: str) -> None:
    if is_ascending(ids):
        return
    same = pc.equal(ids.slice(1), ids.slice(0, len(ids) - 1))
    if not pc.any(same).as_py():
        raise InternalError("the sorter gave user ids out of order")
    example = ids.slice(1).filter(same)[0].as_py()
    raise InvalidInput(
        f"'{where}' holds {example!r} more than once; keep one row for each user", field=where, reason="DUPLICATE_ID"
    )
