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
Scores = npt.NDArray[np.float32]

_BLOCK = 1 << 20  # flags that are looked at at once
_SUMMED = 8192  # scores added up at once, as numpy does it for a whole array


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
    held = int(np.count_nonzero(previous))
    k = min(k, listed)
    if not all_listed:
        while must_keep(k, budget) > held:
            k -= must_keep(k, budget) - held  # for one member fewer, at most one fewer has to be kept
    keep = min(held, must_keep(k, budget))
    if np.count_nonzero(previous[:k]) >= keep:
        chosen[:k] = True
        return chosen
    kept = _behind(previous, keep)
    chosen[:kept] = previous[:kept]
    others = ~previous[:listed]
    joined = _behind(others, k - keep)
    chosen[:joined] |= others[:joined]
    return chosen


def _behind(flags: Flags, count: int) -> int:
    """The place behind the first `count` that are set; places of them all would take eight times the flags' memory."""
    for start in range(0, len(flags), _BLOCK):
        block = flags[start : start + _BLOCK]
        here = int(np.count_nonzero(block))
        if here >= count:
            return start + int(np.flatnonzero(block)[count - 1]) + 1 if count else start
        count -= here
    return len(flags)


@dataclass(frozen=True)
class Cutoff:
    """Of the members: the last one's score, how many of the pool have exactly that, and how many of these are members.

    None and 0 without members. Where a churn budget has left better ones out, only members are counted as tied.
    """

    score: float | None
    ties: int
    selected: int


class Tail:
    """The last score of a list that comes in pieces, and how many of its end have it."""

    def __init__(self) -> None:
        self.score: np.float32 | None = None
        self.count = 0

    def add(self, scores: Scores) -> None:
        """The next ones; scores never rise."""
        if not len(scores):
            return
        same = int(np.count_nonzero(scores == scores[-1]))
        self.count = same + (self.count if self.score == scores[-1] else 0)
        self.score = scores[-1]


class CutoffCount:
    """The cut-off of a list that comes in pieces."""

    def __init__(self) -> None:
        self._members = Tail()
        self._best = Tail()
        self._in_front = True  # so far members are the first of the list
        self._passed = False
        self._others = 0  # of the best, no members, with the last member's score

    def add(self, scores: Scores, chosen: Flags, best: int) -> None:
        """The next ones, and which are members; the first `best` of them are among the best of all."""
        members = int(np.count_nonzero(chosen))
        self._in_front &= not members or (not self._passed and bool(chosen[:members].all()))
        self._passed |= members < len(scores)
        self._members.add(scores[chosen])
        self._best.add(scores[:best])
        if self._members.score is not None:
            self._others += int(np.count_nonzero(scores[:best][~chosen[:best]] == self._members.score))

    def result(self, ties_at_end: int) -> Cutoff:
        """`ties_at_end`: of the pool, with the score of the last of the best."""
        last, selected = self._members.score, self._members.count
        if last is None:
            return Cutoff(None, 0, 0)
        if not self._in_front:
            return Cutoff(float(last), selected, selected)
        ties = ties_at_end if last == self._best.score else selected + self._others
        return Cutoff(float(last), max(ties, selected), selected)


def cutoff(scores: Scores, chosen: Flags, listed: int, ties_at_end: int) -> Cutoff:
    """The cut-off of `chosen` users of a list; `ties_at_end`: of the pool, with the score of the last of the best."""
    count = CutoffCount()
    count.add(scores, chosen, listed)
    return count.result(ties_at_end)


class Mean:
    """Of scores that come in pieces, however they are cut; in double precision."""

    def __init__(self) -> None:
        self._total = np.float64(0.0)
        self._count = 0
        self._waiting = np.zeros(0, np.float32)

    def add(self, scores: Scores) -> None:
        """The next ones."""
        self._count += len(scores)
        waiting = np.concatenate([self._waiting, scores])
        whole = len(waiting) - len(waiting) % _SUMMED
        for start in range(0, whole, _SUMMED):
            self._total += waiting[start : start + _SUMMED].sum(dtype=np.float64)
        self._waiting = waiting[whole:]

    @property
    def value(self) -> float | None:
        """None of none."""
        return float((self._total + self._waiting.sum(dtype=np.float64)) / self._count) if self._count else None


def mean(scores: Scores) -> float | None:
    """Of scores, in double precision; None of none."""
    found = Mean()
    found.add(scores)
    return found.value
