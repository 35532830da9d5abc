"""The dataset layout: what is read, and that every fault is named."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from lookalike.dataset.layout import Dataset, Split
from lookalike.errors import DataCorrupted, InvalidInput, LookalikeError, NotFound, SchemaError

Columns = dict[str, Any]

USERS: Columns = {"user_id": [3, 1, 2], "city": ["rome", None, "oslo"], "tags": [["a"], [], None]}
CAMPAIGNS: Columns = {
    "campaign_id": [20, 10],
    "split": ["test", "train"],
    "kind": ["new", "old"],
    "words": [["x", "y"], []],
    "price": [1.5, None],
}
# Campaigns and stages interleaved on purpose.
SAMPLES: Columns = {
    "campaign_id": [10, 20, 10, 20, 10],
    "user_id": [1, 2, 3, 3, 2],
    "label": pa.array([1, 1, 0, 0, 1], pa.int8()),
    "stage": ["seed", "audience", "seed", "seed", "audience"],
}


def write(folder: Path, *, users: Columns = USERS, campaigns: Columns = CAMPAIGNS, samples: Columns = SAMPLES) -> Path:
    folder.mkdir(exist_ok=True)
    for name, columns in (("users", users), ("campaigns", campaigns), ("samples", samples)):
        pq.write_table(pa.table(columns), folder / f"{name}.parquet")
    return folder


def as_text(columns: Columns) -> Columns:
    """The same with ids as strings."""
    return {n: [f"id{v}" for v in c] if n.endswith("_id") else c for n, c in columns.items()}


def without(columns: Columns, name: str) -> Columns:
    return {n: c for n, c in columns.items() if n != name}


def test_integer_ids(tmp_path: Path) -> None:
    dataset = Dataset.open(write(tmp_path / "d"))
    assert dataset.users_path == tmp_path / "d" / "users.parquet"
    assert dataset.user_id_type == pa.int64()
    assert dataset.campaign_ids("train") == [10]
    assert dataset.campaign_ids("test") == [20]
    assert dataset.campaign_ids() == [20, 10]
    user_ids, labels = dataset.samples(10, "seed")
    assert user_ids.equals(pa.array([1, 3], pa.int64()))
    assert labels.tolist() == [1, 0]
    assert labels.dtype == np.int8
    assert dataset.samples(20, "audience")[0].to_pylist() == [2]
    assert dataset.samples("20", "seed")[0].to_pylist() == [3]


def test_string_ids(tmp_path: Path) -> None:
    folder = write(tmp_path / "d", users=as_text(USERS), campaigns=as_text(CAMPAIGNS), samples=as_text(SAMPLES))
    dataset = Dataset.open(folder)
    assert dataset.user_id_type == pa.large_string()
    assert dataset.campaign_ids("train") == ["id10"]
    user_ids, labels = dataset.samples("id10", "seed")
    assert user_ids.equals(pa.array(["id1", "id3"], pa.large_string()))
    assert labels.tolist() == [1, 0]


def test_other_widths_and_dictionaries_are_read_alike(tmp_path: Path) -> None:
    samples = SAMPLES | {
        "campaign_id": pa.array(SAMPLES["campaign_id"], pa.uint8()),
        "user_id": pa.array(SAMPLES["user_id"], pa.int32()),
        "label": pa.array([True, True, False, False, True]),
        "stage": pa.array(SAMPLES["stage"]).dictionary_encode(),
    }
    dataset = Dataset.open(write(tmp_path / "d", samples=samples))
    assert dataset.samples(10, "seed")[0].equals(pa.array([1, 3], pa.int64()))


def test_a_campaign_without_samples_has_none(tmp_path: Path) -> None:
    samples = {name: pa.array(column)[:0] for name, column in SAMPLES.items()}
    samples["campaign_id"] = samples["campaign_id"].cast(pa.int64())
    dataset = Dataset.open(write(tmp_path / "d", samples=samples))
    user_ids, labels = dataset.samples(10, "seed")
    assert (len(user_ids), len(labels)) == (0, 0)


def test_campaign_features_and_schema(tmp_path: Path) -> None:
    dataset = Dataset.open(write(tmp_path / "d"))
    assert dataset.campaign_features(20) == {"kind": "new", "words": ["x", "y"], "price": 1.5}
    assert dataset.campaign_features(10) == {"kind": "old", "words": [], "price": None}
    assert (dataset.split(10), dataset.split(20)) == ("train", "test")
    schema = dataset.campaign_schema()
    assert [field.name for field in schema.fields] == ["kind", "words", "price"]
    # Only the training campaign is known: what the test campaign brings is unknown.
    assert schema.fields[0].values == ("old",)
    encoded = schema.encode_features(dataset.campaign_features(20), where="campaign")
    assert encoded.ids["kind"].tolist() == [1]
    assert encoded.ids["words"].tolist() == [1, 1]


def test_labels_cannot_be_changed_by_a_reader(tmp_path: Path) -> None:
    labels = Dataset.open(write(tmp_path / "d")).samples(10, "seed")[1]
    with pytest.raises(ValueError, match="read-only"):
        labels[0] = 0


@pytest.mark.parametrize("missing", ["users.parquet", "campaigns.parquet", "samples.parquet"])
def test_a_missing_file_is_named(tmp_path: Path, missing: str) -> None:
    folder = write(tmp_path / "d")
    (folder / missing).unlink()
    with pytest.raises(NotFound, match=missing):
        Dataset.open(folder)


def test_a_missing_folder_is_named(tmp_path: Path) -> None:
    with pytest.raises(NotFound, match="no dataset at"):
        Dataset.open(tmp_path / "nowhere")


@pytest.mark.parametrize("name", ["users.parquet", "campaigns.parquet", "samples.parquet"])
def test_a_file_that_is_not_parquet_is_named(tmp_path: Path, name: str) -> None:
    folder = write(tmp_path / "d")
    (folder / name).write_bytes(b"user_id,age\n1,2\n")
    with pytest.raises(DataCorrupted, match=name):
        Dataset.open(folder)


@pytest.mark.parametrize(
    ("parts", "error", "field"),
    [
        ({"users": without(USERS, "user_id")}, SchemaError, "users.parquet:user_id"),
        ({"users": USERS | {"user_id": [0.5, 1.0, 2.0]}}, SchemaError, "users.parquet:user_id"),
        ({"users": USERS | {"user_id": [1, 2, 1]}}, InvalidInput, "users.parquet:user_id"),
        ({"users": USERS | {"user_id": [1, 2, None]}}, InvalidInput, "users.parquet:user_id"),
        ({"users": USERS | {"city": [b"rome"] * 3}}, SchemaError, "users.parquet:city"),
        ({"campaigns": without(CAMPAIGNS, "campaign_id")}, SchemaError, "campaigns.parquet:campaign_id"),
        ({"campaigns": without(CAMPAIGNS, "split")}, SchemaError, "campaigns.parquet:split"),
        ({"campaigns": CAMPAIGNS | {"campaign_id": [10, 10]}}, InvalidInput, "campaigns.parquet:campaign_id"),
        ({"campaigns": CAMPAIGNS | {"campaign_id": [10, None]}}, InvalidInput, "campaigns.parquet:campaign_id"),
        ({"campaigns": CAMPAIGNS | {"split": ["train", "valid"]}}, InvalidInput, "campaigns.parquet:split"),
        ({"campaigns": CAMPAIGNS | {"split": ["train", None]}}, InvalidInput, "campaigns.parquet:split"),
        ({"campaigns": CAMPAIGNS | {"split": ["test", "test"]}}, InvalidInput, "campaigns.parquet:split"),
        ({"samples": without(SAMPLES, "label")}, SchemaError, "samples.parquet:label"),
        ({"samples": SAMPLES | {"label": ["1"] * 5}}, SchemaError, "samples.parquet:label"),
        ({"samples": SAMPLES | {"stage": [0] * 5}}, SchemaError, "samples.parquet:stage"),
        ({"samples": SAMPLES | {"user_id": ["1"] * 5}}, SchemaError, "samples.parquet:user_id"),
        ({"samples": SAMPLES | {"campaign_id": ["10"] * 5}}, SchemaError, "samples.parquet:campaign_id"),
    ],
)
def test_what_opening_refuses(
    tmp_path: Path, parts: dict[str, Columns], error: type[LookalikeError], field: str
) -> None:
    with pytest.raises(error) as caught:
        Dataset.open(write(tmp_path / "d", **parts))
    assert type(caught.value) is error
    assert caught.value.field == field


@pytest.mark.parametrize(
    ("samples", "field", "example"),
    [
        (SAMPLES | {"label": [0, 1, 2, 0, 1]}, "samples.parquet:label", "2"),
        (SAMPLES | {"label": [0, 1, -1, 0, 1]}, "samples.parquet:label", "-1"),
        (SAMPLES | {"label": [0, 1, None, 0, 1]}, "samples.parquet:label", "null"),
        (SAMPLES | {"stage": ["seed", "seeds", "seed", "seed", "seed"]}, "samples.parquet:stage", "'seeds'"),
        (SAMPLES | {"campaign_id": [10, 20, 30, 10, 10]}, "samples.parquet:campaign_id", "30"),
        (SAMPLES | {"user_id": [1, None, 2, 3, 1]}, "samples.parquet:user_id", "null"),
    ],
)
def test_what_reading_samples_refuses(tmp_path: Path, samples: Columns, field: str, example: str) -> None:
    dataset = Dataset.open(write(tmp_path / "d", samples=samples))
    with pytest.raises(InvalidInput, match=example) as caught:
        dataset.samples(10, "seed")
    assert caught.value.field == field


@pytest.mark.parametrize("campaign_id", [30, "30", "ten", "-", "²"])
def test_an_unknown_campaign_is_not_found(tmp_path: Path, campaign_id: int | str) -> None:
    dataset = Dataset.open(write(tmp_path / "d"))
    with pytest.raises(NotFound) as caught:
        dataset.samples(campaign_id, "seed")
    assert caught.value.field == "campaign_id"
    with pytest.raises(NotFound):
        dataset.campaign_features(campaign_id)
    with pytest.raises(NotFound):
        dataset.split(campaign_id)


def test_an_unknown_stage_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InvalidInput, match="seed, audience"):
        Dataset.open(write(tmp_path / "d")).samples(10, "test")  # type: ignore[arg-type]


def test_campaigns_without_features_have_no_schema(tmp_path: Path) -> None:
    campaigns = {name: CAMPAIGNS[name] for name in ("campaign_id", "split")}
    dataset = Dataset.open(write(tmp_path / "d", campaigns=campaigns))
    assert dataset.campaign_features(10) == {}
    with pytest.raises(InvalidInput, match="no feature column"):
        dataset.campaign_schema()


def test_every_sample_is_in_one_group_in_file_order(sample_dataset: Path) -> None:
    dataset = Dataset.open(sample_dataset)
    table = pq.read_table(sample_dataset / "samples.parquet").to_pylist()
    rows = 0
    for campaign_id in dataset.campaign_ids():
        for stage in ("seed", "audience"):
            expected = [
                (r["user_id"], r["label"]) for r in table if r["campaign_id"] == campaign_id and r["stage"] == stage
            ]
            user_ids, labels = dataset.samples(campaign_id, stage)
            assert list(zip(user_ids.to_pylist(), labels.tolist(), strict=True)) == expected
            rows += len(expected)
    assert rows == len(table)


def test_another_split_of_the_same_campaigns(sample_dataset: Path) -> None:
    dataset = Dataset.open(sample_dataset)
    ids = dataset.campaign_ids()
    splits: list[Split | None] = ["train"] * len(ids)
    splits[0], splits[2] = "test", None
    other = dataset.with_splits(splits)
    assert other.campaign_ids("test") == ids[:1]
    assert other.campaign_ids("train") == [ids[1], *ids[3:]]
    assert other.campaign_ids() == ids
    assert other.campaign_features(ids[2]) == dataset.campaign_features(ids[2])
    for campaign in ids:
        users, labels = other.samples(campaign, "seed")
        assert users.equals(dataset.samples(campaign, "seed")[0])
        assert labels.tolist() == dataset.samples(campaign, "seed")[1].tolist()
    assert dataset.campaign_ids("train") != other.campaign_ids("train")
    for wrong in ([], ["train"] * (len(ids) - 1), ["test"] * len(ids)):
        with pytest.raises(InvalidInput):
            dataset.with_splits(wrong)  # type: ignore[arg-type]
