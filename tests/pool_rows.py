"""Users to ingest, and encoded rows as plain values."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from lookalike.pool.snapshot import Pool
from lookalike.schema import EncodedColumns


def users(count: int, seed: int = 0, *, text: bool = False) -> pa.Table:
    """Users in random order, ids with gaps, below zero too; strings whose order by bytes is not that of the numbers."""
    rng = np.random.default_rng(seed)
    numbers = rng.permutation(count) * 3 - count
    tags = [None if n % 7 == 0 else [f"t{n % 5}", f"t{n % 11}"][: n % 3] for n in numbers.tolist()]
    return pa.table(
        {
            "age": rng.normal(40, 10, count),
            "user_id": [f"u{n}é" for n in numbers.tolist()] if text else numbers,
            "City": [None if n % 9 == 0 else f"city{n % 300}" for n in numbers.tolist()],
            "tags": pa.array(tags, pa.list_(pa.string())),
        }
    )


def write(path: Path, table: pa.Table, **options: Any) -> Path:
    pq.write_table(table, path, **options)
    return path


def rows_by_id(pool: Pool) -> dict[Any, tuple[object, ...]]:
    """Encoded features of every user, by id."""
    columns = pool.read(0, pool.num_users)
    ids = pool.user_ids(np.arange(pool.num_users)).to_pylist()
    return {user_id: encoded(columns, row) for row, user_id in enumerate(ids)}


def encoded(columns: EncodedColumns, row: int) -> tuple[object, ...]:
    found: list[object] = []
    for name, ids in columns.ids.items():
        starts = columns.offsets.get(name)
        found.append(int(ids[row]) if starts is None else ids[starts[row] : starts[row + 1]].tolist())
    return tuple(found)
