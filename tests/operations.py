"""Test help: operations, and the store and the queue over one database."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

from lookalike.config import QuotasConfig
from lookalike.runtime.job import ExpansionJob
from lookalike.service.audience_records import AudienceRecords
from lookalike.service.database import Database, database_url
from lookalike.service.fairness import Quotas
from lookalike.service.leases import Leases
from lookalike.service.operations import OperationStore
from lookalike.service.opt_outs import OptOutStore
from lookalike.service.records import Operation, Priority, State

TENANT = "acme"


def operation(
    name: str,
    *,
    tenant: str = TENANT,
    request_id: str | None = None,
    audience_id: str | None = None,
    sha: str = "s",
    campaign: str = "c",
    priority: Priority = Priority.NORMAL,
    created: float = 1.5,
) -> Operation:
    job = ExpansionJob(
        job_id=name,
        campaign=campaign,
        features={"category": "tøys", "tags": ["a", 1], "budget": 1.5, "none": None},
        seeds=Path("/s.parquet"),
        k=3,
        pool=Path("/pool"),
        output=Path("/out"),
        cancel_flag=Path("/flag"),
    )
    return Operation(
        id=name,
        tenant=tenant,
        request_id=request_id,
        request_sha256=sha,
        audience_id=audience_id or name,
        priority=priority,
        job=job,
        users_total=100,
        created=created,
    )


class Stores:
    """One front's view of a database."""

    def __init__(
        self, database: Database, quotas: QuotasConfig, max_queued: int, lease_seconds: float, max_lost_runs: int = 10
    ) -> None:
        self.database = database
        self.store = OperationStore(database, Quotas(quotas), max_queued=max_queued)
        self.records = AudienceRecords(database, audience_days=0)
        self.opt_outs = OptOutStore(database)
        self.leases = Leases(database, Quotas(quotas), lease_seconds=lease_seconds, max_lost_runs=max_lost_runs)

    async def create(self, name: str, **changes: object) -> Operation:
        stored, new = await self.store.create(operation(name, **changes))
        assert new
        return stored

    async def claim(self) -> str | None:
        claimed = await self.leases.claim()
        return claimed.id if claimed else None

    async def audience(self, audience_id: str, *, tenant: str = TENANT) -> str:
        return (await self.records.find(tenant, audience_id)).id

    async def states(self, *names: str, tenant: str = TENANT) -> list[State]:
        return [(await self.store.get(tenant, name)).state for name in names]


@asynccontextmanager
async def stores(
    url: str,
    folder: Path,
    quotas: QuotasConfig | None = None,
    *,
    max_queued: int = 100,
    lease_seconds: float = 60.0,
    max_lost_runs: int = 10,
) -> AsyncIterator[Stores]:
    """`url` as `service.database_url` has it; `folder` where SQLite's file is."""
    database = await Database.open(database_url(url, folder))
    try:
        yield Stores(database, quotas or QuotasConfig(), max_queued, lease_seconds, max_lost_runs)
    finally:
        await database.close()
