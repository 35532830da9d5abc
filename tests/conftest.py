"""What many tests share: one small synthetic history and the pool ingested from it. Read them; do not write to them."""

from __future__ import annotations

from pathlib import Path

import pytest

from lookalike.dataset.synthetic import simulate
from lookalike.pool.ingest import ingest


@pytest.fixture(scope="session")
def sample_dataset(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A dataset folder: 2,000 users with integer ids, 20 campaigns (12 train, 8 test), every kind of field."""
    path = tmp_path_factory.mktemp("sample") / "dataset"
    simulate(path, users=2000, campaigns=20, seed=7)
    return path


@pytest.fixture(scope="session")
def sample_pool(sample_dataset: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The pool of `sample_dataset`'s users."""
    path = tmp_path_factory.mktemp("sample") / "pool"
    ingest(sample_dataset / "users.parquet", path)
    return path
