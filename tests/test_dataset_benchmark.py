"""The synthetic benchmark: the optimum is one, the control has nothing to learn, and each knob does what it says."""

from __future__ import annotations

import dataclasses
import json
from functools import cache
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lookalike.config import Config
from lookalike.dataset.benchmark import (
    OPTIMUM,
    OPTIMUM_SCORES,
    PRESETS,
    Knobs,
    campaign_features,
    choose_knobs,
    draw_interest,
    read_optimum,
    scaled_fields,
    simulate_benchmark,
)
from lookalike.dataset.benchmark_model import (
    INTERESTED,
    STRENGTH,
    Campaigns,
    LogOdds,
    People,
    draw_campaigns,
    draw_people,
)
from lookalike.dataset.layout import Dataset
from lookalike.dataset.profiles import find_profile
from lookalike.dataset.synthetic import intercept, sigmoid
from lookalike.dataset.vocabulary import build_schema
from lookalike.errors import AlreadyExists, DataCorrupted, InvalidInput, NotFound
from lookalike.evaluation.metrics import auc, evaluate
from lookalike.files import file_digest
from lookalike.model.baselines.logistic_regression import LogisticRegression
from lookalike.pool.ingest import ingest
from lookalike.pool.snapshot import Pool
from lookalike.training.tasks import Samples, Task, load_tasks

Floats = npt.NDArray[np.float64]

SMALL = {"users": 4000, "train_campaigns": 24, "test_campaigns": 16, "seeds": 40.0, "vocabulary": 0.004}
COUNT = 40


def small(preset: str, **changes: float) -> Knobs:
    return dataclasses.replace(PRESETS[preset], **{**SMALL, **changes})  # type: ignore[arg-type]


@cache
def people() -> People:
    return draw_people(scaled_fields(SMALL["vocabulary"]), int(SMALL["users"]), 0, lambda what, done, total: None)


@cache
def campaigns(preset: str) -> Campaigns:
    knobs = PRESETS[preset]
    return draw_campaigns(COUNT, structure=knobs.structure, conflict=knobs.conflict, seed=0)


@cache
def model(preset: str) -> LogOdds:
    knobs = PRESETS[preset]
    return LogOdds(people(), campaigns(preset), low_rank=knobs.low_rank, interactions=knobs.interactions, seed=0)


@cache
def log_odds(preset: str) -> Floats:
    """`[campaigns, users]`."""
    found: Floats = np.stack([model(preset).of(number) for number in range(COUNT)]).astype(np.float64)
    return found


@cache
def labels(preset: str) -> npt.NDArray[np.bool_]:
    """Who is interested `[campaigns, users]`."""
    drawn = np.zeros(log_odds(preset).shape, np.bool_)
    for number, odds in enumerate(log_odds(preset)):
        interest = draw_interest(odds.astype(np.float32), small(preset), 0, number)
        drawn[number, np.concatenate([interest.seeds, interest.audience])] = True
    return drawn


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Dataset:
    return simulate_benchmark(tmp_path_factory.mktemp("benchmark") / "shared", small("shared"))


@pytest.fixture(scope="module")
def independent(tmp_path_factory: pytest.TempPathFactory) -> Dataset:
    return simulate_benchmark(tmp_path_factory.mktemp("benchmark") / "independent", small("independent"))


@pytest.fixture(scope="module")
def pool(shared: Dataset, tmp_path_factory: pytest.TempPathFactory) -> Pool:
    """The users, who are the same in all presets."""
    path = tmp_path_factory.mktemp("benchmark") / "pool"
    ingest(shared.users_path, path)
    return Pool.open(path)


# -------------------------------------------------------------------------------------------------------- the optimum


@pytest.mark.parametrize("preset", PRESETS)
def test_labels_are_drawn_by_the_log_odds(preset: str) -> None:
    """In each tenth of all users and campaigns by log-odds, as many are interested as these say."""
    odds, interested = log_odds(preset).ravel(), labels(preset).ravel()
    order = np.argsort(odds)
    for tenth in np.array_split(order, 10):
        chance = sigmoid(odds[tenth])
        deviation = (interested[tenth].sum() - chance.sum()) / np.sqrt(np.sum(chance * (1 - chance)))
        assert abs(deviation) < 4
    assert sigmoid(odds).mean() == pytest.approx(INTERESTED, abs=1e-4)


@pytest.mark.parametrize("preset", ["shared", "interactions", "independent"])
def test_no_observed_feature_tells_more_than_the_log_odds(preset: str) -> None:
    """What the log-odds leave unexplained has no correlation with any id of any field, campaign by campaign.

    Squares of standardised sums over pairs of id and campaign have the mean 1 if the log-odds are the truth, and
    more if they are another campaign's.
    """
    for shift, low, high in ((0, 0.9, 1.1), (1, 1.5, np.inf)):
        chance = np.roll(sigmoid(log_odds(preset)), shift, axis=0)
        left, variance = labels(preset) - chance, chance * (1 - chance)
        squares = []
        for field in people().fields:
            for value in range(min(field.values, 30)):
                has = people().means(field, np.eye(field.values)[value])  # [users]
                squares.append((left @ has) ** 2 / (variance @ has**2))
        assert low < np.concatenate(squares).mean() < high


@settings(max_examples=40)
@given(
    preset=st.sampled_from(sorted(PRESETS)),
    number=st.integers(0, COUNT - 1),
    seed=st.integers(0, 2**32 - 1),
    how=st.sampled_from(["permuted", "noise", "another campaign", "a field"]),
    amount=st.floats(0.05, 5),
)
def test_no_other_ranking_is_better_in_expectation(
    preset: str, number: int, seed: int, how: str, amount: float
) -> None:
    rng = np.random.default_rng(seed)
    odds = log_odds(preset)[number]
    field = people().fields[seed % len(people().fields)]
    others = {
        "permuted": rng.permutation(odds),
        "noise": odds + amount * rng.normal(size=len(odds)),
        "another campaign": odds + amount * log_odds(preset)[(number + 1) % COUNT],
        "a field": odds + amount * people().means(field, rng.normal(size=field.values)),
    }
    other = others[how]
    assert expected_auc(odds, other) < expected_auc(odds, odds)


def expected_auc(odds: Floats, scores: Floats) -> float:
    """Expected concordant pairs over expected pairs, labels drawn by `odds`."""
    chance = sigmoid(odds)[np.argsort(-scores, kind="stable")]
    below = np.cumsum((1 - chance)[::-1])[::-1] - (1 - chance)  # expected negatives ranked below each
    return float((chance * below).sum() / (chance.sum() * (1 - chance).sum() - (chance * (1 - chance)).sum()))


def test_what_is_written_is_what_ranking_the_audience_by_the_log_odds_reaches(shared: Dataset) -> None:
    found, scores = read_optimum(shared.path), pq.read_table(shared.path / OPTIMUM_SCORES)
    test = shared.campaign_ids("test")
    assert [campaign["campaign_id"] for campaign in found["campaigns"]] == test
    assert pc.unique(scores["campaign_id"]).to_pylist() == test
    for campaign in found["campaigns"]:
        eta = scores.filter(pc.equal(scores["campaign_id"], campaign["campaign_id"]))
        users, drawn = shared.samples(campaign["campaign_id"], "audience")
        assert eta["user_id"].combine_chunks().equals(users)
        best = dataclasses.asdict(evaluate(drawn, eta["eta"].to_numpy(), users.to_numpy()))
        assert best == {name: campaign[name] for name in best}
        assert campaign["seeds"] == shared.samples(campaign["campaign_id"], "seed")[1].sum()
    for name in ("auc", "precision", "recall"):
        assert found["mean"][name] == pytest.approx(np.mean([campaign[name] for campaign in found["campaigns"]]))


def test_among_the_sampled_negatives_the_log_odds_are_right_up_to_a_constant(shared: Dataset) -> None:
    """Choosing seeds and negatives does not depend on them, so they stay the best ranking of the audience rows."""
    scores = pq.read_table(shared.path / OPTIMUM_SCORES)
    drawn, chance = [], []
    for campaign_id in shared.campaign_ids("test"):
        mine = shared.samples(campaign_id, "audience")[1]
        eta = scores.filter(pc.equal(scores["campaign_id"], campaign_id))["eta"].to_numpy().astype(np.float64)
        drawn.append(mine)
        chance.append(sigmoid(eta + intercept(eta, mine.mean())))
    label, expected = np.concatenate(drawn), np.concatenate(chance)
    for fifth in np.array_split(np.argsort(expected), 5):
        spread = np.sqrt(np.sum(expected[fifth] * (1 - expected[fifth])))
        assert abs(label[fifth].sum() - expected[fifth].sum()) < 4 * spread


@pytest.mark.parametrize("preset", PRESETS)
def test_the_best_auc_is_in_the_range_of_real_data(preset: str) -> None:
    aucs = [auc(mine.astype(np.int8), odds) for mine, odds in zip(labels(preset), log_odds(preset), strict=True)]
    assert 0.82 < np.mean(aucs) < 0.86
    np.testing.assert_allclose(log_odds(preset).std(axis=1), STRENGTH, rtol=1e-3)


# ---------------------------------------------------------------------------------------- what campaigns have in common


def correlations(preset: str) -> tuple[Floats, npt.NDArray[np.int64]]:
    """Of each two campaigns' log-odds over users `[campaigns, campaigns]`, and the campaigns' categories."""
    return np.asarray(np.corrcoef(log_odds(preset))), campaigns(preset).category


def test_campaigns_of_a_category_want_the_same() -> None:
    found, category = correlations("shared")
    same = (category[:, None] == category) & ~np.eye(COUNT, dtype=bool)
    # 0.35 of the tastes' variance is the category's, and more is shared by those of one advertiser.
    assert 0.25 < found[same].mean() < 0.6
    assert abs(found[category[:, None] != category].mean()) < 0.1


def test_conflicting_categories_want_the_opposite() -> None:
    for preset, low, high in (("shared", -0.15, 0.15), ("conflict", -0.5, -0.15)):
        found, category = correlations(preset)
        assert low < found[category[:, None] ^ 1 == category].mean() < high
    assert np.array_equal(
        campaigns("shared").wants[0], draw_campaigns(COUNT, structure=0.7, conflict=0, seed=0).wants[0]
    )


def test_in_the_control_nothing_correlates() -> None:
    found, category = correlations("independent")
    off = ~np.eye(COUNT, dtype=bool)
    assert abs(found[off].mean()) < 0.01
    assert abs(found[(category[:, None] == category) & off].mean()) < 0.02
    # Nor do campaigns share fewer dimensions than there are ids: no direction explains more than chance gives it.
    for preset, low, high in (("independent", 0.0, 0.1), ("shared", 0.15, 1.0)):
        assert low < np.linalg.eigvalsh(np.corrcoef(log_odds(preset)))[-1] / COUNT < high


@pytest.mark.parametrize(("preset", "low", "high"), [("independent", 0.47, 0.53), ("shared", 0.58, 0.8)])
def test_what_a_category_s_other_campaigns_tell(
    preset: str, low: float, high: float, shared: Dataset, independent: Dataset, pool: Pool
) -> None:
    """A regression pooled over the training campaigns of the category: as good as chance in the control."""
    dataset = {"shared": shared, "independent": independent}[preset]
    train, test = (load_tasks(dataset, pool, dataset.campaign_schema(), split) for split in ("train", "test"))
    category = {c: dataset.campaign_features(c)["adCategoryId"] for c in dataset.campaign_ids()}
    aucs = []
    for name in sorted({str(category[task.campaign_id]) for task in test}):
        siblings = [task.samples for task in train if category[task.campaign_id] == name]
        if siblings:
            regression = fitted(pool, Samples.concat(*siblings))
            aucs += [audience_auc(pool, regression, task) for task in test if category[task.campaign_id] == name]
    assert len(aucs) > 8
    assert low < np.mean(aucs) < high


def test_in_the_control_all_training_campaigns_together_tell_nothing(independent: Dataset, pool: Pool) -> None:
    train, test = (load_tasks(independent, pool, independent.campaign_schema(), split) for split in ("train", "test"))
    regression = fitted(pool, Samples.concat(*[task.samples for task in train]))
    assert np.mean([audience_auc(pool, regression, task) for task in train]) > 0.55  # it has learnt something
    assert np.mean([audience_auc(pool, regression, task) for task in test]) == pytest.approx(0.5, abs=0.03)


def test_seeds_tell_of_their_own_campaign_and_less_than_the_optimum(shared: Dataset, pool: Pool) -> None:
    test = load_tasks(shared, pool, shared.campaign_schema(), "test")
    reached = np.mean([audience_auc(pool, fitted(pool, task.seeds), task) for task in test])
    assert 0.6 < reached < read_optimum(shared.path)["mean"]["auc"] - 0.05


def fitted(pool: Pool, samples: Samples) -> LogisticRegression:
    return LogisticRegression(pool.schema).fit(pool.take(samples.rows), samples.labels.astype(np.int8))


def audience_auc(pool: Pool, regression: LogisticRegression, task: Task) -> float:
    return auc(task.audience.labels.astype(np.int8), regression.score(pool.take(task.audience.rows)))


@pytest.mark.parametrize("preset", ["shared", "interactions"])
def test_a_share_of_the_log_odds_is_beyond_any_linear_model(preset: str) -> None:
    crossed = model(preset).crossed @ campaigns(preset).wants[:8].T  # [users, campaigns]
    crossed -= crossed.mean(axis=0)
    shares = [np.corrcoef(odds, mine)[0, 1] ** 2 for odds, mine in zip(log_odds(preset)[:8], crossed.T, strict=True)]
    assert np.mean(shares) == pytest.approx(PRESETS[preset].interactions, abs=0.03)
    columns = [
        people().means(f, np.eye(f.values)[v]) for f in people().fields for v in range(f.values) if f.values < 250
    ]
    ids = np.stack(columns, axis=1)
    left = crossed - ids @ np.linalg.lstsq(ids, crossed, rcond=None)[0]
    by_chance = ids.shape[1] / len(ids)  # as many columns explain that of anything
    assert 1 - (left**2).sum() / (crossed**2).sum() < by_chance + 0.1


# -------------------------------------------------------------------------------------------------------------- knobs


@pytest.mark.parametrize("corruption", [0.0, 0.3, 1.0])
def test_a_share_of_the_features_is_another_campaign_s(corruption: float) -> None:
    many = draw_campaigns(4000, structure=0.7, conflict=0.0, seed=0)
    true, found = campaign_features(many, 0.0, 0), campaign_features(many, corruption, 0)
    assert np.array_equal(true["productId"], many.product)
    for name in ("advertiserId", "adCategoryId", "productId", "productType"):
        alike = np.mean((np.bincount(true[name]) / 4000) ** 2 @ np.ones(len(np.bincount(true[name]))))
        assert np.mean(found[name] != true[name]) == pytest.approx(corruption * (1 - alike), abs=0.03)
    for name in ("campaignId", "creativeSize"):
        assert np.array_equal(found[name], true[name])


def test_few_seeds_are_some_of_the_many() -> None:
    """So that a difference between the two presets is the seeds' number alone."""
    for number, odds in enumerate(log_odds("shared")):
        single = odds.astype(np.float32)
        many, few = (draw_interest(single, small("shared", seeds=seeds, spread=0.2), 0, number) for seeds in (40, 15))
        assert 10 <= len(few.seeds) < len(many.seeds) <= small("shared").most_seeds
        assert set(few.seeds) < set(many.seeds)
        assert set(few.seeds) | set(few.audience) == set(many.seeds) | set(many.audience)


def test_the_number_of_seeds_has_the_median_and_spread_asked_for() -> None:
    knobs = Knobs(seeds=100, spread=0.4)
    odds = np.full(knobs.users, np.log(INTERESTED / (1 - INTERESTED)), np.float32)
    sizes = [len(draw_interest(odds, knobs, 0, number).seeds) for number in range(300)]
    assert np.median(sizes) == pytest.approx(100, rel=0.1)
    assert np.std(np.log(sizes)) == pytest.approx(0.4, rel=0.1)


def test_users_have_the_paper_s_fields_with_some_missing_and_zipf_s_ids(shared: Dataset) -> None:
    schema = build_schema(shared.users_path)
    paper = find_profile("tencent").schema
    assert [(field.name, field.kind) for field in schema.fields] == [(field.name, field.kind) for field in paper.fields]
    sizes = {field.name: field.values for field in scaled_fields(0.02)}
    assert (sizes["gender"], sizes["interest1"], sizes["topic1"], sizes["kw1"]) == (3, 100, 200, 5266)
    users = pq.read_table(shared.users_path)
    for field in people().fields:
        column = users[field.name]
        lengths = pc.list_value_length(column).to_numpy() if field.most > 1 else pc.is_valid(column).to_numpy()
        assert 0.08 < np.mean(lengths == 0) < 0.32
        assert lengths.max() == field.most
        flat = pc.list_flatten(column) if field.most > 1 else column
        counts = np.sort(pc.value_counts(flat.drop_null()).field(1).to_numpy())[::-1]
        if field.values >= 100:  # the first tenth of the values has a good deal of all
            assert counts[: field.values // 10].sum() > 0.3 * counts.sum()
    for row in users["kw1"].to_pylist():
        assert len(set(row)) == len(row)


@pytest.mark.parametrize(
    ("changes", "field", "words"),
    [
        (["conflict=1.5"], "conflict", "from 0 to 1"),
        (["structure=-0.1"], "structure", "from 0 to 1"),
        (["spread=.nan"], "spread", "from 0 to 3"),
        (["users=100"], "users", "from 2000"),
        (["test_campaigns=0"], "test_campaigns", "from 1"),
        (["seeds=401"], "seeds", "400 or fewer"),
        (["vocabulary=0"], "vocabulary", "0.001"),
        (["users=many"], "knob.users", "integer"),
        (["seeds=[1"], "seeds", "not a number"),
        (["seed=3"], "knob", "users, train_campaigns"),
        (["seeds"], "knob", "NAME=VALUE"),
    ],
)
def test_a_bad_knob_is_named(changes: list[str], field: str, words: str) -> None:
    with pytest.raises(InvalidInput, match=words) as caught:
        choose_knobs("shared", changes)
    assert caught.value.field == field


def test_a_preset_turns_one_knob_and_more_can_be_turned() -> None:
    base = dataclasses.asdict(PRESETS["shared"])
    for preset, knobs in PRESETS.items():
        assert choose_knobs(preset) == knobs
        assert len(set(dataclasses.asdict(knobs).items()) - set(base.items())) == (preset != "shared")
    assert choose_knobs("conflict", ["seeds=60", "users=3000"]) == dataclasses.replace(
        PRESETS["conflict"], seeds=60, users=3000
    )
    with pytest.raises(InvalidInput, match="no preset 'hard'; take one of shared"):
        choose_knobs("hard")


# ------------------------------------------------------------------------------------------------------------- folders


def test_the_same_arguments_give_the_same_bytes(tmp_path: Path) -> None:
    knobs = small("shared", users=2000, train_campaigns=3, test_campaigns=2, seeds=15.0)
    for name, seed in (("a", 1), ("b", 1), ("c", 2)):
        simulate_benchmark(tmp_path / name, knobs, seed=seed)
    a, b, c = ({path.name: file_digest(path) for path in (tmp_path / name).iterdir()} for name in "abc")
    assert a == b
    assert all(a[name] != c[name] for name in a)
    corrupted = dataclasses.replace(knobs, corruption=0.9)
    simulate_benchmark(tmp_path / "d", corrupted, seed=1)
    d = {path.name: file_digest(path) for path in (tmp_path / "d").iterdir()}
    assert {name for name in a if a[name] != d[name]} == {"campaigns.parquet", OPTIMUM}
    assert Knobs(**read_optimum(tmp_path / "d")["knobs"]) == corrupted
    assert read_optimum(tmp_path / "d")["seed"] == 1


def test_it_is_a_dataset_with_two_disjoint_stages_of_one_to_twenty(shared: Dataset) -> None:
    assert (len(shared.campaign_ids("train")), len(shared.campaign_ids("test"))) == (24, 16)
    assert len(shared.campaign_schema().fields) == 6
    for campaign_id in shared.campaign_ids():
        users, drawn = zip(*(shared.samples(campaign_id, stage) for stage in ("seed", "audience")), strict=True)
        everyone = pa.concat_arrays(users)
        assert len(pc.unique(everyone)) == len(everyone)
        for label in drawn:
            assert (label == 0).sum() == 20 * label.sum()
        assert drawn[0].sum() >= 10
        assert drawn[1].sum() >= drawn[0].sum()


def test_it_can_be_trained_on(shared: Dataset, pool: Pool, small_config: Config) -> None:
    import torch

    from lookalike.model.metaheac import MetaHeac
    from lookalike.training.meta import Trainer

    tasks = load_tasks(shared, pool, shared.campaign_schema(), "train")
    assert len(tasks) == 24
    assert all(len(task.samples) == len(task.seeds) + len(task.audience) for task in tasks)
    torch.manual_seed(0)
    settings = dataclasses.replace(small_config.training, second_order=False)
    trainer = Trainer(MetaHeac(pool.schema, shared.campaign_schema(), small_config.model), settings, pool, tasks)
    losses = [trainer.step(number)[1] for number in range(8)]
    assert np.mean(losses[-3:]) < np.mean(losses[:3])


def test_progress_is_reported_to_its_end(tmp_path: Path) -> None:
    seen: dict[str, tuple[int, int]] = {}
    knobs = small("shared", users=2000, train_campaigns=3, test_campaigns=2, seeds=15.0)
    simulate_benchmark(tmp_path / "d", knobs, report=lambda what, done, total: seen.update({what: (done, total)}))
    assert seen == {"fields": (14, 14), "campaigns": (5, 5)}


def test_what_is_taken_or_is_no_benchmark_is_refused(shared: Dataset, sample_dataset: Path, tmp_path: Path) -> None:
    with pytest.raises(AlreadyExists):
        simulate_benchmark(shared.path, small("shared"))
    with pytest.raises(InvalidInput, match="seed must be 0 or more"):
        simulate_benchmark(tmp_path / "d", small("shared"), seed=-1)
    assert not (tmp_path / "d").exists()
    with pytest.raises(NotFound, match="--benchmark"):
        read_optimum(sample_dataset)
    for text, words in (("{", "not JSON"), (json.dumps({"format": 99}), "not of format 1")):
        (tmp_path / OPTIMUM).write_text(text)
        with pytest.raises(DataCorrupted, match=words):
            read_optimum(tmp_path)
