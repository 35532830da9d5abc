"""Test help: a front on each database, a client of it, orders, and the details of what it refuses.

Test modules name the fixtures they want (`client = orders.client`). conftest.py has none of them, for other
modules have fixtures of the same names; imported, they would be redefined by every test's parameters.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import grpc
import pytest
import serving
from google.rpc import status_pb2
from serving import SECONDS, Front, ScriptedRuntime, config_for, front

from lookalike.client import Client, Expansion
from lookalike.v1 import audience_pb2

SEEDS = [3, 1, 2]


@pytest.fixture
def each_database(database_url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Fronts whose test says nothing else are on SQLite, then on PostgreSQL."""
    monkeypatch.setattr(serving, "DATABASE_URL", database_url)


@pytest.fixture
def runtime() -> ScriptedRuntime:
    return ScriptedRuntime()


@pytest.fixture
def running(runtime: ScriptedRuntime, sample_pool: Path, tmp_path: Path) -> Iterator[Front]:
    with front(config_for(tmp_path / "data"), sample_pool, runtime) as it:
        yield it


@pytest.fixture
def client(running: Front) -> Iterator[Client]:
    with Client(running.address, timeout=SECONDS) as it:
        yield it


@pytest.fixture
def channel(running: Front) -> Iterator[grpc.Channel]:
    with grpc.insecure_channel(running.address) as it:
        yield it


def order(client: Client, **changes: object) -> Expansion:
    return client.expand(**{"campaign": "spring", "seeds": SEEDS, "k": 5, **changes})


def request_of(**changes: object) -> audience_pb2.ExpandAudienceRequest:
    request = audience_pb2.ExpandAudienceRequest(**{"k": 5, **changes})
    if not request.HasField("campaign"):
        request.campaign.name = "spring"
    if request.WhichOneof("seeds") is None:
        request.seed_ids.integers.values.extend(SEEDS)
    return request


def detail(error: grpc.RpcError, message: object) -> object:
    """The detail of the type of `message` in a failed call's status."""
    (value,) = (value for key, value in error.trailing_metadata() if key == "grpc-status-details-bin")
    for packed in status_pb2.Status.FromString(value).details:
        if packed.Unpack(message):
            return message
    raise AssertionError(f"no {type(message).__name__}")
