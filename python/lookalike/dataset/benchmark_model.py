"""The generative model of the synthetic benchmark: users, campaigns, and the log-odds that a user is interested.

Knows profiles and the schema; knows nothing of files, samples or rankings. docs/synthetic.md has the formulas.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from enum import IntEnum

import numpy as np
import numpy.typing as npt

from lookalike.dataset.profiles import ProfileField
from lookalike.dataset.synthetic import intercept
from lookalike.schema import FIRST_VALUE_ID, MISSING_ID, EncodedColumns, Ids, Offsets

Floats = npt.NDArray[np.float64]
Singles = npt.NDArray[np.float32]
Rows = npt.NDArray[np.int64]
Report = Callable[[str, int, int], None]  # what, done, total

TASTES = 16  # dimensions of what users are, and of what campaigns want
CATEGORIES, ADVERTISERS, PRODUCTS = 8, 32, 96  # 4 advertisers a category, 3 products an advertiser
INTERESTED = 0.04  # share of users interested in a campaign, so that there are 20 negatives for each of them
STRENGTH = 1.5  # standard deviation of the log-odds: a perfect ranking reaches an AUC near 0.84

_CLUSTERS = 20
_CLOSENESS = 0.8  # share of the variance of users' tastes that their clusters explain
_TELLING = 1.5  # standard deviation of what a user's taste adds to a value's log-odds
_MISSING = (0.1, 0.3)  # share of users without a field: the range fields are in
_LEVELS = (0.5, 0.3, 0.2)  # of the structure's variance: category, advertiser, product
_SEEN_TOGETHER = 0.5  # of what an id says of interest, the share that follows from who has it; the rest labels tell
_CROSSES = 16  # pairs of fields that interact
_CROSSED_VALUES = 1000  # a field with more is not crossed: hardly a pair of values would recur
_BLOCK = 1 << 22  # random keys at once: 16 MB


class Stream(IntEnum):
    """What random numbers are for: one stream each, so that a knob moves nothing but what it is about."""

    USERS = 0
    VALUES = 1
    CAMPAIGNS = 2
    CORRUPTION = 3
    EFFECTS = 4
    OWN = 5
    LABELS = 6
    NEGATIVES = 7

    def generator(self, seed: int, number: int = 0) -> np.random.Generator:
        """The numbers of field or campaign `number`."""
        return np.random.default_rng([seed, self, number])


@dataclass(frozen=True)
class People:
    """Users as columns of ids; `leanings`: by field, the taste that goes with a value `[values, TASTES]`, N(0, 1)."""

    fields: tuple[ProfileField, ...]
    columns: EncodedColumns
    leanings: dict[str, Singles]

    def means(self, field: ProfileField, table: npt.NDArray[np.floating]) -> Floats:
        """Of a number for each value `[values]`, each user's mean `[users]`; 0 where the field is missing."""
        name = field.name
        padded = np.concatenate((np.zeros(FIRST_VALUE_ID), table))
        if name not in self.columns.offsets:
            return padded[self.columns.ids[name]]
        lengths = np.diff(self.columns.offsets[name])
        owner = np.repeat(np.arange(self.columns.length), lengths)
        total = np.bincount(owner, padded[self.columns.ids[name]], self.columns.length)
        return total / np.maximum(lengths, 1)

    def weight(self, field: ProfileField) -> float:
        """Scale of a field's effects: the variance of its means is the logarithm of its vocabulary's size.

        That is, up to a factor, the bits that a value can tell: a keyword says more of a person than a gender.
        """
        if field.name in self.columns.offsets:
            lengths = np.diff(self.columns.offsets[field.name])
            variance = np.mean(np.where(lengths > 0, 1 / np.maximum(lengths, 1), 0.0))
        else:
            variance = np.mean(self.columns.ids[field.name] != MISSING_ID)
        return float(np.sqrt(np.log(field.values) / variance))


def draw_people(fields: tuple[ProfileField, ...], count: int, seed: int, report: Report) -> People:
    """`count` users: tastes from clusters, and by their taste a field's values, Zipf-distributed, or none."""
    rng = Stream.USERS.generator(seed)
    centres = rng.normal(size=(_CLUSTERS, TASTES))
    tastes = np.sqrt(_CLOSENESS) * centres[rng.integers(_CLUSTERS, size=count)]
    tastes += np.sqrt(1 - _CLOSENESS) * rng.normal(size=tastes.shape)
    ids: dict[str, Ids] = {}
    offsets: dict[str, Offsets] = {}
    leanings: dict[str, Singles] = {}
    for number, field in enumerate(fields):
        rng = Stream.VALUES.generator(seed, number)
        leanings[field.name] = rng.standard_normal((field.values, TASTES), np.float32)
        counts = _counts(field.most, count, rng)
        values = _values(tastes.astype(np.float32), leanings[field.name], field.most, rng)
        encoded = (FIRST_VALUE_ID + values).astype(field.field.dtype)
        if field.most == 1:
            ids[field.name] = np.where(counts > 0, encoded[:, 0], MISSING_ID).astype(encoded.dtype)
        else:
            ids[field.name] = encoded[np.arange(field.most) < counts[:, None]]
            offsets[field.name] = np.concatenate(([0], np.cumsum(counts)))
        report("fields", number + 1, len(fields))
    return People(fields, EncodedColumns(count, ids, offsets), leanings)


def _counts(most: int, users: int, rng: np.random.Generator) -> Rows:
    """How many values each user has `[users]`: none, or by a negative binomial of mean most / 2, kept to 1..most."""
    known = rng.random(users) >= rng.uniform(*_MISSING)
    sizes = np.arange(1, most + 1)
    chance = (sizes + 1) * (most / (most + 4.0)) ** sizes  # of two failures: (n + 1) q^n (1 - q)^2
    return np.where(known, rng.choice(sizes, users, p=chance / chance.sum()), 0)


def _values(tastes: Singles, leaning: Singles, most: int, rng: np.random.Generator) -> Rows:
    """Values `[users, most]`, a user's all different, drawn one after the other by their log-odds.

    Those are `leaning . taste * 1.5 / 4 - log(1 + value)`. The smallest of exponential variables of these rates are
    such a draw without replacement; their logarithms would be the Gumbel variables of the Gumbel-top-n trick.
    """
    chosen = []
    rarity = np.arange(1, len(leaning) + 1, dtype=np.float32)
    step = max(1, _BLOCK // len(leaning))
    for start in range(0, len(tastes), step):
        block = tastes[start : start + step] @ leaning.T  # [users, values]
        block *= np.float32(-_TELLING / np.sqrt(TASTES))
        np.exp(block, out=block)
        block *= rarity
        block *= rng.standard_exponential(block.shape, np.float32)
        first = np.argpartition(block, most - 1, axis=1)[:, :most]
        order = np.argsort(np.take_along_axis(block, first, axis=1), axis=1)
        chosen.append(np.take_along_axis(first, order, axis=1))
    return np.concatenate(chosen)


@dataclass(frozen=True)
class Campaigns:
    """Where each campaign stands in the hierarchy `[campaigns]`, and the taste it wants `[campaigns, TASTES]`."""

    category: Rows
    advertiser: Rows
    product: Rows
    wants: Floats


def draw_campaigns(count: int, *, structure: float, conflict: float, seed: int) -> Campaigns:
    """Campaigns of products of advertisers of categories; `structure` of their tastes' variance is shared by these.

    Categories 2j and 2j + 1 want the opposite: their tastes correlate by `-conflict`.
    """
    rng = Stream.CAMPAIGNS.generator(seed)
    category = rng.integers(CATEGORIES, size=count)
    advertiser = category * (ADVERTISERS // CATEGORIES) + rng.integers(ADVERTISERS // CATEGORIES, size=count)
    product = advertiser * (PRODUCTS // ADVERTISERS) + rng.integers(PRODUCTS // ADVERTISERS, size=count)
    of_level = [rng.normal(size=(size, TASTES)) for size in (CATEGORIES, ADVERTISERS, PRODUCTS)]
    first, second = of_level[0][0::2], of_level[0][1::2]
    of_level[0][1::2] = -conflict * first + np.sqrt(1 - conflict**2) * second
    wants = np.sqrt(1 - structure) * rng.normal(size=(count, TASTES))
    for tastes, level, share in zip(of_level, (category, advertiser, product), _LEVELS, strict=True):
        wants += np.sqrt(structure * share) * tastes[level]
    return Campaigns(category, advertiser, product, wants)


class LogOdds:
    """The log-odds of every user for every campaign: a function of the observed features, and of nothing else."""

    def __init__(
        self, people: People, campaigns: Campaigns, *, low_rank: float, interactions: float, seed: int
    ) -> None:
        """Of the log-odds' variance the share `low_rank` is in the space that all campaigns have in common.

        Of that the share `interactions` is crossed fields. The rest is weights of ids that are each campaign's own.
        """
        self._people = people
        self._wants = campaigns.wants
        self._low_rank = low_rank
        self._interactions = interactions
        self._seed = seed
        self._scales = {field.name: people.weight(field) for field in people.fields}
        rng = Stream.EFFECTS.generator(seed)
        self.linear = self._linear(rng)  # [users, TASTES]
        self.crossed = self._crossed(rng)  # [users, TASTES]

    def of(self, number: int) -> Singles:
        """Of all users for campaign `number` `[users]`."""
        total = np.zeros(self._people.columns.length)
        if self._low_rank > 0:
            parts = ((1 - self._interactions, self.linear), (self._interactions, self.crossed))
            shared = sum(np.sqrt(share) * _standardised(effects @ self._wants[number]) for share, effects in parts)
            total += np.sqrt(self._low_rank) * _standardised(np.asarray(shared))
        if self._low_rank < 1:
            total += np.sqrt(1 - self._low_rank) * _standardised(self._own(number))
        total = STRENGTH * _standardised(total)
        return (total + intercept(total, INTERESTED)).astype(np.float32)

    def _linear(self, rng: np.random.Generator) -> Floats:
        """A: what each user's ids say of each taste, summed over fields."""
        total = np.zeros((self._people.columns.length, TASTES))
        for field in self._people.fields:
            effects = np.sqrt(_SEEN_TOGETHER) * self._people.leanings[field.name]
            effects = effects + np.sqrt(1 - _SEEN_TOGETHER) * rng.normal(size=effects.shape)
            for taste in range(TASTES):
                total[:, taste] += self._scales[field.name] * self._people.means(field, effects[:, taste])
        return total

    def _crossed(self, rng: np.random.Generator) -> Floats:
        """Products of two fields' signs, centred so that neither field alone tells of them, mixed into each taste."""
        fields = [field for field in self._people.fields if field.values <= _CROSSED_VALUES]
        total = np.zeros((self._people.columns.length, TASTES))
        for _ in range(_CROSSES):
            product = np.ones(self._people.columns.length)
            for index in rng.choice(len(fields), 2, replace=False):
                signs = rng.permutation(np.where(np.arange(fields[index].values) % 2, 1.0, -1.0))
                side = self._people.means(fields[index], signs)
                product *= side - side.mean()
            total += _standardised(product)[:, None] * rng.normal(size=TASTES)
        return total

    def _own(self, number: int) -> Floats:
        rng = Stream.OWN.generator(self._seed, number)
        total = np.zeros(self._people.columns.length)
        for field in self._people.fields:
            total += self._scales[field.name] * self._people.means(field, rng.normal(size=field.values))
        return total


def _standardised(x: Floats) -> Floats:
    scaled: Floats = (x - x.mean()) / x.std()
    return scaled
