"""Splitting by label: what is held out, as much of each label, and nothing lost or on both sides."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given
from hypothesis import strategies as st

from lookalike.training import stratified

LABELS = st.lists(st.booleans(), min_size=1, max_size=60).map(lambda labels: np.array(labels, np.float32))
BOTH = LABELS.filter(lambda labels: bool(labels.any()) and not bool(labels.all()))
PARTS, SEEDS = st.integers(2, 7), st.integers(0, 2**32)


def a_third(count: int) -> int:
    return max(1, round(count / 3))


def counts(labels: npt.NDArray[np.float32]) -> list[int]:
    return [int((labels == label).sum()) for label in (0, 1)]


@given(LABELS, SEEDS)
def test_a_split_has_as_much_of_each_label_as_was_asked_for(labels: npt.NDArray[np.float32], seed: int) -> None:
    learnt, held = stratified.split(labels, a_third, np.random.default_rng(seed))
    for label, count in enumerate(counts(labels)):
        here, there = (index[labels[index] == label].tolist() for index in (learnt, held))
        assert len(there) == min(count, a_third(count))
        assert len(here) == (count if count < 2 else count - len(there))
        assert set(here) | set(there) == set(np.flatnonzero(labels == label))
        assert set(here).isdisjoint(there) == (count != 1)  # a label's only sample is on both sides


@given(BOTH, SEEDS)
def test_both_sides_of_a_split_have_both_labels(labels: npt.NDArray[np.float32], seed: int) -> None:
    for side in stratified.split(labels, a_third, np.random.default_rng(seed)):
        assert set(labels[side]) == {0, 1}


@given(LABELS, PARTS, SEEDS)
def test_each_sample_is_held_out_in_one_fold(labels: npt.NDArray[np.float32], parts: int, seed: int) -> None:
    folds = list(stratified.folds(labels, parts, np.random.default_rng(seed)))
    assert len(folds) == parts
    np.testing.assert_array_equal(np.sort(np.concatenate([held for _, held in folds])), np.arange(len(labels)))
    for learnt, held in folds:
        np.testing.assert_array_equal(np.sort(np.concatenate([learnt, held])), np.arange(len(labels)))
        for index in (learnt, held):
            assert (np.diff(index) > 0).all()
        for label, count in enumerate(counts(labels)):
            assert count // parts <= (labels[held] == label).sum() <= -(-count // parts)


@given(BOTH, SEEDS)
def test_as_many_folds_as_the_rarer_label_has_samples_hold_both_labels(
    labels: npt.NDArray[np.float32], seed: int
) -> None:
    for _, held in stratified.folds(labels, min(counts(labels)), np.random.default_rng(seed)):
        assert set(labels[held]) == {0, 1}


@given(LABELS, PARTS, SEEDS)
def test_the_seed_decides(labels: npt.NDArray[np.float32], parts: int, seed: int) -> None:
    def everything() -> list[npt.NDArray[np.int64]]:
        splits = [stratified.split(labels, a_third, np.random.default_rng(seed))]
        splits += stratified.folds(labels, parts, np.random.default_rng(seed))
        return [side for pair in splits for side in pair]

    for one, other in zip(everything(), everything(), strict=True):
        np.testing.assert_array_equal(one, other)


@pytest.mark.parametrize("label", [0, 1])
def test_who_is_held_out_is_random(label: int) -> None:
    """Over many seeds each sample as often as any other: a fifth of the times, within four standard errors."""
    labels = np.array([0] * 10 + [1] * 5, np.float32)
    held_by_split, held_by_folds = np.zeros(15), np.zeros(15)
    for seed in range(400):
        held_by_split[stratified.split(labels, lambda count: count // 5, np.random.default_rng(seed))[1]] += 1
        held_by_folds[next(stratified.folds(labels, 5, np.random.default_rng(seed)))[1]] += 1
    for held in (held_by_split, held_by_folds):
        assert np.abs(held[labels == label] / 400 - 0.2).max() < 4 * (0.2 * 0.8 / 400) ** 0.5
