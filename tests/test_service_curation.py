"""Finished audiences over real gRPC, on both databases: opt-outs, refresh, size, deletion, expiry, lists, overlap."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from operations import stores
from processes import wait_until
from serving import SECONDS, Front, ScriptedRuntime, config_for, front

from lookalike import errors
from lookalike.cli.app import run
from lookalike.client import Client
from lookalike.pool.snapshot import Pool
from lookalike.retrieval.audience import Audience
from lookalike.retrieval.receipt import Receipt
from lookalike.service import caller, curation, opt_out_keeper, opt_outs
from lookalike.service.audience_records import EVERYONE
from lookalike.service.caller import Caller, Scope
from lookalike.service.data_dir import DataDir
from lookalike.service.records import OPT_OUTS, State
from lookalike.v1 import audience_pb2

SEEDS = [3, 1, 2]


class Who:
    """Makes the calls that follow another tenant's, with other scopes."""

    def __init__(self) -> None:
        self.tenant = "acme"
        self.scopes = frozenset(Scope)

    def __call__(self) -> Caller:
        return Caller(self.tenant, self.scopes)


@pytest.fixture(autouse=True)
def who(monkeypatch: pytest.MonkeyPatch) -> Who:
    it = Who()
    monkeypatch.setattr(caller, "current", it)
    return it


@pytest.fixture
def runtime() -> ScriptedRuntime:
    return ScriptedRuntime()


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


# ------------------------------------------------------------------------------------------------------------ opt-outs


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


# ------------------------------------------------------------------------------------------------------------- refresh


def test_a_refresh_makes_it_anew_within_the_budget(
    client: Client, service: Service, runtime: ScriptedRuntime, who: Who
) -> None:
    users = service.users
    base = order(
        client,
        audience_id="old",
        features={"category": "toys", "tags": ["a", 1], "rate": 1.5},
        random_seed=7,
        filter="gender = 'gender_0'",
        exclude=[users[50]],
    )
    runtime.first = 5  # another ranking now: users 5, 6, ... and at the end 0 to 4
    free = client.refresh(base.name, request_id="r").result(SECONDS)
    assert members(client, free.name) == users[5:15]
    assert (free.refresh.previous, free.refresh.previous_size) == ("audiences/old", 10)
    assert (free.refresh.kept, free.refresh.joined, free.refresh.left) == (5, 5, 5)
    assert not free.refresh.HasField("churn_budget")
    job = runtime.jobs[-1]
    assert (job.campaign, job.features) == ("spring", {"category": "toys", "tags": ["a", 1], "rate": 1.5})
    assert (job.random_seed, job.k, job.filter, job.reserve) == (7, 10, runtime.jobs[0].filter, 3)
    assert client.refresh(base.name, request_id="r").result(SECONDS) == free
    assert len(runtime.jobs) == 2

    bound = client.refresh(base.name, churn_budget=0.2, audience_id="new").result(SECONDS)
    assert members(client, bound.name) == [*users[5:12], *users[0:3]]
    told = bound.refresh
    assert (told.churn_budget, told.kept, told.joined, told.left) == (0.2, 8, 2, 2)
    assert told.mean_score < told.mean_score_unbounded
    changed = list(client.changes(base.name, bound.name))
    assert [(one.kind, one.members["user_id"].to_pylist()) for one in changed] == [
        ("left", users[3:5]),
        ("joined", users[10:12]),
    ]
    assert {(one.left, one.joined, one.kept) for one in changed} == {(2, 2, 8)}
    assert changed[0].members["rank"].to_pylist() == [4, 5]
    mirrored = list(client.changes(bound.name, base.name))
    assert [one.members["user_id"].to_pylist() for one in mirrored] == [users[10:12], users[3:5]]
    assert list(client.changes(base.name, base.name)) == []

    other = client.refresh(base.name, k=4, seeds=[users[9]], reserve=0, ttl=timedelta(hours=1)).result(SECONDS)
    assert (other.size, other.seeds.given, other.reserve_left, other.HasField("expire_time")) == (4, 1, 0, True)

    request = audience_pb2.RefreshAudienceRequest(name=base.name, validate_only=True)
    operation = client.connection.audiences.RefreshAudience(request)
    assert operation.done
    assert not operation.name
    with pytest.raises(errors.InvalidInput, match="churn_budget"):
        client.refresh(base.name, churn_budget=1.5)
    with pytest.raises(errors.AlreadyExists):
        client.refresh(base.name, audience_id="new")
    who.tenant = "other"
    with pytest.raises(errors.NotFound):
        client.refresh(base.name)
    assert service.audit("refresh")[0]["audience"] == "audiences/old"


def test_changes_are_taken_up_after_any_message(
    client: Client, service: Service, runtime: ScriptedRuntime, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(curation, "USERS_A_MESSAGE", 2)
    users = service.users
    before = order(client, k=20).name
    runtime.first = 7
    after = order(client, k=20).name

    def stream(token: str = "", **changes: str) -> list[Any]:
        request = audience_pb2.StreamAudienceChangesRequest(resume_token=token, before=before, after=after)
        for name, value in changes.items():
            setattr(request, name, value)
        call = client.connection.audiences.StreamAudienceChanges
        answer: list[Any] = client.connection.call(lambda r, timeout: list(call(r, timeout=timeout)), request)
        return answer

    whole = stream()
    assert [user for one in whole for user in one.user_ids.integers.values] == [*users[:7], *users[20:27]]
    assert len({one.resume_token for one in whole}) == len(whole) > 6
    for sent, message in enumerate(whole, 1):
        assert stream(message.resume_token) == whole[sent:]
    (nothing,) = stream(after=before)
    assert (nothing.change, nothing.kept) == (0, 20)
    assert stream(nothing.resume_token, after=before) == []

    token = whole[0].resume_token
    halves = f"{token.split('.')[0]}.{whole[1].resume_token.split('.')[1]}"
    for wrong in ("x", ".", f"{token}.", token.split(".")[0], "..", halves):
        with pytest.raises(errors.InvalidInput, match="no token of this listing"):
            stream(wrong)
    with pytest.raises(errors.InvalidInput, match="no token of this listing"):
        stream(token, before=after, after=before)
    members_token = audience_pb2.StreamAudienceMembersRequest(audience=before)
    members_token.resume_token = token.split(".")[0]
    with pytest.raises(errors.InvalidInput, match="no token of this listing"):
        client.connection.call(
            lambda r, timeout: list(client.connection.audiences.StreamAudienceMembers(r)), members_token
        )
    for changed in (before, after):
        client.update_audience(changed, k=19)
        with pytest.raises(errors.FailedPrecondition, match=changed) as caught:
            stream(token)
        assert (caught.value.reason, caught.value.field) == ("AUDIENCE_CHANGED", "resume_token")
        client.update_audience(changed, k=20)
        assert stream(token) == whole[1:]


def test_who_opts_out_takes_no_part_in_a_refresh(client: Client, service: Service, runtime: ScriptedRuntime) -> None:
    users = service.users
    base = order(client, seeds=users[20:23])
    runtime.first = 5
    bound = client.refresh(base.name, churn_budget=0.2).result(SECONDS)
    client.opt_out([users[0], users[10], users[20]])
    fresh = client.refresh(base.name, churn_budget=0.2).result(SECONDS)
    # 1 to 9, and 11 in 0's place before: of the eight to be kept the last is 2
    assert members(client, bound.name) == [users[5], *users[6:10], users[11], users[12], *users[1:4]]
    assert runtime.jobs[-1].previous is not None
    assert fresh.refresh.previous_size == 10
    assert not stored(service.folder(fresh)) & {users[0], users[10], users[20]}
    client.opt_out(users[21:23])
    with pytest.raises(errors.EmptySeeds, match="opted out"):
        client.refresh(base.name)


# ---------------------------------------------------------------------------------------------- size, deletion, expiry


def test_a_size_is_changed_within_the_reserve(client: Client, service: Service) -> None:
    audience = order(client)
    assert client.update_audience(audience.name, k=12).size == 12
    assert members(client, audience.name) == service.users[:12]
    smaller = client.update_audience(audience.name, k=4)
    assert (smaller.size, smaller.k_requested, smaller.reserve_left, smaller.revision) == (4, 4, 9, 2)
    with pytest.raises(errors.FailedPrecondition) as caught:
        client.update_audience(audience.name, k=14)
    assert caught.value.reason == "RESERVE_EXHAUSTED"
    for wrong, field in (({"k": 0}, "audience.k_requested"), ({}, "update_mask"), ({"ttl": timedelta(0)}, "ttl")):
        with pytest.raises(errors.InvalidInput) as refused:
            client.update_audience(audience.name, **wrong)
        assert refused.value.field == field
    request = audience_pb2.UpdateAudienceRequest(audience=smaller, update_mask={"paths": ["campaign"]})
    with pytest.raises(errors.InvalidInput, match="update_mask"):
        client.connection.call(client.connection.audiences.UpdateAudience, request)
    assert members(client, audience.name) == service.users[:4]


def test_a_deleted_audience_is_gone_and_its_operation_says_so(
    client: Client, service: Service, who: Who, monkeypatch: pytest.MonkeyPatch
) -> None:
    expansion = client.expand(campaign="spring", seeds=SEEDS, k=10, audience_id="mine", request_id="r")
    audience = expansion.result(SECONDS)
    who.tenant = "other"
    with pytest.raises(errors.NotFound):
        client.delete_audience(audience.name)
    who.tenant = "acme"

    def busy(*_: object) -> None:
        raise OSError(16, "Device or resource busy")

    with monkeypatch.context() as patch:
        patch.setattr(DataDir, "remove_audience", busy)
        request = audience_pb2.DeleteAudienceRequest(name=audience.name)
        with pytest.raises(errors.Unavailable) as caught:
            client.connection.call(client.connection.audiences.DeleteAudience, request)
        assert caught.value.reason == "DELETE_PENDING"
    with pytest.raises(errors.NotFound):
        client.audience(audience.name)
    assert list(client.audiences()) == []
    client.delete_audience(audience.name)  # again, to its end
    assert not service.folder(audience).exists()
    with pytest.raises(errors.NotFound):
        client.delete_audience(audience.name)
    client.delete_audience(audience.name, allow_missing=True)
    with pytest.raises(errors.NotFound) as gone:
        expansion.result(SECONDS)
    assert gone.value.reason == "AUDIENCE_DELETED"
    metadata = expansion.metadata()
    assert metadata.state == metadata.STATE_SUCCEEDED
    assert metadata.audience_delete_time.seconds >= metadata.end_time.seconds
    assert order(client, audience_id="mine").name == audience.name
    with pytest.raises(errors.InvalidInput):
        client.delete_audience("operations/1")
    codes = [(line["audience"], line["code"]) for line in service.audit("delete")]
    assert ("audiences/mine", "OK") in codes
    assert ("audiences/mine", "NOT_FOUND") in codes


def test_a_deletion_that_was_cut_short_is_gone_on_with(service: Service, monkeypatch: pytest.MonkeyPatch) -> None:
    with service as client:
        audience = order(client)
        with monkeypatch.context() as patch:
            patch.setattr(DataDir, "remove_audience", lambda *_: (_ for _ in ()).throw(OSError(16, "busy")))
            with pytest.raises(errors.Unavailable):
                client.connection.call(
                    client.connection.audiences.DeleteAudience, audience_pb2.DeleteAudienceRequest(name=audience.name)
                )
            service.running.stop()
    assert service.folder(audience).exists()
    with service as client:
        assert not service.folder(audience).exists()
        assert list(client.audiences()) == []


def test_audiences_expire(service: Service, who: Who) -> None:
    with service as client:
        kept = order(client)
        assert not kept.HasField("expire_time")
        soon = datetime.now(UTC) + timedelta(days=2)
        timed = order(client, expires=soon)
        assert abs(timed.expire_time.ToDatetime(UTC) - soon) < timedelta(milliseconds=1)
        lasting = order(client, ttl=timedelta(hours=1))
        assert 3500 < lasting.expire_time.seconds - time.time() <= 3600
        longer = client.update_audience(lasting.name, ttl=timedelta(days=1))
        assert longer.expire_time.seconds > lasting.expire_time.seconds
        assert client.audience(lasting.name) == longer
        assert not client.update_audience(lasting.name, keep=True).HasField("expire_time")
        who.scopes = frozenset({Scope.EXPAND, Scope.READ})
        with pytest.raises(errors.PermissionDenied) as caught:  # it would be deleting, by another name
            client.update_audience(kept.name, ttl=timedelta(seconds=1))
        assert caught.value.reason == "SCOPE_MISSING"
        client.update_audience(timed.name, expires=soon + timedelta(days=1))
        who.scopes = frozenset(Scope)
        for wrong in ({"expires": datetime.now(UTC) - timedelta(seconds=1)}, {"ttl": timedelta(0)}):
            with pytest.raises(errors.InvalidInput):
                client.expand(campaign="c", seeds=SEEDS, k=1, **wrong)
        expansion = client.expand(campaign="c", seeds=SEEDS, k=1, ttl=timedelta(milliseconds=1))
        wait_until(expansion.done)
        expiring = expansion.metadata().audience
        wait_until(lambda: expiring not in [one.name for one in client.audiences()])
        with pytest.raises(errors.NotFound):
            client.audience(expiring)
        assert (service.running.data_dir / expiring).exists()
    with service as client:  # which sweeps first
        assert not (service.running.data_dir / expiring).exists()
        with pytest.raises(errors.NotFound) as gone:
            client.operation(expansion.name).result(SECONDS)
        assert gone.value.reason == "AUDIENCE_EXPIRED"
        assert {one.name for one in client.audiences()} == {kept.name, timed.name, lasting.name}


# ----------------------------------------------------------------------------------------------------- lists, overlaps


def test_audiences_are_listed_in_pages_and_by_filter(client: Client, service: Service, who: Who) -> None:
    names = [order(client, campaign=f"c{n % 2}", k=n + 1, audience_id=f"a{n}").name for n in range(5)]
    assert [one.name for one in client.audiences()] == names
    assert [one.size for one in client.audiences()] == [1, 2, 3, 4, 5]
    stub = client.connection.audiences
    page = stub.ListAudiences(audience_pb2.ListAudiencesRequest(page_size=2))
    seen = [one.name for one in page.audiences]
    while page.next_page_token:
        request = audience_pb2.ListAudiencesRequest(page_size=2, page_token=page.next_page_token)
        page = stub.ListAudiences(request)
        seen += [one.name for one in page.audiences]
    assert seen == names
    assert [one.name for one in client.audiences('campaign = "c1"')] == names[1::2]
    assert [one.name for one in client.audiences('audience = "audiences/a2" OR audience = "a4"')] == names[2::2]
    assert list(client.audiences('create_time > "2999-01-01" OR expire_time < "2999-01-01"')) == []
    for wrong in ({"filter": "size > 3"}, {"page_size": -1}, {"page_token": "x"}):
        with pytest.raises(errors.InvalidInput):
            client.connection.call(stub.ListAudiences, audience_pb2.ListAudiencesRequest(**wrong))
    request.filter = 'campaign = "c1"'
    with pytest.raises(errors.InvalidInput, match="no token of this listing"):
        client.connection.call(stub.ListAudiences, request)
    (service.folder(client.audience(names[0])) / "manifest.json").write_text("{")
    damaged, *whole = client.audiences()
    assert (damaged.name, damaged.campaign, damaged.size) == (names[0], "c0", 0)
    assert len(whole) == 4
    who.tenant = "other"
    assert list(client.audiences()) == []


def test_overlaps_are_exact_and_few_are_not_told(
    service: Service, runtime: ScriptedRuntime, sample_pool: Path, tmp_path: Path, who: Who
) -> None:
    with service as client:
        first = order(client).name
        runtime.first = 4
        second, third = order(client, k=20).name, order(client, k=3).name
        compared = client.compare([first, second, third])
        assert list(compared.sizes) == [10, 20, 3]
        told = [(one.first, one.second, one.common) for one in compared.overlaps]
        assert told == [(first, second, 6), (first, third, 3), (second, third, 3)]
        one = compared.overlaps[0]
        assert (one.jaccard, one.share_of_first, one.share_of_second) == (6 / 24, 0.6, 0.3)
        for wrong in ([first], [first] * 11, [first, "x"]):
            with pytest.raises(errors.InvalidInput):
                client.compare(wrong)
        who.tenant = "other"
        with pytest.raises(errors.NotFound):
            client.compare([first, second])
        who.tenant = "acme"
        assert service.audit("compare")[0]["audiences"] == [first, second, third]
        refreshed = client.refresh(first).result(SECONDS).name
    floored = Service(tmp_path / "data", sample_pool, runtime, privacy_floor=5, **_database(service))
    with floored as client:
        compared = client.compare([first, second])
        assert not compared.overlaps[0].HasField("common")  # for four are in the first alone
        assert not compared.overlaps[0].HasField("jaccard")
        assert client.compare([first, first]).overlaps[0].common == 10
        with pytest.raises(errors.FailedPrecondition) as caught:
            list(client.changes(first, second))
        assert caught.value.reason == "PRIVACY_FLOOR"
        assert list(client.changes(first, first)) == []
        shown = client.audience(refreshed).refresh
        assert (shown.previous_size, shown.HasField("kept")) == (10, False)


def _database(service: Service) -> dict[str, Any]:
    return {"database_url": service.config.service.database_url}


# -------------------------------------------------------------------------------------------------------- command line


@pytest.mark.parametrize("database_url", ["sqlite"], indirect=True)
def test_the_command_line_does_all_of_it(
    client: Client, service: Service, runtime: ScriptedRuntime, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    server = ["--server", service.running.address]

    def said(*arguments: str, code: int = 0) -> str:
        capsys.readouterr()
        assert run(["client", *arguments, *server]) == code
        return capsys.readouterr().out

    (tmp_path / "seeds.txt").write_text("3\n1\n2\n")
    (tmp_path / "gone.txt").write_text(f"{service.users[0]}\n{service.users[12]}\n")
    ordering = ["--seeds", str(tmp_path / "seeds.txt"), "-k", "10", "--audience-id", "spring", "--wait"]
    assert "reserve left" in said("expand", "--campaign", "c", *ordering, "--reserve", "4", "--ttl", "2d")
    assert "audiences/spring" in said("audiences")
    runtime.first = 5
    refreshed = said("refresh", "audiences/spring", "--churn-budget", "0.2", "--audience-id", "new", "--wait")
    assert "8 kept, 2 joined, 2 left" in refreshed
    assert said("changes", "audiences/spring", "audiences/new").splitlines()[1].startswith("left\t4\t")
    assert "0.8000" in said("compare", "audiences/spring", "audiences/new")
    assert json.loads(said("opt-out", str(tmp_path / "gone.txt"), "--json")) == {"added": 2, "pending_audiences": 0}
    assert "opted out since" in said("get", "audiences/spring")
    assert json.loads(said("update", "audiences/spring", "-k", "5", "--keep", "--json"))["size"] == "5"
    said("delete", "audiences/spring")
    said("delete", "audiences/spring", code=3)
    said("delete", "audiences/spring", "--allow-missing")
    assert [one["name"] for one in json.loads(said("audiences", "--json"))] == ["audiences/new"]


def test_an_audience_of_old_has_no_reserve_and_shrinks(client: Client, service: Service) -> None:
    audience = order(client, reserve=0)
    assert audience.reserve_left == 0
    client.opt_out(service.users[:2])
    assert members(client, audience.name) == service.users[2:10]
    assert Audience.open(service.folder(audience)).receipt.k_requested == 10
