"""The inner loop: one campaign's own parameters, and the step that moves them from the general ones.

Meta-training differentiates through it; adaptation runs it for real. Knows `model` only.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from lookalike.model.features import FeatureBatch, FeatureEncoder
from lookalike.model.metaheac import CAMPAIGN_TABLE, USER_TABLE, MetaHeac, binary_cross_entropy

Parameters = dict[str, Tensor]

# A rare id is in few of a batch's samples, so its gradient of the mean loss is smaller by orders of magnitude than a
# weight's, which every sample moves. Learning starts from this ratio and sets one rate a field.
EMBEDDING_RATE_RATIO = 100.0
# A linear weight moves the logit directly and those of all fields add up: a larger start diverges.
WIDE_RATE_RATIO = 4.0


class InnerRates(nn.Module):
    """Inner learning rates, the alpha of Eq. 3: one for each dense tensor and one for each field's embeddings.

    Learned together with the model (after Meta-SGD, Li et al. 2017) or fixed. Kept as logarithms: always positive,
    and a step of the outer optimiser is a relative change.
    """

    def __init__(self, model: MetaHeac, alpha: float, *, learned: bool) -> None:
        super().__init__()
        self.names = [name for name, _ in model.named_parameters() if name not in (USER_TABLE, CAMPAIGN_TABLE)]
        ratio, wide_ratio = (EMBEDDING_RATE_RATIO, WIDE_RATE_RATIO) if learned else (1.0, 1.0)
        self.dense = nn.Parameter(torch.full((len(self.names),), math.log(alpha)), requires_grad=learned)
        # Two rates a field: of its embeddings and of its linear weights.
        self.embedding_dim = model.config.embedding_dim
        self.table_width = model.user_embedding.shape[1]
        start = torch.tensor([alpha * ratio, alpha * wide_ratio]).log()
        self.user_fields = nn.Parameter(start.repeat(len(model.users.schema.fields), 1), requires_grad=learned)
        # A campaign has one row, which every sample of it moves.
        self.campaign_fields = nn.Parameter(
            torch.full((len(model.campaigns.schema.fields), 1), math.log(alpha)), requires_grad=learned
        )
        self.register_buffer("user_field_of", _field_of(model.users), persistent=False)
        self.register_buffer("campaign_field_of", _field_of(model.campaigns), persistent=False)

    def of(self, rows: OccurringRows) -> Parameters:
        """Rates by parameter name, broadcastable to a campaign's parameters."""
        rates: Parameters = dict(zip(self.names, self.dense.exp(), strict=True))
        assert isinstance(self.user_field_of, Tensor)
        assert isinstance(self.campaign_field_of, Tensor)
        by_column = [self.user_fields[:, :1].expand(-1, self.embedding_dim), self.user_fields[:, 1:]]
        by_field = torch.cat(by_column, dim=1)[:, : self.table_width].exp()  # [Fu, table width]
        rates[USER_TABLE] = by_field[self.user_field_of[rows.users]]
        rates[CAMPAIGN_TABLE] = self.campaign_fields.exp()[self.campaign_field_of[rows.campaign]]
        return rates


@dataclass(frozen=True)
class OccurringRows:
    """Rows of the two embedding tables that a campaign's samples touch, `[u]` and `[c]`, ascending.

    No other row has a gradient, so no other is copied: the authors' code copies both tables for every task.
    """

    users: Tensor
    campaign: Tensor

    @staticmethod
    def of(model: MetaHeac, users: Sequence[FeatureBatch], campaign: FeatureBatch) -> OccurringRows:
        """The rows that `users` and `campaign` index."""
        return OccurringRows(model.users.occurring(*users), model.campaigns.occurring(campaign))


def dense_parameters(model: MetaHeac) -> Parameters:
    """The parameters that are no embedding table, by name."""
    return {name: p for name, p in model.named_parameters() if name not in (USER_TABLE, CAMPAIGN_TABLE)}


def campaign_parameters(model: MetaHeac, users: Tensor, campaign: Tensor) -> Parameters:
    """Where a campaign starts: the general dense parameters themselves, and its rows of the tables."""
    return {**dense_parameters(model), USER_TABLE: users, CAMPAIGN_TABLE: campaign}


def copied_rows(model: MetaHeac, rows: OccurringRows) -> tuple[Tensor, Tensor]:
    """Leaves with the rows of the two tables."""
    tables = (model.user_embedding, rows.users), (model.campaign_embedding, rows.campaign)
    users, campaign = (table.detach().index_select(0, index).requires_grad_() for table, index in tables)
    return users, campaign


def predict(
    model: MetaHeac, parameters: Parameters, users: FeatureBatch, campaign: FeatureBatch
) -> tuple[Tensor, Tensor]:
    """`MetaHeac.forward` under a campaign's parameters; the batches index `OccurringRows`."""
    result: tuple[Tensor, Tensor] = torch.func.functional_call(model, parameters, (users, campaign))
    return result


def inner_step(
    model: MetaHeac,
    parameters: Parameters,
    rates: Parameters,
    support: tuple[FeatureBatch, Tensor],
    campaign: FeatureBatch,
    *,
    second_order: bool,
) -> tuple[Parameters, Tensor]:
    """theta_c = theta - alpha * dL_a/dtheta (Algorithm 1, line 7), and L_a. `support` is users and labels `[rows]`."""
    users, labels = support
    loss = binary_cross_entropy(predict(model, parameters, users, campaign), labels)
    names = list(parameters)
    gradients = torch.autograd.grad(
        loss, [parameters[n] for n in names], create_graph=second_order, materialize_grads=True
    )
    moved = {n: parameters[n] - rates[n] * g for n, g in zip(names, gradients, strict=True)}
    return moved, loss


def _field_of(encoder: FeatureEncoder) -> Tensor:
    sizes = torch.tensor([field.size for field in encoder.schema.fields])
    return torch.repeat_interleave(torch.arange(len(sizes)), sizes)
