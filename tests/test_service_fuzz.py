"""Every method that the front has, by whatever bytes a caller may send: a clear answer, and nothing half done.

The methods are those of `service.permissions`, without which none is open; a test holds them against what reflection
says. Requests are made from their descriptors (`messages`), so that new methods and fields are tried without a word here.
"""

from __future__ import annotations

import logging
import re
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from datetime import timedelta
from pathlib import Path
from typing import Any

import grpc
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from certificates import Authority
from google.longrunning import operations_pb2
from google.protobuf import descriptor_pb2, descriptor_pool
from google.protobuf.descriptor import MethodDescriptor
from google.protobuf.message import Message
from google.protobuf.message_factory import GetMessageClass
from google.rpc import error_details_pb2, status_pb2
from grpc_reflection.v1alpha import reflection_pb2, reflection_pb2_grpc
from hypothesis import HealthCheck, Phase, example, given, settings
from hypothesis import strategies as st
from messages import Words, broken, damaged, has_field, messages, paths
from processes import wait_until
from serving import SECONDS, Front, ScriptedRuntime, config_for, front

from lookalike.channel import open_channel
from lookalike.client import Client
from lookalike.pool.snapshot import Pool
from lookalike.schema import FeatureSchema, Field, FieldKind
from lookalike.service import server  # noqa: F401 - brings all services' descriptors
from lookalike.service.caller import Scope
from lookalike.service.permissions import OPEN, RULES
from lookalike.service.status import DETAILS_KEY, DOMAIN
from lookalike.service.token_file import TokenFile
from lookalike.v1 import audience_pb2, campaign_pb2

REQUESTS = 10_000  # of all methods together, at the least
METHODS = sorted({*RULES, *OPEN})
SCHEMA = FeatureSchema((
    Field("category", FieldKind.CATEGORICAL, values=("toys", "books")),
    Field("tags", FieldKind.MULTI, values=("1", "2")),
    Field("budget", FieldKind.NUMERIC, boundaries=(10.0,)),
))  # fmt: skip
# What a wrong request may come to. Others are a defect (INTERNAL, UNKNOWN, DATA_LOSS), or no answer to bad input.
CODES = {
    grpc.StatusCode.OK,
    grpc.StatusCode.INVALID_ARGUMENT,
    grpc.StatusCode.NOT_FOUND,
    grpc.StatusCode.ALREADY_EXISTS,
    grpc.StatusCode.FAILED_PRECONDITION,
    grpc.StatusCode.RESOURCE_EXHAUSTED,
}
# Of programs, not of people: tracebacks, Python's classes, representations and modules, errno, files of the server's.
LEAKS = re.compile(
    r"Traceback|File \"|\.py\b|<class|object at 0x|\b[A-Za-z]+(Error|Exception)\b|Errno|/proc/self/fd|site-packages|\bNoneType\b"
)
# How a sentence tells what to do instead.
FIX = re.compile(
    r"\b(must|give|leave|choose|send|pass|fill|put|write|use|compare|cast|needs|knows|it has|at most|are allowed|takes|terms are)\b"
)


def descriptor(method: str) -> MethodDescriptor:
    return descriptor_pool.Default().FindMethodByName(method[1:].replace("/", "."))


def examples(method: str) -> int:
    """More for requests that have more fields."""
    return 250 + 190 * len(paths(descriptor(method).input_type))


@dataclass
class Answer:
    code: grpc.StatusCode
    message: str
    status: status_pb2.Status | None
    responses: list[bytes]

    def detail(self, kind: type[Message]) -> Any:
        """The one of this kind; None: there is none."""
        found = [kind() for _ in range(1)]
        details = self.status.details if self.status is not None else ()
        return next((found[0] for one in details if one.Unpack(found[0])), None)


class Records(logging.Handler):
    """What the server logs of defects."""

    def __init__(self) -> None:
        super().__init__(logging.WARNING)
        self.seen: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        self.seen.append(f"{record.name}: {record.getMessage()} {record.exc_info or ''}")


@dataclass
class Bench:
    """A front with two tenants, and what was sent to it by the one who tries everything."""

    running: Front
    channel: grpc.Channel
    token: str
    client: Client
    rival: Client
    records: Records
    private: tuple[str, ...]  # what no message may tell
    secret: str  # in everything the rival has
    accepted: set[str] = field(default_factory=set)

    def call(self, method: str, *sent: bytes) -> Answer:
        """The answer; of a stream its first message, for some never end."""
        kind = descriptor(method)
        options: Any = {"metadata": (("authorization", f"Bearer {self.token}"),), "timeout": SECONDS}
        try:
            if kind.client_streaming:
                made: Any = self.channel.stream_stream if kind.server_streaming else self.channel.stream_unary
                response = made(method)(iter(sent), **options)
            else:
                made = self.channel.unary_stream if kind.server_streaming else self.channel.unary_unary
                response = made(method)(sent[0], **options)
            responses = [response]
            if kind.server_streaming:
                responses = [one for one in [next(response, None)] if one is not None]
                response.cancel()
            answer = Answer(grpc.StatusCode.OK, "", None, responses)
        except grpc.RpcError as error:
            trailers = dict(error.trailing_metadata() or ())
            status = status_pb2.Status.FromString(trailers[DETAILS_KEY]) if DETAILS_KEY in trailers else None
            answer = Answer(error.code(), error.details() or "", status, [])
        self._note(kind, sent, answer)
        return answer

    def words(self) -> Words:
        """Texts that mean something to this front just now, another tenant's among them."""
        done = self.order(self.client, "spring")
        theirs = self.order(self.rival, self.secret)
        page = self.client_page(done.audience)
        return (
            done.operation, done.audience, f"audiences/{done.operation.rpartition('/')[2]}", "operations", "operations/" + "0" * 32,
            theirs.operation, theirs.audience, f"audiences/{theirs.operation.rpartition('/')[2]}", "audiences/" + "0" * 32,
            page, "spring", "my-own", "toys", "good.parquet", "text.parquet", "loop", "floats.parquet", "nulls.parquet", "huge.parquet", "other.parquet", "../rival/theirs.parquet", "link.parquet",
            "gender = 'gender_0'", "gender = 'x' OR age IS NULL", "state = QUEUED", 'done = true AND campaign = "spring"',
            "NOT (priority = HIGH)", 'create_time > "2024-02-03T04:05:06Z"', "lookalike.v1.AudienceService",
            "google.longrunning.Operations", "lookalike/v1/audience.proto", "lookalike.v1.ExpandAudienceRequest",
        )  # fmt: skip

    def client_page(self, audience: str) -> str:
        request = audience_pb2.ListAudienceMembersRequest(audience=audience, page_size=2)
        answer = self.call("/lookalike.v1.AudienceService/ListAudienceMembers", request.SerializeToString())
        return audience_pb2.ListAudienceMembersResponse.FromString(answer.responses[0]).next_page_token

    def order(self, client: Client, campaign: str) -> Done:
        expansion = client.expand(campaign=campaign, seeds=[1, 2, 3], k=5, features={"category": "toys"})
        if client is self.client:
            self.accepted.add(expansion.name)
        return Done(expansion.name, expansion.result(SECONDS).name)

    def listed(self) -> set[str]:
        return {expansion.name for expansion in self.client.operations()}

    def _note(self, kind: MethodDescriptor, sent: Sequence[bytes], answer: Answer) -> None:
        if answer.code is not grpc.StatusCode.OK or kind.output_type is not operations_pb2.Operation.DESCRIPTOR:
            if answer.code is grpc.StatusCode.OK and kind.name == "DeleteOperation":
                self.accepted.discard(operations_pb2.DeleteOperationRequest.FromString(sent[0]).name)
            return
        operation = operations_pb2.Operation.FromString(answer.responses[0])
        if operation.name:
            self.accepted.add(operation.name)


@dataclass(frozen=True)
class Done:
    operation: str
    audience: str


@pytest.fixture(scope="module")
def bench(sample_pool: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Bench]:
    folder = tmp_path_factory.mktemp("fuzz")
    seeds = folder / "seeds"
    for tenant in ("shop", "rival"):
        (seeds / tenant).mkdir(parents=True)
        pq.write_table(pa.table({"user_id": [1, 2, 3]}), seeds / tenant / ("good" if tenant == "shop" else "theirs"))
    known = Pool.open(sample_pool).user_ids(np.arange(20))
    pq.write_table(pa.table({"user_id": known}), seeds / "shop" / "good.parquet")
    pq.write_table(pa.table({"user_id": known}), seeds / "rival" / "theirs.parquet")
    for name, column in {"floats": [1.5], "nulls": [1, None], "huge": pa.array([2**64 - 1], pa.uint64())}.items():
        pq.write_table(pa.table({"user_id": column}), seeds / "shop" / f"{name}.parquet")
    pq.write_table(pa.table({"id": known}), seeds / "shop" / "other.parquet")
    (seeds / "shop" / "text.parquet").write_text("user_id\n1\n")
    (seeds / "shop" / "loop").symlink_to("loop")
    (seeds / "shop" / "link.parquet").symlink_to("../rival/theirs.parquet")
    pair = Authority(folder, "authority").issue("server")
    config = config_for(
        folder / "data",
        insecure=False,
        tls_certificate=pair.certificate,
        tls_key=pair.key,
        seeds_dir=seeds,
    )
    tokens = TokenFile(folder / "data" / "tokens.json")
    files = {}
    for tenant in ("shop", "rival"):
        files[tenant] = folder / f"{tenant}.token"
        files[tenant].write_text(tokens.create(tenant, Scope, lifetime=timedelta(days=1))[0])
    records = Records()
    logging.getLogger().addHandler(records)
    ca = folder / "authority" / "ca.pem"
    with ExitStack() as stack:
        stack.callback(logging.getLogger().removeHandler, records)
        running = stack.enter_context(front(config, sample_pool, ScriptedRuntime(), campaign_schema=SCHEMA))
        options: Any = {"timeout": SECONDS, "ca_file": ca}
        clients = [
            stack.enter_context(Client(running.address, token_file=files[tenant], **options))
            for tenant in ("shop", "rival")
        ]
        credentials = grpc.ssl_channel_credentials(ca.read_bytes())
        channel = stack.enter_context(grpc.secure_channel(running.address, credentials))
        private = (str(folder), str(sample_pool))
        yield Bench(running, channel, files["shop"].read_text(), *clients, records, private, "rival-secret")


def valid(method: str, words: Words) -> Message:
    """A request that is right, as far as one can be made from names."""
    kind = descriptor(method).input_type
    if kind is audience_pb2.ExpandAudienceRequest.DESCRIPTOR:
        features = {"category": campaign_pb2.FeatureValue(text="toys"), "budget": campaign_pb2.FeatureValue(number=3)}
        return audience_pb2.ExpandAudienceRequest(
            campaign=campaign_pb2.Campaign(name="spring", features=features),
            seed_ids=audience_pb2.UserIds(integers=audience_pb2.IntegerIds(values=[1, 2, 3])),
            k=5,
            filter="gender = 'gender_0'",
        )
    request = GetMessageClass(kind)()
    for one in kind.fields:
        if one.name in ("name", "audience", "operation"):
            setattr(request, one.name, words[0] if "Operation" in kind.name else words[1])
    return request


def check(bench: Bench, method: str, sent: bytes, answer: Answer) -> None:
    """The answer is one that a caller can do something with, and tells nothing that is not the caller's."""
    kind = descriptor(method).input_type
    told = answer.message + str(answer.status or "")
    assert answer.code in CODES, (answer.code, answer.message)
    assert not LEAKS.search(told), told
    assert not any(text in told for text in bench.private), told
    assert not any(bench.secret.encode() in response for response in answer.responses) or bench.secret.encode() in sent
    if answer.code is grpc.StatusCode.OK or method in OPEN:
        return
    info = answer.detail(error_details_pb2.ErrorInfo)
    assert info is not None, (answer.code, answer.message)
    assert info.domain == DOMAIN
    assert re.fullmatch("[A-Z][A-Z0-9_]+", info.reason)
    if answer.code is grpc.StatusCode.INVALID_ARGUMENT and info.reason != "MALFORMED_REQUEST":
        violations = answer.detail(error_details_pb2.BadRequest).field_violations
        assert violations
        for one in violations:
            assert has_field(kind, one.field), one
            assert FIX.search(one.description), one


@pytest.mark.parametrize("method", METHODS)
def test_whatever_is_sent_the_answer_is_clear_and_nothing_is_left_half_done(method: str, bench: Bench) -> None:
    words = bench.words()
    right = valid(method, words)
    kind = descriptor(method).input_type
    requests = st.one_of(
        *[broken(right, words).map(_encoded)] * 3, messages(kind, words).map(_encoded), damaged(_encoded(right))
    )
    sent = 0

    @settings(max_examples=examples(method), deadline=None, suppress_health_check=list(HealthCheck), phases=set(Phase) - {Phase.explain})
    @given(requests)
    def fuzz(request: bytes) -> None:
        nonlocal sent
        sent += 1
        check(bench, method, request, bench.call(method, request))

    fuzz()
    assert sent >= examples(method)
    assert bench.records.seen == []


def _encoded(message: Message) -> bytes:
    return message.SerializeToString()
