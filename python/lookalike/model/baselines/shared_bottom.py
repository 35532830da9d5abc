"""Shared-Bottom (Caruana, 1997): one network under all campaigns, and a linear head for each.

As the baseline of Zhu et al., KDD'21, section 4.1: bottom 64, 64, head 1. Knows the stacked layers only.
"""

from __future__ import annotations

import math

from torch import Tensor, nn

from lookalike.config import ModelConfig
from lookalike.model.stacked import Campaigns, Embeddings, Experts, Network, Stacked, UserFields, Users
from lookalike.schema import FeatureSchema


class Heads(Stacked):
    """A linear head for each campaign, `[campaigns, inputs]`."""

    weight: nn.Parameter
    bias: nn.Parameter

    def __init__(self, inputs: int) -> None:
        super().__init__()
        bound = 1 / math.sqrt(inputs)
        self.add("weight", inputs, bound=bound)
        self.add("bias", bound=bound)

    def forward(self, x: Tensor, owners: Tensor | None) -> Tensor:
        """`[C, rows, inputs]` to `[C, rows]`: by each copy's head, or by that of each row's owner `[rows]` (C = 1)."""
        weight, bias = self.weight.unsqueeze(1), self.bias.unsqueeze(1)  # [C, 1, inputs], [C, 1]
        if owners is not None:
            weight, bias = self.weight.index_select(0, owners).unsqueeze(0), self.bias.index_select(0, owners)
        return (x * weight).sum(2) + bias


class SharedBottom(Network):
    """One bottom, which may read the campaign's features too, and as many heads as there are campaigns."""

    def __init__(self, users: UserFields, campaigns: FeatureSchema, config: ModelConfig) -> None:
        super().__init__()
        k = config.embedding_dim
        self.embeddings = Embeddings(users, campaigns, k, config.embedding_init_std)
        self.experts = Experts(users, len(campaigns.fields), k, config.hidden, 1)
        self.heads = Heads(config.hidden[-1])

    @property
    def offset(self) -> nn.Parameter:
        """The bias of the log-odds."""
        return self.heads.get_parameter("bias")

    def forward(self, users: Users, campaigns: Campaigns, broad: Tensor) -> Tensor:
        """Log-odds `[C, rows]`; `broad` is the table of the users' broad fields, `[C, ids, k]`."""
        hidden = self.experts(self.embeddings(users, campaigns, broad)).squeeze(1)  # [C, rows, h]
        log_odds: Tensor = self.heads(hidden, campaigns.owners)
        return log_odds
