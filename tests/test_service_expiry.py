"""What has expired goes, with its folders, and nothing else; a data folder belongs to one database."""

from __future__ import annotations

import os
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
import sqlalchemy as sa
from operations import TENANT, Stores, operation, stores
from serving import ScriptedRuntime, config_for, front

from lookalike import errors
from lookalike.client import Client
from lookalike.service.data_dir import STAGED_SECONDS, UNKNOWN_AUDIENCE_SECONDS, DataDir, bind, data_dir
from lookalike.service.expiry import Expiry
from lookalike.service.people import People
from lookalike.service.records import AUDIENCES, OPERATIONS, State

A, B, C, D = ("a" * 32, "b" * 32, "c" * 32, "d" * 32)
DAY = 86_400.0


@asynccontextmanager
async def opened(url: str, path: Path) -> AsyncIterator[tuple[Stores, DataDir]]:
    async with data_dir(path, shared=bool(url)) as folder, stores(url, path) as both:
        yield both, folder


async def done(both: Stores, folder: DataDir, name: str, state: State, days_ago: float) -> None:
    """An operation that ended so long ago; with its audience, when it succeeded."""
    await both.create(name)
    claimed = await both.leases.claim()
    assert claimed is not None
    await both.leases.finish(claimed, state, None if state is State.SUCCEEDED else errors.Cancelled("x"))
    then = time.time() - days_ago * DAY

    def age(connection: sa.Connection) -> None:
        connection.execute(OPERATIONS.update().where(OPERATIONS.c.id == name).values(ended=then))
        connection.execute(AUDIENCES.update().where(AUDIENCES.c.id == name).values(published=then))

    await both.database.run(age)
    if state is State.SUCCEEDED:
        (folder.audiences / name).mkdir()


def old(path: Path, seconds: float) -> Path:
    path.mkdir(parents=True, exist_ok=True)
    os.utime(path, 2 * (time.time() - seconds,))
    return path


async def test_what_has_expired_goes_and_nothing_active(database_url: str, tmp_path: Path) -> None:
    async with opened(database_url, tmp_path) as (both, folder):
        await done(both, folder, A, State.SUCCEEDED, days_ago=3)
        await done(both, folder, B, State.SUCCEEDED, days_ago=1)
        await done(both, folder, C, State.CANCELLED, days_ago=3)
        await both.store.create(operation(D, created=time.time() - 100 * DAY))
        (folder.jobs / D).mkdir()
        expiry = Expiry(both.database, folder, operation_days=2, audience_days=2)
        for _ in range(2):
            await expiry.sweep(alone=False)
            assert [one.id for one in await both.store.list(TENANT, after=0, limit=9)] == [B, D]
            assert [one.name for one in folder.audiences.iterdir()] == [B]
            assert [one.name for one in folder.jobs.iterdir()] == [D]
        with pytest.raises(errors.NotFound):
            await both.audience(A)
        assert await both.audience(B) == B


async def test_deleted_seeds_are_nowhere(tmp_path: Path) -> None:
    def files_with_somebody() -> list[str]:
        return [path.name for path in tmp_path.glob("operations.db*") if b"somebody" in path.read_bytes()]

    async with opened("", tmp_path) as (both, folder):
        await both.store.create(operation(A), People({"seeds": b"somebody"}))
        claimed = await both.leases.claim()
        assert claimed is not None
        await both.leases.finish(claimed, State.CANCELLED, errors.Cancelled("x"))
        assert files_with_somebody() == ["operations.db-wal"]
        await Expiry(both.database, folder, operation_days=0, audience_days=0).sweep(alone=False)
        assert files_with_somebody() == []


async def test_each_has_its_own_time(database_url: str, tmp_path: Path) -> None:
    async with opened(database_url, tmp_path) as (both, folder):
        await done(both, folder, A, State.SUCCEEDED, days_ago=3)
        await Expiry(both.database, folder, operation_days=0, audience_days=0).sweep(alone=False)
        assert await both.states(A) == [State.SUCCEEDED]
        await Expiry(both.database, folder, operation_days=2, audience_days=0).sweep(alone=False)
        assert await both.audience(A) == A
        await done(both, folder, B, State.SUCCEEDED, days_ago=3)
        await Expiry(both.database, folder, operation_days=0, audience_days=2).sweep(alone=False)
        assert await both.states(B) == [State.SUCCEEDED]
        assert list(folder.audiences.iterdir()) == []


async def test_folders_that_belong_to_nothing_go_when_nobody_can_be_at_them(database_url: str, tmp_path: Path) -> None:
    """A is active, B an audience, C and D unknown."""
    async with opened(database_url, tmp_path) as (both, folder):
        await done(both, folder, B, State.SUCCEEDED, days_ago=1)
        await both.create(A)
        hour = STAGED_SECONDS + 60
        kept = [
            old(folder.jobs / A, hour),
            old(folder.jobs / C, 60),
            old(folder.jobs / f"{C}.tmp-1", 60),
            old(folder.audiences / B, 100 * DAY),
            old(folder.audiences / A, 100 * DAY),  # published, and not noted yet
            old(folder.audiences / f"{A}.partial-0123", hour),
            old(folder.audiences / f"{C}.partial-0123", 60),
            old(folder.audiences / C, UNKNOWN_AUDIENCE_SECONDS - 60),  # a restored database may have forgotten it
            old(folder.audiences / "somebody's own", 100 * DAY),
        ]
        gone = [
            old(folder.jobs / D, hour),
            old(folder.jobs / f"{D}.tmp-1", hour),
            old(folder.audiences / f"{D}.partial-0123", hour),
            old(folder.audiences / f"{B}.partial-0123", hour),
            old(folder.audiences / f"{D}.tmp-1", hour),
            old(folder.audiences / D, UNKNOWN_AUDIENCE_SECONDS + 60),
        ]
        expiry = Expiry(both.database, folder, operation_days=0, audience_days=0)
        await expiry.sweep(alone=False)
        assert [one for one in kept if not one.exists()] == []
        assert [one for one in gone if one.exists()] == []
        at_work = [old(folder.audiences / f"{A}.tmp-1", 0), folder.jobs / C, folder.audiences / f"{C}.partial-0123"]
        await expiry.sweep(alone=True)
        assert [one for one in at_work if one.exists()] == []
        left = [folder.jobs / A, folder.audiences / A, folder.audiences / B, folder.audiences / f"{A}.partial-0123"]
        assert all(one.exists() for one in left)


async def test_what_an_operation_that_is_done_left_goes_at_once(database_url: str, tmp_path: Path) -> None:
    """A front that was killed between an operation's end and forgetting it; a worker that was faster than its end."""
    async with opened(database_url, tmp_path) as (both, folder):
        await done(both, folder, A, State.SUCCEEDED, days_ago=0)
        await done(both, folder, B, State.CANCELLED, days_ago=0)
        gone = [folder.jobs / A, folder.jobs / B, folder.audiences / f"{A}.partial-0123", folder.audiences / B]
        for path in gone:
            path.mkdir()
        await Expiry(both.database, folder, operation_days=0, audience_days=0).sweep(alone=False)
        assert [one for one in gone if one.exists()] == []
        assert (folder.audiences / A).exists()


async def test_the_folder_and_the_database_belong_together(database_url: str, tmp_path: Path) -> None:
    async with opened(database_url, tmp_path / "a") as (both, folder):
        await bind(folder, both.database)
        await bind(folder, both.database)
        (folder.path / "database-id").write_text("another\n")
        with pytest.raises(errors.FailedPrecondition, match="another") as caught:
            await bind(folder, both.database)
        assert caught.value.reason == "DATA_DIR_OF_ANOTHER_DATABASE"
    if database_url:
        async with opened(database_url, tmp_path / "b") as (both, other):
            with pytest.raises(errors.FailedPrecondition, match="used together"):
                await bind(other, both.database)


async def test_a_folder_of_sqlites_is_not_given_to_an_empty_postgresql(postgres_url: str, tmp_path: Path) -> None:
    async with opened("", tmp_path):
        pass
    async with opened(postgres_url, tmp_path) as (both, folder):
        with pytest.raises(errors.FailedPrecondition, match="operations.db"):
            await bind(folder, both.database)


async def test_a_folder_is_shared_by_those_who_share(tmp_path: Path) -> None:
    async with data_dir(tmp_path, shared=True), data_dir(tmp_path, shared=True):
        with pytest.raises(errors.FailedPrecondition, match="another server uses"):
            async with data_dir(tmp_path, shared=False):
                pass
    async with data_dir(tmp_path, shared=False):
        with pytest.raises(errors.FailedPrecondition, match="another server uses"):
            async with data_dir(tmp_path, shared=True):
                pass


def test_a_server_forgets_when_it_starts(database_url: str, sample_pool: Path, tmp_path: Path) -> None:
    config = config_for(tmp_path, database_url=database_url)
    with front(config, sample_pool, ScriptedRuntime()) as running, Client(running.address) as client:
        expansion = client.expand(campaign="c", seeds=[1], k=1)
        name = expansion.result(30).name
    brief = config_for(tmp_path, database_url=database_url, operation_days=1e-9, audience_days=1e-9)
    with front(brief, sample_pool, ScriptedRuntime()) as running, Client(running.address) as client:
        assert list(client.operations()) == []
        with pytest.raises(errors.NotFound):
            client.audience(name)
    assert not (tmp_path / name).exists()
