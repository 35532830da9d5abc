"""Who opts out, over real gRPC and on both databases: gone from what is stored and what comes, and what is pending."""

from __future__ import annotations

import json
import time
from pathlib import Path

import audiences
import pyarrow as pa
import pytest
from audiences import SEEDS, Service, Who, members, order, stored
from operations import stores
from processes import wait_until
from serving import SECONDS, ScriptedRuntime

from lookalike import errors
from lookalike.client import Client
from lookalike.retrieval.audience import Audience
from lookalike.retrieval.receipt import Receipt
from lookalike.service import opt_out_keeper, opt_outs
from lookalike.service.audience_records import EVERYONE
from lookalike.service.caller import Scope
from lookalike.service.records import OPT_OUTS, State
from lookalike.v1 import audience_pb2

pytestmark = pytest.mark.usefixtures("who")
who, runtime, service, client = audiences.who, audiences.runtime, audiences.service, audiences.client


def test_who_opts_out_is_gone_from_what_is_stored_and_what_comes(
    client: Client, service: Service, runtime: ScriptedRuntime, who: Who
) -> None:
    users = service.users
    audience = order(client)
    assert (audience.size, audience.reserve_left, audience.revision) == (10, 3, 0)
    stub = client.connection.audiences
    pages = audience_pb2.ListAudienceMembersRequest(audience=audience.name, page_size=4)
    pages.page_token = stub.ListAudienceMembers(pages).next_page_token
    stream = audience_pb2.StreamAudienceMembersRequest(audience=audience.name)
    stream.resume_token = next(stub.StreamAudienceMembers(stream)).resume_token

    answer = client.opt_out([users[0], users[11], users[0], 10**9])
    assert (answer.added, answer.pending_audiences) == (3, 0)
    assert not stored(service.folder(audience)) & {users[0], users[11]}
    assert members(client, audience.name) == users[1:11]
    now = client.audience(audience.name)
    assert (now.size, now.reserve_left, now.opted_out, now.revision) == (10, 1, 2, 1)
    assert now.update_time.seconds >= now.create_time.seconds
    for call, request in ((stub.ListAudienceMembers, pages), (lambda r: list(stub.StreamAudienceMembers(r)), stream)):
        with pytest.raises(errors.FailedPrecondition) as caught:
            client.connection.call(lambda r, timeout, call=call: call(r), request)
        assert caught.value.reason == "AUDIENCE_CHANGED"
    assert client.opt_out(users[:1]).added == 0
    later = order(client, k=5)
    assert members(client, later.name) == users[1:6]
    assert runtime.jobs[-1].opted_out is not None
    assert client.audience(later.name).revision == 0

    client.opt_out(users[1:4])  # more than the reserve of the first has left
    now = client.audience(audience.name)
    assert (now.size, now.k_requested, now.reserve_left) == (8, 10, 0)
    assert members(client, audience.name) == [*users[4:11], users[12]]
    noted = service.audit("opt_out")[0]
    assert (noted["users"], noted["added"], noted["code"]) == (4, 3, "OK")
    assert str(10**9) not in json.dumps(noted)

    who.tenant = "other"
    assert members(client, order(client, k=3).name) == users[:3]


def test_everyones_opt_outs_want_a_scope_of_their_own(client: Client, service: Service, who: Who) -> None:
    mine = order(client)
    who.tenant, who.scopes = "other", frozenset({Scope.DELETE, Scope.READ, Scope.EXPAND})
    with pytest.raises(errors.PermissionDenied) as caught:
        client.opt_out(service.users[:1], all_tenants=True)
    assert caught.value.reason == "SCOPE_MISSING"
    client.opt_out(service.users[1:2])
    who.scopes = frozenset({Scope.ADMIN})
    assert client.opt_out(service.users[:1], all_tenants=True).pending_audiences == 0
    who.tenant = "acme"
    assert members(client, mine.name) == [service.users[0 + 1], *service.users[2:11]]
    with pytest.raises(errors.InvalidInput, match="integers"):
        client.opt_out(["x"])
    with pytest.raises(errors.InvalidInput, match="no users"):
        client.opt_out([])


def test_who_opts_out_while_an_audience_is_made_is_not_in_it(
    client: Client, service: Service, runtime: ScriptedRuntime
) -> None:
    client.opt_out(service.users[:1])
    runtime.hold()
    expansion = client.expand(campaign="c", seeds=SEEDS, k=5)
    runtime.wait_for(lambda r: r.running == 1)
    assert client.opt_out(service.users[2:3]).added == 1
    runtime.release()
    audience = expansion.result(SECONDS)
    assert members(client, audience.name) == [service.users[1], *service.users[3:7]]
    assert stored(service.folder(audience)).isdisjoint({service.users[0], service.users[2]})
    runtime.hold()
    expansion = client.expand(campaign="c", seeds=SEEDS, k=5)
    runtime.wait_for(lambda r: r.running == 1)
    client.opt_out(service.users[4:5])
    runtime.release()
    folder = service.folder(expansion.result(SECONDS))  # and nobody reads it
    wait_until(lambda: Receipt.read(folder).revision == 1 and not list(folder.glob("*.1.parquet")))
    assert service.users[4] not in stored(folder)


def test_nobody_is_shown_before_the_files_are_rewritten_and_a_restart_goes_on(
    service: Service, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    with service as client:
        audience = order(client)
        with monkeypatch.context() as patch:
            patch.setattr(opt_out_keeper, "remove_users", full)
            with Client(service.running.address, timeout=3) as hasty:
                assert hasty.opt_out(service.users[:1]).pending_audiences == 1
                with pytest.raises(errors.Unavailable) as caught:
                    hasty.audience(audience.name)
                assert caught.value.reason == "OPT_OUT_PENDING"
                assert [one.name for one in hasty.audiences()] == [audience.name]
            service.running.stop()
    assert service.users[0] in stored(service.folder(audience))
    with service as client:
        wait_until(lambda: Receipt.read(service.folder(audience)).revision == 1)
        wait_until(lambda: not list(service.folder(audience).glob("*.1.parquet")))
        assert service.users[0] not in stored(service.folder(audience))
        assert client.opt_out(service.users[:1]).pending_audiences == 0
        assert members(client, audience.name) == service.users[1:11]


def test_an_audience_that_cannot_be_rewritten_holds_up_no_other(
    client: Client, service: Service, monkeypatch: pytest.MonkeyPatch
) -> None:
    stuck, other = service.folder(order(client)), service.folder(order(client))
    remove_users = opt_out_keeper.remove_users

    def fails(folder: Path, user_ids: pa.Array) -> Receipt:
        if folder.name == stuck.name:
            raise ValueError("a defect")
        return remove_users(folder, user_ids)

    monkeypatch.setattr(opt_out_keeper, "remove_users", fails)
    with Client(service.running.address, timeout=3) as hasty:
        assert hasty.opt_out(service.users[:1]).pending_audiences == 1
    assert service.users[0] in stored(stuck)
    assert service.users[0] not in stored(other)


async def test_opt_outs_are_read_in_pages_and_by_number(
    database_url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(opt_outs, "PAGE", 3)
    async with stores(database_url, tmp_path) as both:
        store = both.opt_outs
        assert await store.last("a") == 0
        assert await store.add("a", [1, 2, 3, 4]) == 4
        assert await store.add(EVERYONE, [4, 5, -(2**63)]) == 3
        assert await store.add("a", [4, 1]) == 0
        assert await store.add("b", ["x", "", "007", str(2**63)]) == 4
        assert await store.add("a", []) == 0
        first, last = 1, await store.last("a")
        assert await store.last("c") == last < await store.last("b")
        everyone = {4, 5, -(2**63)}
        assert set((await store.between("a", 0, last, pa.int64())).to_pylist()) == {1, 2, 3} | everyone
        assert set((await store.between("a", first, last, pa.int64())).to_pylist()) == everyone
        assert (await store.between("a", last, 99, pa.int64())).to_pylist() == []
        assert set((await store.between("b", 0, 99, pa.int64())).to_pylist()) == everyone
        text = await store.between("b", 0, 99, pa.large_string())
        assert set(text.to_pylist()) == {"x", "", "007", str(2**63), "4", "5", str(-(2**63))}


async def test_what_is_pending_is_counted_from_the_oldest_opt_out(database_url: str, tmp_path: Path) -> None:
    async with stores(database_url, tmp_path) as both:

        async def age(number: int, seconds: float) -> None:
            at = time.time() - seconds
            aged = OPT_OUTS.update().where(OPT_OUTS.c.number == number).values(created=at)
            await both.database.run(lambda connection: connection.execute(aged))

        async def pending() -> tuple[int, int]:
            found = await both.records.pending()
            return found.audiences, round(found.oldest_seconds / 100)

        for name, tenant in (("a1", "a"), ("a2", "a"), ("b1", "b"), ("unfinished", "a")):
            await both.create(name, tenant=tenant)
        for _ in range(3):
            operation = await both.leases.claim()
            assert operation is not None
            await both.leases.finish(operation, State.SUCCEEDED)
        assert await pending() == (0, 0)
        for number, (tenant, seconds) in enumerate((("a", 9000), ("c", 8000), (EVERYONE, 700), ("a", 500)), 1):
            assert await both.opt_outs.add(tenant, [number]) == 1
            await age(number, seconds)
        assert await pending() == (3, 90)
        await both.records.note_opted_out("a1", 1)
        assert await pending() == (3, 90)
        await both.records.note_opted_out("a2", 3)
        assert await pending() == (3, 7)
        await both.records.note_opted_out("a1", 4)
        await both.records.note_opted_out("b1", 3)
        assert await pending() == (1, 5)
        await both.records.begin_delete("a", "a2")
        assert await pending() == (0, 0)


def test_an_audience_of_old_has_no_reserve_and_shrinks(client: Client, service: Service) -> None:
    audience = order(client, reserve=0)
    assert audience.reserve_left == 0
    client.opt_out(service.users[:2])
    assert members(client, audience.name) == service.users[2:10]
    assert Audience.open(service.folder(audience)).receipt.k_requested == 10
