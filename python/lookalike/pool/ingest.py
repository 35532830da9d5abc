"""From Parquet of any size to a pool snapshot: encode, sort by user id out of core, write shards, publish.

Memory is the sorter's limit, some batches and two shards. Knows `schema`, Parquet and shards.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import closing
from datetime import UTC, datetime
from pathlib import Path

import duckdb
import pyarrow as pa
import pyarrow.compute as pc
from pyarrow import fs

from lookalike.dataset.location import Source
from lookalike.dataset.parquet import DEFAULT_MEMORY_GIB, ParquetSource, sql
from lookalike.dataset.vocabulary import build_schema
from lookalike.errors import InternalError, InvalidInput
from lookalike.files import staged_folder
from lookalike.pool.manifest import Manifest, Shard
from lookalike.pool.publish import pointer_beside, publish_snapshot
from lookalike.pool.shard import ID_COLUMN, arrow_schema, to_arrow, write
from lookalike.pool.snapshot import Pool, is_ascending
from lookalike.schema import FeatureSchema, as_ids, id_type, require_column

# 4,194,304: a multiple of every power-of-two block, so blocks are views; some 0.1 GB a shard with 14 single-valued
# fields, 0.5 GB with as many of which half are lists; 240 shards a billion.
SHARD_ROWS = 1 << 22
# Finding a vocabulary's ids begins with hashing the vocabulary, so batches are larger than those of other readers.
_BATCH_ROWS = 1 << 18

ProgressCallback = Callable[[int, int], None]


def ingest(
    source: Source,
    output: Path,
    *,
    schema: FeatureSchema | None = None,
    filesystem: fs.FileSystem | None = None,
    progress: ProgressCallback | None = None,
    overwrite: bool = False,
    publish: bool = False,
    as_of: datetime | None = None,
    shard_rows: int = SHARD_ROWS,
    memory_gib: float = DEFAULT_MEMORY_GIB,
) -> Pool:
    """Write a snapshot folder and open it. On any failure, Ctrl-C too, nothing is left behind.

    Args:
        source: Parquet with a column `user_id` (integers or strings) and the features; file, folder, glob, URI or list.
        schema: what to encode, usually the checkpoint's; default: every column, vocabularies from these rows.
        filesystem: where `source` lies, if it is not a local path and no URI says so.
        progress: called with (rows done, rows in all); raise from it to stop. It may run on another thread.
        overwrite: replace an existing `output`; pools open on the old one keep reading it.
        publish: make it what opening the folder around `output` opens; see `publish_snapshot`.
        as_of: when the data was taken; default now.
        shard_rows: rows of a shard.
        memory_gib: what the sort may use before it spills to the disk of `output`.

    Raises:
        NotFound, DataCorrupted, Unauthenticated, Unavailable: as `ParquetSource.open`.
        AlreadyExists: `output` exists; or publishing needs a name that something else has.
        SchemaError: columns are missing or of a wrong type. ResourceExhausted: disk or memory ran out.
        InvalidInput: no users, null or duplicate ids, or a nonsensical limit.
    """
    if shard_rows < 1:
        raise InvalidInput(f"shard_rows must be 1 or more, not {shard_rows}", field="shard_rows")
    if as_of is not None and as_of.tzinfo is None:
        raise InvalidInput(f"as_of {as_of} has no time zone; give one", field="as_of")
    parquet = ParquetSource.open(source, filesystem)
    where = f"{parquet.name}:{ID_COLUMN}"
    kept_id_type = id_type(require_column(parquet.schema, ID_COLUMN, where=parquet.name).type, where=where)
    if parquet.rows == 0:
        raise InvalidInput(f"{parquet.name} holds no users", field=where)
    if schema is not None:
        schema.require_columns(parquet.schema, where=parquet.name, beside=(ID_COLUMN,))
    output = Path(output)
    if publish:
        pointer_beside(output)  # refuse sooner than after hours of work
    now = datetime.now(UTC)
    with staged_folder(output, overwrite=overwrite) as folder:
        if schema is None:
            schema = build_schema(parquet, where=parquet.name, scratch=folder, memory_gib=memory_gib)
        columns = arrow_schema(schema, kept_id_type)
        counter = _Progress(parquet.rows, progress)
        batches = _encoded(parquet, schema, columns, counter)
        if not _in_order(parquet, where):
            batches = _sorted(batches, columns, folder, memory_gib)
        with closing(batches):
            shards = _write_shards(folder, _cut(batches, columns, shard_rows), where, counter)
        Manifest(
            id_type="int64" if pa.types.is_int64(kept_id_type) else "string",
            rows=parquet.rows,
            schema=schema,
            shards=shards,
            created=now.isoformat(timespec="seconds"),
            as_of=(as_of or now).isoformat(timespec="seconds"),
        ).write(folder)
    pool = Pool.open(output)
    if publish:
        publish_snapshot(output)
    return pool


def _write_shards(folder: Path, batches: Iterator[pa.RecordBatch], where: str, counter: _Progress) -> tuple[Shard, ...]:
    """Write one shard while the next is gathered."""
    shards: list[Shard] = []

    def finish(written: Future[Shard]) -> None:
        shards.append(written.result())
        counter.written(shards[-1].rows)

    first_row = 0
    last: pa.Array | None = None
    pending: Future[Shard] | None = None
    with ThreadPoolExecutor(1) as writer:
        for number, batch in enumerate(batches):
            user_ids = batch.column(0)
            _refuse_duplicates(user_ids if last is None else pa.concat_arrays([last, user_ids]), where)
            last = user_ids.slice(len(user_ids) - 1)
            if pending is not None:
                finish(pending)
            pending = writer.submit(_write_shard, folder / f"users-{number:05d}.arrow", batch, first_row)
            first_row += batch.num_rows
        if pending is not None:
            finish(pending)
    return tuple(shards)


def _write_shard(path: Path, batch: pa.RecordBatch, first_row: int) -> Shard:
    size, digest = write(path, batch)
    return Shard(file=path.name, first_row=first_row, rows=batch.num_rows, bytes=size, sha256=digest)


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
) -> Generator[pa.RecordBatch, None, None]:
    names = [ID_COLUMN] + [field.name for field in schema.fields]
    where = f"{parquet.name}:{ID_COLUMN}"

    def encode(batch: pa.RecordBatch) -> pa.RecordBatch:
        user_ids = as_ids(batch[ID_COLUMN], where=where)
        _refuse_nulls(user_ids, where)
        return to_arrow(user_ids, schema.encode(pa.Table.from_batches([batch]), where=parquet.name), columns)

    for batch in _ahead(encode, parquet.batches(names, _BATCH_ROWS, dictionaries=True)):
        yield batch
        counter.read(batch.num_rows)


def _ahead(
    work: Callable[[pa.RecordBatch], pa.RecordBatch], batches: Iterable[pa.RecordBatch]
) -> Iterator[pa.RecordBatch]:
    """`work` done to each, in order: on one thread, while the next batch is read and the last one is used."""
    with ThreadPoolExecutor(1) as thread:
        pending: deque[Future[pa.RecordBatch]] = deque()
        for batch in batches:
            pending.append(thread.submit(work, batch))
            if len(pending) > 1:
                yield pending.popleft().result()
        while pending:
            yield pending.popleft().result()


def _in_order(parquet: ParquetSource, where: str) -> bool:
    """Whether the ids ascend already. Reads them alone, and no further than the first that is out of order."""
    last: pa.Array | None = None
    for batch in parquet.batches([ID_COLUMN]):
        if batch.num_rows:
            user_ids = as_ids(batch[ID_COLUMN], where=where)
            _refuse_nulls(user_ids, where)
            if not is_ascending(user_ids if last is None else pa.concat_arrays([last, user_ids])):
                return False
            last = user_ids.slice(len(user_ids) - 1)
    return True


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


def _refuse_nulls(ids: pa.Array, where: str) -> None:
    if ids.null_count:
        raise InvalidInput(f"'{where}' holds a null; every row needs an id", field=where, reason="NULL_ID")


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
