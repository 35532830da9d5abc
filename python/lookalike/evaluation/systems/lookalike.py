"""Ours: the default recipe, or another configuration of it, through the very code that serves.

Knows both stages of training.
"""

from __future__ import annotations

import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch

from lookalike.config import Config
from lookalike.errors import FailedPrecondition
from lookalike.evaluation.systems.system import (
    History,
    Mixture,
    Ranking,
    Rates,
    SeededCampaign,
    Spent,
    Tick,
    Underway,
)
from lookalike.model.metaheac import MetaHeac
from lookalike.schema import EncodedColumns
from lookalike.training.adapt import customise
from lookalike.training.checkpoint import Checkpoint, TrainingState
from lookalike.training.head_fit import CampaignSamples, OwnWeights, with_own_weights
from lookalike.training.pretraining import TrainingProgress, go, new_run
from lookalike.training.tasks import Rows, hold_out

_BATCH = 8192  # users scored at once


@dataclass
class Lookalike:
    """A configuration as a row of the table.

    Attributes:
        own_budget: see as many samples as the configuration asks for, not as many as the other rows.
    """

    key: str = "lookalike"
    title: str = "Lookalike (default recipe)"
    config: Config = field(default_factory=Config)
    own_budget: bool = True
    offline_rates: Sequence[float] = (0.0,)
    online_rates: Sequence[float] = (0.0,)

    def pretrain(self, history: History, samples: int, rates: Rates, *, seed: int, tick: Tick) -> Spent:
        """As `lookalike train`: a tenth of the training campaigns validates and chooses the prior."""
        began = time.perf_counter()
        training = replace(self.config.training, seed=seed)
        if not self.own_budget:
            training = replace(training, max_samples=samples)
        config = replace(self.config, training=training)
        kept, held_out = hold_out(list(history.tasks), training.validation_campaigns, np.random.default_rng(seed))
        run = new_run(history.pool, history.campaign_schema, kept, config)

        def show(progress: TrainingProgress) -> None:
            tick(min(progress.samples, progress.total_samples), progress.total_samples)

        with tempfile.TemporaryDirectory() as folder:
            state = TrainingState(Path(folder), self.key, run.modules, run.trainer.optimizers)
            go(run, state, held_out, show)
        self._history, self._checkpoint = history, run.checkpoint({})
        return Spent(time.perf_counter() - began, state.samples)

    def customise(
        self, campaigns: Sequence[SeededCampaign], rates: Rates, *, seed: int, tick: Tick
    ) -> Iterator[Ranking]:
        """As an expansion adapts, with the negatives that the campaign came with."""
        checkpoint, pool = self._checkpoint, self._history.pool
        for number, campaign in enumerate(campaigns):
            began = time.perf_counter()
            adapted = customise(
                *(checkpoint, pool, campaign.features, campaign.seeds, self.config.adaptation), random_seed=seed
            )
            seconds = time.perf_counter() - began
            scores = self._scores(adapted.model, campaign, campaign.candidates)
            yield Ranking(scores, seconds, adapted.samples * (adapted.folds + 1))
            tick(number + 1, len(campaigns))

    def follow(self, campaign: SeededCampaign, rates: Rates, *, seed: int) -> Iterator[Underway]:
        """See `Stepwise`: own weights are fitted in one go, so the steps are Newton's, each over all samples.

        Of many samples, the first step begins where a part of them has led. The last one is what single ids add, if
        they do. Where held-out seeds are better off without own weights, there is no step.

        Raises:
            FailedPrecondition: as `adapt.customise`; or the configuration adapts by gradient steps.
        """
        checkpoint, pool, settings = self.checkpoint, self._history.pool, self.config.adaptation
        if settings.optimizer != "head" or checkpoint.prior is None:
            raise FailedPrecondition(
                f"{self.title} can be followed with own weights only: set adaptation.optimizer to head", field="systems"
            )
        model, samples = checkpoint.model, campaign.seeds
        yield Underway(samples, partial(self._scores, model, campaign))
        if customise(checkpoint, pool, campaign.features, samples, settings, random_seed=seed).best_epoch == 0:
            return
        features, users = model.campaigns.batch(campaign.features), pool.take(samples.rows)
        steps: list[OwnWeights] = []
        seen = CampaignSamples(model, checkpoint.prior, users, features, samples.labels)
        seen.fit(slice(None), lambda: None, steps.append)
        for own in steps:
            yield Underway(samples, partial(self._scores, with_own_weights(model, checkpoint.prior, own), campaign))

    @torch.no_grad()
    def mixture(self, campaign: SeededCampaign, rows: Rows) -> Mixture:
        """See `Mixed`."""
        model = self.checkpoint.model
        features = model.campaigns.batch(campaign.features)
        expertise, critics = [], []
        for users in self._blocks(rows):
            seen = model.represent(model.users.batch(users))
            of_experts, of_critics = model.gates(seen.user_mean, features)
            expertise.append(model.mix(seen.hidden, of_experts).numpy())
            critics.append(of_critics.exp().numpy())
        return Mixture(np.concatenate(expertise), np.concatenate(critics))

    @property
    def checkpoint(self) -> Checkpoint:
        """What `pretrain` made, as `lookalike train` would write it."""
        return self._checkpoint

    @torch.no_grad()
    def _scores(self, model: MetaHeac, campaign: SeededCampaign, rows: Rows) -> npt.NDArray[np.float64]:
        features = model.campaigns.batch(campaign.features)
        scores = []
        for users in self._blocks(rows):
            log_p, log_not_p = model(model.users.batch(users), features)
            scores.append((log_p - log_not_p).double().numpy())
        return np.concatenate(scores)

    def _blocks(self, rows: Rows) -> Iterator[EncodedColumns]:
        for start in range(0, len(rows), _BATCH):
            yield self._history.pool.take(rows[start : start + _BATCH])
