"""Behaviour as multi-valued features, against the definition."""

from __future__ import annotations

from collections import Counter

import numpy as np
import pyarrow as pa
from hypothesis import given
from hypothesis import strategies as st

from lookalike.dataset.behaviour import latest, most_frequent, spoken

NAMES = pa.array(["a", "b", "c", "d"])
_events = st.lists(st.tuples(st.integers(0, 4), st.integers(0, 3), st.integers(0, 3)))


def columns(events: list[tuple[int, int, int]]) -> np.ndarray[tuple[int, int], np.dtype[np.int64]]:
    return np.array(events, np.int64).reshape(-1, 3).T


@given(_events, st.integers(1, 3))
def test_most_frequent(events: list[tuple[int, int, int]], limit: int) -> None:
    users, codes, _ = columns(events)
    expected = []
    for user in range(5):
        counts = Counter(code for u, code, _ in events if u == user)
        expected.append([NAMES[c].as_py() for c in sorted(counts, key=lambda c: (-counts[c], c))[:limit]])
    assert most_frequent(users, codes, NAMES, 5, limit).to_pylist() == expected


@given(_events, st.integers(1, 3))
def test_latest(events: list[tuple[int, int, int]], limit: int) -> None:
    users, codes, times = columns(events)
    expected = []
    for user in range(5):
        last: dict[int, int] = {}
        for u, code, time in events:
            if u == user:
                last[code] = max(last.get(code, time), time)
        expected.append([NAMES[c].as_py() for c in sorted(last, key=lambda c: (-last[c], c))[:limit]])
    assert latest(users, codes, times, NAMES, 5, limit).to_pylist() == expected


@given(_events, st.booleans())
def test_spoken(events: list[tuple[int, int, int]], as_lists: bool) -> None:
    says: list[list[str]] = [["x", "y"], ["y"], [], ["z"]] if as_lists else [["x"], ["y"], [], ["x"]]
    if as_lists:
        column = pa.array([says[0], says[1], None, says[3]], pa.list_(pa.string()))
    else:
        column = pa.array([said[0] if said else None for said in says], pa.string())
    users, items, _ = columns(events)
    who, codes, names = spoken(users, items, column)
    expected = [(user, value) for user, item, _ in events for value in says[item]]
    assert list(zip(who.tolist(), names.take(pa.array(codes)).to_pylist(), strict=True)) == expected
