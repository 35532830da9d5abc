"""Users to leave out, by id: from memory, Parquet, text or Roaring bitmaps to a bitmap of rows, a piece at a time.

Knows pools and Parquet; knows nothing of seeds or audiences.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import TypeAlias, cast

import pyarrow as pa
import pyarrow.compute as pc

from lookalike.dataset.parquet import ParquetSource
from lookalike.errors import InvalidInput, NotFound
from lookalike.pool.bitmap import Bitmap, count, empty_bitmap, mark, rows_of
from lookalike.pool.id_text import id_lines, no_integer
from lookalike.pool.roaring import roaring_ids
from lookalike.pool.snapshot import Pool
from lookalike.schema import as_ids, require_column

UserIds: TypeAlias = pa.Array | pa.ChunkedArray | Sequence[int | str]
Exclude: TypeAlias = UserIds | Path | Sequence[Path]

# Ids looked up at once: some 100 MB of Python's text where a text file is read, a tenth of that otherwise.
_PIECE = 1 << 20


@dataclass(frozen=True)
class Exclusions:
    """Ids as given and what became of them: given = matched + duplicates + not_in_pool. `bitmap` marks their rows."""

    bitmap: Bitmap
    given: int
    matched: int
    duplicates: int
    not_in_pool: int


def exclusions(pool: Pool, source: Exclude) -> Exclusions:
    """The rows of `source`: user ids of the pool's type, or files of them.

    A file that ends in `.parquet` has a column `user_id`; one that ends in `.roaring` is a Roaring bitmap of integer
    ids in its portable serialisation, of 32 or 64 bits; any other is text with one id a line, below a line `user_id` or
    not.

    Raises:
        NotFound: no such file. DataCorrupted, SchemaError: not Parquet, or without the column; no Roaring bitmap.
        InvalidInput: ids of another type than the pool's, or null; field "exclude".
    """
    bitmap = empty_bitmap(pool.num_users)
    given = found = 0
    for ids in _pieces(pool, source):
        rows = pool.find(ids, field="exclude")
        known = rows[rows >= 0]
        mark(bitmap, known)
        given += len(rows)
        found += len(known)
    matched = count(bitmap)
    return Exclusions(bitmap, given, matched, found - matched, given - found)


def marked_ids(pool: Pool, bitmap: Bitmap) -> Iterator[pa.Array]:
    """User ids of the marked rows, ascending, a piece at a time."""
    for rows in rows_of(bitmap):
        yield pool.user_ids(rows)


def _pieces(pool: Pool, source: Exclude) -> Iterator[UserIds]:
    if isinstance(source, Path):
        read = _BY_SUFFIX.get(source.suffix, _text)
        yield from read(source, pool)
    elif not isinstance(source, pa.Array | pa.ChunkedArray) and len(source) and isinstance(source[0], Path):
        for path in source:
            yield from _pieces(pool, cast(Path, path))
    else:
        for start in range(0, len(source), _PIECE):
            yield cast(UserIds, source[start : start + _PIECE])


def _parquet(path: Path, pool: Pool) -> Iterator[pa.Array]:  # noqa: ARG001  as the others are called
    parquet = ParquetSource.open(path)
    require_column(parquet.schema, "user_id", where=str(path))
    for batch in parquet.batches(["user_id"], _PIECE):
        yield as_ids(batch["user_id"], where=f"{path}:user_id")


def _roaring(path: Path, pool: Pool) -> Iterator[pa.Array]:
    if not pa.types.is_int64(pool.id_type):
        raise InvalidInput(
            f"user ids of this pool are strings, and {path} is a bitmap of integers: give Parquet or text",
            field="exclude",
        )
    yield from roaring_ids(path, _PIECE, field="exclude")


def _text(path: Path, pool: Pool) -> Iterator[pa.Array]:
    try:
        with path.open(encoding="utf-8") as file:
            texts, before = id_lines(file), 0
            while lines := list(islice(texts, _PIECE)):
                ids = pa.array(filter(None, lines), pa.large_string())
                yield ids if pa.types.is_large_string(pool.id_type) else _integers(ids, lines, before, path)
                before += len(lines)
    except FileNotFoundError as error:
        raise NotFound(f"no file {path}", field="exclude") from error
    except (OSError, UnicodeDecodeError) as error:
        raise InvalidInput(f"cannot read {path} as text: {error}", field="exclude") from error


def _integers(ids: pa.Array, lines: Sequence[str], before: int, path: Path) -> pa.Array:
    """`ids` are those of `lines`, which come after so many others."""
    try:
        return pc.cast(ids, pa.int64())
    except pa.ArrowInvalid as error:
        number, wrong = next((n, line) for n, line in enumerate(lines, before + 1) if line and not _is_int64(line))
        raise no_integer(number, wrong, path, field="exclude") from error


def _is_int64(text: str) -> bool:
    return re.fullmatch("-?[0-9]{1,19}", text) is not None and -(1 << 63) <= int(text) < 1 << 63


_BY_SUFFIX = {".parquet": _parquet, ".roaring": _roaring}
