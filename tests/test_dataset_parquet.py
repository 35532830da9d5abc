"""Parquet sources of one file, many, or a folder."""

from __future__ import annotations

from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from pyarrow import fs

from lookalike.dataset.parquet import ParquetSource, quoted, sql
from lookalike.errors import (
    DataCorrupted,
    InvalidInput,
    NotFound,
    ResourceExhausted,
    SchemaError,
    Unauthenticated,
    Unavailable,
)


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


def test_globs_uris_and_other_filesystems(tmp_path: Path) -> None:
    for day in range(3):
        for part in range(2):
            write(tmp_path / f"day={day}/part-{part}.parquet", 20 * day + 10 * part, 10)
        write(tmp_path / f"day={day}/.part-9.parquet", 1000, 10)
    every, second, first_parts = list(range(60)), list(range(20, 40)), [*range(10), *range(20, 30), *range(40, 50)]
    elsewhere = fs.SubTreeFileSystem(str(tmp_path), fs.LocalFileSystem())
    for pattern, expected in (
        ("", every),
        ("day=*", every),
        ("day=*/*.parquet", every),
        ("day=1", second),
        ("day=[1]/part-?.parquet", second),
        ("*/part-0.parquet", first_parts),
    ):
        assert read(ParquetSource.open(f"{tmp_path}/{pattern}")) == expected
        if "?" not in pattern and "[" not in pattern:
            assert read(ParquetSource.open(f"file://{tmp_path}/{pattern}")) == expected
        source = ParquetSource.open(pattern, elsewhere)
        assert read(source) == expected
        with sql() as connection:
            source.register(connection, "t")
            assert connection.execute("SELECT sum(a), count(*) FROM t").fetchone() == (sum(expected), len(expected))


def test_a_name_with_wildcards_in_it_is_that_name(tmp_path: Path) -> None:
    odd = write(tmp_path / "p[1]*.parquet", 0, 5)
    write(tmp_path / "p1.parquet", 5, 5)
    assert read(ParquetSource.open(odd)) == list(range(5))


def test_places_that_cannot_be_read_are_told_apart(tmp_path: Path) -> None:
    file = write(tmp_path / "a.parquet", 0, 1)
    with pytest.raises(NotFound, match="nothing matches"):
        ParquetSource.open(tmp_path / "b*.parquet")
    with pytest.raises(InvalidInput, match="no filesystem for ftps://host/x") as caught:
        ParquetSource.open("ftps://me:secret@host/x?token=secret")
    assert caught.value.reason == "NO_FILESYSTEM"
    with pytest.raises(InvalidInput, match="elsewhere"):
        ParquetSource.open([str(file), "s3://bucket/a.parquet?region=us-east-1"])
    refused = "gs://anonymous@bucket/x?endpoint_override=127.0.0.1:1&scheme=http&retry_limit_seconds=0.1"
    with pytest.raises(Unavailable, match="gs://bucket/x cannot be reached"):
        ParquetSource.open(refused)


class _Refusing(BaseHTTPRequestHandler):
    """An object store that lets nobody in."""

    def do_GET(self) -> None:
        body = b"<Error><Code>AccessDenied</Code><Message>Access Denied</Message></Error>"
        self.send_response(403)
        self.send_header("Content-Type", "application/xml")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if self.command == "GET":
            self.wfile.write(body)

    do_HEAD = do_GET  # noqa: N815 - its name there

    def log_message(self, format: str, *args: object) -> None:  # noqa: A002 - its name there
        pass


@pytest.mark.parametrize(
    ("scheme", "kind", "options"),
    [
        ("s3://key:secret@", "S3FileSystem", "&region=us-east-1"),
        ("gs://anonymous@", "GcsFileSystem", ""),
    ],
)
def test_refused_access_is_said_without_the_credentials(scheme: str, kind: str, options: str) -> None:
    if not hasattr(fs, kind):
        pytest.skip(f"this pyarrow has no {kind}")
    with ThreadingHTTPServer(("127.0.0.1", 0), _Refusing) as server:
        thread = Thread(target=server.serve_forever)
        thread.start()
        try:
            with pytest.raises(Unauthenticated, match=r"access to \w\w://bucket/u\.parquet is refused") as caught:
                ParquetSource.open(
                    f"{scheme}bucket/u.parquet?endpoint_override=127.0.0.1%3A{server.server_port}&scheme=http{options}"
                )
        finally:
            server.shutdown()
            thread.join()
    assert caught.value.field == "u.parquet"
    assert "secret" not in caught.value.message


def test_strings_as_dictionaries_are_the_same_strings(tmp_path: Path) -> None:
    path = tmp_path / "a.parquet"
    words = [None if n % 5 == 0 else f"w{n % 7}" for n in range(100)]
    pq.write_table(pa.table({"s": words, "n": range(100)}), path, row_group_size=30)
    batches = list(ParquetSource.open(path).batches(["s", "n"], 20, dictionaries=True))
    assert all(pa.types.is_dictionary(batch["s"].type) and pa.types.is_int64(batch["n"].type) for batch in batches)
    assert [value for batch in batches for value in batch["s"].to_pylist()] == words


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
