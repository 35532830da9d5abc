"""A synthetic history in the layout, the same for the same arguments: for tests, and for machines offline.

The small `sample` has every kind of field; the profiles are a history among the first users of a simulated pool.
Users have latent tastes that show in their features; campaigns of one category, advertiser or product want similar
tastes, so that what is learnt on some helps on others. Interest depends on the observed features only.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from lookalike.dataset.construction import Interest, build
from lookalike.dataset.layout import Dataset
from lookalike.dataset.profiles import TASTES, Population, find_profile
from lookalike.errors import InvalidInput
from lookalike.schema import FIRST_VALUE_ID, EncodedColumns, Field

Floats = npt.NDArray[np.float64]
Rows = npt.NDArray[np.int64]

SAMPLE = "sample"

_CLUSTERS = 12
_CATEGORICAL = {"gender": 2, "age_band": 7, "device": 12, "city": 80}  # field: vocabulary
_MULTI = {"interests": (300, 4.0), "topics": (120, 2.0)}  # field: vocabulary, mean number of values
_NUMERIC = ("activity", "tenure_days")
_MISSING = 0.1
_SEED_SHARE = 0.3
_INTERESTED = (0.03, 0.10)  # share of users interested in a campaign, from the rarest to the most common
_MIN_INTERESTED = 80  # gives some 24 seeds, enough to adapt and to hold some out
# Of a profile's campaign, seeds and audience together: with negatives some 40,000 samples; the paper's have 50,000.
_MOST_INTERESTED = 2000
_STRENGTH = 2.0  # standard deviation of the log-odds: a perfect ranking reaches an AUC near 0.85


def simulate(
    output: Path,
    *,
    users: int = 5000,
    campaigns: int = 60,
    seed: int = 0,
    string_ids: bool = False,
    overwrite: bool = False,
    profile: str = SAMPLE,
) -> Dataset:
    """Write and open a dataset. Same arguments, same bytes.

    Memory: some 3 KiB a user while generating.

    Args:
        profile: `sample`, or a profile, whose users and their ids are the first of a simulated pool of the same seed.
        string_ids: ids of users and campaigns are strings ("u000017", "c003") in place of integers.

    Raises:
        InvalidInput: fewer than 200 users or 5 campaigns, no such profile, or a profile with `string_ids`, which has
            integers. AlreadyExists: `output` exists and `overwrite` is false.
    """
    if users < 200:
        raise InvalidInput(f"users must be 200 or more, not {users}: campaigns need seeds", field="users")
    if campaigns < 5:
        raise InvalidInput(f"campaigns must be 5 or more, not {campaigns}: some are for testing", field="campaigns")
    if profile != SAMPLE:
        return _simulate_profile(output, profile, users, campaigns, seed, string_ids, overwrite)
    rng = np.random.default_rng(seed)
    people = _people(users, rng)
    wants, campaign_features = _campaigns(campaigns, rng)
    interests = [_interest(people.effects @ want, rng) for want in wants]
    # Ids with gaps, so that an id is never mistaken for a row.
    user_ids = 1000 + np.cumsum(rng.integers(1, 4, users))
    campaign_ids = 100 + np.arange(campaigns)
    return build(
        output,
        pa.table({"user_id": _ids(user_ids, "u", string_ids), **people.columns}),
        pa.table({"campaign_id": _ids(campaign_ids, "c", string_ids), **campaign_features}),
        interests,
        rng=rng,
        overwrite=overwrite,
    )


def _simulate_profile(
    output: Path, name: str, users: int, campaigns: int, seed: int, string_ids: bool, overwrite: bool
) -> Dataset:
    if string_ids:
        raise InvalidInput(
            f"users of the profile '{name}' have integers as ids; leave string_ids out", field="string_ids"
        )
    population = Population(find_profile(name), seed)
    batches, tastes = [], []
    for user_ids, columns in population.blocks(0, users):
        texts = {field.name: as_text(field, columns) for field in population.schema.fields}
        batches.append(pa.record_batch({"user_id": user_ids, **texts}))
        tastes.append(population.tastes(columns))
    effects = np.concatenate(tastes)  # [users, tastes]
    rng = np.random.default_rng(seed)
    wants, features = _campaigns(campaigns, rng)
    if name == "tencent":
        features = _as_advertisements(features, rng)
    interests = [_interest(effects @ want, rng, most=_MOST_INTERESTED) for want in wants]
    return build(
        output,
        pa.Table.from_batches(batches),
        pa.table({"campaign_id": pa.array(100 + np.arange(campaigns)), **features}),
        interests,
        rng=rng,
        overwrite=overwrite,
    )


def _as_advertisements(features: dict[str, pa.Array], rng: np.random.Generator) -> dict[str, pa.Array]:
    """The six categorical features of the paper's advertisements; two of them say nothing."""
    count = len(features["category"])
    return {
        "advertiserId": features["advertiser"],
        "adCategoryId": features["category"],
        "campaignId": pa.array([f"campaign_{number}" for number in range(count)]),
        "productId": features["product"],
        "productType": pa.array([text.replace("category", "type") for text in features["category"].to_pylist()]),
        "creativeSize": pa.array([f"size_{size}" for size in rng.integers(14, size=count)]),
    }


def as_text(field: Field, columns: EncodedColumns) -> pa.Array:
    """A column as text: what `field` encodes as these ids."""
    ids, offsets = columns.ids[field.name], columns.offsets.get(field.name)
    values = pa.array(field.values)
    if offsets is None:
        index = np.where(ids < FIRST_VALUE_ID, 0, ids.astype(np.int64) - FIRST_VALUE_ID)
        return values.take(pa.array(index, mask=ids < FIRST_VALUE_ID))
    inner = values.take(pa.array(ids[offsets[0] : offsets[-1]].astype(np.int64) - FIRST_VALUE_ID))
    return pa.ListArray.from_arrays(pa.array((offsets - offsets[0]).astype(np.int32)), inner)


@dataclass(frozen=True)
class _People:
    """Features as Arrow columns, and `effects` `[users, tastes]`: what they say of a user, standardised."""

    columns: dict[str, pa.Array]
    effects: Floats


def _people(count: int, rng: np.random.Generator) -> _People:
    centres = rng.normal(size=(_CLUSTERS, TASTES))
    tastes = centres[rng.integers(_CLUSTERS, size=count)] + 0.6 * rng.normal(size=(count, TASTES))
    columns: dict[str, pa.Array] = {}
    effects = np.zeros((count, TASTES))
    for name, size in _CATEGORICAL.items():
        leaning, affinity = _affinity(tastes, size, rng)
        value = np.argmax(affinity + rng.gumbel(size=affinity.shape), axis=1)
        known = rng.random(count) >= _MISSING
        columns[name] = pa.array([f"{name}_{v}" if k else None for v, k in zip(value, known, strict=True)], pa.string())
        effects += np.where(known[:, None], leaning[value], 0.0)
    for name, (size, mean) in _MULTI.items():
        leaning, affinity = _affinity(tastes, size, rng)
        counts = np.minimum(rng.negative_binomial(2, 2 / (2 + mean), count), 10)
        ranked = np.argsort(-(affinity + rng.gumbel(size=affinity.shape)), axis=1)[:, :10]  # [users, 10], distinct
        chosen = np.arange(10) < counts[:, None]
        offsets = np.concatenate(([0], np.cumsum(counts))).astype(np.int32)
        texts = pa.array([f"{name}_{v}" for v in range(size)]).take(pa.array(ranked[chosen]))
        columns[name] = pa.ListArray.from_arrays(pa.array(offsets), texts)
        total = np.einsum("un,und->ud", chosen, leaning[ranked])
        effects += 2.0 * total / np.maximum(counts, 1)[:, None]
    for name in _NUMERIC:
        level = tastes @ rng.normal(size=TASTES) / np.sqrt(TASTES) + rng.normal(size=count)
        known = rng.random(count) >= _MISSING
        columns[name] = pa.array(np.round(np.exp(level + 3), 3), mask=~known)
        effects += np.where(known, np.tanh(level), 0.0)[:, None] * rng.normal(size=TASTES)
    return _People(columns, (effects - effects.mean(0)) / effects.std(0))


def _affinity(tastes: Floats, size: int, rng: np.random.Generator) -> tuple[Floats, Floats]:
    """What each value says of a taste `[size, tastes]`, and log-odds of each value for each user `[users, size]`."""
    leaning = rng.normal(size=(size, TASTES))
    popularity = -np.log(1 + rng.permutation(size))  # Zipf
    return leaning, tastes @ leaning.T / np.sqrt(TASTES) + popularity


def _campaigns(count: int, rng: np.random.Generator) -> tuple[Floats, dict[str, pa.Array]]:
    """The taste each campaign wants `[campaigns, tastes]`, of unit length, and the campaigns' features."""
    category = rng.integers(6, size=count)
    advertiser = category * 3 + rng.integers(3, size=count)
    product = advertiser * 2 + rng.integers(2, size=count)
    wants = 0.4 * rng.normal(size=(count, TASTES))
    for level, size, share in ((category, 6, 1.0), (advertiser, 18, 0.6), (product, 36, 0.4)):
        wants += share * rng.normal(size=(size, TASTES))[level]
    keywords = [[f"keyword_{c}_{k}" for k in np.sort(rng.permutation(5)[: rng.integers(4)])] for c in category]
    features = {
        "category": pa.array([f"category_{v}" for v in category]),
        "advertiser": pa.array([f"advertiser_{v}" for v in advertiser]),
        "product": pa.array([f"product_{v}" if rng.random() >= _MISSING else None for v in product], pa.string()),
        "keywords": pa.array(keywords, pa.list_(pa.string())),
        "budget": pa.array(np.round(np.exp(rng.normal(8, 1, count)), 2)),
    }
    return wants / np.linalg.norm(wants, axis=1, keepdims=True), features


def _interest(liking: Floats, rng: np.random.Generator, most: int | None = None) -> Interest:
    """Who is interested, by chance: the log-odds are `liking`, scaled, and shifted so that a set share is.

    Of more than `most` interested users a random choice is known to be.
    """
    share = max(rng.uniform(*_INTERESTED), _MIN_INTERESTED / len(liking))
    log_odds = _STRENGTH * (liking - liking.mean()) / liking.std()
    log_odds += intercept(log_odds, share)
    interested = rng.permutation(np.flatnonzero(rng.random(len(liking)) < sigmoid(log_odds)))
    most = len(interested) if most is None else most
    seeds = round(_SEED_SHARE * len(interested[:most]))
    return Interest(interested[:seeds], interested[seeds:most], interested[most:])


def intercept(log_odds: Floats, share: float) -> float:
    """What to add to all `log_odds` so that `share` of the users are interested, in expectation."""
    low, high = -20.0, 20.0
    for _ in range(50):
        shift = (low + high) / 2
        low, high = (shift, high) if np.mean(sigmoid(log_odds + shift)) < share else (low, shift)
    return low


def sigmoid(x: Floats) -> Floats:
    """The probability of log-odds `x`."""
    return 1 / (1 + np.exp(-x))


def _ids(numbers: Rows, prefix: str, as_text: bool) -> pa.Array:
    if not as_text:
        return pa.array(numbers, pa.int64())
    width = len(str(numbers[-1]))
    return pa.array([f"{prefix}{number:0{width}d}" for number in numbers.tolist()])
