"""Who gets into the front service and what they may do there, by real tokens, streams and files."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import grpc
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from google.longrunning import operations_pb2, operations_pb2_grpc
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection_pb2, reflection_pb2_grpc
from secured import DAY, NO_SUCH, SEEDS, USERS, Secured, Start, order, reason_of, refused, status_of
from serving import SECONDS

from lookalike import errors
from lookalike.service import members
from lookalike.service.caller import Scope
from lookalike.service.server import AUDIENCE_SERVICE
from lookalike.service.token_file import TokenFile
from lookalike.v1 import audience_pb2, audience_pb2_grpc

# -------------------------------------------------------------------------------------------------------------- tokens


def test_a_token_lets_in_over_tls_and_is_kept_nowhere(secured: Secured) -> None:
    token_file, _ = secured.token()
    client = secured.client(token_file)
    audience = order(client).result(SECONDS)
    assert pa.Table.from_batches(client.members(audience.name)).num_rows == 5
    secured.running.stop()
    secret = token_file.read_text().strip().split("_", 2)[2].encode()
    files = [path for path in secured.running.data_dir.rglob("*") if path.is_file()]
    assert {"tokens.json", "audit.jsonl", "operations.db"} <= {path.name for path in files}
    assert [path for path in files if secret in path.read_bytes()] == []
    assert secured.running.data_dir.stat().st_mode & 0o777 == 0o700


def test_every_token_that_is_not_valid_is_told_the_same(secured: Secured) -> None:
    good, token_id = secured.token()
    text = good.read_text().strip()
    past = TokenFile(secured.tokens.path, now=lambda: datetime.now(UTC) - 2 * DAY)
    expired, past_record = past.create("shop", Scope, lifetime=DAY)
    revoked_file, revoked_id = secured.token()
    secured.tokens.revoke(revoked_id)
    wrong = text[:-1] + ("A" if text[-1] != "A" else "B")
    elsewhere = TokenFile(secured.folder / "others.json").create("shop", Scope, lifetime=DAY)[0]
    presented = [
        (),
        ("",),
        ("Bearer",),
        ("Bearer ",),
        (text,),
        (f"Basic {text}",),
        (f"Bearer {wrong}",),
        (f"Bearer {text}x",),
        (f"Bearer {text} {text}",),
        (f"Bearer {elsewhere}",),
        (f"Bearer {expired}",),
        (f"Bearer {revoked_file.read_text().strip()}",),
        (f"Bearer {text}", f"Bearer {text}"),
        ("Bearer " + "x" * 4000,),
    ]
    stub = audience_pb2_grpc.AudienceServiceStub(secured.bare())
    request = audience_pb2.GetAudienceRequest(name=f"audiences/{NO_SUCH}")
    answers = [refused(stub.GetAudience, request, *authorization) for authorization in presented]
    assert {error.code() for error in answers} == {grpc.StatusCode.UNAUTHENTICATED}
    assert {reason_of(error) for error in answers} == {"TOKEN_INVALID"}
    assert len({status_of(error).SerializeToString() for error in answers}) == 1
    for scheme in ("Bearer", "bearer", "Bearer  "):
        assert refused(stub.GetAudience, request, f"{scheme} {text}").code() is grpc.StatusCode.NOT_FOUND
    # What the caller is not told, the operator is; and neither learns a token.
    why = [line["why"] for line in secured.lines(event="refused")]
    assert len(why) == len(presented)
    assert {"no bearer token", "unknown token", "expired token", "revoked token"} == set(why)
    assert [line["token"] for line in secured.lines(why="expired token")] == [past_record.id]
    assert [line["token"] for line in secured.lines(why="revoked token", tenant="shop")] == [revoked_id]
    log = (secured.running.data_dir / "audit.jsonl").read_text()
    assert token_id in log
    assert not any(secret in log for secret in [text, wrong, expired, elsewhere])


def test_a_method_wants_its_scope(secured: Secured) -> None:
    needed = {
        "ExpandAudience": Scope.EXPAND,
        "GetAudience": Scope.READ,
        "ListAudienceMembers": Scope.READ,
        "StreamAudienceMembers": Scope.READ,
        "ListAudiences": Scope.READ,
        "UpdateAudience": Scope.EXPAND,
        "DeleteAudience": Scope.DELETE,
        "RefreshAudience": Scope.EXPAND,
        "CompareAudiences": Scope.READ,
        "StreamAudienceChanges": Scope.READ,
        "OptOutUsers": Scope.DELETE,
        "GetOperation": Scope.READ,
        "ListOperations": Scope.READ,
        "WaitOperation": Scope.READ,
        "CancelOperation": Scope.EXPAND,
        "DeleteOperation": Scope.DELETE,
    }
    channel = secured.bare()
    stubs = (
        (audience_pb2.DESCRIPTOR.services_by_name["AudienceService"], audience_pb2_grpc.AudienceServiceStub(channel)),
        (operations_pb2.DESCRIPTOR.services_by_name["Operations"], operations_pb2_grpc.OperationsStub(channel)),
    )
    holders = {scope: secured.token(*(set(Scope) - {scope}))[0].read_text().strip() for scope in Scope}
    asked = 0
    for service, stub in stubs:
        for method in service.methods:
            scope = needed[method.name]
            request = method.input_type._concrete_class()
            call: Any = getattr(stub, method.name)
            if method.server_streaming:
                call = _first_of(call)
            error = refused(call, request, f"Bearer {holders[scope]}")
            assert error.code() is grpc.StatusCode.PERMISSION_DENIED, method.name
            assert reason_of(error) == "SCOPE_MISSING"
            assert f"'{scope}'" in error.details()
            asked += 1
    assert asked == len(needed)
    assert len(secured.lines(event="refused", tenant="shop")) == asked
    assert secured.runtime.jobs == []
    reader = secured.client(secured.token(Scope.READ)[0])
    assert list(reader.operations()) == []
    with pytest.raises(errors.PermissionDenied, match="scope 'expand'"):
        order(reader)
    deleter = secured.client(secured.token(Scope.DELETE)[0])
    with pytest.raises(errors.PermissionDenied, match="scope 'admin'"):
        deleter.opt_out([1], all_tenants=True)
    assert deleter.opt_out([1]).added == 1


def _first_of(call: Any) -> Any:
    return lambda request, **options: next(call(request, **options))


def test_a_rotated_token_is_taken_up_by_a_client_that_runs(secured: Secured) -> None:
    token_file, token_id = secured.token()
    client = secured.client(token_file)
    assert list(client.operations()) == []
    fresh, new = secured.tokens.rotate(token_id, grace=timedelta(0))
    with pytest.raises(errors.Unauthenticated) as caught:
        list(client.operations())
    assert caught.value.reason == "TOKEN_INVALID"
    token_file.write_text(fresh)
    order(client)
    assert [line["token"] for line in secured.lines(event="expand")] == [new.id]


@pytest.mark.parametrize("content", [None, "", "lk_1_2\nlk_3_4", "ünlesbar"], ids=["none", "empty", "lines", "umlaut"])
def test_a_token_file_that_went_bad_is_told_and_got_over(content: str | None, secured: Secured) -> None:
    token_file, _ = secured.token()
    call = operations_pb2_grpc.OperationsStub(secured.channel(token_file)).ListOperations
    whole = token_file.read_text()
    token_file.unlink() if content is None else token_file.write_text(content)
    with pytest.raises((errors.NotFound, errors.InvalidInput)) as caught:
        call(operations_pb2.ListOperationsRequest(), timeout=SECONDS)
    assert caught.value.field == "token_file"
    assert not content or content not in str(caught.value)
    token_file.write_text(whole)
    call(operations_pb2.ListOperationsRequest(), timeout=SECONDS)


def test_a_revoked_token_gets_not_another_message(
    start: Start, big_pool: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(members, "MESSAGE_BYTES", 16_384)
    secured = start(big_pool)
    token_file, token_id = secured.token()
    audience = order(secured.client(token_file), k=USERS).result(SECONDS)
    stub = audience_pb2_grpc.AudienceServiceStub(secured.channel(token_file))
    stream = stub.StreamAudienceMembers(
        audience_pb2.StreamAudienceMembersRequest(audience=audience.name), timeout=SECONDS
    )
    got = len(next(stream).scores)
    waiting = operations_pb2_grpc.OperationsStub(secured.channel(token_file)).ListOperations
    waiting(operations_pb2.ListOperationsRequest(), timeout=SECONDS)
    secured.tokens.revoke(token_id)
    rest: list[int] = []
    with pytest.raises(grpc.RpcError) as caught:
        rest.extend(len(message.scores) for message in stream)
    assert caught.value.code() is grpc.StatusCode.UNAUTHENTICATED
    assert refused(waiting, operations_pb2.ListOperationsRequest()).code() is grpc.StatusCode.UNAUTHENTICATED
    (end,) = secured.lines(event="read", phase="end")
    assert (end["code"], end["token"]) == ("UNAUTHENTICATED", token_id)
    assert got + sum(rest) <= end["members"] < USERS


def test_who_waits_with_a_token_that_is_revoked_is_told_nothing(secured: Secured) -> None:
    token_file, token_id = secured.token()
    secured.runtime.hold()
    name = order(secured.client(token_file)).name
    stub = operations_pb2_grpc.OperationsStub(secured.channel(token_file))
    secured.runtime.wait_for(lambda r: r.running == 1)
    call = stub.WaitOperation.future(operations_pb2.WaitOperationRequest(name=name), timeout=SECONDS)
    secured.client().operation(name).metadata()
    secured.tokens.revoke(token_id)
    secured.runtime.release()
    assert call.exception().code() is grpc.StatusCode.UNAUTHENTICATED


def test_without_a_readable_file_of_tokens_nobody_is_let_in(secured: Secured) -> None:
    call = operations_pb2_grpc.OperationsStub(secured.channel(secured.token()[0])).ListOperations
    call(operations_pb2.ListOperationsRequest(), timeout=SECONDS)
    whole = secured.tokens.path.read_text()
    secured.tokens.path.write_text(whole[:-20])
    error = refused(call, operations_pb2.ListOperationsRequest())
    assert (error.code(), reason_of(error)) == (grpc.StatusCode.UNAVAILABLE, "TOKENS_UNREADABLE")
    secured.tokens.path.write_text(whole)
    call(operations_pb2.ListOperationsRequest(), timeout=SECONDS)


def test_each_tenant_has_seed_files_of_its_own(start: Start, tmp_path: Path) -> None:
    seeds_dir = tmp_path / "seeds"
    for tenant in ("shop", "rival"):
        (seeds_dir / tenant).mkdir(parents=True)
        pq.write_table(pa.table({"user_id": SEEDS}), seeds_dir / tenant / f"{tenant}.parquet")
    (seeds_dir / "rival" / "link.parquet").symlink_to("../shop/shop.parquet")
    secured = start(seeds_dir=seeds_dir)
    rival = secured.client(secured.token(tenant="rival")[0])
    rival.expand(campaign="c", seeds_path="rival.parquet", k=1).result(SECONDS)
    outside = ("../shop/shop.parquet", "../shop/none.parquet", str(seeds_dir / "shop" / "shop.parquet"), "link.parquet")
    for path in outside:
        with pytest.raises(errors.InvalidInput, match="outside the server's seeds folder"):
            rival.expand(campaign="c", seeds_path=path, k=1)
    with pytest.raises(errors.NotFound):
        rival.expand(campaign="c", seeds_path="shop.parquet", k=1)
    nobody = secured.client(secured.token(tenant="nobody")[0])
    with pytest.raises(errors.NotFound):
        nobody.expand(campaign="c", seeds_path="rival.parquet", k=1)


def test_health_is_open_and_reflection_is_not(secured: Secured) -> None:
    channel = secured.bare()
    check = health_pb2_grpc.HealthStub(channel).Check
    assert check(health_pb2.HealthCheckRequest(service=AUDIENCE_SERVICE), timeout=SECONDS).status == 1
    reflect = reflection_pb2_grpc.ServerReflectionStub(channel).ServerReflectionInfo
    asked = reflection_pb2.ServerReflectionRequest(list_services="")
    error = refused(lambda request, **options: next(reflect(iter([request]), **options)), asked)
    assert error.code() is grpc.StatusCode.UNAUTHENTICATED
    token = secured.token(Scope.DELETE)[0].read_text().strip()
    (answer,) = reflect(iter([asked]), metadata=[("authorization", f"Bearer {token}")], timeout=SECONDS)
    assert AUDIENCE_SERVICE in {service.name for service in answer.list_services_response.service}


def test_what_there_is_not_is_told_to_nobody_without_a_token(secured: Secured) -> None:
    channel = secured.bare()
    method = channel.unary_unary(f"/{AUDIENCE_SERVICE}/NoSuchMethod")
    assert refused(method, b"").code() is grpc.StatusCode.UNAUTHENTICATED
    token = secured.token()[0].read_text().strip()
    assert refused(method, b"", f"Bearer {token}").code() is grpc.StatusCode.UNIMPLEMENTED


# ----------------------------------------------------------------------------------------------------------- audit log


def test_the_log_says_who_did_what_and_names_no_people(secured: Secured) -> None:
    token_file, token_id = secured.token()
    client = secured.client(token_file)
    seeds = [987_654_321, 1, 2]
    secured.runtime.hold()
    first, second = (order(client, campaign=name, seeds=seeds) for name in ("spring", "autumn"))
    second.cancel()
    secured.runtime.release()
    audience = first.result(SECONDS)
    client.validate(campaign="summer", seeds=seeds, k=5)
    client.audience(audience.name)
    client.first_members(audience.name, 3)
    list(client.members(audience.name))
    with pytest.raises(errors.Cancelled):
        second.result(SECONDS)
    second.delete()
    with pytest.raises(errors.NotFound):
        client.audience(f"audiences/{NO_SUCH}")
    with pytest.raises(errors.InvalidInput):
        client.audience("987654321")
    with pytest.raises(errors.InvalidInput):
        order(client, k=0)
    secured.running.stop()
    lines = secured.lines()
    assert {(line["tenant"], line["token"]) for line in lines} == {("shop", token_id)}
    assert all(line["peer"].startswith("ipv4:127.0.0.1:") for line in lines)
    assert all(datetime.fromisoformat(line["time"]).tzinfo for line in lines)
    told = [
        {name: value for name, value in line.items() if name not in ("time", "tenant", "token", "peer")}
        for line in lines
    ]
    expand = {"event": "expand", "method": "ExpandAudience"}
    stream = {"event": "read", "method": "StreamAudienceMembers", "audience": audience.name}
    read = {"event": "read", "method": "GetAudience"}
    assert told == [
        {**expand, "campaign": "spring", "operation": first.name, "code": "OK"},
        {**expand, "campaign": "autumn", "operation": second.name, "code": "OK"},
        {"event": "cancel", "method": "CancelOperation", "operation": second.name, "code": "OK"},
        {**expand, "campaign": "summer", "validate_only": True, "code": "OK"},
        {**read, "audience": audience.name, "code": "OK"},
        {"event": "read", "method": "ListAudienceMembers", "audience": audience.name, "members": 3, "code": "OK"},
        {**stream, "phase": "begin"},
        {**stream, "phase": "end", "members": 5, "code": "OK"},
        {"event": "delete", "method": "DeleteOperation", "operation": second.name, "code": "OK"},
        {**read, "audience": f"audiences/{NO_SUCH}", "code": "NOT_FOUND"},
        {**read, "audience": "(no name of ours)", "code": "INVALID_ARGUMENT"},
        {**expand, "campaign": "spring", "code": "INVALID_ARGUMENT"},
    ]
    assert "987654321" not in (secured.running.data_dir / "audit.jsonl").read_text()


def test_a_log_that_cannot_be_written_stops_what_it_should_tell(start: Start, tmp_path: Path) -> None:
    (tmp_path / "audit").mkdir()
    secured = start(audit_log=tmp_path / "audit" / "log")
    client = secured.client()
    audience = order(client).result(SECONDS)
    (tmp_path / "audit" / "log").rename(tmp_path / "kept")
    (tmp_path / "audit").rmdir()
    stub = audience_pb2_grpc.AudienceServiceStub(secured.channel(secured.token()[0]))
    calls = (
        (stub.GetAudience, audience_pb2.GetAudienceRequest(name=audience.name)),
        (stub.ListAudienceMembers, audience_pb2.ListAudienceMembersRequest(audience=audience.name)),
        (_first_of(stub.StreamAudienceMembers), audience_pb2.StreamAudienceMembersRequest(audience=audience.name)),
    )
    for call, request in calls:
        error = refused(call, request)
        assert (error.code(), reason_of(error)) == (grpc.StatusCode.UNAVAILABLE, "AUDIT_UNAVAILABLE")
    (tmp_path / "audit").mkdir()
    assert client.audience(audience.name).size == 5
    assert [line["method"] for line in secured.lines()] == ["GetAudience"]


# ------------------------------------------------------------------------------------------------------------- tenants


def test_another_tenants_operations_and_audiences_are_not_there(secured: Secured) -> None:
    ours, theirs = (secured.client(secured.token(tenant=tenant)[0]) for tenant in ("shop", "rival"))
    operation = order(ours, request_id="r")
    audience = operation.result(SECONDS)
    assert list(theirs.operations()) == []
    for attempt in (
        lambda: theirs.operation(operation.name).metadata(),
        lambda: theirs.operation(operation.name).result(SECONDS),
        lambda: theirs.operation(operation.name).cancel(),
        lambda: theirs.operation(operation.name).delete(),
        lambda: theirs.audience(audience.name),
        lambda: theirs.first_members(audience.name, 1),
        lambda: list(theirs.members(audience.name)),
        lambda: theirs.update_audience(audience.name, k=1),
        lambda: theirs.delete_audience(audience.name),
        lambda: theirs.refresh(audience.name),
        lambda: theirs.compare([audience.name, audience.name]),
        lambda: list(theirs.changes(audience.name, audience.name)),
    ):
        with pytest.raises(errors.NotFound) as caught:
            attempt()
        assert "shop" not in str(caught.value)
    other = order(theirs, request_id="r")  # the same name for a request of theirs
    assert other.name != operation.name
    assert [one.name for one in ours.operations()] == [operation.name]
    assert ours.audience(audience.name) == audience
    told = {(line["tenant"], line.get("code")) for line in secured.lines(audience=audience.name)}
    assert ("rival", "NOT_FOUND") in told
    assert ("rival", "OK") not in told
