"""The operations store, on both databases: idempotency, tenants, limits, cancelling, listing, forgetting."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from dataclasses import replace
from pathlib import Path

import pytest
from operations import TENANT, Stores, operation, stores

from lookalike import errors
from lookalike.config import QuotasConfig, TenantQuota
from lookalike.service.data_dir import data_dir
from lookalike.service.expiry import Expiry
from lookalike.service.filters import parse_filter
from lookalike.service.operations import Load
from lookalike.service.records import AUDIENCES, OPERATIONS, Priority, State


@pytest.fixture
async def both(database_url: str, tmp_path: Path) -> AsyncIterator[Stores]:
    async with stores(database_url, tmp_path) as it:
        yield it


async def test_what_is_stored_is_what_was_given(both: Stores) -> None:
    given = operation("a", request_id="r", audience_id="spring", priority=Priority.HIGH)
    stored, new = await both.store.create(given)
    assert new
    assert stored == replace(given, number=1)
    assert await both.store.get(TENANT, "a") == stored


async def test_a_request_id_names_one_operation_of_a_tenant(both: Stores) -> None:
    first = await both.create("a", request_id="r")
    again, new = await both.store.create(operation("b", request_id="r"))
    assert (again, new) == (first, False)
    asked = {"audience_id": "", "request_sha256": "s"}
    assert await both.store.find(TENANT, request_id="r", **asked) == first
    assert await both.store.find(TENANT, request_id="q", **asked) is None
    assert await both.store.find("other", request_id="r", **asked) is None
    for other_content in (
        both.store.create(operation("b", request_id="r", sha="t")),
        both.store.find(TENANT, request_id="r", audience_id="", request_sha256="t"),
    ):
        with pytest.raises(errors.AlreadyExists) as caught:
            await other_content
        assert (caught.value.field, caught.value.reason) == ("request_id", "REQUEST_ID_REUSED")
    with pytest.raises(errors.NotFound):
        await both.store.get(TENANT, "b")
    await both.create("b", request_id="r", tenant="other", sha="t")


async def test_an_audience_id_names_one_audience_of_a_tenant(both: Stores) -> None:
    first = await both.create("a", audience_id="spring", request_id="1")
    again, new = await both.store.create(operation("b", audience_id="spring", request_id="2"))
    assert (again, new) == (first, False)
    await both.create("c", audience_id="spring", tenant="other", sha="t")
    with pytest.raises(errors.AlreadyExists, match="another audience_id") as caught:
        await both.store.create(operation("b", audience_id="spring", sha="t"))
    assert (caught.value.field, caught.value.reason) == ("audience_id", "AUDIENCE_EXISTS")
    with pytest.raises(errors.NotFound):
        await both.audience("spring")  # not finished
    claimed = await both.leases.claim()
    assert claimed is not None
    assert await both.leases.finish(claimed, State.SUCCEEDED)
    assert await both.audience("spring") == "a"
    with pytest.raises(errors.NotFound):
        await both.audience("spring", tenant="third")
    await both.store.delete(TENANT, "a")
    assert await both.audience("spring") == "a"
    with pytest.raises(errors.AlreadyExists):  # there is no operation to return any more
        await both.store.create(operation("b", audience_id="spring"))


@pytest.mark.parametrize("end", ["failed", "cancelled"])
async def test_the_name_of_an_audience_that_came_to_nothing_is_free_again(both: Stores, end: str) -> None:
    await both.create("a", audience_id="spring")
    if end == "failed":
        claimed = await both.leases.claim()
        assert claimed is not None
        await both.leases.finish(claimed, State.FAILED, errors.NotFound("no pool", field="pool"))
    else:
        await both.store.request_cancel(TENANT, "a")
    await both.create("b", audience_id="spring", sha="t")


async def test_one_id_from_many_at_once_is_one_operation(both: Stores) -> None:
    given = [operation(f"o{n}", request_id="r", audience_id="spring") for n in range(12)]
    answers = await asyncio.gather(*(both.store.create(one) for one in given))
    assert sum(new for _, new in answers) == 1
    assert len({stored.id for stored, _ in answers}) == 1


async def test_other_tenants_see_and_change_nothing(both: Stores) -> None:
    await both.create("a")
    for call in (both.store.get, both.store.request_cancel, both.store.delete):
        with pytest.raises(errors.NotFound, match="operations/a"):
            await call("other", "a")
    assert await both.store.list("other", after=0, limit=9) == []
    assert await both.states("a") == [State.QUEUED]
    await both.store.request_cancel(TENANT, "a")
    with pytest.raises(errors.NotFound):
        await both.store.delete("other", "a")
    assert await both.states("a") == [State.CANCELLED]


async def test_the_queue_has_a_limit_that_running_ones_do_not_count_to(database_url: str, tmp_path: Path) -> None:
    async with stores(database_url, tmp_path, max_queued=1) as both:
        await both.create("a", tenant="x")
        with pytest.raises(errors.QuotaExceeded, match="1 operations are queued") as caught:
            await both.create("b", tenant="y")
        assert (caught.value.quota, caught.value.subject) == ("service.max_queued", "service")
        await both.claim()
        await both.create("b", tenant="y")


async def test_tenants_have_quotas_of_their_own(database_url: str, tmp_path: Path) -> None:
    quotas = QuotasConfig(queued=1, per_day=3, tenants={"large": TenantQuota(queued=2, per_day=100)})
    async with stores(database_url, tmp_path, quotas) as both:
        for name, tenant in (("a", "small"), ("b", "large"), ("c", "large")):
            await both.create(name, tenant=tenant)
        for tenant in ("small", "large"):
            with pytest.raises(errors.QuotaExceeded) as caught:
                await both.create("x", tenant=tenant)
            assert (caught.value.quota, caught.value.subject) == ("quotas.queued", f"tenant:{tenant}")
            assert 1 <= caught.value.retry_seconds <= 3600
        for name in "de":
            await both.store.request_cancel("small", "a" if name == "d" else "d")
            await both.create(name, tenant="small")
        await both.store.request_cancel("small", "e")
        for name in "ade":
            await both.store.delete("small", name)
        with pytest.raises(errors.QuotaExceeded, match="since midnight UTC") as caught:  # deleting helps nothing
            await both.create("x", tenant="small")
        assert caught.value.quota == "quotas.per_day"
        assert 0 < caught.value.retry_seconds <= 86_400


async def test_a_repeated_request_counts_once(database_url: str, tmp_path: Path) -> None:
    async with stores(database_url, tmp_path, QuotasConfig(per_day=1)) as both:
        first = await both.create("a", request_id="r")
        assert await both.store.create(operation("b", request_id="r")) == (first, False)


async def test_cancelling(both: Stores) -> None:
    for name in "ab":
        await both.create(name)
    claimed = await both.leases.claim()
    assert claimed is not None
    running, queued = [await both.store.request_cancel(TENANT, name) for name in "ab"]
    assert (running.state, running.cancel_requested) == (State.RUNNING, True)
    assert (queued.state, queued.cancel_requested) == (State.CANCELLED, True)
    await both.leases.finish(claimed, State.SUCCEEDED)
    assert (await both.store.request_cancel(TENANT, "a")).state is State.SUCCEEDED
    assert await both.claim() is None
    with pytest.raises(errors.NotFound):
        await both.store.request_cancel(TENANT, "z")


async def test_listing(both: Stores) -> None:
    for name in "abcde":
        await both.create(name, campaign="x" if name in "ace" else "y")
    await both.create("f", tenant="other")
    await both.claim()
    everything = await both.store.list(TENANT, after=0, limit=100)
    assert [one.id for one in everything] == list("abcde")
    assert [one.id for one in await both.store.list(TENANT, after=everything[1].number, limit=2)] == ["c", "d"]
    where = parse_filter('state = QUEUED AND campaign = "x"')
    assert [one.id for one in await both.store.list(TENANT, after=0, limit=9, where=where)] == ["c", "e"]


async def test_places_in_the_queue_are_the_tenants_own(both: Stores) -> None:
    await both.create("a")
    await both.create("x", tenant="other")
    await both.create("b")
    await both.create("c", priority=Priority.HIGH)
    assert [(await both.store.get(TENANT, name)).queue_position for name in "abc"] == [1, 2, 0]
    assert [one.queue_position for one in await both.store.list(TENANT, after=0, limit=9)] == [1, 2, 0]
    assert (await both.store.get("other", "x")).queue_position == 0


async def test_a_number_is_never_used_twice(both: Stores) -> None:
    await both.create("a")
    await both.store.request_cancel(TENANT, "a")
    await both.store.delete(TENANT, "a")
    assert (await both.create("b")).number == 2


async def test_deleting(both: Stores) -> None:
    await both.create("a", request_id="r")
    with pytest.raises(errors.FailedPrecondition):
        await both.store.delete(TENANT, "a")
    await both.store.request_cancel(TENANT, "a")
    await both.store.delete(TENANT, "a")
    with pytest.raises(errors.NotFound):
        await both.store.delete(TENANT, "a")
    await both.create("b", request_id="r")


async def test_which_have_ended(both: Stores) -> None:
    for name in "ab":
        await both.create(name)
    await both.store.request_cancel(TENANT, "a")
    assert await both.store.ended(["a", "b", "gone"]) == ["a", "gone"]


async def test_the_load_learns_from_what_has_run(both: Stores) -> None:
    before = await both.store.load(TENANT)
    assert (before.queued, before.queued_by_all, before.running, before.tenants) == (0, 0, 0, 1)
    assert before.wait_seconds(1) == 0
    await both.create("a")
    claimed = await both.leases.claim()
    assert claimed is not None
    await both.leases.finish(claimed, State.SUCCEEDED)
    await both.create("b", tenant="other")
    after = await both.store.load(TENANT)
    assert 0 <= after.run_seconds < before.run_seconds
    assert (after.queued, after.queued_by_all, after.tenants) == (0, 1, 2)


@pytest.mark.parametrize(
    ("load", "slots", "seconds"),
    [
        (Load(10, 0, 0, 1, 1), 2, 0),  # a free slot
        (Load(10, 0, 0, 2, 1), 2, 5),  # the next to end
        (Load(10, 0, 100, 1, 2), 1, 20),  # one of the other tenant's hundred goes first
        (Load(10, 3, 4, 1, 2), 1, 50),
        (Load(10, 3, 4, 5, 2), 1, 10),  # other servers run as well
    ],
)
def test_the_wait_is_estimated(load: Load, slots: int, seconds: float) -> None:
    assert load.wait_seconds(slots) == seconds


@pytest.mark.parametrize(
    "damage",
    [
        {"state": "LOST"},
        {"priority": 9},
        {"stage": "NONE"},
        {"job": "{}"},
        {"job": "no JSON"},
        {"id": "../../elsewhere"},
    ],
    ids=str,
)
async def test_a_damaged_row_is_told_of_and_leads_nowhere(both: Stores, damage: dict[str, object]) -> None:
    await both.create("a")
    await both.create("b")
    row = OPERATIONS.update().where(OPERATIONS.c.id == "a")
    await both.database.run(lambda connection: connection.execute(row.values(damage)))
    with pytest.raises(errors.DataCorrupted, match=r"(row 1 of|where an id should be)"):
        await both.store.list(TENANT, after=0, limit=10)
    assert (await both.store.get(TENANT, "b")).id == "b"


async def test_an_audiences_folder_is_never_out_of_the_data_folder(both: Stores, tmp_path: Path) -> None:
    await both.create("a", audience_id="spring")
    spoilt = AUDIENCES.update().values(id="../precious", published=1.0)
    await both.database.run(lambda connection: connection.execute(spoilt))
    (tmp_path / "precious").mkdir()
    with pytest.raises(errors.DataCorrupted, match="where an id should be"):
        await both.audience("spring")
    async with data_dir(tmp_path / "data", shared=True) as folder:
        expiry = Expiry(both.database, folder, operation_days=0, audience_days=1)
        with pytest.raises(errors.DataCorrupted):
            await expiry.sweep(alone=True)
    assert (tmp_path / "precious").exists()
