"""A multi-layer perceptron on the embeddings of a user and, where it serves many campaigns, of the campaign.

"MLP" of Zhu et al., KDD'21, section 4.1: 64, 64, 1, ReLU. Knows the stacked layers only.
"""

from __future__ import annotations

from torch import Tensor, nn

from lookalike.config import ModelConfig
from lookalike.model.stacked import Campaigns, Dense, Embeddings, Experts, Network, UserFields, Users
from lookalike.schema import FeatureSchema


class Mlp(Network):
    """f(u), or f(c, u) with `reads_campaign`."""

    def __init__(
        self, users: UserFields, campaigns: FeatureSchema, config: ModelConfig, *, reads_campaign: bool
    ) -> None:
        super().__init__()
        k = config.embedding_dim
        fields = len(campaigns.fields) if reads_campaign else 0
        self.embeddings = Embeddings(users, campaigns, k, config.embedding_init_std)
        self.experts = Experts(users, fields, k, config.hidden, 1)
        self.output = Dense(config.hidden[-1], 1)

    @property
    def offset(self) -> nn.Parameter:
        """The bias of the log-odds."""
        return self.output.get_parameter("bias")

    def forward(self, users: Users, campaigns: Campaigns, broad: Tensor) -> Tensor:
        """Log-odds `[C, rows]`; `broad` is the table of the users' broad fields, `[C, ids, k]`."""
        hidden = self.experts(self.embeddings(users, campaigns, broad)).squeeze(1)  # [C, rows, h]
        log_odds: Tensor = self.output(hidden).squeeze(2)
        return log_odds
