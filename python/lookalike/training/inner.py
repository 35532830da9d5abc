"""The inner loop: one campaign's own parameters, and the step that moves them from the general ones.

Meta-training differentiates through the step; fine-tuning only begins with the same parameters. Knows `model` only.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from lookalike.model.features import FeatureBatch
from lookalike.model.metaheac import CAMPAIGN_TABLE, USER_TABLE, MetaHeac, binary_cross_entropy

Parameters = dict[str, Tensor]


@dataclass(frozen=True)
class OccurringRows:
    """Rows of the two embedding tables that a campaign's samples touch, `[u]` and `[c]`, ascending.

    No other row has a gradient, so no other is copied: the authors' code copies both tables for every task.
    """

    users: Tensor
    campaign: Tensor

    @staticmethod
    def of(users: list[FeatureBatch], campaign: FeatureBatch) -> OccurringRows:
        """The rows that `users` and `campaign` index."""
        return OccurringRows(torch.unique(torch.cat([b.occurring() for b in users])), campaign.occurring())


def dense_parameters(model: MetaHeac) -> Parameters:
    """The parameters that are no embedding table, by name."""
    return {name: p for name, p in model.named_parameters() if name not in (USER_TABLE, CAMPAIGN_TABLE)}


def campaign_parameters(model: MetaHeac, rows: OccurringRows) -> Parameters:
    """Where a campaign starts: the general dense parameters themselves, and leaf copies of the table rows."""
    return {
        **dense_parameters(model),
        USER_TABLE: model.user_embedding.detach()[rows.users].requires_grad_(),
        CAMPAIGN_TABLE: model.campaign_embedding.detach()[rows.campaign].requires_grad_(),
    }


def predict(
    model: MetaHeac, parameters: Parameters, users: FeatureBatch, campaign: FeatureBatch
) -> tuple[Tensor, Tensor]:
    """`MetaHeac.forward` under a campaign's parameters; the batches index `OccurringRows`."""
    result: tuple[Tensor, Tensor] = torch.func.functional_call(model, parameters, (users, campaign))
    return result


def inner_step(
    model: MetaHeac,
    parameters: Parameters,
    alpha: float,
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
    moved = {n: parameters[n] - alpha * g for n, g in zip(names, gradients, strict=True)}
    return moved, loss
