"""The one map between our error tree and gRPC statuses with rich details, in both directions.

Knows errors and google.rpc; knows no service. The client uses the way back.
"""

from __future__ import annotations

import asyncio
import logging
import math
import secrets
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from typing import Any, NoReturn

import grpc
from google.protobuf.duration_pb2 import Duration
from google.protobuf.message import DecodeError
from google.rpc import error_details_pb2, status_pb2

from lookalike import errors
from lookalike.files import DISK_FULL, is_full

_log = logging.getLogger(__name__)

DOMAIN = "lookalike"
DETAILS_KEY = "grpc-status-details-bin"

# A status travels in headers: past 8 KiB gRPC turns it into RESOURCE_EXHAUSTED. The message goes percent-encoded (up to
# three times its bytes), the Status in base64: 1,800 + 5,400 bytes leave room for the rest.
MAX_MESSAGE = 600
MAX_STATUS = 4000
MAX_VIOLATIONS = 20
MAX_VIOLATION = 200

_CODES: tuple[tuple[type[errors.LookalikeError], grpc.StatusCode], ...] = (
    (errors.InvalidInput, grpc.StatusCode.INVALID_ARGUMENT),
    (errors.NotFound, grpc.StatusCode.NOT_FOUND),
    (errors.AlreadyExists, grpc.StatusCode.ALREADY_EXISTS),
    (errors.FailedPrecondition, grpc.StatusCode.FAILED_PRECONDITION),
    (errors.ResourceExhausted, grpc.StatusCode.RESOURCE_EXHAUSTED),
    (errors.Cancelled, grpc.StatusCode.CANCELLED),
    (errors.Unavailable, grpc.StatusCode.UNAVAILABLE),
    (errors.DataCorrupted, grpc.StatusCode.DATA_LOSS),
    (errors.Unauthenticated, grpc.StatusCode.UNAUTHENTICATED),
    (errors.PermissionDenied, grpc.StatusCode.PERMISSION_DENIED),
    (errors.InternalError, grpc.StatusCode.INTERNAL),
)
_CLASSES = {code.value[0]: kind for kind, code in _CODES} | {
    grpc.StatusCode.DEADLINE_EXCEEDED.value[0]: errors.Unavailable,
    grpc.StatusCode.OUT_OF_RANGE.value[0]: errors.InvalidInput,
}
ERROR_CODES = tuple(code.name for _, code in _CODES)
# What gRPC says, as a plain UNAVAILABLE, where it is the client that will not have the server; no retry helps there.
_NOT_TRUSTED = ("CERTIFICATE_VERIFY_FAILED", "Hostname Verification Check failed")
# How long a client does well to wait before it tries again.
_RETRY_SECONDS = {grpc.StatusCode.RESOURCE_EXHAUSTED: 30, grpc.StatusCode.UNAVAILABLE: 2}


class InvalidRequest(errors.InvalidInput):
    """Several things are wrong with a request; the first speaks for all where only one can."""

    def __init__(self, violations: Sequence[errors.LookalikeError]) -> None:
        first = violations[0]
        more = f" (and {len(violations) - 1} more)" if len(violations) > 1 else ""
        super().__init__(first.message + more, field=first.field, reason=first.reason)
        self.violations = tuple(violations)


def to_status(error: errors.LookalikeError) -> status_pb2.Status:
    """The status with ErrorInfo, and BadRequest or RetryInfo where they apply."""
    code = next((code for kind, code in _CODES if isinstance(error, kind)), grpc.StatusCode.INTERNAL)
    status = status_pb2.Status(code=code.value[0], message=_cut(error.message, MAX_MESSAGE))
    info = error_details_pb2.ErrorInfo(reason=error.reason, domain=DOMAIN, metadata={"class": error.default_reason})
    if error.field is not None:
        info.metadata["field"] = _cut(error.field, MAX_VIOLATION)
    status.details.add().Pack(info)
    violations = error.violations if isinstance(error, InvalidRequest) else (error,)
    if code is grpc.StatusCode.INVALID_ARGUMENT and error.field is not None:
        request = error_details_pb2.BadRequest()
        for one in violations[:MAX_VIOLATIONS]:
            if status.ByteSize() + request.ByteSize() + 2 * MAX_VIOLATION > MAX_STATUS:
                break
            request.field_violations.add(
                field=_cut(one.field or "", MAX_VIOLATION // 2),
                description=_cut(one.message, MAX_VIOLATION),
                reason=one.reason,
            )
        status.details.add().Pack(request)
    if isinstance(error, errors.QuotaExceeded):
        quota = error_details_pb2.QuotaFailure()
        quota.violations.add(
            subject=_cut(error.subject, MAX_VIOLATION), description=_cut(error.quota, MAX_VIOLATION // 2)
        )
        status.details.add().Pack(quota)
    if code in _RETRY_SECONDS:
        seconds = error.retry_seconds if isinstance(error, errors.QuotaExceeded) else _RETRY_SECONDS[code]
        delay = Duration()
        delay.FromMilliseconds(math.ceil(1000 * seconds))
        status.details.add().Pack(error_details_pb2.RetryInfo(retry_delay=delay))
    return status


def code_of(error: errors.LookalikeError | None) -> str:
    """The name of the code of its status; OK for none."""
    return "OK" if error is None else grpc_code(to_status(error).code).name


def grpc_code(value: Any) -> grpc.StatusCode:
    """A code that came as one of gRPC's, or as its number; UNKNOWN for any other value."""
    number = value.value[0] if isinstance(value, grpc.StatusCode) else value
    return next((code for code in grpc.StatusCode if code.value[0] == number), grpc.StatusCode.UNKNOWN)


def from_status(status: status_pb2.Status) -> errors.LookalikeError:
    """The error `to_status` was given, as far as a status tells; for other people's statuses the nearest."""
    kind = _CLASSES.get(status.code, errors.InternalError)
    reason = field = None
    info, quota, retry = error_details_pb2.ErrorInfo(), error_details_pb2.QuotaFailure(), error_details_pb2.RetryInfo()
    for detail in status.details:
        if detail.Unpack(info) and info.domain == DOMAIN:
            reason = info.reason
            field = info.metadata.get("field")
            told = errors.error_class(info.metadata.get("class", ""))
            kind = told if issubclass(told, kind) else kind
        elif not detail.Unpack(quota):
            detail.Unpack(retry)
    if issubclass(kind, errors.QuotaExceeded) and quota.violations:
        return kind(
            status.message,
            field=field,
            reason=reason,
            quota=quota.violations[0].description,
            subject=quota.violations[0].subject,
            retry_seconds=retry.retry_delay.ToMilliseconds() / 1000,
        )
    return kind(status.message, field=field, reason=reason)


def from_rpc_error(error: Any) -> errors.LookalikeError:
    """What a client's failed call (a `grpc.RpcError`) means."""
    code, details = error.code(), error.details() or ""
    for key, value in error.trailing_metadata() or ():
        if key == DETAILS_KEY:
            try:
                status = status_pb2.Status.FromString(value)
            except DecodeError:
                break
            if status.code == code.value[0]:
                return from_status(status)
    if code is grpc.StatusCode.UNAVAILABLE and any(text in details for text in _NOT_TRUSTED):
        return errors.Unauthenticated(
            f"the server's certificate is not trusted: {details}", reason="SERVER_NOT_TRUSTED"
        )
    if code is grpc.StatusCode.CANCELLED and details in ("", "CANCELLED"):
        # gRPC's word for calls that a server which shuts down has not begun. Whoever cancels a call knows it, and what
        # ends an operation comes with details of ours.
        return errors.Unavailable("the server ended the call before it began; try again", reason="CALL_NOT_BEGUN")
    if code is grpc.StatusCode.DEADLINE_EXCEEDED:
        return errors.Unavailable("no answer within the time-out", reason="DEADLINE_EXCEEDED")
    return from_status(status_pb2.Status(code=code.value[0], message=details or code.name))


def unexpected(error: BaseException, *, what: str) -> errors.InternalError:
    """Log a defect under an incident number and return what the caller may know of it."""
    incident = secrets.token_hex(4)
    _log.error("incident %s in %s", incident, what, exc_info=error)
    return errors.InternalError(f"a defect in {what}; the server's log tells more under incident {incident}")


class ErrorInterceptor(grpc.aio.ServerInterceptor):
    """Turns whatever our services raise into statuses; nothing leaks a traceback. Other services pass unchanged."""

    def __init__(self, prefixes: Sequence[str]) -> None:
        self._prefixes = tuple(f"/{prefix}" for prefix in prefixes)

    async def intercept_service(
        self,
        continuation: Callable[[grpc.HandlerCallDetails], Awaitable[grpc.RpcMethodHandler[Any, Any] | None]],
        handler_call_details: grpc.HandlerCallDetails,
    ) -> grpc.RpcMethodHandler[Any, Any] | None:
        """Wraps the handler of one of our methods."""
        found = await continuation(handler_call_details)
        method = handler_call_details.method
        if found is None or not method.startswith(self._prefixes):
            return found
        handler: Any = found
        if handler.response_streaming:
            return grpc.unary_stream_rpc_method_handler(
                _guard_stream(handler.unary_stream, method),
                request_deserializer=handler.request_deserializer,
                response_serializer=handler.response_serializer,
            )
        return grpc.unary_unary_rpc_method_handler(
            _guard(handler.unary_unary, method),
            request_deserializer=handler.request_deserializer,
            response_serializer=handler.response_serializer,
        )


def _guard(behaviour: Any, method: str) -> Any:
    async def guarded(request: Any, context: Any) -> Any:
        try:
            return await behaviour(request, context)
        except Exception as error:
            await abort(context, error, method)

    return guarded


def _guard_stream(behaviour: Any, method: str) -> Any:
    async def guarded(request: Any, context: Any) -> AsyncIterator[Any]:
        try:
            async for message in behaviour(request, context):
                yield message
        except Exception as error:
            await abort(context, error, method)

    return guarded


async def abort(context: Any, error: Exception, method: str) -> NoReturn:
    """End a call with the status of what was raised in it; an end it has come to already stays."""
    if isinstance(error, (grpc.aio.AbortError, asyncio.CancelledError)):
        raise error
    known = error if isinstance(error, errors.LookalikeError) else None
    if known is None and is_full(error):
        _log.error("%s: %s", method, error)
        known = errors.ResourceExhausted("the server's disk is full; try again later", reason=DISK_FULL)
    known = known or unexpected(error, what=method)
    status = to_status(known)
    code = next(code for code in grpc.StatusCode if code.value[0] == status.code)
    await context.abort(code, status.message, ((DETAILS_KEY, status.SerializeToString()),))
    raise AssertionError("abort raises")


def _cut(text: str, size: int) -> str:
    """At most `size` bytes of it in UTF-8."""
    data = text.encode(errors="replace")
    return data.decode() if len(data) <= size else data[: size - 3].decode(errors="ignore") + "..."
