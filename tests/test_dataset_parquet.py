"""Parquet sources of one file, many, or a folder."""

from __future__ import annotations

from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from lookalike.dataset.parquet import ParquetSource, quoted, sql
from lookalike.errors import DataCorrupted, InvalidInput, NotFound, ResourceExhausted, SchemaError


def write(path: Path, start: int, rows: int) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(pa.table({"a": range(start, start + rows), "b": ["x"] * rows}), path)
    return path


def read(source: ParquetSource, batch_rows: int = 7) -> list[int]:
    batches = list(source.batches(["a"], batch_rows))
    assert all(batch.num_rows <= batch_rows for batch in batches)
    assert all(batch.schema.names == ["a"] for batch in batches)
    return [value for batch in batches for value in batch["a"].to_pylist()]


def test_a_file_a_list_and_a_folder(tmp_path: Path) -> None:
    first, second = write(tmp_path / "d/p-1.parquet", 0, 10), write(tmp_path / "d/sub/p-2.parquet", 10, 20)
    (tmp_path / "d/_SUCCESS").touch()
    (tmp_path / "d/_metadata.parquet").touch()
    assert read(ParquetSource.open(first)) == list(range(10))
    assert read(ParquetSource.open([second, first])) == [*range(10, 30), *range(10)]
    folder = ParquetSource.open(tmp_path / "d")
    assert read(folder) == list(range(30))
    assert folder.rows == 30
    with sql() as connection:
        folder.register(connection, "t")
        assert connection.execute("SELECT sum(a), count(*) FROM t").fetchone() == (435, 30)


def test_what_cannot_be_opened_is_named(tmp_path: Path) -> None:
    with pytest.raises(NotFound, match="no-such"):
        ParquetSource.open(tmp_path / "no-such")
    with pytest.raises(NotFound, match=r"\*\.parquet"):
        ParquetSource.open(tmp_path)
    with pytest.raises(InvalidInput):
        ParquetSource.open([])
    (tmp_path / "x.parquet").write_text("no")
    with pytest.raises(DataCorrupted, match=r"x\.parquet"):
        ParquetSource.open(tmp_path / "x.parquet")


def test_files_of_different_schemas_are_refused(tmp_path: Path) -> None:
    first = write(tmp_path / "a.parquet", 0, 1)
    pq.write_table(pa.table({"a": [1.5], "b": ["x"]}), tmp_path / "b.parquet")
    with pytest.raises(SchemaError, match=r"b\.parquet has the columns a double"):
        ParquetSource.open([first, tmp_path / "b.parquet"])


def test_damage_within_a_file_is_named(tmp_path: Path) -> None:
    path = write(tmp_path / "a.parquet", 0, 10_000)
    data = bytearray(path.read_bytes())
    data[4:2000] = bytes(1996)
    path.write_bytes(data)
    with pytest.raises(DataCorrupted, match=r"a\.parquet is damaged"):
        read(ParquetSource.open(path))


def test_names_are_quoted_for_sql() -> None:
    with sql() as connection:
        connection.register("t", pa.table({'odd "name"; --': [1]}))
        name = quoted('odd "name"; --')
        assert connection.execute(f"SELECT {name} FROM t").fetchall() == [(1,)]


def test_sql_sorts_more_than_its_memory_and_leaves_no_spill(tmp_path: Path) -> None:
    with sql(tmp_path, memory_gib=0.06) as connection:
        connection.execute("SET threads = 1")
        query = "SELECT hash(i) AS h, repeat('x', 40) || i AS s FROM range(2000000) t(i) ORDER BY h"
        last, rows = -1, 0
        spilled = False
        for batch in connection.sql(query).to_arrow_reader(1 << 16):
            spilled = spilled or any(path.is_file() for path in tmp_path.rglob("*"))
            first = batch["h"][0].as_py()
            assert first > last
            last, rows = batch["h"][-1].as_py(), rows + batch.num_rows
        assert rows == 2_000_000
        assert spilled
    assert list(tmp_path.iterdir()) == []


def test_sql_over_damaged_data_says_so(tmp_path: Path) -> None:
    path = write(tmp_path / "a.parquet", 0, 10_000)
    source = ParquetSource.open(path)
    data = bytearray(path.read_bytes())
    data[4:2000] = bytes(1996)
    path.write_bytes(data)

    def count() -> None:
        with sql() as connection:
            source.register(connection, "t")
            connection.execute("SELECT sum(a) FROM t")

    with pytest.raises(DataCorrupted, match="cannot be read"):
        count()


def test_sql_that_runs_out_of_memory_and_disk_says_so(tmp_path: Path) -> None:
    def sort() -> None:
        with sql(tmp_path, memory_gib=0.03) as connection:
            connection.execute("SET max_temp_directory_size = '1MB'")
            query = (
                "SELECT sum(hash(s)) FROM (SELECT repeat(hash(i)::VARCHAR, 9) AS s FROM range(3000000) t(i) GROUP BY s)"
            )
            connection.execute(query)

    with pytest.raises(ResourceExhausted, match="ran out"):
        sort()
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("error", [KeyError, RuntimeError])
def test_errors_of_the_caller_pass_through(error: type[Exception]) -> None:
    def fail() -> None:
        with sql():
            raise error("mine")

    with pytest.raises(error, match="mine"):
        fail()
