"""The client against the real server: streams of members, resuming, retries, time-outs, wrong arguments."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from concurrent import futures
from pathlib import Path
from typing import Any

import grpc
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from serving import SECONDS, Front, ScriptedRuntime, config_for, front, members_of

from lookalike import errors
from lookalike.client import Client
from lookalike.pool.ingest import ingest
from lookalike.service.members import MESSAGE_BYTES, batch_of
from lookalike.v1 import audience_pb2, audience_pb2_grpc

USERS = 150_000
ENCODINGS = [*audience_pb2.MemberEncoding.values(), 99]  # one of a later version is answered as none


@pytest.fixture(scope="module", params=["integers", "strings"])
def running(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Front]:
    """Over a pool whose audiences take several messages and several row groups."""
    folder = tmp_path_factory.mktemp(request.param)
    ids = pa.array(range(10**9, 10**9 + USERS))
    if request.param == "strings":
        # Very unequal lengths: cut by rows alone, some messages would be far over the limit.
        ids = pa.array([f"{n:06d}" + "é" * (100 if n > USERS - 20_000 else 1) for n in range(USERS)])
    pq.write_table(pa.table({"user_id": ids, "age": pa.array(np.arange(USERS) % 90)}), folder / "users.parquet")
    ingest(folder / "users.parquet", folder / "pool")
    with front(config_for(folder / "data"), folder / "pool", ScriptedRuntime()) as it:
        yield it


@pytest.fixture
def client(running: Front) -> Iterator[Client]:
    with Client(running.address, timeout=SECONDS) as it:
        yield it


@pytest.fixture(scope="module")
def audience(running: Front) -> audience_pb2.Audience:
    with Client(running.address) as client:
        seeds: list[Any] = ["a"] if "strings" in str(running.data_dir) else [1]
        return client.expand(campaign="c", seeds=seeds, pool_share=1.0).result(SECONDS)


def test_the_members_are_those_of_the_file(client: Client, running: Front, audience: audience_pb2.Audience) -> None:
    batches = list(client.members(audience.name))
    assert len(batches) > 2
    assert pa.Table.from_batches(batches) == members_of(running, audience.name)


@pytest.mark.parametrize("encoding", ENCODINGS)
def test_messages_are_of_a_good_size(encoding: Any, running: Front, audience: audience_pb2.Audience) -> None:
    with grpc.insecure_channel(running.address) as channel:
        stub = audience_pb2_grpc.AudienceServiceStub(channel)
        request = audience_pb2.StreamAudienceMembersRequest(audience=audience.name, encoding=encoding)
        sizes = [message.ByteSize() for message in stub.StreamAudienceMembers(request)]
    assert max(sizes) <= 2 * MESSAGE_BYTES
    assert sum(sizes) / len(sizes) > MESSAGE_BYTES / 5


@pytest.mark.parametrize("start", [1, 2, 140_000, USERS, USERS + 1])
def test_from_a_rank_on(start: int, client: Client, running: Front, audience: audience_pb2.Audience) -> None:
    ranks = [rank for batch in client.members(audience.name, start_rank=start) for rank in batch["rank"].to_pylist()]
    assert ranks == list(range(start, USERS + 1))


@pytest.mark.parametrize("encoding", ENCODINGS)
def test_a_token_takes_up_after_its_message(encoding: Any, running: Front, audience: audience_pb2.Audience) -> None:
    whole = members_of(running, audience.name)
    with grpc.insecure_channel(running.address) as channel:
        stub = audience_pb2_grpc.AudienceServiceStub(channel)
        request = audience_pb2.StreamAudienceMembersRequest(audience=audience.name, encoding=encoding)
        tokens, batches = [""], []
        for message in stub.StreamAudienceMembers(request):
            assert message.HasField("packed") is (encoding == audience_pb2.MEMBER_ENCODING_PACKED)
            tokens.append(message.resume_token)
            batches.append(batch_of(message))
        assert pa.Table.from_batches(batches) == whole
        for done, token in enumerate(tokens):
            # A token says where, not how: the rest may come in another encoding.
            request.encoding = ENCODINGS[done % len(ENCODINGS)]
            request.resume_token = token
            rest = [batch_of(message) for message in stub.StreamAudienceMembers(request)]
            start = sum(batch.num_rows for batch in batches[:done])
            assert pa.Table.from_batches(rest, batches[0].schema) == whole.slice(start)
        other = audience_pb2.StreamAudienceMembersRequest(audience=audience.name, resume_token="x")
        with pytest.raises(grpc.RpcError, match="no token of this listing"):
            next(stub.StreamAudienceMembers(other))


def test_the_first_members(client: Client, running: Front, audience: audience_pb2.Audience) -> None:
    members = client.first_members(audience.name, 12_345)
    expected = members_of(running, audience.name).slice(0, 12_345)
    kind = members[0].WhichOneof("user")
    assert kind is not None
    assert [getattr(m, kind) for m in members] == expected["user_id"].to_pylist()
    assert [m.rank for m in members] == expected["rank"].to_pylist()


class Flaky(audience_pb2_grpc.AudienceServiceServicer):
    """Sends two members a time and breaks after each message; twice it does not answer at all."""

    def __init__(self) -> None:
        self.calls: list[str] = []

    def StreamAudienceMembers(self, request: Any, context: Any) -> Any:  # noqa: N802
        self.calls.append(request.resume_token)
        if len(self.calls) in (2, 3):
            context.abort(grpc.StatusCode.UNAVAILABLE, "away")
        start = int(request.resume_token or 0)
        if start < 6:
            ids = audience_pb2.UserIds(integers=audience_pb2.IntegerIds(values=[start, start + 1]))
            yield audience_pb2.StreamAudienceMembersResponse(
                start_rank=start + 1, user_ids=ids, scores=[1.0, 0.5], resume_token=str(start + 2)
            )
            context.abort(grpc.StatusCode.UNAVAILABLE, "broken")

    def StreamAudienceChanges(self, request: Any, context: Any) -> Any:  # noqa: N802
        for message in self.StreamAudienceMembers(request, context):
            yield audience_pb2.StreamAudienceChangesResponse(
                change=audience_pb2.StreamAudienceChangesResponse.CHANGE_LEFT,
                user_ids=message.user_ids,
                ranks=[message.start_rank, message.start_rank + 1],
                scores=message.scores,
                left=6,
                resume_token=message.resume_token if request.after != "audiences/old" else "",
            )


@pytest.fixture
def flaky() -> Iterator[tuple[Flaky, str]]:
    servicer = Flaky()
    server = grpc.server(futures.ThreadPoolExecutor(2))
    audience_pb2_grpc.add_AudienceServiceServicer_to_server(servicer, server)
    port = server.add_insecure_port("127.0.0.1:0")
    server.start()
    yield servicer, f"127.0.0.1:{port}"
    server.stop(None).wait()


def test_a_broken_stream_is_taken_up(flaky: tuple[Flaky, str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("lookalike.client.connection.RETRY_DELAY", 0.01)
    servicer, address = flaky
    with Client(address) as client:
        batches = list(client.members("audiences/x"))
    assert [i for batch in batches for i in batch["user_id"].to_pylist()] == list(range(6))
    assert servicer.calls == ["", "2", "2", "2", "4", "6"]
    servicer.calls.clear()
    with Client(address) as client:
        changes = list(client.changes("audiences/x", "audiences/y"))
        of_old = client.changes("audiences/x", "audiences/old")
        assert next(of_old).members["user_id"].to_pylist() == [0, 1]
        with pytest.raises(errors.Unavailable):
            next(of_old)
    assert [i for one in changes for i in one.members["user_id"].to_pylist()] == list(range(6))
    assert servicer.calls == ["", "2", "2", "2", "4", "6", ""]


def test_nobody_there(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("lookalike.client.connection.RETRY_SECONDS", 0.2)
    monkeypatch.setattr("lookalike.client.connection.RETRY_DELAY", 0.05)
    with Client("127.0.0.1:1", timeout=0.3) as client:
        with pytest.raises(errors.Unavailable):
            client.expand(campaign="c", seeds=[1], k=1)
        with pytest.raises(errors.Unavailable):
            client.operation("operations/x").result(0.1)
        with pytest.raises(errors.Unavailable):
            list(client.members("audiences/x"))


@pytest.mark.parametrize(
    ("arguments", "field"),
    [
        ({"k": 1}, "seeds"),
        ({"seeds": [1], "seeds_path": "x", "k": 1}, "seeds"),
        ({"seeds": [1]}, "k"),
        ({"seeds": [1], "k": 1, "pool_share": 0.5}, "k"),
        ({"seeds": [1], "k": -1}, "k"),
        ({"seeds": [1, "a"], "k": 1}, "seeds"),
        ({"seeds": ["a", 1], "k": 1}, "seeds"),
        ({"seeds": [None], "k": 1}, "seeds"),
        ({"seeds": [2**63], "k": 1}, "seeds"),
        ({"seeds": [1], "k": 1, "random_seed": -1}, "random_seed"),
        ({"seeds": [1], "k": 1, "features": {"a": object()}}, "features.a"),
        ({"seeds": [1], "k": 1, "features": {"a": [1.5]}}, "features.a"),
    ],
)
def test_arguments_that_cannot_be_sent(arguments: dict[str, Any], field: str) -> None:
    with Client("127.0.0.1:1") as client, pytest.raises(errors.InvalidInput) as caught:
        client.expand(campaign="c", **arguments)
    assert caught.value.field == field


def test_the_client_needs_no_torch() -> None:
    modules = "lookalike.client, lookalike.service.server, lookalike.runtime.torchserve"
    code = f"import sys, {modules}; print('torch' in sys.modules)"
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert result.stdout.strip() == "False"


def test_features_arrive_as_they_were_given(sample_pool: Path, tmp_path: Path) -> None:
    runtime = ScriptedRuntime()
    features = {"a": "x", "b": 3, "c": 2.5, "d": ["x", "y"], "e": [1, 2], "f": None, "g": True, "h": []}
    with front(config_for(tmp_path), sample_pool, runtime) as running, Client(running.address) as client:
        client.expand(campaign="c", seeds=pa.chunked_array([[1], [2]]), k=1, features=features).result(SECONDS)
    assert runtime.jobs[0].features == features | {"g": "true"}
