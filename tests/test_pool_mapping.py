"""What the kernel is asked to read of a mapped file, and that nothing but memory is held for it."""

from __future__ import annotations

import mmap
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from pool_rows import users, write

from lookalike.pool import mapping, shard
from lookalike.pool.ingest import ingest
from lookalike.pool.mapping import fetch, map_file
from lookalike.pool.snapshot import Pool

ELEMENTS = 1 << 20
PAGE = mmap.PAGESIZE


@pytest.fixture(scope="module")
def array(tmp_path_factory: pytest.TempPathFactory) -> np.ndarray[tuple[int], np.dtype[np.uint16]]:
    """Two bytes an element, not at the beginning of a page."""
    path = tmp_path_factory.mktemp("mapping") / "file"
    values = np.arange(ELEMENTS + 5).astype(np.uint16)
    path.write_bytes(values.tobytes())
    mapped = np.frombuffer(map_file(path), np.uint16)
    assert np.array_equal(mapped, values)
    return mapped[5:]


class Asked:
    """Stands for the system call: which bytes were asked for, counted from a base."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, base: int = 0) -> None:
        self.base = base
        self.ranges: list[tuple[int, int]] = []
        monkeypatch.setattr(mapping, "_madvise", self)

    def __call__(self, address: int, size: int, advice: int) -> int:
        if advice == mmap.MADV_RANDOM:
            return 0
        assert advice == mmap.MADV_WILLNEED
        assert address % PAGE == 0
        self.ranges.append((address - self.base, address + size - self.base))
        return 0


@st.composite
def spans(draw: st.DrawFn, longest: int) -> list[tuple[int, int]]:
    """Ascending ranges of elements that do not overlap."""
    starts = sorted(draw(st.sets(st.integers(0, ELEMENTS - longest), min_size=1, max_size=40)))
    ends = [*starts[1:], ELEMENTS]
    return [
        (start, start + draw(st.integers(0, min(longest, end - start))))
        for start, end in zip(starts, ends, strict=True)
    ]


@given(spans=spans(200_000) | spans(3))
def test_what_is_needed_is_asked_for_and_little_else(
    array: np.ndarray[tuple[int], np.dtype[np.uint16]], spans: list[tuple[int, int]]
) -> None:
    with pytest.MonkeyPatch.context() as monkeypatch:
        base = array.__array_interface__["data"][0]
        asked = Asked(monkeypatch, base)
        fetch(array, np.array([start for start, _ in spans]), np.array([stop for _, stop in spans]))
    covered = np.zeros(2 * ELEMENTS, np.bool_)
    for begin, end in asked.ranges:
        assert end - begin <= max(128 << 10, PAGE)  # what one call is sure to read
        covered[max(begin, 0) : end] = True
    wanted = np.zeros(2 * ELEMENTS, np.bool_)
    near = wanted.copy()
    for start, stop in spans:
        wanted[2 * start : 2 * stop] = True
        near[max(2 * start - PAGE - (32 << 10), 0) : 2 * stop + PAGE + (32 << 10)] = True
    assert covered[wanted].all()
    assert not covered[~near].any()


def test_positions_outside_ask_for_no_more_than_there_is(array: np.ndarray[tuple[int], np.dtype[np.uint16]]) -> None:
    with pytest.MonkeyPatch.context() as monkeypatch:
        asked = Asked(monkeypatch, array.__array_interface__["data"][0])
        fetch(array, np.array([-(1 << 60), ELEMENTS - 1]), np.array([1, 1 << 60]))
    assert min(begin for begin, _ in asked.ranges) >= -PAGE
    assert max(end for _, end in asked.ranges) <= 2 * ELEMENTS + PAGE


def test_nothing_is_asked_for_nothing(array: np.ndarray[tuple[int], np.dtype[np.uint16]]) -> None:
    with pytest.MonkeyPatch.context() as monkeypatch:
        asked = Asked(monkeypatch)
        none = np.zeros(0, np.int64)
        fetch(array, none, none)
        fetch(array[:0], np.array([0]), np.array([0]))
    assert asked.ranges == []


def test_a_file_that_is_absent_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        map_file(tmp_path / "absent")


@pytest.fixture(scope="module")
def path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A pool of 40 shards."""
    folder = tmp_path_factory.mktemp("pool")
    return ingest(write(folder / "u.parquet", users(400)), folder / "pool", shard_rows=10).path


def open_files() -> int:
    return len(list(Path("/dev/fd").iterdir()))


def test_an_open_pool_holds_no_file(path: Path) -> None:
    before = open_files()
    pool = Pool.open(path)
    pool.take(np.arange(0, 400, 3))
    held = pool.read(0, 10), pool.read_ids(15, 20)
    assert open_files() == before
    del pool
    assert held[0].length == 10  # views hold their mapping
    assert len(held[1].unique()) == 5


def test_a_scan_asks_once_for_each_page_and_another_scan_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shard, "AHEAD_ROWS", 1000)
    source = write(tmp_path / "u.parquet", users(20_000).drop_columns("tags"))
    pool = ingest(source, tmp_path / "pool", shard_rows=10_000)
    asked = Asked(monkeypatch)
    first = sum(1 for _ in pool.blocks(100))
    count = len(asked.ranges)
    assert 2 * 2 * 10 <= count <= 3 * 2 * 20  # fields and shards, and a stretch of 500 to 1,000 rows each time
    assert sum(1 for _ in pool.blocks(100)) == first
    assert len(asked.ranges) == 2 * count


def test_only_the_fields_named_are_read(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pool = Pool.open(path)
    every = pool.read(5, 35)
    for fields in (["tags"], ["City", "age"]):
        some = pool.read(5, 35, fields)
        assert set(some.ids) == set(fields)
        assert set(some.offsets) == set(fields) & {"tags"}
        for name in fields:
            assert np.array_equal(some.ids[name], every.ids[name])
    asked = Asked(monkeypatch)
    Pool.open(path).read(0, 10, [])
    opened = len(asked.ranges)
    asked.ranges.clear()
    Pool.open(path).read(0, 10)
    assert len(asked.ranges) > opened


def test_without_the_system_call_everything_is_the_same(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    rows = np.arange(0, 400, 7)
    expected = Pool.open(path).take(rows)
    monkeypatch.setattr(mapping, "_madvise", None)
    pool = Pool.open(path)
    taken = pool.take(rows)
    for name, ids in expected.ids.items():
        assert np.array_equal(taken.ids[name], ids)
    assert np.array_equal(pool.find(pool.user_ids(rows)), rows)
