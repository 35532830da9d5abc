"""Puts a client's calls into the trace its program is in, if that program has one.

Knows OpenTelemetry's API, where it is installed, and gRPC's interceptors; the program brings provider and exporter.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import grpc

from lookalike.channel import with_metadata

if TYPE_CHECKING:
    from opentelemetry.trace import Span


def traced(channel: grpc.Channel) -> grpc.Channel:
    """The channel, with a span around each call and its `traceparent` sent along; itself without OpenTelemetry."""
    try:
        import opentelemetry.trace  # noqa: F401
    except ImportError:
        return channel
    return grpc.intercept_channel(channel, _Interceptor())


class _Interceptor(grpc.UnaryUnaryClientInterceptor, grpc.UnaryStreamClientInterceptor):
    """Calls that end badly mark their span; retries are calls of their own."""

    def intercept_unary_unary(self, continuation: Callable[[Any, Any], Any], details: Any, request: Any) -> Any:
        """Answers when the call has ended."""
        span, details = _begin(details)
        call = continuation(details, request)
        call.add_done_callback(lambda ended: _end(span, ended.code()))
        return call

    def intercept_unary_stream(self, continuation: Callable[[Any, Any], Any], details: Any, request: Any) -> Any:
        """Answers at once; the span ends with the stream."""
        span, details = _begin(details)
        call = continuation(details, request)
        if not call.add_callback(lambda: _end(span, call.code())):  # it has ended already
            _end(span, call.code())
        return call


def _begin(details: Any) -> tuple[Span, Any]:
    from opentelemetry import propagate, trace

    name = details.method.removeprefix("/")
    attributes = {"rpc.system": "grpc", "rpc.method": name}
    tracer = trace.get_tracer("lookalike")
    span = tracer.start_span(name, kind=trace.SpanKind.CLIENT, attributes=attributes)
    carrier: dict[str, str] = {}
    propagate.inject(carrier, context=trace.set_span_in_context(span))
    metadata = [*(details.metadata or ()), *carrier.items()]
    copied = with_metadata(details, metadata)
    return span, copied


def _end(span: Span, code: grpc.StatusCode) -> None:
    from opentelemetry.trace import StatusCode

    if code is not grpc.StatusCode.OK:
        span.set_attribute("error.type", code.name)
        span.set_status(StatusCode.ERROR, code.name)
    span.end()
