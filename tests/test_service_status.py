"""Errors become statuses and statuses errors again; nothing grows past what headers hold."""

from __future__ import annotations

import inspect

import grpc
import pytest
from google.rpc import error_details_pb2, status_pb2
from hypothesis import given
from hypothesis import strategies as st

from lookalike import errors
from lookalike.service.status import MAX_MESSAGE, MAX_VIOLATIONS, InvalidRequest, from_status, to_status

KINDS = [
    kind
    for _, kind in inspect.getmembers(errors, inspect.isclass)
    if issubclass(kind, errors.LookalikeError) and kind is not errors.LookalikeError
]
HEADER_LIMIT = 8 * 1024


@given(
    kind=st.sampled_from(KINDS),
    message=st.text(max_size=MAX_MESSAGE // 4),
    field=st.none() | st.text(max_size=50),
    reason=st.none() | st.from_regex(r"[A-Z][A-Z0-9_]{0,62}", fullmatch=True),
)
def test_an_error_survives_the_way_there_and_back(
    kind: type[errors.LookalikeError], message: str, field: str | None, reason: str | None
) -> None:
    error = kind(message, field=field, reason=reason)
    back = from_status(status_pb2.Status.FromString(to_status(error).SerializeToString()))
    assert type(back) is kind
    assert (back.message, back.field, back.reason) == (error.message, error.field, error.reason)


def test_every_kind_has_its_own_code_or_its_parents() -> None:
    codes = {kind: to_status(kind("x")).code for kind in KINDS}
    assert (
        len(set(codes.values())) == len(KINDS) - 3
    )  # SchemaError and EmptySeeds are InvalidInput, QuotaExceeded ResourceExhausted
    assert codes[errors.SchemaError] == codes[errors.EmptySeeds] == grpc.StatusCode.INVALID_ARGUMENT.value[0]


def test_many_long_violations_fit_into_headers() -> None:
    many = [errors.InvalidInput("ü" * 5000, field="f" * 5000) for _ in range(500)]
    status = to_status(InvalidRequest(many))
    bad = error_details_pb2.BadRequest()
    assert any(one.Unpack(bad) for one in status.details)
    assert 0 < len(bad.field_violations) <= MAX_VIOLATIONS
    percent_encoded = 3 * len(status.message.encode())
    base64 = 4 * len(status.SerializeToString()) // 3
    assert percent_encoded + base64 < HEADER_LIMIT - 500


@pytest.mark.parametrize("kind", [errors.ResourceExhausted, errors.Unavailable])
def test_what_may_be_tried_again_says_when(kind: type[errors.LookalikeError]) -> None:
    retry = error_details_pb2.RetryInfo()
    assert any(one.Unpack(retry) for one in to_status(kind("x")).details)
    assert retry.retry_delay.seconds > 0


@pytest.mark.parametrize(
    ("code", "kind"),
    [
        (grpc.StatusCode.DEADLINE_EXCEEDED, errors.Unavailable),
        (grpc.StatusCode.PERMISSION_DENIED, errors.PermissionDenied),
        (grpc.StatusCode.UNIMPLEMENTED, errors.InternalError),
        (grpc.StatusCode.NOT_FOUND, errors.NotFound),
    ],
)
def test_other_peoples_statuses(code: grpc.StatusCode, kind: type[errors.LookalikeError]) -> None:
    error = from_status(status_pb2.Status(code=code.value[0], message="m"))
    assert type(error) is kind
    assert error.message == "m"


def test_a_foreign_error_info_is_not_believed() -> None:
    status = status_pb2.Status(code=grpc.StatusCode.NOT_FOUND.value[0], message="m")
    status.details.add().Pack(error_details_pb2.ErrorInfo(domain="example.com", reason="ELSE"))
    assert from_status(status).reason == errors.NotFound.default_reason


def test_a_class_that_contradicts_the_code_is_not_believed() -> None:
    status = status_pb2.Status(code=grpc.StatusCode.NOT_FOUND.value[0], message="m")
    info = error_details_pb2.ErrorInfo(domain="lookalike", reason="X", metadata={"class": "UNAVAILABLE"})
    status.details.add().Pack(info)
    assert type(from_status(status)) is errors.NotFound
