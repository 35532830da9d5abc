"""Whether an insight foretells what an audience then finds: recall among held-out seeds, and among who came later.

Like is compared with like. Both are the share of interested users within the best K of the same eligible users (all of
the pool but the seeds), and both by the very code that serves. The first ranks seeds by models that were fitted without
them; the second counts who turned out to be interested among the members of the audience that is then made. Recall
among a campaign's labelled candidates, which the table has, is another thing: there one in twenty is interested.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Mapping
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
import torch

from lookalike.dataset.layout import Dataset
from lookalike.errors import InternalError, InvalidInput
from lookalike.evaluation.metrics import TOP_SHARE
from lookalike.evaluation.observations import Calibration, Forecast
from lookalike.evaluation.protocol import Answers
from lookalike.evaluation.studies.trained import Trained
from lookalike.evaluation.systems.lookalike import Lookalike
from lookalike.evaluation.systems.registry import OURS
from lookalike.evaluation.systems.system import SeededCampaign, Tick
from lookalike.expander import Expander
from lookalike.retrieval.estimate import Estimate, share_of
from lookalike.training.checkpoint import Checkpoint

# An insight and an expansion of each take a second or so.
CAMPAIGNS = 100
SETTINGS: Mapping[str, float] = {"campaigns": CAMPAIGNS, "share": TOP_SHARE}


def measure(trained: Trained) -> Calibration:
    """Foretell and expand for test campaigns, at random where there are more than `CAMPAIGNS`.

    Raises:
        InvalidInput: none has enough seeds. Whatever else `Expander` raises. Cancelled.
    """
    system, _ = trained.get(OURS)
    if not isinstance(system, Lookalike):
        raise InternalError(f"{system.title} makes no audiences")
    exam, bench = trained.exam, trained.bench
    expander = _expander(system.checkpoint, trained)
    chosen = trained.some(CAMPAIGNS)
    count = len(chosen)
    tick = trained.tick("calibration")
    forecasts = []
    for number, index in enumerate(chosen):
        tick(number, count)
        poll = partial(_poll, tick, number, count)
        found = _forecast(expander, bench.dataset, exam.campaigns[index], exam.answers[index], poll)
        if found is not None:
            forecasts.append(found)
    tick(count, count)
    if not forecasts:
        least = expander.config.adaptation.min_seeds
        raise InvalidInput(f"no test campaign has {least} seeds and somebody who came later", field="samples.parquet")
    return Calibration(
        origin=bench.origin(),
        settings=SETTINGS,
        share=TOP_SHARE,
        forecasts=tuple(forecasts),
        left_out=count - len(forecasts),
    )


def _expander(checkpoint: Checkpoint, trained: Trained) -> Expander:
    scoring = replace(checkpoint.config.scoring, device="cpu", threads=torch.get_num_threads())
    return Expander(checkpoint, trained.exam.history.pool, replace(checkpoint.config, scoring=scoring))


def _forecast(
    expander: Expander, dataset: Dataset, campaign: SeededCampaign, answers: Answers, poll: Callable[[], bool]
) -> Forecast | None:
    """None: there are too few seeds to be expanded, or nobody but seeds came later."""
    pool = expander.pool
    seeds = campaign.seeds.interested
    later = np.setdiff1d(campaign.candidates[answers.labels > 0], seeds)
    eligible = pool.num_users - len(seeds)
    k = int(TOP_SHARE * eligible)
    if len(seeds) < expander.config.adaptation.min_seeds or not len(later) or k < 1:
        return None
    name, features = str(campaign.campaign_id), dataset.campaign_features(campaign.campaign_id)
    ids = pool.user_ids(seeds)
    insight = expander.insight(campaign=name, seeds=ids, sizes=(k,), features=features, cancelled=poll)
    with tempfile.TemporaryDirectory() as folder:
        audience = expander.expand(
            campaign=name, seeds=ids, k=k, features=features, output=Path(folder) / "audience", cancelled=poll
        )
        members = pool.find(audience.members(0, k)["user_id"].combine_chunks())
    found = share_of(int(np.isin(later, members).sum()), len(later))
    return Forecast(
        campaign_id=campaign.campaign_id,
        eligible=eligible,
        k=k,
        held_out=insight.held_out_seeds,
        foretold=_rounded(insight.asked[0].recall),
        later=len(later),
        found=_rounded(found),
    )


def _poll(tick: Tick, done: int, total: int) -> bool:
    """For the expander, which would say that an expansion was cancelled, where we know better."""
    tick(done, total)
    return False


def _rounded(estimate: Estimate) -> Estimate:
    return Estimate(*(round(value, 6) for value in (estimate.value, estimate.low, estimate.high)))
