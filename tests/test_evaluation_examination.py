"""One system put to an exam: what it sees, how its rates are chosen, how its rankings are judged."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest
from fake_system import FakeSystem, fakes

from lookalike.dataset.layout import CampaignId, Dataset
from lookalike.errors import Cancelled, InternalError, InvalidInput
from lookalike.evaluation.examination import examine, tune
from lookalike.evaluation.metrics import evaluate, pooled_auc
from lookalike.evaluation.protocol import Exam, Protocol
from lookalike.evaluation.systems.logistic_regression import OneStageRegression
from lookalike.evaluation.systems.system import Rates, SeededCampaign, Tick
from lookalike.pool.snapshot import Pool

Scores = npt.NDArray[np.float64]


@pytest.fixture(scope="module")
def protocol(sample_dataset: Path, sample_pool: Path) -> Protocol:
    return Protocol(Dataset.open(sample_dataset), Pool.open(sample_pool))


@pytest.fixture(scope="module")
def exam(protocol: Protocol) -> Exam:
    return protocol.exam(0)


def ticks(what: str, note: str) -> Tick:
    return lambda done, total: None


class Oracle:
    """Ranks as well as the rates are near to `best`: it knows the answers, as no system does."""

    def __init__(self, exam: Exam, best: Rates) -> None:
        self.best = best
        self.labels: dict[CampaignId, npt.NDArray[np.int8]] = {
            campaign.campaign_id: answers.labels for campaign, answers in zip(exam.campaigns, exam.answers, strict=True)
        }

    def __call__(self, campaign: SeededCampaign, rates: Rates) -> Scores:
        noise = np.random.default_rng(0).normal(size=len(campaign.candidates))
        off = abs(np.log(rates.offline / self.best.offline)) + abs(np.log(rates.online / self.best.online))
        scores: Scores = self.labels[campaign.campaign_id] * 2.0 / (1 + off) + noise
        return scores


def test_every_ranking_is_judged_by_the_later_labels(exam: Exam) -> None:
    oracle = Oracle(exam, Rates(1, 1))
    system = FakeSystem(rank=oracle, losses=(0.5, 0.25))
    grades = examine(system, exam, Rates(1, 1), 100, seed=3, ticks=ticks)
    rankings = []
    for campaign, answers, found in zip(exam.campaigns, exam.answers, grades.campaigns, strict=True):
        scores = oracle(campaign, Rates(1, 1))
        expected = evaluate(answers.labels, scores, answers.user_ids)
        assert (found.auc, found.precision, found.recall) == (expected.auc, expected.precision, expected.recall)
        assert found.campaign_id == campaign.campaign_id
        assert found.seeds + found.negatives == len(campaign.seeds) == found.samples
        assert (found.users, found.seconds, found.losses) == (len(campaign.candidates), 0.5, (0.5, 0.25))
        rankings.append((answers.labels, scores))
    assert grades.mean_auc == pytest.approx(np.mean([found.auc for found in grades.campaigns]))
    assert grades.pooled_auc == pooled_auc(rankings)
    assert [(seen.stage, seen.seed, seen.samples) for seen in system.seen] == [
        ("pretrain", 3, 100),
        ("customise", 3, 0),
    ]
    assert (grades.offline.seconds, grades.offline.samples) == (2.0, 100)


def test_candidates_that_were_among_the_campaign_s_samples_are_counted(exam: Exam) -> None:
    first = exam.campaigns[0]
    seen = np.append(first.candidates[:-3], first.seeds.rows[:3])
    repeated = SeededCampaign(first.campaign_id, first.features, first.seeds, seen)
    altered = Exam(exam.history, (repeated, *exam.campaigns[1:]), exam.answers, 0)
    grades = examine(FakeSystem(), altered, Rates(), 1, seed=0, ticks=ticks)
    already = int(np.isin(first.candidates[:-3], first.seeds.rows).sum())
    assert grades.campaigns[0].repeated == already + 3


def test_a_system_that_ranks_other_users_is_a_defect(exam: Exam) -> None:
    short = FakeSystem(rank=lambda campaign, rates: np.zeros(3))
    with pytest.raises(InternalError, match=f"Fake, campaign {exam.campaigns[0].campaign_id}"):
        examine(short, exam, Rates(), 1, seed=0, ticks=ticks)


def test_a_system_that_diverges_is_named(exam: Exam) -> None:
    diverged = FakeSystem(rank=lambda campaign, rates: np.full(len(campaign.candidates), np.nan))
    with pytest.raises(InvalidInput, match=r"Fake, campaign \d+: .*NaN"):
        examine(diverged, exam, Rates(), 1, seed=0, ticks=ticks)


RATES = (0.001, 0.01, 0.1)


def test_the_rates_that_rank_best_are_chosen(protocol: Protocol) -> None:
    exam = protocol.tuning_exam
    oracle = Oracle(exam, Rates(offline=0.01, online=0.1))
    make, seen = fakes(rank=oracle, offline_rates=RATES, online_rates=RATES)
    rates, trials = tune(make, exam, 1000, seed=0, ticks=ticks)
    assert rates == Rates(offline=0.01, online=0.1)
    assert [(trial.stage, trial.rate) for trial in trials] == [(s, r) for s in ("offline", "online") for r in RATES]
    # A quarter of the budget for each offline rate, at the default online rate; then all of it once.
    trained = [(call.samples, call.rates) for call in seen if call.stage == "pretrain"]
    assert trained == [(250, Rates(rate, 0.001)) for rate in RATES] + [(1000, Rates(0.01, 0.001))]
    tried = [call.rates for call in seen if call.stage == "customise"]
    assert tried == [Rates(rate, 0.001) for rate in RATES] + [Rates(0.01, rate) for rate in RATES]


def test_tuning_sees_no_test_campaign_of_any_run(protocol: Protocol) -> None:
    make, seen = fakes(offline_rates=RATES, online_rates=RATES)
    tune(make, protocol.tuning_exam, 1000, seed=0, ticks=ticks)
    ranked = frozenset[CampaignId]().union(*(call.campaigns for call in seen if call.stage == "customise"))
    learnt = frozenset[CampaignId]().union(*(call.campaigns for call in seen if call.stage == "pretrain"))
    tested = [{campaign.campaign_id for campaign in protocol.exam(run).campaigns} for run in range(5)]
    assert ranked
    assert learnt
    assert not ranked & set().union(*tested)
    assert not learnt & tested[0]
    assert not learnt & ranked


def test_nothing_to_tune_is_not_tuned(protocol: Protocol) -> None:
    make, seen = fakes(offline_rates=(0.5,), online_rates=(0.25,))
    assert tune(make, protocol.tuning_exam, 1000, seed=0, ticks=ticks) == (Rates(0.5, 0.25), ())
    assert seen == []


def test_the_first_of_equal_rates_is_chosen(protocol: Protocol) -> None:
    make, _ = fakes(online_rates=(0.02, 0.01, 0.1))
    rates, _ = tune(make, protocol.tuning_exam, 1, seed=0, ticks=ticks)
    assert rates == Rates(0.001, 0.02)


def test_a_rate_that_diverges_is_not_chosen_and_all_of_them_are_an_error(protocol: Protocol) -> None:
    exam = protocol.tuning_exam
    limit = 0.05

    def fragile(campaign: SeededCampaign, rates: Rates) -> Scores:
        return np.full(len(campaign.candidates), np.nan if rates.online > limit else 0.0)

    make, _ = fakes(rank=fragile, online_rates=(0.1, 0.01))
    rates, trials = tune(make, exam, 1, seed=0, ticks=ticks)
    assert rates.online == 0.01
    assert trials[0].auc is None
    assert "NaN" in trials[0].failure
    make, _ = fakes(rank=fragile, online_rates=(0.1, 0.2))
    with pytest.raises(InvalidInput, match="diverges at every online rate"):
        tune(make, exam, 1, seed=0, ticks=ticks)


def test_a_heartbeat_that_raises_ends_it(exam: Exam) -> None:
    def stop(done: int, total: int) -> None:
        raise Cancelled("enough")

    with pytest.raises(Cancelled):
        examine(FakeSystem(), exam, Rates(), 1, seed=0, ticks=lambda what, note: stop)


# ----------------------------------------------------------------------------------------------------------------- LR


def test_the_regression_learns_each_campaign_from_its_seeds(exam: Exam) -> None:
    grades = examine(OneStageRegression(), exam, Rates(0, 0.1), 1000, seed=0, ticks=ticks)
    assert grades.mean_auc > 0.6
    assert (grades.offline.seconds, grades.offline.samples) == (0.0, 0)
    assert all(found.samples % (found.seeds + found.negatives) == 0 for found in grades.campaigns)
    weaker = examine(OneStageRegression(), exam, Rates(0, 1e-6), 1000, seed=0, ticks=ticks)
    assert weaker.campaigns != grades.campaigns
