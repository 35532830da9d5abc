"""The error tree: every failure a caller can cause or must handle is one of these.

LookalikeError
  InvalidInput          the request or file is wrong; mend it and try again
    SchemaError         a column is missing, of a wrong type, or does not fit the schema
    EmptySeeds          no seed was given, or none is in the pool
  NotFound              a campaign, file, operation or audience does not exist
  AlreadyExists         the name is taken by something else
  FailedPrecondition    the parts do not fit together (pool and checkpoint, say)
  ResourceExhausted     a limit was reached; less, or later, may succeed
    QuotaExceeded       a tenant's share is used up for now
  Cancelled             the caller asked to stop
  Unavailable           a server is not there or not ready; a retry may succeed
  DataCorrupted         a file fails its checksum, is truncated or foreign
  Unauthenticated       no valid credentials
  PermissionDenied      valid credentials that do not allow this
  InternalError         a defect of ours or of a component; never the caller's fault

Knows nothing else of the package. gRPC statuses are mapped in `service.status`, exit codes in `cli`.
"""

from __future__ import annotations

import re

# What steers a terminal or a page: controls, line ends of any kind, bidirectional marks and overrides, halves of pairs.
STEERING = re.compile("[\x00-\x1f\x7f-\x9f\u061c\u200e\u200f\u2028-\u202e\u2066-\u2069\ud800-\udfff]")


class LookalikeError(Exception):
    """Base of the tree.

    Args:
        message: what is wrong and how to mend it, in one or two sentences.
        field: the input that is wrong, as the caller spelled it (``seeds``, ``users.parquet:age``).
        reason: stable UPPER_SNAKE identifier for machines; each class has a default.
    """

    default_reason = "LOOKALIKE_ERROR"

    def __init__(self, message: str, *, field: str | None = None, reason: str | None = None) -> None:
        super().__init__(message)
        self.message = message
        self.field = field
        self.reason = reason or self.default_reason


class InvalidInput(LookalikeError):
    """The request or file is wrong; the message names the field and the fix."""

    default_reason = "INVALID_INPUT"


class SchemaError(InvalidInput):
    """A column is missing, of a wrong type, or does not fit the schema."""

    default_reason = "SCHEMA_ERROR"


class EmptySeeds(InvalidInput):
    """No seed was given, or too few of them are in the pool."""

    default_reason = "EMPTY_SEEDS"


class NotFound(LookalikeError):
    """A campaign, file, operation or audience does not exist."""

    default_reason = "NOT_FOUND"


class AlreadyExists(LookalikeError):
    """The name is taken by something else."""

    default_reason = "ALREADY_EXISTS"


class FailedPrecondition(LookalikeError):
    """Parts that must fit together do not (pool and checkpoint, say)."""

    default_reason = "FAILED_PRECONDITION"


class ResourceExhausted(LookalikeError):
    """A limit was reached; less, or later, may succeed."""

    default_reason = "RESOURCE_EXHAUSTED"


class QuotaExceeded(ResourceExhausted):
    """A tenant's share, or everyone's, is used up for now.

    Args:
        quota: the key of the configuration that says how much that is, such as ``quotas.queued``.
        subject: who has used it up, such as ``tenant:acme``.
        retry_seconds: after about so long there is room again.
    """

    default_reason = "QUOTA_EXCEEDED"

    def __init__(
        self,
        message: str,
        *,
        field: str | None = None,
        reason: str | None = None,
        quota: str = "",
        subject: str = "",
        retry_seconds: float = 30.0,
    ) -> None:
        super().__init__(message, field=field, reason=reason)
        self.quota = quota
        self.subject = subject
        self.retry_seconds = retry_seconds


class Cancelled(LookalikeError):
    """The caller asked to stop."""

    default_reason = "CANCELLED"


class Unavailable(LookalikeError):
    """A server is not there or not ready; a retry may succeed."""

    default_reason = "UNAVAILABLE"


class DataCorrupted(LookalikeError):
    """A file fails its checksum, is truncated or foreign."""

    default_reason = "DATA_CORRUPTED"


class Unauthenticated(LookalikeError):
    """No valid credentials came with the request."""

    default_reason = "UNAUTHENTICATED"


class PermissionDenied(LookalikeError):
    """The credentials are valid and do not allow this."""

    default_reason = "PERMISSION_DENIED"


class InternalError(LookalikeError):
    """A defect of ours or of a component; never the caller's fault."""

    default_reason = "INTERNAL"


def quoted(text: str, most: int = 60) -> str:
    """A text of somebody else's as a message shows it: in quotes, at most so many bytes, what is invisible escaped."""
    shown = repr(text[:most])
    data = shown.encode()
    if len(text) <= most and len(data) <= most + 2:
        return shown
    return data[: most - 2].decode(errors="ignore") + "..." + shown[-1]


def visible(text: str) -> str:
    """Text from data as a terminal or a page may show it: what would steer either, or turn text around, is escaped."""
    return STEERING.sub(lambda found: found[0].encode("unicode_escape").decode(), text)


def error_class(reason: str) -> type[LookalikeError]:
    """The most basic class whose default reason is `reason`, for errors that crossed a process; else InternalError."""
    pending: list[type[LookalikeError]] = [LookalikeError]
    while pending:
        candidate = pending.pop()
        if candidate.default_reason == reason:
            return candidate
        pending.extend(candidate.__subclasses__())
    return InternalError
