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
from lookalike.training.inner import InnerRates, OccurringRows, Parameters, campaign_parameters, predict
from lookalike.training.ridge import fit_ridge
from lookalike.training.tasks import Samples


@dataclass(frozen=True)
class HeldOut:
    """A model customised without some of the seeds, which can be judged by them.

    Attributes:
        model: as it was after `best_epoch` epochs, on the CPU.
        seeds: pool rows it was not trained on, ascending.
        trained: pool rows it was trained on, seeds and negatives, ascending.
    """

    model: MetaHeac
    seeds: npt.NDArray[np.int64]
    trained: npt.NDArray[np.int64]


@dataclass(frozen=True)
class Adapted:
    """A customised model and how it came about.

    Attributes:
        model: the general model with this campaign's parameters, on the CPU.
        best_epoch: epochs of the final fit; 0 means that the seeds were better served by the general model.
        samples: seeds and negatives together.
        folds: held-out folds that chose `best_epoch`.
        held_out_auc: mean AUC on held-out seeds after `best_epoch` epochs.
        general_auc: the same before the first epoch.
        history: mean held-out AUC and training loss by epoch.
        held_out: the models of the folds, if asked for; no seed is held out twice.
    """

    model: MetaHeac
    best_epoch: int
    samples: int
    folds: int
    held_out_auc: float
    general_auc: float
    history: tuple[dict[str, float], ...]
    held_out: tuple[HeldOut, ...] = ()


def adapt(
    checkpoint: Checkpoint,
    pool: Pool,
    campaign: EncodedColumns,
    seeds: npt.NDArray[np.int64],
    config: AdaptationConfig,
    *,
    random_seed: int = 0,
    device: torch.device | None = None,
    keep_folds: bool = False,
    progress: Callable[[int, int], None] | None = None,
    cancelled: Callable[[], bool] | None = None,
) -> Adapted:
    """Fine-tune the general model on a campaign's seeds and sampled negatives.

    Args:
        campaign: the campaign's encoded features, one row.
        seeds: pool rows of the seed users, each once.
        keep_folds: give back the models of the folds, too; the customised model is the same.
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
    samples = _with_negatives(seeds, pool.num_users, config, rng)
    rows = samples.rows
    users = pool.take(rows)  # once: the pool may lie on a disk, and every epoch asks for each of them
    samples = Samples(np.arange(len(samples)), samples.labels)  # from here on, rows are those of `users`
    folds = _folds(samples, _fold_count(len(seeds), config), config.parts, rng)
    steps = [max(1, round(len(part) / config.batch_size)) for part in [*[train for train, _ in folds], samples]]
    ticker = _Ticker(config.max_epochs * sum(steps), progress, cancelled)
    # A copy of our own: calling a module under other parameters swaps them in place for the time of the call, so
    # campaigns adapting on several threads must not share one.
    general = copy.deepcopy(checkpoint.model).to(device or torch.device("cpu"))
    rates = copy.deepcopy(checkpoint.rates)

    def learner(part: int, train: Samples, test: Samples | None) -> _Learner:
        return _Learner(
            general,
            rates,
            users,
            campaign,
            train,
            test,
            config,
            np.random.default_rng([random_seed, part]),
            ticker.poll,
        )

    learners = [learner(1 + part, train, test) for part, (train, test) in enumerate(folds)]
    best_epoch, history = _choose_epochs(learners, config, ticker, keep=keep_folds)
    final = learner(0, samples, None)
    for _ in range(best_epoch):
        final.epoch(ticker)
    ticker.finish()
    return Adapted(
        model=final.customised(),
        best_epoch=best_epoch,
        samples=len(samples),
        folds=len(folds),
        held_out_auc=history[best_epoch]["held_out_auc"],
        general_auc=history[0]["held_out_auc"],
        history=tuple(history),
        held_out=tuple(one.held_out_model(rows) for one in learners) if keep_folds else (),
    )


def _with_negatives(
    seeds: npt.NDArray[np.int64], num_users: int, config: AdaptationConfig, rng: np.random.Generator
) -> Samples:
    available = num_users - len(seeds)
    if available < config.parts:
        raise EmptySeeds("(nearly) every user of the pool is a seed; nobody is left to tell them from", field="seeds")
    negatives = sample_rows(num_users, min(config.negatives_per_seed * len(seeds), available), seeds, rng)
    return Samples(
        np.concatenate([seeds, negatives]),
        np.concatenate([np.ones(len(seeds), np.float32), np.zeros(len(negatives), np.float32)]),
    ).shuffled(rng)


def _fold_count(seeds: int, config: AdaptationConfig) -> int:
    """Few held-out seeds judge badly, so small campaigns are split more often; large ones need one look."""
    held_out = max(1.0, seeds / config.parts)
    return int(np.clip(np.ceil(config.enough_held_out_seeds / held_out), 1, config.parts))


def _folds(samples: Samples, count: int, parts: int, rng: np.random.Generator) -> list[tuple[Samples, Samples]]:
    """`count` of the `parts` stratified splits into (train, held out)."""
    part = np.empty(len(samples), np.int64)
    for label in (0, 1):
        index = np.flatnonzero(samples.labels == label)
        part[index] = rng.permutation(np.arange(len(index)) % parts)
    return [(samples.take(np.flatnonzero(part != i)), samples.take(np.flatnonzero(part == i))) for i in range(count)]


def _choose_epochs(
    learners: list[_Learner], config: AdaptationConfig, ticker: _Ticker, *, keep: bool
) -> tuple[int, list[dict[str, float]]]:
    """All folds advance together, so that a bad start stops them all early."""
    history = [{"epoch": 0.0, "held_out_auc": float(np.mean([learner.held_out_auc() for learner in learners]))}]
    best = 0
    for learner in learners if keep else ():
        learner.keep()
    for epoch in range(1, config.max_epochs + 1):
        loss = float(np.mean([learner.epoch(ticker) for learner in learners]))
        value = float(np.mean([learner.held_out_auc() for learner in learners]))
        history.append({"epoch": float(epoch), "held_out_auc": value, "loss": loss})
        if value > history[best]["held_out_auc"]:
            best = epoch
            for learner in learners if keep else ():
                learner.keep()
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

    def poll(self) -> None:
        """Stop if asked to."""
        if self._cancelled is not None and self._cancelled():
            raise Cancelled("the expansion was cancelled while adapting")

    def tick(self) -> None:
        """Count one step."""
        self.poll()
        self.done += 1
        if self._progress is not None:
            self._progress(min(self.done, self.total), self.total)

    def finish(self) -> None:
        """Early stopping leaves steps undone; the stage is complete all the same."""
        if self._progress is not None:
            self._progress(self.total, self.total)


class _Learner:
    """A campaign's parameters and the optimiser that moves them over one set of samples, which are rows of `users`."""

    def __init__(
        self,
        general: MetaHeac,
        rates: InnerRates,
        users: EncodedColumns,
        campaign: EncodedColumns,
        train: Samples,
        held_out: Samples | None,
        config: AdaptationConfig,
        rng: np.random.Generator,
        poll: Callable[[], None],
    ) -> None:
        self.general = general
        self.device = general.user_embedding.device
        self.users = users
        self.train = train
        self.held_out = held_out
        self.config = config
        self.rng = rng
        batch = self.general.campaigns.batch(campaign)
        encoded = [self._encode(s) for s in (train, held_out) if s is not None]
        self.rows = OccurringRows.of(encoded, batch)
        self.campaign = batch.relative_to(self.rows.campaign).to(self.device)
        self.parameters: Parameters = {
            name: p.detach().clone().requires_grad_()
            for name, p in campaign_parameters(self.general, self.rows).items()
        }
        self.optimizer = _optimizer(self.parameters, rates, self.rows, config)
        self.ridge: Tensor | None = None
        if general.config.wide and config.ridge > 0:
            self.ridge = fit_ridge(
                encoded[0].relative_to(self.rows.users),
                torch.from_numpy(train.labels),
                len(self.rows.users),
                config.ridge,
                poll=poll,
            ).to(self.device)
        self.kept: Parameters | None = None

    def _encode(self, samples: Samples) -> FeatureBatch:
        return self.general.users.batch(self.users.take(samples.rows))

    def _predict(self, parameters: Parameters, samples: Samples) -> tuple[Tensor, Tensor]:
        users = self._encode(samples).relative_to(self.rows.users).to(self.device)
        return predict(self.general, parameters, users, self.campaign)

    def _result(self) -> Parameters:
        """The campaign's parameters as they will be used: with the regression in the linear term."""
        parameters = {name: p.detach() for name, p in self.parameters.items()}
        if self.ridge is not None:
            table = parameters[USER_TABLE].clone()
            table[:, -1] += self.ridge
            parameters[USER_TABLE] = table
        return parameters

    def epoch(self, ticker: _Ticker) -> float:
        """One pass over the training samples in a new order; returns its mean loss."""
        losses = []
        for batch in self.train.shuffled(self.rng).batches(self.config.batch_size):
            ticker.tick()
            labels = torch.from_numpy(batch.labels).to(self.device)
            loss = binary_cross_entropy(self._predict(self.parameters, batch), labels)
            self.optimizer.zero_grad()
            torch.autograd.backward(loss)
            self.optimizer.step()
            losses.append(loss.item())
        return float(np.mean(losses))

    @torch.no_grad()
    def held_out_auc(self) -> float:
        """AUC on the held-out samples."""
        assert self.held_out is not None
        scores, parameters = [], self._result()
        for batch in self.held_out.batches(8192):
            log_p, log_not_p = self._predict(parameters, batch)
            scores.append((log_p - log_not_p).cpu().numpy())
        every = np.concatenate(scores)
        if not np.isfinite(every).all():
            return 0.0  # diverged: worse than anything, so an earlier epoch is chosen
        return auc(self.held_out.labels.astype(np.int8), every)

    def keep(self) -> None:
        """Remember the parameters as they are now, for `held_out_model`."""
        self.kept = {name: p.cpu().clone() for name, p in self._result().items()}

    def held_out_model(self, rows: npt.NDArray[np.int64]) -> HeldOut:
        """The model as it was kept; `rows` are the pool rows of the users that samples index."""
        assert self.held_out is not None
        assert self.kept is not None
        seeds = self.held_out.rows[self.held_out.labels == 1]
        return HeldOut(self._whole(self.kept), np.sort(rows[seeds]), np.sort(rows[self.train.rows]))

    def customised(self) -> MetaHeac:
        """The whole model as it is now."""
        return self._whole(self._result())

    def _whole(self, parameters: Parameters) -> MetaHeac:
        """With general rows where no sample of this campaign touched them."""
        model = copy.deepcopy(self.general).cpu()
        moved = {name: p.cpu() for name, p in parameters.items()}
        state = {**model.state_dict(), **moved}
        state[USER_TABLE] = model.user_embedding.detach().index_copy(0, self.rows.users, moved[USER_TABLE])
        state[CAMPAIGN_TABLE] = model.campaign_embedding.detach().index_copy(
            0, self.rows.campaign, moved[CAMPAIGN_TABLE]
        )
        model.load_state_dict(state)
        return model


def _optimizer(
    parameters: Parameters, rates: InnerRates, rows: OccurringRows, config: AdaptationConfig
) -> torch.optim.Optimizer:
    if config.optimizer == "adam":
        tables = [parameters[USER_TABLE], parameters[CAMPAIGN_TABLE]]
        dense = [p for n, p in parameters.items() if n not in (USER_TABLE, CAMPAIGN_TABLE)]
        groups: list[dict[str, Any]] = [{"params": dense}, {"params": tables, "lr": config.embedding_lr}]
        return torch.optim.Adam(groups, lr=config.lr)
    with torch.no_grad():
        scaled = {n: config.rate_scale * rate for n, rate in rates.of(rows).items()}
    return _RatedDescent(parameters, scaled)


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
