"""Rows of encoded features as sparse matrices, and their products with tables of embeddings: the fast way to train.

Knows `schema`. Autograd cannot differentiate them twice: `metaheac_twice` does it by hand.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from lookalike.schema import UNKNOWN_ID, EncodedColumns, Field
from lookalike.stretches import places

Ids = npt.NDArray[np.int32]
Rows = npt.NDArray[np.integer[Any]]


@dataclass(frozen=True)
class Entries:
    """The ids of some fields, row by row and in a row field by field; ids of all fields are numbered through.

    Attributes:
        ids: `[entries]`.
        weights: `[entries]` float32, one over the number of ids of the row's field, so that a sum is the field's mean.
        lengths: `[rows, fields]`, how many ids each field of each row has.
    """

    ids: Ids
    weights: npt.NDArray[np.float32]
    lengths: Ids

    @staticmethod
    def of(columns: EncodedColumns, fields: Sequence[Field]) -> Entries:
        """All rows of `columns`, of these fields only, numbered in their order."""
        lengths = np.ones((columns.length, len(fields)), np.int32)
        for position, field in enumerate(fields):
            if field.name in columns.offsets:
                lengths[:, position] = np.diff(columns.offsets[field.name])
        starts = np.cumsum(lengths.reshape(-1), dtype=np.int64).reshape(lengths.shape) - lengths
        ids = np.empty(int(lengths.sum()), np.int32)
        first = 0
        for position, field in enumerate(fields):
            where, found = starts[:, position], columns.ids[field.name]
            if field.name in columns.offsets:
                offsets = columns.offsets[field.name]
                found = found[offsets[0] : offsets[-1]]
                where = np.repeat(where - (offsets[:-1] - offsets[0]), lengths[:, position]) + np.arange(len(found))
            ids[where] = found.astype(np.int32) + np.int32(first)
            first += field.size
        counts = lengths.reshape(-1)
        weights = np.repeat((1 / np.maximum(counts, 1)).astype(np.float32), counts)
        return Entries(ids, weights, lengths)

    def __len__(self) -> int:
        return len(self.lengths)

    @cached_property
    def totals(self) -> Ids:
        """`[rows]`, the number of entries of each row."""
        totals: Ids = self.lengths.sum(axis=1, dtype=np.int32)
        return totals

    @cached_property
    def starts(self) -> npt.NDArray[np.int64]:
        """`[rows]`, where each row's entries begin."""
        ends: npt.NDArray[np.int64] = np.cumsum(self.totals, dtype=np.int64)
        return ends - self.totals

    def take(self, rows: Rows) -> Entries:
        """The rows named, in that order, copied; row -1 is empty."""
        lengths = self.lengths[rows]
        totals = self.totals[rows]
        if rows.size and rows.min() < 0:
            lengths[rows < 0], totals[rows < 0] = 0, 0
        index = places(self.starts[rows], totals)
        return Entries(self.ids[index], self.weights[index], lengths)

    def between(self, start: int, stop: int) -> Entries:
        """Rows `start:stop`, without a copy."""
        ends = np.append(self.starts, len(self.ids))
        inside = slice(ends[start], ends[stop])
        return Entries(self.ids[inside], self.weights[inside], self.lengths[start:stop])

    def moved(self, base: Rows) -> Entries:
        """The same rows, each row's ids raised by its `base` `[rows]`."""
        return self.with_ids(self.ids + np.repeat(base.astype(np.int32), self.totals))

    def with_ids(self, ids: Ids) -> Entries:
        """The same rows with other ids `[entries]`."""
        return Entries(ids, self.weights, self.lengths)

    def with_unknown(self, share: float, unknown_of: Ids, rng: np.random.Generator) -> Entries:
        """The same rows, a random share of the ids replaced by their fields' unknown id, which trains that id."""
        # Positions are drawn with replacement: a draw for every entry would cost as much as looking it up.
        count = rng.binomial(len(self.ids), share)
        dropped = rng.integers(max(1, len(self.ids)), size=count)
        ids = self.ids.copy()
        ids[dropped] = unknown_of[ids[dropped]]
        return self.with_ids(ids)

    def by_row(self) -> Bags:
        """A bag for each row."""
        return Bags(self.ids, self.weights, self.totals)

    def by_field(self) -> Bags:
        """A bag for each field of each row: bag row * fields + field."""
        return Bags(self.ids, self.weights, self.lengths.reshape(-1))

    @staticmethod
    def concat(parts: Sequence[Entries]) -> Entries:
        """All rows of the parts, in order, copied."""
        return Entries(
            np.concatenate([part.ids for part in parts]),
            np.concatenate([part.weights for part in parts]),
            np.concatenate([part.lengths for part in parts]),
        )


@dataclass(frozen=True)
class Bags:
    """A sparse matrix `[bags, table rows]`: bag b has the next `counts[b]` of the entries `ids`, `weights`."""

    ids: Ids
    weights: npt.NDArray[np.float32]
    counts: Ids

    def of(self, table: Tensor) -> Tensor:
        """The weighted sum of each bag's rows of a table `[ids, width]`: `[bags, width]`. Differentiable once."""
        result: Tensor = _Product.apply(table, self)  # type: ignore[no-untyped-call]
        return result

    def transposed(self, table_rows: int) -> Bags:
        """The transposed matrix, a bag for each row of the table."""
        order = _stable_order(self.ids, table_rows)
        bag = np.repeat(np.arange(len(self.counts), dtype=np.int32), self.counts)
        return Bags(bag[order], self.weights[order], np.bincount(self.ids, minlength=table_rows).astype(np.int32))

    def product(self, table: Tensor) -> Tensor:
        """`of`, outside the graph."""
        ends = np.cumsum(self.counts, dtype=np.int32)
        return torch.nn.functional.embedding_bag(
            torch.from_numpy(self.ids),
            table,
            torch.from_numpy(ends - self.counts),
            mode="sum",
            per_sample_weights=torch.from_numpy(self.weights),
        )


class _Product(torch.autograd.Function):
    """The library's own gradient of an embedding bag sorts slowly and takes longer than all the rest of a network."""

    @staticmethod
    def forward(ctx: Any, table: Tensor, bags: Bags) -> Tensor:
        ctx.bags, ctx.table_rows = bags, len(table)
        return bags.product(table)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:
        return ctx.bags.transposed(ctx.table_rows).product(gradient.contiguous()), None


def _stable_order(keys: Ids, bound: int) -> npt.NDArray[np.int64]:
    """`argsort` of keys in 0:bound. The library sorts 16 bits by counting, more bits by comparing: ten times slower."""
    order: npt.NDArray[np.int64] = np.argsort(keys.astype(np.uint16), kind="stable")
    if bound > 1 << 16:
        order = order[np.argsort((keys >> 16)[order].astype(np.uint16), kind="stable")]
    return order


def unknown_ids(fields: Sequence[Field]) -> Ids:
    """For each id of the fields, numbered through, its field's unknown id."""
    sizes = [field.size for field in fields]
    return (np.repeat(np.cumsum([0, *sizes[:-1]]), sizes) + UNKNOWN_ID).astype(np.int32)
