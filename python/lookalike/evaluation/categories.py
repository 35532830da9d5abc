"""Categories of campaigns, by one of their features, and whether what lies close together is of one category.

Knows tables and arrays.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from lookalike.dataset.layout import CampaignId
from lookalike.errors import InvalidInput

# So many can be told apart at a glance; further ones are drawn alike.
MOST_SHOWN = 6
# A field with more values among the campaigns is no category of them but nearly a name.
MOST_VALUES = 50

Floats = npt.NDArray[np.floating[Any]]


@dataclass(frozen=True)
class Categories:
    """The value of `field` of each campaign, of a list the first; "" where there is none."""

    field: str
    of: tuple[str, ...]

    @cached_property
    def shown(self) -> tuple[str, ...]:
        """The most common, at most `MOST_SHOWN`, in that order; of equals the first in the alphabet."""
        counts = Counter(value for value in self.of if value)
        return tuple(sorted(counts, key=lambda value: (-counts[value], value))[:MOST_SHOWN])


def categories(campaigns: pa.Table, field: str | None, wanted: Sequence[CampaignId]) -> Categories:
    """Categories of the campaigns `wanted`.

    Without a field, of the first that has 2 to `MOST_VALUES` values, none of them that of more than half of the
    campaigns; of a list if there is one, for tags and genres are lists.

    Raises:
        InvalidInput: campaigns have no such field, or none that makes categories.
    """
    fields = [name for name in campaigns.column_names if name not in ("campaign_id", "split")]
    if field is not None and field not in fields:
        raise InvalidInput(f"campaigns have no field '{field}'; they have {', '.join(fields)}", field="category")
    names = fields if field is None else [field]
    values = {name: [_first(value) for value in campaigns[name].to_pylist()] for name in names}
    fitting = sorted(filter(lambda name: _fits(values[name]), names), key=lambda name: not _is_list(campaigns, name))
    if field is None and not fitting:
        raise InvalidInput(
            f"no field of the campaigns makes categories by itself; name one of {', '.join(fields)}", field="category"
        )
    chosen = field or fitting[0]
    of = dict(zip(campaigns["campaign_id"].to_pylist(), values[chosen], strict=True))
    return Categories(chosen, tuple(of[campaign] for campaign in wanted))


def _fits(values: list[str]) -> bool:
    counts = Counter(value for value in values if value)
    return 2 <= len(counts) <= MOST_VALUES and max(counts.values()) <= len(values) / 2


def _is_list(campaigns: pa.Table, name: str) -> bool:
    return bool(pa.types.is_nested(campaigns[name].type))


def _first(value: object) -> str:
    if isinstance(value, list):
        value = value[0] if value else None
    return "" if value is None else str(value)


@dataclass(frozen=True)
class Alike:
    """Share of campaigns whose nearest neighbour has their category, and what the share would be by chance."""

    share: float
    chance: float


def alike(vectors: Floats, of: Sequence[str]) -> Alike:
    """Of campaigns `[campaigns, d]` by Euclidean distance; those without a category are left out.

    Raises:
        InvalidInput: fewer than two have one.
    """
    known = np.flatnonzero(np.array(of) != "")
    if len(known) < 2:
        raise InvalidInput("fewer than two campaigns have a category: name another field", field="category")
    points, names = np.asarray(vectors, np.float64)[known], np.array(of)[known]
    squares = (points**2).sum(1)
    distances = squares[:, None] + squares - 2 * points @ points.T
    np.fill_diagonal(distances, np.inf)
    counts = np.unique(names, return_counts=True)[1]
    chance = (counts * (counts - 1)).sum() / (len(names) * (len(names) - 1))
    return Alike(float((names[distances.argmin(1)] == names).mean()), float(chance))
