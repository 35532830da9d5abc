"""Selections as bytes, and the distribution of all scores that they may hold."""

from __future__ import annotations

import math
import subprocess
import sys
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from selections import UNALIGNED, Scores, check, chunks, make, ranking, streams

from lookalike.errors import DataCorrupted, InvalidInput
from lookalike.retrieval.topk import MAX_ROWS, Distribution, TopK


def refused_rank(distribution: Distribution, rank: float) -> bool:
    try:
        distribution.score_at(rank)
    except InvalidInput as error:
        return error.field == "rank"
    return False


@given(streams(), st.booleans())
@settings(max_examples=100)
def test_the_distribution_of_few_rows_is_all_their_scores(stream: tuple[Scores, int, int, int], skips: bool) -> None:
    scores, k, chunk, seed = stream
    rng = np.random.default_rng(seed)
    skipped = rng.random(len(scores)) < (0.3 if skips else 0)
    top = TopK(k, num_rows=len(scores), skip=np.packbits(skipped, bitorder="little"), nan="skip", distribution=True)
    pieces = chunks(len(scores), chunk)
    rng.shuffle(pieces)
    for piece in pieces:
        top.push(scores[piece], piece.start)
    found = top.distribution
    expected = scores[ranking(scores, skipped)]
    assert found.scores.dtype == np.float32
    assert found.population == len(expected)
    np.testing.assert_array_equal(found.scores, expected)
    assert not np.signbit(found.scores[found.scores == 0]).any()
    np.testing.assert_array_equal(found.score_at(np.arange(1, len(expected) + 1)), expected)
    assert all(refused_rank(found, rank) for rank in (-1, 0, len(expected) + 1, math.nan))
    check(top, scores, k, skipped)


def test_the_distribution_keeps_every_score_of_8_million() -> None:
    scores = np.random.default_rng(8).random(2**23, np.float32)
    top = TopK(10, num_rows=len(scores), distribution=True)
    top.push(scores, 0, threads=2)
    np.testing.assert_array_equal(top.distribution.scores, np.sort(scores)[::-1])


SAMPLED = 2**24 + 12_345
STRIDE = 3  # rows, of which one is in the sample

SPREADS: dict[str, Callable[[np.random.Generator], Scores]] = {
    "random": lambda rng: rng.standard_normal(SAMPLED, np.float32),
    "clustered": lambda rng: 1 / (1 + np.exp(-6 - rng.standard_normal(SAMPLED, np.float32) / 10)),
    # A sample in step with the rows would hold one of the three values only.
    "in step": lambda rng: np.resize(np.arange(STRIDE, dtype=np.float32), SAMPLED),
}


@pytest.mark.parametrize("spread", sorted(SPREADS))
def test_the_distribution_of_many_rows_places_every_rank_within_a_thousandth(spread: str) -> None:
    rng = np.random.default_rng(9)
    scores = SPREADS[spread](rng)
    scores[rng.integers(SAMPLED, size=SAMPLED // 50)] = np.nan
    skipped = np.repeat(rng.random(SAMPLED // 100 + 1) < 0.05, 100)[:SAMPLED]
    skip = np.packbits(skipped, bitorder="little")
    tops = [TopK(1, num_rows=SAMPLED, skip=skip, nan="skip", distribution=True) for _ in range(3)]
    whole, first, second = tops
    whole.push(scores, 0, threads=2)
    half = SAMPLED // 2
    for piece in reversed(chunks(SAMPLED, 1_000_003)):
        (first if piece.start < half else second).push(scores[piece], piece.start)
    first.merge(second)

    found = whole.distribution
    ascending = np.sort(scores[~skipped & ~np.isnan(scores)])
    population = len(ascending)
    assert found.population == first.distribution.population == population
    np.testing.assert_array_equal(first.distribution.scores, found.scores)
    assert len(found.scores) == pytest.approx(population / STRIDE, rel=0.01)

    ranks = np.unique(np.concatenate([np.geomspace(1, population, 1000), np.linspace(1, population, 1000)]).round())
    answers = found.score_at(ranks)
    # Equal scores have all ranks from their first to their last.
    first_rank = population - np.searchsorted(ascending, answers, "right") + 1
    last_rank = population - np.searchsorted(ascending, answers, "left")
    assert np.maximum(first_rank - ranks, ranks - last_rank).max() <= population / 1000
    assert refused_rank(found, 0)
    assert refused_rank(found, population + 1)


def test_a_distribution_with_no_row_of_its_sample_yet_has_no_ranks() -> None:
    top = TopK(1, num_rows=2**30, distribution=True)
    top.push(np.zeros(1, np.float32), 0)  # of 128 rows another is in the sample
    assert (len(top.distribution.scores), top.distribution.population) == (0, 1)
    assert refused_rank(top.distribution, 1)


@given(streams(), st.integers(1, 4), st.booleans(), st.booleans())
@settings(max_examples=150)
def test_the_same_rows_give_the_same_bytes(
    stream: tuple[Scores, int, int, int], threads: int, skips: bool, distribution: bool
) -> None:
    scores, k, chunk, seed = stream
    rng = np.random.default_rng(seed)
    skipped = rng.random(len(scores)) < (0.3 if skips else 0)
    skip = np.packbits(skipped, bitorder="little")
    tops = [TopK(k, num_rows=len(scores), skip=skip, nan="skip", distribution=distribution) for _ in range(3)]
    whole, parts, merged = tops
    whole.push(scores, 0)
    expected = whole.save()

    pieces = chunks(len(scores), chunk)
    rng.shuffle(pieces)
    with ThreadPoolExecutor(threads) as pool:
        list(pool.map(lambda piece: parts.push(scores[piece], piece.start), pieces))
    assert parts.save() == expected
    check(parts, scores, k, skipped)
    assert parts.save() == expected  # also after it was put in order

    other = TopK(k, num_rows=len(scores), skip=skip, nan="skip", distribution=distribution)
    for piece in pieces:
        (merged if rng.random() < 0.5 else other).push(scores[piece], piece.start)
    merged.merge(other)
    assert merged.save() == expected


@given(streams(), st.sampled_from([0, 0.1, 0.5, 1]), st.booleans(), st.booleans())
@settings(max_examples=150)
def test_what_was_saved_is_loaded_pushed_on_and_merged(
    stream: tuple[Scores, int, int, int], share: float, known: bool, distribution: bool
) -> None:
    scores, k, chunk, seed = stream
    rng = np.random.default_rng(seed)
    skipped = rng.random(len(scores)) < 0.2
    options: dict[str, Any] = {
        "num_rows": len(scores) if known or distribution else None,
        "skip": np.packbits(skipped, bitorder="little"),
        "nan": "skip",
        "distribution": distribution,
    }
    whole, before, after = (TopK(k, **options) for _ in range(3))
    whole.push(scores, 0)
    split = int(share * len(scores))
    before.push(scores[:split], 0)
    after.push(scores[split:], split)

    # Selects the same, at once and with the rest of the rows.
    saved = before.save()
    loaded = TopK.load(saved, **options)
    assert loaded.k == min(k, MAX_ROWS)
    assert loaded.save() == saved
    check(loaded, scores[:split], k, skipped[:split])
    for piece in chunks(len(scores) - split, chunk):
        loaded.push(scores[split:][piece], split + piece.start)
    assert loaded.save() == whole.save()
    check(loaded, scores, k, skipped)
    if distribution:
        np.testing.assert_array_equal(loaded.distribution.scores, whole.distribution.scores)
        assert loaded.distribution.population == whole.distribution.population

    # Merges as what was saved would.
    merged = TopK.load(after.save(), **options)
    merged.merge(TopK.load(saved, **options))
    assert merged.save() == whole.save()
    check(merged, scores, k, skipped)


GO_ON = """
import sys
from pathlib import Path

import numpy as np
from lookalike.retrieval.topk import TopK

partial, scores = Path(sys.argv[1]), np.fromfile(sys.argv[2], np.float32)
top = TopK.load(partial.read_bytes(), num_rows=len(scores), distribution=True)
top.push(scores[top.rows_seen :], top.rows_seen)
partial.write_bytes(top.save())
"""


def test_another_process_goes_on_with_what_was_saved(tmp_path: Path) -> None:
    scores = make("few values", 20_000)
    scores.tofile(tmp_path / "scores")
    top, whole = (TopK(7000, num_rows=len(scores), distribution=True) for _ in range(2))
    top.push(scores[:12_000], 0)
    whole.push(scores, 0)
    (tmp_path / "partial").write_bytes(top.save())
    subprocess.run([sys.executable, "-c", GO_ON, tmp_path / "partial", tmp_path / "scores"], check=True)
    saved = (tmp_path / "partial").read_bytes()
    assert saved == whole.save()
    check(TopK.load(saved, num_rows=len(scores), distribution=True), scores, 7000)


def test_a_refused_push_leaves_the_bytes_as_they_were() -> None:
    top = TopK(2, num_rows=100_000, distribution=True)
    top.push(np.ones(5, np.float32), 70_000)
    before = top.save()
    bad = make("random", 70_000)
    bad[-1] = np.nan
    with pytest.raises(InvalidInput, match="row 69999 is NaN"):
        top.push(bad, 0)
    assert top.save() == before


@pytest.fixture(scope="module")
def partial() -> bytes:
    """Of every part a few bytes."""
    top = TopK(3, num_rows=10, distribution=True)
    top.push(np.array([0, 1, 1, 2, 0.5], np.float32), 2)
    return top.save()


def load(partial: Any) -> TopK:
    return TopK.load(partial, num_rows=10, distribution=True)


@pytest.mark.parametrize("kind", [bytes, bytearray, memoryview])
def test_bytes_of_every_kind_are_loaded(partial: bytes, kind: Callable[[bytes], Any]) -> None:
    assert load(kind(partial)).finish()[0].tolist() == [5, 3, 4]


def test_a_truncated_partial_is_refused(partial: bytes) -> None:
    for size in range(len(partial)):
        with pytest.raises(DataCorrupted, match="truncated") as raised:
            load(partial[:size])
        assert raised.value.field == "partial"


def test_a_partial_with_any_byte_changed_is_refused(partial: bytes) -> None:
    for place in range(len(partial)):
        for change in (1, 0x80, 0xFF):
            changed = bytearray(partial)
            changed[place] ^= change
            with pytest.raises(DataCorrupted):
                load(changed)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda partial: b"PAR1" + partial, "no partial top-K"),
        (lambda partial: b"\0" * 1000, "no partial top-K"),
        (lambda partial: partial + b"\0", "nothing after it"),
        (lambda partial: partial[:8] + (2).to_bytes(4, "little") + partial[12:], "format version 2 .* knows version 1"),
        (lambda partial: partial[:-1] + bytes([partial[-1] ^ 1]), "checksum"),
    ],
)
def test_a_foreign_or_changed_partial_is_refused_with_the_reason(
    partial: bytes, change: Callable[[bytes], bytes], message: str
) -> None:
    with pytest.raises(DataCorrupted, match=message) as raised:
        load(change(partial))
    assert raised.value.field == "partial"


@pytest.mark.parametrize(
    ("options", "field"),
    [
        ({"num_rows": 11, "distribution": True}, "num_rows"),
        ({"distribution": True}, "num_rows"),
        ({"num_rows": 10}, "distribution"),
        ({"num_rows": 10, "distribution": True, "skip": np.zeros(1, np.uint8)}, "skip"),
        ({"num_rows": 10, "distribution": True, "nan": "ignore"}, "nan"),
    ],
)
def test_a_partial_is_loaded_with_the_options_of_the_saved_selection(
    partial: bytes, options: dict[str, Any], field: str
) -> None:
    with pytest.raises(InvalidInput) as raised:
        TopK.load(partial, **options)
    assert raised.value.field == field


def test_no_distribution_is_loaded_where_none_was_saved() -> None:
    with pytest.raises(InvalidInput, match="keeps no distribution") as raised:
        load(TopK(3, num_rows=10).save())
    assert raised.value.field == "distribution"


@pytest.mark.parametrize(
    "wrong",
    [
        lambda partial: memoryview(partial * 2)[::2],
        lambda partial: np.zeros((2, 50), np.uint8),
        lambda partial: UNALIGNED,
    ],
)
def test_what_are_not_contiguous_bytes_is_refused(partial: bytes, wrong: Callable[[bytes], Any]) -> None:
    with pytest.raises(InvalidInput, match="contiguous") as raised:
        load(wrong(partial))
    assert raised.value.field == "partial"
