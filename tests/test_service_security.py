"""Who gets into the front service and what they may do there, by real TLS, tokens, certificates and streams."""

from __future__ import annotations

import json
import ssl
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import grpc
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from certificates import Authority, Pair
from google.longrunning import operations_pb2, operations_pb2_grpc
from google.rpc import error_details_pb2, status_pb2
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection_pb2, reflection_pb2_grpc
from processes import wait_until
from serving import SECONDS, Front, ScriptedRuntime, config_for, front

from lookalike import errors
from lookalike.channel import open_channel
from lookalike.client import Client
from lookalike.pool.ingest import ingest
from lookalike.service import endpoint, members
from lookalike.service.caller import Scope
from lookalike.service.server import AUDIENCE_SERVICE
from lookalike.service.token_file import TokenFile
from lookalike.v1 import audience_pb2, audience_pb2_grpc

DAY = timedelta(days=1)
SEEDS = [3, 1, 2]
USERS = 100_000
NO_SUCH = "0" * 32


@pytest.fixture(scope="module")
def authority(tmp_path_factory: pytest.TempPathFactory) -> Authority:
    return Authority(tmp_path_factory.mktemp("pki"), "authority")


@pytest.fixture(scope="module")
def stranger(tmp_path_factory: pytest.TempPathFactory) -> Authority:
    return Authority(tmp_path_factory.mktemp("pki"), "stranger")


@pytest.fixture(scope="module")
def big_pool(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Whose audiences are more than what a connection takes unread."""
    folder = tmp_path_factory.mktemp("big")
    pq.write_table(pa.table({"user_id": range(USERS), "age": [n % 90 for n in range(USERS)]}), folder / "u.parquet")
    ingest(folder / "u.parquet", folder / "pool")
    return folder / "pool"


@dataclass
class Secured:
    """A front that asks for tokens, and what is needed to talk to it."""

    running: Front
    tokens: TokenFile
    authority: Authority
    folder: Path
    runtime: ScriptedRuntime
    stack: ExitStack
    certificate: Pair | None = None
    secrets: list[str] = field(default_factory=list)

    def token(self, *scopes: Scope, tenant: str = "shop", lifetime: timedelta | None = DAY) -> tuple[Path, str]:
        """A file with a new token, and the token's id."""
        text, token = self.tokens.create(tenant, scopes or Scope, lifetime=lifetime)
        path = self.folder / f"{token.id}.token"
        path.write_text(text + "\n")
        self.secrets.append(text)
        return path, token.id

    def client(self, token_file: Path | None = None, **options: Any) -> Client:
        options = {"timeout": SECONDS, "ca_file": self.authority.pem, **self._files(), **options}
        token_file = token_file or self.token()[0]
        return self.stack.enter_context(Client(self.running.address, token_file=token_file, **options))

    def channel(self, token_file: Path, **options: Any) -> grpc.Channel:
        """One that reads no further ahead than it must."""
        narrow = [("grpc.http2.bdp_probe", 0), ("grpc.http2.lookahead_bytes", 16_384)]
        files = {"ca_file": self.authority.pem, **self._files(), **options}
        return self.stack.enter_context(
            open_channel(self.running.address, token_file=token_file, options=narrow, **files)
        )

    @property
    def pair(self) -> Pair:
        """The server's own."""
        service = self.running.config.service
        assert service.tls_certificate is not None
        assert service.tls_key is not None
        return Pair(service.tls_certificate, service.tls_key)

    def knock(self, token_file: Path | None, **files: Any) -> grpc.StatusCode:
        """What one call comes to, without another try."""
        channel = self.channel(token_file, **files) if token_file else grpc.insecure_channel(self.running.address)
        return _code_of(self.stack.enter_context(channel))

    def bare(self, ca: Path | None = None) -> grpc.Channel:
        """TLS, and no token."""
        pair = (
            (self.certificate.key.read_bytes(), self.certificate.certificate.read_bytes()) if self.certificate else ()
        )
        credentials = grpc.ssl_channel_credentials((ca or self.authority.pem).read_bytes(), *pair)
        return self.stack.enter_context(grpc.secure_channel(self.running.address, credentials))

    def lines(self, **wanted: object) -> list[dict[str, Any]]:
        """Of the audit log: those with the given fields."""
        path = self.running.config.service.audit_log or self.running.data_dir / "audit.jsonl"
        lines = [json.loads(line) for line in path.read_text().splitlines()]
        return [line for line in lines if wanted.items() <= line.items()]

    def _files(self) -> dict[str, Path]:
        if self.certificate is None:
            return {}
        return {"certificate_file": self.certificate.certificate, "key_file": self.certificate.key}


def _code_of(channel: grpc.Channel) -> grpc.StatusCode:
    """What one call comes to, without another try."""
    stub = operations_pb2_grpc.OperationsStub(channel)
    try:
        stub.ListOperations(operations_pb2.ListOperationsRequest(), timeout=SECONDS)
    except grpc.RpcError as error:
        return error.code()
    return grpc.StatusCode.OK


Start = Callable[..., Secured]


@pytest.fixture(autouse=True)
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    """Fronts here look at their certificates all the time."""
    monkeypatch.setattr(endpoint, "LOOK_SECONDS", 0.02)


@pytest.fixture
def start(sample_pool: Path, tmp_path: Path, authority: Authority) -> Iterator[Start]:
    """Starts a front with TLS; it and its clients end with the test."""
    with ExitStack() as stack:

        def started(pool: Path = sample_pool, *, client_ca: Path | None = None, **service: Any) -> Secured:
            pair = authority.issue(f"server-{tmp_path.name}")
            tls = {"tls_certificate": pair.certificate, "tls_key": pair.key, "tls_client_ca": client_ca}
            config = config_for(tmp_path / "data", insecure=False, **tls, **service)
            runtime = ScriptedRuntime()
            running = stack.enter_context(front(config, pool, runtime))
            clients = stack.enter_context(ExitStack())
            tokens = TokenFile(config.service.tokens or tmp_path / "data" / "tokens.json")
            return Secured(running, tokens, authority, tmp_path, runtime, clients)

        yield started


@pytest.fixture
def secured(start: Start) -> Secured:
    return start()


def order(client: Client, **changes: Any) -> Any:
    return client.expand(**{"campaign": "spring", "seeds": SEEDS, "k": 5, **changes})


def status_of(error: grpc.RpcError) -> status_pb2.Status:
    (value,) = (value for key, value in error.trailing_metadata() if key == "grpc-status-details-bin")
    return status_pb2.Status.FromString(value)


def reason_of(error: grpc.RpcError) -> str:
    info = error_details_pb2.ErrorInfo()
    assert any(packed.Unpack(info) for packed in status_of(error).details)
    return info.reason


def refused(method: Callable[..., Any], request: Any, *authorization: str) -> grpc.RpcError:
    metadata = [("authorization", value) for value in authorization]
    with pytest.raises(grpc.RpcError) as caught:
        method(request, metadata=metadata, timeout=SECONDS)
    return caught.value


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


# ---------------------------------------------------------------------------------------------------- TLS, certificates


def test_a_certificate_is_replaced_while_a_channel_streams(
    start: Start, big_pool: Path, stranger: Authority, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(members, "MESSAGE_BYTES", 16_384)
    secured = start(big_pool)
    token_file, _ = secured.token()
    audience = order(secured.client(token_file), k=USERS).result(SECONDS)
    channel = secured.channel(token_file)
    stub = audience_pb2_grpc.AudienceServiceStub(channel)
    stream = stub.StreamAudienceMembers(
        audience_pb2.StreamAudienceMembersRequest(audience=audience.name), timeout=SECONDS
    )
    got = len(next(stream).scores)
    secured.pair.replace(stranger.issue("renewed"))
    wait_until(lambda: secured.knock(token_file, ca_file=stranger.pem) is grpc.StatusCode.OK)
    with pytest.raises(errors.Unauthenticated, match="not trusted"):
        secured.client(token_file).audience(audience.name)
    assert got + sum(len(message.scores) for message in stream) == USERS
    # Even a connection that was in use is made anew for the next call.
    assert _code_of(channel) is grpc.StatusCode.UNAVAILABLE


def test_a_pair_that_does_not_fit_is_not_taken_up(
    secured: Secured, stranger: Authority, caplog: pytest.LogCaptureFixture
) -> None:
    fresh = stranger.issue("half-way")
    token_file, _ = secured.token()
    secured.pair.certificate.write_bytes(fresh.certificate.read_bytes())  # and the key is still to come
    wait_until(lambda: "is not the key of" in caplog.text)
    assert "the former certificate stays in use" in caplog.text
    assert secured.knock(token_file) is grpc.StatusCode.OK
    secured.pair.key.write_bytes(fresh.key.read_bytes())
    wait_until(lambda: secured.knock(token_file, ca_file=stranger.pem) is grpc.StatusCode.OK)
    secured.pair.key.unlink()
    wait_until(lambda: f"there is no file {secured.pair.key}" in caplog.text)
    assert secured.knock(token_file, ca_file=stranger.pem) is grpc.StatusCode.OK


def test_renewals_one_after_the_other(secured: Secured, authority: Authority) -> None:
    token_file, _ = secured.token()
    serials = set()
    for number in range(5):
        fresh = authority.issue(f"renewal-{number}")
        secured.pair.replace(fresh)
        wait_until(lambda fresh=fresh: _served(secured) == fresh.certificate.read_text())
        serials.add(_served(secured))
        assert list(secured.client(token_file).operations()) == []
    assert len(serials) == 5


def _served(secured: Secured) -> str:
    host, _, port = secured.running.address.rpartition(":")
    try:
        return ssl.get_server_certificate((host, int(port)))
    except OSError:  # just when the one server takes over from the other
        return ""


def test_a_client_certificate_is_asked_for_besides_the_token(
    start: Start, authority: Authority, stranger: Authority, tmp_path: Path
) -> None:
    accepted = tmp_path / "clients.pem"
    accepted.write_bytes(authority.pem.read_bytes())
    secured = start(client_ca=accepted)
    token_file, token_id = secured.token()

    def attempt(pair: Pair | None) -> grpc.StatusCode:
        return secured.knock(token_file, certificate_file=pair and pair.certificate, key_file=pair and pair.key)

    good = authority.issue("robot")
    assert attempt(good) is grpc.StatusCode.OK
    for bad in (None, authority.issue("late", lasts=-DAY), stranger.issue("foreign")):
        assert attempt(bad) is grpc.StatusCode.UNAVAILABLE
    secured.certificate = good
    stub = audience_pb2_grpc.AudienceServiceStub(secured.bare())
    request = audience_pb2.GetAudienceRequest(name=f"audiences/{NO_SUCH}")
    assert refused(stub.GetAudience, request).code() is grpc.StatusCode.UNAUTHENTICATED
    order(secured.client(token_file))
    (line,) = secured.lines(event="expand")
    assert (line["token"], line["certificate"]) == (token_id, "robot")
    in_use = secured.channel(token_file)
    assert _code_of(in_use) is grpc.StatusCode.OK
    accepted.write_bytes(stranger.pem.read_bytes())  # the authorities are read again, too
    newcomer = stranger.issue("newcomer")
    wait_until(lambda: attempt(newcomer) is grpc.StatusCode.OK)
    assert attempt(authority.issue("another")) is grpc.StatusCode.UNAVAILABLE
    wait_until(lambda: _code_of(in_use) is grpc.StatusCode.UNAVAILABLE)


def test_a_server_that_is_not_trusted_is_not_talked_to(start: Start, stranger: Authority, authority: Authority) -> None:
    secured = start()
    token_file, _ = secured.token()

    def attempt(ca: Authority = authority) -> None:
        with pytest.raises(errors.Unauthenticated) as caught:  # at once: to try again would not help
            list(secured.client(token_file, ca_file=ca.pem).operations())
        assert caught.value.reason == "SERVER_NOT_TRUSTED"

    attempt(stranger)
    for bad in (authority.issue("old", lasts=-DAY), authority.issue("other", host="other.example")):
        secured.pair.replace(bad)
        wait_until(lambda bad=bad: _served(secured) == bad.certificate.read_text())
        attempt()
    assert secured.lines() == []  # no token has reached it


def test_what_is_not_encrypted_is_not_answered(secured: Secured) -> None:
    assert secured.knock(None) is grpc.StatusCode.UNAVAILABLE


# ------------------------------------------------------------------------------------------------------------ settings


@pytest.mark.parametrize("listen", ["127.0.0.1:0", "0.0.0.0:0", "[::1]:0"])
def test_without_a_certificate_a_front_starts_only_where_that_is_asked_for(
    listen: str, sample_pool: Path, tmp_path: Path
) -> None:
    config = config_for(tmp_path, listen=listen, insecure=False)
    with (
        pytest.raises(errors.InvalidInput, match="--insecure") as caught,
        front(config, sample_pool, ScriptedRuntime()),
    ):
        pass
    assert caught.value.field == "service.tls_certificate"


def test_settings_that_contradict_each_other(sample_pool: Path, tmp_path: Path, authority: Authority) -> None:
    pair, other = authority.issue("pair"), authority.issue("other")
    locked = authority.issue("locked", password=b"secret")
    text = tmp_path / "text"
    text.write_text("not a certificate")
    cases: list[tuple[dict[str, Any], str, str]] = [
        ({"insecure": True, "tls_certificate": pair.certificate}, "service.insecure", "exclude each other"),
        ({"tls_certificate": pair.certificate}, "service.tls_key", "--insecure"),
        ({"tls_certificate": pair.certificate, "tls_key": other.key}, "service.tls_key", "is not the key of"),
        ({"tls_certificate": locked.certificate, "tls_key": locked.key}, "service.tls_key", "password"),
        ({"tls_certificate": text, "tls_key": pair.key}, "service.tls_certificate", "no certificate and key"),
        ({"tls_certificate": pair.certificate, "tls_key": tmp_path}, "service.tls_key", "cannot read"),
        (
            {"tls_certificate": pair.certificate, "tls_key": pair.key, "tls_client_ca": text},
            "service.tls_client_ca",
            "no certificates of authorities",
        ),
    ]
    for service, name, said in cases:
        config = config_for(tmp_path / "data", **{"insecure": False, **service})
        with pytest.raises(errors.InvalidInput, match=said) as caught, front(config, sample_pool, ScriptedRuntime()):
            pass
        assert caught.value.field == name
    assert not (tmp_path / "data").exists()


def test_a_port_that_another_service_has_is_not_shared(secured: Secured, sample_pool: Path, tmp_path: Path) -> None:
    """Though servers of one service share theirs."""
    tls = {"tls_certificate": secured.pair.certificate, "tls_key": secured.pair.key}
    config = config_for(tmp_path / "other", insecure=False, listen=secured.running.address, **tls)
    with pytest.raises(errors.Unavailable) as caught, front(config, sample_pool, ScriptedRuntime()):
        pass
    assert caught.value.reason == "ADDRESS_IN_USE"


def test_with_tls_a_front_may_listen_anywhere(start: Start) -> None:
    secured = start(listen="0.0.0.0:0")
    secured.running.address = secured.running.address.replace("0.0.0.0", "127.0.0.1")
    assert list(secured.client().operations()) == []


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
