"""Adaptation by gradient steps, as published: as many epochs as held-out seeds ask for.

Knows the inner loop; knows nothing of pools.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from lookalike.config import AdaptationConfig
from lookalike.evaluation.metrics import auc
from lookalike.model.features import FeatureBatch
from lookalike.model.metaheac import CAMPAIGN_TABLE, USER_TABLE, MetaHeac, binary_cross_entropy
from lookalike.model.one_hot import one_hot
from lookalike.schema import EncodedColumns
from lookalike.training.adapted import Adapted, HeldOut, Ticker
from lookalike.training.inner import OccurringRows, Parameters, campaign_parameters, copied_rows, predict
from lookalike.training.ridge import fit_ridge
from lookalike.training.tasks import Samples


def fine_tune(
    general: MetaHeac,
    users: EncodedColumns,
    campaign: EncodedColumns,
    samples: Samples,
    folds: Sequence[tuple[Samples, Samples]],
    config: AdaptationConfig,
    *,
    rows: npt.NDArray[np.int64],
    random_seed: int,
    keep_folds: bool,
    progress: Callable[[int, int], None] | None,
    cancelled: Callable[[], bool] | None,
) -> Adapted:
    """Move all parameters of `general` for one campaign.

    Args:
        samples, folds: all samples, and parts of them (trained on, held out); they index `users`.
        rows: `[users]` pool rows of `users`.
    """
    steps = [max(1, round(len(part) / config.batch_size)) for part in [*[train for train, _ in folds], samples]]
    ticker = Ticker(config.max_epochs * sum(steps), progress, cancelled)

    def learner(part: int, train: Samples, test: Samples | None) -> _Learner:
        rng = np.random.default_rng([random_seed, part])
        return _Learner(general, users, campaign, train, test, config, rng, ticker.poll)

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


def _choose_epochs(
    learners: list[_Learner], config: AdaptationConfig, ticker: Ticker, *, keep: bool
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


class _Learner:
    """A campaign's parameters and the optimiser that moves them over one set of samples, which are rows of `users`."""

    def __init__(
        self,
        general: MetaHeac,
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
        self.rows = OccurringRows.of(general, encoded, batch)
        self.campaign = general.campaigns.relative_to(self.rows.campaign, batch)[0].to(self.device)
        self.parameters: Parameters = {
            name: p.detach().clone().requires_grad_()
            for name, p in campaign_parameters(general, *copied_rows(general, self.rows)).items()
        }
        self.optimizer = _optimizer(self.parameters, config)
        self.ridge: Tensor | None = None
        if general.config.wide and config.ridge > 0:
            ids = one_hot(general.users.schema, users.take(train.rows))
            weights = fit_ridge(ids, train.labels, np.zeros(len(train)), config.ridge, poll=poll)
            self.ridge = torch.from_numpy(weights).float()[self.rows.users].to(self.device)
        self.kept: Parameters | None = None

    def _encode(self, samples: Samples) -> FeatureBatch:
        return self.general.users.batch(self.users.take(samples.rows))

    def _predict(self, parameters: Parameters, samples: Samples) -> tuple[Tensor, Tensor]:
        users = self.general.users.relative_to(self.rows.users, self._encode(samples))[0].to(self.device)
        return predict(self.general, parameters, users, self.campaign)

    def _result(self) -> Parameters:
        """The campaign's parameters as they will be used: with the regression in the linear term."""
        parameters = {name: p.detach() for name, p in self.parameters.items()}
        if self.ridge is not None:
            table = parameters[USER_TABLE].clone()
            table[:, -1] += self.ridge
            parameters[USER_TABLE] = table
        return parameters

    def epoch(self, ticker: Ticker) -> float:
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
        seeds = np.sort(rows[self.held_out.interested])
        return HeldOut(self._whole(self.kept), seeds, np.sort(rows[self.train.rows]))

    def customised(self) -> MetaHeac:
        """The whole model as it is now."""
        return self._whole(self._result())

    def _whole(self, parameters: Parameters) -> MetaHeac:
        """With general rows where no sample of this campaign touched them."""
        model = self.general.copy().cpu()
        moved = {name: p.cpu() for name, p in parameters.items()}
        state = {**model.state_dict(), **moved}
        state[USER_TABLE] = model.user_embedding.detach().index_copy(0, self.rows.users, moved[USER_TABLE])
        state[CAMPAIGN_TABLE] = model.campaign_embedding.detach().index_copy(
            0, self.rows.campaign, moved[CAMPAIGN_TABLE]
        )
        model.load_state_dict(state)
        return model


def _optimizer(parameters: Parameters, config: AdaptationConfig) -> torch.optim.Optimizer:
    tables = [parameters[USER_TABLE], parameters[CAMPAIGN_TABLE]]
    dense = [p for n, p in parameters.items() if n not in (USER_TABLE, CAMPAIGN_TABLE)]
    groups: list[dict[str, Any]] = [{"params": dense}, {"params": tables, "lr": config.embedding_lr}]
    return torch.optim.Adam(groups, lr=config.lr)
