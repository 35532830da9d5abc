"""MetaHeac as a stack of copies, for adapting several campaigns at once: the same function as `metaheac`, faster.

Differentiable once, so not for the meta step; without the linear term and the literal average.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn.functional import logsigmoid

from lookalike.config import ModelConfig
from lookalike.model.features import FeatureEncoder
from lookalike.model.metaheac import Gate, MetaHeac
from lookalike.model.stacked import (
    Campaigns,
    Dense,
    Embeddings,
    Experts,
    Network,
    Stacked,
    UserFields,
    Users,
    in_order,
    mix,
)
from lookalike.schema import FeatureSchema, Field


class StackedGate(Stacked):
    """`metaheac.Gate`: log-weights `[C, rows, outputs]`."""

    from_user: nn.Parameter

    def __init__(self, user_dim: int, campaign_dim: int, hidden: int, outputs: int) -> None:
        super().__init__()
        self.add("from_user", user_dim, hidden, bound=1 / math.sqrt(user_dim))
        self.from_campaign = Dense(campaign_dim, hidden)
        self.output = Dense(hidden, outputs)

    def forward(self, user_mean: Tensor, campaign: Tensor) -> Tensor:
        hidden = (user_mean.matmul(self.from_user) + self.from_campaign(campaign)).relu()
        weights: Tensor = self.output(hidden).log_softmax(2)
        return weights


class StackedMetaHeac(Network):
    """f(c, u) of Eq. 9 for each copy."""

    def __init__(self, users: UserFields, campaigns: FeatureSchema, config: ModelConfig) -> None:
        super().__init__()
        k = config.embedding_dim
        campaign_dim = len(campaigns.fields) * k
        self.num_fields = users.count
        self.embeddings = Embeddings(users, campaigns, k, config.embedding_init_std)
        self.experts = Experts(users, 0, k, config.hidden, config.num_experts)
        self.critics = Dense(config.hidden[-1], config.num_critics)
        self.expert_gate = StackedGate(k, campaign_dim, config.gate_hidden, config.num_experts)
        self.critic_gate = StackedGate(k, campaign_dim, config.gate_hidden, config.num_critics)

    @property
    def offset(self) -> nn.Parameter:
        """The bias of each critic's log-odds."""
        return self.critics.get_parameter("bias")

    def forward(self, users: Users, campaigns: Campaigns, broad: Tensor) -> Tensor:
        """Log-odds `[C, rows]`; `broad` is the table of the users' broad fields, `[C, ids, k]`."""
        mixed, log_weights = self.see(users, campaigns, broad)
        opinions = self.critics(mixed)  # [C, rows, m]
        log_p: Tensor = (log_weights + logsigmoid(opinions)).logsumexp(2)
        log_not_p: Tensor = (log_weights + logsigmoid(-opinions)).logsumexp(2)
        return log_p - log_not_p

    def see(self, users: Users, campaigns: Campaigns, broad: Tensor) -> tuple[Tensor, Tensor]:
        """Mixed expertise (Eq. 6) `[C, rows, h]`, and log-weights of the critics (Eq. 5) `[C, rows, m]`."""
        embedded = self.embeddings(users, campaigns, broad)
        user_mean = embedded.mean(self.num_fields)
        mixed = mix(self.experts(embedded), self.expert_gate(user_mean, embedded.campaign).exp())
        return mixed, self.critic_gate(user_mean, embedded.campaign)

    @staticmethod
    @torch.no_grad()
    def of(model: MetaHeac) -> tuple[StackedMetaHeac, Tensor]:
        """A stack of one with the parameters of `model`, and its table of broad fields `[ids, k]`, copied."""
        config = model.config
        assert not config.wide
        assert not config.literal_average
        users = UserFields(model.users.schema)
        stack = StackedMetaHeac(users, model.campaigns.schema, config)
        stack.embeddings.narrow.copy_(model.user_embedding[_table_rows(model.users, users.narrow)])
        campaign_rows = _table_rows(model.campaigns, in_order(model.campaigns.schema))
        stack.embeddings.campaign.copy_(model.campaign_embedding[campaign_rows])
        weight = model.experts.weights[0].unflatten(1, (stack.num_fields, -1))  # [n, fields, k, h]
        weight = weight.permute(1, 2, 0, 3).flatten(2)  # [fields, k, n * h]
        position = {field.name: i for i, field in enumerate(in_order(model.users.schema))}
        first = stack.experts.first
        first.narrow.copy_(weight[[position[f.name] for f in users.narrow]])
        first.broad.copy_(weight[[position[f.name] for f in users.broad]].flatten(0, 1))
        first.bias.copy_(model.experts.biases[0].flatten())
        for layer in range(stack.experts.layers):
            stack.experts.get_parameter(f"weight{layer}").copy_(model.experts.weights[layer + 1])
            stack.experts.get_parameter(f"bias{layer}").copy_(model.experts.biases[layer + 1])
        _copy_linear(model.critics, stack.critics)
        _copy_gate(model.expert_gate, stack.expert_gate)
        _copy_gate(model.critic_gate, stack.critic_gate)
        return stack, model.user_embedding[_table_rows(model.users, users.broad)].clone()


def _table_rows(encoder: FeatureEncoder, fields: Sequence[Field]) -> Tensor:
    """Rows of the encoder's table that hold these fields, in their order."""
    rows = [torch.arange(field.size) + encoder.starts[field.name] for field in fields]
    return torch.cat([torch.zeros(0, dtype=torch.int64), *rows])


def _copy_linear(source: nn.Linear, target: Dense) -> None:
    target.weight.copy_(source.weight.t())
    target.bias.copy_(source.bias)


def _copy_gate(source: Gate, target: StackedGate) -> None:
    target.from_user.copy_(source.from_user.weight.t())
    _copy_linear(source.from_campaign, target.from_campaign)
    _copy_linear(source.output, target.output)
