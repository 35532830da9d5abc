"""The synthetic history: in the layout, the same every time, with something to learn across campaigns."""

from __future__ import annotations

from itertools import permutations
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from lookalike.dataset.layout import Dataset
from lookalike.dataset.profiles import PROFILES, find_profile
from lookalike.dataset.synthetic import simulate
from lookalike.dataset.vocabulary import build_schema
from lookalike.errors import AlreadyExists, InvalidInput
from lookalike.evaluation.metrics import auc
from lookalike.files import file_digest
from lookalike.schema import FieldKind


def digests(folder: Path) -> dict[str, str]:
    return {path.name: file_digest(path) for path in folder.iterdir()}


def test_the_same_arguments_give_the_same_bytes(tmp_path: Path) -> None:
    for name, seed in (("a", 1), ("b", 1), ("c", 2)):
        simulate(tmp_path / name, users=300, campaigns=6, seed=seed)
    assert digests(tmp_path / "a") == digests(tmp_path / "b")
    assert digests(tmp_path / "a") != digests(tmp_path / "c")


def test_it_has_every_kind_of_field_and_missing_values(sample_dataset: Path) -> None:
    dataset = Dataset.open(sample_dataset)
    for schema in (build_schema(dataset.users_path), dataset.campaign_schema()):
        assert {field.kind for field in schema.fields} == set(FieldKind)
    users = pq.read_table(dataset.users_path)
    for name in ("gender", "city", "activity"):
        assert 0.05 < users[name].null_count / users.num_rows < 0.15
    lengths = pa.compute.list_value_length(users["interests"]).to_numpy()
    assert lengths.min() == 0
    assert lengths.max() == 10
    for row in users["interests"].to_pylist():
        assert len(set(row)) == len(row)


def test_stages_are_disjoint_and_every_campaign_has_enough_seeds(sample_dataset: Path) -> None:
    dataset = Dataset.open(sample_dataset)
    assert len(dataset.campaign_ids("train")) == 12
    assert len(dataset.campaign_ids("test")) == 8
    for campaign_id in dataset.campaign_ids():
        seed_users, seed_labels = dataset.samples(campaign_id, "seed")
        audience_users, audience_labels = dataset.samples(campaign_id, "audience")
        everyone = np.concatenate([seed_users.to_numpy(), audience_users.to_numpy()])
        assert len(np.unique(everyone)) == len(everyone)
        assert seed_labels.sum() >= 10
        assert audience_labels.sum() >= 2 * seed_labels.sum() - 2
        assert 5 < (seed_labels == 0).sum() / seed_labels.sum() <= 20


def test_string_ids(tmp_path: Path) -> None:
    dataset = simulate(tmp_path / "d", users=200, campaigns=5, string_ids=True)
    assert dataset.user_id_type == pa.large_string()
    campaign_id = dataset.campaign_ids("test")[0]
    assert isinstance(campaign_id, str)
    assert dataset.samples(campaign_id, "seed")[0][0].as_py().startswith("u")


def test_what_is_learnt_on_other_campaigns_of_an_advertiser_helps(sample_dataset: Path) -> None:
    """Users who liked one campaign like its siblings more than others do: pre-training has something to find."""
    dataset = Dataset.open(sample_dataset)
    liked: dict[int | str, set[int]] = {}
    for campaign_id in dataset.campaign_ids():
        seeds, labels = dataset.samples(campaign_id, "seed")
        audience, audience_labels = dataset.samples(campaign_id, "audience")
        liked[campaign_id] = {*seeds.to_numpy()[labels == 1], *audience.to_numpy()[audience_labels == 1]}
    category = {c: dataset.campaign_features(c)["category"] for c in liked}
    overlap: dict[bool, list[float]] = {True: [], False: []}
    for (a, fans_a), (b, fans_b) in permutations(liked.items(), 2):
        overlap[category[a] == category[b]].append(len(fans_a & fans_b) / len(fans_a))
    assert np.mean(overlap[True]) > 1.5 * np.mean(overlap[False])


def test_features_tell_who_is_interested(sample_dataset: Path) -> None:
    """A score from one feature alone, learnt on seeds, ranks the audience better than chance."""
    dataset = Dataset.open(sample_dataset)
    table = pq.read_table(dataset.users_path)
    interests = dict(zip(table["user_id"].to_pylist(), table["interests"].to_pylist(), strict=True))
    results = []
    for campaign_id in dataset.campaign_ids():
        weight: dict[str, list[int]] = {}
        for user, label in zip(*dataset.samples(campaign_id, "seed"), strict=True):
            for value in interests[user.as_py()]:
                weight.setdefault(value, []).append(int(label))
        users, labels = dataset.samples(campaign_id, "audience")
        rate = {value: (sum(seen) + 0.1) / (len(seen) + 2) for value, seen in weight.items()}
        scores = [np.mean([rate.get(v, 0.05) for v in interests[u]] or [0.05]) for u in users.to_pylist()]
        results.append(auc(labels, np.array(scores)))
    assert np.mean(results) > 0.55


@pytest.mark.parametrize("profile", PROFILES)
def test_a_profile_s_history_is_in_the_layout(profile: str, tmp_path: Path) -> None:
    for name, seed in (("a", 1), ("b", 1), ("c", 2)):
        simulate(tmp_path / name, users=3000, campaigns=10, seed=seed, profile=profile)
    assert digests(tmp_path / "a") == digests(tmp_path / "b")
    assert digests(tmp_path / "a") != digests(tmp_path / "c")
    dataset = Dataset.open(tmp_path / "a")
    known = find_profile(profile).schema
    found = build_schema(dataset.users_path)
    assert [(field.name, field.kind) for field in found.fields] == [(field.name, field.kind) for field in known.fields]
    for mine, theirs in zip(found.fields, known.fields, strict=True):
        assert set(mine.values) <= set(theirs.values)
    assert len(dataset.campaign_schema().fields) == (6 if profile == "tencent" else 5)
    for campaign_id in dataset.campaign_ids():
        assert dataset.samples(campaign_id, "seed")[1].sum() >= 20


def test_of_a_profile_s_large_campaigns_a_part_is_known(tmp_path: Path) -> None:
    """So that samples do not grow with the users; and whom nobody knows of is no negative."""
    dataset = simulate(tmp_path / "d", users=80_000, campaigns=5, profile="lean")
    for campaign_id in dataset.campaign_ids():
        seeds, audience = (dataset.samples(campaign_id, stage)[1] for stage in ("seed", "audience"))
        assert (seeds.sum(), audience.sum()) == (600, 1400)
        assert (seeds == 0).sum() == 20 * 600
        assert (audience == 0).sum() == 20 * 1400


def test_a_profile_has_integers_as_ids(tmp_path: Path) -> None:
    with pytest.raises(InvalidInput, match="integers") as caught:
        simulate(tmp_path / "d", users=200, campaigns=5, profile="lean", string_ids=True)
    assert caught.value.field == "string_ids"
    with pytest.raises(InvalidInput, match="no profile 'fat'"):
        simulate(tmp_path / "d", users=200, campaigns=5, profile="fat")


def test_what_is_too_small_or_taken_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InvalidInput, match="users"):
        simulate(tmp_path / "d", users=199)
    with pytest.raises(InvalidInput, match="campaigns"):
        simulate(tmp_path / "d", campaigns=4)
    simulate(tmp_path / "d", users=200, campaigns=5)
    with pytest.raises(AlreadyExists):
        simulate(tmp_path / "d", users=200, campaigns=5)
    assert simulate(tmp_path / "d", users=200, campaigns=6, overwrite=True).campaigns().num_rows == 6
