"""The interceptor alone, before a service made for it: whose call it is, everywhere in it; and calls left hanging."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from datetime import timedelta
from pathlib import Path
from typing import Any, Self

import grpc
import pytest
from google.protobuf import descriptor_pool
from grpc_health.v1 import health
from grpc_reflection.v1alpha import reflection, reflection_pb2, reflection_pb2_grpc
from serving import SECONDS, ScriptedRuntime, config_for, front

from lookalike.service.audit import AuditLog
from lookalike.service.authentication import AuthInterceptor
from lookalike.service.caller import LOCAL, Scope, current
from lookalike.service.permissions import OPEN, RULES, Rule
from lookalike.service.server import AUDIENCE_SERVICE, OPERATIONS_SERVICE
from lookalike.service.token_file import TokenFile

RULES_HERE = {
    "/test/Who": Rule(Scope.READ),
    "/test/Stream": Rule(Scope.READ),
    "/test/Upload": Rule(Scope.READ),
    "/test/Held": Rule(Scope.READ, "read", lambda request, response: {"answered": response is not None}),
}


class Service(grpc.GenericRpcHandler):
    """Says whose call it is, as seen on the loop, on a thread and in a task; and waits when asked to."""

    def __init__(self) -> None:
        self.held = asyncio.Event()
        self.release = asyncio.Event()

    def service(self, call_details: grpc.HandlerCallDetails) -> grpc.RpcMethodHandler | None:
        name = call_details.method.rpartition("/")[2]
        if name == "Stream":
            return grpc.unary_stream_rpc_method_handler(self.stream)
        if name == "Upload":
            return grpc.stream_unary_rpc_method_handler(self.who)
        return grpc.unary_unary_rpc_method_handler({"Who": self.who, "Held": self.hold, "NoRule": self.who}[name])

    async def who(self, request: bytes, context: Any) -> bytes:
        await asyncio.sleep(0)
        seen = {current(), await asyncio.to_thread(current), await asyncio.create_task(_current())}
        return "|".join(f"{caller.tenant}/{caller.token_id}" for caller in seen).encode()

    async def stream(self, request: bytes, context: Any) -> AsyncIterator[bytes]:
        for _ in range(5):
            yield await self.who(request, context)

    async def hold(self, request: bytes, context: Any) -> bytes:
        self.held.set()
        await self.release.wait()
        return b"done"


async def _current() -> Any:
    return current()


class Running:
    def __init__(self, folder: Path, *, insecure: bool = False) -> None:
        self.service = Service()
        self.tokens = TokenFile(folder / "tokens.json")
        self.audit = AuditLog(folder / "audit.jsonl")
        self.interceptor = AuthInterceptor(None if insecure else self.tokens, self.audit, RULES_HERE)
        self.server = grpc.aio.server(interceptors=[self.interceptor])
        self.server.add_generic_rpc_handlers([self.service])

    async def __aenter__(self) -> Self:
        port = self.server.add_insecure_port("127.0.0.1:0")
        await self.server.start()
        self.channel = grpc.aio.insecure_channel(f"127.0.0.1:{port}")
        return self

    async def __aexit__(self, *_: object) -> None:
        self.service.release.set()
        await self.channel.close()
        await self.server.stop(None)
        await self.interceptor.close()
        await self.audit.close()

    def metadata(self, *scopes: Scope, tenant: str = "shop") -> tuple[tuple[str, str], ...]:
        text, _ = self.tokens.create(tenant, scopes or Scope, lifetime=timedelta(days=1))
        return (("authorization", f"Bearer {text}"),)

    def lines(self) -> list[dict[str, Any]]:
        return [json.loads(line) for line in self.audit.path.read_text().splitlines()]


async def test_calls_at_the_same_time_are_each_their_callers(tmp_path: Path) -> None:
    async with Running(tmp_path) as running:
        who, stream = running.channel.unary_unary("/test/Who"), running.channel.unary_stream("/test/Stream")
        holders = {f"tenant-{n}": running.metadata(tenant=f"tenant-{n}") for n in range(8)}
        ids = {token.tenant: token.id for token in running.tokens.all()}

        async def ask(tenant: str, metadata: Any) -> None:
            answers = [await who(b"", metadata=metadata, timeout=SECONDS)]
            answers += [answer async for answer in stream(b"", metadata=metadata, timeout=SECONDS)]
            assert answers == [f"{tenant}/{ids[tenant]}".encode()] * 6

        await asyncio.gather(*(ask(*holder) for _ in range(10) for holder in holders.items()))
    assert running.lines() == []  # these methods have no event


async def test_without_tokens_everybody_is_local(tmp_path: Path) -> None:
    async with Running(tmp_path, insecure=True) as running:
        answer = await running.channel.unary_unary("/test/Who")(b"", timeout=SECONDS)
        assert answer == f"{LOCAL.tenant}/None".encode()
        await _refused(running.channel.unary_unary("/test/NoRule"), (), grpc.StatusCode.PERMISSION_DENIED)


async def test_a_method_without_a_rule_is_refused(tmp_path: Path) -> None:
    async with Running(tmp_path) as running:
        method = running.channel.unary_unary("/test/NoRule")
        await _refused(method, running.metadata(), grpc.StatusCode.PERMISSION_DENIED)
        await _refused(method, (), grpc.StatusCode.UNAUTHENTICATED)
        assert [line["why"] for line in running.lines()] == ["no rule", "no bearer token"]
        assert {line["method"] for line in running.lines()} == {"(no method of ours)"}


async def test_streams_of_requests_which_cannot_be_noted_are_refused(tmp_path: Path) -> None:
    async with Running(tmp_path) as running:
        upload = running.channel.stream_unary("/test/Upload")
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await upload(iter([b""]), metadata=running.metadata(), timeout=SECONDS)
        assert caught.value.code() is grpc.StatusCode.PERMISSION_DENIED


async def test_what_is_refused_is_not_read(tmp_path: Path) -> None:
    """A request of any size is turned away, though this server takes 4 MiB only: it does not get as far."""
    async with Running(tmp_path) as running:
        method = running.channel.unary_unary("/test/Who")
        await _refused(method, (), grpc.StatusCode.UNAUTHENTICATED, b"x" * (64 * 2**20))


async def test_a_client_that_hangs_up_does_not_keep_its_deed_out_of_the_log(tmp_path: Path) -> None:
    async with Running(tmp_path) as running:
        call = running.channel.unary_unary("/test/Held")(b"", metadata=running.metadata(), timeout=SECONDS)
        await asyncio.wait_for(running.service.held.wait(), SECONDS)
        call.cancel()
        with pytest.raises(asyncio.CancelledError):
            await call
    assert [(line["event"], line["answered"], line["code"]) for line in running.lines()] == [("read", True, "OK")]


async def _refused(method: Any, metadata: Any, code: grpc.StatusCode, request: bytes = b"") -> None:
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await method(request, metadata=metadata, timeout=SECONDS)
    assert caught.value.code() is code


def test_every_method_of_every_service_has_a_rule(sample_pool: Path, tmp_path: Path) -> None:
    """Of the services that a real front says it has."""
    asked = [reflection_pb2.ServerReflectionRequest(list_services="")]
    with (
        front(config_for(tmp_path), sample_pool, ScriptedRuntime()) as running,
        grpc.insecure_channel(running.address) as channel,
    ):
        (answer,) = reflection_pb2_grpc.ServerReflectionStub(channel).ServerReflectionInfo(iter(asked))
    services = [service.name for service in answer.list_services_response.service]
    assert {AUDIENCE_SERVICE, OPERATIONS_SERVICE} <= set(services)
    methods = {
        f"/{name}/{method.name}"
        for name in services
        for method in descriptor_pool.Default().FindServiceByName(name).methods
    }
    assert methods == RULES.keys() | OPEN
    assert RULES.keys().isdisjoint(OPEN)
    assert {method.split("/")[1] for method in OPEN} == {health.SERVICE_NAME}
    assert [method for method, rule in RULES.items() if rule.scope is None] == [
        f"/{reflection.SERVICE_NAME}/ServerReflectionInfo"
    ]
