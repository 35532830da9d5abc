"""An open pool: lookups, reads and blocks against the users it was made of, and damage of every kind."""

from __future__ import annotations

import json
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st
from pool_rows import encoded, users, write

from lookalike.errors import DataCorrupted, InvalidInput, NotFound
from lookalike.pool import shard
from lookalike.pool.ingest import ingest
from lookalike.pool.manifest import Manifest
from lookalike.pool.snapshot import Pool

USERS = 500


@pytest.fixture(scope="module", params=[False, True], ids=["int64", "string"])
def pool(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Pool:
    """Shards of 64 rows, the last one short."""
    folder = tmp_path_factory.mktemp("pool")
    return ingest(write(folder / "u.parquet", users(USERS, text=request.param)), folder / "pool", shard_rows=64)


def all_ids(pool: Pool) -> list[Any]:
    ids: list[Any] = pool.user_ids(np.arange(pool.num_users)).to_pylist()
    return ids


def absent(pool: Pool) -> list[Any]:
    """Ids between, before and after those of the pool."""
    if pool.id_type == pa.int64():
        return [-(2**63), *(i + 1 for i in all_ids(pool)), 2**63 - 1]
    return ["", *(i + "!" for i in all_ids(pool)), "zz", "\U0010ffff"]


@given(data=st.data())
def test_find_gives_the_row_or_none(pool: Pool, data: st.DataObject) -> None:
    known = all_ids(pool)
    row_of = {user_id: row for row, user_id in enumerate(known)}
    wanted = data.draw(st.lists(st.sampled_from(known) | st.sampled_from(absent(pool))))
    rows = pool.find(wanted)
    assert rows.dtype == np.int64
    assert rows.tolist() == [row_of.get(user_id, -1) for user_id in wanted]


@pytest.mark.parametrize("sparse", [0, 1 << 30], ids=["by halvings", "among all"])
def test_find_is_the_same_for_few_and_for_many(pool: Pool, sparse: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shard, "_SPARSE", sparse)
    monkeypatch.setattr(shard, "_PAGE_IDS", 4)
    known = all_ids(pool)
    assert pool.find(known[::-1]).tolist() == list(range(USERS))[::-1]
    assert set(pool.find(absent(pool)).tolist()) == {-1}


def test_one_user_without_a_name_is_found(tmp_path: Path) -> None:
    pool = ingest(write(tmp_path / "u.parquet", pa.table({"user_id": [""], "age": [3]})), tmp_path / "pool")
    assert pool.find(["", "a"]).tolist() == [0, -1]
    assert pool.user_ids(np.array([0])).to_pylist() == [""]


def test_find_takes_every_form_of_ids(pool: Pool) -> None:
    ids = all_ids(pool)[5:8]
    array = pa.array(ids)
    forms = [ids, tuple(ids), array, pa.chunked_array([array[:1], array[1:]]), array.dictionary_encode()]
    if pool.id_type == pa.int64():
        forms += [np.array(ids), array.cast(pa.int16())]
    else:
        forms += [array.cast(pa.large_string())]
    for form in forms:
        assert pool.find(form).tolist() == [5, 6, 7]
    empties: list[Any] = [[], pa.array([]), pa.array([], pool.id_type)]
    for empty in empties:
        assert pool.find(empty).tolist() == []


def test_ids_of_the_other_type_or_null_are_refused(pool: Pool) -> None:
    first = all_ids(pool)[0]
    other: Any = str(first) if isinstance(first, int) else 1
    for wrong in ([other], pa.array([other]), [first, None], [first, other], pa.array([1.0]), [True]):
        with pytest.raises(InvalidInput) as caught:
            pool.find(wrong)
        assert caught.value.field == "seeds"


def test_an_integer_beyond_64_bits_is_refused(tmp_path: Path) -> None:
    pool = ingest(write(tmp_path / "u.parquet", users(10)), tmp_path / "pool")
    for wrong in ([2**63], pa.array([2**63], pa.uint64())):
        with pytest.raises(InvalidInput):
            pool.find(wrong)


@given(data=st.data())
def test_rows_taken_anywhere_are_those_rows(pool: Pool, data: st.DataObject) -> None:
    rows = data.draw(st.lists(st.integers(0, USERS - 1), max_size=40))
    taken = pool.take(np.array(rows, np.int32))
    whole = pool.read(0, USERS)
    assert taken.length == len(rows)
    assert [encoded(taken, i) for i in range(len(rows))] == [encoded(whole, row) for row in rows]
    ids = all_ids(pool)
    assert pool.user_ids(np.array(rows, np.int64)).to_pylist() == [ids[row] for row in rows]


@given(data=st.data())
def test_read_is_a_range_of_rows(pool: Pool, data: st.DataObject) -> None:
    start = data.draw(st.integers(0, USERS))
    stop = data.draw(st.integers(start, min(USERS, start + 150)))
    part, whole = pool.read(start, stop), pool.read(0, USERS)
    assert part.length == stop - start
    assert [encoded(part, i) for i in range(part.length)] == [encoded(whole, row) for row in range(start, stop)]


def test_read_within_a_shard_is_a_view_and_cannot_be_written(pool: Pool) -> None:
    before = pa.total_allocated_bytes()
    part = pool.read(70, 120)
    assert pa.total_allocated_bytes() == before
    again = pool.read(70, 120)
    for name, ids in part.ids.items():
        assert np.shares_memory(ids, again.ids[name])
        assert not ids.flags.writeable


@pytest.mark.parametrize("size", [1, 7, 64, 100, 499, 500, 10_000])
def test_blocks_depend_on_their_size_only(pool: Pool, size: int) -> None:
    whole = pool.read(0, USERS)
    row = 0
    for number, (first_row, block) in enumerate(pool.blocks(size)):
        assert first_row == row == number * size
        assert block.length == min(size, USERS - row)
        assert encoded(block, 0) == encoded(whole, row)
        assert encoded(block, block.length - 1) == encoded(whole, row + block.length - 1)
        row += block.length
    assert row == USERS


def test_rows_outside_are_refused(pool: Pool) -> None:
    for start, stop in ((-1, 3), (3, 2), (0, USERS + 1)):
        with pytest.raises(InvalidInput, match="not within"):
            pool.read(start, stop)
    for row in (-1, USERS):
        with pytest.raises(InvalidInput, match="not within"):
            pool.take(np.array([row]))
        with pytest.raises(InvalidInput, match="not within"):
            pool.user_ids(np.array([row]))
    with pytest.raises(InvalidInput, match="1 row or more"):
        next(pool.blocks(0))


def test_many_threads_read_one_pool(pool: Pool) -> None:
    ids = all_ids(pool)

    def work(seed: int) -> bool:
        rows = np.random.default_rng(seed).integers(0, USERS, 50)
        same = pool.find([ids[row] for row in rows]).tolist() == rows.tolist()
        return same and pool.take(rows).length == 50

    with ThreadPoolExecutor(4) as threads:
        assert all(threads.map(work, range(40)))


def test_opening_again_gives_the_same_pool(pool: Pool) -> None:
    again = Pool.open(pool.path)
    assert again.fingerprint == pool.fingerprint
    assert again.schema == pool.schema
    assert again.num_users == USERS
    seen: list[tuple[int, int]] = []
    again.verify(lambda done, total: seen.append((done, total)))
    assert seen[-1] == (USERS, USERS)


Damage = Callable[[Path], object]


def edit(**changes: Any) -> Damage:
    """Change the manifest's plain data."""

    def apply(folder: Path) -> None:
        path = folder / "manifest.json"
        path.write_text(json.dumps(json.loads(path.read_text()) | changes))

    return apply


def rewrite_shard(change: Callable[[bytearray], object]) -> Damage:
    def apply(folder: Path) -> None:
        path = folder / "users-00001.arrow"
        data = bytearray(path.read_bytes())
        change(data)
        path.write_bytes(data)

    return apply


def swap_shards(folder: Path) -> None:
    first, second = folder / "users-00000.arrow", folder / "users-00001.arrow"
    content = first.read_bytes()
    first.write_bytes(second.read_bytes())
    second.write_bytes(content)


@pytest.mark.parametrize(
    "damage",
    [
        edit(format="other"),
        edit(format_version=99),
        edit(rows=USERS - 1),
        edit(shards=[]),
        edit(schema={"fields": []}),
        edit(schema=3),
        edit(id_type="uuid"),
        lambda folder: (folder / "manifest.json").write_text("{"),
        lambda folder: (folder / "manifest.json").write_text("[1]"),
        lambda folder: (folder / "manifest.json").write_bytes(b"\xff\xfe"),
        lambda folder: (folder / "users-00001.arrow").unlink(),
        rewrite_shard(lambda data: data.pop()),
        rewrite_shard(lambda data: data.extend(b"x")),
        rewrite_shard(lambda data: data.__setitem__(slice(None), bytes(len(data)))),
        rewrite_shard(lambda data: data.__setitem__(slice(-40, None), bytes(40))),
    ],
)
def test_damage_that_opening_sees(tmp_path: Path, damage: Damage) -> None:
    ingest(write(tmp_path / "u.parquet", users(USERS)), tmp_path / "pool", shard_rows=64)
    damage(tmp_path / "pool")
    with pytest.raises(DataCorrupted):
        Pool.open(tmp_path / "pool")


@pytest.mark.parametrize("damage", [rewrite_shard(lambda data: data.__setitem__(600, data[600] ^ 1)), swap_shards])
def test_damage_that_only_verify_sees(tmp_path: Path, damage: Damage) -> None:
    ingest(write(tmp_path / "u.parquet", users(128)), tmp_path / "pool", shard_rows=64)
    damage(tmp_path / "pool")
    try:
        pool = Pool.open(tmp_path / "pool")
    except DataCorrupted:
        return  # sooner is as good
    with pytest.raises(DataCorrupted, match="checksum"):
        pool.verify()


def test_a_folder_that_is_no_pool_is_not_found(tmp_path: Path) -> None:
    with pytest.raises(NotFound, match="ingest"):
        Pool.open(tmp_path)
    with pytest.raises(NotFound):
        Pool.open(tmp_path / "absent")


def test_the_manifest_tells_what_it_holds(sample_pool: Path) -> None:
    manifest = Manifest.read(sample_pool)
    data = json.loads((sample_pool / "manifest.json").read_text())
    assert data["fingerprint"] == manifest.fingerprint == Pool.open(sample_pool).fingerprint
    assert data["schema_sha256"] == manifest.schema.fingerprint
    assert data["rows"] == 2000
