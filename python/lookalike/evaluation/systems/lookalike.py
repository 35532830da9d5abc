"""Ours: the default recipe, or another configuration of it, through the very code that serves.

Knows both stages of training.
"""

from __future__ import annotations

import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch

from lookalike.config import Config
from lookalike.evaluation.systems.system import History, Ranking, Rates, SeededCampaign, Spent, Tick
from lookalike.training.adapt import customise
from lookalike.training.adapted import Adapted
from lookalike.training.checkpoint import TrainingState
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
            yield Ranking(self._scores(adapted, campaign), seconds, adapted.samples * (adapted.folds + 1))
            tick(number + 1, len(campaigns))

    @torch.no_grad()
    def _scores(self, adapted: Adapted, campaign: SeededCampaign) -> npt.NDArray[np.float64]:
        features = adapted.model.campaigns.batch(campaign.features)
        scores = []
        for start in range(0, len(campaign.candidates), _BATCH):
            rows: Rows = campaign.candidates[start : start + _BATCH]
            users = adapted.model.users.batch(self._history.pool.take(rows))
            log_p, log_not_p = adapted.model(users, features)
            scores.append((log_p - log_not_p).double().numpy())
        return np.concatenate(scores)
