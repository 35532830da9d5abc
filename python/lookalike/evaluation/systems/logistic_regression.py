"""LR: a logistic regression of each campaign by itself on one-hot features; nothing is learnt offline.

Knows the baseline of that name; its rates of the online stage are the inverse strengths of the penalty.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence

import numpy as np

from lookalike.evaluation.systems.system import History, Ranking, Rates, SeededCampaign, Spent, Tick
from lookalike.model.baselines.logistic_regression import LogisticRegression
from lookalike.pool.snapshot import Pool


class OneStageRegression:
    """The row `lr`; see `System`."""

    key = "lr"
    title = "LR"
    offline_rates: Sequence[float] = (0.0,)
    online_rates: Sequence[float] = (0.1, 0.01, 0.03, 0.3, 1.0)

    def __init__(self) -> None:
        self._pool: Pool | None = None

    def pretrain(self, history: History, samples: int, rates: Rates, *, seed: int, tick: Tick) -> Spent:
        """Keeps the pool, where features come from."""
        self._pool = history.pool
        return Spent(seconds=0.0, samples=0)

    def customise(
        self, campaigns: Sequence[SeededCampaign], rates: Rates, *, seed: int, tick: Tick
    ) -> Iterator[Ranking]:
        """Fits and scores one campaign after another; `rates.online` is C."""
        assert self._pool is not None, "pretrain comes first"
        for number, campaign in enumerate(campaigns):
            tick(number, len(campaigns))
            began = time.perf_counter()
            model = LogisticRegression(self._pool.schema, c=rates.online)
            model.fit(self._pool.take(campaign.seeds.rows), campaign.seeds.labels.astype(np.int8))
            seconds = time.perf_counter() - began
            scores = model.score(self._pool.take(campaign.candidates))
            yield Ranking(scores, seconds, samples=len(campaign.seeds) * model.iterations)
        tick(len(campaigns), len(campaigns))
