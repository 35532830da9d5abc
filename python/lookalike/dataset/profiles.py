"""Synthetic users by the million: profiles with fixed vocabularies, and a generator that any number of threads share.

Knows `schema` only; what becomes of the users (Parquet, a pool, campaigns) is others' concern.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache, cached_property

import numpy as np
import numpy.typing as npt

from lookalike.errors import InvalidInput
from lookalike.schema import FIRST_VALUE_ID, MISSING_ID, EncodedColumns, FeatureSchema, Field, FieldKind, Ids, Offsets

# Users made at once: few enough for a column of 64-bit numbers to stay in L2, many enough to hide a call's overhead.
BLOCK_USERS = 1 << 16
TASTES = 8  # dimensions of the latent space

_CLUSTERS = 16  # a power of two: a user's cluster is four random bits
_ENTRIES = 1 << 16  # of an inverse distribution function, so that 16 random bits are an index
_MISSING = 0.05  # of a single-valued field
_EMPTY = 0.15  # of a multi-valued one
_FIRST_ID = 10**12  # beyond any pool's rows, so that an id is never mistaken for a row
_ID_STRIDE = 4

Bits = npt.NDArray[np.uint16]


@dataclass(frozen=True)
class ProfileField:
    """`values` are known; a user has one of them, or with `most` over 1 up to so many different ones."""

    name: str
    values: int
    most: int = 1

    @cached_property
    def field(self) -> Field:
        """The field as a schema has it; value v, from 0, is the v-th most popular and has id v + 2."""
        kind = FieldKind.CATEGORICAL if self.most == 1 else FieldKind.MULTI
        return Field(self.name, kind, values=tuple(f"{self.name}_{value}" for value in range(self.values)))


@dataclass(frozen=True)
class Profile:
    """A kind of users. What its values mean is fixed with it; a seed draws other users of the same kind."""

    name: str
    fields: tuple[ProfileField, ...]

    @cached_property
    def schema(self) -> FeatureSchema:
        """The fixed vocabulary, which every data set and pool of the profile shares."""
        return FeatureSchema(tuple(field.field for field in self.fields))


PROFILES = {
    # 23 bytes a user with the id: what a lean CRM or ad platform keeps of a billion.
    "lean": Profile(
        "lean",
        tuple(
            ProfileField(name, values)
            for name, values in (
                ("gender", 2),
                ("connection", 3),
                ("carrier", 4),
                ("os", 5),
                ("income", 6),
                ("education", 7),
                ("age_band", 8),
                ("device", 12),
                ("language", 24),
                ("region", 34),
                ("brand", 60),
                ("occupation", 90),
                ("interest", 150),
                ("city", 400),
            )
        ),
    ),
    # The paper's (section 4.1), with the vocabularies of the published data; at most 45 ids a user.
    "tencent": Profile(
        "tencent",
        (
            ProfileField("carrier", 4),
            ProfileField("consumptionAbility", 3),
            ProfileField("LBS", 855),
            ProfileField("age", 6),
            ProfileField("education", 8),
            ProfileField("gender", 3),
            ProfileField("house", 2),
            ProfileField("interest1", 124, most=10),
            ProfileField("interest2", 82, most=6),
            ProfileField("interest3", 12, most=2),
            ProfileField("kw1", 263_312, most=5),
            ProfileField("kw2", 49_780, most=5),
            ProfileField("topic1", 10_002, most=5),
            ProfileField("topic2", 9_984, most=5),
        ),
    ),
}


def find_profile(name: str) -> Profile:
    """The profile of that name.

    Raises:
        InvalidInput: there is none.
    """
    if name not in PROFILES:
        raise InvalidInput(f"there is no profile '{name}'; take {' or '.join(PROFILES)}", field="profile")
    return PROFILES[name]


@dataclass(frozen=True)
class _Values:
    """How a field's values are drawn and what they say.

    Attributes:
        table: `[clusters * 65,536]` ids, each cluster's inverse distribution function, ids ascending.
        leaning: `[size, tastes]` what an id says of a user's taste; missing says nothing.
    """

    table: Ids
    leaning: npt.NDArray[np.float32]


class Population:
    """All users of a profile and a seed, without end: user n is the same whoever asks, and however many are asked for.

    Users belong to clusters of tastes, which show in their features: within a cluster fields are independent.
    Safe to use from many threads, which numpy lets run side by side.
    """

    def __init__(self, profile: Profile, seed: int) -> None:
        """Draw the profile's tables: some 0.1 s and 20 MB for `lean`, 1 s and 60 MB for `tencent`.

        Raises:
            InvalidInput: `seed` is negative.
        """
        if seed < 0:
            raise InvalidInput(f"seed must be 0 or more, not {seed}", field="seed")
        self.profile = profile
        self.seed = seed
        self._entropy = int.from_bytes(profile.name.encode())
        rng = np.random.default_rng(self._entropy)
        centres = rng.normal(size=(_CLUSTERS, TASTES))
        self._values = {field.name: _values(field, centres, rng) for field in profile.fields}

    @property
    def schema(self) -> FeatureSchema:
        """The profile's."""
        return self.profile.schema

    def blocks(self, start: int, stop: int) -> Iterator[tuple[npt.NDArray[np.int64], EncodedColumns]]:
        """Users `start:stop`, ids ascending: ids `[rows]` and features, 65,536 users or fewer at a time."""
        for number in range(start // BLOCK_USERS, -(-stop // BLOCK_USERS)):
            first = number * BLOCK_USERS
            low, high = max(start - first, 0), min(stop - first, BLOCK_USERS)
            ids, columns = self.block(number)
            yield ids[low:high], columns.slice(low, high)

    def block(self, number: int) -> tuple[npt.NDArray[np.int64], EncodedColumns]:
        """Users `number * 65,536` and the next: a pure function of profile, seed and `number`."""
        sequence = np.random.SeedSequence([self._entropy, self.seed], spawn_key=(number,))
        rng = np.random.Generator(np.random.SFC64(sequence))
        person = _bits(rng, BLOCK_USERS)
        place = np.arange(number * BLOCK_USERS, (number + 1) * BLOCK_USERS, dtype=np.int64)
        user_ids = _FIRST_ID + _ID_STRIDE * place + person % _ID_STRIDE
        cluster = (person >> 12).astype(np.int64) * _ENTRIES  # where the cluster's part of each table begins
        ids: dict[str, Ids] = {}
        offsets: dict[str, Offsets] = {}
        for field in self.profile.fields:
            table = self._values[field.name].table
            if field.most == 1:
                ids[field.name] = table.take(cluster + _bits(rng, BLOCK_USERS), mode="clip")
            else:
                ids[field.name], offsets[field.name] = _several(field.most, table, cluster, rng)
        return user_ids, EncodedColumns(BLOCK_USERS, ids, offsets)

    def tastes(self, columns: EncodedColumns) -> npt.NDArray[np.float32]:
        """What features say of each user `[rows, tastes]`: the sum over fields of their values' leanings' means."""
        total = np.zeros((columns.length, TASTES), np.float32)
        for name, ids in columns.ids.items():
            leaning = self._values[name].leaning
            starts = columns.offsets.get(name)
            if starts is None:
                total += leaning[ids]
                continue
            running = np.zeros((starts[-1] - starts[0] + 1, TASTES))
            np.cumsum(leaning[ids[starts[0] : starts[-1]]], axis=0, dtype=np.float64, out=running[1:])
            sums = np.diff(running[starts - starts[0]], axis=0)
            # Twice, as the mean of several is less telling than one.
            total += (2.0 * sums / np.maximum(np.diff(starts), 1)[:, None]).astype(np.float32)
        return total


def _values(field: ProfileField, centres: npt.NDArray[np.float64], rng: np.random.Generator) -> _Values:
    leaning = np.zeros((FIRST_VALUE_ID + field.values, TASTES), np.float32)
    leaning[FIRST_VALUE_ID:] = rng.normal(size=(field.values, TASTES))
    popularity = -np.log(1.0 + np.arange(field.values))  # Zipf; the most popular first, as a vocabulary has them
    missing = round(_MISSING * _ENTRIES) if field.most == 1 else 0
    quantiles = (np.arange(_ENTRIES - missing) + 0.5) / (_ENTRIES - missing)
    table = np.full((len(centres), _ENTRIES), MISSING_ID, field.field.dtype)
    for cluster, centre in enumerate(centres):
        log_odds = leaning[FIRST_VALUE_ID:] @ centre / np.sqrt(TASTES) + popularity
        upto = np.cumsum(np.exp(log_odds - log_odds.max()))
        found = np.searchsorted(upto / upto[-1], quantiles, side="right")
        table[cluster, missing:] = FIRST_VALUE_ID + np.minimum(found, field.values - 1)
    return _Values(table.ravel(), leaning)


def _several(
    most: int, table: Ids, cluster: npt.NDArray[np.int64], rng: np.random.Generator
) -> tuple[Ids, npt.NDArray[np.int64]]:
    """Up to `most` different ids a user, ascending, and their offsets `[rows + 1]`.

    Of n draws the j-th comes from the j-th n-th of the distribution: ids come in order, and equal ones side by side.
    """
    counts = _counts(most).take(_bits(rng, len(cluster)), mode="clip")
    ends = np.cumsum(counts, dtype=np.int64)
    starts = ends - counts
    total = int(ends[-1])
    filled = np.flatnonzero(counts)
    first = starts[filled]
    # Which user an entry is of, by a running sum: half the time of np.repeat.
    user = np.zeros(total, np.int64)
    user[first] = np.diff(filled, prepend=0)
    np.cumsum(user, out=user)
    # Draw j of n is at (j + u) / n of the table, u random; j is an entry's number less that of the user's first. The
    # half keeps a hundred million roundings' distance from the next user's part.
    share = 1.0 / np.maximum(counts, 1)
    places = (np.arange(total) * _ENTRIES + 0.5) + _bits(rng, total)
    places *= share.take(user, mode="clip")
    places += (cluster - starts * _ENTRIES * share).take(user, mode="clip")
    ids = table.take(places.astype(np.int64), mode="clip")
    new = np.ones(total, np.bool_)
    np.not_equal(ids[1:], ids[:-1], out=new[1:])
    new[first] = True
    kept = np.zeros(total + 1, np.int64)
    np.cumsum(new, out=kept[1:])
    offsets = np.zeros(len(cluster) + 1, np.int64)
    kept.take(ends, out=offsets[1:], mode="clip")
    return np.compress(new, ids), offsets


@cache
def _counts(most: int) -> npt.NDArray[np.uint8]:
    """How many values 16 random bits stand for `[65,536]`: some have none, the others 1 to `most` alike."""
    empty = round(_EMPTY * _ENTRIES)
    counts = 1 + np.arange(-empty, _ENTRIES - empty) * most // (_ENTRIES - empty)
    return np.maximum(counts, 0).astype(np.uint8)


def _bits(rng: np.random.Generator, count: int) -> Bits:
    """`count` times 16 random bits, as the bit generator gives them: in all versions of numpy the same."""
    words = rng.integers(np.iinfo(np.uint64).max, size=-(-count // 4), dtype=np.uint64, endpoint=True)
    return words.view(np.uint16)[:count]
