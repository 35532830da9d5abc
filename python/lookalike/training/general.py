"""A general network beside its large table, and campaigns and users encoded for it.

Knows the stacked networks and the pool; not how either stage trains.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from lookalike.config import ModelConfig
from lookalike.model.bags import Entries, unknown_ids
from lookalike.model.stacked import Network, UserFields, ids_of, in_order
from lookalike.pool.snapshot import Pool
from lookalike.schema import EncodedColumns, FeatureSchema

# Users encoded at once: bounds what lies beside the result.
_BLOCK = 1 << 16


@dataclass(frozen=True)
class General:
    """What the offline stage makes.

    Attributes:
        config: the network's shape.
        network: a stack of one; it may have heads for many.
        broad: the table of the users' broad fields, `[ids, k]`.
        users: how users are encoded.
        campaigns: how campaigns are encoded.
    """

    config: ModelConfig
    network: Network
    broad: Tensor
    users: UserFields
    campaigns: CampaignEncoder


class CampaignEncoder:
    """Campaigns as entries; what no training campaign had is unknown, so that no untrained embedding is used."""

    def __init__(self, schema: FeatureSchema, trained: Iterable[EncodedColumns]) -> None:
        self.schema = schema
        self.fields = in_order(schema)
        self.unknown_of = unknown_ids(self.fields)
        self._known = np.zeros(ids_of(self.fields), np.bool_)
        for campaign in trained:
            self._known[Entries.of(campaign, self.fields).ids] = True

    def encode(self, campaigns: list[EncodedColumns]) -> Entries:
        """A row for each campaign."""
        entries = Entries.of(EncodedColumns.concat(campaigns), self.fields)
        return entries.with_ids(np.where(self._known[entries.ids], entries.ids, self.unknown_of[entries.ids]))


@dataclass(frozen=True)
class EncodedUsers:
    """Users of a pool, encoded once: narrow and broad fields of each of the pool rows `rows` (ascending)."""

    rows: npt.NDArray[np.int64]
    narrow: Entries
    broad: Entries

    @staticmethod
    def of(pool: Pool, rows: npt.NDArray[np.int64], fields: UserFields) -> EncodedUsers:
        """These pool rows, which may repeat and come in any order."""
        distinct = np.unique(rows)
        blocks = [distinct[start : start + _BLOCK] for start in range(0, len(distinct), _BLOCK)]
        parts = [fields.encode(pool.take(block)) for block in blocks]
        return EncodedUsers(distinct, Entries.concat([n for n, _ in parts]), Entries.concat([b for _, b in parts]))

    def find(self, rows: npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
        """Where each pool row is."""
        return np.searchsorted(self.rows, rows)


def new_table(fields: UserFields, k: int, std: float, rng: np.random.Generator) -> Tensor:
    """A table for the users' broad fields, `[ids, k]`."""
    values = std * rng.standard_normal((ids_of(fields.broad), k), np.float32)
    return torch.from_numpy(values.astype(np.float32))


class Occurring:
    """The rows of a table that occur in some entries, and the entries numbered by them."""

    def __init__(self, entries: Entries, table_rows: int) -> None:
        occurs = np.zeros(table_rows, np.bool_)
        occurs[entries.ids] = True
        self.rows = np.flatnonzero(occurs)  # [occurring], ascending
        number = np.cumsum(occurs, dtype=np.int32) - 1
        self.entries = entries.with_ids(number[entries.ids])
