"""What many tests share: one small synthetic history and the pool ingested from it. Read them; do not write to them."""

from __future__ import annotations

import gc
import os
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

# Before torch is loaded: OpenMP threads that spin while they wait starve the servers the tests run beside.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

import pyarrow as pa
import pytest
from hypothesis import settings
from postgres import database, programs, server
from secured import authority, big_pool, secured, start, stranger  # noqa: F401 - fixtures

from lookalike.config import AdaptationConfig, Config, JointConfig, ModelConfig, ScoringConfig, TrainingConfig
from lookalike.dataset.layout import USERS, Dataset
from lookalike.dataset.synthetic import simulate
from lookalike.pool.ingest import ingest
from lookalike.pool.snapshot import Pool
from lookalike.training.tasks import Task, load_tasks

if TYPE_CHECKING:
    from lookalike.expander import Expander

# The same code has the same verdict, today and elsewhere, on however slow a machine. To search for more:
# --hypothesis-profile=random.
settings.register_profile("random", derandomize=False, deadline=None)
settings.register_profile("repeatable", derandomize=True, deadline=None)
settings.load_profile("repeatable")


def pytest_addoption(parser: pytest.Parser) -> None:
    """`make test DATA=DIR`."""
    parser.addoption(
        "--data", type=Path, help="real data for the tests that want it: a data set in the layout, or raw files"
    )


def pytest_configure() -> None:
    """A shell that starts tests in the background has them ignore SIGINT, and so would every program they start."""
    if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.default_int_handler)


def pytest_unconfigure() -> None:
    """What scorers froze is garbage again, before libraries look for what was left over."""
    gc.unfreeze()


@pytest.fixture(scope="session")
def real_dataset(request: pytest.FixtureRequest) -> Path:
    """The dataset folder given with --data; without one the test is skipped."""
    return _real_data(request, "a real data set", USERS)


@pytest.fixture(scope="session")
def tencent2018_raw(request: pytest.FixtureRequest) -> Path:
    """The folder with the contest's raw files given with --data, or a part of them; without one the test is skipped."""
    return _real_data(request, "raw files of the Tencent Ads 2018 contest", "userFeature.data")


def _real_data(request: pytest.FixtureRequest, what: str, file: str) -> Path:
    path: Path | None = request.config.getoption("--data")
    if path is None:
        pytest.skip(f"wants {what}: make test DATA=DIR")
    if not (path / file).exists():
        pytest.skip(f"wants {what}: {path} has no {file}")
    return path


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


@pytest.fixture(scope="session")
def dataset(sample_dataset: Path) -> Dataset:
    """`sample_dataset`, open."""
    return Dataset.open(sample_dataset)


@pytest.fixture(scope="session")
def pool(sample_pool: Path) -> Pool:
    """`sample_pool`, open."""
    return Pool.open(sample_pool)


@pytest.fixture(scope="session")
def tasks(dataset: Dataset, pool: Pool) -> list[Task]:
    """The training campaigns of `dataset`."""
    return load_tasks(dataset, pool, dataset.campaign_schema(), "train")


@pytest.fixture(scope="session")
def postgres() -> Iterator[Path]:
    """The folder of a PostgreSQL server's socket; skipped where none is installed, but never in CI."""
    binaries = programs()
    if binaries is None:
        wanted = "wants PostgreSQL's programs (Debian: postgresql)"
        pytest.fail(wanted) if "CI" in os.environ else pytest.skip(wanted)
    with server(binaries) as sockets:
        yield sockets


@pytest.fixture
def postgres_url(postgres: Path) -> Iterator[str]:
    """`service.database_url` of an empty PostgreSQL database."""
    with database(postgres) as url:
        yield url


@pytest.fixture(params=["sqlite", "postgresql"])
def database_url(request: pytest.FixtureRequest) -> str:
    """`service.database_url` for both databases, an empty one for each test."""
    if request.param == "sqlite":
        return ""
    url: str = request.getfixturevalue("postgres_url")
    return url


SMALL_MODEL = ModelConfig(embedding_dim=4, num_experts=2, num_critics=2, hidden=(8, 8), gate_hidden=8)


@pytest.fixture(scope="session")
def small_config() -> Config:
    """A model and a training that take seconds; one thread, for small tensors are slower with more."""
    return Config(
        model=SMALL_MODEL,
        training=TrainingConfig(
            support_size=128, query_size=128, tasks_per_step=4, max_samples=20_000, validate_every=10
        ),
        joint=JointConfig(batch_samples=1000, min_steps=1),
        adaptation=AdaptationConfig(batch_size=128),
        scoring=ScoringConfig(device="cpu", batch_size=256, threads=1),
    )


@pytest.fixture(scope="session")
def sample_checkpoint(
    sample_dataset: Path, sample_pool: Path, small_config: Config, tmp_path_factory: pytest.TempPathFactory
) -> Path:
    """A general checkpoint for `sample_pool`, trained on `sample_dataset`."""
    from lookalike.training.pretraining import train

    path = tmp_path_factory.mktemp("sample") / "checkpoint"
    train(Dataset.open(sample_dataset), Pool.open(sample_pool), path, small_config)
    return path


@pytest.fixture(scope="session")
def expander(sample_checkpoint: Path, sample_pool: Path, small_config: Config) -> Expander:
    """`sample_checkpoint` and `sample_pool`, open."""
    from lookalike.expander import Expander

    return Expander.open(sample_checkpoint, sample_pool, small_config)


@pytest.fixture(scope="session")
def order(sample_dataset: Path) -> dict[str, Any]:
    """What a marketer hands in: a test campaign's name, features and seeds."""
    dataset = Dataset.open(sample_dataset)
    campaign = dataset.campaign_ids("test")[0]
    users, labels = dataset.samples(campaign, "seed")
    seeds = users.filter(pa.array(labels == 1))
    return {"campaign": str(campaign), "features": dataset.campaign_features(campaign), "seeds": seeds, "k": 300}
