"""Multi-gate Mixture-of-Experts (Ma et al., KDD'18): shared experts, and a gate and a head for each campaign.

As the baseline of Zhu et al., KDD'21, section 4.1: experts 64, 64, gates 64, n. Knows the stacked layers only.
"""

from __future__ import annotations

import math

from torch import Tensor, nn

from lookalike.config import ModelConfig
from lookalike.model.baselines.shared_bottom import Heads
from lookalike.model.stacked import Campaigns, Embeddings, Experts, Network, Stacked, UserFields, Users, mix
from lookalike.schema import FeatureSchema


class Gates(Stacked):
    """A gate for each campaign on the mean of a user's embeddings, as MetaHeac's: the campaign is told by whose it is.

    On all embeddings side by side it would have 28 times the parameters, of which most campaigns have too few users.
    """

    weight_in: nn.Parameter
    bias_in: nn.Parameter
    weight_out: nn.Parameter
    bias_out: nn.Parameter

    def __init__(self, k: int, hidden: int, n: int) -> None:
        super().__init__()
        self.add("weight_in", k, hidden, bound=1 / math.sqrt(k))
        self.add("bias_in", 1, hidden, bound=1 / math.sqrt(k))
        self.add("weight_out", hidden, n, bound=1 / math.sqrt(hidden))
        self.add("bias_out", 1, n, bound=1 / math.sqrt(hidden))

    def forward(self, mean: Tensor, owners: Tensor | None) -> Tensor:
        """Weights `[C, rows, n]` from `[C, rows, k]`, by the gate of each copy, or else of each row's owner (C = 1)."""
        parameters: list[Tensor] = [self.weight_in, self.bias_in, self.weight_out, self.bias_out]
        if owners is not None:
            parameters = [p.index_select(0, owners) for p in parameters]
            mean = mean.transpose(0, 1)  # [rows, 1, k]: each row is a stack of its own
        weight_in, bias_in, weight_out, bias_out = parameters
        hidden = (mean.matmul(weight_in) + bias_in).relu()
        weights = (hidden.matmul(weight_out) + bias_out).softmax(2)
        return weights if owners is None else weights.transpose(0, 1)


class Mmoe(Network):
    """Shared experts, which may read the campaign's features too, and as many gates and heads as campaigns."""

    def __init__(self, users: UserFields, campaigns: FeatureSchema, config: ModelConfig) -> None:
        super().__init__()
        k = config.embedding_dim
        self.num_fields = users.count
        self.embeddings = Embeddings(users, campaigns, k, config.embedding_init_std)
        self.experts = Experts(users, len(campaigns.fields), k, config.hidden, config.num_experts)
        self.gates = Gates(k, config.gate_hidden, config.num_experts)
        self.heads = Heads(config.hidden[-1])

    @property
    def offset(self) -> nn.Parameter:
        """The bias of the log-odds."""
        return self.heads.get_parameter("bias")

    def forward(self, users: Users, campaigns: Campaigns, broad: Tensor) -> Tensor:
        """Log-odds `[C, rows]`; `broad` is the table of the users' broad fields, `[C, ids, k]`."""
        embedded = self.embeddings(users, campaigns, broad)
        weights = self.gates(embedded.mean(self.num_fields), campaigns.owners)
        log_odds: Tensor = self.heads(mix(self.experts(embedded), weights), campaigns.owners)
        return log_odds
