"""Negative sampling: distinct, never excluded, uniform, and cheap for any pool."""

from __future__ import annotations

import tracemalloc

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from lookalike.dataset.sampling import sample_rows
from lookalike.errors import InvalidInput


@given(st.data())
def test_rows_are_distinct_within_the_pool_and_not_excluded(data: st.DataObject) -> None:
    num_users = data.draw(st.integers(1, 60))
    exclude = np.array(data.draw(st.lists(st.integers(0, num_users - 1))), np.int64)
    left = set(range(num_users)) - set(exclude.tolist())
    count = data.draw(st.integers(0, len(left)))
    rows = sample_rows(num_users, count, exclude, np.random.default_rng(data.draw(st.integers(0, 9))))
    assert rows.dtype == np.int64
    assert len(rows) == len(set(rows.tolist())) == count
    assert set(rows.tolist()) <= left


@pytest.mark.parametrize("count", [2, 4])  # fewer than half of the eight left, and half
def test_every_row_is_as_likely_at_every_place(count: int) -> None:
    rng = np.random.default_rng(0)
    seen = np.zeros((count, 10))
    for _ in range(8000):
        seen[np.arange(count), sample_rows(10, count, np.array([3, 7]), rng)] += 1
    assert not seen[:, [3, 7]].any()
    expected = 1000
    kept = np.delete(seen, [3, 7], axis=1)
    # Five standard deviations of a binomial of 8,000 draws at one in eight.
    assert np.all(np.abs(kept - expected) < 5 * np.sqrt(expected * 7 / 8))


def test_the_same_seed_gives_the_same_rows() -> None:
    draws = [sample_rows(1000, 50, np.arange(10), np.random.default_rng(3)).tolist() for _ in range(2)]
    assert draws[0] == draws[1]


def test_a_pool_of_a_thousand_billion_costs_no_more_than_the_sample() -> None:
    tracemalloc.start()
    rows = sample_rows(10**12, 10_000, np.arange(500), np.random.default_rng(0))
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert len(np.unique(rows)) == 10_000
    assert rows.max() > 10**11
    assert peak < 4_000_000


@pytest.mark.parametrize("count", [3, -1])
def test_more_than_is_left_is_refused(count: int) -> None:
    with pytest.raises(InvalidInput, match="2 of 4 are left"):
        sample_rows(4, count, np.array([0, 1, 1]), np.random.default_rng(0))


@pytest.mark.parametrize("row", [-1, 4])
def test_an_excluded_row_outside_the_pool_is_refused(row: int) -> None:
    with pytest.raises(InvalidInput, match="excluded row"):
        sample_rows(4, 1, np.array([row]), np.random.default_rng(0))
