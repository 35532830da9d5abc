"""The tests of the results table, by hand, against scipy, and by simulation."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from lookalike.errors import InvalidInput
from lookalike.evaluation.comparison import (
    FEWEST_CAMPAIGNS,
    RESAMPLES,
    holm,
    mean_interval,
    paired_bootstrap,
    paired_t_test,
)


def simulated(rng: np.random.Generator, campaigns: int, effect: float) -> tuple[npt.NDArray[np.float64], list[int]]:
    """Differences of campaigns in one to three runs each; what a campaign is like shows in all of its runs."""
    runs = rng.integers(1, 4, campaigns)
    numbers = np.repeat(np.arange(campaigns), runs)
    own = rng.exponential(1.0, campaigns) - 1.0  # skewed, as differences of AUC are
    return effect + own[numbers] + rng.normal(0, 0.3, len(numbers)), numbers.tolist()


# ---------------------------------------------------------------------------------------------------------- bootstrap


def test_what_is_counted_by_hand() -> None:
    # Campaign 7 in two runs, which pull it below zero together; 9 is level.
    found = paired_bootstrap(np.array([0.1, -0.3, 0.2, 0.0, 0.05]), [7, 7, 8, 9, 6])
    assert found.mean == pytest.approx(0.01)
    assert (found.wins, found.ties, found.losses, found.campaigns) == (2, 1, 1, 4)


@pytest.mark.parametrize("campaigns", [1, 2, FEWEST_CAMPAIGNS - 1])
def test_a_handful_of_campaigns_has_no_interval_and_no_p(campaigns: int) -> None:
    # In how many runs they were makes them no more.
    values, numbers = np.full(3 * campaigns, 0.01), np.tile(np.arange(campaigns), 3)
    found = paired_bootstrap(values, numbers)
    assert (found.mean, found.wins) == (pytest.approx(0.01), campaigns)
    assert (found.low, found.high, found.p) == (None, None, None)
    assert mean_interval(values, numbers) == (pytest.approx(0.01), None, None)


def test_the_fewest_campaigns_that_are_judged_are_judged_about_right() -> None:
    """What the bound is for: p is below .05 in no more than twice 5% of cases without a difference."""
    rng = np.random.default_rng(10)
    found = [paired_bootstrap(rng.exponential(size=FEWEST_CAMPAIGNS) - 1, range(FEWEST_CAMPAIGNS)) for _ in range(600)]
    assert all(one.low is not None and one.high is not None and one.low < one.mean < one.high for one in found)
    # The true share is 9%; two errors of 1.2%.
    assert np.mean([one.p is not None and one.p < 0.05 for one in found]) <= 0.115


def test_two_systems_that_are_the_same_do_not_differ() -> None:
    found = paired_bootstrap(np.zeros(30), range(30))
    assert (found.mean, found.low, found.high, found.p) == (0.0, 0.0, 0.0, 1.0)
    assert (found.wins, found.ties, found.losses) == (0, 30, 0)


def test_ours_minus_theirs_is_the_negative_of_theirs_minus_ours() -> None:
    differences, campaigns = simulated(np.random.default_rng(1), 40, 0.2)
    one, other = paired_bootstrap(differences, campaigns), paired_bootstrap(-differences, campaigns)
    assert other.low is not None
    assert other.high is not None
    assert (one.mean, one.low, one.high, one.p) == pytest.approx((-other.mean, -other.high, -other.low, other.p))
    assert (one.wins, one.losses) == (other.losses, other.wins)


def test_the_same_every_time_and_whatever_the_order() -> None:
    differences, campaigns = simulated(np.random.default_rng(2), 40, 0.2)
    order = np.random.default_rng(3).permutation(len(differences))
    one, other = (
        paired_bootstrap(differences, campaigns),
        paired_bootstrap(differences[order], np.array(campaigns)[order]),
    )
    assert (one.low, one.high, one.p) == pytest.approx((other.low, other.high, other.p))


def test_the_interval_is_the_normal_one_where_campaigns_are_many() -> None:
    values = np.random.default_rng(4).normal(0.04, 1.0, 2000)
    found = paired_bootstrap(values, range(2000))
    error = values.std() / np.sqrt(2000)
    assert found.low == pytest.approx(values.mean() - 1.96 * error, abs=0.1 * error)
    assert found.high == pytest.approx(values.mean() + 1.96 * error, abs=0.1 * error)
    assert found.p == pytest.approx(2 * stats.norm.sf(values.mean() / error), rel=0.3)


def test_a_campaign_told_five_times_is_no_more_evidence_than_once() -> None:
    values = np.random.default_rng(5).normal(0.2, 1.0, 60)
    once = paired_bootstrap(values, range(60))
    often = paired_bootstrap(np.tile(values, 5), np.tile(np.arange(60), 5))
    assert (often.low, often.high, often.p) == pytest.approx((once.low, once.high, once.p))


def test_95_of_100_intervals_hold_the_truth() -> None:
    rng = np.random.default_rng(6)
    held = 0
    for _ in range(400):
        found = paired_bootstrap(*simulated(rng, 60, 0.1))
        assert found.low is not None
        assert found.high is not None
        held += found.low <= 0.1 <= found.high
    # The true share is some 93%: the percentile bootstrap is a little narrow for 60 skewed ones. Three errors of 1.3%.
    assert 0.89 <= held / 400 <= 0.98


def test_without_a_difference_p_is_as_often_small_as_it_says() -> None:
    rng = np.random.default_rng(7)
    found = np.array([paired_bootstrap(rng.normal(size=80), range(80)).p for _ in range(400)])
    assert stats.kstest(found, "uniform").pvalue > 0.01
    assert 0.02 <= np.mean(found < 0.05) <= 0.09


def test_a_difference_is_found() -> None:
    assert paired_bootstrap(*simulated(np.random.default_rng(8), 100, 1.0)).p == pytest.approx(2 / (RESAMPLES + 1))


def test_the_interval_of_a_mean_is_the_difference_s_from_nothing() -> None:
    values, campaigns = simulated(np.random.default_rng(9), 30, 0.5)
    found = paired_bootstrap(values, campaigns)
    assert mean_interval(values, campaigns) == (found.mean, found.low, found.high)


def test_what_cannot_be_paired_is_refused() -> None:
    for values, campaigns in ((np.zeros(0), []), (np.zeros(3), [1, 2])):
        with pytest.raises(InvalidInput):
            paired_bootstrap(values, campaigns)


# ------------------------------------------------------------------------------------------------------------- t-test


def test_the_t_test_by_hand() -> None:
    # Differences 1, 2, 3: mean 2, sd 1, t = 2 * sqrt(3) at two degrees of freedom.
    assert paired_t_test([2, 4, 6], [1, 2, 3]) == pytest.approx(2 * stats.t.sf(2 * np.sqrt(3), 2))


def test_the_t_test_needs_two_runs_that_vary() -> None:
    assert paired_t_test([0.8], [0.7]) is None
    assert paired_t_test([0.8, 0.7], [0.7, 0.6]) is None
    assert paired_t_test([], []) is None
    with pytest.raises(InvalidInput):
        paired_t_test([1, 2], [1])


# --------------------------------------------------------------------------------------------------------------- Holm


def test_holm_by_hand() -> None:
    # Sorted .01, .02, .03, .04 times 4, 3, 2, 1: .04, .06, .06, .04, and none below the one before it.
    assert holm([0.04, 0.01, 0.03, 0.02]) == pytest.approx([0.06, 0.04, 0.06, 0.06])
    assert holm([0.9, 0.8]) == [1.0, 1.0]
    assert holm([]) == []


def test_what_was_not_tested_is_no_part_of_the_family() -> None:
    four = holm([0.04, 0.01, 0.03, 0.02])
    assert holm([None, 0.04, 0.01, None, 0.03, 0.02]) == [None, *four[:2], None, *four[2:]]
    assert holm([None, None]) == [None, None]


@given(st.lists(st.floats(0, 1), min_size=1, max_size=12))
def test_holm_is_between_none_and_bonferroni_and_keeps_the_order(p_values: list[float]) -> None:
    adjusted = [p for p in holm(p_values) if p is not None]
    for p, found in zip(p_values, adjusted, strict=True):
        assert p <= found <= min(1.0, len(p_values) * p) + 1e-12
    assert [p for _, p in sorted(zip(p_values, adjusted, strict=True))] == sorted(adjusted)
    assert min(adjusted) == pytest.approx(min(1.0, len(p_values) * min(p_values)))
