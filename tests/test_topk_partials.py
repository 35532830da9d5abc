"""Selections as bytes, the distribution of the scores, and selections on several threads."""

from __future__ import annotations

import struct
import subprocess
import sys
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lookalike.errors import DataCorrupted, InvalidInput
from lookalike.retrieval.topk import TopK

Scores = npt.NDArray[np.float32]


def push_in_pieces(tops: list[TopK], scores: Scores, chunk: int, rng: np.random.Generator) -> None:
    starts = np.arange(0, len(scores), chunk)
    for start in rng.permutation(starts):
        tops[rng.integers(len(tops))].push(scores[start : start + chunk], int(start))


def best(scores: Scores, k: int) -> npt.NDArray[np.int64]:
    return np.lexsort((np.arange(len(scores)), -scores))[:k]


@given(
    st.lists(st.floats(width=32, allow_nan=False), min_size=1, max_size=300),
    st.integers(0, 50),
    st.integers(1, 40),
    st.integers(0, 2**32),
)
@settings(deadline=None)
def test_the_same_rows_are_the_same_bytes(values: list[float], k: int, chunk: int, seed: int) -> None:
    scores = np.array(values, np.float32)
    options = {"num_rows": len(scores), "distribution": True}
    whole = TopK(k, **options)
    whole.push(scores, 0)
    parts = [TopK(k, **options) for _ in range(3)]
    push_in_pieces(parts, scores, chunk, np.random.default_rng(seed))
    merged = TopK.load(parts[0].save(), **options)
    for part in parts[1:]:
        merged.merge(TopK.load(part.save(), **options))
    assert merged.save() == whole.save()
    assert merged.finish()[0].tolist() == best(scores, k).tolist()
    assert merged.cutoff == whole.cutoff


def saved() -> bytes:
    top = TopK(3, num_rows=10)
    top.push(np.array([3, 1, 2, 5], np.float32), 0)
    return top.save()


def test_a_selection_goes_on_in_another_process(tmp_path: Path) -> None:
    (tmp_path / "partial").write_bytes(saved())
    program = (
        "import sys, numpy as np; from lookalike.retrieval.topk import TopK;"
        "top = TopK.load(open(sys.argv[1], 'rb').read(), num_rows=10);"
        "top.push(np.array([4], np.float32), 4); print(top.finish()[0].tolist(), top.rows_seen)"
    )
    done = subprocess.run(
        [sys.executable, "-c", program, str(tmp_path / "partial")], capture_output=True, text=True, check=True
    )
    assert done.stdout == "[3, 4, 0] 5\n"


@pytest.mark.parametrize("kind", [bytes, bytearray, memoryview])
def test_any_bytes_are_loaded(kind: type) -> None:
    assert TopK.load(kind(saved()), num_rows=10).finish()[0].tolist() == [3, 0, 2]


@pytest.mark.parametrize("size", [0, 7, 50, 111])
def test_a_truncated_partial_is_refused(size: int) -> None:
    with pytest.raises(DataCorrupted, match="truncated|no partial") as caught:
        TopK.load(saved()[:size], num_rows=10)
    assert caught.value.field == "partial"


def test_a_changed_foreign_or_future_partial_is_refused() -> None:
    partial = bytearray(saved())
    partial[90] ^= 1
    with pytest.raises(DataCorrupted, match="checksum"):
        TopK.load(bytes(partial), num_rows=10)
    with pytest.raises(DataCorrupted, match="no partial"):
        TopK.load(b"PAR1" * 100, num_rows=10)
    partial = bytearray(saved())
    partial[8:12] = struct.pack("<I", 7)
    with pytest.raises(DataCorrupted, match="version 7"):
        TopK.load(bytes(partial), num_rows=10)


def test_a_partial_is_loaded_with_its_own_options() -> None:
    with pytest.raises(InvalidInput, match="of 10 rows"):
        TopK.load(saved(), num_rows=11)
    with pytest.raises(InvalidInput, match="keeps no distribution"):
        TopK.load(saved(), num_rows=10, distribution=True)
    with pytest.raises(InvalidInput, match="contiguous"):
        TopK.load(memoryview(saved())[::2], num_rows=10)


def test_a_small_distribution_is_all_that_is_eligible() -> None:
    scores = np.array([0.5, np.nan, -1, 3, 1], np.float32)
    skip = np.packbits([False, False, False, True, False], bitorder="little")
    top = TopK(1, num_rows=5, skip=skip, nan="skip", distribution=True)
    top.push(scores, 0)
    assert top.distribution.scores.tolist() == [1, 0.5, -1]
    assert top.distribution.population == 3
    assert top.distribution.score_at([1, 2, 3]).tolist() == [1, 0.5, -1]
    for rank in (0, 4):
        with pytest.raises(InvalidInput, match="from 1 to 3"):
            top.distribution.score_at(rank)


def test_a_distribution_has_to_be_asked_for_with_the_rows_there_are() -> None:
    with pytest.raises(InvalidInput, match="no distribution"):
        _ = TopK(1, num_rows=5).distribution
    with pytest.raises(InvalidInput, match="number of rows") as caught:
        TopK(1, distribution=True)
    assert caught.value.field == "num_rows"


@pytest.mark.parametrize("order", ["random", "ascending", "periodic"])
def test_a_large_distribution_knows_every_rank_within_a_thousandth(order: str) -> None:
    rows = 3 << 23
    scores = np.random.default_rng(5).random(rows, np.float32) ** 4
    if order == "ascending":
        scores.sort()
    elif order == "periodic":  # each stretch of three rows: two low scores and a high one
        scores += np.tile(np.array([0, 0, 1], np.float32), rows // 3)
    top = TopK(1000, num_rows=rows, distribution=True)
    top.push(scores, 0, threads=2)
    other = TopK(1000, num_rows=rows, distribution=True)
    for start in range(0, rows, 1_000_003):
        other.push(scores[start : start + 1_000_003], start)
    assert np.array_equal(top.distribution.scores, other.distribution.scores)
    ranks = np.unique(np.geomspace(1, rows, 200).astype(np.int64))
    found = top.distribution.score_at(ranks)
    ascending = np.sort(scores)
    # The ranks that rows of the score found have: it may be that of several.
    best_rank = rows - np.searchsorted(ascending, found, "right") + 1
    last_rank = rows - np.searchsorted(ascending, found, "left")
    error = np.maximum(0, np.maximum(best_rank - ranks, ranks - last_rank))
    assert error.max() <= rows / 1000


@pytest.mark.parametrize("k", [1, 1000, 300_000])
def test_threads_change_nothing(k: int) -> None:
    scores = np.random.default_rng(1).random(1 << 21, np.float32)
    one = TopK(k, num_rows=len(scores))
    one.push(scores, 0)
    rows, values = one.finish()
    assert rows.tolist() == best(scores, k).tolist()
    many = TopK(k, num_rows=len(scores))
    many.push(scores, 0, threads=3)
    for threads in (2, 3):
        again, same = many.finish(threads=threads)
        assert np.array_equal(again, rows)
        assert np.array_equal(same, values)
    assert sorted(many.finish(sorted=False, threads=3)[0].tolist()) == sorted(rows.tolist())
    with pytest.raises(InvalidInput, match="at least 1"):
        many.finish(threads=0)
