"""Which feature values tell seeds from the pool, in words: shrunk log-odds (Monroe, Colaresi and Quinn 2008), tested.

Their z is log-odds over its standard error, which is least sure of what is most telling: a value that nobody else has.
Here it is the signed root of the likelihood ratio, which has no such hole. Counts encoded users a block at a time.

Knows the schema; knows nothing of pools or models.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

import numpy as np

from lookalike.retrieval.estimate import Counts, Floats, discoveries, divergence, two_sided
from lookalike.schema import FIRST_VALUE_ID, MISSING_ID, UNKNOWN_ID, EncodedColumns, FeatureSchema, Field, FieldKind

# Users in the prior, distributed as the pool is: what a few seeds have in common is shrunk to about a tenth.
PRIOR_USERS: Final = 20.0
# Of what is told, so much may be false.
FALSE_DISCOVERIES: Final = 0.01
# What fewer seeds have in common tells of persons, not of an audience.
LEAST_SEEDS: Final = 5
# On each side: a page is read to its end.
MOST: Final = 15


@dataclass(frozen=True, kw_only=True)
class Telling:
    """A value of a field that seeds have more, or less, often than the pool's other users.

    Attributes:
        value: as in the vocabulary; a bin in words; None if it is missing or unknown, as `what` says.
        what: "value", "bin", "missing" or "unknown".
        seeds: who have it.
        seed_share, pool_share: of the seeds, and of the other eligible users.
        ratio: of the two; None if nobody else has it.
        log_odds: natural logarithm of the ratio of odds, shrunk to 0 where little is known.
        z: how sure it is, in standard deviations, with the sign of the difference; by it they are ordered.
        name: what they have, for a person.
        text: the same with its shares.
    """

    field: str
    value: str | None
    what: str
    seeds: int
    seed_share: float
    pool_share: float
    ratio: float | None
    log_odds: float
    z: float
    name: str
    text: str


class ValueCounts:
    """How many users have each value of each field; a user who has one twice counts once."""

    def __init__(self, schema: FeatureSchema) -> None:
        self.users = 0
        self.by_field: dict[str, Counts] = {field.name: np.zeros(field.size, np.int64) for field in schema.fields}

    def add(self, users: EncodedColumns) -> None:
        """Count some users."""
        self.users += users.length
        for name, counts in self.by_field.items():
            ids, size = users.ids[name], len(counts)
            if name in users.offsets:
                self.by_field[name] = counts + _in_lists(ids, users.offsets[name], size)
            else:
                self.by_field[name] = counts + np.bincount(ids, minlength=size)


def _in_lists(ids: np.ndarray, offsets: Counts, size: int) -> Counts:
    """Lists that hold each id; an empty one holds `MISSING_ID`."""
    lengths = np.diff(offsets)
    owner = np.repeat(np.arange(len(lengths), dtype=np.int64), lengths)
    pairs = np.sort(owner * size + ids[offsets[0] : offsets[-1]])
    first = np.ones(len(pairs), np.bool_)
    np.not_equal(pairs[1:], pairs[:-1], out=first[1:])
    counts = np.bincount(pairs[first] % size, minlength=size)
    counts[MISSING_ID] += int(np.count_nonzero(lengths == 0))
    return counts


def telling(schema: FeatureSchema, seeds: ValueCounts, pool: ValueCounts) -> tuple[Telling, ...]:
    """Up to `MOST` values that the seeds have more often, most telling first, then up to `MOST` that they have less.

    Whatever is told has passed a test at a false discovery rate of `FALSE_DISCOVERIES` over all values of all fields.
    """
    if seeds.users == 0 or pool.users == 0:
        return ()
    owners = np.repeat(np.arange(len(schema.fields)), [field.size for field in schema.fields])
    ids = np.concatenate([np.arange(field.size) for field in schema.fields])
    ours = np.concatenate([seeds.by_field[field.name] for field in schema.fields])
    theirs = np.concatenate([pool.by_field[field.name] for field in schema.fields])
    tested = np.flatnonzero((ours + theirs > 0) & (ours + theirs < seeds.users + pool.users))
    odds, z = _compared(ours[tested], seeds.users, theirs[tested], pool.users)
    sure = discoveries(two_sided(z), FALSE_DISCOVERIES)
    more = np.flatnonzero(sure & (z > 0) & (ours[tested] >= LEAST_SEEDS))
    less = np.flatnonzero(sure & (z < 0))
    chosen = [*more[np.argsort(-z[more], kind="stable")][:MOST], *less[np.argsort(z[less], kind="stable")][:MOST]]
    return tuple(
        _telling(
            schema.fields[owners[tested[i]]],
            int(ids[tested[i]]),
            int(ours[tested[i]]),
            ours[tested[i]] / seeds.users,
            theirs[tested[i]] / pool.users,
            float(odds[i]),
            float(z[i]),
        )
        for i in chosen
    )


def _compared(ours: Counts, seeds: int, theirs: Counts, users: int) -> tuple[Floats, Floats]:
    """Shrunk log-odds ratios, and the signed roots of the likelihood ratio of two shares against one."""
    rate = (ours + theirs) / (seeds + users)
    odds = [
        np.log((counts + PRIOR_USERS * rate) / (total - counts + PRIOR_USERS * (1 - rate)))
        for counts, total in ((ours, seeds), (theirs, users))
    ]
    ratio = 2 * (seeds * divergence(ours / seeds, rate) + users * divergence(theirs / users, rate))
    # Of equal shares rounding may leave less than nothing.
    return odds[0] - odds[1], np.sign(ours / seeds - theirs / users) * np.sqrt(np.maximum(ratio, 0))


def _telling(
    field: Field, value_id: int, seeds: int, seed_share: float, pool_share: float, odds: float, z: float
) -> Telling:
    what, value = _named(field, value_id)
    name = _phrase(field, what, value)
    ratio = seed_share / pool_share if pool_share > 0 else None
    times = "nobody else" if ratio is None else f"{ratio:.3g} times" if ratio < 1000 else f"{ratio:,.0f} times"
    return Telling(
        field=field.name,
        value=value,
        what=what,
        seeds=seeds,
        seed_share=float(seed_share),
        pool_share=float(pool_share),
        ratio=ratio,
        log_odds=odds,
        z=z,
        name=name,
        text=f"{name}: {seed_share:.1%} of the seeds, {pool_share:.1%} of the others; {times}",
    )


def _named(field: Field, value_id: int) -> tuple[str, str | None]:
    if value_id == MISSING_ID:
        return "missing", None
    if value_id == UNKNOWN_ID:
        return "unknown", None
    if field.kind is not FieldKind.NUMERIC:
        return "value", field.values[value_id - FIRST_VALUE_ID]
    edges, place = field.boundaries, value_id - FIRST_VALUE_ID
    if not edges:
        return "bin", "any number"
    if place == 0:
        return "bin", f"below {edges[0]:g}"
    if place == len(edges):
        return "bin", f"{edges[-1]:g} or more"
    return "bin", f"{edges[place - 1]:g} to {edges[place]:g}"


def _phrase(field: Field, what: str, value: str | None) -> str:
    if what == "missing":
        return f"{field.name} is missing"
    if what == "unknown":
        return f"{field.name} is none of the values the model knows"
    if what == "bin":
        return f"{field.name} is {value}"
    return f"{field.name} {'has' if field.kind is FieldKind.MULTI else 'is'} {value}"
