"""Meta-training of the general model: Algorithm 1 of the paper over many campaigns.

Knows the inner loop and tasks; knows nothing of checkpoints.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from lookalike.config import TrainingConfig
from lookalike.evaluation.metrics import auc
from lookalike.model.features import FeatureBatch
from lookalike.model.metaheac import CAMPAIGN_TABLE, USER_TABLE, MetaHeac, binary_cross_entropy
from lookalike.pool.snapshot import Pool
from lookalike.training.inner import (
    OccurringRows,
    campaign_parameters,
    dense_parameters,
    inner_step,
    predict,
)
from lookalike.training.tasks import Samples, Task, sampling_weights


@dataclass
class Trainer:
    """The general model and its optimisers. `step` is one pass of Algorithm 1's loop."""

    model: MetaHeac
    config: TrainingConfig
    pool: Pool
    tasks: list[Task]

    def __post_init__(self) -> None:
        self.weights = sampling_weights(self.tasks, self.config.task_sampling)
        campaigns = [self.model.campaigns.batch(task.features) for task in self.tasks]
        self.trained_campaign_rows = torch.unique(torch.cat([batch.occurring() for batch in campaigns]))
        lr = self.config.outer_lr
        self.optimizers: dict[str, torch.optim.Optimizer] = {
            "dense": torch.optim.Adam(list(dense_parameters(self.model).values()), lr=lr),
            # Touches only the rows of a step, so that its cost does not grow with the vocabulary.
            "tables": torch.optim.SparseAdam([self.model.user_embedding, self.model.campaign_embedding], lr=lr),
        }

    def step(self, number: int, done: float = 0.0) -> tuple[float, float, int]:  # noqa: ARG002  the rate is constant
        """One outer update from a few tasks. Returns the mean support and query loss and the samples seen.

        All randomness comes from the configured seed and `number`, so a resumed run continues the same sequence.
        """
        rng = np.random.default_rng([self.config.seed, number])
        for optimizer in self.optimizers.values():
            optimizer.zero_grad()
        count = min(self.config.tasks_per_step, len(self.tasks))
        drawn = rng.choice(len(self.tasks), count, replace=False, p=self.weights)
        user_rows, campaign_rows = [], []
        support_total = query_total = 0.0
        samples = 0
        for index in drawn:
            support, query = self.tasks[index].support_and_query(self.config.support_size, self.config.query_size, rng)
            prepared = self._prepare(self.tasks[index], [support, query], rng)
            support_loss, query_loss, parameters = self._losses(prepared, second_order=self.config.second_order)
            torch.autograd.backward(query_loss / count)
            user_rows.append((prepared.rows.users, parameters[USER_TABLE].grad))
            campaign_rows.append((prepared.rows.campaign, parameters[CAMPAIGN_TABLE].grad))
            support_total += support_loss.item()
            query_total += query_loss.item()
            samples += len(support) + len(query)
        self.model.user_embedding.grad = _sparse(user_rows, self.model.user_embedding)
        self.model.campaign_embedding.grad = _sparse(campaign_rows, self.model.campaign_embedding)
        for optimizer in self.optimizers.values():
            optimizer.step()
        return support_total / count, query_total / count, samples

    def validate(self, held_out: list[Task]) -> float:
        """Mean AUC on what campaigns never trained on brought later, after one inner step on their seeds.

        The draws are the same at every call, so that two calls differ by the model alone. Ids of the campaigns that no
        training campaign has are unknown, as they will be when a new campaign comes.
        """
        aucs = []
        for task in held_out:
            rng = np.random.default_rng([self.config.seed, len(task.samples)])
            support = task.seeds.shuffled(rng).take(np.arange(min(self.config.support_size, len(task.seeds))))
            query = task.audience if task.audience.trainable else task.seeds
            query = query.shuffled(rng).take(np.arange(min(4 * self.config.query_size, len(query))))
            if not (support.trainable and query.trainable):
                continue
            prepared = self._prepare(task, [support, query], None)
            log_p, log_not_p = self._adapted_prediction(prepared)
            aucs.append(auc(query.labels.astype(np.int8), (log_p - log_not_p).numpy()))
        if not aucs:
            return math.nan
        return float(np.mean(aucs))

    def finish(self, held_out: list[Task], poll: Callable[[], None]) -> None:
        """Nothing is left to choose."""

    def _losses(self, prepared: _Prepared, *, second_order: bool) -> tuple[Tensor, Tensor, dict[str, Tensor]]:
        parameters = campaign_parameters(self.model, prepared.rows)
        moved, support_loss = inner_step(
            self.model,
            parameters,
            self.config.inner_lr,
            prepared.batches[0],
            prepared.campaign,
            second_order=second_order,
        )
        users, labels = prepared.batches[1]
        query_loss = binary_cross_entropy(predict(self.model, moved, users, prepared.campaign), labels)
        return support_loss, query_loss, parameters

    def _adapted_prediction(self, prepared: _Prepared) -> tuple[Tensor, Tensor]:
        parameters = campaign_parameters(self.model, prepared.rows)
        moved, _ = inner_step(
            self.model, parameters, self.config.inner_lr, prepared.batches[0], prepared.campaign, second_order=False
        )
        with torch.no_grad():
            return predict(self.model, moved, prepared.batches[1][0], prepared.campaign)

    def _prepare(self, task: Task, sets: list[Samples], rng: np.random.Generator | None) -> _Prepared:
        """Encode the sets and number their table rows; with `rng`, drop some ids to unknown."""
        device = self.model.user_embedding.device
        campaign = self.model.campaigns.batch(task.features)
        users = [self.model.users.batch(self.pool.take(samples.rows)) for samples in sets]
        if rng is None:
            campaign = self.model.campaigns.with_untrained_unknown(campaign, self.trained_campaign_rows)
        else:
            campaign = self.model.campaigns.with_unknown(campaign, self.config.campaign_id_dropout, rng)
            users = [self.model.users.with_unknown(b, self.config.user_id_dropout, rng) for b in users]
        rows = OccurringRows.of(users, campaign)
        batches = [
            (batch.relative_to(rows.users).to(device), torch.from_numpy(samples.labels).to(device))
            for batch, samples in zip(users, sets, strict=True)
        ]
        on_device = OccurringRows(rows.users.to(device), rows.campaign.to(device))
        return _Prepared(batches, campaign.relative_to(rows.campaign).to(device), on_device)


@dataclass(frozen=True)
class _Prepared:
    batches: list[tuple[FeatureBatch, Tensor]]
    campaign: FeatureBatch
    rows: OccurringRows


def _sparse(parts: list[tuple[Tensor, Tensor | None]], table: Tensor) -> Tensor:
    index = torch.cat([rows for rows, _ in parts]).unsqueeze(0)
    values = torch.cat([gradient for _, gradient in parts if gradient is not None])
    return torch.sparse_coo_tensor(index, values, table.shape, check_invariants=False).coalesce()
