"""The queue, on both databases: its order, its leases, and who may write what it has lost or not."""

from __future__ import annotations

import asyncio
import tempfile
import threading
import time
from collections.abc import AsyncIterator, Sequence
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy as sa
from hypothesis import given, settings
from hypothesis import strategies as st
from operations import TENANT, Stores, stores

from lookalike import errors
from lookalike.config import QuotasConfig, TenantQuota
from lookalike.retrieval.receipt import Progress, Stage
from lookalike.service.fairness import Quotas, Waiting
from lookalike.service.records import OPERATIONS, PRIORITY_SECONDS, Operation, Priority, State


@pytest.fixture
async def both(database_url: str, tmp_path: Path) -> AsyncIterator[Stores]:
    async with stores(database_url, tmp_path) as it:
        yield it


async def claimed(both: Stores) -> Operation:
    it = await both.leases.claim()
    assert it is not None
    return it


async def test_first_come_first_served(both: Stores) -> None:
    for name in "cab":
        await both.create(name)
    first = await claimed(both)
    assert (first.id, first.state, first.fence) == ("c", State.RUNNING, 1)
    assert first.started is not None
    assert [await both.claim() for _ in range(3)] == ["a", "b", None]


async def test_a_priority_is_worth_some_minutes(both: Stores) -> None:
    await both.create("normal", created=0)
    await both.create("low", created=0, priority=Priority.LOW)
    await both.create("soon", created=PRIORITY_SECONDS - 1, priority=Priority.HIGH)
    await both.create("late", created=PRIORITY_SECONDS + 1, priority=Priority.HIGH)
    await both.create("later", created=PRIORITY_SECONDS - 1)
    assert [await both.claim() for _ in range(5)] == ["soon", "normal", "late", "later", "low"]


async def test_tenants_take_turns_whoever_came_first(both: Stores) -> None:
    for n in range(4):
        await both.create(f"a{n}", tenant="a")
    for n in range(2):
        await both.create(f"b{n}", tenant="b")
    order = []
    while it := await both.leases.claim():
        order.append(it.id)
        await both.leases.finish(it, State.SUCCEEDED)
    assert order == ["a0", "b0", "a1", "b1", "a2", "a3"]


EVENTS = st.lists(
    st.tuples(st.just("order"), st.sampled_from("abc"), st.sampled_from(Priority), st.integers(0, 2000))
    | st.tuples(st.just("claim"))
    | st.tuples(st.just("finish"), st.integers(0, 5))
    | st.tuples(st.just("give back"), st.integers(0, 5))
    | st.tuples(st.just("cancel"), st.integers(0, 30)),
    max_size=40,
)


@settings(max_examples=40)
@given(events=EVENTS)
def test_whatever_happens_the_next_is_who_the_rules_say(events: list[tuple[Any, ...]]) -> None:
    """The rules are those of `fairness`, kept by hand beside the database. Nothing is lost, nothing runs twice."""
    quotas = QuotasConfig(running=2, tenants={"b": TenantQuota(weight=2, running=3)})

    async def play(folder: Path) -> None:
        async with stores("", folder, quotas) as both:
            waiting: dict[str, Operation] = {}
            running: dict[str, Operation] = {}
            turns: dict[str, float] = {}
            accepted: list[Operation] = []

            async def claim() -> bool:
                tenants = [
                    Waiting(
                        tenant,
                        sum(one.tenant == tenant for one in running.values()),
                        turns.get(tenant),
                        min(one.due for one in waiting.values() if one.tenant == tenant),
                    )
                    for tenant in {one.tenant for one in waiting.values()}
                ]
                expected = Quotas(quotas).turns(tenants, max(turns.values(), default=0.0))
                got = await both.leases.claim()
                if not expected:
                    assert got is None
                    return False
                mine = [one for one in waiting.values() if one.tenant == expected[0].tenant]
                assert got is not None
                assert got.id == min(mine, key=lambda one: (one.due, one.number)).id
                turns[got.tenant] = expected[0].start
                running[got.id] = got
                del waiting[got.id]
                return True

            for event, *details in events:
                if event == "order":
                    tenant, priority, created = details
                    name = f"o{len(accepted)}"
                    one = await both.create(name, tenant=tenant, priority=priority, created=created)
                    accepted.append(one)
                    waiting[name] = one
                elif event == "claim":
                    await claim()
                elif event == "cancel" and details[0] < len(accepted) and accepted[details[0]].id not in running:
                    one = accepted[details[0]]
                    await both.store.request_cancel(one.tenant, one.id)
                    waiting.pop(one.id, None)
                elif event in ("finish", "give back") and details[0] < len(running):
                    one = running.pop(list(running)[details[0]])
                    if event == "finish":
                        assert await both.leases.finish(one, State.SUCCEEDED)
                    else:
                        await both.leases.give_back(one)
                        waiting[one.id] = one
            while running or await claim():
                for name in list(running):
                    assert await both.leases.finish(running.pop(name), State.SUCCEEDED)
            assert waiting == {}
            assert await both.store.ended([one.id for one in accepted]) == [one.id for one in accepted]

    with tempfile.TemporaryDirectory() as folder:
        asyncio.run(play(Path(folder)))


async def test_a_tenant_runs_no_more_than_it_may(database_url: str, tmp_path: Path) -> None:
    quotas = QuotasConfig(running=1, tenants={"b": TenantQuota(running=2)})
    async with stores(database_url, tmp_path, quotas) as both:
        for tenant in "ab":
            for n in range(3):
                await both.create(f"{tenant}{n}", tenant=tenant)
        running = [await claimed(both) for _ in range(3)]
        assert {one.id for one in running} == {"a0", "b0", "b1"}
        assert await both.claim() is None
        await both.leases.finish(running[0], State.SUCCEEDED)
        assert await both.claim() is not None


async def test_nothing_is_claimed_twice(both: Stores, database_url: str, tmp_path: Path) -> None:
    for n in range(20):
        await both.create(f"o{n}", tenant=f"t{n % 3}")
    if not both.database.shared:
        taken = await asyncio.gather(*(both.claim() for _ in range(25)))
    else:
        async with stores(database_url, tmp_path) as other:
            taken = await asyncio.gather(*(one.claim() for _ in range(13) for one in (both, other)))
    ids = [name for name in taken if name is not None]
    assert sorted(ids) == sorted(f"o{n}" for n in range(20))


async def test_a_restart_runs_again_in_the_old_order_what_was_not_cancelled(database_url: str, tmp_path: Path) -> None:
    async with stores(database_url, tmp_path) as both:
        for name in "abcd":
            await both.create(name)
        a, _, c = [await claimed(both) for _ in "abc"]
        await both.leases.note_progress(a, Progress(Stage.SCORING, 5, 9), 5, 9)
        await both.store.request_cancel(TENANT, "b")
        await both.leases.finish(c, State.FAILED, errors.NotFound("no pool", field="pool"))
        started = (await both.store.get(TENANT, "a")).started
    async with stores(database_url, tmp_path) as both:
        assert [one.id for one in await both.leases.requeue_abandoned([], everything=True)] == ["b"]
        a, b, c, d = [await both.store.get(TENANT, name) for name in "abcd"]
        assert [one.state for one in (a, b, c, d)] == [State.QUEUED, State.CANCELLED, State.FAILED, State.QUEUED]
        assert (a.progress, a.users_scored, a.users_total) == (Progress(Stage.SCORING, 5, 9), 5, 9)
        assert isinstance(b.error, errors.Cancelled)
        assert isinstance(c.error, errors.NotFound)
        assert (c.error.message, c.error.field) == ("no pool", "pool")
        again = await claimed(both)
        assert (again.id, again.started, again.fence) == ("a", started, 2)


async def test_what_keeps_losing_its_front_is_failed(database_url: str, tmp_path: Path) -> None:
    async with stores(database_url, tmp_path, max_lost_runs=3) as both:
        await both.create("a", audience_id="mine")
        ended: Sequence[Operation] = []
        for lost in range(3):
            assert ended == []
            for _ in range(5):  # stopped properly, it loses none
                await both.leases.give_back(await claimed(both))
            assert (await claimed(both)).lost == lost
            ended = await both.leases.requeue_abandoned([], everything=True)
        assert [(one.id, one.state, one.lost) for one in ended] == [("a", State.FAILED, 3)]
        a = await both.store.get(TENANT, "a")
        assert isinstance(a.error, errors.Unavailable)
        assert (a.error.reason, a.attempts) == ("SERVER_DIED", 0)
        assert "given up after 3 runs" in a.error.message
        assert await both.leases.requeue_abandoned([], everything=True) == []
        await both.create("b", audience_id="mine")  # the name is free again


async def test_what_was_to_be_cancelled_is_when_its_front_is_lost_once_too_often(
    database_url: str, tmp_path: Path
) -> None:
    async with stores(database_url, tmp_path, max_lost_runs=1) as both:
        for name in "ab":
            await both.create(name)
            await claimed(both)
        await both.store.request_cancel(TENANT, "a")
        assert len(await both.leases.requeue_abandoned([], everything=True)) == 2
        assert await both.states("a", "b") == [State.CANCELLED, State.FAILED]


async def test_what_has_a_lease_is_left_alone(both: Stores) -> None:
    await both.create("a")
    await claimed(both)
    assert await both.leases.requeue_abandoned([]) == []
    assert await both.states("a") == [State.RUNNING]


async def test_whoever_lost_an_operation_can_write_nothing(database_url: str, tmp_path: Path) -> None:
    async with stores(database_url, tmp_path, lease_seconds=-1.0) as slow:  # its leases are over when they begin
        await slow.create("a")
        lost = await claimed(slow)
        await slow.leases.requeue_abandoned(["a"])  # it runs here: no
        assert await slow.states("a") == [State.RUNNING]
        await slow.leases.requeue_abandoned([])
        assert await slow.states("a") == [State.QUEUED]
        quick = Stores(slow.database, QuotasConfig(), 100, 60.0)
        taken = await claimed(quick)
        assert (taken.id, taken.fence) == ("a", lost.fence + 1)

        assert not await slow.leases.begin_attempt(lost)
        assert not await slow.leases.note_progress(lost, Progress(Stage.SCORING, 1, 2), 1, 2)
        assert not await slow.leases.finish(lost, State.FAILED, errors.NotFound("x"))
        await slow.leases.give_back(lost)
        assert await slow.leases.renew([lost]) == {}
        now = await slow.store.get(TENANT, "a")
        assert (now.state, now.attempts, now.progress) == (State.RUNNING, 0, None)

        await quick.store.request_cancel(TENANT, "a")
        assert await quick.leases.renew([taken]) == {"a": True}
        assert await quick.leases.finish(taken, State.SUCCEEDED)
        assert not await quick.leases.finish(taken, State.FAILED)
        assert await quick.states("a") == [State.SUCCEEDED]


async def test_the_same_front_that_lost_and_has_it_again_is_told_apart_by_the_fence(both: Stores) -> None:
    await both.create("a")
    first = await claimed(both)
    await both.leases.give_back(first)
    second = await claimed(both)
    assert second.id == first.id
    assert not await both.leases.finish(first, State.FAILED)
    await both.leases.give_back(first)
    assert await both.leases.finish(second, State.SUCCEEDED)


async def test_what_is_given_back_has_its_old_place(both: Stores) -> None:
    for name in "ab":
        await both.create(name)
    first = await claimed(both)
    assert await both.leases.renew([first]) == {"a": False}
    await both.leases.give_back(first)
    assert await both.states("a", "b") == [State.QUEUED, State.QUEUED]
    assert await both.claim() == "a"


async def test_what_is_given_back_and_was_to_be_cancelled_is(both: Stores) -> None:
    await both.create("a")
    it = await claimed(both)
    await both.store.request_cancel(TENANT, "a")
    await both.leases.give_back(it)
    assert await both.states("a") == [State.CANCELLED]


async def test_giving_back_waits_for_what_we_are_still_writing(postgres_url: str, tmp_path: Path) -> None:
    """The last note of a job that is stopped goes on on its thread; skipping its row would leave a lease behind."""
    async with stores(postgres_url, tmp_path) as both:
        await both.create("a")
        it = await claimed(both)
        locked = threading.Event()

        def write(connection: sa.Connection) -> None:
            connection.execute(OPERATIONS.update().where(OPERATIONS.c.id == "a").values(users_scored=1))
            locked.set()
            waiting = sa.text("SELECT count(*) FROM pg_locks WHERE NOT granted")
            give_up = time.monotonic() + 10
            while not connection.scalar(waiting) and time.monotonic() < give_up:
                time.sleep(0.01)

        writing = both.database.run(write)
        await asyncio.to_thread(locked.wait)
        await both.leases.give_back(it)
        await writing
        assert await both.states("a") == [State.QUEUED]
