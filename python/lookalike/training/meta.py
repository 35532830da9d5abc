"""Meta-training of the general model: Algorithm 1 of the paper over many campaigns.

Knows the inner loop and tasks; knows nothing of checkpoints.
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
from lookalike.model.features import FeatureBatch
from lookalike.model.metaheac import MetaHeac, binary_cross_entropy
from lookalike.pool.snapshot import Pool
from lookalike.training.inner import (
    OccurringRows,
    Parameters,
    campaign_parameters,
    copied_rows,
    dense_parameters,
    inner_step,
    predict,
)
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
        campaigns = [self.model.campaigns.batch(task.features) for task in self.tasks]
        self.trained_campaign_rows = self.model.campaigns.occurring(*campaigns)
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
        drawn = [self.tasks[i] for i in rng.choice(len(self.tasks), count, replace=False, p=self.weights)]
        sizes = self.config.support_size, self.config.query_size
        sets = [task.support_and_query(*sizes, rng) for task in drawn]
        encoded = self._encode(drawn, sets, rng)
        rows = OccurringRows(
            self.model.users.occurring(*(batch for e in encoded for batch, _ in e.sets)),
            self.model.campaigns.occurring(*(e.campaign for e in encoded)),
        )
        leaves = copied_rows(self.model, rows)
        support_total = query_total = 0.0
        for one in encoded:
            support_loss, query_loss = self._losses(self._prepare(one, rows, leaves))
            # Task by task: what the second derivative needs is kept for one at a time.
            torch.autograd.backward(query_loss / count)
            support_total += support_loss.item()
            query_total += query_loss.item()
        samples = sum(len(part) for pair in sets for part in pair)
        tables = [(of.to(leaf.device), leaf) for of, leaf in zip((rows.users, rows.campaign), leaves, strict=True)]
        return tables, support_total / count, query_total / count, samples

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

    def _losses(self, prepared: _Prepared) -> tuple[Tensor, Tensor]:
        """Before and after the inner step, of support and query."""
        support, query = prepared.sets
        alpha, order = self.config.inner_lr, self.config.second_order
        moved, support_loss = inner_step(
            self.model, prepared.parameters, alpha, support, prepared.campaign, second_order=order
        )
        prediction = predict(self.model, moved, query[0], prepared.campaign)
        return support_loss, binary_cross_entropy(prediction, query[1])

    def _adapted_prediction(self, task: Task, support: Samples, query: Samples) -> tuple[Tensor, Tensor]:
        (encoded,) = self._encode([task], [(support, query)], None)
        rows = OccurringRows.of(self.model, [users for users, _ in encoded.sets], encoded.campaign)
        prepared = self._prepare(encoded, rows, copied_rows(self.model, rows))
        alpha, support_set = self.config.inner_lr, prepared.sets[0]
        moved, _ = inner_step(
            self.model, prepared.parameters, alpha, support_set, prepared.campaign, second_order=False
        )
        with torch.no_grad():
            return predict(self.model, moved, prepared.sets[1][0], prepared.campaign)

    def _encode(
        self, tasks: Sequence[Task], sets: Sequence[tuple[Samples, Samples]], rng: np.random.Generator | None
    ) -> list[_Encoded]:
        """All users are read at once; with `rng`, some ids are dropped to unknown."""
        everyone = [samples for pair in sets for samples in pair]
        columns = self.pool.take(np.concatenate([samples.rows for samples in everyone]))
        ends = np.cumsum([len(samples) for samples in everyone]).tolist()
        users = [
            self.model.users.batch(columns.slice(end - len(s), end)) for s, end in zip(everyone, ends, strict=True)
        ]
        result = []
        for number, task in enumerate(tasks):
            campaign = self.model.campaigns.batch(task.features)
            pair = users[2 * number : 2 * number + 2]
            if rng is None:
                campaign = self.model.campaigns.with_untrained_unknown(campaign, self.trained_campaign_rows)
            else:
                campaign = self.model.campaigns.with_unknown(campaign, self.config.campaign_id_dropout, rng)
                pair = [self.model.users.with_unknown(batch, self.config.user_id_dropout, rng) for batch in pair]
            labels = [torch.from_numpy(samples.labels) for samples in sets[number]]
            result.append(_Encoded(list(zip(pair, labels, strict=True)), campaign))
        return result

    def _prepare(self, encoded: _Encoded, rows: OccurringRows, leaves: tuple[Tensor, Tensor]) -> _Prepared:
        """A campaign's own rows of `leaves`, which hold `rows` of the tables: it moves no others."""
        model = self.model
        device = model.user_embedding.device
        own = OccurringRows.of(model, [users for users, _ in encoded.sets], encoded.campaign)
        users = model.users.relative_to(own.users, *(batch for batch, _ in encoded.sets))
        (campaign,) = model.campaigns.relative_to(own.campaign, encoded.campaign)
        found = torch.searchsorted(rows.users, own.users), torch.searchsorted(rows.campaign, own.campaign)
        start = [leaf.index_select(0, index.to(device)) for leaf, index in zip(leaves, found, strict=True)]
        return _Prepared(
            [(b.to(device), labels.to(device)) for b, (_, labels) in zip(users, encoded.sets, strict=True)],
            campaign.to(device),
            campaign_parameters(model, *start),
        )


@dataclass(frozen=True)
class _Encoded:
    """Support and query, each users and labels, and the campaign; all index the whole tables."""

    sets: list[tuple[FeatureBatch, Tensor]]
    campaign: FeatureBatch


@dataclass(frozen=True)
class _Prepared:
    """The same, indexing the campaign's own rows of the tables, which are among its `parameters`."""

    sets: list[tuple[FeatureBatch, Tensor]]
    campaign: FeatureBatch
    parameters: Parameters
