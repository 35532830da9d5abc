"""Test help: an OTLP receiver on a free port, by real gRPC, that keeps the spans it is sent."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Callable, Iterator
from concurrent import futures
from dataclasses import dataclass, field
from typing import Any

import grpc
from opentelemetry.proto.collector.trace.v1 import trace_service_pb2, trace_service_pb2_grpc

SECONDS = 60.0


@dataclass(frozen=True)
class Span:
    """Ids in hexadecimal digits."""

    service: str
    name: str
    trace: str
    id: str
    parent: str
    failed: str = ""
    attributes: dict[str, Any] = field(default_factory=dict)


class Receiver(trace_service_pb2_grpc.TraceServiceServicer):
    def __init__(self) -> None:
        self.endpoint = ""
        self.spans: list[Span] = []
        self._changed = threading.Condition()

    def Export(self, request: Any, context: Any) -> Any:  # noqa: N802
        with self._changed:
            for resource in request.resource_spans:
                about = {one.key: one.value.string_value for one in resource.resource.attributes}
                for scope in resource.scope_spans:
                    self.spans += [_span(about["service.name"], one) for one in scope.spans]
            self._changed.notify_all()
        return trace_service_pb2.ExportTraceServiceResponse()

    def wait_for(self, condition: Callable[[list[Span]], bool]) -> list[Span]:
        with self._changed:
            assert self._changed.wait_for(lambda: condition(self.spans), SECONDS), [one.name for one in self.spans]
            return list(self.spans)


@contextlib.contextmanager
def receiver() -> Iterator[Receiver]:
    it = Receiver()
    server = grpc.server(futures.ThreadPoolExecutor(2))
    trace_service_pb2_grpc.add_TraceServiceServicer_to_server(it, server)
    it.endpoint = f"http://127.0.0.1:{server.add_insecure_port('127.0.0.1:0')}"
    server.start()
    try:
        yield it
    finally:
        server.stop(None).wait()


def _span(service: str, span: Any) -> Span:
    values = {one.key: one.value.string_value or one.value.int_value for one in span.attributes}
    failed = span.status.message if span.status.code == 2 else ""
    return Span(service, span.name, span.trace_id.hex(), span.span_id.hex(), span.parent_span_id.hex(), failed, values)
