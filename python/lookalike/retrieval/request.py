"""What an expansion is asked for, checked at the door and in canonical form.

Knows the checkpoint's schemas and the pool; knows nothing of scoring or files.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
import numpy.typing as npt

from lookalike.errors import EmptySeeds, InvalidInput, SchemaError
from lookalike.pool.bitmap import Bitmap, count, marked
from lookalike.pool.exclusions import Exclude, Exclusions, UserIds, exclusions, marked_ids
from lookalike.pool.filters import Filter
from lookalike.pool.snapshot import Pool
from lookalike.retrieval.audience import ids_digest
from lookalike.retrieval.eligibility import Skipped, skipped
from lookalike.retrieval.receipt import Removed, SeedMatch
from lookalike.schema import EncodedColumns, FeatureSchema, FeatureValue


@dataclass(frozen=True, kw_only=True)
class Previous:
    """An audience that is to be refreshed.

    Attributes:
        user_ids: its members, in any order.
        name, audience_sha256: of it, for the receipt.
        budget: share of the members that may be replaced; see `membership`.
        rows: of its members, ascending, without those the pool lacks; `check_request` looks them up.
    """

    user_ids: UserIds
    name: str = ""
    audience_sha256: str = ""
    budget: float = 1.0
    rows: npt.NDArray[np.int64] = field(default_factory=lambda: np.zeros(0, np.int64))

    @property
    def members(self) -> int:
        return len(self.user_ids)


@dataclass(frozen=True)
class Request:
    """What decides an audience's bytes, checked and in canonical form."""

    campaign: str
    features: Mapping[str, FeatureValue]
    encoded: EncodedColumns
    seed_rows: npt.NDArray[np.int64]  # matched, ascending
    match: SeedMatch
    seeds_sha256: str
    k: int
    include_seeds: bool
    random_seed: int
    filter: Filter | None
    exclusions: Exclusions
    exclusions_sha256: str  # of those the pool has; empty if there are none
    reserve: int
    opted_out: Exclusions | None
    opted_out_sha256: str  # likewise
    previous: Previous | None
    previous_sha256: str  # likewise

    @property
    def wanted(self) -> int:
        """Best users to find."""
        return self.k + self.reserve

    @property
    def recorded_seeds(self) -> npt.NDArray[np.int64]:
        """Seeds that may be kept beside the audience: those who have not opted out."""
        rows = self.seed_rows
        return rows if self.opted_out is None else rows[~marked(self.opted_out.bitmap, rows)]

    @property
    def recorded_exclusions(self) -> Bitmap:
        """Likewise of the exclusions."""
        return self.exclusions.bitmap if self.opted_out is None else self.exclusions.bitmap & ~self.opted_out.bitmap

    def removed(self, pool: Pool) -> Removed:
        """Who, of seeds and exclusions, is not kept."""
        seeds = self.match.matched - len(self.recorded_seeds)
        left = self.recorded_exclusions
        excluded = self.exclusions.matched - count(left)
        return Removed(
            seeds=seeds,
            seeds_sha256=ids_digest([pool.user_ids(self.recorded_seeds)]) if seeds else "",
            exclusions=excluded,
            exclusions_sha256=ids_digest(marked_ids(pool, left)) if excluded else "",
        )


def check_request(
    pool: Pool,
    campaign_schema: FeatureSchema,
    *,
    campaign: str,
    features: Mapping[str, FeatureValue],
    seeds: UserIds,
    k: int,
    include_seeds: bool,
    random_seed: int,
    filter: str,  # noqa: A002
    exclude: Exclude,
    reserve: int = 0,
    opted_out: Exclude = (),
    previous: Previous | None = None,
) -> Request:
    """The request, with its seeds and exclusions looked up; arguments as of `Expander.expand`.

    Raises:
        EmptySeeds, SchemaError, InvalidInput: something is wrong with it.
    """
    if not campaign:
        raise InvalidInput("a campaign needs a name", field="campaign")
    if k < 1:
        raise InvalidInput(f"k must be 1 or more, not {k}", field="k")
    if reserve < 0:
        raise InvalidInput(f"reserve must be 0 or more, not {reserve}", field="reserve")
    if previous is not None and not 0 <= previous.budget <= 1:
        raise InvalidInput(f"churn_budget must be 0 to 1, not {previous.budget}", field="churn_budget")
    if random_seed < 0:
        raise InvalidInput(f"random_seed must be 0 or more, not {random_seed}", field="random_seed")
    if len(seeds) == 0:
        raise EmptySeeds("no seeds were given; give user ids of the pool", field="seeds")
    features = _canonical(features)
    eligible = Filter(filter, pool.schema) if filter.strip() else None
    encoded = campaign_schema.encode_features(features, where="features")
    rows = np.sort(pool.find(seeds))
    found = rows[rows >= 0]
    matched = np.unique(found)
    match = SeedMatch(
        given=len(seeds),
        matched=len(matched),
        duplicates=len(found) - len(matched),
        not_in_pool=len(rows) - len(found),
    )
    excluded = exclusions(pool, exclude)
    gone = exclusions(pool, opted_out) if isinstance(opted_out, Path) or len(opted_out) else None
    if previous is not None:
        known = pool.find(previous.user_ids, field="previous")
        previous = replace(previous, rows=np.unique(known[known >= 0]))
    return Request(
        campaign,
        features,
        encoded,
        matched,
        match,
        ids_digest([pool.user_ids(matched)]),
        k,
        include_seeds,
        random_seed,
        eligible,
        excluded,
        ids_digest(marked_ids(pool, excluded.bitmap)) if excluded.matched else "",
        reserve,
        gone,
        ids_digest(marked_ids(pool, gone.bitmap)) if gone is not None and gone.matched else "",
        previous,
        ids_digest([pool.user_ids(previous.rows)]) if previous is not None else "",
    )


def ineligible(pool: Pool, request: Request, threads: int) -> Skipped:
    """Everyone who is not to be chosen.

    Raises:
        InvalidInput: that is everyone, for the filter or the exclusions.
    """
    seeds = request.seed_rows[:0] if request.include_seeds else request.seed_rows
    skip = skipped(pool, seeds, request.exclusions, request.filter, opted_out=request.opted_out, threads=threads)
    eligible = pool.num_users - count(skip.bitmap)
    if eligible == 0 and request.filter is not None:
        passed = pool.num_users - skip.filtered
        raise InvalidInput(
            f"nobody is eligible: {passed:,} users pass the filter {request.filter.text}"
            + (", all of them seeds or excluded" if passed else ""),
            field="filter",
            reason="NOBODY_ELIGIBLE",
        )
    if eligible == 0 and (request.exclusions.matched or request.opted_out_sha256):
        raise InvalidInput(
            "nobody is eligible: every user of the pool is a seed or excluded",
            field="exclude",
            reason="NOBODY_ELIGIBLE",
        )
    return skip


def counts(excluded: Exclusions) -> SeedMatch:
    """What became of the users to leave out, as a receipt says it."""
    return SeedMatch(
        given=excluded.given,
        matched=excluded.matched,
        duplicates=excluded.duplicates,
        not_in_pool=excluded.not_in_pool,
    )


def _canonical(features: Mapping[str, FeatureValue]) -> dict[str, FeatureValue]:
    """The same features in one form whatever the caller's order and containers, so that equal requests are equal.

    Raises:
        SchemaError: a value is neither text, number, list of these, nor None.
    """
    plain: dict[str, FeatureValue] = {}
    for name in sorted(features):
        value = features[name]
        parts = list(value) if isinstance(value, list | tuple) else [value]
        for part in parts:
            if not (part is None or isinstance(part, str | int | float)):
                raise SchemaError(
                    f"feature '{name}' is a {type(part).__name__}; give text, a number, or a list of these",
                    field=f"features.{name}",
                )
        missing = isinstance(value, float) and math.isnan(value)
        plain[name] = None if missing else parts if isinstance(value, list | tuple) else value  # type: ignore[assignment]
    return plain
