"""A channel with the stubs of all services, and what a client does when a call fails."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from typing import Any, TypeVar

import grpc
from google.longrunning import operations_pb2_grpc

from lookalike.client.tracing import traced
from lookalike.errors import Unavailable
from lookalike.service.status import from_rpc_error
from lookalike.v1 import audience_pb2_grpc, scoring_pb2_grpc

_T = TypeVar("_T")

# A lost operation costs nothing to ask for again, so a client outlasts a restart of the server of about this long.
RETRY_SECONDS = 30.0
RETRY_DELAY = 0.5


class Connection:
    """To one server; threads may share it.

    Attributes:
        audiences, scoring, operations: the services' stubs.
        channel: gRPC's, with spans for calls.
    """

    def __init__(self, channel: grpc.Channel, timeout: float) -> None:
        """`timeout`: seconds of one call."""
        self._timeout = timeout
        self.channel = traced(channel)
        self.audiences = audience_pb2_grpc.AudienceServiceStub(self.channel)
        self.scoring = scoring_pb2_grpc.ScoringServiceStub(self.channel)
        self.operations: Any = operations_pb2_grpc.OperationsStub(self.channel)

    def close(self) -> None:
        self.channel.close()

    def call(self, method: Callable[..., _T], request: object, *, more_seconds: float = 0.0) -> _T:
        """Once.

        Raises:
            LookalikeError: what the status says.
        """
        try:
            return method(request, timeout=self._timeout + more_seconds)
        except grpc.RpcError as error:
            raise from_rpc_error(error) from error

    def retry(self, method: Callable[..., _T], request: object) -> _T:
        """A call that may be repeated, again and again while the server is away; it may just be restarting.

        Raises:
            As `call`.
        """
        return _patiently(lambda: self.call(method, request), time.monotonic() + self._timeout - RETRY_DELAY)

    def pages(self, method: Callable[..., _T], request: Any) -> Iterator[_T]:
        """A listing's pages, each by `retry`; `request` is changed.

        Raises:
            As `call`.
        """
        while True:
            page: Any = self.retry(method, request)
            yield page
            request.page_token = page.next_page_token
            if not page.next_page_token:
                return

    def outlast(self, call: Callable[[], _T]) -> _T:
        """The same for longer: RETRY_SECONDS.

        Raises:
            As `call`.
        """
        return _patiently(call, time.monotonic() + RETRY_SECONDS)

    def resumed(self, method: Callable[[Any], Iterator[Any]], request: Any) -> Iterator[Any]:
        """A stream's messages, taken up by their `resume_token` where it breaks; `request` is changed. Of a server that
        gives none, from before there were any, nothing is taken up: it would begin anew.

        Raises:
            As `call`.
        """
        give_up = time.monotonic() + RETRY_SECONDS
        resumable = True
        while True:
            try:
                for message in method(request):
                    yield message
                    request.resume_token = message.resume_token
                    resumable = bool(message.resume_token)
                    give_up = time.monotonic() + RETRY_SECONDS
                return
            except grpc.RpcError as raised:
                error = from_rpc_error(raised)
                if not isinstance(error, Unavailable) or not resumable or time.monotonic() >= give_up:
                    raise error from raised
                time.sleep(RETRY_DELAY)


def _patiently(call: Callable[[], _T], give_up: float) -> _T:
    while True:
        try:
            return call()
        except Unavailable:
            if time.monotonic() >= give_up:
                raise
            time.sleep(RETRY_DELAY)
