"""The arithmetic of an insight against brute force, known tables and simulation: intervals, curves, verdicts."""

from __future__ import annotations

from itertools import pairwise
from statistics import NormalDist

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given
from hypothesis import strategies as st

from lookalike.retrieval.estimate import Floats, band, discoveries, divergence, mean_of, share_of, two_sided, wilson
from lookalike.retrieval.placements import Placements, UsersVariance
from lookalike.retrieval.recall_curve import MARGINS, RecallCurve
from lookalike.retrieval.receipt import SeedMatch
from lookalike.retrieval.seed_quality import (
    LEAST_COMPARED,
    LEAST_ELIGIBLE,
    FineTuning,
    SeedQuality,
    fine_tuning,
    is_mixed,
    judge,
    random_share,
)

# ---------------------------------------------------------------------------------------------------------- intervals


@pytest.mark.parametrize(
    ("hits", "total", "low", "high"),
    [(5, 10, 0.2366, 0.7634), (0, 20, 0.0, 0.1611), (20, 20, 0.8389, 1.0), (81, 263, 0.2553, 0.3662)],
)
def test_a_share_s_interval_is_wilson_s(hits: int, total: int, low: float, high: float) -> None:
    """81 of 263 is Newcombe's (1998) example."""
    share = share_of(hits, total)
    assert (share.value, share.low, share.high) == pytest.approx((hits / total, low, high), abs=1e-4)


@pytest.mark.parametrize("total", [12, 60, 150, 700])
def test_a_band_holds_the_whole_distribution_function_in_95_of_100_cases(total: int) -> None:
    rng = np.random.default_rng(total)
    low, high = band(np.arange(total + 1), total)
    samples = np.sort(rng.random((4000, total)), axis=1)
    # F(t) = t is highest above the empirical function just before a sample, and lowest at one.
    held = (low[1:] <= samples).all(axis=1) & (samples <= high[:-1]).all(axis=1)
    assert 0.935 < held.mean() < 0.965


@given(st.integers(5, 3000), st.data())
def test_a_band_is_where_the_divergence_is_small_and_wider_than_at_one_place(total: int, data: st.DataObject) -> None:
    hits = np.array([0, data.draw(st.integers(0, total)), total])
    low, high = band(hits, total)
    one_low, one_high = wilson(hits, total)
    share = hits / total
    assert np.all((low <= share) & (share <= high))
    assert np.all(high - low >= one_high - one_low)
    for end, limit in ((low, 0.0), (high, 1.0)):
        inner = end != limit
        spent = divergence(share[inner], end[inner]) * total
        assert np.all((spent > 4.4) & (spent < 6.6))


@pytest.mark.parametrize(("count", "t"), [(10, 2.262), (30, 2.045), (1000, 1.962)])
def test_a_mean_s_interval_is_student_s(count: int, t: float) -> None:
    values = np.random.default_rng(0).normal(3, 2, count)
    mean = mean_of(values)
    error = values.std(ddof=1) / np.sqrt(count)
    assert (mean.high - mean.low) / (2 * error) == pytest.approx(t, rel=0.005)
    assert mean_of(np.ones(count), least_error=0.1).low == pytest.approx(1 - 0.1 * t, rel=0.005)
    assert mean_of(values[:1]).high == np.inf


@given(st.lists(st.floats(0, 1), max_size=40), st.floats(0.001, 0.5))
def test_discoveries_are_benjamini_and_hochberg_s(p_values: list[float], rate: float) -> None:
    ascending = sorted(p_values)
    allowed = [p for rank, p in enumerate(ascending, 1) if p <= rate * rank / len(p_values)]
    expected = [bool(allowed) and p <= max(allowed) for p in p_values]
    assert discoveries(np.array(p_values), rate).tolist() == expected


def test_p_values_are_the_normal_distribution_s() -> None:
    assert two_sided(np.array([0.0, 1.959964, -2.575829])) == pytest.approx([1, 0.05, 0.01], abs=1e-6)


# -------------------------------------------------------------------------------------------------------------- curves

ranks_of_seeds = st.lists(st.integers(0, 400).map(lambda i: i / 400), min_size=10, max_size=80).map(np.array)


@given(ranks_of_seeds, st.integers(1, 5000), st.data())
def test_the_curve_is_the_share_of_seeds_within_k(ranks: Floats, population: int, data: st.DataObject) -> None:
    users = data.draw(st.integers(max(1, population // 10), population))
    curve = RecallCurve(ranks, 1 - ranks, population, users)
    sizes = curve.sizes()
    assert sizes == sorted(set(sizes))
    assert sizes[0] == curve.smallest
    assert sizes[-1] == population
    points = curve.points(sizes)
    for point in points:
        assert point.recall.value == np.mean(ranks <= point.k / population)
        assert point.general_recall == np.mean(1 - ranks <= point.k / population)
        assert point.lift.value == pytest.approx(point.recall.value * population / point.k)
        for narrow, wide in ((point.recall, point.recall_band), (point.lift, point.lift_band)):
            assert wide.low <= narrow.low <= narrow.value <= narrow.high <= wide.high
    for one, following in pairwise(points):
        assert one.recall.value <= following.recall.value
        assert one.recall.low <= following.recall.low
        assert one.recall.high <= following.recall.high
        assert one.marginal_lift >= following.marginal_lift
    last = points[-1]
    assert (last.recall.value, last.recall.low, last.recall_band.high, last.lift.value) == (1, 1, 1, 1)
    assert curve.points([10 * population]) == (last,)


@given(ranks_of_seeds.map(lambda ranks: np.maximum(ranks, 1 / 400)))
def test_the_marginal_lift_is_the_slope_of_the_least_concave_majorant(ranks: Floats) -> None:
    population = 400
    points = RecallCurve(ranks, ranks, population, population).points(range(1, population + 1))
    above = np.cumsum([point.marginal_lift for point in points]) / population
    recall = np.array([point.recall.value for point in points])
    assert np.all(above >= recall - 1e-9)
    assert above[-1] == pytest.approx(1)
    # The least: a concave function above the recall is at every place at least what any two places give.
    x = np.concatenate(([0], np.arange(1, population + 1))) / population
    y = np.concatenate(([0], recall))
    for place in (3, 57, 200, 390):
        left, right = x[:place, None], x[None, place + 1 :]
        chord = (y[:place, None] * (right - x[place]) + y[None, place + 1 :] * (x[place] - left)) / (right - left)
        assert above[place - 1] == pytest.approx(max(y[place], chord.max()))


@given(ranks_of_seeds)
def test_reach_falls_with_similarity_and_counts_users_before_a_seed(ranks: Floats) -> None:
    reach = RecallCurve(ranks, ranks, 400, 400).reach()
    assert [one.users for one in reach] == sorted(one.users for one in reach)
    ordered = np.sort(ranks)
    for one in reach:
        assert one.low <= one.users <= one.high
        # Of the seeds, as many are further down as the similarity says, or the next fewer; ties at the place aside.
        further, tied = np.mean(ordered > one.users / 400), np.mean(ordered == one.users / 400)
        assert further <= one.similarity + 1e-9
        assert further + tied >= one.similarity - 1e-9


def test_suggestions_maximise_what_is_found_beyond_what_is_asked_for() -> None:
    ranks = np.random.default_rng(1).beta(0.5, 6, 300)
    suggested = RecallCurve(ranks, ranks, 100_000, 100_000).suggestions()
    assert [one.name for one in suggested] == [name for name, _ in MARGINS]
    assert [one.point.k for one in suggested] == sorted(one.point.k for one in suggested)
    for one in suggested:
        assert one.point.lift_band.low > 1
        ordered = np.sort(ranks)
        gains = np.arange(1, 301) / 300 - one.marginal_lift * ordered
        assert one.point.k == pytest.approx(ordered[np.argmax(gains)] * 100_000, rel=0.1)


@given(ranks_of_seeds, st.sampled_from([30, 5000, 10**6]))
def test_the_last_user_of_a_suggested_audience_is_as_likely_as_is_said(ranks: Floats, population: int) -> None:
    for one in RecallCurve(ranks**3, ranks, population, population).suggestions():
        assert one.point.marginal_lift >= one.marginal_lift


def test_what_is_told_of_a_suggested_size_holds_although_the_curve_chose_it() -> None:
    """Of 60 seeds, whose scores are normal and shifted: the interval of one size fails where the choice is hard."""
    normal = NormalDist()
    pool = np.array([normal.inv_cdf((i + 0.5) / 20_000) for i in range(20_000)])
    at_one = at_all = total = 0
    for seed in range(200):
        scores = np.random.default_rng(seed).normal(0.8, 1, 60)
        ranks = 1 - np.searchsorted(pool, scores) / 20_000
        for one in RecallCurve(ranks, ranks, 10**5, 10**5).suggestions():
            truth = normal.cdf(normal.inv_cdf(one.point.share) + 0.8)
            total += 1
            at_one += one.point.recall.low <= truth <= one.point.recall.high
            at_all += one.point.recall_band.low <= truth <= one.point.recall_band.high
    assert at_one / total < 0.93
    assert at_all / total > 0.95


def test_random_seeds_are_within_the_band_of_chance_and_nothing_is_suggested() -> None:
    beyond = suggested = 0
    for seed in range(100):
        ranks = np.random.default_rng(seed).random(120)
        curve = RecallCurve(ranks, ranks, 50_000, 50_000)
        beyond += any(not p.lift_band.low <= 1 <= p.lift_band.high for p in curve.points(curve.sizes()))
        suggested += bool(curve.suggestions())
    assert beyond <= 11  # 5 of 100 by design; more than 11 have a chance of 1%
    assert suggested <= beyond


def test_a_coarse_sample_widens_the_curve_and_begins_it_later() -> None:
    ranks = np.random.default_rng(2).beta(0.4, 4, 200)
    whole = RecallCurve(ranks, ranks, 10**9, 10**9)
    sample = RecallCurve(ranks, ranks, 10**9, 1 << 21)
    assert whole.smallest == 10
    assert 40_000 < sample.smallest < 60_000
    exact, coarse = (curve.points([20_000, 10**8]) for curve in (whole, sample))
    assert coarse[0].recall.high > exact[0].recall.high
    assert coarse[1].recall.high == pytest.approx(exact[1].recall.high, abs=0.01)


# ------------------------------------------------------------------------------------------------------------ verdicts


def matched(count: int, *, duplicates: int = 0, not_in_pool: int = 0) -> SeedMatch:
    return SeedMatch(
        given=count + duplicates + not_in_pool, matched=count, duplicates=duplicates, not_in_pool=not_in_pool
    )


def genuine(count: int, auc: float = 0.9, seed: int = 0) -> Floats:
    """Ranks of seeds whose scores are normal like the pool's, but higher: the AUC's binormal model."""
    rng = np.random.default_rng(seed)
    scores = rng.normal({0.9: 1.812, 0.7: 0.742, 0.62: 0.432, 0.5: 0.0}[auc], 1, count)
    pool = np.sort(rng.normal(0, 1, 20_000))
    return 1 - np.searchsorted(pool, scores) / len(pool)


# Nothing is in doubt for the users' sake: seeds were compared with all of them.
ALL = UsersVariance(users=20_000, customised=0.0, general=0.0, difference=0.0)


def tuned(ranks: Floats) -> FineTuning:
    return fine_tuning(ranks, np.full(len(ranks), 0.5), ALL, epochs=2, regression=True)


def judged(match: SeedMatch, ranks: Floats, passing: int | None = None) -> SeedQuality:
    return judge(match, ranks, tuned(ranks), compared=ALL.users, passing=passing)


def codes(quality: SeedQuality) -> dict[str, str]:
    return {reason.code: reason.severity for reason in quality.reasons}


def test_good_seeds_have_no_fault() -> None:
    quality = judged(matched(400), genuine(400))
    assert (quality.verdict, quality.reasons) == ("good", ())
    assert quality.random_share.value < 0.15


@pytest.mark.parametrize(
    ("match", "ranks", "verdict", "reasons"),
    [
        (matched(20), genuine(20), "poor", {"TOO_FEW_SEEDS": "poor"}),
        (matched(60), genuine(60), "usable", {"TOO_FEW_SEEDS": "usable"}),
        (matched(300, duplicates=100), genuine(300), "good", {"DUPLICATES": "note"}),
        (matched(300, not_in_pool=200), genuine(300), "usable", {"NOT_IN_POOL": "usable"}),
        (matched(300, not_in_pool=3000), genuine(300), "poor", {"NOT_IN_POOL": "poor"}),
        (matched(300), genuine(300, 0.5), "poor", {"NOT_DISTINCTIVE": "poor"}),
        (matched(400), genuine(400, 0.62), "usable", {"WEAKLY_DISTINCTIVE": "usable"}),
    ],
)
def test_every_fault_is_told_with_its_number_and_what_to_do(
    match: SeedMatch, ranks: Floats, verdict: str, reasons: dict[str, str]
) -> None:
    quality = judged(match, ranks)
    assert quality.verdict == verdict
    assert codes(quality) == reasons
    for reason in quality.reasons:
        assert any(character.isdigit() for character in reason.text)
        assert reason.fix
        assert reason.value != reason.limit


def test_a_filter_that_few_seeds_pass_is_told() -> None:
    quality = judged(matched(400), genuine(400), passing=LEAST_ELIGIBLE - 1)
    assert codes(quality) == {"FEW_SEEDS_PASS_THE_FILTER": "note"}
    assert codes(judged(matched(400), genuine(400), passing=LEAST_ELIGIBLE)) == {}


def contaminated(share: float, count: int = 500, seed: int = 0) -> npt.NDArray[np.float64]:
    strangers = round(share * count)
    rng = np.random.default_rng([seed, 1])
    return np.concatenate([genuine(count - strangers, seed=seed), rng.random(strangers)])


@pytest.mark.parametrize("share", [0.0, 0.2, 0.5, 0.8])
def test_strangers_among_the_seeds_are_estimated(share: float) -> None:
    """The bound is near: genuine seeds of AUC 0.9 add 7 points at most, and the interval is 95%'s."""
    missed = 0
    for seed in range(40):
        found = random_share(contaminated(share, seed=seed))
        missed += not found.low <= share + 0.07 * (1 - share) <= found.high
    assert missed <= 6


@pytest.mark.parametrize(("share", "verdict"), [(0.0, "good"), (0.5, "usable"), (0.7, "poor")])
def test_contaminated_seeds_are_told(share: float, verdict: str) -> None:
    quality = judged(matched(500), contaminated(share))
    assert quality.verdict == verdict
    assert ("CONTAMINATED" in codes(quality)) == (share > 0)


def test_weak_seeds_of_one_kind_are_not_called_contaminated() -> None:
    """Nearly half of them rank in the lower half: no fewer than with strangers."""
    called = sum(is_mixed(genuine(300, 0.7, seed)) for seed in range(100))
    assert called <= 6
    assert sum(is_mixed(contaminated(0.5, 300, seed)) for seed in range(100)) >= 90


@pytest.mark.parametrize(
    ("shift", "outcome"), [(-0.1, "helped"), (0.1, "hurt"), (0.0, "no difference")], ids=["better", "worse", "alike"]
)
def test_whether_fine_tuning_helped(shift: float, outcome: str) -> None:
    rng = np.random.default_rng(0)
    general = rng.uniform(0.2, 0.6, 150)
    found = fine_tuning(general + shift + rng.normal(0, 0.05, 150), general, ALL, epochs=3, regression=False)
    assert found.outcome == outcome
    assert found.difference.value == pytest.approx(found.auc.value - found.general_auc.value)
    assert found.difference.low <= -shift <= found.difference.high
    assert ("adaptation.max_epochs=0" in found.text) == (outcome == "hurt")


@pytest.mark.parametrize("count", [12, 40, 300])
def test_the_paired_difference_is_covered(count: int) -> None:
    """Skewed ranks, as there are; Student's interval of few is a little short, and said to be of 95%."""
    rng = np.random.default_rng(count)
    covered = 0
    for _ in range(600):
        general = rng.beta(1, 3, count)
        ranks = general * rng.beta(3, 2, count)  # on average 0.6 of it
        difference = fine_tuning(ranks, general, ALL, epochs=1, regression=True).difference
        covered += difference.low <= 0.25 * 0.4 <= difference.high
    assert covered / 600 > 0.91


def before(some: Floats, others: Floats) -> Floats:
    """Of `others`, the share with a higher score than each of `some`: no ties."""
    return 1 - np.searchsorted(np.sort(others), some) / len(others)


@pytest.mark.parametrize(
    ("held_out", "users", "population", "folds"),
    [(240, 940, 4700, 4), (400, 800, 4000, 1), (900, 100, 500, 1), (200, 1200, 2000, 2)],
)
def test_seeds_like_anybody_are_not_said_to_be_served_better_or_worse(
    held_out: int, users: int, population: int, folds: int
) -> None:
    """Intervals hold the truth of the whole pool although a fold compares with some of it: apart, or in common."""
    rng = np.random.default_rng(users)
    places = np.linspace(-6, 6, 2001)
    chances = np.array([NormalDist().cdf(one) for one in places])
    held = wrong = 0
    times = 300
    for _ in range(times):
        pool = rng.normal(size=(2, population))
        order = rng.permutation(population)
        truth = np.mean(1 - np.interp(pool[0], places, chances))  # of any number of such seeds
        ranks: list[list[Floats]] = [[], []]
        placements = Placements([held_out // folds] * folds)
        compared = np.zeros((folds, population), np.bool_)
        placed = np.zeros((2, folds, population))
        for fold in range(folds):
            chosen = (
                order[fold * users :][:users] if folds * users <= population else rng.permutation(population)[:users]
            )
            compared[fold, chosen] = True
            seeds = rng.normal(size=(2, held_out // folds))
            for model in (0, 1):
                ranks[model].append(before(seeds[model], pool[model][chosen]))
                placed[model, fold] = before(pool[model], seeds[model])
        placements.add(compared, placed[0], placed[1])
        customised, general = (np.concatenate(one) for one in ranks)
        found = fine_tuning(customised, general, placements.variance(population), epochs=1, regression=True)
        held += found.auc.low <= truth <= found.auc.high
        wrong += found.outcome != "no difference"
    assert held / times > 0.91
    assert wrong / times < 0.12


@pytest.mark.parametrize(("users", "known"), [(LEAST_COMPARED - 1, False), (LEAST_COMPARED, True)])
def test_of_too_few_users_nothing_is_concluded(users: int, known: bool) -> None:
    ranks = genuine(300)
    variance = UsersVariance(users=users, customised=1e-4, general=1e-4, difference=1e-4)
    found = fine_tuning(ranks, np.full(300, 0.5), variance, epochs=2, regression=True)
    assert found.outcome == ("helped" if known else "not known")
    assert (f"is not known: hidden seeds could be compared with {users}" in found.text) != known
    quality = judge(matched(300), ranks, found, compared=users)
    assert codes(quality) == ({} if known else {"FEW_USERS_TO_COMPARE_WITH": "usable"})


def test_one_user_tells_nothing_unless_there_is_no_other() -> None:
    one = Placements([3])
    one.add(np.ones((1, 1), np.bool_), np.full((1, 1), 0.5), np.full((1, 1), 0.5))
    assert one.variance(1).customised == 0
    found = fine_tuning(genuine(40), genuine(40), one.variance(9), epochs=1, regression=True)
    assert (found.auc.low, found.auc.high) == (0, 1)


def test_a_campaign_that_the_general_model_may_know_is_told() -> None:
    ranks = genuine(400)
    quality = judge(matched(400), ranks, tuned(ranks), compared=ALL.users, trained_on=True)
    assert codes(quality) == {"GENERAL_MODEL_KNOWS_THE_CAMPAIGN": "usable"}
    assert "seen the hidden seeds" in quality.reasons[0].text


def test_the_fallback_to_the_general_model_is_put_into_words() -> None:
    ranks = genuine(50)
    kept = fine_tuning(ranks, ranks, ALL, epochs=0, regression=False)
    assert kept.general_is_used
    assert kept.outcome == "no difference"
    assert "so the general model is used" in kept.text
    added = fine_tuning(ranks, ranks, ALL, epochs=0, regression=True)
    assert not added.general_is_used
    assert "the general one is used, with the campaign's own regression" in added.text
    assert not fine_tuning(ranks, ranks, ALL, epochs=1, regression=False).general_is_used
