"""A campaign's samples split at random, label by label: how every way of adapting holds some of the seeds out.

Knows labels; nothing of what is fitted to them.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import numpy.typing as npt

Index = npt.NDArray[np.int64]
AnyLabels = npt.NDArray[np.number[Any]]


def split(labels: AnyLabels, count: Callable[[int], int], rng: np.random.Generator) -> tuple[Index, Index]:
    """Samples to learn from and samples held out, as indices into `labels` `[n]`, those of label 0 first, shuffled.

    A label's only sample is on both sides, for either needs it.

    Args:
        count: how many are to be held out of so many of one label.
    """
    learnt, held = [], []
    for index in _by_label(labels):
        shuffled = rng.permutation(index)
        cut = count(len(index))
        learnt.append(shuffled[cut:] if len(index) > 1 else shuffled)
        held.append(shuffled[:cut])
    return np.concatenate(learnt), np.concatenate(held)


def folds(labels: AnyLabels, parts: int, rng: np.random.Generator) -> Iterator[tuple[Index, Index]]:
    """`parts` splits, each sample held out in one of them; ascending indices, learnt and held out.

    A label's samples are dealt out evenly, so a label of fewer than `parts` is missing where it ran out.
    """
    part = np.empty(len(labels), np.int64)
    for index in _by_label(labels):
        part[index] = rng.permutation(np.arange(len(index)) % parts)
    for number in range(parts):
        yield np.flatnonzero(part != number), np.flatnonzero(part == number)


def _by_label(labels: AnyLabels) -> list[Index]:
    return [np.flatnonzero(labels == label) for label in (0, 1)]
