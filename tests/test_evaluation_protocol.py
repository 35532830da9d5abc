"""The splits of the benchmark: nobody learns from what he is tested on, nor chooses rates by it."""

from __future__ import annotations

from collections import Counter
from dataclasses import fields
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st

from lookalike.dataset.layout import Dataset
from lookalike.errors import InvalidInput
from lookalike.evaluation.metrics import auc
from lookalike.evaluation.protocol import FEW_SEEDS_SHARE, Protocol, groups, seed_threshold, tuning_size
from lookalike.evaluation.systems.system import SeededCampaign
from lookalike.pool.ingest import ingest
from lookalike.pool.snapshot import Pool

RUNS = range(6)


@pytest.fixture(scope="module")
def protocol(dataset: Dataset, pool: Pool) -> Protocol:
    return Protocol(dataset, pool)


def altered(
    dataset: Dataset, path: Path, campaigns: pa.Table | None = None, samples: pa.Table | None = None
) -> Dataset:
    """A copy with other campaigns or samples."""
    path.mkdir()
    for name, other in (("campaigns", campaigns), ("samples", samples), ("users", None)):
        file = f"{name}.parquet"
        pq.write_table(pq.read_table(dataset.path / file) if other is None else other, path / file)
    return Dataset.open(path)


def test_run_0_has_the_dataset_s_own_split(dataset: Dataset, protocol: Protocol) -> None:
    assert protocol.splits(0) == dataset.campaigns()["split"].to_pylist()


def test_every_run_has_as_many_of_each_side_and_another_split(dataset: Dataset, protocol: Protocol) -> None:
    splits = [protocol.splits(run) for run in RUNS]
    assert [Counter(split) for split in splits] == [Counter(splits[0])] * len(RUNS)
    assert len({tuple(split) for split in splits}) == len(RUNS)
    assert splits == [Protocol(dataset, protocol.exam(0).history.pool).splits(run) for run in RUNS]


def test_nobody_is_tested_on_what_he_learnt_from(protocol: Protocol) -> None:
    for exam in [*(protocol.exam(run) for run in RUNS), protocol.tuning_exam]:
        learnt = {task.campaign_id for task in exam.history.tasks}
        assert learnt
        assert not learnt & {campaign.campaign_id for campaign in exam.campaigns}


def test_rates_are_chosen_by_training_campaigns_that_no_run_tests(dataset: Dataset, protocol: Protocol) -> None:
    tuning = {campaign.campaign_id for campaign in protocol.tuning_exam.campaigns}
    assert len(tuning) == tuning_size(12) == 3
    assert tuning <= set(dataset.campaign_ids("train"))
    assert not {task.campaign_id for task in protocol.tuning_exam.history.tasks} & set(dataset.campaign_ids("test"))
    for run in RUNS:
        assert not tuning & {campaign.campaign_id for campaign in protocol.exam(run).campaigns}


def test_a_system_sees_no_label_of_what_came_later(dataset: Dataset, protocol: Protocol) -> None:
    assert {field.name for field in fields(SeededCampaign)} == {"campaign_id", "features", "seeds", "candidates"}
    exam = protocol.exam(0)
    aucs = []
    for campaign, answers in zip(exam.campaigns, exam.answers, strict=True):
        _, labels = dataset.samples(campaign.campaign_id, "audience")
        assert (np.diff(labels.astype(int)) <= 0).all(), "the file's own order would tell who is interested"
        aucs.append(auc(answers.labels, -np.arange(len(answers.labels), dtype=np.float64)))
    assert 0.4 < np.mean(aucs) < 0.6


def test_the_answers_belong_to_the_candidates(dataset: Dataset, pool: Pool, protocol: Protocol) -> None:
    exam = protocol.exam(1)
    for campaign, answers in zip(exam.campaigns, exam.answers, strict=True):
        users, labels = dataset.samples(campaign.campaign_id, "audience")
        of_user = dict(zip(users.to_pylist(), labels.tolist(), strict=True))
        ids = pool.user_ids(campaign.candidates).to_pylist()
        assert ids == answers.user_ids.tolist()
        assert [of_user[user] for user in ids] == answers.labels.tolist()
        assert sorted(ids) == sorted(of_user)


def test_ids_of_a_tested_campaign_are_as_unknown_as_a_new_one_s(dataset: Dataset, protocol: Protocol) -> None:
    for exam, known in ((protocol.exam(0), dataset.campaign_ids("train")), (protocol.tuning_exam, None)):
        learnt = known or [task.campaign_id for task in exam.history.tasks]
        for field in exam.history.campaign_schema.fields:
            values = [dataset.campaign_features(campaign)[field.name] for campaign in learnt]
            flat = {str(v) for value in values for v in (value if isinstance(value, list) else [value])}
            assert set(field.values) <= flat


@pytest.mark.parametrize("field", ["advertiser", "category"])
def test_groups_are_not_parted(dataset: Dataset, pool: Pool, field: str) -> None:
    protocol = Protocol(dataset, pool, grouped=field)
    values = dataset.campaigns()[field].to_pylist()
    seen = set()
    for run in RUNS:
        splits = protocol.splits(run)
        sides: dict[object, set[object]] = {}
        for value, split in zip(values, splits, strict=True):
            sides.setdefault(value, set()).add(split)
        assert {"train"} in sides.values()
        assert {"test"} in sides.values()
        assert all(len(side) == 1 for value, side in sides.items() if value is not None)
        assert abs(splits.count("test") - 8) <= max(Counter(values).values())
        seen.add(tuple(splits))
    assert len(seen) > 1
    tuning = [split == "test" for split in protocol.tuning_splits]
    groups = {value for value, tunes in zip(values, tuning, strict=True) if tunes and value is not None}
    assert all(tunes or value not in groups for value, tunes in zip(values, tuning, strict=True))
    for run in RUNS:
        assert not any(t and split == "test" for t, split in zip(tuning, protocol.splits(run), strict=True))


def test_campaigns_without_a_value_are_groups_by_themselves(dataset: Dataset, pool: Pool, tmp_path: Path) -> None:
    campaigns = pq.read_table(dataset.path / "campaigns.parquet")
    nothing = pa.nulls(campaigns.num_rows, pa.string())
    with_nulls = altered(dataset, tmp_path / "copy", campaigns.append_column("nothing", nothing))
    splits = Protocol(with_nulls, pool, grouped="nothing").splits(0)
    assert splits.count("test") == 8


def test_a_group_must_be_one_value_and_leave_two_sides(dataset: Dataset, pool: Pool, tmp_path: Path) -> None:
    with pytest.raises(InvalidInput, match="advertiser") as raised:
        Protocol(dataset, pool, grouped="author")
    assert raised.value.field == "grouped"
    campaigns = pq.read_table(dataset.path / "campaigns.parquet")
    campaigns = campaigns.append_column("one", pa.array(["x"] * campaigns.num_rows))
    campaigns = campaigns.append_column("tags", pa.array([["a"]] * campaigns.num_rows))
    copy = altered(dataset, tmp_path / "copy", campaigns)
    with pytest.raises(InvalidInput, match="another field"):
        Protocol(copy, pool, grouped="one")
    with pytest.raises(InvalidInput, match="single-valued"):
        Protocol(copy, pool, grouped="tags")


def test_the_limit_is_a_subsample_that_is_the_same_every_time(dataset: Dataset, pool: Pool, protocol: Protocol) -> None:
    whole = [campaign.campaign_id for campaign in protocol.exam(0).campaigns]
    few = [campaign.campaign_id for campaign in Protocol(dataset, pool, limit=3).exam(0).campaigns]
    assert len(few) == 3
    assert few == [campaign for campaign in whole if campaign in few]
    assert few == [campaign.campaign_id for campaign in Protocol(dataset, pool, limit=3).exam(0).campaigns]
    assert len(Protocol(dataset, pool, limit=2).tuning_exam.campaigns) == 2
    assert Protocol(dataset, pool, limit=3).threshold == protocol.threshold
    with pytest.raises(InvalidInput, match="limit"):
        Protocol(dataset, pool, limit=0)


def test_campaigns_that_cannot_be_judged_are_left_out_and_counted(dataset: Dataset, pool: Pool, tmp_path: Path) -> None:
    one_label, few, seedless = dataset.campaign_ids("test")[:3]
    samples = pq.read_table(dataset.path / "samples.parquet")
    campaign, later = samples["campaign_id"].to_numpy(), np.array(samples["stage"].to_pylist()) == "audience"
    labels = samples["label"].to_numpy().copy()
    labels[((campaign == one_label) & later) | ((campaign == seedless) & ~later)] = 0
    kept = np.ones(len(labels), bool)
    for label in (0, 1):  # 18 candidates stay
        kept[np.flatnonzero((campaign == few) & later & (labels == label))[9:]] = False
    samples = samples.set_column(samples.column_names.index("label"), "label", pa.array(labels))
    copy = altered(dataset, tmp_path / "copy", samples=samples.filter(pa.array(kept)))
    exam = Protocol(copy, pool).exam(0)
    assert exam.left_out == 3
    assert not {one_label, few, seedless} & {campaign.campaign_id for campaign in exam.campaigns}
    assert len(exam.campaigns) == 5


def test_groups_are_by_single_valued_fields_and_only_those_are_named(
    dataset: Dataset, pool: Pool, tmp_path: Path
) -> None:
    campaigns = pq.read_table(dataset.path / "campaigns.parquet")
    tags = pa.array([["a", "b"]] * len(campaigns))
    copy = altered(dataset, tmp_path / "copy", campaigns=campaigns.append_column("tags", tags))
    for wrong in ("nosuch", "tags", "split"):
        with pytest.raises(InvalidInput) as raised:
            Protocol(copy, pool, grouped=wrong)
        assert raised.value.field == "grouped"
        named = raised.value.message.partition("single-valued fields are ")[2].split(", ")
        assert "tags" not in named
        for name in named:
            groups(copy, grouped=name, limit=None)
    bare = altered(dataset, tmp_path / "bare", campaigns=campaigns.select(["campaign_id", "split"]))
    with pytest.raises(InvalidInput, match="are none: leave it out"):
        groups(bare, grouped="nosuch", limit=None)


def test_a_dataset_without_test_campaigns_is_refused(dataset: Dataset, pool: Pool) -> None:
    with pytest.raises(InvalidInput, match="split 'test'"):
        Protocol(dataset.with_splits(["train"] * 20), pool)


def test_string_ids(tmp_path: Path) -> None:
    from lookalike.dataset.synthetic import simulate

    dataset = simulate(tmp_path / "data", users=500, campaigns=8, string_ids=True)
    pool = ingest(dataset.users_path, tmp_path / "pool")
    exam = Protocol(dataset, pool).exam(1)
    assert exam.answers[0].user_ids.tolist() == pool.user_ids(exam.campaigns[0].candidates).to_pylist()


def test_the_budget_is_one_pass_over_the_training_campaigns(protocol: Protocol) -> None:
    assert protocol.budget == sum(len(task.samples) for task in protocol.exam(0).history.tasks)


@pytest.mark.parametrize(("training", "tuning"), [(4, 1), (12, 3), (96, 24), (200, 24), (300, 30), (476, 40)])
def test_a_tenth_tunes_but_no_more_than_a_quarter(training: int, tuning: int) -> None:
    assert tuning_size(training) == tuning


@given(st.lists(st.integers(1, 50), min_size=1, max_size=60))
def test_the_threshold_parts_campaigns_as_near_to_80_to_20_as_can_be(seeds: list[int]) -> None:
    def off(threshold: int) -> float:
        return abs(float(np.mean([count <= threshold for count in seeds])) - FEW_SEEDS_SHARE)

    assert off(seed_threshold(seeds)) == min(off(value) for value in range(51))
    assert seed_threshold(seeds) in seeds


def test_the_threshold_by_hand() -> None:
    assert seed_threshold([10, 20, 30, 40, 50]) == 40
    assert seed_threshold([7, 7, 7]) == 7
    with pytest.raises(InvalidInput):
        seed_threshold([])
