"""Finished audiences over real gRPC, on both databases: refresh, size, deletion, expiry, lists, overlaps."""

from __future__ import annotations

import json
import time
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import audiences
import pytest
from audiences import SEEDS, Service, Who, members, order, stored
from processes import wait_until
from serving import SECONDS, ScriptedRuntime

from lookalike import errors
from lookalike.cli.app import run
from lookalike.client import Client
from lookalike.service import curation
from lookalike.service.caller import Scope
from lookalike.service.data_dir import DataDir
from lookalike.v1 import audience_pb2

pytestmark = pytest.mark.usefixtures("who")
who, runtime, service, client = audiences.who, audiences.runtime, audiences.service, audiences.client


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
