"""A campaign's own parameters: where fine-tuning starts, and what it sees. Knows `model` only."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from lookalike.model.features import FeatureBatch
from lookalike.model.metaheac import CAMPAIGN_TABLE, USER_TABLE, MetaHeac

Parameters = dict[str, Tensor]


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
    users, campaign = (table.detach().index_select(0, of.to(table.device)).requires_grad_() for table, of in tables)
    return users, campaign


def predict(
    model: MetaHeac, parameters: Parameters, users: FeatureBatch, campaign: FeatureBatch
) -> tuple[Tensor, Tensor]:
    """`MetaHeac.forward` under a campaign's parameters; the batches index `OccurringRows`."""
    result: tuple[Tensor, Tensor] = torch.func.functional_call(model, parameters, (users, campaign))
    return result
