"""Users or campaigns as the means of their fields' embeddings: what Pinterest's tower and Hubble's graph begin with.

Knows `bags`; not what is computed of the means.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from lookalike.model.bags import Entries
from lookalike.model.stacked import in_order
from lookalike.schema import EncodedColumns, FeatureSchema


class PooledFields(nn.Module):
    """Embeddings of all ids of a schema; a row is the means of its fields' ids, side by side. An empty field is 0."""

    def __init__(self, schema: FeatureSchema, k: int, init_std: float) -> None:
        super().__init__()
        self.fields = in_order(schema)
        # Drawn in the schema's order, so that a seed draws the same however the fields are sorted here.
        sizes = {field.name: field.size for field in schema.fields}
        drawn = torch.split(torch.randn(sum(sizes.values()), k) * init_std, list(sizes.values()))
        by_name = dict(zip(sizes, drawn, strict=True))
        self.table = nn.Parameter(torch.cat([by_name[field.name] for field in self.fields]))
        self.width = len(self.fields) * k

    def encode(self, columns: EncodedColumns) -> Entries:
        """All rows of `columns`, which can be encoded once and taken from."""
        return Entries.of(columns, self.fields)

    def forward(self, rows: Entries) -> Tensor:
        """`[rows, fields * k]`."""
        return rows.by_field().of(self.table).view(-1, self.width)
