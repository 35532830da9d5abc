"""A small synthetic history in the layout, the same for the same arguments: for tests, and for machines offline.

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
from lookalike.errors import InvalidInput

Floats = npt.NDArray[np.float64]
Rows = npt.NDArray[np.int64]

_TASTES = 8  # dimensions of the latent space
_CLUSTERS = 12
_CATEGORICAL = {"gender": 2, "age_band": 7, "device": 12, "city": 80}  # field: vocabulary
_MULTI = {"interests": (300, 4.0), "topics": (120, 2.0)}  # field: vocabulary, mean number of values
_NUMERIC = ("activity", "tenure_days")
_MISSING = 0.1
_SEED_SHARE = 0.3
_INTERESTED = (0.03, 0.10)  # share of users interested in a campaign, from the rarest to the most common
_MIN_INTERESTED = 80  # gives some 24 seeds, enough to adapt and to hold some out
_STRENGTH = 2.0  # standard deviation of the log-odds: a perfect ranking reaches an AUC near 0.85


def simulate(
    output: Path,
    *,
    users: int = 5000,
    campaigns: int = 60,
    seed: int = 0,
    string_ids: bool = False,
    overwrite: bool = False,
) -> Dataset:
    """Write and open a dataset. Same arguments, same bytes.

    Memory: some 3 KiB a user while generating.

    Args:
        string_ids: ids of users and campaigns are strings ("u000017", "c003") in place of integers.

    Raises:
        InvalidInput: fewer than 200 users or 5 campaigns. AlreadyExists: `output` exists and `overwrite` is false.
    """
    if users < 200:
        raise InvalidInput(f"users must be 200 or more, not {users}: campaigns need seeds", field="users")
    if campaigns < 5:
        raise InvalidInput(f"campaigns must be 5 or more, not {campaigns}: some are for testing", field="campaigns")
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


@dataclass(frozen=True)
class _People:
    """Features as Arrow columns, and `effects` `[users, tastes]`: what they say of a user, standardised."""

    columns: dict[str, pa.Array]
    effects: Floats


def _people(count: int, rng: np.random.Generator) -> _People:
    centres = rng.normal(size=(_CLUSTERS, _TASTES))
    tastes = centres[rng.integers(_CLUSTERS, size=count)] + 0.6 * rng.normal(size=(count, _TASTES))
    columns: dict[str, pa.Array] = {}
    effects = np.zeros((count, _TASTES))
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
        level = tastes @ rng.normal(size=_TASTES) / np.sqrt(_TASTES) + rng.normal(size=count)
        known = rng.random(count) >= _MISSING
        columns[name] = pa.array(np.round(np.exp(level + 3), 3), mask=~known)
        effects += np.where(known, np.tanh(level), 0.0)[:, None] * rng.normal(size=_TASTES)
    return _People(columns, (effects - effects.mean(0)) / effects.std(0))


def _affinity(tastes: Floats, size: int, rng: np.random.Generator) -> tuple[Floats, Floats]:
    """What each value says of a taste `[size, tastes]`, and log-odds of each value for each user `[users, size]`."""
    leaning = rng.normal(size=(size, _TASTES))
    popularity = -np.log(1 + rng.permutation(size))  # Zipf
    return leaning, tastes @ leaning.T / np.sqrt(_TASTES) + popularity


def _campaigns(count: int, rng: np.random.Generator) -> tuple[Floats, dict[str, pa.Array]]:
    """The taste each campaign wants `[campaigns, tastes]`, of unit length, and the campaigns' features."""
    category = rng.integers(6, size=count)
    advertiser = category * 3 + rng.integers(3, size=count)
    product = advertiser * 2 + rng.integers(2, size=count)
    wants = 0.4 * rng.normal(size=(count, _TASTES))
    for level, size, share in ((category, 6, 1.0), (advertiser, 18, 0.6), (product, 36, 0.4)):
        wants += share * rng.normal(size=(size, _TASTES))[level]
    keywords = [[f"keyword_{c}_{k}" for k in np.sort(rng.permutation(5)[: rng.integers(4)])] for c in category]
    features = {
        "category": pa.array([f"category_{v}" for v in category]),
        "advertiser": pa.array([f"advertiser_{v}" for v in advertiser]),
        "product": pa.array([f"product_{v}" if rng.random() >= _MISSING else None for v in product], pa.string()),
        "keywords": pa.array(keywords, pa.list_(pa.string())),
        "budget": pa.array(np.round(np.exp(rng.normal(8, 1, count)), 2)),
    }
    return wants / np.linalg.norm(wants, axis=1, keepdims=True), features


def _interest(liking: Floats, rng: np.random.Generator) -> Interest:
    """Who is interested, by chance: the log-odds are `liking`, scaled, and shifted so that a set share is."""
    share = max(rng.uniform(*_INTERESTED), _MIN_INTERESTED / len(liking))
    log_odds = _STRENGTH * (liking - liking.mean()) / liking.std()
    low, high = -20.0, 20.0
    for _ in range(50):
        shift = (low + high) / 2
        low, high = (shift, high) if np.mean(_sigmoid(log_odds + shift)) < share else (low, shift)
    interested = rng.permutation(np.flatnonzero(rng.random(len(liking)) < _sigmoid(log_odds + low)))
    seeds = round(_SEED_SHARE * len(interested))
    return Interest(interested[:seeds], interested[seeds:], interested[:0])


def _sigmoid(x: Floats) -> Floats:
    return 1 / (1 + np.exp(-x))


def _ids(numbers: Rows, prefix: str, as_text: bool) -> pa.Array:
    if not as_text:
        return pa.array(numbers, pa.int64())
    width = len(str(numbers[-1]))
    return pa.array([f"{prefix}{number:0{width}d}" for number in numbers.tolist()])
