"""Rows of one schema as bags of ids, encoded once and pooled by the library's own kernel: quick, differentiable once.

Knows `schema` and `features`; for the baselines, which take plain gradients only.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from lookalike.model.features import FeatureEncoder
from lookalike.schema import EncodedColumns, FeatureSchema


@dataclass(frozen=True)
class Bags:
    """A bag for each field of each row, row by row; fields in the order of `FeatureBatch`.

    Attributes:
        ids: `[entries]` int32, rows of the schema's shared table.
        offsets: `[rows * fields + 1]` int32, where each bag begins in `ids`.
        fields: bags a row.
    """

    ids: Tensor
    offsets: Tensor
    fields: int

    @staticmethod
    def of(encoder: FeatureEncoder, columns: EncodedColumns) -> Bags:
        """All rows of `columns`."""
        batch = encoder.batch(columns)
        rows, single = batch.single.shape
        fields = encoder.num_fields
        first = torch.arange(rows).unsqueeze(1) * fields
        multi = batch.bags // max(1, batch.num_multi) * fields + single + batch.bags % max(1, batch.num_multi)
        bag = torch.cat([(first + torch.arange(single)).reshape(-1), multi])
        order = torch.argsort(bag, stable=True)
        ids = torch.cat([batch.single.reshape(-1), batch.values])[order]
        lengths = torch.bincount(bag, minlength=rows * fields)
        return Bags(ids.int(), starts_of(lengths).int(), fields)

    def __len__(self) -> int:
        return (len(self.offsets) - 1) // self.fields

    def take(self, rows: Tensor) -> Bags:
        """The rows at `rows` `[n]` int64, in that order; they may repeat."""
        begins = rows * self.fields
        first = self.offsets[begins]
        starts = starts_of(self.offsets[begins + self.fields] - first)
        shift = first - starts[:-1].int()
        entries = torch.arange(int(starts[-1]), dtype=torch.int32) + torch.repeat_interleave(shift, torch.diff(starts))
        within = self.offsets[begins.unsqueeze(1) + torch.arange(self.fields)] - shift.unsqueeze(1)  # [n, fields]
        offsets = torch.cat([within.reshape(-1), starts[-1:].int()])
        return Bags(self.ids.index_select(0, entries), offsets, self.fields)


class PooledFields(nn.Module):
    """Embeddings of all ids of a schema; a row is the means of its fields' ids, side by side. An empty field is 0."""

    def __init__(self, schema: FeatureSchema, k: int, init_std: float) -> None:
        super().__init__()
        self.encoder = FeatureEncoder(schema)
        self.table = nn.Parameter(torch.randn(self.encoder.table_rows, k) * init_std)
        self.width = self.encoder.num_fields * k

    def forward(self, bags: Bags) -> Tensor:
        """`[rows, fields * k]`."""
        pooled = nn.functional.embedding_bag(bags.ids, self.table, bags.offsets[:-1], mode="mean")
        return pooled.view(-1, self.width)


def starts_of(lengths: Tensor) -> Tensor:
    """Where each of a row of stretches begins, and where the last one ends: `[n + 1]` of lengths `[n]`."""
    return torch.cat([lengths.new_zeros(1), lengths.cumsum(0)])
