"""Campaigns, split and negatives."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pytest

from lookalike.dataset.construction import Interest, build, choose_campaigns
from lookalike.dataset.layout import Dataset
from lookalike.errors import InvalidInput

Rows = npt.NDArray[np.int64]


def rows(start: int, stop: int) -> Rows:
    return np.arange(start, stop, dtype=np.int64)


def construct(path: Path, interests: list[Interest], users: int, reuse: bool = False) -> Dataset:
    count = len(interests)
    return build(
        path,
        pa.table({"user_id": rows(0, users) + 100, "city": ["rome"] * users}),
        pa.table({"campaign_id": rows(0, count), "kind": ["new"] * count}),
        interests,
        rng=np.random.default_rng(0),
        reuse_negatives=reuse,
    )


def drawn(dataset: Dataset, campaign: int) -> tuple[set[int], set[int], set[int], set[int]]:
    """Rows of seeds, their negatives, the audience, its negatives."""
    found = []
    for stage in ("seed", "audience"):
        user_ids, labels = dataset.samples(campaign, stage)
        ids = user_ids.to_numpy() - 100
        assert len(np.unique(ids)) == len(ids)
        found += [set(ids[labels == 1].tolist()), set(ids[labels == 0].tolist())]
    return found[0], found[1], found[2], found[3]


def test_twenty_negatives_a_positive_who_never_showed_interest(tmp_path: Path) -> None:
    interests = [Interest(rows(0, 3), rows(3, 5), rows(5, 50))] * 2
    seeds, seed_negatives, audience, audience_negatives = drawn(construct(tmp_path / "d", interests, 1000), 0)
    assert (seeds, audience) == ({0, 1, 2}, {3, 4})
    assert (len(seed_negatives), len(audience_negatives)) == (60, 40)
    assert not seed_negatives & audience_negatives
    assert not (seed_negatives | audience_negatives) & set(range(50))


def test_too_few_users_are_shared_in_proportion(tmp_path: Path) -> None:
    interests = [Interest(rows(0, 10), rows(10, 40), rows(0, 0))] * 2
    seeds, seed_negatives, audience, audience_negatives = drawn(construct(tmp_path / "d", interests, 440), 0)
    assert (len(seeds), len(audience)) == (10, 30)
    assert (len(seed_negatives), len(audience_negatives)) == (100, 300)
    assert not seed_negatives & audience_negatives


def test_or_the_audience_repeats_negatives_of_the_seeds(tmp_path: Path) -> None:
    interests = [Interest(rows(0, 10), rows(10, 20), rows(0, 0))] * 2
    dataset = construct(tmp_path / "d", interests, 320, reuse=True)
    _, seed_negatives, _, audience_negatives = drawn(dataset, 0)
    assert (len(seed_negatives), len(audience_negatives)) == (200, 200)
    assert len(seed_negatives | audience_negatives) == 300  # all there are


def test_sixty_in_a_hundred_campaigns_are_for_training(tmp_path: Path) -> None:
    interests = [Interest(rows(0, 1), rows(1, 2), rows(0, 0))] * 10
    dataset = construct(tmp_path / "d", interests, 100)
    assert len(dataset.campaign_ids("train")) == 6
    assert len(dataset.campaign_ids("test")) == 4
    assert dataset.campaign_ids("train") != list(range(6))


def test_campaigns_are_a_random_share_of_the_candidates() -> None:
    candidates = rows(100, 200)
    chosen = choose_campaigns(candidates, 0.5, np.random.default_rng(0))
    assert len(chosen) == 50
    assert np.all(np.diff(chosen) > 0)
    assert set(chosen) < set(candidates)
    assert chosen.tolist() != choose_campaigns(candidates, 0.5, np.random.default_rng(1)).tolist()
    with pytest.raises(InvalidInput, match="only 2 items"):
        choose_campaigns(rows(0, 2), 0.5, np.random.default_rng(0))
