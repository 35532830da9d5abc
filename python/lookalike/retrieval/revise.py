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
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Literal

import numpy as np
import pyarrow as pa

from lookalike.errors import FailedPrecondition, InvalidInput, NotFound
from lookalike.files import file_digest, sync, write_whole
from lookalike.retrieval.audience import Audience, IdsFile, MembersFile, ids_digest, receipt_text, revised
from lookalike.retrieval.listing import Left, Listing, Members, Written, split
from lookalike.retrieval.membership import choose
from lookalike.retrieval.receipt import (
    AUDIENCE_NAME,
    EXCLUSIONS_NAME,
    MAX_REVISIONS,
    PREVIOUS_NAME,
    RECEIPT_NAME,
    RESERVE_NAME,
    SEEDS_NAME,
    Receipt,
    Reserve,
    Revision,
)

LOCK_NAME = "revise.lock"
_FILES = (AUDIENCE_NAME, RESERVE_NAME, SEEDS_NAME, EXCLUSIONS_NAME, PREVIOUS_NAME)
_LEFT_OVER = re.compile(r"(audience|reserve|seeds|exclusions|previous)\.\d+\.parquet|manifest\.json\.tmp-.*")

Write = Callable[..., None]  # to paths beside


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


class _Change:
    """A revision in the making. Lists are read and written piece by piece, a few times over."""

    def __init__(self, audience: Audience) -> None:
        self._audience = audience
        self._folder = audience.path
        self._receipt = audience.receipt
        self._gone = pa.array([], audience.id_type)
        self._writes: list[tuple[tuple[str, ...], Write]] = []
        self._removed = audience.receipt.removed
        self._kept = audience.receipt.reserve or Reserve(
            size=0,
            sha256="",
            listed=audience.num_members,
            complete=capacity(audience.receipt)[1],
            last_score=audience.receipt.cutoff_score,
            ties_at_end=audience.receipt.ties_at_cutoff,
        )
        self.k = audience.receipt.k_requested

    def remove(self, user_ids: pa.Array) -> None:
        """Take users out of the list, the seeds and the exclusions."""
        self._gone = user_ids
        removed = self._removed
        seeds, digest = self._strike(SEEDS_NAME)
        if seeds:
            removed = replace(removed, seeds=removed.seeds + seeds, seeds_sha256=digest)
        if self._receipt.exclusions_sha256:
            exclusions, digest = self._strike(EXCLUSIONS_NAME)
            if exclusions:
                removed = replace(removed, exclusions=removed.exclusions + exclusions, exclusions_sha256=digest)
        self._removed = removed

    def publish(self, reason: Literal["opt-out", "size"]) -> Receipt:
        """Write what has changed; nothing, if nothing has."""
        receipt, refresh = self._receipt, self._receipt.refresh
        listing = Listing(self._audience, self._gone)
        left = listing.count(self._kept)
        members = Members(min(self.k, left.reserve.listed), None)
        if left.previous is not None:
            everyone = refresh is None or refresh.all_eligible_listed
            flags = choose(left.previous, left.reserve.listed, self.k, receipt.churn_budget, all_listed=everyone)
            members = Members(int(np.count_nonzero(flags)), flags)
        written = None
        # The same list with as many members has the same ones.
        if left.gone or members.size != receipt.k:
            written = self._write_list(listing, left, members)
        elif not self._writes and self.k == receipt.k_requested:
            return receipt
        self._removed = replace(self._removed, listed=self._removed.listed + left.gone)
        return self._commit(left, written, members.size, reason)

    def _strike(self, name: str) -> tuple[int, str]:
        """Take who is gone out of a file of ids, if anyone of them is in it: how many, and what is left."""
        struck = 0

        def left() -> Iterator[pa.Array]:
            nonlocal struck
            for ids, gone in split(self._audience.ids(name), self._gone):
                struck += int(np.count_nonzero(gone))
                yield ids.filter(pa.array(~gone))

        digest = ids_digest(left())

        def write(path: Path) -> None:
            with IdsFile(path, self._audience.id_type) as file:
                for ids in left():
                    file.add(ids)

        count = struck
        if count:
            self._writes.append(((name,), write))
        return count, digest

    def _write_list(self, listing: Listing, left: Left, members: Members) -> Written:
        """See to it that it is written; what is returned is known when it has been."""
        written = Written()

        def write(audience: Path, reserve: Path | None = None) -> None:
            with ExitStack() as files:
                kind = self._audience.id_type
                inside = files.enter_context(MembersFile(audience, kind))
                behind = None
                if reserve is not None:
                    behind = files.enter_context(MembersFile(reserve, kind, first_rank=members.size + 1))
                for place, ids, scores in listing.left():
                    chosen = members.of(place, len(ids))
                    inside.add(ids.filter(pa.array(chosen)), scores[chosen])
                    if behind is not None:
                        behind.add(ids.filter(pa.array(~chosen)), scores[~chosen])
                    written.add(place, scores, chosen, left.reserve.listed, members.size)

        keeps = self._receipt.reserve is not None or members.size < left.total
        self._writes.append(((AUDIENCE_NAME, RESERVE_NAME) if keeps else (AUDIENCE_NAME,), write))
        if left.previous is not None and left.gone:
            self._strike(PREVIOUS_NAME)
        return written

    def _commit(self, left: Left, written: Written | None, size: int, reason: Literal["opt-out", "size"]) -> Receipt:
        before = self._receipt
        revision = before.revision + 1
        digests = self._write(revision)
        entry = Revision(
            created=datetime.now(UTC).isoformat(timespec="seconds"),
            reason=reason,
            removed=left.gone,
            k_requested=before.k_requested,
            k=before.k,
            audience_sha256=before.audience_sha256,
        )
        receipt = replace(
            before,
            k_requested=self.k,
            k=size,
            audience_sha256=digests.get(AUDIENCE_NAME, before.audience_sha256),
            removed=self._removed,
            revision=revision,
            revisions=(*before.revisions, entry)[-MAX_REVISIONS:],
        )
        if written is not None:
            cut = written.cut.result(left.reserve.ties_at_end)
            receipt = replace(receipt, cutoff_score=cut.score, ties_at_cutoff=cut.ties, ties_selected=cut.selected)
            if before.refresh is not None:  # its counts stay as they were found; its means are of who is there now
                refresh = replace(
                    before.refresh, mean_score=written.mean.value, mean_score_unbounded=written.unbounded.value
                )
                receipt = replace(receipt, refresh=refresh)
        if RESERVE_NAME in digests:
            reserve = replace(left.reserve, size=left.total - size, sha256=digests[RESERVE_NAME])
            receipt = replace(receipt, reserve=reserve)
        write_whole(self._folder / RECEIPT_NAME, receipt_text(receipt))
        _finish(self._folder, receipt)
        return receipt

    def _write(self, revision: int) -> dict[str, str]:
        """Write the new files beside the old ones, and return their digests; none of them is left if it fails."""
        digests = {}
        try:
            for names, write in self._writes:
                paths = [revised(self._folder, name, revision) for name in names]
                write(*paths)
                for name, path in zip(names, paths, strict=True):
                    sync(path)
                    digests[name] = file_digest(path)
            sync(self._folder)
        except Exception:
            for names, _ in self._writes:
                for name in names:
                    revised(self._folder, name, revision).unlink(missing_ok=True)
            raise
        return digests


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
