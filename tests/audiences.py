"""Test help: a front that can be started again, with calls that follow any tenant's, and what its audiences hold.

Test modules name the fixtures they want (`client = audiences.client`). conftest.py has none of them, for other
modules have fixtures of the same names; imported, they would be redefined by every test's parameters.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import orders
import pyarrow.parquet as pq
import pytest
from serving import SECONDS, Front, ScriptedRuntime, config_for, front

from lookalike.client import Client
from lookalike.pool.snapshot import Pool
from lookalike.service import caller
from lookalike.service.caller import Caller, Scope
from lookalike.v1 import audience_pb2

SEEDS = [3, 1, 2]


class Who:
    """Makes the calls that follow another tenant's, with other scopes."""

    def __init__(self) -> None:
        self.tenant = "acme"
        self.scopes = frozenset(Scope)

    def __call__(self) -> Caller:
        return Caller(self.tenant, self.scopes)


@pytest.fixture
def who(monkeypatch: pytest.MonkeyPatch) -> Who:
    it = Who()
    monkeypatch.setattr(caller, "current", it)
    return it


runtime = orders.runtime


class Service:
    """A front that can be stopped and started again, and a client of it."""

    def __init__(self, folder: Path, pool: Path, runtime: ScriptedRuntime, **service: Any) -> None:
        self.config = config_for(folder, **service)
        self.pool, self.runtime = pool, runtime
        self.users: list[int] = Pool.open(pool).user_ids(np.arange(100)).to_pylist()

    def __enter__(self) -> Client:
        self._front = front(self.config, self.pool, self.runtime)
        self.running: Front = self._front.__enter__()
        self.client = Client(self.running.address, timeout=SECONDS)
        return self.client

    def __exit__(self, *raised: object) -> None:
        self.client.close()
        self._front.__exit__(*raised)

    def folder(self, audience: audience_pb2.Audience) -> Path:
        return Path(audience.receipt_path).parent

    def audit(self, event: str) -> list[dict[str, Any]]:
        lines = (self.running.data_dir / "audit.jsonl").read_text().splitlines()
        return [line for line in map(json.loads, lines) if line["event"] == event]


@pytest.fixture
def service(runtime: ScriptedRuntime, sample_pool: Path, database_url: str, tmp_path: Path) -> Service:
    return Service(tmp_path / "data", sample_pool, runtime, database_url=database_url, reserve_least=3)


@pytest.fixture
def client(service: Service) -> Iterator[Client]:
    with service as it:
        yield it


def order(client: Client, **changes: Any) -> audience_pb2.Audience:
    return client.expand(**{"campaign": "spring", "seeds": SEEDS, "k": 10, **changes}).result(SECONDS)


def members(client: Client, name: str) -> list[int]:
    return [user for batch in client.members(name) for user in batch["user_id"].to_pylist()]


def stored(folder: Path) -> set[int]:
    return {user for path in folder.glob("*.parquet") for user in pq.read_table(path)["user_id"].to_pylist()}
