"""Changes a finished audience: users who opted out leave it for good, and its size may change; exact by its reserve.

The new files are written beside the old ones; then the receipt is replaced, which is the moment of the change; then
they take the old ones' names. Killed at any point, the audience is the old one or the new one, and whoever revises it
next finishes what was begun, so that the old files are gone. Knows audiences on disk; free of torch.
"""

from __future__ import annotations

import fcntl
import os
import re
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Literal

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from lookalike.errors import FailedPrecondition, InvalidInput, NotFound
from lookalike.files import file_digest, sync, write_whole
from lookalike.retrieval.audience import Audience, ids_digest, receipt_text, revised, write_ids, write_members
from lookalike.retrieval.membership import Flags, choose, cutoff, mean
from lookalike.retrieval.receipt import (
    AUDIENCE_NAME,
    EXCLUSIONS_NAME,
    MAX_REVISIONS,
    PREVIOUS_NAME,
    RECEIPT_NAME,
    RESERVE_NAME,
    SEEDS_NAME,
    Receipt,
    Refresh,
    Reserve,
    Revision,
)

LOCK_NAME = "revise.lock"
_FILES = (AUDIENCE_NAME, RESERVE_NAME, SEEDS_NAME, EXCLUSIONS_NAME, PREVIOUS_NAME)
_LEFT_OVER = re.compile(r"(audience|reserve|seeds|exclusions|previous)\.\d+\.parquet|manifest\.json\.tmp-.*")

Write = Callable[[Path], None]


def remove_users(folder: Path, user_ids: pa.Array) -> Receipt:
    """Take users out of every file of an audience; those who come next take the places of members.

    What is left is what the expansion would have found had these users not been eligible, as long as the reserve lasts;
    then there are fewer members. What the users did to the customised model as its seeds remains.

    Args:
        folder: the audience's.
        user_ids: of the audience's type; nothing happens for users who are nowhere in it.

    Raises:
        NotFound: no audience there. DataCorrupted: one of its files is damaged. InvalidInput: ids of another type.
    """
    with _held(folder):
        audience = Audience.open(folder)
        _finish(folder, audience.receipt)
        if user_ids.type != audience.id_type:
            raise InvalidInput(
                f"user ids are {user_ids.type}; this audience's are {audience.id_type}", field="user_ids"
            )
        change = _Change(audience)
        change.remove(user_ids)
        return change.publish("opt-out")


def resize(folder: Path, k: int) -> Receipt:
    """Change how many members an audience has, among those it has kept: members and reserve together stay the same.

    Raises:
        NotFound: no audience there. DataCorrupted: one of its files is damaged. InvalidInput: k is below 1.
        FailedPrecondition: reason RESERVE_EXHAUSTED: so many were not kept.
    """
    if k < 1:
        raise InvalidInput(f"k must be 1 or more, not {k}", field="k")
    with _held(folder):
        audience = Audience.open(folder)
        _finish(folder, audience.receipt)
        most, everyone = capacity(audience.receipt)
        if k > most and not everyone:
            raise FailedPrecondition(
                f"{most:,} users were kept in order; for {k:,} expand again, or with a larger reserve",
                field="k",
                reason="RESERVE_EXHAUSTED",
            )
        change = _Change(audience)
        change.k = k
        return change.publish("size")


def finish(folder: Path) -> None:
    """End what a killed revision began; of a copy of an audience, too, that was made in the middle of one.

    Raises:
        NotFound, DataCorrupted: no receipt there.
    """
    _finish(folder, Receipt.read(folder))


def discard(folder: Path) -> None:
    """Remove an audience, whatever is left of it; who has it open may read on. Nothing happens if there is none."""
    with suppress(NotFound, FileNotFoundError), _held(folder):
        shutil.rmtree(folder)


def capacity(receipt: Receipt) -> tuple[int, bool]:
    """The most members an audience can be given, and whether that is everyone who was eligible."""
    if receipt.reserve is None:
        return receipt.k, receipt.k + receipt.removed.listed == receipt.users_scored
    return receipt.reserve.listed, receipt.reserve.complete


@dataclass
class _List:
    """Members and reserve, best first. `previous`: were members before; `members`: are they now."""

    user_ids: pa.Array
    scores: npt.NDArray[np.float32]
    members: Flags
    previous: Flags
    reserve: Reserve

    @classmethod
    def of(cls, audience: Audience) -> _List:
        receipt = audience.receipt
        members, behind = audience.members(0, audience.num_members), audience.reserve()
        table = pa.concat_tables([members.select(["user_id", "score"]), behind.select(["user_id", "score"])])
        flags = np.arange(table.num_rows) < members.num_rows
        previous_ids = audience.previous()
        if previous_ids is not None:  # members need not be the first; equal scores go by the id, as in the pool
            order = pc.sort_indices(table, [("score", "descending"), ("user_id", "ascending")])
            table, flags = table.take(order), flags[order.to_numpy()]
        ids = table["user_id"].combine_chunks()
        previous = (
            np.zeros(len(ids), np.bool_)
            if previous_ids is None
            else pc.is_in(ids, value_set=previous_ids).to_numpy(zero_copy_only=False)
        )
        scores = table["score"].to_numpy()
        kept = receipt.reserve or Reserve(
            size=0,
            sha256="",
            listed=len(ids),
            complete=capacity(receipt)[1],
            last_score=receipt.cutoff_score,
            ties_at_end=receipt.ties_at_cutoff,
        )
        return cls(ids, scores, flags, previous, kept)

    def without(self, gone: Flags) -> _List:
        """Those who are left."""
        end = self.scores[self.reserve.listed - 1 : self.reserve.listed]
        best = gone[: self.reserve.listed]
        tied = int(np.count_nonzero(self.scores[: self.reserve.listed][best] == end))
        listed = self.reserve.listed - int(np.count_nonzero(best))
        scores = self.scores[~gone]
        last = float(scores[listed - 1]) if listed else None
        # Whoever is better than the former last one is listed, so that all who tie with the new one can be counted.
        ties = self.reserve.ties_at_end - tied
        if last is not None and last != end[0]:
            ties = int(np.count_nonzero(scores[:listed] == np.float32(last)))
        reserve = replace(self.reserve, listed=listed, last_score=last, ties_at_end=ties if listed else 0)
        return _List(self.user_ids.filter(pa.array(~gone)), scores, self.members[~gone], self.previous[~gone], reserve)


class _Change:
    """A revision in the making."""

    def __init__(self, audience: Audience) -> None:
        self._audience = audience
        self._folder = audience.path
        self._receipt = audience.receipt
        self._list = _List.of(audience)
        self._writes: dict[str, Write] = {}
        self._removed = audience.receipt.removed
        self._gone = 0
        self.k = audience.receipt.k_requested

    def remove(self, user_ids: pa.Array) -> None:
        """Take users out of the list, the seeds and the exclusions."""
        gone = _isin(self._list.user_ids, user_ids)
        self._gone = int(np.count_nonzero(gone))
        seeds, exclusions = self._audience.seeds(), self._exclusions()
        left, allowed = _without(seeds, user_ids), _without(exclusions, user_ids) if exclusions is not None else None
        removed = self._removed
        if self._gone:
            self._list = self._list.without(gone)
            removed = replace(removed, listed=removed.listed + self._gone)
        if len(left) < len(seeds):
            self._writes[SEEDS_NAME] = lambda path: write_ids(path, left)
            removed = replace(removed, seeds=removed.seeds + len(seeds) - len(left), seeds_sha256=ids_digest([left]))
        if exclusions is not None and allowed is not None and len(allowed) < len(exclusions):
            self._writes[EXCLUSIONS_NAME] = lambda path: write_ids(path, allowed)
            removed = replace(
                removed,
                exclusions=removed.exclusions + len(exclusions) - len(allowed),
                exclusions_sha256=ids_digest([allowed]),
            )
        self._removed = removed

    def _exclusions(self) -> pa.Array | None:
        path = self._audience.exclusions()
        return pq.read_table(path)["user_id"].combine_chunks() if path is not None else None

    def publish(self, reason: Literal["opt-out", "size"]) -> Receipt:
        """Write what has changed; nothing, if nothing has."""
        receipt, listed = self._receipt, self._list
        refresh = receipt.refresh
        members = choose(
            listed.previous,
            listed.reserve.listed,
            self.k,
            receipt.churn_budget,
            all_listed=refresh is None or refresh.all_eligible_listed,
        )
        if self._gone or not np.array_equal(members, listed.members):
            self._write_list(members)
        elif not self._writes and self.k == receipt.k_requested:
            return receipt
        return self._commit(members, reason)

    def _write_list(self, members: Flags) -> None:
        listed, size = self._list, int(np.count_nonzero(members))

        def write(path: Path, which: Flags, first_rank: int) -> None:
            ids = listed.user_ids.filter(pa.array(which))
            write_members(path, ids, listed.scores[which], first_rank=first_rank)

        self._writes[AUDIENCE_NAME] = lambda path: write(path, members, 1)
        if self._receipt.reserve is not None or not members.all():
            self._writes[RESERVE_NAME] = lambda path: write(path, ~members, size + 1)
        if self._audience.previous() is not None:
            known = listed.user_ids.filter(pa.array(listed.previous))
            self._writes[PREVIOUS_NAME] = lambda path: write_ids(path, known.take(pc.sort_indices(known)))

    def _commit(self, members: Flags, reason: Literal["opt-out", "size"]) -> Receipt:
        before, listed = self._receipt, self._list
        revision = before.revision + 1
        digests = {}
        try:
            for name, write in self._writes.items():
                path = revised(self._folder, name, revision)
                write(path)
                sync(path)
                digests[name] = file_digest(path)
            sync(self._folder)
        except Exception:
            for name in self._writes:
                revised(self._folder, name, revision).unlink(missing_ok=True)
            raise
        size = int(np.count_nonzero(members))
        cut = cutoff(listed.scores, members, listed.reserve.listed, listed.reserve.ties_at_end)
        entry = Revision(
            created=datetime.now(UTC).isoformat(timespec="seconds"),
            reason=reason,
            removed=self._gone,
            k_requested=before.k_requested,
            k=before.k,
            audience_sha256=before.audience_sha256,
        )
        reserve = before.reserve
        if RESERVE_NAME in digests:
            reserve = replace(listed.reserve, size=len(listed.scores) - size, sha256=digests[RESERVE_NAME])
        receipt = replace(
            before,
            k_requested=self.k,
            k=size,
            cutoff_score=cut.score,
            ties_at_cutoff=cut.ties,
            ties_selected=cut.selected,
            audience_sha256=digests.get(AUDIENCE_NAME, before.audience_sha256),
            reserve=reserve,
            refresh=self._refreshed(members),
            removed=self._removed,
            revision=revision,
            revisions=(*before.revisions, entry)[-MAX_REVISIONS:],
        )
        write_whole(self._folder / RECEIPT_NAME, receipt_text(receipt))
        _finish(self._folder, receipt)
        return receipt

    def _refreshed(self, members: Flags) -> Refresh | None:
        """Counts of a refresh stay as they were found; its means are of who is there now."""
        refresh, scores = self._receipt.refresh, self._list.scores
        if refresh is None:
            return None
        size = int(np.count_nonzero(members))
        return replace(refresh, mean_score=mean(scores[members]), mean_score_unbounded=mean(scores[:size]))


def _finish(folder: Path, receipt: Receipt) -> None:
    """Give the receipt's files their names, and remove what a killed revision left."""
    changed = False
    for name in _FILES:
        beside = revised(folder, name, receipt.revision)
        if receipt.revision and beside.exists():
            beside.replace(folder / name)
            changed = True
    for path in sorted(folder.iterdir()):
        if _LEFT_OVER.fullmatch(path.name):
            path.unlink()
            changed = True
    if changed:
        sync(folder)


@contextmanager
def _held(folder: Path) -> Iterator[None]:
    """One process at a time, on any machine that shares the folder."""
    try:
        lock = os.open(folder / LOCK_NAME, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    except (FileNotFoundError, NotADirectoryError) as error:
        raise NotFound(f"no audience at {folder}", field="audience") from error
    try:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield
    finally:
        os.close(lock)


def _isin(user_ids: pa.Array, wanted: pa.Array) -> Flags:
    flags: Flags = pc.is_in(user_ids, value_set=wanted).to_numpy(zero_copy_only=False)
    return flags


def _without(user_ids: pa.Array, gone: pa.Array) -> pa.Array:
    return user_ids.filter(pc.invert(pc.is_in(user_ids, value_set=gone)))
