"""From the best users of a pool to an audience's list: its members and who comes next, churn budget considered.

Knows pools' rows and scores; `membership` has the rule, `audience` the files.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from lookalike.pool.bitmap import Bitmap, marked
from lookalike.pool.snapshot import Pool
from lookalike.retrieval.audience import write_ids, write_members
from lookalike.retrieval.membership import Cutoff, Flags, choose, cutoff, mean, must_keep
from lookalike.retrieval.receipt import AUDIENCE_NAME, PREVIOUS_NAME, RESERVE_NAME, Refresh, Reserve
from lookalike.retrieval.request import Previous
from lookalike.retrieval.rescoring import Rows, Scores, Selection, best


@dataclass(frozen=True)
class Ranking:
    """The list, best first.

    Attributes:
        rows, scores: `[list]`, of the pool, and the reference's.
        members: who of them is one. previous: who was one before.
        listed: see `membership.choose`; all_listed likewise.
        eligible: previous members that could be members again.
        complete: nobody else was eligible.
        ties_at_end: users of the pool who score as the last of the best listed.
    """

    rows: Rows
    scores: Scores
    members: Flags
    previous: Flags
    listed: int
    all_listed: bool
    eligible: int
    complete: bool
    ties_at_end: int

    @property
    def cutoff(self) -> Cutoff:
        return cutoff(self.scores, self.members, self.listed, self.ties_at_end)

    @property
    def size(self) -> int:
        """Members."""
        return int(np.count_nonzero(self.members))

    def write(self, folder: Path, pool: Pool, *, reserve: bool, bounded: bool) -> None:
        """Write the members; who comes next, if a reserve is wanted or there is one; and who was there before, if a
        budget bounds how many may not be.
        """
        members, rest = self.members, ~self.members
        write_members(folder / AUDIENCE_NAME, pool.user_ids(self.rows[members]), self.scores[members])
        if reserve or rest.any():
            ids = pool.user_ids(self.rows[rest])
            write_members(folder / RESERVE_NAME, ids, self.scores[rest], first_rank=self.size + 1)
        if bounded:
            write_ids(folder / PREVIOUS_NAME, pool.user_ids(np.sort(self.rows[self.previous])))

    def reserve(self, sha256: str) -> Reserve:
        """As the receipt says it."""
        return Reserve(
            size=len(self.rows) - self.size,
            sha256=sha256,
            listed=self.listed,
            complete=self.complete,
            last_score=float(self.scores[self.listed - 1]) if self.listed else None,
            ties_at_end=self.ties_at_end,
        )

    def refresh(self, previous: Previous) -> Refresh:
        """As the receipt says it."""
        kept = int(np.isin(self.rows[self.members], previous.rows).sum())
        return Refresh(
            previous=previous.name,
            previous_audience_sha256=previous.audience_sha256,
            previous_members=previous.members,
            eligible=self.eligible,
            all_eligible_listed=self.all_listed,
            kept=kept,
            joined=self.size - kept,
            left=previous.members - kept,
            mean_score=mean(self.scores[self.members]),
            mean_score_unbounded=mean(self.scores[: self.size]),
        )


def rank(
    selection: Selection, k: int, reserve: int, previous: Previous | None, skip: Bitmap, score: Callable[[Rows], Scores]
) -> Ranking:
    """The list of an expansion of `k` users, whose best `k + reserve` are `selection`; `score` is the reference."""
    rows, scores, listed = selection.rows, selection.scores, len(selection.rows)
    eligible = np.zeros(0, np.int64)
    kept = eligible  # previous members that are to be in the list
    budget = 1.0
    if previous is not None:
        eligible = previous.rows[~marked(skip, previous.rows)]
        budget = previous.budget
    if budget < 1:
        wanted = must_keep(min(k, listed), budget) + reserve
        kept, kept_scores = _best_previous(rows, scores, eligible, wanted, score)
        behind = ~np.isin(kept, rows)
        rows, scores = np.concatenate([rows, kept[behind]]), np.concatenate([scores, kept_scores[behind]])
    flags = np.isin(rows, eligible)
    all_listed = len(kept) == len(eligible) if budget < 1 else bool(flags.sum() == len(eligible))
    return Ranking(
        rows=rows,
        scores=scores,
        members=choose(flags, listed, k, budget, all_listed=all_listed),
        previous=flags,
        listed=listed,
        all_listed=all_listed,
        eligible=len(eligible),
        complete=listed == selection.users_scored,
        ties_at_end=selection.ties_at_cutoff,
    )


def _best_previous(
    rows: Rows, scores: Scores, eligible: Rows, wanted: int, score: Callable[[Rows], Scores]
) -> tuple[Rows, Scores]:
    """The `wanted` best of the previous members who are eligible, best first, and their scores."""
    order = np.argsort(rows)
    places = np.minimum(np.searchsorted(rows[order], eligible), len(rows) - 1)
    found = order[places] if len(rows) else places
    known = rows[found] == eligible if len(rows) else np.zeros(len(eligible), np.bool_)
    exact = np.empty(len(eligible), np.float32)
    exact[known] = scores[found[known]]
    exact[~known] = score(eligible[~known])
    return best(eligible, exact, wanted)
