"""Meta-training of the general model: Algorithm 1 of the paper over many campaigns.

Knows the network's derivatives and tasks; knows nothing of checkpoints.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from lookalike.config import TrainingConfig
from lookalike.evaluation.metrics import auc
from lookalike.model.metaheac import MetaHeac
from lookalike.model.metaheac_twice import Passes
from lookalike.model.metaheac_weights import Shape, Weights
from lookalike.pool.snapshot import Pool
from lookalike.training.draws import Campaign, Drawer, Drawn, drop
from lookalike.training.general import CampaignEncoder
from lookalike.training.inner import dense_parameters
from lookalike.training.row_adam import RowAdam
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
        self.shape = Shape(self.model)
        known = CampaignEncoder(self.model.campaigns.schema, (task.features for task in self.tasks))
        self.drawer = Drawer(self.model, self.shape, known)
        lr = self.config.outer_lr
        self.tables = RowAdam((self.model.user_embedding, self.model.campaign_embedding), lr)
        self.optimizers: dict[str, torch.optim.Optimizer] = {
            "dense": torch.optim.Adam(list(dense_parameters(self.model).values()), lr=lr, fused=True),
            "tables": self.tables,
        }

    def step(self, number: int, done: float = 0.0) -> tuple[float, float, int]:  # noqa: ARG002  the rate is constant
        """One outer update from a few tasks. Returns the mean support and query loss and the samples seen.

        All randomness comes from the configured seed and `number`, so a resumed run continues the same sequence.
        """
        tables, support_loss, query_loss, samples = self.gradient(number)
        self.optimizers["dense"].step()
        for table, (rows, leaf) in zip((self.model.user_embedding, self.model.campaign_embedding), tables, strict=True):
            self.tables.update(table, rows, leaf)
        return support_loss, query_loss, samples

    def gradient(self, number: int) -> tuple[list[tuple[Tensor, Tensor]], float, float, int]:
        """Leaves the gradient of step `number` in the dense parameters, and in copies of the tables' rows that occur.

        Returns:
            rows `[u]` of the users' table and the copy `[u, width]`; the same of the campaigns'; the two losses and the
            samples of `step`.
        """
        rng = np.random.default_rng([self.config.seed, number])
        for optimizer in self.optimizers.values():
            optimizer.zero_grad()
        count = min(self.config.tasks_per_step, len(self.tasks))
        tasks = [self.tasks[i] for i in rng.choice(len(self.tasks), count, replace=False, p=self.weights)]
        sizes = self.config.support_size, self.config.query_size
        pairs = [task.support_and_query(*sizes, rng) for task in tasks]
        drawn = self._draw(tasks, pairs, rng)
        flat = self.shape.dense(self.model)
        total = torch.zeros_like(flat)
        losses = []
        with torch.no_grad():
            same = drawn.start(Weights(flat.detach(), self.shape.sizes), self.shape.k)
            for campaign in drawn.campaigns:
                gradient, *both = self._gradient(campaign, drawn.start_of(campaign, same, self.shape.k))
                losses.append(both)
                total.add_(gradient.flat, alpha=1 / count)
                drawn.add(campaign, gradient, 1 / count)
        torch.autograd.backward(flat, total)
        support_loss, query_loss = (sum(of) / count for of in zip(*losses, strict=True))
        tables = list(zip(drawn.rows, drawn.tables, strict=True))
        return tables, support_loss, query_loss, sum(len(part) for pair in pairs for part in pair)

    def _gradient(self, campaign: Campaign, weights: Weights) -> tuple[Weights, float, float]:
        """A campaign's part of line 9 of Algorithm 1, and its losses: L_a before the inner step, and L_b after it."""
        alpha = self.config.inner_lr
        support = Passes(self.shape, campaign.support, weights)
        support_loss = support.loss()
        query = Passes(self.shape, campaign.query, weights.moved(support.gradient(), alpha))
        query_loss = query.loss()
        gradient = query.gradient()
        if self.config.second_order:
            # theta_c is theta - alpha * dL_a/dtheta, hence dL_b/dtheta = (1 - alpha * d²L_a/dtheta²) dL_b/dtheta_c.
            gradient = gradient.moved(support.gradient_along(gradient), alpha)
        return gradient, support_loss, query_loss

    @torch.no_grad()
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
            log_p, log_not_p = self._adapted_prediction(task, support, query)
            aucs.append(auc(query.labels.astype(np.int8), (log_p - log_not_p).numpy()))
        if not aucs:
            return math.nan
        return float(np.mean(aucs))

    def finish(self, held_out: list[Task], poll: Callable[[], None]) -> None:
        """Nothing is left to choose."""

    def _adapted_prediction(self, task: Task, support: Samples, query: Samples) -> tuple[Tensor, Tensor]:
        drawn = self._draw([task], [(support, query)], None)
        (campaign,) = drawn.campaigns
        same = drawn.start(Weights(self.shape.dense(self.model), self.shape.sizes), self.shape.k)
        weights = drawn.start_of(campaign, same, self.shape.k)
        passes = Passes(self.shape, campaign.support, weights)
        passes.loss()
        passes = Passes(self.shape, campaign.query, weights.moved(passes.gradient(), self.config.inner_lr))
        return self.model.average(passes.log_weights.t(), passes.opinions.t())

    def _draw(
        self, tasks: Sequence[Task], pairs: Sequence[tuple[Samples, Samples]], rng: np.random.Generator | None
    ) -> Drawn:
        """The campaigns with support and query users; with `rng`, some ids are dropped to unknown."""
        sets = [[pair[number] for pair in pairs] for number in range(2)]
        columns = [self.pool.take(np.concatenate([samples.rows for samples in of])) for of in sets]
        campaigns = [task.features.take(np.arange(1)) for task in tasks]  # copies
        starts = [0, 0]
        for campaign, pair in zip(campaigns, pairs, strict=True):
            if rng is None:
                break
            drop(campaign, self.model.campaigns.schema, self.config.campaign_id_dropout, rng)
            for number, samples in enumerate(pair):
                stop = starts[number] + len(samples)
                users = columns[number].slice(starts[number], stop)
                drop(users, self.model.users.schema, self.config.user_id_dropout, rng)
                starts[number] = stop
        labels = [[samples.labels for samples in of] for of in sets]
        return self.drawer.draw(list(zip(columns, labels, strict=True)), campaigns)
