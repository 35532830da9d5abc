"""Encoded columns as tensors: the input of every network here.

Knows `schema`; the ids of all fields share one table, so that "the rows that occur in a batch" is one `unique`.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor, nn

from lookalike.schema import UNKNOWN_ID, EncodedColumns, FeatureSchema


@dataclass(frozen=True)
class FeatureBatch:
    """Rows of one schema as indices into its table. Field order: single-valued fields, then multi-valued ones.

    Attributes:
        single: `[rows, S]` int64, table rows of the single-valued fields.
        values: `[nnz]` int64, table rows of all multi-valued entries.
        bags: `[nnz]` int64, the bag of each entry: row * M + field.
        weights: `[nnz, 1]` float32, one over the bag's length, so that a sum over a bag is its mean.
        num_multi: M, the number of multi-valued fields.
    """

    single: Tensor
    values: Tensor
    bags: Tensor
    weights: Tensor
    num_multi: int

    def to(self, device: torch.device) -> FeatureBatch:
        """The same batch on another device."""
        return FeatureBatch(
            self.single.to(device),
            self.values.to(device),
            self.bags.to(device),
            self.weights.to(device),
            self.num_multi,
        )

    def embed(self, table: Tensor, mean_columns: int | None = None) -> Tensor:
        """Embedding of every field: `[rows, S + M, width]` from a table `[ids, width]`.

        A multi-valued field is the mean of its ids' rows in the first `mean_columns` columns (default: all) and their
        sum in the others; an empty one is zero. Twice differentiable in `table`, which the library's embedding bag
        is not.
        """
        rows, width = self.single.shape[0], table.shape[1]
        # A lookup of nothing has no second derivative, hence the two guards.
        single = table.new_zeros(rows, 0, width)
        if self.single.shape[1]:
            single = torch.nn.functional.embedding(self.single, table)  # [rows, S, width]
        if self.num_multi == 0:
            return single
        pooled = torch.zeros(rows * self.num_multi, width, dtype=table.dtype, device=table.device)
        if self.values.numel():
            entries = torch.nn.functional.embedding(self.values, table)  # [nnz, width]
            mean = width if mean_columns is None else mean_columns
            weighted = torch.cat([entries[:, :mean] * self.weights, entries[:, mean:]], dim=1)
            pooled = pooled.index_add(0, self.bags, weighted)
        return torch.cat([single, pooled.view(rows, self.num_multi, width)], dim=1)

    def sum_ids(self, table: Tensor) -> Tensor:
        """Sum of the table's rows over all of a user's ids: `[rows, width]` from `[ids, width]`."""
        total = table.new_zeros(len(self.single), table.shape[1])
        if self.single.shape[1]:  # a bag of nothing is refused
            total = nn.functional.embedding_bag(self.single, table, mode="sum")
        if self.num_multi and self.values.numel():
            total = total.index_add(0, self.bags // self.num_multi, table[self.values])
        return total


class FeatureEncoder:
    """Turns `EncodedColumns` of one schema into `FeatureBatch`es.

    Attributes:
        table_rows: rows of the shared table: the sum of the fields' sizes.
        num_fields: S + M.
    """

    def __init__(self, schema: FeatureSchema) -> None:
        self.schema = schema
        starts: dict[str, int] = {}
        total = 0
        for field in schema.fields:
            starts[field.name] = total
            total += field.size
        self.table_rows = total
        self.starts = starts
        unknown = [np.full(field.size, starts[field.name] + UNKNOWN_ID, np.int64) for field in schema.fields]
        self._unknown_of = torch.from_numpy(np.concatenate(unknown))
        self.single_names = [f.name for f in schema.single]
        self.multi_names = [f.name for f in schema.multi]
        self.num_fields = len(self.single_names) + len(self.multi_names)

    def batch(self, columns: EncodedColumns) -> FeatureBatch:
        """All rows of `columns` as one batch on the CPU."""
        single = np.empty((columns.length, len(self.single_names)), np.int64)
        for position, name in enumerate(self.single_names):
            np.add(columns.ids[name], np.int64(self.starts[name]), out=single[:, position])
        num_multi = len(self.multi_names)
        values, bags, weights = [], [], []
        for position, name in enumerate(self.multi_names):
            offsets = columns.offsets[name]
            lengths = np.diff(offsets)
            values.append(columns.ids[name][offsets[0] : offsets[-1]].astype(np.int64) + self.starts[name])
            bags.append(np.repeat(np.arange(columns.length) * num_multi + position, lengths))
            with np.errstate(divide="ignore"):
                weights.append(np.repeat((1.0 / lengths).astype(np.float32), lengths))
        return FeatureBatch(
            torch.from_numpy(single),
            torch.from_numpy(np.concatenate(values) if values else np.zeros(0, np.int64)),
            torch.from_numpy(np.concatenate(bags) if bags else np.zeros(0, np.int64)),
            torch.from_numpy(np.concatenate(weights) if weights else np.zeros(0, np.float32)).unsqueeze(1),
            num_multi,
        )

    def occurring(self, *batches: FeatureBatch) -> Tensor:
        """Table rows that occur in them, ascending, each once."""
        there = torch.zeros(self.table_rows, dtype=torch.bool)  # a byte an id: less than sorting what occurs
        for batch in batches:
            there[batch.single] = True
            there[batch.values] = True
        return there.nonzero().squeeze(1)

    def relative_to(self, rows: Tensor, *batches: FeatureBatch) -> list[FeatureBatch]:
        """The same batches, indexing `table[rows]` instead of `table`. All their ids must be in `rows`."""
        place = torch.empty(self.table_rows, dtype=torch.int64)
        place[rows] = torch.arange(len(rows))
        return [replace(batch, single=place[batch.single], values=place[batch.values]) for batch in batches]

    def with_unknown(self, batch: FeatureBatch, share: float, rng: np.random.Generator) -> FeatureBatch:
        """The batch with a random share of its ids replaced by their fields' unknown id, which trains that id."""
        if share <= 0:
            return batch
        return replace(batch, single=self._drop(batch.single, share, rng), values=self._drop(batch.values, share, rng))

    def with_untrained_unknown(self, batch: FeatureBatch, trained: Tensor) -> FeatureBatch:
        """The batch with every id outside `trained` (table rows, ascending) replaced by its field's unknown id."""

        def replaced(ids: Tensor) -> Tensor:
            return torch.where(torch.isin(ids, trained), ids, self._unknown_of[ids])

        return replace(batch, single=replaced(batch.single), values=replaced(batch.values))

    def _drop(self, ids: Tensor, share: float, rng: np.random.Generator) -> Tensor:
        dropped = torch.from_numpy(rng.random(tuple(ids.shape), dtype=np.float32) < share)
        return torch.where(dropped, self._unknown_of[ids], ids)
