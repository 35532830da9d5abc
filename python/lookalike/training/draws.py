"""What a step of Algorithm 1 reads of some campaigns: users and features by their ids, and which embeddings these are.

Knows how passes want their users; knows nothing of training.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from lookalike.model.bags import Bags, Entries
from lookalike.model.features import FeatureEncoder
from lookalike.model.metaheac import MetaHeac
from lookalike.model.metaheac_twice import Users
from lookalike.model.metaheac_weights import Shape, Weights
from lookalike.model.stacked import in_order
from lookalike.schema import UNKNOWN_ID, EncodedColumns, FeatureSchema, Field
from lookalike.training.general import CampaignEncoder
from lookalike.training.tasks import Labels

Rows = npt.NDArray[np.integer[Any]]


def drop(columns: EncodedColumns, schema: FeatureSchema, share: float, rng: np.random.Generator) -> None:
    """Replaces a random share of the ids by their fields' unknown id, which trains that id; in place."""
    if share <= 0:
        return
    dropped = rng.random((columns.length, len(schema.single)), np.float32) < share
    for position, field in enumerate(schema.single):
        columns.ids[field.name][dropped[:, position]] = UNKNOWN_ID
    offsets = [columns.offsets[field.name] for field in schema.multi]
    dropped = rng.random(sum(int(of[-1] - of[0]) for of in offsets), np.float32) < share
    start = 0
    for field, of in zip(schema.multi, offsets, strict=True):
        stop = start + int(of[-1] - of[0])
        columns.ids[field.name][of[0] : of[-1]][dropped[start:stop]] = UNKNOWN_ID
        start = stop


@dataclass(frozen=True)
class Campaign:
    """A campaign with its users, support and query, and where its ids are among those of the whole draw.

    Attributes:
        own_users: `[own]`, the ids that its users have.
        own: `[own]`, its own.
    """

    support: Users
    query: Users
    own_users: Tensor
    own: Tensor


@dataclass(frozen=True)
class Drawn:
    """Campaigns, and copies of the embeddings that they touch.

    Attributes:
        rows: of the users' table and of the campaigns' that occur, `[u]` and `[c]`, ascending.
        tables: these rows, `[u, k or k + 1]` and `[c, k]`, with a gradient of zeros.
        narrow: which of the rows those of "narrow" are; anywhere if they do not occur.
    """

    campaigns: list[Campaign]
    rows: tuple[Tensor, Tensor]
    tables: tuple[Tensor, Tensor]
    narrow: Tensor

    def start(self, dense: Weights, k: int) -> Weights:
        """The general weights, but for own embeddings; `dense` has yet no others either."""
        dense["narrow"].copy_(self.tables[0].index_select(0, self.narrow)[:, :k])
        return dense

    def start_of(self, campaign: Campaign, same: Weights, k: int) -> Weights:
        """Where a campaign starts: the general weights themselves, with its own embeddings."""
        users = self.tables[0].index_select(0, campaign.own_users)
        own = users[:, :k].contiguous(), users[:, k:].contiguous(), self.tables[1].index_select(0, campaign.own)
        same.update(zip(Weights.OWN, own, strict=True))
        return same

    def add(self, campaign: Campaign, gradient: Weights, share: float) -> None:
        """Adds a share of a campaign's gradient to the tables'."""
        users, features = (table.grad for table in self.tables)
        assert users is not None
        assert features is not None
        k = features.shape[1]
        users[:, :k].index_add_(0, self.narrow, gradient["narrow"], alpha=share)
        users[:, :k].index_add_(0, campaign.own_users, gradient["broad"], alpha=share)
        users[:, k:].index_add_(0, campaign.own_users, gradient["linear"], alpha=share)
        features.index_add_(0, campaign.own, gradient["campaign"], alpha=share)


class Drawer:
    """Encodes users and campaigns for `model`. What is as long as its tables is made once."""

    def __init__(self, model: MetaHeac, shape: Shape, campaigns: CampaignEncoder) -> None:
        self.model, self.shape, self.campaigns = model, shape, campaigns
        self.narrow_rows = _table_rows(model.users, shape.users.narrow)
        self.broad_rows = _table_rows(model.users, shape.users.broad)
        self.campaign_rows = _table_rows(model.campaigns, in_order(model.campaigns.schema))
        self.padded_rows = np.zeros(shape.ids, np.int32)
        self.padded_rows[shape.places] = self.narrow_rows
        self.users, self.features = _Finder(model.users.table_rows), _Finder(model.campaigns.table_rows)

    def draw(self, sets: Sequence[tuple[EncodedColumns, list[Labels]]], campaigns: Sequence[EncodedColumns]) -> Drawn:
        """Support and query users, campaign by campaign, and the labels of each campaign's."""
        read: list[list[tuple[Entries, Entries, Tensor]]] = [[] for _ in campaigns]
        for columns, labels in sets:
            narrow, broad = self.shape.users.encode(columns)
            broad = broad.with_ids(self.broad_rows[broad.ids])
            start = 0
            for of, some in zip(read, labels, strict=True):
                stop = start + len(some)
                of.append((narrow.between(start, stop), broad.between(start, stop), torch.from_numpy(some)))
                start = stop
        features = self.campaigns.encode(list(campaigns))
        features = features.with_ids(self.campaign_rows[features.ids])
        each = [features.between(number, number + 1) for number in range(len(campaigns))]
        narrow_rows = [[self.narrow_rows[narrow.ids] for narrow, _, _ in of] for of in read]
        own_users = []
        for of, narrow_of in zip(read, narrow_rows, strict=True):
            broad_of = [broad.ids for _, broad, _ in of]
            own_users.append(self.users.occurring([*broad_of, *(narrow_of if self.model.config.wide else ())]))
        own = [self.features.occurring([one.ids]) for one in each]
        rows = self.users.occurring([*own_users, *(ids for of in narrow_rows for ids in of)])
        if not len(rows):  # no user has an id; what does not occur must be somewhere
            rows = np.zeros(1, np.int64)
        feature_rows = self.features.occurring(own)
        drawn = []
        for of, one, of_users, of_campaign in zip(read, each, own_users, own, strict=True):
            matrix = self._matrix(one, of_campaign)
            users = [self._users(narrow, broad, of_users, matrix, labels) for narrow, broad, labels in of]
            places = self.users.places(of_users, rows), self.features.places(of_campaign, feature_rows)
            drawn.append(Campaign(users[0], users[1], *map(torch.from_numpy, places)))
        occurring = torch.from_numpy(rows), torch.from_numpy(feature_rows)
        narrow_places = torch.from_numpy(self.users.places(self.padded_rows, rows))
        return Drawn(drawn, occurring, self._copied(*occurring), narrow_places)

    def _copied(self, users: Tensor, campaigns: Tensor) -> tuple[Tensor, Tensor]:
        tables = self.model.user_embedding.detach()[users], self.model.campaign_embedding.detach()[campaigns]
        for table in tables:
            table.grad = torch.zeros_like(table)
        return tables

    def _users(self, narrow: Entries, broad: Entries, own: Rows, campaign: Tensor, labels: Tensor) -> Users:
        broad_own = broad.with_ids(self.users.places(broad.ids, own))
        linear = []
        if self.model.config.wide:
            linear = [broad_own, narrow.with_ids(self.users.places(self.narrow_rows[narrow.ids], own))]
        return Users(
            narrow.with_ids(self.shape.places[narrow.ids]).by_row(),
            broad_own.by_field(),
            [Bags(entries.ids, np.ones_like(entries.weights), entries.totals) for entries in linear],
            campaign,
            labels,
        )

    def _matrix(self, campaign: Entries, own: Rows) -> Tensor:
        """The weight of each of a campaign's ids in each of its fields."""
        lengths = campaign.lengths[0]
        matrix = np.zeros((len(lengths), len(own)), np.float32)
        np.add.at(
            matrix, (np.repeat(np.arange(len(lengths)), lengths), np.searchsorted(own, campaign.ids)), campaign.weights
        )
        return torch.from_numpy(matrix)


class _Finder:
    """Which rows of a table occur, and where these are among others."""

    def __init__(self, table_rows: int) -> None:
        self._there = np.zeros(table_rows, np.bool_)
        self._place = np.zeros(table_rows, np.int32)

    def occurring(self, ids: Sequence[Rows]) -> Rows:
        """Those that occur anywhere, ascending."""
        for some in ids:
            self._there[some] = True
        rows = np.flatnonzero(self._there)
        self._there[rows] = False
        return rows

    def places(self, ids: Rows, rows: Rows) -> npt.NDArray[np.int32]:
        """Where each of `ids` is in `rows`; the first if it is not there."""
        self._place[ids] = 0
        self._place[rows] = np.arange(len(rows), dtype=np.int32)
        return self._place[ids]


def _table_rows(encoder: FeatureEncoder, fields: Sequence[Field]) -> npt.NDArray[np.int32]:
    """Where these fields' ids, numbered through, are in the encoder's table."""
    rows = [encoder.starts[field.name] + np.arange(field.size, dtype=np.int32) for field in fields]
    return np.concatenate([np.zeros(0, np.int32), *rows])
