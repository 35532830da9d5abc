"""What comes to the front's port and is no gRPC, or only nearly: lying frames, other encodings, other protocols."""

from __future__ import annotations

import gzip
import re
import socket
import ssl
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path
from typing import Any

import grpc
import pytest
from fuzzed import LEAKS, Bench, bench_front
from grpc_health.v1 import health_pb2, health_pb2_grpc
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from raw_http2 import SECONDS, Ended, RawChannel, frame

from lookalike.v1 import audience_pb2

METHOD = "/lookalike.v1.AudienceService/GetAudience"
REQUEST = audience_pb2.GetAudienceRequest(name="audiences/" + "0" * 32).SerializeToString()
Code = grpc.StatusCode
PROTOCOL_ERROR = 1
MOST = 2**20  # bytes of a message; the server's limit here


@pytest.fixture(scope="module")
def bench(sample_pool: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Bench]:
    with bench_front(sample_pool, tmp_path_factory.mktemp("frames"), max_message_mib=1) as it:
        yield it


def send(bench: Bench, *body: bytes, path: str = METHOD, **headers: str) -> Ended:
    with RawChannel(bench.running.address, bench.ca) as channel:
        return channel.call(path, body, [("authorization", f"Bearer {bench.token}")], **headers)


def serves(bench: Bench) -> None:
    """Nobody else is the worse for it, and the log has no traceback."""
    assert send(bench, frame(REQUEST)).code is Code.NOT_FOUND
    assert bench.records.seen == []


@pytest.mark.parametrize(
    ("body", "code", "says"),
    [
        ([frame(REQUEST, length=len(REQUEST) + 9)], Code.INVALID_ARGUMENT, "no whole request"),  # hung for good once
        ([frame(REQUEST, length=len(REQUEST) - 2)], Code.INVALID_ARGUMENT, "does not decode"),
        ([frame(REQUEST)[:3]], Code.INVALID_ARGUMENT, "no whole request"),
        ([], Code.INVALID_ARGUMENT, "no whole request"),
        ([frame(b"")], Code.INVALID_ARGUMENT, "must be of the form"),
        ([frame(b'{"name": "audiences/1"}')], Code.INVALID_ARGUMENT, "does not decode"),
        ([frame(REQUEST[:-5])], Code.INVALID_ARGUMENT, "does not decode"),
        # gRPC's core drops what has unknown flags, and hands on an empty message or none, as it comes.
        ([frame(REQUEST, flag=0x7E)], Code.INVALID_ARGUMENT, "send|must be of the form"),
        ([frame(b"hello", length=2**32 - 1)], Code.RESOURCE_EXHAUSTED, "larger than max"),
        ([frame(b"hello", length=MOST + 1)], Code.RESOURCE_EXHAUSTED, "larger than max"),
        ([frame(bytes(MOST + 1))], Code.RESOURCE_EXHAUSTED, "larger than max"),
        ([bytes([byte]) for byte in frame(REQUEST)], Code.NOT_FOUND, "there is no"),  # a byte a frame is no fault
    ],
    ids=lambda value: None,
)
def test_a_frame_that_is_not_what_it_says(bench: Bench, body: list[bytes], code: Code, says: str) -> None:
    ended = send(bench, *body)
    assert ended.code is code, ended
    assert re.search(says, ended.message)
    assert not LEAKS.search(ended.message)
    serves(bench)


def test_compressed_messages(bench: Bench) -> None:
    assert send(bench, frame(gzip.compress(REQUEST), flag=1), grpc_encoding="gzip").code is Code.NOT_FOUND
    bomb = gzip.compress(bytes(200 * MOST))
    assert len(bomb) < MOST
    ended = send(bench, frame(bomb, flag=1), grpc_encoding="gzip")
    assert (ended.code, ended.message) == (Code.RESOURCE_EXHAUSTED, "Decompressed message larger than max")
    serves(bench)


@pytest.mark.parametrize(
    ("frames", "headers"),
    [
        ([frame(b"garbage", flag=1)], {}),
        ([frame(b"garbage", flag=1)], {"grpc_encoding": "gzip"}),
        ([frame(REQUEST, flag=1)], {"grpc_encoding": "none of ours"}),
        ([frame(REQUEST)], {"grpc_timeout": "99x"}),
        ([frame(REQUEST)], {"x_bin": "!!!"}),
    ],
)
def test_what_breaks_the_protocol_is_answered_as_grpc_itself_says(
    bench: Bench, frames: list[bytes], headers: dict[str, str]
) -> None:
    """gRPC's specification asks for INTERNAL there, and its core answers so before the service hears of it."""
    ended = send(bench, *frames, **headers)
    assert ended.code is Code.INTERNAL
    assert not LEAKS.search(ended.message)
    serves(bench)


@pytest.mark.parametrize(
    ("headers", "code"),
    [
        ({"p_method": "GET"}, None),
        ({"p_method": "PUT"}, None),
        ({"te": ""}, None),
        ({"content_type": "application/json"}, Code.NOT_FOUND),  # gRPC's core does not look at it: it is Protobuf
        ({"content_type": "text/html"}, Code.NOT_FOUND),
        ({"path": "/"}, Code.UNIMPLEMENTED),
        ({"path": "nothing"}, Code.UNIMPLEMENTED),
        ({"path": METHOD + "/"}, Code.UNIMPLEMENTED),
        ({"path": "/lookalike.v1.AudienceService/Nothing"}, Code.UNIMPLEMENTED),
        ({"path": "/" + "x" * 5000}, Code.UNIMPLEMENTED),
        ({"grpc_timeout": "0n"}, Code.DEADLINE_EXCEEDED),
    ],
)
def test_other_headers_than_a_clients(bench: Bench, headers: dict[str, Any], code: Code | None) -> None:
    ended = send(bench, frame(REQUEST), **headers)
    assert ended.code is code, ended
    assert code is not None or ended.reset
    assert not LEAKS.search(ended.message)
    serves(bench)


@pytest.mark.parametrize(
    ("metadata", "code"),
    [
        ([("note", "x" * 7000)], Code.NOT_FOUND),
        ([("note", "x" * 20_000)], Code.RESOURCE_EXHAUSTED),
        ([("note", "x" * 2**20)], Code.RESOURCE_EXHAUSTED),
        ([("traceparent", "00-" + "z" * 50), ("note-bin", bytes(range(256)))], Code.NOT_FOUND),
        ([(f"note-{n}", "x") for n in range(100)], Code.NOT_FOUND),
    ],
    ids=lambda value: None,
)
def test_large_and_odd_metadata(bench: Bench, metadata: list[tuple[str, Any]], code: Code) -> None:
    call = bench.channel.unary_unary(METHOD)
    with pytest.raises(grpc.RpcError) as caught:
        call(REQUEST, metadata=[("authorization", f"Bearer {bench.token}"), *metadata], timeout=SECONDS)
    assert caught.value.code() is code
    serves(bench)


@settings(max_examples=300, suppress_health_check=list(HealthCheck))
@given(
    body=st.binary(max_size=60)
    | st.builds(lambda flag, data: frame(data, flag=flag), st.integers(0, 255), st.binary()),
    cuts=st.lists(st.integers(0, 60), max_size=3),
)
def test_any_bytes_are_answered(bench: Bench, body: bytes, cuts: list[int]) -> None:
    places = [0, *sorted(cuts), len(body)]
    ended = send(bench, *(body[start:stop] for start, stop in pairwise(places)))
    allowed = {Code.INVALID_ARGUMENT, Code.NOT_FOUND, Code.RESOURCE_EXHAUSTED}
    # INTERNAL: the flag said that it is compressed.
    assert ended.code in (allowed | {Code.INTERNAL} if body[:1] and body[0] & 1 else allowed), ended
    assert not LEAKS.search(ended.message)
    assert bench.records.seen == []


@pytest.mark.parametrize(
    "data",
    [
        b"GET / HTTP/1.1\r\nHost: localhost\r\n\r\n",
        b"\xff\xff\xff\xff\xff" + bytes(100),
        b"\0\0\x04\x08\0\0\0\0\0\0\0\0\0",  # a window update by nothing
        b"\0\0\x06\x04\0\0\0\0\x01" + bytes(6),  # settings on a stream
    ],
)
def test_after_the_preface_something_else(bench: Bench, data: bytes) -> None:
    with RawChannel(bench.running.address, bench.ca) as channel:
        channel.send_raw(data + bytes(20))
    serves(bench)


@pytest.mark.parametrize(
    "data", [b"GET / HTTP/1.1\r\n\r\n", b"\0" * 3000, b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + bytes(99)]
)
def test_no_tls_at_all(bench: Bench, data: bytes) -> None:
    host, _, port = bench.running.address.rpartition(":")
    with socket.create_connection((host, int(port)), SECONDS) as plain:
        plain.sendall(data)
        plain.shutdown(socket.SHUT_WR)
        assert b"lookalike" not in b"".join(iter(lambda: _received(plain), b""))
    serves(bench)


def test_a_connection_that_says_nothing_keeps_nobody_out(bench: Bench) -> None:
    host, _, port = bench.running.address.rpartition(":")
    silent = [socket.create_connection((host, int(port)), SECONDS) for _ in range(50)]
    try:
        serves(bench)
    finally:
        for one in silent:
            one.close()


def test_a_client_without_http2_is_turned_away(bench: Bench) -> None:
    context = ssl.create_default_context(cafile=str(bench.ca))
    context.set_alpn_protocols(["http/1.1"])
    host, _, port = bench.running.address.rpartition(":")
    with socket.create_connection((host, int(port)), SECONDS) as plain:
        try:
            with context.wrap_socket(plain, server_hostname=host) as secured:
                secured.sendall(b"GET / HTTP/1.1\r\n\r\n")
                answer = _received(secured)
        except (ssl.SSLError, ConnectionError):
            answer = b""
    assert answer == b""
    serves(bench)


@pytest.mark.parametrize("service", ["", "lookalike.v1.AudienceService"])
def test_one_watcher_that_leaves_is_no_matter_to_others(bench: Bench, service: str) -> None:
    stub = health_pb2_grpc.HealthStub(bench.channel)
    for _ in range(3):
        watch = stub.Watch(health_pb2.HealthCheckRequest(service=service), timeout=SECONDS)
        assert next(watch).status == health_pb2.HealthCheckResponse.SERVING
        watch.cancel()
    serves(bench)


def _received(plain: socket.socket) -> bytes:
    try:
        return plain.recv(65_536)
    except ConnectionError:
        return b""
