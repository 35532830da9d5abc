"""Ingest: from Parquet to a snapshot, or to nothing at all."""

from __future__ import annotations

import json
import resource
import signal
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import disks
import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pool_rows import encoded, rows_by_id, users, write
from pyarrow import fs

from lookalike.dataset.vocabulary import build_schema
from lookalike.errors import AlreadyExists, InvalidInput, NotFound, ResourceExhausted, SchemaError
from lookalike.files import file_digest
from lookalike.pool.ingest import ingest
from lookalike.pool.publish import publish_snapshot
from lookalike.pool.snapshot import Pool
from lookalike.schema import FeatureSchema


@pytest.mark.parametrize("text", [False, True])
@pytest.mark.parametrize("shard_rows", [100, 333, 10_000])
def test_every_user_is_there_encoded_in_id_order(tmp_path: Path, text: bool, shard_rows: int) -> None:
    table = users(1000, text=text)
    pool = ingest(write(tmp_path / "u.parquet", table, row_group_size=170), tmp_path / "pool", shard_rows=shard_rows)
    ids = table["user_id"].to_pylist()
    found = pool.user_ids(np.arange(pool.num_users)).to_pylist()
    assert found == sorted(ids, key=str.encode if text else None)
    schema = build_schema(table)
    assert pool.schema == schema
    expected = schema.encode(table, where="users")
    assert rows_by_id(pool) == {user_id: encoded(expected, row) for row, user_id in enumerate(ids)}
    assert [shard.rows for shard in pool.manifest.shards] == [
        min(shard_rows, 1000 - first) for first in range(0, 1000, shard_rows)
    ]
    for field in schema.fields:
        assert pool.read(0, 10).ids[field.name].dtype == field.dtype
    pool.verify()


_ids = st.one_of(
    st.lists(st.integers(-(2**63), 2**63 - 1), min_size=1, unique=True),
    st.lists(st.text(st.characters(codec="utf-8"), max_size=4), min_size=1, unique=True),
)


@settings(max_examples=40)
@given(ids=_ids)
def test_any_ids_keep_their_order_and_are_found(tmp_path_factory: pytest.TempPathFactory, ids: list[Any]) -> None:
    folder = tmp_path_factory.mktemp("ids")
    table = pa.table({"user_id": ids, "f": ["x"] * len(ids)})
    pool = ingest(write(folder / "u.parquet", table), folder / "pool", shard_rows=3)
    key = (lambda i: i) if isinstance(ids[0], int) else (lambda i: i.encode())
    assert pool.find(sorted(ids, key=key)).tolist() == list(range(len(ids)))


def test_a_given_schema_is_used(tmp_path: Path) -> None:
    table = users(50)
    schema = build_schema(table.slice(0, 10).select(["City", "age"]))
    pool = ingest(write(tmp_path / "u.parquet", table), tmp_path / "pool", schema=schema)
    assert pool.schema == schema
    assert set(pool.read(0, 50).ids) == {"City", "age"}
    assert 1 in pool.read(0, 50).ids["City"]  # unknown to those ten


def test_many_files_and_a_folder_give_the_same_pool(tmp_path: Path) -> None:
    table = users(300)
    one = ingest(write(tmp_path / "u.parquet", table), tmp_path / "one")
    (tmp_path / "parts").mkdir()
    parts = [write(tmp_path / f"parts/{start}.parquet", table.slice(start, 100)) for start in (0, 100, 200)]
    assert ingest(parts[::-1], tmp_path / "many").fingerprint == one.fingerprint
    assert ingest(tmp_path / "parts", tmp_path / "folder").fingerprint == one.fingerprint


def test_the_fingerprint_tells_content_and_nothing_else(tmp_path: Path) -> None:
    table = users(200)
    path = write(tmp_path / "u.parquet", table)
    first = ingest(path, tmp_path / "a", as_of=datetime(2020, 1, 1, tzinfo=UTC))
    shuffled = table.take(np.random.default_rng(5).permutation(200))
    again = ingest(write(tmp_path / "v.parquet", shuffled, row_group_size=11), tmp_path / "b", memory_gib=1)
    assert again.fingerprint == first.fingerprint
    assert again.manifest.as_of != first.manifest.as_of
    fewer = ingest(write(tmp_path / "w.parquet", table.slice(1)), tmp_path / "c", schema=first.schema)
    recoded = ingest(path, tmp_path / "d", schema=FeatureSchema(first.schema.fields[::-1]))
    assert len({first.fingerprint, fewer.fingerprint, recoded.fingerprint}) == 3


def test_shards_are_uncompressed_arrow_that_others_can_read(tmp_path: Path) -> None:
    pool = ingest(write(tmp_path / "u.parquet", users(100)), tmp_path / "pool", shard_rows=60)
    data = json.loads((pool.path / "manifest.json").read_text())
    assert [shard["first_row"] for shard in data["shards"]] == [0, 60]
    for shard in data["shards"]:
        path = pool.path / shard["file"]
        assert (path.stat().st_size, file_digest(path)) == (shard["bytes"], shard["sha256"])
        with pa.memory_map(str(path)) as mapped:
            before = pa.total_allocated_bytes()
            table = pa.ipc.open_file(mapped).read_all()
            assert pa.total_allocated_bytes() - before < 4096  # mapped, not inflated
            assert table.column_names == ["user_id", "age", "City", "tags"]
            assert table.schema.field("City").type == pa.uint8()
            assert table.schema.field("tags").type.value_type == pa.uint8()
            table.validate(full=True)


def test_progress_is_monotonous_and_complete(tmp_path: Path) -> None:
    seen: list[tuple[int, int]] = []
    ingest(
        write(tmp_path / "u.parquet", users(1000)),
        tmp_path / "pool",
        shard_rows=300,
        progress=lambda done, total: seen.append((done, total)),
    )
    assert seen == sorted(seen)
    assert seen[-1] == (1000, 1000)
    assert 500 in [done for done, _ in seen]  # all read, none written


@pytest.mark.parametrize("shard_rows", [1000, 2])
@pytest.mark.parametrize(
    ("ids", "example"), [([5, 3, 9, 3, 7], "3"), (["b", "a", "c", "b"], "'b'")], ids=["int64", "string"]
)
def test_duplicates_are_refused_with_an_example(tmp_path: Path, ids: list[Any], example: str, shard_rows: int) -> None:
    path = write(tmp_path / "u.parquet", pa.table({"user_id": ids, "f": ["x"] * len(ids)}))
    with pytest.raises(InvalidInput, match=f"{example} more than once") as caught:
        ingest(path, tmp_path / "pool", shard_rows=shard_rows)
    assert caught.value.field == "u.parquet:user_id"
    assert caught.value.reason == "DUPLICATE_ID"
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize(
    ("table", "error", "field"),
    [
        (pa.table({"user_id": [1, None], "f": ["x", "y"]}), InvalidInput, "u.parquet:user_id"),
        (pa.table({"user_id": pa.array([], pa.int64()), "f": pa.array([], pa.string())}), InvalidInput, None),
        (pa.table({"user_id": [1.5], "f": ["x"]}), SchemaError, "u.parquet:user_id"),
        (pa.table({"user_id": pa.array([2**63], pa.uint64()), "f": ["x"]}), SchemaError, "u.parquet:user_id"),
        (pa.table({"id": [1], "f": ["x"]}), SchemaError, "u.parquet:user_id"),
        (pa.table({"user_id": [1], "f": [b"x"]}), SchemaError, "u.parquet:f"),
        (pa.table({"user_id": [1]}), InvalidInput, None),
    ],
    ids=["null-id", "empty", "float-id", "huge-id", "no-id", "bytes", "no-feature"],
)
def test_what_is_wrong_with_the_users_is_named_and_leaves_nothing(
    tmp_path: Path, table: pa.Table, error: type[InvalidInput], field: str | None
) -> None:
    path = write(tmp_path / "u.parquet", table)
    with pytest.raises(error) as caught:
        ingest(path, tmp_path / "pool")
    assert type(caught.value) is error
    assert field is None or caught.value.field == field
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize(
    "table", [pa.table({"user_id": [1], "g": ["x"]}), pa.table({"user_id": [1], "f": [1.5]})], ids=["missing", "type"]
)
def test_users_that_do_not_fit_a_given_schema_are_refused(tmp_path: Path, table: pa.Table) -> None:
    path = write(tmp_path / "u.parquet", table)
    schema = build_schema(pa.table({"f": ["x"]}))
    with pytest.raises(SchemaError) as caught:
        ingest(path, tmp_path / "pool", schema=schema)
    assert caught.value.field == "u.parquet:f"
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize("moment", [0.3, 0.9])  # while reading, while writing
@pytest.mark.parametrize("error", [KeyboardInterrupt, RuntimeError])
def test_stopping_leaves_the_old_pool_and_nothing_else(
    tmp_path: Path, moment: float, error: type[BaseException]
) -> None:
    old = ingest(write(tmp_path / "old.parquet", users(10)), tmp_path / "pool")
    path = write(tmp_path / "u.parquet", users(2000), row_group_size=100)

    def stop(done: int, total: int) -> None:
        if done > moment * total:
            raise error

    before = sorted(tmp_path.iterdir())
    with pytest.raises(error):
        ingest(path, tmp_path / "pool", shard_rows=100, progress=stop, overwrite=True)
    assert sorted(tmp_path.iterdir()) == before
    assert Pool.open(tmp_path / "pool").fingerprint == old.fingerprint


def test_an_existing_pool_is_replaced_only_when_asked(tmp_path: Path) -> None:
    old = ingest(write(tmp_path / "old.parquet", users(10)), tmp_path / "pool")
    path = write(tmp_path / "u.parquet", users(30))
    with pytest.raises(AlreadyExists):
        ingest(path, tmp_path / "pool")
    kept = old.user_ids(np.arange(10))
    new = ingest(path, tmp_path / "pool", overwrite=True)
    assert new.num_users == Pool.open(tmp_path / "pool").num_users == 30
    assert old.user_ids(np.arange(10)).equals(kept)  # whoever has the old one open keeps it
    assert sorted(p.name for p in tmp_path.iterdir()) == ["old.parquet", "pool", "u.parquet"]


def test_nonsense_is_refused(tmp_path: Path) -> None:
    path = write(tmp_path / "u.parquet", users(10))
    with pytest.raises(InvalidInput, match="shard_rows"):
        ingest(path, tmp_path / "pool", shard_rows=0)
    with pytest.raises(InvalidInput, match="time zone"):
        ingest(path, tmp_path / "pool", as_of=datetime(2020, 1, 1))  # noqa: DTZ001
    with pytest.raises(NotFound):
        ingest(tmp_path / "absent.parquet", tmp_path / "pool")


@pytest.fixture
def ctrl_c() -> Iterator[None]:
    """Heard, also where whoever started the tests does not want them to."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.mark.usefixtures("ctrl_c")
@pytest.mark.parametrize("moment", [0.1, 0.9])  # while reading, while writing
def test_ctrl_c_leaves_nothing(tmp_path: Path, moment: float) -> None:
    path = write(tmp_path / "u.parquet", users(2000), row_group_size=100)
    pressed: list[int] = []

    def press(done: int, total: int) -> None:
        if done > moment * total and not pressed:
            pressed.append(done)
            signal.raise_signal(signal.SIGINT)

    with pytest.raises(KeyboardInterrupt):
        ingest(path, tmp_path / "pool", shard_rows=100, progress=press)
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize("text", [False, True])
def test_users_already_in_order_need_no_sort_and_give_the_same_pool(
    tmp_path: Path, text: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    table = users(1000, text=text)
    pool = ingest(write(tmp_path / "u.parquet", table, row_group_size=170), tmp_path / "pool", shard_rows=300)
    ids = table["user_id"].to_pylist()
    order = sorted(range(1000), key=lambda row: ids[row].encode() if text else ids[row])
    path = write(tmp_path / "ordered.parquet", table.take(order), row_group_size=110)
    monkeypatch.delattr("lookalike.pool.ingest._sorted")
    assert ingest(path, tmp_path / "ordered", schema=pool.schema, shard_rows=300).fingerprint == pool.fingerprint


def test_a_full_disk_is_said_and_leaves_the_old_pool(tmp_path: Path) -> None:
    old = ingest(write(tmp_path / "old.parquet", users(10)), tmp_path / "pool")
    path = write(tmp_path / "u.parquet", users(20_000))
    before = sorted(tmp_path.iterdir())
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1 << 16, hard))  # as a disk that takes no more of this file
    try:
        with pytest.raises(ResourceExhausted, match="full") as caught:
            ingest(path, tmp_path / "pool", overwrite=True)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert (caught.value.field, caught.value.reason) == ("output", "DISK_FULL")
    assert sorted(tmp_path.iterdir()) == before
    assert Pool.open(tmp_path / "pool").fingerprint == old.fingerprint


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    with disks.small_disk(tmp_path / "disk", "512k") as path:
        yield path


@pytest.mark.parametrize("ordered", [False, True])
def test_a_disk_that_is_really_full(tmp_path: Path, small_disk: Path, ordered: bool) -> None:
    old = ingest(write(tmp_path / "old.parquet", users(10)), small_disk / "pools/old", publish=True)
    table = users(60_000)
    path = write(tmp_path / "u.parquet", table.sort_by("user_id") if ordered else table)
    with pytest.raises(ResourceExhausted, match="full|ran out"):
        ingest(path, small_disk / "pools/new", schema=old.schema, publish=True)
    assert sorted(p.name for p in (small_disk / "pools").iterdir()) == ["current", "old"]
    opened = Pool.open(small_disk / "pools")
    opened.verify()
    assert opened.fingerprint == old.fingerprint


def test_ingest_through_a_filesystem_that_is_not_local(tmp_path: Path) -> None:
    (tmp_path / "there").mkdir()
    path = write(tmp_path / "there/u.parquet", users(300))
    elsewhere = fs.SubTreeFileSystem(str(tmp_path / "there"), fs.LocalFileSystem())
    pool = ingest("*.parquet", tmp_path / "pool", filesystem=elsewhere)  # the vocabulary is made there, too
    assert pool.fingerprint == ingest(path, tmp_path / "local").fingerprint


def test_every_column_that_does_not_fit_is_named(tmp_path: Path) -> None:
    schema = build_schema(users(20))
    path = write(tmp_path / "u.parquet", pa.table({"user_id": [1], "City": [[1]], "shoes": ["x"], "tags": [["y"]]}))
    with pytest.raises(SchemaError) as caught:
        ingest(path, tmp_path / "pool", schema=schema)
    for part in ("missing: age", "of another type: City", "not in the schema: shoes."):
        assert part in caught.value.message


def test_what_is_published_is_what_opens(tmp_path: Path) -> None:
    path = write(tmp_path / "u.parquet", users(10))
    monday = ingest(path, tmp_path / "pools/monday", publish=True)
    opened = Pool.open(tmp_path / "pools")
    assert opened.path == monday.path.resolve()
    tuesday = ingest(write(tmp_path / "v.parquet", users(30)), tmp_path / "pools/tuesday", publish=True)
    (tmp_path / "pools").rename(tmp_path / "moved")
    assert Pool.open(tmp_path / "moved").fingerprint == tuesday.fingerprint
    assert Pool.open(tmp_path / "moved/current").path == (tmp_path / "moved/tuesday").resolve()
    assert len(opened.user_ids(np.arange(opened.num_users))) == 10  # whoever has Monday's open keeps it
    publish_snapshot(tmp_path / "moved/monday")
    assert Pool.open(tmp_path / "moved").fingerprint == monday.fingerprint
    assert sorted(p.name for p in (tmp_path / "moved").iterdir()) == ["current", "monday", "tuesday"]


@pytest.mark.parametrize("output", ["pools/current", "pools/monday"])
def test_publishing_takes_no_name_that_something_else_has(tmp_path: Path, output: str) -> None:
    path = write(tmp_path / "u.parquet", users(10))
    (tmp_path / "pools/current").mkdir(parents=True)
    with pytest.raises(AlreadyExists, match="link"):
        ingest(path, tmp_path / output, publish=True, overwrite=True)
    assert [p.name for p in (tmp_path / "pools").iterdir()] == ["current"]
    assert list((tmp_path / "pools/current").iterdir()) == []
