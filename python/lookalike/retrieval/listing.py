"""A finished audience's list, members and reserve, read piece by piece: who is left of it, and who of them is a member.

Flat in memory, however long the list is: a few row groups. Where a churn budget binds, so long as the list is kept four
bytes a user, which say who was a member before. Knows audiences on disk and the rule of membership; writes nothing.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from lookalike.retrieval.audience import ROW_GROUP, Audience
from lookalike.retrieval.membership import CutoffCount, Flags, Mean, Scores, Tail
from lookalike.retrieval.receipt import PREVIOUS_NAME, Reserve

_LOOKED_UP = 1 << 21
_ORDER = [("score", "descending"), ("user_id", "ascending")]  # equal scores go by the id, as in the pool


@dataclass(frozen=True)
class Left:
    """Who is left of a list when users have gone.

    Attributes:
        total, gone: how many users are left, and how many went.
        reserve: what is left of it, but for its file.
        previous: who of those who are left was a member before, by place; None where no churn budget asks.
    """

    total: int
    gone: int
    reserve: Reserve
    previous: Flags | None


@dataclass(frozen=True)
class Members:
    """Who of a list is a member: by place, or without flags the first so many."""

    size: int
    flags: Flags | None

    def of(self, place: int, count: int) -> Flags:
        """Whether those from a place on are."""
        if self.flags is not None:
            return self.flags[place : place + count]
        return np.arange(place, place + count) < self.size


class Written:
    """What is told of a list while it is written."""

    def __init__(self) -> None:
        self.cut = CutoffCount()
        self.mean = Mean()
        self.unbounded = Mean()

    def add(self, place: int, scores: Scores, chosen: Flags, listed: int, size: int) -> None:
        """The next ones; `listed` and `size` are of the whole list."""
        self.cut.add(scores, chosen, min(max(listed - place, 0), len(scores)))
        self.mean.add(scores[chosen])
        self.unbounded.add(scores[: max(size - place, 0)])


class Listing:
    """Members and reserve as one list, best first, without users who are gone."""

    def __init__(self, audience: Audience, gone: pa.Array) -> None:
        self._audience = audience
        self._gone = gone
        self._previous = _previous(audience) if has_previous(audience) else None

    def left(self) -> Iterator[tuple[int, pa.Array, Scores]]:
        """Who is left, a piece at a time: the first one's place, ids, scores."""
        place = 0
        for batch, gone in self._pieces():
            some = batch.filter(pa.array(~gone))
            yield place, some["user_id"], some["score"].to_numpy()
            place += some.num_rows

    def count(self, before: Reserve) -> Left:
        """Who is left; `before`: what the reserve was."""
        place, total, listed, behind = 0, 0, 0, 0
        everyone, best = Tail(), Tail()
        previous, found = [], [self._gone.slice(0, 0)]
        for batch, gone in self._pieces():
            scores = batch["score"].to_numpy()
            here = min(max(before.listed - place, 0), len(scores))
            everyone.add(scores[:here])
            best.add(scores[:here][~gone[:here]])
            behind += int(np.count_nonzero(gone[here:] & (scores[here:] == everyone.score)))
            listed += here - int(np.count_nonzero(gone[:here]))
            total += len(scores) - int(np.count_nonzero(gone))
            place += len(scores)
            found.append(batch["user_id"].filter(pa.array(gone)))
            if self._previous is not None:
                previous.append(batch["previous"].to_numpy(zero_copy_only=False)[~gone])
        self._gone = pa.concat_arrays(found)  # of whom there are fewer to look for than of all who opted out
        # Whoever is better than the former last one is listed, so that all who tie with the new one can be counted.
        ties = best.count
        if best.score is not None and best.score == everyone.score:
            ties = before.ties_at_end - (everyone.count - best.count) - behind
        last = None if best.score is None else float(best.score)
        return Left(
            total=total,
            gone=place - total,
            reserve=replace(before, listed=listed, last_score=last, ties_at_end=ties),
            previous=np.concatenate([np.zeros(0, np.bool_), *previous]) if self._previous is not None else None,
        )

    def _pieces(self) -> Iterator[tuple[pa.RecordBatch, Flags]]:
        columns = ["user_id", "score"]
        members = self._audience.batches(ROW_GROUP, columns=columns)
        reserve = self._audience.reserve_batches(ROW_GROUP, columns)
        if self._previous is None:
            batches: Iterable[pa.RecordBatch] = (batch for one in (members, reserve) for batch in one)
        else:  # then members need not be the first
            batches = _merged(*map(_flagged, (members, reserve), self._previous))
        for batch in batches:
            yield batch, _isin(batch["user_id"], self._gone)


def has_previous(audience: Audience) -> bool:
    """Whether it is known, and matters, who was a member before."""
    return audience.receipt.refresh is not None and audience.receipt.churn_budget < 1


def split(pieces: Iterable[pa.Array], gone: pa.Array) -> Iterator[tuple[pa.Array, Flags]]:
    """Pieces of ids, each with who of them is gone."""
    for ids in pieces:
        yield ids, _isin(ids, gone)


def _isin(user_ids: pa.Array, wanted: pa.Array) -> Flags:
    flags: Flags = pc.is_in(user_ids, value_set=wanted).to_numpy(zero_copy_only=False)
    return flags


def _previous(audience: Audience) -> tuple[Flags, Flags]:
    """Who of the members, and of the reserve, was a member before. The files are read anew for each part of these."""
    reserve = audience.receipt.reserve.size if audience.receipt.reserve is not None else 0
    flags = np.zeros(audience.num_members, np.bool_), np.zeros(reserve, np.bool_)
    for part in audience.ids(PREVIOUS_NAME):
        files = audience.batches(ROW_GROUP, columns=["user_id"]), audience.reserve_batches(ROW_GROUP, ["user_id"])
        for found, batches in zip(flags, files, strict=True):
            place = 0
            for ids in _gathered(batches):
                found[place : place + len(ids)] |= _isin(ids, part)
                place += len(ids)
    return flags


def _gathered(batches: Iterable[pa.RecordBatch]) -> Iterator[pa.Array]:
    """Ids, _LOOKED_UP at a time: each look-up begins by making a hash table of whom it looks for."""
    waiting: list[pa.Array] = []
    for batch in batches:
        waiting.append(batch["user_id"])
        if sum(map(len, waiting)) >= _LOOKED_UP:
            yield pa.concat_arrays(waiting)
            waiting = []
    if waiting:
        yield pa.concat_arrays(waiting)


def _flagged(batches: Iterable[pa.RecordBatch], flags: Flags) -> Iterator[pa.RecordBatch]:
    place = 0
    for batch in batches:
        yield batch.append_column("previous", pa.array(flags[place : place + batch.num_rows]))
        place += batch.num_rows


def _merged(first: Iterator[pa.RecordBatch], second: Iterator[pa.RecordBatch]) -> Iterator[pa.RecordBatch]:
    """Two lists as one, in order; of either no more than a piece is in memory."""
    one, other = _next(first), _next(second)
    while one is not None and other is not None:
        if _key(other) < _key(one):
            (one, first), (other, second) = (other, second), (one, first)
        before = _up_to(other, *_key(one))
        both = pa.Table.from_batches([one, other.slice(0, before)])
        yield from both.take(pc.sort_indices(both, _ORDER)).combine_chunks().to_batches()
        one, other = _next(first), other.slice(before)
    for head, rest in ((one, first), (other, second)):
        if head is not None:
            yield head
            yield from rest


def _next(batches: Iterator[pa.RecordBatch]) -> pa.RecordBatch | None:
    return next((batch for batch in batches if batch.num_rows), None)


def _key(batch: pa.RecordBatch) -> tuple[float, Any]:
    """By which its last row is ordered."""
    return -batch["score"][-1].as_py(), batch["user_id"][-1].as_py()


def _up_to(batch: pa.RecordBatch, negated: float, user_id: Any) -> int:
    """How many of its rows come before this key; a user is in one list alone."""
    scores, score = batch["score"].to_numpy(), np.float32(-negated)
    lower = pc.less(batch["user_id"], pa.scalar(user_id, batch["user_id"].type)).to_numpy(zero_copy_only=False)
    return int(np.count_nonzero((scores > score) | ((scores == score) & lower)))
