"""Training of the general model from a dataset, by either method: budget, validation, resumption, the checkpoint.

Knows both trainers; knows nothing of serving.
"""

from __future__ import annotations

import math
import time
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Protocol

import numpy as np
import torch
from torch import nn

from lookalike.config import Config
from lookalike.dataset.layout import Dataset
from lookalike.errors import AlreadyExists, Cancelled, InvalidInput
from lookalike.model.metaheac import MetaHeac
from lookalike.pool.snapshot import Pool
from lookalike.schema import FeatureSchema
from lookalike.training.campaign_head import HeadPrior
from lookalike.training.checkpoint import Checkpoint, TrainingState, new_prior, save_checkpoint, to_plain
from lookalike.training.joint import JointTrainer
from lookalike.training.meta import Trainer
from lookalike.training.tasks import Task, base_rate, digest, hold_out, load_tasks

# Steps that a reported loss is the mean of, at most: with joint training an epoch may have tens of thousands.
MOST_LOSSES = 100
# What a crash may cost between two validations, which may be hours apart.
SAVE_SECONDS = 600.0


@dataclass(frozen=True)
class TrainingProgress:
    """After each step. Losses are means over the last steps; `validation_auc` is the last one measured."""

    step: int
    samples: int
    total_samples: int
    support_loss: float
    query_loss: float
    validation_auc: float | None


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
    from where `cancelled` stopped it, or else from where it was saved last, some ten minutes before at most.

    The checkpoint holds the parameters of the best validation, not of the last step. Its metric `best_validation_auc`
    is thus the highest of several and a little too high: it compares runs; what a model is worth, the benchmark tells.

    Raises:
        InvalidInput: the dataset has no usable training campaign, or training diverged. Cancelled: `cancelled()` turned
            true; the state is kept. AlreadyExists: `output` exists.
    """
    if output.exists():
        raise AlreadyExists(f"{output} exists; choose another name or remove it", field="output")
    settings = config.training
    _check(config)  # before minutes of reading
    tasks = load_tasks(dataset, pool, dataset.campaign_schema(), "train")
    kept, held_out = hold_out(tasks, settings.validation_campaigns, np.random.default_rng(settings.seed))
    run = new_run(pool, dataset.campaign_schema(), kept, config)
    identity: list[object] = [
        to_plain(config.model),
        to_plain(config.joint),
        to_plain(replace(settings, max_seconds=0.0)),
    ]  # a longer run may go on
    identity += [pool.fingerprint, run.campaign_schema.fingerprint, digest(tasks)]
    state = TrainingState.open(
        Path(f"{output}.training"), run.modules, run.trainer.optimizers, identity=identity, resume=resume
    )
    go(run, state, held_out, progress, cancelled)
    checkpoint = run.checkpoint(
        {
            "steps": state.step,
            "samples": state.samples,
            "seconds": round(state.seconds, 3),
            "training_campaigns": len(kept),
            "validation_campaigns": len(held_out),
            "best_validation_auc": state.best_auc if math.isfinite(state.best_auc) else None,
        }
    )
    save_checkpoint(checkpoint, output)
    state.remove()
    return checkpoint


class GeneralTrainer(Protocol):
    """What trains a general model, by whichever method."""

    optimizers: dict[str, torch.optim.Optimizer]

    def step(self, number: int, done: float) -> tuple[float, float, int]:
        """One update, `done` of the budget being spent: losses before and after adapting, and samples seen."""
        ...

    def validate(self, held_out: list[Task]) -> float:
        """Mean AUC on what campaigns never trained on brought later, after adapting to their seeds."""
        ...

    def finish(self, held_out: list[Task], poll: Callable[[], None]) -> None:
        """Once, with the best parameters in place: what is chosen by campaigns never trained on.

        `poll` is called often; it raises to stop.
        """
        ...


@dataclass(frozen=True)
class Run:
    """A general model in the making.

    Attributes:
        modules: all that is learnt, by name.
        total: samples to be seen.
        validate_every: steps.
    """

    config: Config
    pool: Pool
    campaign_schema: FeatureSchema
    modules: Mapping[str, nn.Module]
    trainer: GeneralTrainer
    total: int
    validate_every: int

    def checkpoint(self, metrics: Mapping[str, object]) -> Checkpoint:
        """The general model as it is now."""
        model = self.modules["model"]
        assert isinstance(model, MetaHeac)
        prior = self.modules.get("prior")
        assert prior is None or isinstance(prior, HeadPrior)
        return Checkpoint(
            model=model,
            prior=prior,
            user_schema=self.pool.schema,
            campaign_schema=self.campaign_schema,
            config=self.config,
            metrics=metrics,
        )


def new_run(pool: Pool, campaign_schema: FeatureSchema, tasks: list[Task], config: Config) -> Run:
    """An untrained model and its trainer.

    Raises:
        InvalidInput: the budget is empty, or the sections of the configuration do not fit together.
    """
    _check(config)
    settings = config.training
    torch.manual_seed(settings.seed)
    model = MetaHeac(pool.schema, campaign_schema, config.model)
    start_at_base_rate(model, tasks)
    joint = settings.method == "joint"
    samples = sum(len(task.samples) for task in tasks)
    total = settings.max_samples or round((config.joint.epochs if joint else settings.epochs) * samples)
    if total < 1:
        raise InvalidInput("training.epochs and training.max_samples leave nothing to train", field="training.epochs")
    if joint:
        prior = new_prior(model, config)
        trainer = JointTrainer(model, prior, config.joint, settings, pool, tasks, total)
        modules: dict[str, nn.Module] = {"model": model, "prior": prior, "own": trainer.own}
        return Run(config, pool, campaign_schema, modules, trainer, total, trainer.steps_per_epoch)
    meta = Trainer(model, settings, pool, tasks)
    return Run(config, pool, campaign_schema, {"model": model}, meta, total, settings.validate_every)


def _check(config: Config) -> None:
    joint = config.training.method == "joint"
    if config.adaptation.optimizer == "head" and not joint:
        raise InvalidInput(
            "training.method=meta finds no prior of campaigns' own weights: set adaptation.optimizer to adam",
            field="adaptation.optimizer",
        )
    if joint and (not config.model.wide or config.model.literal_average):
        raise InvalidInput(
            "training.method=joint needs model.wide=true and model.literal_average=false", field="training.method"
        )


def start_at_base_rate(model: MetaHeac, tasks: Sequence[Task]) -> None:
    """Let the critics start at the share of positives: else the inner step spends itself on learning it first."""
    share = base_rate(tasks)
    with torch.no_grad():
        model.critics.bias.fill_(math.log(share / (1 - share)))


def go(
    run: Run,
    state: TrainingState,
    held_out: list[Task],
    progress: Callable[[TrainingProgress], None] | None = None,
    cancelled: Callable[[], bool] | None = None,
) -> None:
    """Step until the budget is spent or validation stops gaining; leaves the best parameters in the model.

    Raises:
        InvalidInput: training diverged. Cancelled: `cancelled()` turned true; the state is saved.
    """
    settings = run.config.training

    def poll(save: Callable[[], None] = lambda: None) -> None:
        if cancelled is not None and cancelled():
            save()
            raise Cancelled("training was stopped; run it again to continue")

    started = time.monotonic() - state.seconds
    saved = state.seconds
    losses: deque[tuple[float, float]] = deque(maxlen=min(run.validate_every, MOST_LOSSES))
    report = TrainingProgress(state.step, state.samples, run.total, math.nan, math.nan, None)
    while state.samples < run.total and state.stale < settings.patience:
        poll(state.save)
        done = max(state.samples / run.total, state.seconds / settings.max_seconds if settings.max_seconds > 0 else 0.0)
        support_loss, query_loss, samples = run.trainer.step(state.step, done)
        if not math.isfinite(query_loss):
            raise InvalidInput(
                f"training diverged at step {state.step}: lower training.inner_lr or training.outer_lr, "
                "with joint training joint.lr",
                field="training.inner_lr" if settings.method == "meta" else "joint.lr",
            )
        state.step += 1
        state.samples += samples
        state.seconds = time.monotonic() - started
        losses.append((support_loss, query_loss))
        out_of_time = 0 < settings.max_seconds <= state.seconds
        validation = report.validation_auc
        if state.samples >= run.total or out_of_time or state.step % run.validate_every == 0:
            validation = run.trainer.validate(held_out)
            state.record(validation)
            state.save()
            saved = state.seconds
        elif state.seconds - saved >= SAVE_SECONDS:
            state.save()
            saved = state.seconds
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
    run.trainer.finish(held_out, poll)  # what is needed to do it again was saved by the last validation
