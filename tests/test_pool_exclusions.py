"""Exclusions: the same rows from memory, Parquet and text, every id counted once."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st
from pool_rows import users, write
from pyroaring import BitMap, BitMap64

from lookalike.cli.seeds import read
from lookalike.errors import DataCorrupted, InvalidInput, LookalikeError, NotFound, SchemaError
from lookalike.pool import exclusions as module
from lookalike.pool.bitmap import rows_of
from lookalike.pool.exclusions import Exclusions, exclusions, marked_ids
from lookalike.pool.ingest import ingest
from lookalike.pool.snapshot import Pool


@pytest.fixture(scope="module", params=[False, True], ids=["integers", "strings"])
def pool(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Pool:
    folder = tmp_path_factory.mktemp("pool")
    return ingest(write(folder / "users.parquet", users(200, text=request.param)), folder / "pool", shard_rows=37)


def rows(found: Exclusions) -> list[int]:
    return [row for piece in rows_of(found.bitmap) for row in piece.tolist()]


@given(numbers=st.lists(st.integers(-20, 219)))
def test_ids_are_counted_and_marked(pool: Pool, numbers: list[int]) -> None:
    """Below 0 and from 200 on stand for ids the pool lacks."""
    known = pool.user_ids(np.arange(200)).to_pylist()
    lacking = "nobody" if isinstance(known[0], str) else 10**15
    found = exclusions(pool, [known[n] if 0 <= n < 200 else lacking for n in numbers])
    inside = [n for n in numbers if 0 <= n < 200]
    assert rows(found) == sorted(set(inside))
    assert (found.given, found.matched) == (len(numbers), len(set(inside)))
    assert (found.duplicates, found.not_in_pool) == (len(inside) - len(set(inside)), len(numbers) - len(inside))
    listed = [user_id for piece in marked_ids(pool, found.bitmap) for user_id in piece.to_pylist()]
    assert listed == [known[n] for n in sorted(set(inside))]


def test_every_form_says_the_same(pool: Pool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    ids = pool.user_ids(np.array([5, 3, 199, 3, 0]))
    pq.write_table(pa.table({"other": np.arange(5), "user_id": ids}), tmp_path / "some.parquet")
    (tmp_path / "some.txt").write_text("\n".join(f"  {user_id} " for user_id in ids.to_pylist()) + "\n\n")
    (tmp_path / "empty.txt").touch()
    expected = exclusions(pool, ids)
    monkeypatch.setattr(module, "_PIECE", 2)  # ids of a long list, in many pieces
    forms = [
        ids,
        pa.chunked_array([ids.slice(0, 1), ids.slice(1)]),
        ids.dictionary_encode(),
        ids.to_pylist(),
        tmp_path / "some.parquet",
        tmp_path / "some.txt",
        [tmp_path / "empty.txt", tmp_path / "some.txt"],
    ]
    for form in forms:
        found = exclusions(pool, form)
        assert rows(found) == rows(expected) == [0, 3, 5, 199]
        assert (found.given, found.duplicates) == (5, 1)
    twice = exclusions(pool, [tmp_path / "some.txt", tmp_path / "some.parquet"])
    assert (twice.given, twice.matched, twice.duplicates) == (10, 4, 6)
    assert exclusions(pool, ()).given == exclusions(pool, tmp_path / "empty.txt").given == 0


@pytest.mark.parametrize(
    ("name", "content", "error", "says"),
    [
        ("none.parquet", None, NotFound, "none.parquet"),
        ("none.txt", None, NotFound, "none.txt"),
        ("text.parquet", b"1\n2\n", DataCorrupted, "text.parquet"),
        ("bytes.txt", b"\xff\xfe", InvalidInput, "as text"),
    ],
)
def test_a_file_that_is_none(
    pool: Pool, tmp_path: Path, name: str, content: bytes | None, error: type[LookalikeError], says: str
) -> None:
    if content is not None:
        (tmp_path / name).write_bytes(content)
    with pytest.raises(error, match=says):
        exclusions(pool, tmp_path / name)


@pytest.mark.parametrize("kind", [BitMap, BitMap64])
def test_roaring_bitmaps(
    pool: Pool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: type[BitMap | BitMap64]
) -> None:
    path = tmp_path / "some.roaring"
    path.write_bytes(kind().serialize())
    if not pa.types.is_int64(pool.id_type):
        with pytest.raises(InvalidInput, match="bitmap of integers: give Parquet or text"):
            exclusions(pool, path)
        return
    assert exclusions(pool, path).given == 0
    known = pool.user_ids(np.array([150, 153, 199])).to_pylist()  # from 0 on
    monkeypatch.setattr(module, "_PIECE", 2)
    path.write_bytes(kind([*known, 10_000]).serialize())
    found = exclusions(pool, path)
    assert rows(found) == [150, 153, 199]
    assert (found.given, found.duplicates, found.not_in_pool) == (4, 0, 1)
    assert read(path).to_pylist() == [*known, 10_000]  # as seeds
    path.write_bytes(path.read_bytes()[:-3])
    with pytest.raises(DataCorrupted, match=r"some.roaring is no Roaring bitmap") as caught:
        exclusions(pool, path)
    assert caught.value.field == "exclude"
    with pytest.raises(NotFound, match=r"none.roaring"):
        exclusions(pool, tmp_path / "none.roaring")
    path.write_bytes(BitMap64([2**63]).serialize())
    with pytest.raises(InvalidInput, match="beyond signed integers of 64 bits"):
        exclusions(pool, path)


def test_ids_of_another_type_and_nulls_and_no_column(pool: Pool, tmp_path: Path) -> None:
    other: list[int | str] = ["x"] if pa.types.is_int64(pool.id_type) else [1]
    with pytest.raises(InvalidInput) as caught:
        exclusions(pool, other)
    assert caught.value.field == "exclude"
    with pytest.raises(InvalidInput, match="'exclude' holds a null"):
        exclusions(pool, pa.array([None], pool.id_type))
    pq.write_table(pa.table({"id": [1]}), tmp_path / "other.parquet")
    with pytest.raises(SchemaError, match="user_id"):
        exclusions(pool, tmp_path / "other.parquet")
    if pa.types.is_int64(pool.id_type):
        (tmp_path / "words.txt").write_text("17\nseventeen\n")
        with pytest.raises(InvalidInput, match=r"line 2 of .*words.txt is 'seventeen', but .* integers: mend it"):
            exclusions(pool, tmp_path / "words.txt")


@pytest.mark.parametrize("head", ["\ufeff", "user_id\n", '\ufeff"user_id"\r\n'])
@pytest.mark.parametrize("piece", [1, 100])
def test_a_mark_or_a_head_before_the_ids_is_none_of_them(
    pool: Pool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, head: str, piece: int
) -> None:
    monkeypatch.setattr(module, "_PIECE", piece)
    path = tmp_path / "some.csv"
    text = head + "".join(f"{one}\n\n" for one in pool.user_ids(np.array([3, 5])).to_pylist())
    path.write_text(text, encoding="utf-8")
    found = exclusions(pool, path)
    assert rows(found) == [3, 5]
    assert found.given == 2
    if pa.types.is_int64(pool.id_type):
        for wrong in ("user_id", "1_0", str(2**63)):
            path.write_text(text + wrong, encoding="utf-8")
            with pytest.raises(InvalidInput, match=f"line {5 + head.count(chr(10))} of .* is '{wrong}'"):
                exclusions(pool, path)


def test_text_that_is_no_integer_is_to_be_mended_and_text_of_integers_cast(pool: Pool) -> None:
    if pa.types.is_int64(pool.id_type):
        with pytest.raises(InvalidInput, match="but 'seeds' has 'seventeen': mend it"):
            pool.find(["17", "seventeen"])
        with pytest.raises(InvalidInput, match="but 'seeds' has string: cast them"):
            pool.find(["17", "18"])
    else:
        with pytest.raises(InvalidInput, match="but 'seeds' has int64: cast them"):
            pool.find([17, 18])
