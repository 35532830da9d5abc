"""Adaptation: from the general model and a campaign's seeds to its customised model (paper section 3.5, online stage).

How long to adapt is decided by the seeds themselves: on folds of them held out. Knows the inner loop and the pool.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from lookalike.config import AdaptationConfig
from lookalike.dataset.sampling import sample_rows
from lookalike.errors import Cancelled, EmptySeeds
from lookalike.evaluation.metrics import auc
from lookalike.model.features import FeatureBatch
from lookalike.model.metaheac import CAMPAIGN_TABLE, USER_TABLE, MetaHeac, binary_cross_entropy
from lookalike.pool.snapshot import Pool
from lookalike.schema import EncodedColumns
from lookalike.training.checkpoint import Checkpoint
from lookalike.training.inner import OccurringRows, Parameters, campaign_parameters, predict
from lookalike.training.tasks import Samples


@dataclass(frozen=True)
class Adapted:
    """A customised model and how it came about.

    Attributes:
        model: the general model with this campaign's parameters, on the CPU.
        best_epoch: epochs of the final fit; 0 means that the seeds were better served by the general model.
        samples: seeds and negatives together.
        folds: held-out folds that chose `best_epoch`.
        held_out_auc: mean AUC on held-out seeds after `best_epoch` epochs, None without folds.
        general_auc: the same before the first epoch.
        history: mean held-out AUC and training loss by epoch.
    """

    model: MetaHeac
    best_epoch: int
    samples: int
    folds: int
    held_out_auc: float | None
    general_auc: float | None
    history: tuple[dict[str, float], ...]


def adapt(
    checkpoint: Checkpoint,
    pool: Pool,
    campaign: EncodedColumns,
    seeds: npt.NDArray[np.int64],
    config: AdaptationConfig,
    *,
    random_seed: int = 0,
    device: torch.device | None = None,
    progress: Callable[[int, int], None] | None = None,
    cancelled: Callable[[], bool] | None = None,
) -> Adapted:
    """Fine-tune the general model on a campaign's seeds and sampled negatives.

    Args:
        campaign: the campaign's encoded features, one row.
        seeds: pool rows of the seed users, each once.
        progress: called with (steps done, most steps there can be), often enough to be a heartbeat.

    Raises:
        EmptySeeds: fewer seeds than `config.min_seeds`, or no user is left to be a negative. Cancelled.
    """
    if len(seeds) < config.min_seeds:
        raise EmptySeeds(
            f"{len(seeds)} of the seeds are in the pool; give at least {config.min_seeds} that are "
            "(adaptation.min_seeds)",
            field="seeds",
        )
    rng = np.random.default_rng(random_seed)
    samples = _with_negatives(seeds, pool.num_users, config.negatives_per_seed, rng)
    fold_count = _fold_count(len(seeds), config)
    folds = _folds(samples, fold_count, rng)
    steps = [max(1, round(len(part) / config.batch_size)) for part in [*[train for train, _ in folds], samples]]
    ticker = _Ticker(config.max_epochs * sum(steps), progress, cancelled)
    place = device or torch.device("cpu")
    learners = [
        _Learner(checkpoint, pool, campaign, train, test, config, place, np.random.default_rng([random_seed, 1 + i]))
        for i, (train, test) in enumerate(folds)
    ]
    best_epoch, history = _choose_epochs(learners, config, ticker) if learners else (config.max_epochs, [])
    final = _Learner(checkpoint, pool, campaign, samples, None, config, place, np.random.default_rng([random_seed, 0]))
    for _ in range(best_epoch):
        final.epoch(ticker)
    ticker.finish()
    return Adapted(
        model=final.customised(),
        best_epoch=best_epoch,
        samples=len(samples),
        folds=len(folds),
        held_out_auc=history[best_epoch]["held_out_auc"] if history else None,
        general_auc=history[0]["held_out_auc"] if history else None,
        history=tuple(history),
    )


def _with_negatives(seeds: npt.NDArray[np.int64], num_users: int, per_seed: int, rng: np.random.Generator) -> Samples:
    available = num_users - len(seeds)
    if available < 1:
        raise EmptySeeds("every user of the pool is a seed; nobody is left to tell them from", field="seeds")
    negatives = sample_rows(num_users, min(per_seed * len(seeds), available), seeds, rng)
    return Samples(
        np.concatenate([seeds, negatives]),
        np.concatenate([np.ones(len(seeds), np.float32), np.zeros(len(negatives), np.float32)]),
    ).shuffled(rng)


def _fold_count(seeds: int, config: AdaptationConfig) -> int:
    """Few held-out seeds judge badly, so small campaigns are split more often; large ones need one look."""
    held_out = max(1.0, seeds * config.held_out_seeds)
    most = round(1 / config.held_out_seeds)
    return int(np.clip(np.ceil(config.enough_held_out_seeds / held_out), 1, most))


def _folds(samples: Samples, count: int, rng: np.random.Generator) -> list[tuple[Samples, Samples]]:
    """`count` of the stratified splits into (train, held out)."""
    most = 5
    part = np.empty(len(samples), np.int64)
    for label in (0, 1):
        index = np.flatnonzero(samples.labels == label)
        part[index] = rng.permutation(np.arange(len(index)) % most)
    return [(samples.take(np.flatnonzero(part != i)), samples.take(np.flatnonzero(part == i))) for i in range(count)]


def _choose_epochs(
    learners: list[_Learner], config: AdaptationConfig, ticker: _Ticker
) -> tuple[int, list[dict[str, float]]]:
    """All folds advance together, so that a bad start stops them all early."""
    history = [{"epoch": 0.0, "held_out_auc": float(np.mean([learner.held_out_auc() for learner in learners]))}]
    best = 0
    for epoch in range(1, config.max_epochs + 1):
        loss = float(np.mean([learner.epoch(ticker) for learner in learners]))
        value = float(np.mean([learner.held_out_auc() for learner in learners]))
        history.append({"epoch": float(epoch), "held_out_auc": value, "loss": loss})
        if value > history[best]["held_out_auc"]:
            best = epoch
        elif epoch - best >= config.patience:
            break
    return best, history


class _Ticker:
    """Counts steps, reports them, and stops the work when asked to."""

    def __init__(
        self, total: int, progress: Callable[[int, int], None] | None, cancelled: Callable[[], bool] | None
    ) -> None:
        self.done = 0
        self.total = total
        self._progress = progress
        self._cancelled = cancelled

    def tick(self) -> None:
        if self._cancelled is not None and self._cancelled():
            raise Cancelled("the expansion was cancelled while adapting")
        self.done += 1
        if self._progress is not None:
            self._progress(min(self.done, self.total), self.total)

    def finish(self) -> None:
        """Early stopping leaves steps undone; the stage is complete all the same."""
        if self._progress is not None:
            self._progress(self.total, self.total)


class _Learner:
    """A campaign's parameters and the optimiser that moves them over one set of samples."""

    def __init__(
        self,
        checkpoint: Checkpoint,
        pool: Pool,
        campaign: EncodedColumns,
        train: Samples,
        held_out: Samples | None,
        config: AdaptationConfig,
        device: torch.device,
        rng: np.random.Generator,
    ) -> None:
        self.general = checkpoint.model if device.type == "cpu" else copy.deepcopy(checkpoint.model).to(device)
        self.pool = pool
        self.train = train
        self.held_out = held_out
        self.config = config
        self.device = device
        self.rng = rng
        batch = self.general.campaigns.batch(campaign)
        users = [self._encode(s) for s in (train, held_out) if s is not None]
        self.rows = OccurringRows.of(users, batch)
        self.campaign = batch.relative_to(self.rows.campaign).to(device)
        self.parameters: Parameters = {
            name: p.detach().clone().requires_grad_()
            for name, p in campaign_parameters(self.general, self.rows).items()
        }
        self.optimizer = _optimizer(self.parameters, checkpoint, self.rows, config)

    def _encode(self, samples: Samples) -> FeatureBatch:
        return self.general.users.batch(self.pool.take(samples.rows))

    def _predict(self, samples: Samples) -> tuple[Tensor, Tensor]:
        users = self._encode(samples).relative_to(self.rows.users).to(self.device)
        return predict(self.general, self.parameters, users, self.campaign)

    def epoch(self, ticker: _Ticker) -> float:
        """One pass over the training samples in a new order; returns its mean loss."""
        losses = []
        for batch in self.train.shuffled(self.rng).batches(self.config.batch_size):
            ticker.tick()
            labels = torch.from_numpy(batch.labels).to(self.device)
            loss = binary_cross_entropy(self._predict(batch), labels)
            self.optimizer.zero_grad()
            torch.autograd.backward(loss)
            self.optimizer.step()
            losses.append(loss.item())
        return float(np.mean(losses))

    @torch.no_grad()
    def held_out_auc(self) -> float:
        """AUC on the held-out samples."""
        assert self.held_out is not None
        scores = []
        for batch in self.held_out.batches(8192):
            log_p, log_not_p = self._predict(batch)
            scores.append((log_p - log_not_p).cpu().numpy())
        return auc(self.held_out.labels.astype(np.int8), np.concatenate(scores))

    def customised(self) -> MetaHeac:
        """The whole model: general rows where no sample of this campaign touched them."""
        model = copy.deepcopy(self.general).cpu()
        moved = {name: p.detach().cpu() for name, p in self.parameters.items()}
        state = {**model.state_dict(), **moved}
        state[USER_TABLE] = model.user_embedding.detach().index_copy(0, self.rows.users, moved[USER_TABLE])
        state[CAMPAIGN_TABLE] = model.campaign_embedding.detach().index_copy(
            0, self.rows.campaign, moved[CAMPAIGN_TABLE]
        )
        model.load_state_dict(state)
        return model


def _optimizer(
    parameters: Parameters, checkpoint: Checkpoint, rows: OccurringRows, config: AdaptationConfig
) -> torch.optim.Optimizer:
    if config.optimizer == "adam":
        tables = [parameters[USER_TABLE], parameters[CAMPAIGN_TABLE]]
        dense = [p for n, p in parameters.items() if n not in (USER_TABLE, CAMPAIGN_TABLE)]
        groups: list[dict[str, Any]] = [{"params": dense}, {"params": tables, "lr": config.embedding_lr}]
        return torch.optim.Adam(groups, lr=config.lr)
    with torch.no_grad():
        rates = {n: config.rate_scale * rate for n, rate in checkpoint.rates.of(rows).items()}
    return _RatedDescent(parameters, rates)


class _RatedDescent(torch.optim.Optimizer):
    """The inner loop's plain gradient step with its own rates, as the general model was trained to be moved."""

    def __init__(self, parameters: Parameters, rates: Parameters) -> None:
        groups = [{"params": [p], "rate": rates[n].to(p.device)} for n, p in parameters.items()]
        super().__init__(groups, {})

    @torch.no_grad()
    def step(self, closure: None = None) -> None:  # type: ignore[override]  # noqa: ARG002  the base's signature
        for group in self.param_groups:
            for parameter in group["params"]:
                if parameter.grad is not None:
                    parameter.sub_(group["rate"] * parameter.grad)
