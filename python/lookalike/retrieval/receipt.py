"""What an expansion reports while it runs (Progress) and after (Receipt). Torch-free.

The receipt is `manifest.json` beside `audience.parquet`: the evidence that the audience is the exact top K.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import Any, Literal

from pydantic import TypeAdapter, ValidationError

from lookalike.errors import DataCorrupted, NotFound
from lookalike.schema import FeatureValue

RECEIPT_NAME = "manifest.json"
AUDIENCE_NAME = "audience.parquet"
MODEL_NAME = "model.pt"
SEEDS_NAME = "seeds.parquet"
EXCLUSIONS_NAME = "exclusions.parquet"
RESERVE_NAME = "reserve.parquet"
PREVIOUS_NAME = "previous.parquet"
FORMAT_VERSION = 1


class Stage(StrEnum):
    MATCHING = "MATCHING"
    ADAPTING = "ADAPTING"
    COMPILING = "COMPILING"
    SCORING = "SCORING"
    RESCORING = "RESCORING"
    WRITING = "WRITING"


@dataclass(frozen=True)
class Progress:
    """`done` of `total` in a stage: seeds matched, steps, 0/1, users scored, users scored again, 0/1."""

    stage: Stage
    done: int
    total: int


@dataclass(frozen=True, kw_only=True)
class SeedMatch:
    """Seeds, or exclusions, as given, and what became of them: given = matched + duplicates + not_in_pool."""

    given: int
    matched: int
    duplicates: int
    not_in_pool: int


@dataclass(frozen=True, kw_only=True)
class Adaptation:
    """How the customised model came about; see `training.adapt.Adapted`, whose names these are."""

    best_epoch: int
    samples: int
    folds: int
    held_out_auc: float
    general_auc: float
    history: tuple[Mapping[str, float], ...] = ()


@dataclass(frozen=True, kw_only=True)
class Rescoring:
    """How the engine's scores, which are near, became the reference's top K; see `retrieval.rescoring`.

    Attributes:
        users: scored again by TorchScript in float32 on the CPU, among them every member and a sample of the pool.
        epsilon: no score s of the engine was taken to be off by more than s (epsilon (1 - s) + 2^-20).
        epsilon_kind: "statistical": at least twice the largest error seen among `users`.
        largest_error: that one, in the measure of epsilon.
    """

    users: int
    epsilon: float
    epsilon_kind: Literal["statistical"]
    largest_error: float


@dataclass(frozen=True, kw_only=True)
class Reserve:
    """Who comes after the members, in `reserve.parquet`; with them, the list that an audience is chosen from.

    Attributes:
        size: users in the reserve.
        sha256: of its file.
        listed: so many of the list, the first in order of score, are the best of all who were eligible. Behind them
            come, with a churn budget, previous members alone.
        complete: nobody but those was eligible.
        last_score: of the last of these; None if there are none.
        ties_at_end: users of the pool scored exactly so; who opted out since and was not listed still counts.
    """

    size: int
    sha256: str
    listed: int
    complete: bool
    last_score: float | None
    ties_at_end: int


@dataclass(frozen=True, kw_only=True)
class Refresh:
    """What became of an audience's members in its successor; see `retrieval.membership` for the budget.

    Attributes:
        previous: the audience's name.
        previous_audience_sha256: of its members' file.
        previous_members: it had.
        eligible: of these, who could be members again.
        all_eligible_listed: every one of those is in the list.
        kept, joined, left: previous_members = kept + left; members = kept + joined.
        mean_score: of the members; mean_score_unbounded: of the best as many, whoever was there before.
    """

    previous: str
    previous_audience_sha256: str
    previous_members: int
    eligible: int
    all_eligible_listed: bool
    kept: int
    joined: int
    left: int
    mean_score: float | None
    mean_score_unbounded: float | None


@dataclass(frozen=True, kw_only=True)
class Removed:
    """Users who opted out after the audience was made, and are in its files no more.

    Attributes:
        listed: of the members and the reserve.
        seeds, exclusions: of these. seeds_sha256, exclusions_sha256: of those left; empty if nobody was removed.
    """

    listed: int = 0
    seeds: int = 0
    seeds_sha256: str = ""
    exclusions: int = 0
    exclusions_sha256: str = ""


@dataclass(frozen=True, kw_only=True)
class Revision:
    """A change of a finished audience: why, and what was there before. `removed` users opted out."""

    created: str  # RFC 3339, UTC
    reason: Literal["opt-out", "size"]
    removed: int
    k_requested: int
    k: int
    audience_sha256: str


# Revisions a receipt tells of: a year of daily ones, and no more than fits a page.
MAX_REVISIONS = 400


@dataclass(frozen=True, kw_only=True)
class Receipt:
    """The evidence. Same job, same code and machine: equal but for `created`, `seconds` and `job_id`."""

    format_version: int
    code_version: str
    job_id: str
    created: str  # RFC 3339, UTC
    campaign: str
    features: Mapping[str, FeatureValue]
    seeds: SeedMatch
    seeds_sha256: str
    include_seeds: bool
    random_seed: int
    checkpoint_sha256: str
    pool_sha256: str
    pool: Path
    pool_users: int
    users_scored: int
    users_skipped: int  # seeds, excluded and filtered users, each once: with users_scored the whole pool
    k_requested: int
    k: int
    cutoff_score: float | None
    # Users scored at the cut-off in the whole pool; with a churn budget, among the members. Who opted out since and was
    # not listed still counts: nobody knows their scores any more.
    ties_at_cutoff: int
    ties_selected: int  # of these, in the audience: the lower user ids
    engine: str
    device: str
    batch_size: int
    threads: int
    adaptation: Adaptation
    adaptation_config: Mapping[str, Any]
    seconds: Mapping[str, float]  # by stage
    audience_sha256: str
    model_sha256: str
    filter: str = ""  # in canonical form
    users_filtered: int = 0  # who failed it, seeds and excluded users among them
    exclusions: SeedMatch = SeedMatch(given=0, matched=0, duplicates=0, not_in_pool=0)
    exclusions_sha256: str = ""  # of the matched ones, as of seeds; empty if there are none
    rescoring: Rescoring | None = None  # None: the engine is the reference itself
    reserve_requested: int = 0
    reserve: Reserve | None = None  # None: made without
    opted_out: int = 0  # users of the pool who had opted out before, skipped; of whom nothing but this is kept
    opted_out_sha256: str = ""  # of them, as of seeds; empty if there are none
    previous_sha256: str = ""  # of the previous members' ids, as of seeds; empty if it refreshes nothing
    churn_budget: float = 1.0  # share of the members that a refresh may replace
    refresh: Refresh | None = None
    revision: int = 0  # changes since it was made
    revisions: tuple[Revision, ...] = ()  # the last ones, oldest first
    removed: Removed = Removed()

    def to_json(self) -> dict[str, Any]:
        """Plain data; `from_json` is its inverse."""
        data: dict[str, Any] = _ADAPTER.dump_python(self, mode="json")
        return data

    @staticmethod
    def from_json(data: Any) -> Receipt:
        """Inverse of `to_json`.

        Raises:
            DataCorrupted: `data` is no receipt of this version.
        """
        try:
            receipt = _ADAPTER.validate_python(data)
        except ValidationError as error:
            raise DataCorrupted(f"not a receipt: {error.errors()[0]['msg']}", field=RECEIPT_NAME) from error
        if receipt.format_version != FORMAT_VERSION:
            raise DataCorrupted(
                f"receipt of format {receipt.format_version}; this version reads {FORMAT_VERSION}", field=RECEIPT_NAME
            )
        return receipt

    @staticmethod
    def read(audience: Path) -> Receipt:
        """The receipt of an audience folder.

        Raises:
            NotFound: no audience there. DataCorrupted: the file is not a receipt.
        """
        path = audience / RECEIPT_NAME
        try:
            text = path.read_text(encoding="utf-8")
        except FileNotFoundError as error:
            raise NotFound(f"no audience at {audience}: {path} does not exist", field="audience") from error
        try:
            return Receipt.from_json(json.loads(text))
        except json.JSONDecodeError as error:
            raise DataCorrupted(f"{path} is not JSON: {error}", field=RECEIPT_NAME) from error


_ADAPTER = TypeAdapter(Receipt)
