"""Test help: a front with TLS and tokens, a caller who sends it any bytes, and what an answer to that must be like."""

from __future__ import annotations

import logging
import re
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, field
from datetime import timedelta
from pathlib import Path
from typing import Any

import grpc
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from certificates import Authority
from google.longrunning import operations_pb2
from google.protobuf import descriptor_pool
from google.protobuf.descriptor import MethodDescriptor
from google.protobuf.message import Message
from google.rpc import error_details_pb2, status_pb2
from messages import Words, has_field
from processes import wait_until
from serving import SECONDS, Front, ScriptedRuntime, config_for, front

from lookalike.client import Client
from lookalike.errors import LookalikeError
from lookalike.pool.snapshot import Pool
from lookalike.schema import FeatureSchema, Field, FieldKind
from lookalike.service import server  # noqa: F401 - brings all services' descriptors
from lookalike.service.caller import Scope
from lookalike.service.decoding import REASON as MALFORMED
from lookalike.service.permissions import OPEN
from lookalike.service.status import DETAILS_KEY, DOMAIN
from lookalike.service.token_file import TokenFile
from lookalike.v1 import audience_pb2

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
    r"Traceback|File \"|\.py\b|<class|object at 0x|\b[A-Za-z]+(Error|Exception)\b|Errno|/proc/self/fd|site-packages|"
    r"\bNoneType\b"
)
# How a sentence tells what to do instead.
FIX = re.compile(
    r"\b(must|give|leave|choose|send|pass|fill|put|write|use|compare|cast|needs|knows|it has|there are|at most|"
    r"are allowed|takes|terms are)\b"
)


def descriptor(method: str) -> MethodDescriptor:
    """Of a method by its path on the wire."""
    return descriptor_pool.Default().FindMethodByName(method[1:].replace("/", "."))


@dataclass
class Answer:
    code: grpc.StatusCode
    message: str
    status: status_pb2.Status | None
    responses: list[bytes]

    def detail(self, kind: type[Message]) -> Any:
        """The one of this kind; None: there is none."""
        found = kind()
        details = self.status.details if self.status is not None else ()
        return found if any(one.Unpack(found) for one in details) else None


class Records(logging.Handler):
    """What the server logs: `lines` is all of it, `seen` what is a defect's."""

    def __init__(self) -> None:
        super().__init__()
        self.lines: list[str] = []
        self.seen: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        self.lines.append(f"{record.name}: {record.getMessage()} {record.exc_info or ''}")
        if record.levelno >= logging.WARNING:
            self.seen.append(self.lines[-1])


@dataclass
class Bench:
    """A front with two tenants, and what was sent to it by the one who tries everything."""

    running: Front
    channel: grpc.Channel
    ca: Path
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
            done.operation, done.audience, _folder(done), "operations/" + "0" * 32, "audiences/" + "0" * 32,
            "operations", theirs.operation, theirs.audience, _folder(theirs), page, "spring", "my-own", "toys",
            "good.parquet", "text.parquet", "loop", "floats.parquet", "nulls.parquet", "huge.parquet", "other.parquet",
            "../rival/theirs.parquet", "link.parquet", "gender = 'gender_0'", "gender = 'x' OR age IS NULL",
            "state = QUEUED", 'done = true AND campaign = "spring"', "NOT (priority = HIGH)",
            'create_time > "2024-02-03T04:05:06Z"', 'end_time < "0001-01-01T00:00:00+14:00"',
            "lookalike.v1.AudienceService", "google.longrunning.Operations", "lookalike/v1/audience.proto",
            "lookalike.v1.ExpandAudienceRequest",
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

    def settled(self) -> None:
        """Nothing is half done: what was accepted is listed and comes to its end, and no file is left over."""
        assert self.listed() == self.accepted
        for expansion in self.client.operations("done = false"):
            with suppress(LookalikeError):
                expansion.result(SECONDS)
        assert list(self.client.operations("done = false")) == []
        folder = self.running.data_dir
        wait_until(lambda: not any((folder / "jobs").iterdir()))
        left = [path for path in folder.rglob("*") if re.search(r"\.(tmp|partial)|^tmp", path.name)]
        assert left == []

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
    """Resource names of an operation and its audience."""

    operation: str
    audience: str


def _folder(done: Done) -> str:
    """The name by which an audience is known that has none of its own."""
    return f"audiences/{done.operation.rpartition('/')[2]}"


@contextmanager
def bench_front(sample_pool: Path, folder: Path, **service: object) -> Iterator[Bench]:
    """The front, running; everything it has lies in `folder`."""
    seeds = folder / "seeds"
    for tenant in ("shop", "rival"):
        (seeds / tenant).mkdir(parents=True)
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
        **service,
    )
    tokens = TokenFile(folder / "data" / "tokens.json")
    files = {}
    for tenant in ("shop", "rival"):
        files[tenant] = folder / f"{tenant}.token"
        files[tenant].write_text(tokens.create(tenant, Scope, lifetime=timedelta(days=1))[0])
    records = Records()
    logging.getLogger().addHandler(records)
    ours = logging.getLogger("lookalike")
    level = ours.level
    ours.setLevel(logging.DEBUG)
    ca = folder / "authority" / "ca.pem"
    with ExitStack() as stack:
        stack.callback(logging.getLogger().removeHandler, records)
        stack.callback(ours.setLevel, level)
        running = stack.enter_context(front(config, sample_pool, ScriptedRuntime(), campaign_schema=SCHEMA))
        options: Any = {"timeout": SECONDS, "ca_file": ca}
        clients = [
            stack.enter_context(Client(running.address, token_file=files[tenant], **options))
            for tenant in ("shop", "rival")
        ]
        credentials = grpc.ssl_channel_credentials(ca.read_bytes())
        channel = stack.enter_context(grpc.secure_channel(running.address, credentials))
        private = (str(folder), str(sample_pool))
        yield Bench(running, channel, ca, files["shop"].read_text(), *clients, records, private, "rival-secret")


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
    if answer.code is grpc.StatusCode.INVALID_ARGUMENT and info.reason != MALFORMED:
        violations = answer.detail(error_details_pb2.BadRequest).field_violations
        assert violations
        for one in violations:
            assert has_field(kind, one.field), one
            assert FIX.search(one.description), one
