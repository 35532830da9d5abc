"""MovieLens-1M's raw format to the layout, on a small history in that format."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
from raw_ml1m import GENRES, MOVIES, USERS, stars, write_raw

from lookalike.dataset.layout import Dataset
from lookalike.dataset.ml1m import convert
from lookalike.errors import DataCorrupted, InvalidInput, NotFound
from lookalike.files import file_digest


@pytest.fixture(scope="module")
def raw(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_raw(tmp_path_factory.mktemp("ml1m") / "raw")


@pytest.fixture(scope="module")
def dataset(raw: Path, tmp_path_factory: pytest.TempPathFactory) -> Dataset:
    return convert(raw, tmp_path_factory.mktemp("ml1m") / "dataset", min_interested=20)


def test_campaigns_are_half_of_the_movies_liked_often_enough(dataset: Dataset) -> None:
    liked = {m: sum(stars(u, m) >= 4 for u in range(1, USERS + 1)) for m in range(1, MOVIES + 1)}
    popular = {m for m, count in liked.items() if count >= 20}
    chosen = set(dataset.campaign_ids())
    assert chosen < popular
    assert len(chosen) == round(len(popular) / 2)
    assert dataset.campaigns().column_names == ["campaign_id", "genres", "year", "decade", "split"]
    movie = dataset.campaign_ids("test")[0]
    assert isinstance(movie, int)
    year = 1930 + 3 * movie
    assert dataset.campaign_features(movie) == {
        "genres": GENRES[: movie % 4 + 1],
        "year": str(year),
        "decade": f"{year // 10}0s",
    }


def test_positives_rated_it_four_or_five_and_three_in_ten_are_seeds(dataset: Dataset) -> None:
    for movie in dataset.campaign_ids():
        assert isinstance(movie, int)
        likers = {u for u in range(1, USERS + 1) if stars(u, movie) >= 4}
        positives: list[set[int]] = []
        for stage in ("seed", "audience"):
            user_ids, labels = dataset.samples(movie, stage)
            ids = user_ids.to_numpy()
            positives.append(set(ids[labels == 1].tolist()))
            assert not set(ids[labels == 0].tolist()) & likers
        assert positives[0] | positives[1] == likers
        assert not positives[0] & positives[1]
        assert len(positives[0]) == int(0.3 * len(likers))


def test_features_tell_of_profiles_and_of_movies_that_are_no_campaign(dataset: Dataset) -> None:
    users = pq.read_table(dataset.users_path)
    assert users.column_names == [
        "user_id",
        "gender",
        "age",
        "occupation",
        "zip3",
        "liked_genres",
        "liked_decades",
        "liked_movies",
    ]
    campaigns = set(dataset.campaign_ids())
    for row in users.to_pylist():
        u = row["user_id"]
        assert (row["gender"], row["age"], row["occupation"], row["zip3"]) == (
            "FM"[u % 2],
            str(25 + u % 3),
            str(u % 21),
            f"{10000 + u}"[:3],
        )
        likes = [m for m in range(1, MOVIES + 1) if stars(u, m) >= 4 and m not in campaigns]
        assert row["liked_movies"] == [str(m) for m in sorted(likes, reverse=True)][:20]  # later movies rated later
        counts = {g: sum(g in GENRES[: m % 4 + 1] for m in likes) for g in GENRES}
        assert set(row["liked_genres"]) == {g for g, count in counts.items() if count}
        assert [counts[g] for g in row["liked_genres"]] == sorted(filter(None, counts.values()), reverse=True)
        assert len(row["liked_decades"]) <= 3


def test_the_same_seed_gives_the_same_bytes(raw: Path, dataset: Dataset, tmp_path: Path) -> None:
    convert(raw, tmp_path / "again", min_interested=20)
    convert(raw, tmp_path / "other", min_interested=20, seed=1)
    digests = [
        {path.name: file_digest(path) for path in folder.iterdir()}
        for folder in (dataset.path, tmp_path / "again", tmp_path / "other")
    ]
    assert digests[0] == digests[1]
    assert digests[0] != digests[2]
    assert (dataset.path / "LICENSE.txt").read_text() == "GroupLens' terms"


def test_what_is_wrong_with_the_raw_files_is_named(tmp_path: Path) -> None:
    raw = write_raw(tmp_path / "raw")
    with pytest.raises(InvalidInput, match="thresholds"):
        convert(raw, tmp_path / "out", min_interested=10**6)
    with (raw / "ratings.dat").open("a") as file:
        file.write("1::9999::5::1\n")
    with pytest.raises(DataCorrupted, match="9999"):
        convert(raw, tmp_path / "out", min_interested=20)
    (raw / "ratings.dat").write_text("userId,movieId\n1,2\n")
    with pytest.raises(DataCorrupted, match=r"ratings\.dat"):
        convert(raw, tmp_path / "out")
    (raw / "movies.dat").unlink()
    with pytest.raises(NotFound, match=r"movies\.dat"):
        convert(raw, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_a_movie_without_a_year_has_none(tmp_path: Path) -> None:
    raw = write_raw(tmp_path / "raw")
    text = (raw / "movies.dat").read_bytes()
    (raw / "movies.dat").write_bytes(text.replace(b" (1999)", b"").replace(b" (2002)", b""))
    dataset = convert(raw, tmp_path / "out", min_interested=1)
    years = {m: dataset.campaign_features(m)["year"] for m in dataset.campaign_ids()}
    assert {m for m, year in years.items() if year is None} <= {23, 24}
    decades = np.unique([d for row in pq.read_table(dataset.users_path)["liked_decades"].to_pylist() for d in row])
    assert all(d.endswith("0s") for d in decades)
