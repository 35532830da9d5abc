"""Simulated pools: the same as ingesting the profile's data set, whatever the threads, or nothing at all."""

from __future__ import annotations

import shutil
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pyarrow as pa
import pytest
from conftest import SMALL_MODEL

from lookalike.config import AdaptationConfig, Config, ScoringConfig, TrainingConfig
from lookalike.dataset.layout import Dataset
from lookalike.dataset.profiles import PROFILES, Population
from lookalike.dataset.synthetic import simulate
from lookalike.errors import AlreadyExists, InvalidInput, ResourceExhausted
from lookalike.expander import Expander
from lookalike.pool.ingest import ingest
from lookalike.pool.simulated import pool_bytes, simulate_pool
from lookalike.pool.snapshot import Pool
from lookalike.retrieval.verify import require_passed, verify
from lookalike.training.pretraining import train

LEAN = PROFILES["lean"]


@pytest.mark.parametrize("name", PROFILES)
def test_it_is_the_pool_of_the_data_set_s_users(name: str, tmp_path: Path) -> None:
    """Text in Parquet and numbers in shards are two forms of the same users, encoded alike."""
    dataset = simulate(tmp_path / "data", users=3000, campaigns=5, seed=3, profile=name)
    ingested = ingest(dataset.users_path, tmp_path / "ingested", schema=PROFILES[name].schema)
    simulated = simulate_pool(tmp_path / "simulated", PROFILES[name], users=3000, seed=3)
    assert simulated.fingerprint == ingested.fingerprint
    assert simulated.schema.fingerprint == PROFILES[name].schema.fingerprint


@pytest.mark.parametrize("name", PROFILES)
def test_threads_do_not_show_and_shards_join(name: str, tmp_path: Path) -> None:
    users = 150_000  # two blocks and some; shards begin and end within blocks
    one = simulate_pool(tmp_path / "one", PROFILES[name], users=users, shard_rows=40_000, threads=1)
    many = simulate_pool(tmp_path / "many", PROFILES[name], users=users, shard_rows=40_000, threads=4)
    whole = simulate_pool(tmp_path / "whole", PROFILES[name], users=users)
    assert one.fingerprint == many.fingerprint
    assert [shard.rows for shard in one.manifest.shards] == [40_000] * 3 + [30_000]
    for pool in (one, whole):
        pool.verify()
    rows = np.random.default_rng(0).integers(users, size=2000)
    assert one.user_ids(rows).equals(whole.user_ids(rows))
    cut, uncut = one.take(rows), whole.take(rows)
    for field in one.schema.fields:
        assert np.array_equal(cut.ids[field.name], uncut.ids[field.name])


def test_a_smaller_pool_is_the_beginning_of_a_larger_one_and_another_seed_another_pool(tmp_path: Path) -> None:
    small = simulate_pool(tmp_path / "small", LEAN, users=1000)
    large = simulate_pool(tmp_path / "large", LEAN, users=2000)
    assert large.find(small.user_ids(np.arange(1000))).tolist() == list(range(1000))
    assert simulate_pool(tmp_path / "other", LEAN, users=1000, seed=1).fingerprint != small.fingerprint


def test_the_size_is_known_beforehand(tmp_path: Path) -> None:
    for profile in PROFILES.values():
        pool = simulate_pool(tmp_path / profile.name, profile, users=100_000)
        written = sum(shard.bytes for shard in pool.manifest.shards)
        assert pool_bytes(Population(profile, 0), 100_000) == pytest.approx(written, rel=0.01)


def test_a_disk_that_is_too_small_is_told_before_anything_is_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(shutil, "disk_usage", lambda path: SimpleNamespace(free=2_000_000_000))
    with pytest.raises(ResourceExhausted, match=r"needs 23\.0 GB .* has 2\.0 GB left") as caught:
        simulate_pool(tmp_path / "pool", LEAN, users=10**9)
    assert caught.value.field == "output"
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("error", [KeyboardInterrupt, RuntimeError])
def test_stopping_leaves_the_old_pool_and_nothing_else(tmp_path: Path, error: type[BaseException]) -> None:
    old = simulate_pool(tmp_path / "pool", LEAN, users=100)

    def stop(done: int, total: int) -> None:
        if done > total / 2:
            raise error

    with pytest.raises(error):
        simulate_pool(tmp_path / "pool", LEAN, users=4000, shard_rows=100, progress=stop, overwrite=True)
    assert [path.name for path in tmp_path.iterdir()] == ["pool"]
    assert Pool.open(tmp_path / "pool").fingerprint == old.fingerprint


def test_progress_counts_users(tmp_path: Path) -> None:
    seen: list[tuple[int, int]] = []
    simulate_pool(
        tmp_path / "pool", LEAN, users=250, shard_rows=100, progress=lambda done, total: seen.append((done, total))
    )
    assert seen == [(100, 250), (200, 250), (250, 250)]


def test_nonsense_is_refused(tmp_path: Path) -> None:
    for name in ("users", "shard_rows", "threads"):
        with pytest.raises(InvalidInput, match=name) as caught:
            simulate_pool(tmp_path / "pool", LEAN, **{"users": 10, name: 0})
        assert caught.value.field == name
    simulate_pool(tmp_path / "pool", LEAN, users=10)
    with pytest.raises(AlreadyExists):
        simulate_pool(tmp_path / "pool", LEAN, users=10)


def test_what_is_learnt_on_the_data_set_expands_over_a_larger_pool(tmp_path: Path) -> None:
    """The vocabulary is the profile's, so the checkpoint fits; and it ranks users it never saw far above chance."""
    users = 20_000
    dataset = simulate(tmp_path / "data", users=4000, campaigns=20, profile="lean")
    small = simulate_pool(tmp_path / "small", LEAN, users=4000)
    simulate_pool(tmp_path / "large", LEAN, users=users, shard_rows=7000)
    config = Config(
        model=SMALL_MODEL,
        training=TrainingConfig(support_size=256, query_size=256, tasks_per_step=4, max_samples=100_000),
        adaptation=AdaptationConfig(batch_size=128),
        scoring=ScoringConfig(device="cpu", batch_size=1024, threads=1),
    )
    train(dataset, small, tmp_path / "general", config)
    expander = Expander.open(tmp_path / "general", tmp_path / "large")
    campaign = dataset.campaign_ids("test")[0]
    user_ids, labels = dataset.samples(campaign, "seed")
    seeds = user_ids.filter(pa.array(labels == 1))
    audience = expander.expand(
        campaign=str(campaign),
        features=dataset.campaign_features(campaign),
        seeds=seeds,
        k=1000,
        output=tmp_path / "audience",
    )
    require_passed(verify(audience.path))
    assert audience.receipt.seeds.not_in_pool == 0
    # Interest in a campaign grows with a user's taste along one direction, which its seeds and feedback tell.
    later, labels = Dataset.open(tmp_path / "data").samples(campaign, "audience")
    population = Population(LEAN, 0)

    def mean_taste(ids: pa.Array) -> np.ndarray[tuple[int], np.dtype[np.float64]]:
        mean: np.ndarray[tuple[int], np.dtype[np.float64]] = population.tastes(
            expander.pool.take(expander.pool.find(ids))
        ).mean(0)
        return mean

    everyone = population.tastes(expander.pool.read(0, users))
    wanted = mean_taste(later.filter(pa.array(labels == 1))) - everyone.mean(0)
    along = everyone @ wanted
    chosen = (mean_taste(audience.members(0, 1000)["user_id"].combine_chunks()) @ wanted - along.mean()) / along.std()
    assert chosen > 0.7  # chance: 0 +- 0.03; the very best 5% would have 2
