"""KuaiRand-Pure's raw format to the layout, on a small history in that format."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
from raw_kuairand import PERIODS, USERS, VIDEOS, events, long_view, write_raw

from lookalike.dataset.kuairand import convert
from lookalike.dataset.layout import Dataset
from lookalike.errors import DataCorrupted, InvalidInput, NotFound
from lookalike.files import file_digest


@pytest.fixture(scope="module")
def raw(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_raw(tmp_path_factory.mktemp("kuairand") / "raw")


@pytest.fixture(scope="module")
def dataset(raw: Path, tmp_path_factory: pytest.TempPathFactory) -> Dataset:
    return convert(raw, tmp_path_factory.mktemp("kuairand") / "dataset", min_seeds=5, min_audience=2)


def viewers(video: int, *, early: bool) -> set[int]:
    first_log = next(iter(PERIODS))
    return {
        u
        for name, u, v, date, _ in events()
        if v == video and long_view(u, v) and (name == first_log if early else 20220425 <= date <= 20220508)
    }


def test_seeds_watched_first_and_the_audience_later(dataset: Dataset) -> None:
    ever = {v: {u for _, u, w, _, _ in events() if w == v and long_view(u, v)} for v in range(VIDEOS)}
    for video in dataset.campaign_ids():
        assert isinstance(video, int)
        seeds, labels = dataset.samples(video, "seed")
        audience, audience_labels = dataset.samples(video, "audience")
        assert set(seeds.to_numpy()[labels == 1]) == viewers(video, early=True)
        assert set(audience.to_numpy()[audience_labels == 1]) == viewers(video, early=False) - viewers(
            video, early=True
        )
        never = set(range(USERS)) - ever[video]
        assert set(seeds.to_numpy()[labels == 0]) == never  # fewer than 20 a seed, so all
        assert set(audience.to_numpy()[audience_labels == 0]) == never


def test_campaigns_are_half_of_the_videos_watched_often_enough(dataset: Dataset) -> None:
    popular = {
        v
        for v in range(VIDEOS)
        if len(viewers(v, early=True)) >= 5 and len(viewers(v, early=False) - viewers(v, early=True)) >= 2
    }
    chosen = set(dataset.campaign_ids())
    assert chosen < popular
    assert len(chosen) == round(len(popular) / 2)
    names = ["author_id", "video_type", "upload_type", "music_type", "duration", "tag"]
    assert dataset.campaigns().column_names == ["campaign_id", *names, "split"]
    for video in chosen:
        assert isinstance(video, int)
        seconds = 12 * video
        bounds = [10, 20, 40, 80, 160, 10**9]
        labels = ["<10s", "10-20s", "20-40s", "40-80s", "80-160s", ">160s"]
        assert dataset.campaign_features(video) == {
            "author_id": str(video % 5),
            "video_type": "NORMAL",
            "upload_type": "LongImport",
            "music_type": "9",
            "duration": labels[next(i for i, bound in enumerate(bounds) if seconds < bound)] if video % 2 else None,
            "tag": ["3", "4"] if video % 2 else [],
        }


def test_features_tell_of_profiles_and_early_views_of_videos_that_are_no_campaign(dataset: Dataset) -> None:
    table = pq.read_table(dataset.users_path)
    assert table.num_columns == 1 + 25 + 3
    campaigns = set(dataset.campaign_ids())
    first_log = next(iter(PERIODS))
    for row in table.to_pylist():
        u = row["user_id"]
        assert row["is_live_streamer"] == "-124"
        assert row["onehot_feat0"] == (None if u % 5 == 0 else str(u % 3))
        seen = {v: time for name, w, v, _, time in events() if name == first_log and w == u and long_view(u, v)}
        told = {v: time for v, time in seen.items() if v not in campaigns}
        assert row["watched_videos"] == [str(v) for v in sorted(told, key=lambda v: (-told[v], v))]
        assert set(row["watched_authors"]) == {str(v % 5) for v in told}
        assert sorted(row["interest_tags"]) == (["3", "4"] if any(v % 2 for v in told) else [])


def test_events_are_the_campaigns_exposures_in_time_order(dataset: Dataset) -> None:
    table = pq.read_table(dataset.path / "events.parquet")
    assert table.column_names == [
        "campaign_id", "user_id", "time_ms", "is_click", "long_view", "is_like", "play_time_ms",
    ]  # fmt: skip
    campaigns = set(dataset.campaign_ids())
    expected = sorted(
        (time, u, v) for _, u, v, date, time in events() if v in campaigns and 20220425 <= date <= 20220508
    )
    found = list(zip(*(table[name].to_pylist() for name in ("time_ms", "user_id", "campaign_id")), strict=True))
    assert found == expected
    assert np.all(table["long_view"].to_numpy() == [long_view(u, v) for _, u, v in expected])


def test_the_same_seed_gives_the_same_bytes(raw: Path, dataset: Dataset, tmp_path: Path) -> None:
    convert(raw, tmp_path / "again", min_seeds=5, min_audience=2)
    digests = [
        {path.name: file_digest(path) for path in folder.iterdir()} for folder in (dataset.path, tmp_path / "again")
    ]
    assert digests[0] == digests[1]
    assert (dataset.path / "LICENSE.txt").read_text() == "CC BY-SA 4.0"


def test_what_is_wrong_with_the_raw_files_is_named(tmp_path: Path) -> None:
    raw = write_raw(tmp_path / "raw")
    with pytest.raises(InvalidInput, match="thresholds"):
        convert(raw, tmp_path / "out")
    log = raw / "log_standard_4_08_to_4_21_pure.csv"
    good = log.read_text()
    log.write_text(good + "999,1,20220408,1600,5,1,0,0,0,0,0,1,7,9,0,0,0,0,1\n")
    with pytest.raises(DataCorrupted, match="user_id 999"):
        convert(raw, tmp_path / "out")
    log.write_text(good.replace("long_view", "longview"))
    with pytest.raises(DataCorrupted, match="long_view"):
        convert(raw, tmp_path / "out")
    log.unlink()
    with pytest.raises(NotFound, match="4_08_to_4_21"):
        convert(raw, tmp_path / "out")
    assert not (tmp_path / "out").exists()
