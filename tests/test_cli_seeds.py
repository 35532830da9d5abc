"""Seeds and campaign features as the command line is given them: text, Parquet, data sets."""

from __future__ import annotations

import io
import sys
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from lookalike.cli import seeds
from lookalike.dataset.layout import Dataset
from lookalike.errors import InvalidInput, NotFound, SchemaError


def test_seeds_from_text_and_parquet(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "ids.txt").write_text("17\n\n -4 \n99\n")
    assert seeds.read(tmp_path / "ids.txt").equals(pa.array([17, -4, 99], pa.int64()))
    (tmp_path / "names.txt").write_text("007\n12\n")  # an id with a leading zero is text, and so are its neighbours
    assert seeds.read(tmp_path / "names.txt").equals(pa.array(["007", "12"], pa.large_string()))
    pq.write_table(pa.table({"user_id": pa.array([3, 1], pa.int32()), "x": [0, 0]}), tmp_path / "ids.parquet")
    assert seeds.read(tmp_path / "ids.parquet").equals(pa.array([3, 1], pa.int64()))
    monkeypatch.setattr(sys, "stdin", io.StringIO("5\n"))
    assert seeds.read(Path("-")).to_pylist() == [5]


@pytest.mark.parametrize("head", ["", "\ufeff", "user_id\n", '\ufeff"user_id"\r\n'])
def test_text_is_read_as_the_ids_of_the_pool(head: str, tmp_path: Path) -> None:
    path = tmp_path / "seeds.csv"
    path.write_text(head + "17\n\n99\n", encoding="utf-8")
    assert seeds.read(path, id_type=pa.int64()).equals(pa.array([17, 99], pa.int64()))
    assert seeds.read(path, id_type=pa.large_string()).equals(pa.array(["17", "99"], pa.large_string()))
    assert seeds.read(path).equals(pa.array([17, 99], pa.int64()))
    path.write_text(head + "17\n\nann\n", encoding="utf-8")
    number = 3 + head.count("\n")
    with pytest.raises(
        InvalidInput, match=f"line {number} of .*seeds.csv is 'ann', but user ids of this pool are integers"
    ):
        seeds.read(path, id_type=pa.int64())


def test_seeds_that_cannot_be_read_are_named(tmp_path: Path) -> None:
    pq.write_table(pa.table({"id": [1]}), tmp_path / "other.parquet")
    with pytest.raises(SchemaError, match="user_id"):
        seeds.read(tmp_path / "other.parquet")
    for name in ("gone.txt", "gone.parquet"):
        with pytest.raises(NotFound, match=name):
            seeds.read(tmp_path / name)


def test_seeds_and_features_come_from_the_dataset_unless_given(sample_dataset: Path, tmp_path: Path) -> None:
    dataset = Dataset.open(sample_dataset)
    campaign = dataset.campaign_ids("test")[0]
    users, labels = dataset.samples(campaign, "seed")
    user_ids, features = seeds.gather(str(campaign), None, ['keywords=["a","b"]', "budget=2.5"], sample_dataset)
    assert user_ids.equals(users.filter(labels == 1))
    assert features == dataset.campaign_features(campaign) | {"keywords": ["a", "b"], "budget": 2.5}
    (tmp_path / "ids.txt").write_text("1\n")
    assert seeds.gather("spring", tmp_path / "ids.txt", ["category=1=2"], None) == (pa.array([1]), {"category": "1=2"})
    with pytest.raises(InvalidInput, match="NAME=VALUE"):
        seeds.gather("spring", tmp_path / "ids.txt", ["category"], None)
