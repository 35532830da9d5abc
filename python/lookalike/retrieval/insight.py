"""What is known before an audience is chosen, as plain data: the result of `Expander.insight`, and its JSON.

Torch-free, so that whoever shows it need not load what measured it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

from pydantic import TypeAdapter, ValidationError

from lookalike.errors import DataCorrupted
from lookalike.retrieval.recall_curve import Point, Reach, Suggestion
from lookalike.retrieval.receipt import SeedMatch
from lookalike.retrieval.seed_quality import LEAST_ELIGIBLE, FineTuning, SeedQuality
from lookalike.retrieval.telling import Telling
from lookalike.schema import FeatureValue

FORMAT_VERSION: Final = 1


@dataclass(frozen=True, kw_only=True)
class Insight:
    """Same request, same code and machine: equal but for `created` and `seconds`.

    All intervals are of 95%. A `Point` has two: of one size, for a size that was chosen beforehand, and of all sizes at
    once, for one that was chosen by looking, as suggestions are; the headline has the latter.

    Attributes:
        headline: the whole in a sentence or two.
        seed_quality: whether the seeds are fit to be expanded, why not, and what to do.
        fine_tuning: whether customising the model helped on held-out seeds.
        suggestions: sizes worth a look, smallest first; none if none is sure to beat chance.
        curve: from the smallest size that can be told to all eligible users.
        asked: the same at the sizes that were asked for; at all eligible users where more were.
        reach: how many users are at least as similar as a share of the held-out seeds.
        telling: feature values that the seeds have more often than the pool, then less often; with a filter, among the
            seeds that pass it, and nothing if these are too few, as `caveats` says.
        caveats: what the figures are not.
        eligible_users: who pass the filter and are neither excluded nor a seed: the N of the curve.
        compared_users: of them, with whom held-out seeds were compared: a uniform sample, or all, but for those whom
            the models were trained on as negatives.
        described_users: of them, whom `telling` describes: a uniform sample, or all.
        held_out_seeds: that were ranked by a model that was not trained on them.
        folds: such models.
        seconds: by stage.
    """

    format_version: int
    code_version: str
    created: str  # RFC 3339, UTC
    campaign: str
    features: Mapping[str, FeatureValue]
    headline: str
    seed_quality: SeedQuality
    fine_tuning: FineTuning
    suggestions: tuple[Suggestion, ...]
    curve: tuple[Point, ...]
    asked: tuple[Point, ...]
    reach: tuple[Reach, ...]
    telling: tuple[Telling, ...]
    caveats: tuple[str, ...]
    seeds: SeedMatch
    seeds_sha256: str
    held_out_seeds: int
    folds: int
    filter: str  # in canonical form
    exclusions: SeedMatch
    exclusions_sha256: str
    eligible_users: int
    compared_users: int
    described_users: int
    pool: str
    pool_users: int
    pool_sha256: str
    checkpoint_sha256: str
    adaptation_config: Mapping[str, Any]
    random_seed: int
    engine: str
    device: str
    seconds: Mapping[str, float]

    def to_json(self) -> dict[str, Any]:
        """Plain data; `from_json` is its inverse."""
        data: dict[str, Any] = _ADAPTER.dump_python(self, mode="json")
        return data

    @staticmethod
    def from_json(data: Any) -> Insight:
        """Inverse of `to_json`.

        Raises:
            DataCorrupted: `data` is no insight of this version.
        """
        version = data.get("format_version") if isinstance(data, dict) else None
        if version != FORMAT_VERSION:
            raise DataCorrupted(
                f"not an insight of format {FORMAT_VERSION}, which this version reads: format_version is {version!r}",
                field="format_version",
            )
        try:
            return _ADAPTER.validate_python(data)
        except ValidationError as error:
            first = error.errors()[0]
            where = ".".join(map(str, first["loc"]))
            raise DataCorrupted(f"not an insight: {where}: {first['msg']}", field=where) from error


_ADAPTER = TypeAdapter(Insight)


_RECALL: Final = (
    "Recall is the share of hidden seeds that an audience finds, ranked by models that were fitted to the other seeds. "
    "It is not the share of all interested people, whom nobody knows."
)
_GENERAL: Final = (
    "The general model, from which those models start, must not have been trained on this campaign: if it was, it has "
    "seen the hidden seeds, and recall, lift and AUC are too high (an AUC of 0.89 instead of 0.84 in a trial)."
)
_ALIKE: Final = (
    "Seeds that were collected together resemble each other more than they do the people still to come: expect a real "
    "audience to find less. Trust the comparison of sizes and campaigns more than the level."
)
_FOLDS: Final = (
    "The models that rank hidden seeds learnt from fewer seeds than the one that will make the audience, which makes "
    "the figures a little too low; the same seeds chose how long to fine-tune, which makes them a little too high."
)


def headline(quality: SeedQuality, suggestions: tuple[Suggestion, ...], eligible: int) -> str:
    """The whole in a sentence or two."""
    start = {"good": "Good seeds.", "usable": "Usable seeds, with reservations.", "poor": "Poor seeds."}[
        quality.verdict
    ]
    if not suggestions:
        return f"{start} No size of audience is sure to do better than chance."
    by_name = {one.name: one for one in suggestions}
    point = next(by_name[name] for name in ("balanced", "broad", "narrow") if name in by_name).point
    recall = point.recall_band  # the curve chose the size
    return (
        f"{start} The best {point.k:,} of {eligible:,} users would find about {recall.value:.0%} of people like the "
        f"seeds ({recall.low:.0%} to {recall.high:.0%}), {point.lift.value:.1f} times as many as chance."
    )


def caveats(
    *,
    eligible: int,
    described: int,
    compared: int,
    smallest: int,
    passing: bool,
    telling_of: tuple[int, int] | None = None,
    sizes: Sequence[int] = (),
) -> tuple[str, ...]:
    """What the figures are not, for a person.

    Args:
        passing: whether only hidden seeds that pass a filter were counted.
        telling_of: seeds that pass the filter, and all, if there is one.
        sizes: that were asked for.
    """
    said = [_RECALL, _GENERAL, _ALIKE, _FOLDS]
    if sizes and max(sizes) > eligible:
        said.append(
            f"{max(sizes):,} users were asked for, and only {eligible:,} are eligible: what is told is of all of them."
        )
    if described < eligible:
        said.append(
            f"The curves are from a sample of {described:,} of the {eligible:,} eligible users; below {smallest:,} "
            "users it is too coarse to tell."
        )
    if compared < described:
        said.append(f"Hidden seeds were compared with {compared:,} users whom the models did not learn from either.")
    if passing:
        said.append("Only hidden seeds that pass the filter were counted.")
    if telling_of is not None:
        among, seeds = telling_of
        said.append(
            f"What seeds have in common is told of the {among:,} of {seeds:,} seeds that pass the filter."
            if among >= LEAST_ELIGIBLE
            else f"What seeds have in common is not told: only {among:,} of {seeds:,} pass the filter, and the others "
            "differ from the eligible users by the filter itself."
        )
    return tuple(said)
