"""`lookalike verify`: does an audience hold what its receipt says, and is it the exact top K of its pool?

Re-scores a random sample of the pool, and of the members, with the very model by the reference engine, whichever chose
the audience; knows `scoring` and `pool`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from lookalike.config import ScoringConfig
from lookalike.errors import DataCorrupted, FailedPrecondition
from lookalike.files import file_digest
from lookalike.pool.bitmap import Bitmap, count, marked
from lookalike.pool.exclusions import Exclude, Exclusions, exclusions, marked_ids
from lookalike.pool.filters import Filter
from lookalike.pool.snapshot import Pool
from lookalike.retrieval.audience import Audience, current, ids_digest
from lookalike.retrieval.eligibility import Skipped, skipped
from lookalike.retrieval.membership import choose, cutoff
from lookalike.retrieval.receipt import AUDIENCE_NAME, MODEL_NAME, RESERVE_NAME
from lookalike.retrieval.rescoring import SAFETY
from lookalike.scoring.compiled import CPU_BATCH, TorchScriptEngine
from lookalike.scoring.engine import is_exact

# Another machine's instruction set sums in another order; a probability moves by less than this share of itself.
TOLERANCE = 1e-4
# Neighbours that are looked at together.
BLOCK = 256


@dataclass(frozen=True)
class Check:
    """One thing that was looked at: what, whether it holds, and the figures or the reason."""

    name: str
    passed: bool
    detail: str


@dataclass(frozen=True)
class Verification:
    """All checks. `largest_difference` is that of re-scored from recorded scores: 0 on a like machine."""

    checks: tuple[Check, ...]
    users_rescored: int
    largest_difference: float

    @property
    def passed(self) -> bool:
        return all(check.passed for check in self.checks)


def verify(
    audience: Path,
    *,
    pool: Path | None = None,
    sample_users: int = 100_000,
    random_seed: int = 0,
    threads: int = 0,
    opted_out: Exclude = (),
    progress: Callable[[int, int], None] | None = None,
) -> Verification:
    """Check files against the receipt, order, counts, and a sample of re-scored blocks.

    Args:
        pool: where the pool is now, if it has moved.
        sample_users: at least so many users are re-scored, in blocks, the last member's among them; and as many of the
            members.
        threads: of the CPU; 0: all the process may use.
        opted_out: users who had opted out, of whom an audience keeps no ids. Without them, as many users as the
            receipt counts may be better than the last one listed and yet no members.

    Raises:
        NotFound, DataCorrupted: there is no audience, model or pool to check. FailedPrecondition: the pool is another.
    """
    opened = Audience.open(audience)
    receipt = opened.receipt
    users = Pool.open(pool or receipt.pool)
    if users.fingerprint != receipt.pool_sha256:
        raise FailedPrecondition(
            f"the pool at {users.path} is not the snapshot this audience was chosen from; name it with --pool",
            field="pool",
        )
    checks = [*_files(audience, opened)]
    members, reserve = opened.members(0, opened.num_members), opened.reserve()
    rows = users.find(members["user_id"])
    scores = members["score"].to_numpy()
    engine = TorchScriptEngine(audience / MODEL_NAME, ScoringConfig(device="cpu", threads=threads))
    seeds = users.find(opened.seeds())
    checks += [*_order(members, rows, scores), *_counts(opened, users, seeds)]
    listing = _Listing(opened, users, rows, scores, reserve)
    checks += listing.checks()
    checks += _account(opened)
    listed = opened.exclusions()
    excluded = exclusions(users, listed) if listed is not None else None
    gone = exclusions(users, opted_out) if isinstance(opted_out, Path) or len(opted_out) else None
    skip = _skipped(opened, users, seeds, excluded, gone, engine.threads)
    inside = 0 if receipt.include_seeds else int(np.isin(listing.rows, seeds).sum())
    checks.append(
        Check("no seed is a member", inside == 0, f"{inside} seeds" if not receipt.include_seeds else "seeds let in")
    )
    checks += _eligibility(opened, users, listing.rows, excluded, gone, skip)
    hidden = 0 if gone is not None else receipt.opted_out + receipt.removed.listed
    sample = _Sample(users, engine, listing, skip.bitmap, hidden)
    checks += sample.run(sample_users, random_seed, progress)
    return Verification(tuple(checks), sample.users, sample.largest)


def _files(folder: Path, audience: Audience) -> Iterator[Check]:
    receipt = audience.receipt
    expected = {AUDIENCE_NAME: receipt.audience_sha256, MODEL_NAME: receipt.model_sha256}
    if receipt.reserve is not None:
        expected[RESERVE_NAME] = receipt.reserve.sha256
    for name, expected_digest in expected.items():
        path = current(folder, name, receipt)
        actual = file_digest(path) if path.is_file() else "missing"
        yield Check(f"checksum of {name}", actual == expected_digest, actual[:16])


def _order(members: pa.Table, rows: npt.NDArray[np.int64], scores: npt.NDArray[np.float32]) -> Iterator[Check]:
    ranks = members["rank"].to_numpy()
    yield Check("ranks run from 1", bool(np.array_equal(ranks, np.arange(1, len(ranks) + 1))), f"{len(ranks)} members")
    unknown = int(np.count_nonzero(rows < 0))
    yield Check("members are users of the pool", unknown == 0, f"{unknown} unknown")
    descending = scores[:-1] > scores[1:]
    tied_in_order = (scores[:-1] == scores[1:]) & (rows[:-1] < rows[1:])
    wrong = int(np.count_nonzero(~(descending | tied_in_order)))
    yield Check("scores descend, ties by user id", wrong == 0, f"{wrong} out of order")


def _counts(audience: Audience, pool: Pool, seeds: npt.NDArray[np.int64]) -> Iterator[Check]:
    receipt = audience.receipt
    whole = receipt.users_scored + receipt.users_skipped
    yield Check(
        "every user was scored or skipped",
        whole == pool.num_users == receipt.pool_users,
        f"{receipt.users_scored} scored + {receipt.users_skipped} skipped of {pool.num_users}",
    )
    expected = receipt.removed.seeds_sha256 or receipt.seeds_sha256
    recorded = ids_digest([audience.seeds()]) == expected
    recorded &= len(seeds) == receipt.seeds.matched - receipt.removed.seeds
    yield Check("the seeds are those of the receipt", recorded, f"{len(seeds)} seeds")


class _Listing:
    """Members and reserve in one order, the one they were chosen in.

    Attributes:
        rows, scores: `[list]`, of the pool, best first.
        members: who of them is one: `[list]`.
        best: so many, the first, are the best of the pool.
    """

    def __init__(
        self,
        audience: Audience,
        pool: Pool,
        rows: npt.NDArray[np.int64],
        scores: npt.NDArray[np.float32],
        reserve: pa.Table,
    ) -> None:
        self.receipt = audience.receipt
        self._behind = pool.find(reserve["user_id"])
        self._reserve = reserve
        all_rows = np.concatenate([rows, self._behind])
        all_scores = np.concatenate([scores, reserve["score"].to_numpy()])
        order = np.lexsort((all_rows, -all_scores))
        self.rows, self.scores, self.members = all_rows[order], all_scores[order], order < len(rows)
        self.best = len(rows) if self.receipt.reserve is None else min(self.receipt.reserve.listed, len(all_rows))
        previous = audience.previous()
        known = pool.find(previous) if previous is not None else np.zeros(0, np.int64)
        self._previous = np.isin(self.rows, known)
        self.in_order = bool(self.members[: len(rows)].all())

    def checks(self) -> Iterator[Check]:
        receipt, refresh = self.receipt, self.receipt.refresh
        if receipt.reserve is None:
            expected = min(receipt.k_requested, receipt.users_scored) - receipt.removed.listed
            yield Check("K members, or all there are", receipt.k == expected, f"{receipt.k} of {expected}")
        else:
            size, unknown = len(self._behind), int(np.count_nonzero(self._behind < 0))
            ranks = self._reserve["rank"].to_numpy()
            yield Check(
                "the reserve is of the pool, its ranks follow the members'",
                size == receipt.reserve.size
                and not unknown
                and np.array_equal(ranks, np.arange(receipt.k + 1, receipt.k + 1 + size)),
                f"{size} users, {unknown} unknown",
            )
            wanted = choose(
                self._previous,
                self.best,
                receipt.k_requested,
                receipt.churn_budget,
                all_listed=refresh is None or refresh.all_eligible_listed,
            )
            wrong = int(np.count_nonzero(wanted != self.members))
            yield Check("the members are who is to be chosen of the list", wrong == 0, f"{wrong} are not")
        if refresh is not None:
            sums = refresh.kept + refresh.joined, refresh.kept + refresh.left
            consistent = sums == (receipt.k, refresh.previous_members) or receipt.revision > 0
            yield Check("who stayed, joined and left adds up", consistent, f"{refresh.joined} joined")
        ends = receipt.reserve.ties_at_end if receipt.reserve is not None else receipt.ties_at_cutoff
        cut = cutoff(self.scores, self.members, self.best, ends)
        yield Check("the cut-off is the last score", cut.score == receipt.cutoff_score, f"{cut.score}")
        yield Check(
            "ties at the cut-off",
            cut.selected == receipt.ties_selected <= receipt.ties_at_cutoff,
            f"{cut.selected} of {receipt.ties_at_cutoff} are members",
        )


def _account(audience: Audience) -> Iterator[Check]:
    receipt = audience.receipt
    again = receipt.rescoring
    yield Check(
        "an engine that rounds was followed by one that does not",
        (again is None) == is_exact(receipt),
        receipt.engine if again is None else f"{receipt.engine}, {again.users} users",
    )
    if again is not None:
        yield Check(
            "all members were scored again, by a margin wide enough",
            again.users >= receipt.k and again.epsilon >= SAFETY * again.largest_error,
            f"epsilon {again.epsilon:.2g}, largest error {again.largest_error:.2g}",
        )


def _skipped(
    audience: Audience,
    pool: Pool,
    seeds: npt.NDArray[np.int64],
    excluded: Exclusions | None,
    gone: Exclusions | None,
    threads: int,
) -> Skipped:
    """Who was not to be chosen, found again from the recorded seeds, exclusions and filter."""
    receipt = audience.receipt
    return skipped(
        pool,
        seeds[:0] if receipt.include_seeds else seeds[seeds >= 0],
        excluded,
        Filter(receipt.filter, pool.schema) if receipt.filter else None,
        opted_out=gone,
        threads=threads,
    )


def _eligibility(
    audience: Audience,
    pool: Pool,
    rows: npt.NDArray[np.int64],
    excluded: Exclusions | None,
    gone: Exclusions | None,
    skip: Skipped,
) -> Iterator[Check]:
    """`rows`: of the list."""
    receipt, removed = audience.receipt, audience.receipt.removed
    if excluded is not None:
        expected = removed.exclusions_sha256 or receipt.exclusions_sha256
        same = ids_digest(marked_ids(pool, excluded.bitmap)) == expected
        yield Check(
            "the exclusions are those of the receipt",
            same and excluded.given == excluded.matched == receipt.exclusions.matched - removed.exclusions,
            f"{excluded.matched} excluded",
        )
        inside = int(marked(excluded.bitmap, rows[rows >= 0]).sum())
        yield Check("no excluded user is a member", inside == 0, f"{inside} excluded")
    if gone is not None:
        inside = int(marked(gone.bitmap, rows[rows >= 0]).sum())
        yield Check("no user who opted out is a member", inside == 0, f"{inside} opted out")
    if receipt.filter:
        yield Check(
            "the filter leaves out as many as recorded",
            skip.filtered == receipt.users_filtered,
            f"{skip.filtered} filtered",
        )
    # Of those who opted out no id is left: they may have been skipped for this alone, or have been scored.
    whole = count(skip.bitmap)
    fewest = receipt.users_skipped - receipt.opted_out - removed.seeds - removed.exclusions
    most = receipt.users_skipped + (removed.listed + gone.matched if gone is not None else 0)
    yield Check("users skipped are those recorded", fewest <= whole <= most, f"{whole} skipped")
    inside = int(marked(skip.bitmap, rows[rows >= 0]).sum())
    yield Check("no user that was to be skipped is a member", inside == 0, f"{inside} users")


class _Sample:
    """Re-scores blocks of users: who is listed must score what was recorded, others rank behind the last one listed.

    `hidden` users may be better, for they had opted out and nobody can tell here who they were.
    """

    def __init__(
        self,
        pool: Pool,
        engine: TorchScriptEngine,
        listing: _Listing,
        skip: Bitmap,
        hidden: int,
    ) -> None:
        self.pool = pool
        self.engine = engine
        order = np.argsort(listing.rows)
        self.rows, self.scores = listing.rows[order], listing.scores[order]
        end = listing.best - 1
        self.last = (float(listing.scores[end]), int(listing.rows[end])) if end >= 0 else (np.inf, -1)
        self.cutoff = listing.receipt.cutoff_score if listing.in_order else None
        self.skip = skip
        self.users = 0
        self.largest = 0.0
        self.missing = 0
        self.wrong = 0
        self.ties = listing.receipt.ties_at_cutoff
        self.hidden = hidden
        self.tied = 0

    def run(self, sample_users: int, seed: int, progress: Callable[[int, int], None] | None) -> list[Check]:
        rng = np.random.default_rng(seed)
        blocks = -(-self.pool.num_users // BLOCK)
        chosen = set(rng.choice(blocks, min(blocks, max(1, -(-sample_users // BLOCK))), replace=False).tolist())
        if self.last[1] >= 0:
            chosen.add(self.last[1] // BLOCK)
        members = rng.choice(len(self.rows), min(len(self.rows), sample_users), replace=False)
        members = np.sort(members[self.rows[members] >= 0])
        total = len(chosen) * BLOCK + len(members)
        for start in range(0, len(members), CPU_BATCH):
            some = members[start : start + CPU_BATCH]
            self._compare(self.engine.score(self.pool.take(self.rows[some])), self.scores[some])
            if progress is not None:
                progress(start + len(some), total)
        again = {}
        for done, block in enumerate(sorted(chosen), 1):
            start = block * BLOCK
            again[start] = self.engine.score(self.pool.read(start, min(start + BLOCK, self.pool.num_users)))
            inside, recorded = self._members(start, len(again[start]))
            self._compare(again[start][inside], recorded)
            if progress is not None:
                progress(len(members) + done * BLOCK, total)
        for start, scores in again.items():
            self.users += len(scores)
            self._count_missing(start, scores)
        return [
            Check(
                "members score what was recorded",
                self.wrong == 0,
                f"largest difference of {len(members)} {self.largest:.2g}",
            ),
            Check(
                "nobody better was left out",
                self.missing <= self.hidden,
                f"{self.missing} of {self.users} re-scored" + (f", {self.hidden} opted out" if self.hidden else ""),
            ),
            Check(
                "ties at the cut-off are no more than recorded",
                self.tied <= self.ties + self.hidden,
                f"{self.tied} re-scored",
            ),
        ]

    def _members(self, start: int, count: int) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.float32]]:
        low, high = np.searchsorted(self.rows, (start, start + count))
        return self.rows[low:high] - start, self.scores[low:high]

    def _compare(self, again: npt.NDArray[np.float32], recorded: npt.NDArray[np.float32]) -> None:
        difference = np.abs(again - recorded)
        self.largest = max(self.largest, float(difference.max(initial=0.0)))
        self.wrong += int(np.count_nonzero(~(difference <= TOLERANCE * recorded)))

    def _count_missing(self, start: int, again: npt.NDArray[np.float32]) -> None:
        """After all listed were compared: only where every one of them agrees to the bit do ties count."""
        outside = np.ones(len(again), np.bool_)
        outside[self._members(start, len(again))[0]] = False
        lowest, last_row = self.last
        eligible = ~marked(self.skip, np.arange(start, start + len(again)))
        if self.cutoff is not None:
            self.tied += int(np.count_nonzero((again == np.float32(self.cutoff)) & eligible))
        outside &= eligible
        if self.largest == 0.0:
            numbers = np.arange(start, start + len(again))
            better = (again > np.float32(lowest)) | ((again == np.float32(lowest)) & (numbers < last_row))
        else:
            better = again > lowest * (1 + TOLERANCE)
        self.missing += int(np.count_nonzero(better & outside))


def require_passed(verification: Verification) -> None:
    """Turn failed checks into an error.

    Raises:
        DataCorrupted: names every check that failed.
    """
    failed = [f"{check.name} ({check.detail})" for check in verification.checks if not check.passed]
    if failed:
        raise DataCorrupted("verification failed: " + "; ".join(failed), field="audience")
