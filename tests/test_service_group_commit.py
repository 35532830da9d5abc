"""Works that wait for the database share a transaction: each is done once or not at all, whatever its neighbours do."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy as sa
from hypothesis import given, settings
from hypothesis import strategies as st
from operations import TENANT, Stores, operation, stores
from serving import SECONDS

from lookalike import errors
from lookalike.config import QuotasConfig
from lookalike.service.database import GROUP
from lookalike.service.people import People
from lookalike.service.records import AUDIENCES, OPERATIONS, PEOPLE, TENANTS


@asynccontextmanager
async def held(both: Stores, *, orders_alone: bool = False) -> AsyncIterator[None]:
    """Nothing is done for the database inside the block; what comes waits. `orders_alone`: on one connection."""
    shared = both.database.shared
    count = 5 if shared and not orders_alone else 1  # four connections for everything, one that accepts
    entered, go = threading.Barrier(1 + count), threading.Event()

    def hold(connection: sa.Connection) -> None:
        entered.wait(SECONDS)
        assert go.wait(SECONDS)

    holding = [both.database.run(hold) for _ in range(count - shared)]
    holding += [both.database.accept(hold, "")] if shared else []
    await asyncio.to_thread(entered.wait, SECONDS)
    try:
        yield
    finally:
        go.set()
        await asyncio.gather(*holding)


def count_commits(both: Stores) -> Callable[[], int]:
    commits: list[object] = []
    sa.event.listen(both.database._engine, "commit", commits.append)
    return lambda: len(commits)


async def rows(both: Stores, table: sa.Table) -> list[Any]:
    return await both.database.run(lambda connection: list(connection.execute(sa.select(table))))


async def test_each_of_many_at_once_is_stored_once_and_a_wrong_one_alone_is_refused(
    database_url: str, tmp_path: Path
) -> None:
    names = [f"{n:032x}" for n in range(GROUP)]
    async with stores(database_url, tmp_path, QuotasConfig(queued=1000)) as both:
        await both.create("taken", request_id="taken")
        commits = count_commits(both)
        async with held(both):
            waiting = []
            for n, name in enumerate(names):
                wanted = operation(name, request_id="taken" if n % 8 == 3 else f"r{n}", sha=str(n))
                waiting.append(asyncio.ensure_future(both.store.create(wanted, People({"seeds": name.encode()}))))
                # The same once more: a client that has lost patience.
                waiting.append(asyncio.ensure_future(both.store.create(wanted, People({"seeds": name.encode()}))))
            await asyncio.sleep(0)
        ends = await asyncio.gather(*waiting, return_exceptions=True)
        accepted = []
        for n, name in enumerate(names):
            pair = ends[2 * n : 2 * n + 2]
            if n % 8 == 3:
                assert all(isinstance(end, errors.AlreadyExists) for end in pair)
                continue
            results = [end for end in pair if not isinstance(end, BaseException)]
            assert sorted(created for _, created in results) == [False, True], pair
            assert {stored.id for stored, _ in results} == {name}
            accepted.append(name)
        stored = await both.store.list(TENANT, after=0, limit=1000)
        assert sorted(one.id for one in stored) == sorted([*accepted, "taken"])
        assert len({one.number for one in stored}) == len(stored)
        assert {(one.id, one.content) for one in await rows(both, PEOPLE)} == {(n, n.encode()) for n in accepted}
        assert len(await rows(both, AUDIENCES)) == len(stored)
        (tenant,) = await rows(both, TENANTS)
        assert tenant.accepted == len(stored)
        assert commits() <= 5 + -(-len(waiting) // GROUP) + 4  # held, the groups, and the looks above


async def test_what_the_database_refuses_is_undone_alone(database_url: str, tmp_path: Path) -> None:
    async with stores(database_url, tmp_path) as both:
        await both.create("taken")
        done: set[str] = set()
        for number in range(8):  # psycopg prepares what it has seen five times, and one of these is refused then
            good = [f"a{number}", f"b{number}"]
            async with held(both, orders_alone=True):
                waiting = [
                    asyncio.ensure_future(both.store.create(operation(name), People({"seeds": name.encode()})))
                    for name in (good[0], "taken", good[1])
                ]
                await asyncio.sleep(0)
            ends = await asyncio.gather(*waiting, return_exceptions=True)
            assert [type(end) for end in ends] == [tuple, sa.exc.IntegrityError, tuple], ends
            done.update(good)
        assert {one.id for one in await rows(both, AUDIENCES)} == {"taken", *done}
        assert {(one.id, one.content) for one in await rows(both, PEOPLE)} == {(one, one.encode()) for one in done}
        (tenant,) = await rows(both, TENANTS)
        assert tenant.accepted == 1 + len(done)
        # Alone, too: nothing of it is left behind on the connection.
        with pytest.raises(sa.exc.IntegrityError):
            await both.store.create(operation("taken"))
        await both.create("c")


async def test_a_place_that_is_left_is_given_once(database_url: str, tmp_path: Path) -> None:
    async with stores(database_url, tmp_path, QuotasConfig(queued=5)) as both:
        async with held(both):
            waiting = [asyncio.ensure_future(both.store.create(operation(f"{n:032x}"))) for n in range(20)]
            await asyncio.sleep(0)
        ends = await asyncio.gather(*waiting, return_exceptions=True)
        refused = [end for end in ends if isinstance(end, errors.QuotaExceeded)]
        assert (len(refused), len(await rows(both, OPERATIONS))) == (15, 5)
        accepted = [end[0] for end in ends if not isinstance(end, BaseException)]
        assert sorted(one.queue_position for one in accepted) == list(range(5))


WORKS = st.sampled_from(["insert", "raise", "sql", "insert, raise"])


@settings(max_examples=25)
@given(works=st.lists(WORKS, min_size=1, max_size=12))
async def test_together_is_as_one_after_the_other(works: list[str], tmp_path_factory: pytest.TempPathFactory) -> None:
    def work(number: int, kind: str) -> Callable[[sa.Connection], int]:
        def run(connection: sa.Connection) -> int:
            if "insert" in kind:
                connection.execute(PEOPLE.insert().values({"id": str(number), "file": "seeds", "content": b""}))
            if kind == "sql":
                connection.execute(sa.text("SELECT 1 FROM nowhere"))
            if "raise" in kind:
                raise errors.NotFound(str(number))
            return number

        return run

    async with stores("", tmp_path_factory.mktemp("together")) as both:
        async with held(both):
            waiting = [both.database.run(work(number, kind)) for number, kind in enumerate(works)]
        ends = await asyncio.gather(*waiting, return_exceptions=True)
        kinds = {"insert": int, "sql": errors.Unavailable}
        assert [type(end) for end in ends] == [kinds.get(kind, errors.NotFound) for kind in works]
        assert {row.id for row in await rows(both, PEOPLE)} == {
            str(number) for number, kind in enumerate(works) if kind == "insert"
        }


async def test_what_is_undone_as_a_whole_nobody_is_told_to_be_done(database_url: str, tmp_path: Path) -> None:
    """As SQLite does by itself when the disk is full."""

    def undo(connection: sa.Connection) -> None:
        connection.connection.driver_connection.execute("ROLLBACK")  # past SQLAlchemy, which does not notice

    async with stores(database_url, tmp_path) as both:
        async with held(both):
            waiting = [
                asyncio.ensure_future(both.create("a")),
                both.database.accept(undo, TENANT),
                asyncio.ensure_future(both.create("b")),
            ]
            await asyncio.sleep(0)
        ends = await asyncio.gather(*waiting, return_exceptions=True)
        assert [type(end) for end in ends] == [errors.Unavailable] * 3
        assert await rows(both, OPERATIONS) == []
        await both.create("c")


async def test_a_commit_that_fails_is_nobodys_success(tmp_path: Path) -> None:
    async with stores("", tmp_path) as both:

        @sa.event.listens_for(both.database._engine, "commit", once=True)
        def fail(_: sa.Connection) -> None:
            raise sa.exc.OperationalError("COMMIT", {}, OSError("the disk is full"))

        waiting = [both.create("a"), both.create("b")]
        ends = await asyncio.gather(*waiting, return_exceptions=True)
        assert errors.Unavailable in [type(end) for end in ends]
        stored = {row.id for row in await rows(both, OPERATIONS)}
        assert stored == {name for name, end in zip("ab", ends, strict=True) if not isinstance(end, BaseException)}


async def test_what_is_given_up_before_its_turn_is_not_done(database_url: str, tmp_path: Path) -> None:
    async with stores(database_url, tmp_path) as both:
        async with held(both):
            given_up = both.database.run(
                lambda connection: connection.execute(PEOPLE.insert().values(id="x", file="seeds", content=b""))
            )
            given_up.cancel()
            await asyncio.sleep(0)
        assert await rows(both, PEOPLE) == []


async def test_what_waits_when_the_database_is_closed_is_done_and_what_comes_after_is_refused(
    database_url: str, tmp_path: Path
) -> None:
    async with stores(database_url, tmp_path) as both:
        async with held(both):
            waiting = asyncio.ensure_future(both.create("a"))
            await asyncio.sleep(0)
            closing = asyncio.ensure_future(both.database.close())
        assert (await waiting).id == "a"
        await closing
        with pytest.raises(errors.Unavailable, match="shutting down"):
            await asyncio.wait_for(both.create("b"), SECONDS)


async def test_servers_that_accept_for_the_same_tenants_never_wait_for_each_other(
    postgres_url: str, tmp_path: Path
) -> None:
    url, tenants = postgres_url, [f"t{n:02}" for n in range(30)]
    async with stores(url, tmp_path) as first, stores(url, tmp_path) as second:
        for tenant in tenants:
            await first.create(f"{tenant} before", tenant=tenant)
        async with held(first), held(second):
            waiting = []
            for both, order in ((first, tenants), (second, tenants[::-1])):
                for tenant in order:
                    one = operation(f"{tenant} {order[0]}", tenant=tenant)
                    waiting.append(asyncio.ensure_future(both.store.create(one)))
            await asyncio.sleep(0)
        ends = await asyncio.gather(*waiting)
        assert all(created for _, created in ends)
        assert [row.accepted for row in await rows(first, TENANTS)] == [3] * len(tenants)
