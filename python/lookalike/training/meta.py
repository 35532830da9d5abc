"""Meta-training of the general model: Algorithm 1 of the paper over many campaigns, resumable.

Knows the inner loop, tasks and checkpoints; knows nothing of serving.
"""

from __future__ import annotations

import math
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from lookalike.config import Config, TrainingConfig
from lookalike.dataset.layout import Dataset
from lookalike.errors import AlreadyExists, Cancelled, InvalidInput
from lookalike.evaluation.metrics import auc
from lookalike.model.features import FeatureBatch
from lookalike.model.metaheac import CAMPAIGN_TABLE, USER_TABLE, MetaHeac, binary_cross_entropy
from lookalike.pool.snapshot import Pool
from lookalike.training.checkpoint import Checkpoint, TrainingState, save_checkpoint, to_plain
from lookalike.training.inner import (
    InnerRates,
    OccurringRows,
    campaign_parameters,
    dense_parameters,
    inner_step,
    predict,
)
from lookalike.training.tasks import Samples, Task, digest, hold_out, load_tasks, sampling_weights

# Rates are few and start within two orders of magnitude of right: relative steps of 5% find them in a hundred steps.
RATE_LEARNING_RATE = 0.05


@dataclass(frozen=True)
class TrainingProgress:
    """After each step. Losses are means since the last report; `validation_auc` is the last one measured."""

    step: int
    samples: int
    total_samples: int
    support_loss: float
    query_loss: float
    validation_auc: float | None


@dataclass
class Trainer:
    """The general model, its inner rates and their optimisers. `step` is one pass of Algorithm 1's loop."""

    model: MetaHeac
    config: TrainingConfig
    pool: Pool
    tasks: list[Task]
    rates: InnerRates = field(init=False)

    def __post_init__(self) -> None:
        self.rates = InnerRates(self.model, self.config.inner_lr, learned=self.config.learn_inner_rates)
        self.weights = sampling_weights(self.tasks, self.config.task_sampling)
        campaigns = [self.model.campaigns.batch(task.features) for task in self.tasks]
        self.trained_campaign_rows = torch.unique(torch.cat([batch.occurring() for batch in campaigns]))
        lr = self.config.outer_lr
        self.optimizers: dict[str, torch.optim.Optimizer] = {
            "dense": torch.optim.Adam(list(dense_parameters(self.model).values()), lr=lr),
            # Touches only the rows of a step, so that its cost does not grow with the vocabulary.
            "tables": torch.optim.SparseAdam([self.model.user_embedding, self.model.campaign_embedding], lr=lr),
        }
        if self.config.learn_inner_rates:
            self.optimizers["rates"] = torch.optim.Adam(self.rates.parameters(), lr=RATE_LEARNING_RATE)

    def step(self, number: int) -> tuple[float, float, int]:
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

    def _losses(self, prepared: _Prepared, *, second_order: bool) -> tuple[Tensor, Tensor, dict[str, Tensor]]:
        parameters = campaign_parameters(self.model, prepared.rows)
        moved, support_loss = inner_step(
            self.model,
            parameters,
            self.rates.of(prepared.rows),
            prepared.batches[0],
            prepared.campaign,
            second_order=second_order,
        )
        users, labels = prepared.batches[1]
        query_loss = binary_cross_entropy(predict(self.model, moved, users, prepared.campaign), labels)
        return support_loss, query_loss, parameters

    def _adapted_prediction(self, prepared: _Prepared) -> tuple[Tensor, Tensor]:
        parameters = campaign_parameters(self.model, prepared.rows)
        rates = self.rates.of(prepared.rows)
        moved, _ = inner_step(self.model, parameters, rates, prepared.batches[0], prepared.campaign, second_order=False)
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


def train(
    dataset: Dataset,
    pool: Pool,
    output: Path,
    config: Config,
    *,
    resume: bool = True,
    progress: Callable[[TrainingProgress], None] | None = None,
    cancelled: Callable[[], bool] | None = None,
) -> Checkpoint:
    """Train the general model on a dataset's training campaigns and write the checkpoint folder `output`.

    A run that was stopped continues from `<output>.training`, when data and configuration are the same and `resume`:
    from where `cancelled` stopped it, or else from its last validation. The checkpoint holds the parameters of the best
    validation, not of the last step.

    Raises:
        InvalidInput: the dataset has no usable training campaign, or training diverged. Cancelled: `cancelled()` turned
            true; the state is kept. AlreadyExists: `output` exists.
    """
    if output.exists():
        raise AlreadyExists(f"{output} exists; choose another name or remove it", field="output")
    settings = config.training
    campaign_schema = dataset.campaign_schema()
    tasks = load_tasks(dataset, pool, campaign_schema, "train")
    kept, held_out = hold_out(tasks, settings.validation_campaigns, np.random.default_rng(settings.seed))
    torch.manual_seed(settings.seed)
    model = MetaHeac(pool.schema, campaign_schema, config.model)
    _start_at_base_rate(model, kept)
    trainer = Trainer(model, settings, pool, kept)
    total = settings.max_samples or round(settings.epochs * sum(len(task.samples) for task in kept))
    if total < 1:
        raise InvalidInput("training.epochs and training.max_samples leave nothing to train", field="training.epochs")
    identity: list[object] = [
        to_plain(config.model),
        to_plain(replace(settings, max_seconds=0.0)),
    ]  # a longer run may go on
    identity += [pool.fingerprint, campaign_schema.fingerprint, digest(tasks)]
    state = TrainingState.open(
        Path(f"{output}.training"), model, trainer.rates, trainer.optimizers, identity=identity, resume=resume
    )
    _run(trainer, state, held_out, total, progress, cancelled)
    checkpoint = Checkpoint(
        model=model,
        rates=trainer.rates,
        user_schema=pool.schema,
        campaign_schema=campaign_schema,
        config=config,
        metrics={
            "steps": state.step,
            "samples": state.samples,
            "seconds": round(state.seconds, 3),
            "training_campaigns": len(kept),
            "validation_campaigns": len(held_out),
            "validation_auc": state.best_auc if math.isfinite(state.best_auc) else None,
        },
    )
    save_checkpoint(checkpoint, output)
    state.remove()
    return checkpoint


def _start_at_base_rate(model: MetaHeac, tasks: list[Task]) -> None:
    """Let the critics start at the share of positives: else the inner step spends itself on learning it first."""
    positives = sum(float(task.samples.labels.sum()) for task in tasks)
    share = positives / sum(len(task.samples) for task in tasks)
    with torch.no_grad():
        model.critics.bias.fill_(math.log(share / (1 - share)))


def _run(
    trainer: Trainer,
    state: TrainingState,
    held_out: list[Task],
    total: int,
    progress: Callable[[TrainingProgress], None] | None,
    cancelled: Callable[[], bool] | None,
) -> None:
    """Step until the budget is spent or validation stops gaining; leaves the best parameters in the model."""
    settings = trainer.config
    started = time.monotonic() - state.seconds
    losses: deque[tuple[float, float]] = deque(maxlen=settings.validate_every)
    report = TrainingProgress(state.step, state.samples, total, math.nan, math.nan, None)
    while state.samples < total and state.stale < settings.patience:
        if cancelled is not None and cancelled():
            state.save()
            raise Cancelled("training was stopped; run it again to continue")
        support_loss, query_loss, samples = trainer.step(state.step)
        if not math.isfinite(query_loss):
            raise InvalidInput(
                f"training diverged at step {state.step}: lower training.inner_lr or training.outer_lr",
                field="training.inner_lr",
            )
        state.step += 1
        state.samples += samples
        state.seconds = time.monotonic() - started
        losses.append((support_loss, query_loss))
        out_of_time = 0 < settings.max_seconds <= state.seconds
        done = state.samples >= total or out_of_time
        validation = report.validation_auc
        if done or state.step % settings.validate_every == 0:
            validation = trainer.validate(held_out)
            state.record(validation)
            state.save()
        mean = np.mean(losses, axis=0)
        report = replace(
            report,
            step=state.step,
            samples=state.samples,
            support_loss=float(mean[0]),
            query_loss=float(mean[1]),
            validation_auc=validation,
        )
        if progress is not None:
            progress(report)
        if out_of_time:
            break
    state.restore_best()
