"""Overlap and changes are the arithmetic of sets, for integers and strings, however they are cut."""

from __future__ import annotations

import tempfile
from itertools import combinations
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from audience_folders import Scored, make_audience
from hypothesis import given, settings
from hypothesis import strategies as st

from lookalike.errors import InvalidInput
from lookalike.retrieval import overlap
from lookalike.retrieval.audience import Audience


def audience(folder: Path, users: list[int], *, text: bool) -> Audience:
    ids = pa.array([f"u{one}" for one in users], pa.large_string()) if text else pa.array(users, pa.int64())
    make_audience(folder, Scored(ids, np.linspace(1, 0, len(users))), max(1, len(users)), 0)
    return Audience.open(folder)


@settings(max_examples=40)
@given(
    st.lists(st.lists(st.integers(-20, 20), unique=True, max_size=25), min_size=2, max_size=4),
    st.booleans(),
    st.integers(1, 7),
)
def test_counts_and_flags_are_those_of_sets(sets: list[list[int]], text: bool, block: int) -> None:
    with tempfile.TemporaryDirectory() as name, pytest.MonkeyPatch.context() as patch:
        patch.setattr(overlap, "BLOCK", block)
        folder = Path(name)
        made = [audience(folder / f"{n}", users, text=text) for n, users in enumerate(sets)]
        assert overlap.overlaps(made, folder) == [len({*a} & {*b}) for a, b in combinations(sets, 2)]
        for (a, first), (b, second) in combinations(zip(sets, made, strict=True), 2):
            left, joined = overlap.missing(first, second), overlap.missing(second, first)
            assert left.tolist() == [one not in b for one in a]
            assert joined.tolist() == [one not in a for one in b]
        assert not list(folder.glob("*.tmp*"))


def test_ids_of_two_types_are_refused(tmp_path: Path) -> None:
    made = [audience(tmp_path / "a", [1, 2], text=False), audience(tmp_path / "b", [1, 2], text=True)]
    with pytest.raises(InvalidInput, match="different types"):
        overlap.overlaps(made, tmp_path)
    with pytest.raises(InvalidInput, match="different types"):
        overlap.missing(*made)
