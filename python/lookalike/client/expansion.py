"""An expansion as its client sees it: how far it is, its audience, its end."""

from __future__ import annotations

import time
from collections.abc import Iterator
from typing import Any

from google.longrunning import operations_pb2

from lookalike.client.connection import Connection
from lookalike.errors import Unavailable
from lookalike.service.status import from_status
from lookalike.v1 import audience_pb2

WAIT_SECONDS = 20.0  # of one WaitOperation; a longer wait is several


class Expansion:
    """An operation on the server. It goes on whatever becomes of this object."""

    def __init__(self, connection: Connection, name: str) -> None:
        self._connection = connection
        self.name = name

    def metadata(self) -> audience_pb2.ExpandAudienceMetadata:
        """State, stage, users scored and total, times, as of now.

        Raises:
            NotFound: the server does not remember it.
        """
        return _metadata(self._get())

    def done(self) -> bool:
        """Whether it has ended, well or not.

        Raises:
            NotFound: the server does not remember it.
        """
        done: bool = self._get().done
        return done

    def progress(self, *, interval: float = 0.5) -> Iterator[audience_pb2.ExpandAudienceMetadata]:
        """How far it is, every `interval` seconds and once more when it has ended; `result` then tells how.

        Raises:
            NotFound: the server does not remember it. Unavailable: the server stays away.
        """
        operation = self._get()
        while not operation.done:
            yield _metadata(operation)
            operation = self._wait(interval)
        yield _metadata(operation)

    def result(self, timeout: float | None = None) -> audience_pb2.Audience:
        """Wait for the audience, as long as it takes or for `timeout` seconds.

        Raises:
            LookalikeError: the operation failed, with this error; Cancelled when it was cancelled.
            Unavailable: reason WAIT_TIMEOUT: it has not ended within `timeout`, and goes on.
        """
        deadline = None if timeout is None else time.monotonic() + timeout
        while True:
            left = WAIT_SECONDS if deadline is None else max(0.0, min(WAIT_SECONDS, deadline - time.monotonic()))
            operation = self._wait(left)
            if operation.done:
                return response_of(operation).audience
            if deadline is not None and time.monotonic() >= deadline:
                raise Unavailable(f"{self.name} has not ended within {timeout:g} s; it goes on", reason="WAIT_TIMEOUT")

    def cancel(self) -> None:
        """Ask it to stop. It ends soon after as Cancelled, unless it was faster.

        Raises:
            NotFound: the server does not remember it.
        """
        request = operations_pb2.CancelOperationRequest(name=self.name)
        self._connection.retry(self._connection.operations.CancelOperation, request)

    def delete(self) -> None:
        """Make the server forget it; its audience stays.

        Raises:
            NotFound: the server does not remember it. FailedPrecondition: it has not ended.
        """
        request = operations_pb2.DeleteOperationRequest(name=self.name)
        self._connection.call(self._connection.operations.DeleteOperation, request)

    def _get(self) -> Any:
        request = operations_pb2.GetOperationRequest(name=self.name)
        return self._connection.retry(self._connection.operations.GetOperation, request)

    def _wait(self, seconds: float) -> Any:
        request = operations_pb2.WaitOperationRequest(name=self.name)
        request.timeout.FromMilliseconds(round(seconds * 1000))
        return self._connection.outlast(
            lambda: self._connection.call(self._connection.operations.WaitOperation, request, more_seconds=seconds)
        )


def _metadata(operation: Any) -> audience_pb2.ExpandAudienceMetadata:
    metadata = audience_pb2.ExpandAudienceMetadata()
    operation.metadata.Unpack(metadata)
    return metadata


def response_of(operation: Any) -> audience_pb2.ExpandAudienceResponse:
    """What an operation that has ended has come to.

    Raises:
        LookalikeError: the error it has come to.
    """
    if operation.HasField("error"):
        raise from_status(operation.error)
    response = audience_pb2.ExpandAudienceResponse()
    operation.response.Unpack(response)
    return response
