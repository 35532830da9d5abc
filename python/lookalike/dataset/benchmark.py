"""A synthetic benchmark with a known optimum: knobs, presets, and the dataset with the best ranking beside it.

Knows the generative model beside it, the layout and the metrics; knows nothing of who will be compared.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import yaml

from lookalike.config import parse
from lookalike.dataset.benchmark_model import (
    INTERESTED,
    Campaigns,
    LogOdds,
    People,
    Report,
    Rows,
    Singles,
    Stream,
    draw_campaigns,
    draw_people,
)
from lookalike.dataset.construction import Interest, draw_samples, write
from lookalike.dataset.layout import CAMPAIGNS, SAMPLES, USERS, Dataset
from lookalike.dataset.profiles import ProfileField, find_profile
from lookalike.dataset.synthetic import as_text, sigmoid
from lookalike.errors import DataCorrupted, InvalidInput, NotFound
from lookalike.evaluation.metrics import evaluate

OPTIMUM = "optimum.json"
OPTIMUM_SCORES = "optimum.parquet"

_FORMAT = 1
_PROFILE = "tencent"  # the paper's fields
_MIN_SEEDS = 10  # what adaptation asks for
_WHOLE = 100  # a vocabulary up to this size is never scaled down: demographics stay what they are
_PRODUCT_TYPES, _CREATIVE_SIZES = 6, 14
_FIRST_USER, _FIRST_CAMPAIGN = 10**6, 10**4  # beyond any row's number, so that an id is never mistaken for one
_METRICS = ("auc", "precision", "recall")

# What each knob may be, at least and at most.
_RANGES: dict[str, tuple[float, float]] = {
    "users": (2000, 1_000_000),
    "train_campaigns": (2, 10_000),
    "test_campaigns": (1, 10_000),
    "seeds": (_MIN_SEEDS, 1_000_000),
    "spread": (0, 3),
    "vocabulary": (0.001, 1),
    "low_rank": (0, 1),
    "structure": (0, 1),
    "conflict": (0, 1),
    "interactions": (0, 1),
    "corruption": (0, 1),
}


@dataclass(frozen=True, kw_only=True)
class Knobs:
    """What can be turned. Shares are of variance; with the same seed a knob moves nothing but what it is about.

    Attributes:
        seeds: median number of a campaign's seeds; spread: standard deviation of its logarithm. At least 10, at most
            half of those interested, who are 4% of the users.
        vocabulary: size of the vocabularies of over 100 values, as a share of the published data's.
        low_rank: of a campaign's preferences, the share in the space of 16 tastes that all campaigns have in common;
            the rest is a weight of its own for each id. At 0 no campaign tells anything of another.
        structure: of the tastes, the share that category, advertiser and product explain.
        conflict: categories 2j and 2j + 1 have tastes that correlate by minus this.
        interactions: of the part in common, the share that is products of fields.
        corruption: share of the campaigns' features that another campaign's stand in for.

    Raises:
        InvalidInput: a knob is out of its range; `field` is its name.
    """

    users: int = 20_000
    train_campaigns: int = 240
    test_campaigns: int = 100
    seeds: float = 150.0
    spread: float = 0.6
    vocabulary: float = 0.02
    low_rank: float = 1.0
    structure: float = 0.7
    conflict: float = 0.0
    interactions: float = 0.1
    corruption: float = 0.0

    def __post_init__(self) -> None:
        for name, (low, high) in _RANGES.items():
            value = getattr(self, name)
            if not low <= value <= high:
                raise InvalidInput(f"{name} must be from {low:g} to {high:g}, not {value}", field=name)
        if self.seeds > self.most_seeds:
            raise InvalidInput(
                f"seeds must be {self.most_seeds} or fewer, not {self.seeds:g}: {INTERESTED:.0%} of {self.users} users "
                "are interested, and half of them are the audience; lower seeds or raise users",
                field="seeds",
            )

    @property
    def most_seeds(self) -> int:
        """The most that a campaign can have: half of those interested."""
        return int(INTERESTED * self.users / 2)


# Each turns one knob of the first, so that a difference between two has one cause.
PRESETS = {
    "shared": Knobs(),
    "conflict": Knobs(conflict=0.9),
    "few-seeds": Knobs(seeds=30.0),
    "interactions": Knobs(interactions=0.5),
    "corrupted-ids": Knobs(corruption=0.8),
    "independent": Knobs(low_rank=0.0),
}


def choose_knobs(preset: str, changes: Sequence[str] = ()) -> Knobs:
    """A preset's knobs, with `name=value` on top.

    Raises:
        InvalidInput: no such preset or knob, or a value out of its range.
    """
    if preset not in PRESETS:
        raise InvalidInput(f"there is no preset '{preset}'; take one of {', '.join(PRESETS)}", field="preset")
    known = [knob.name for knob in fields(Knobs)]
    values = asdict(PRESETS[preset])
    for change in changes:
        name, separator, value = change.partition("=")
        if not separator or name not in known:
            raise InvalidInput(f"'{change}' is not NAME=VALUE with one of the knobs {', '.join(known)}", field="knob")
        try:
            values[name] = yaml.safe_load(value)
        except yaml.YAMLError as error:
            raise InvalidInput(f"{change}: '{value}' is not a number", field=name) from error
    return parse(Knobs, values, field_prefix="knob")


def simulate_benchmark(
    output: Path,
    knobs: Knobs,
    *,
    seed: int = 0,
    overwrite: bool = False,
    report: Report = lambda what, done, total: None,
) -> Dataset:
    """Write and open a dataset of which the best ranking is known. Same arguments, same bytes (of one numpy).

    Beside the layout's files: `optimum.parquet` has the log-odds by which the labels were drawn, for each audience row
    of the test campaigns; `optimum.json` what ranking by them reaches, the knobs and the seed.

    Time and memory: 10 s and 0.5 GiB for the presets, both in proportion to users times campaigns, or to users times
    vocabulary.

    Raises:
        InvalidInput: `seed` is negative. AlreadyExists: `output` exists and `overwrite` is false.
    """
    if seed < 0:
        raise InvalidInput(f"seed must be 0 or more, not {seed}", field="seed")
    people = draw_people(scaled_fields(knobs.vocabulary), knobs.users, seed, report)
    count = knobs.train_campaigns + knobs.test_campaigns
    campaigns = draw_campaigns(count, structure=knobs.structure, conflict=knobs.conflict, seed=seed)
    model = LogOdds(people, campaigns, low_rank=knobs.low_rank, interactions=knobs.interactions, seed=seed)
    interests, of_test = [], []
    for number in range(count):
        log_odds = model.of(number)
        interests.append(draw_interest(log_odds, knobs, seed, number))
        if number >= knobs.train_campaigns:
            of_test.append(log_odds)
        report("campaigns", number + 1, count)
    tables = _tables(people, campaign_features(campaigns, knobs.corruption, seed), interests, knobs, seed)
    scores, described = _optimum(tables, np.stack(of_test), knobs)
    summary = {"format": _FORMAT, "seed": seed, "knobs": asdict(knobs), **described}
    return write(
        output,
        {**tables, OPTIMUM_SCORES: scores},
        files={OPTIMUM: (json.dumps(summary, indent=2) + "\n").encode()},
        overwrite=overwrite,
    )


def read_optimum(folder: Path) -> dict[str, Any]:
    """What ranking by the true log-odds reaches: `mean` and `campaigns`, with `knobs` and `seed`.

    Raises:
        NotFound: the folder has no optimum. DataCorrupted: the file is not JSON, or of another format.
    """
    path = folder / OPTIMUM
    if not path.exists():
        raise NotFound(f"{path} is missing; `lookalike simulate --benchmark` writes it", field=OPTIMUM)
    try:
        found: dict[str, Any] = json.loads(path.read_text())
    except ValueError as error:
        raise DataCorrupted(f"{path} is not JSON: {error}", field=OPTIMUM) from error
    if found.get("format") != _FORMAT:
        raise DataCorrupted(f"{path} is not of format {_FORMAT}; write the benchmark anew", field=OPTIMUM)
    return found


def scaled_fields(vocabulary: float) -> tuple[ProfileField, ...]:
    """The paper's fields, their vocabularies of over 100 values scaled, to 100 at least."""
    return tuple(
        replace(field, values=max(min(field.values, _WHOLE), round(vocabulary * field.values)))
        for field in find_profile(_PROFILE).fields
    )


def draw_interest(log_odds: Singles, knobs: Knobs, seed: int, number: int) -> Interest:
    """Who is interested in campaign `number`, by chance with these log-odds `[users]`, and who of them is a seed."""
    rng = Stream.LABELS.generator(seed, number)
    wanted = np.clip(knobs.seeds * np.exp(knobs.spread * rng.normal()), _MIN_SEEDS, knobs.most_seeds)
    interested = rng.permutation(np.flatnonzero(rng.random(len(log_odds)) < sigmoid(log_odds.astype(np.float64))))
    cut = min(round(wanted), len(interested) // 2)
    return Interest(interested[:cut], interested[cut:], interested[:0])


def campaign_features(campaigns: Campaigns, corruption: float, seed: int) -> dict[str, Rows]:
    """The paper's six features, as numbers `[campaigns]`; another campaign's with probability `corruption`.

    `campaignId` is each campaign's own and `creativeSize` chance, so these two never tell anything.
    """
    rng = Stream.CORRUPTION.generator(seed)
    count = len(campaigns.category)
    type_of = rng.integers(_PRODUCT_TYPES, size=campaigns.product.max() + 1)
    telling = {
        "advertiserId": campaigns.advertiser,
        "adCategoryId": campaigns.category,
        "productId": campaigns.product,
        "productType": type_of[campaigns.product],
    }
    features = {
        name: np.where(rng.random(count) < corruption, values[rng.integers(count, size=count)], values)
        for name, values in telling.items()
    }
    return {**features, "campaignId": np.arange(count), "creativeSize": rng.integers(_CREATIVE_SIZES, size=count)}


def _tables(
    people: People, features: dict[str, Rows], interests: list[Interest], knobs: Knobs, seed: int
) -> dict[str, pa.Table]:
    columns = {field.name: as_text(field.field, people.columns) for field in people.fields}
    split = ["train"] * knobs.train_campaigns + ["test"] * knobs.test_campaigns
    texts = {name: pa.array([f"{name}_{value}" for value in values]) for name, values in features.items()}
    users = pa.table({"user_id": _FIRST_USER + np.arange(knobs.users), **columns})
    campaigns = pa.table({"campaign_id": _FIRST_CAMPAIGN + np.arange(len(split)), "split": split, **texts})
    rng = Stream.NEGATIVES.generator(seed)
    samples = draw_samples(users["user_id"], campaigns["campaign_id"], interests, rng)
    return {USERS: users, CAMPAIGNS: campaigns, SAMPLES: samples}


def _optimum(tables: dict[str, pa.Table], log_odds: Singles, knobs: Knobs) -> tuple[pa.Table, dict[str, Any]]:
    """The log-odds `[test campaigns, users]` of the audience rows, and what ranking these rows by them reaches."""
    first = _FIRST_CAMPAIGN + knobs.train_campaigns
    samples = tables[SAMPLES].filter(pc.greater_equal(tables[SAMPLES]["campaign_id"], first))
    campaign_ids, user_ids, labels = (samples[name].to_numpy() for name in ("campaign_id", "user_id", "label"))
    audience = pc.equal(samples["stage"], "audience").to_numpy()
    eta = log_odds[campaign_ids - first, user_ids - _FIRST_USER]
    campaigns = []
    for campaign_id in range(first, first + knobs.test_campaigns):
        mine = campaign_ids == campaign_id
        rows = mine & audience
        best = asdict(evaluate(labels[rows], eta[rows], user_ids[rows]))
        campaigns.append({"campaign_id": campaign_id, "seeds": int(labels[mine & ~audience].sum()), **best})
    means = {name: float(np.mean([campaign[name] for campaign in campaigns])) for name in _METRICS}
    scores = pa.table({"campaign_id": campaign_ids, "user_id": user_ids, "eta": eta}).filter(pa.array(audience))
    return scores, {"mean": means, "campaigns": campaigns}
