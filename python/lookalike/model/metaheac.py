"""MetaHeac (Zhu et al., KDD'21): experts, critics and the two task-driven gates that weigh them.

Knows `schema`, `config` and its own features; not how it is trained, compiled or served.
"""

from __future__ import annotations

import copy
import math
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from lookalike.config import ModelConfig
from lookalike.model.features import FeatureBatch, FeatureEncoder
from lookalike.schema import FeatureSchema

USER_TABLE = "user_embedding"
CAMPAIGN_TABLE = "campaign_embedding"


class Experts(nn.Module):
    """n feed-forward networks over a user's field embeddings: the h_i of Eq. 4, all at once.

    The first layers read the same input, so they are one wide matrix; the others are batched.
    """

    def __init__(self, inputs: int, hidden: tuple[int, ...], n: int) -> None:
        super().__init__()
        self.n = n
        widths = (inputs, *hidden)
        self.weights = nn.ParameterList(
            _uniform(n, fan_in, fan_out, bound=1 / math.sqrt(fan_in))
            for fan_in, fan_out in zip(widths, hidden, strict=False)
        )
        self.biases = nn.ParameterList(
            _uniform(n, 1, fan_out, bound=1 / math.sqrt(fan_in))
            for fan_in, fan_out in zip(widths, hidden, strict=False)
        )

    def forward(self, users: Tensor) -> Tensor:
        """`[rows, inputs]` to `[n, rows, hidden[-1]]`."""
        inputs, width = self.weights[0].shape[1:]
        wide = self.weights[0].permute(1, 0, 2).reshape(inputs, self.n * width)
        x = torch.addmm(self.biases[0].reshape(-1), users, wide).relu()  # [rows, n * width]
        x = x.view(-1, self.n, width).transpose(0, 1)  # [n, rows, width]
        # By index: a slice of a ParameterList wraps its tensors anew, which cuts them from a campaign's graph.
        for layer in range(1, len(self.weights)):
            x = torch.baddbmm(self.biases[layer], x, self.weights[layer]).relu()
        return x


class Gate(nn.Module):
    """Task-driven gate: softmax(g(c, mean of the user's fields)), Eq. 5."""

    def __init__(self, user_dim: int, campaign_dim: int, hidden: int, outputs: int) -> None:
        super().__init__()
        self.from_user = nn.Linear(user_dim, hidden, bias=False)
        self.from_campaign = nn.Linear(campaign_dim, hidden)
        self.output = nn.Linear(hidden, outputs)

    def forward(
        self, user_mean: Tensor, campaign: Tensor, users: Tensor | None = None, campaigns: Tensor | None = None
    ) -> Tensor:
        """`[users, k]` and `[1 or rows, Fc * k]` to log-weights `[rows, outputs]`.

        Row i is of user i, or of `users[i]` and `campaigns[i]`, whose parts of the first layer are computed once.
        """
        if self.output.out_features == 1:
            return user_mean.new_zeros(len(user_mean if users is None else users), 1)
        from_user, from_campaign = self.from_user(user_mean), self.from_campaign(campaign)
        if users is not None and campaigns is not None:
            from_user, from_campaign = from_user.index_select(0, users), from_campaign.index_select(0, campaigns)
        weights: Tensor = self.output((from_user + from_campaign).relu()).log_softmax(dim=1)
        return weights


@dataclass(frozen=True)
class Represented:
    """Users as every campaign sees them.

    Attributes:
        hidden: `[n, rows, h]`, the experts' h_i of Eq. 4.
        user_mean: `[rows, k]`, the mean of the fields' embeddings.
        linear: `[rows, 1]`, the linear term; `[rows, 0]` without one.
    """

    hidden: Tensor
    user_mean: Tensor
    linear: Tensor


class MetaHeac(nn.Module):
    """f(c, u) of Eq. 9.

    All ids of user fields share one table, `user_embedding` `[ids, k]`, and so do those of campaign fields: training
    swaps in just the rows that a batch needs (`torch.func.functional_call`). With `config.wide` the users' table has
    one more column, each id's weight in the linear term: zero at first, and summed over a multi-valued field, because
    each id is evidence of its own.
    """

    def __init__(self, users: FeatureSchema, campaigns: FeatureSchema, config: ModelConfig) -> None:
        super().__init__()
        self.config = config
        self.users = FeatureEncoder(users)
        self.campaigns = FeatureEncoder(campaigns)
        k, std = config.embedding_dim, config.embedding_init_std
        table = torch.randn(self.users.table_rows, k) * std
        if config.wide:
            table = torch.cat([table, torch.zeros(len(table), 1)], dim=1)
        self.user_embedding = nn.Parameter(table)
        self.campaign_embedding = nn.Parameter(torch.randn(self.campaigns.table_rows, k) * std)
        campaign_dim = self.campaigns.num_fields * k
        self.experts = Experts(self.users.num_fields * k, config.hidden, config.num_experts)
        self.critics = nn.Linear(config.hidden[-1], config.num_critics)
        self.expert_gate = Gate(k, campaign_dim, config.gate_hidden, config.num_experts)
        self.critic_gate = Gate(k, campaign_dim, config.gate_hidden, config.num_critics)

    def forward(self, users: FeatureBatch, campaigns: FeatureBatch) -> tuple[Tensor, Tensor]:
        """log p and log(1 - p), `[rows]` each, of users `[rows]` for one campaign or a campaign each.

        In log space, because a probability that rounds to 0 or 1 has no gradient and no rank.
        """
        seen = self.represent(users)
        expert_gate, log_weights = self.gates(seen.user_mean, campaigns)
        opinions = self.critics(self.mix(seen.hidden, expert_gate))  # [rows, m], the t_i(r) of Eq. 7
        if self.config.wide:
            opinions = opinions + seen.linear
        return self.average(log_weights, opinions)

    def average(self, log_weights: Tensor, opinions: Tensor) -> tuple[Tensor, Tensor]:
        """Eq. 8 of what the critics say, `[rows, m]` each: log p and log(1 - p), `[rows]` each."""
        log_p = (log_weights + nn.functional.logsigmoid(opinions)).logsumexp(dim=1)
        if self.config.literal_average:
            log_p = log_p - math.log(self.config.num_critics)
            return log_p, torch.log1p(-log_p.exp().clamp(max=1 - 1e-7))
        # The weights sum to one, hence 1 - p = sum_i w_i sigmoid(-t_i).
        return log_p, (log_weights + nn.functional.logsigmoid(-opinions)).logsumexp(dim=1)

    def copy(self) -> MetaHeac:
        """Another with the same parameters. Vocabularies, which nobody changes, are shared: they may be millions."""
        return copy.deepcopy(self, {id(encoder): encoder for encoder in (self.users, self.campaigns)})

    def represent(self, users: FeatureBatch, table: Tensor | None = None) -> Represented:
        """What does not depend on the campaign; with the embeddings `table`, if given, instead of the model's."""
        k = self.config.embedding_dim
        fields = users.embed(self.user_embedding if table is None else table, k)  # [rows, Fu, k or k + 1]
        embedded = fields[:, :, :k]
        return Represented(self.experts(embedded.flatten(1)), embedded.mean(dim=1), fields[:, :, k:].sum(dim=1))

    def gates(
        self, user_mean: Tensor, campaigns: FeatureBatch, which: Tensor | None = None, campaign: Tensor | None = None
    ) -> tuple[Tensor, Tensor]:
        """Log-weights of experts `[rows, n]` and critics `[rows, m]`, Eq. 5; for users `which` and campaigns `campaign`
        of those given, where these are.
        """
        embedded = campaigns.embed(self.campaign_embedding).flatten(1)  # [1 or rows, Fc * k]
        return (
            self.expert_gate(user_mean, embedded, which, campaign),
            self.critic_gate(user_mean, embedded, which, campaign),
        )

    def mix(self, hidden: Tensor, log_weights: Tensor) -> Tensor:
        """Eq. 6: `[n, rows, h]` and `[rows, n]` to `[rows, h]`."""
        mixed = (hidden * log_weights.exp().T.unsqueeze(2)).sum(0)  # a fifth of the time of einsum
        return mixed / self.config.num_experts if self.config.literal_average else mixed


def binary_cross_entropy(prediction: tuple[Tensor, Tensor], labels: Tensor) -> Tensor:
    """Mean of Eq. 2 over a batch: `prediction` as `MetaHeac.forward` gives it, `labels` `[rows]` 0/1."""
    log_p, log_not_p = prediction
    return -(labels * log_p + (1 - labels) * log_not_p).mean()


def _uniform(*shape: int, bound: float) -> nn.Parameter:
    return nn.Parameter(torch.empty(*shape).uniform_(-bound, bound))
