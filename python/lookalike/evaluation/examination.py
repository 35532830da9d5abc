"""One system put to an exam: pre-trained, customised for every campaign, its rankings judged; and its rates tuned so.

Knows exams, metrics and the contract of a system; knows nothing of files.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence

import numpy as np

from lookalike.errors import InternalError, InvalidInput
from lookalike.evaluation.metrics import evaluate, pooled_auc
from lookalike.evaluation.protocol import Answers, Exam, seed_count
from lookalike.evaluation.results import CampaignResult, Grades, Stage, Trial
from lookalike.evaluation.systems.system import Ranking, Rates, SeededCampaign, Spent, System, Tick

# An offline rate is judged after this share of the budget.
TUNING_BUDGET = 0.25

Ticks = Callable[[str, str], Tick]
"""The heartbeat of a piece of work, from what it is and a note."""


def examine(
    system: System, exam: Exam, rates: Rates, samples: int, *, seed: int, ticks: Ticks, note: str = ""
) -> Grades:
    """Both stages of a fresh system, and what its rankings are worth.

    Raises:
        InvalidInput: its scores are no numbers: it diverged. InternalError: it does not rank what it was asked to.
        Whatever else the system and `ticks` raise.
    """
    spent = system.pretrain(exam.history, samples, rates, seed=seed, tick=ticks("pre-training", note))
    return _customise(system, exam, rates, spent, seed, ticks("campaigns", note))


def tune(
    make: Callable[[], System], exam: Exam, samples: int, *, seed: int, ticks: Ticks
) -> tuple[Rates, tuple[Trial, ...]]:
    """The rates of the best mean AUC over the exam's campaigns, the first of equals, and all that was tried.

    The offline rate comes first: each by a pre-training with a quarter of the samples, adapted at the default online
    rate. Then the online rate, after one pre-training with all of them. A rate that diverges is never the best.

    Raises:
        InvalidInput: every rate of a stage diverges. Whatever else the system and `ticks` raise.
    """
    system = make()
    rates = Rates(system.offline_rates[0], system.online_rates[0])
    trials: list[Trial] = []

    def offline(rate: float) -> Grades:
        quarter = max(1, round(TUNING_BUDGET * samples))
        tried, note = Rates(rate, rates.online), f"tuning, offline rate {rate:g}"
        return examine(make(), exam, tried, quarter, seed=seed, ticks=ticks, note=note)

    if len(system.offline_rates) > 1:
        trials += [_trial("offline", rate, offline) for rate in system.offline_rates]
        rates = Rates(_best(system, trials, "offline"), rates.online)
    if len(system.online_rates) > 1:
        spent = system.pretrain(exam.history, samples, rates, seed=seed, tick=ticks("pre-training", "tuning"))

        def online(rate: float) -> Grades:
            tick = ticks("campaigns", f"tuning, online rate {rate:g}")
            return _customise(system, exam, Rates(rates.offline, rate), spent, seed, tick)

        trials += [_trial("online", rate, online) for rate in system.online_rates]
        rates = Rates(rates.offline, _best(system, trials, "online"))
    return rates, tuple(trials)


def _trial(stage: Stage, rate: float, attempt: Callable[[float], Grades]) -> Trial:
    began = time.perf_counter()
    auc, failure = None, ""
    try:
        auc = attempt(rate).mean_auc
    except InvalidInput as error:
        failure = error.message
    return Trial(stage, rate, auc, time.perf_counter() - began, failure)


def _best(system: System, trials: Sequence[Trial], stage: Stage) -> float:
    of_stage = [trial for trial in trials if trial.stage == stage]
    judged = [(trial.auc, trial.rate) for trial in of_stage if trial.auc is not None]
    if not judged:
        raise InvalidInput(
            f"{system.title} diverges at every {stage} rate; at the last: {of_stage[-1].failure}", field="systems"
        )
    return max(judged, key=lambda pair: pair[0])[1]


def _customise(system: System, exam: Exam, rates: Rates, spent: Spent, seed: int, tick: Tick) -> Grades:
    results, judged = [], []
    rankings = system.customise(exam.campaigns, rates, seed=seed, tick=tick)
    for campaign, answers, ranking in zip(exam.campaigns, exam.answers, rankings, strict=True):
        results.append(_judged(system, campaign, answers, ranking))
        judged.append((answers.labels, ranking.scores))
    return Grades(spent, tuple(results), pooled_auc(judged))


def _judged(system: System, campaign: SeededCampaign, answers: Answers, ranking: Ranking) -> CampaignResult:
    where = f"{system.title}, campaign {campaign.campaign_id}"
    if ranking.scores.shape != campaign.candidates.shape:
        raise InternalError(f"{where}: scores {ranking.scores.shape} for {campaign.candidates.shape} candidates")
    if np.isnan(ranking.scores).any():
        raise InvalidInput(f"{where}: scores hold NaN; the rates are too high", field="systems")
    measured = evaluate(answers.labels, ranking.scores, answers.user_ids)
    seeds = seed_count(campaign.seeds)
    return CampaignResult(
        campaign_id=campaign.campaign_id,
        seeds=seeds,
        negatives=len(campaign.seeds) - seeds,
        users=measured.users,
        positives=measured.positives,
        repeated=int(np.isin(campaign.candidates, campaign.seeds.rows).sum()),
        auc=measured.auc,
        precision=measured.precision,
        recall=measured.recall,
        seconds=ranking.seconds,
        samples=ranking.samples,
        losses=tuple(round(loss, 6) for loss in ranking.losses),
    )
