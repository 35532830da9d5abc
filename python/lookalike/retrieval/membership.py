"""Who of a ranked list is a member: the best, or with a churn budget the best among whom enough were members before.

Knows positions in a list, scores and flags; nothing of users, pools or files.

A churn budget b lets a refresh of k members replace at most floor(b k) of them. Of all sets of k eligible users that
have at least k - floor(b k) previous members in them, or all where fewer are left, the chosen one has the highest sum
of scores: the best k where that is such a set; else the best so many previous members and the best of all others. Ties
go to who is higher on the list. b is taken as the decimal number it is written as: 0.29 of 100 is 29.
"""

from __future__ import annotations

from dataclasses import dataclass
from decimal import Decimal

import numpy as np
import numpy.typing as npt

Flags = npt.NDArray[np.bool_]


def must_keep(k: int, budget: float) -> int:
    """How many of `k` members are to be previous ones, if there are so many: never fewer for a larger `k`."""
    return k - int(Decimal(repr(budget)) * k)


def choose(previous: Flags, listed: int, k: int, budget: float, *, all_listed: bool) -> Flags:
    """Which of a list are members: `[list]`.

    Exact for as many as there are: should the list be too short to tell for `k`, because users have left it, fewer are
    chosen, and they are who would be chosen if so many had been asked for.

    Args:
        previous: for each user of the list, best first, whether a previous member: `[list]`.
        listed: so many, the first of the list, are the best of all; those behind are previous members, the best of
            the rest of them.
        k: members wanted.
        budget: the churn budget, 0 to 1.
        all_listed: no previous member who is eligible is missing in the list.
    """
    chosen = np.zeros(len(previous), np.bool_)
    held = np.flatnonzero(previous)
    k = min(k, listed)
    if not all_listed:
        while must_keep(k, budget) > len(held):
            k -= must_keep(k, budget) - len(held)  # for one member fewer, at most one fewer has to be kept
    keep = min(len(held), must_keep(k, budget))
    if np.count_nonzero(previous[:k]) >= keep:
        chosen[:k] = True
        return chosen
    chosen[held[:keep]] = True
    chosen[np.flatnonzero(~previous[:listed])[: k - keep]] = True
    return chosen


@dataclass(frozen=True)
class Cutoff:
    """Of the members: the last one's score, how many of the pool have exactly that, and how many of these are members.

    None and 0 without members. Where a churn budget has left better ones out, only members are counted as tied.
    """

    score: float | None
    ties: int
    selected: int


def cutoff(scores: npt.NDArray[np.float32], chosen: Flags, listed: int, ties_at_end: int) -> Cutoff:
    """The cut-off of `chosen` users of a list; `ties_at_end`: of the pool, with the score of the last of the best."""
    members = np.flatnonzero(chosen)
    if not len(members):
        return Cutoff(None, 0, 0)
    last = scores[members[-1]]
    selected = int(np.count_nonzero(scores[members] == last))
    if not chosen[: len(members)].all():
        return Cutoff(float(last), selected, selected)
    ties = ties_at_end if last == scores[listed - 1] else int(np.count_nonzero(scores[:listed] == last))
    return Cutoff(float(last), max(ties, selected), selected)


def mean(scores: npt.NDArray[np.float32]) -> float | None:
    """Of scores, in double precision; None of none."""
    return float(scores.mean(dtype=np.float64)) if len(scores) else None
