"""Every method that the front has, by whatever bytes a caller may send: a clear answer, and nothing half done.

The methods are those of `service.permissions`, without which none is open; a test holds them against what reflection
says. Requests are made from their descriptors (`messages`), so that new methods and fields are tried by themselves.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import replace
from datetime import timedelta
from pathlib import Path
from typing import Any

import grpc
import pytest
from fuzzed import Bench, bench_front, check, descriptor
from google.longrunning import operations_pb2
from google.protobuf import descriptor_pb2
from google.protobuf.message import DecodeError, Message
from google.protobuf.message_factory import GetMessageClass
from grpc_reflection.v1alpha import reflection_pb2
from hypothesis import HealthCheck, Phase, example, given, settings
from hypothesis import strategies as st
from messages import Words, broken, damaged, filled, messages, paths

from lookalike.service.permissions import OPEN, RULES
from lookalike.v1 import audience_pb2, campaign_pb2

REQUESTS = 10_000  # to all methods together, at the least
# Opting out comes first: who opts out is taken out of every audience, and there are many at the end.
METHODS = sorted({*RULES, *OPEN}, key=lambda method: (not method.endswith("/OptOutUsers"), method))
# Fields that hold names of resources, or resources that are named.
NAMED = {"name", "audience", "audiences", "operation", "before", "after"}
REFLECTION = "/grpc.reflection.v1alpha.ServerReflection/ServerReflectionInfo"


OFF = {grpc.StatusCode.FAILED_PRECONDITION}


def examples(method: str) -> int:
    """Of REQUESTS the method's share: more for those that have more fields."""
    return math.ceil(REQUESTS * _weight(method) / sum(map(_weight, METHODS)))


def _weight(method: str) -> int:
    return 2 + len(paths(descriptor(method).input_type))


@pytest.fixture(scope="module")
def bench(sample_pool: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Bench]:
    with bench_front(sample_pool, tmp_path_factory.mktemp("fuzz")) as it:
        yield it


def expand(**changes: Any) -> audience_pb2.ExpandAudienceRequest:
    features = {"category": campaign_pb2.FeatureValue(text="toys"), "budget": campaign_pb2.FeatureValue(number=3)}
    request = audience_pb2.ExpandAudienceRequest(**changes)
    request.campaign.MergeFrom(campaign_pb2.Campaign(name="spring", features=features))
    if request.WhichOneof("seeds") is None:
        request.seed_ids.integers.values.extend([1, 2, 3])
    if request.WhichOneof("size") is None:
        request.k = 5
    return request


def right(method: str, words: Words) -> Message:
    """A request that is right, as far as one can be made from names."""
    kind = descriptor(method).input_type
    if kind is audience_pb2.ExpandAudienceRequest.DESCRIPTOR:
        return expand(filter="gender = 'gender_0'")
    request: Any = GetMessageClass(kind)()
    operation, audience = words[:2]
    for one in kind.fields:
        if one.name in NAMED and kind.name != "ListOperationsRequest":
            if one.message_type is not None:
                getattr(request, one.name).name = audience
            elif one.is_repeated:
                getattr(request, one.name).extend([audience, audience])
            else:
                setattr(request, one.name, operation if "Operation" in kind.name else audience)
        elif one.message_type is audience_pb2.UserIds.DESCRIPTOR and one.containing_oneof is None:
            getattr(request, one.name).integers.values.extend([1, 2, 3])
    if kind.name == "UpdateAudienceRequest":
        request.ttl.FromTimedelta(timedelta(days=1))
    result: Message = request
    return result


# What this test has found. Each was a defect, and is tried first.
FOUND: dict[str, dict[str, Message | bytes]] = {
    "ExpandAudience": {
        "an error of the operating system's told where the seeds folder is": expand(seeds_path="x" * 300),
        "so did a loop of links": expand(seeds_path="loop"),
        "Arrow's error told how the file was opened": expand(seeds_path="text.parquet"),
        "the field was the file's column and none of the request's": expand(seeds_path="floats.parquet"),
        "as was that of ids beyond 64 bits": expand(exclude_path="huge.parquet"),
    },
    "GetOperation": {
        "a long name pushed the fix out of the message": operations_pb2.GetOperationRequest(name="x" * 700)
    },
    "ListOperations": {
        "so did a collection of another name": operations_pb2.ListOperationsRequest(name="x" * 700),
        "it said that there is too much of it, not what to do": operations_pb2.ListOperationsRequest(filter="(" * 400),
    },
}
UNDECODABLE = b"\x0a\xff"  # was UNKNOWN, with the name of a Python class, and a traceback in the log


@pytest.mark.filterwarnings("ignore:Generating overly large repr")
@pytest.mark.parametrize("method", METHODS)
def test_whatever_is_sent_the_answer_is_clear_and_nothing_is_left_half_done(method: str, bench: Bench) -> None:
    words = bench.words()
    valid = right(method, words)
    kind = descriptor(method).input_type
    checked = type(valid)()
    checked.CopyFrom(valid)
    if "validate_only" in kind.fields_by_name:  # else most of the time would go into doing what was asked
        checked.validate_only = True
    codes: set[grpc.StatusCode] = set()
    filled_in: set[Any] = set()
    sent = 0

    @settings(
        max_examples=examples(method),
        suppress_health_check=list(HealthCheck),
        phases=set(Phase) - {Phase.explain},
    )
    @given(
        st.one_of(
            *[broken(one, words).map(_encoded) for one in (valid, checked, checked)],
            messages(kind, words).map(_encoded),
            damaged(_encoded(checked)),
        )
    )
    @example(_encoded(valid))
    @example(UNDECODABLE).via("requests that do not decode were UNKNOWN")
    def fuzz(request: bytes) -> None:
        nonlocal sent
        answer = bench.call(method, request)
        sent += 1
        codes.add(answer.code)
        filled_in.update(_filled(kind, request))
        check(bench, method, request, answer)

    for why, request in FOUND.get(method.rpartition("/")[2], {}).items():
        fuzz = example(_encoded(request)).via(why)(fuzz)
    fuzz()
    assert sent >= examples(method)
    assert grpc.StatusCode.INVALID_ARGUMENT in codes
    # FAILED_PRECONDITION alone: a method that this front has not, such as what its scripted runtime cannot do.
    assert grpc.StatusCode.OK in codes or codes <= {*OFF, grpc.StatusCode.INVALID_ARGUMENT}, "see `right`"
    assert filled_in == set(paths(kind)), "fields that were never tried"
    assert bench.records.seen == []
    bench.settled()


def test_every_method_that_the_front_has_is_tried(bench: Bench) -> None:
    def ask(**what: str) -> Any:
        request = reflection_pb2.ServerReflectionRequest(**what).SerializeToString()
        return reflection_pb2.ServerReflectionResponse.FromString(bench.call(REFLECTION, request).responses[0])

    methods = set()
    for service in ask(list_services="").list_services_response.service:
        for file in ask(file_containing_symbol=service.name).file_descriptor_response.file_descriptor_proto:
            parsed = descriptor_pb2.FileDescriptorProto.FromString(file)
            methods |= {
                f"/{service.name}/{method.name}"
                for one in parsed.service
                if f"{parsed.package}.{one.name}" == service.name
                for method in one.method
            }
    assert methods <= set(METHODS)
    # Health can also list: that is open to nobody.
    assert {method for method in METHODS if method not in methods} == set()


@pytest.mark.parametrize("method", METHODS)
def test_what_is_anothers_is_not_there(method: str, bench: Bench) -> None:
    expansion = bench.rival.expand(campaign=bench.secret, seeds=[1, 2, 3], k=5)
    audience = expansion.result(30)
    kind = descriptor(method).input_type
    named = [one for one in kind.fields if one.name in NAMED and one.cpp_type == one.CPPTYPE_STRING]
    codes = set()
    for name in (expansion.name, audience.name):
        values = {one.name: [name, name] if one.is_repeated else name for one in named}
        answer = bench.call(method, GetMessageClass(kind)(**values).SerializeToString())
        check(bench, method, b"", answer)
        codes.add(answer.code)
    if named and method not in OPEN and kind.name != "ListOperationsRequest":
        assert codes <= {grpc.StatusCode.NOT_FOUND, grpc.StatusCode.INVALID_ARGUMENT, *OFF}
        assert codes & {grpc.StatusCode.NOT_FOUND, *OFF}
    assert bench.rival.operation(expansion.name).result(30) == bench.rival.audience(audience.name) == audience


def test_no_log_has_a_token(bench: Bench) -> None:
    secrets = [bench.token.split("_", 2)[2], "nobodys-token-at-all"]
    for secret in secrets:
        for place in ("request_id", "audience_id", "filter", "seeds_path"):
            bench.call("/lookalike.v1.AudienceService/ExpandAudience", _encoded(expand(**{place: f"lk_1_{secret}"})))
        name = operations_pb2.CancelOperationRequest(name=f"operations/lk_1_{secret}")
        bench.call("/google.longrunning.Operations/CancelOperation", _encoded(name))
    refused = replace(bench, token="lk_1_" + secrets[1])
    assert refused.call(METHODS[0], b"").code is grpc.StatusCode.UNAUTHENTICATED
    logged = "".join(bench.records.lines)
    audited = (bench.running.data_dir / "audit.jsonl").read_text()
    assert "is accepted" in logged
    assert "refused" in audited
    for text in (logged, audited):
        assert [secret for secret in secrets if secret in text] == []


def _encoded(message: Message | bytes) -> bytes:
    return message if isinstance(message, bytes) else message.SerializeToString()


def _filled(kind: Any, request: bytes) -> set[Any]:
    try:
        return filled(GetMessageClass(kind).FromString(request))
    except DecodeError:
        return set()
