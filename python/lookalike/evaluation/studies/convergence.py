"""How systems adapt, step by step: training loss, and AUC of the later audience (the paper's Figure 3a and 3b).

Knows the contract of stepwise systems. What it measures chooses nothing.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from itertools import islice

import numpy as np

from lookalike.errors import InternalError
from lookalike.evaluation.metrics import auc
from lookalike.evaluation.observations import Convergence, Followed, rounded
from lookalike.evaluation.protocol import Answers
from lookalike.evaluation.studies.trained import RUN, Trained
from lookalike.evaluation.systems.registry import OURS
from lookalike.evaluation.systems.system import Rates, SeededCampaign, Stepwise, Underway

# Those of the paper's figure, and ours.
SYSTEMS = ("mlp", "hubble", "mmoe", "metaheac", OURS)
CAMPAIGNS = 10
# On `ml1m` an epoch of the median campaign is three steps: some thirty epochs.
STEPS = 100
# Every step while much happens, and every fifth then.
LOOKED_AT = (*range(10), *range(10, STEPS + 1, 5))
SETTINGS = {"campaigns": CAMPAIGNS, "steps": STEPS}


def measure(trained: Trained) -> Convergence:
    """Follow the systems through the same random test campaigns.

    Raises:
        InternalError: a system cannot be followed. Whatever else systems raise. Cancelled.
    """
    exam = trained.exam
    pairs = [(exam.campaigns[index], exam.answers[index]) for index in trained.some(CAMPAIGNS)]
    return Convergence(
        origin=trained.bench.origin(),
        settings=SETTINGS,
        campaigns=tuple(campaign.campaign_id for campaign, _ in pairs),
        steps=LOOKED_AT,
        systems=tuple(_followed(trained, key, pairs) for key in SYSTEMS),
    )


def _followed(trained: Trained, key: str, pairs: list[tuple[SeededCampaign, Answers]]) -> Followed:
    system, rates = trained.get(key)
    if not isinstance(system, Stepwise):
        raise InternalError(f"{system.title} cannot be followed step by step")
    tick = trained.tick(f"convergence, {key}")
    curves = []
    for number, (campaign, answers) in enumerate(pairs):
        curves.append(_curves(system, campaign, answers, rates, partial(tick, number, len(pairs))))
        tick(number + 1, len(pairs))
    losses, aucs, ended = zip(*curves, strict=True)
    rankings = system.customise([campaign for campaign, _ in pairs], rates, seed=RUN, tick=tick)
    stopped = [auc(a.labels, r.scores) for (_, a), r in zip(pairs, rankings, strict=True)]
    return Followed(
        key=key,
        title=system.title,
        losses=rounded(np.array(losses)),
        aucs=rounded(np.array(aucs)),
        stopped=rounded(np.array([stopped]))[0],
        ended=ended,
    )


def _curves(
    system: Stepwise, campaign: SeededCampaign, answers: Answers, rates: Rates, poll: Callable[[], None]
) -> tuple[list[float], list[float], int | None]:
    """Losses and AUCs at the steps that are looked at, and the step it ended with, if it did."""
    seen: list[tuple[float, float]] = []
    last, state = 0, None
    for step, underway in enumerate(islice(system.follow(campaign, rates, seed=RUN), STEPS + 1)):
        poll()
        last, state = step, underway
        if step in LOOKED_AT:
            seen.append(_look(underway, campaign, answers))
    assert state is not None
    if len(seen) < len(LOOKED_AT):
        seen += [_look(state, campaign, answers)] * (len(LOOKED_AT) - len(seen))
    losses, aucs = zip(*seen, strict=True)
    return list(losses), list(aucs), last if last < STEPS else None


def _look(underway: Underway, campaign: SeededCampaign, answers: Answers) -> tuple[float, float]:
    log_odds, labels = underway.score(underway.train.rows), underway.train.labels
    loss = float((np.logaddexp(0, log_odds) - labels * log_odds).mean())
    return loss, auc(answers.labels, underway.score(campaign.candidates))
