"""Watches every call of our services: counts it, times it, gives it a span, and says in the logs what it is about.

The outermost interceptor, so that it sees how a call really ended, refusals among them. It stands beside our metrics
and spans instead of OpenTelemetry's own for grpc.aio because the trace of a call must be kept with the operation it
orders, because that one only works with a global provider, and because a call is wrapped once for all of it.
"""

from __future__ import annotations

import asyncio
import inspect
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any

import grpc

from lookalike import logs
from lookalike.service.metrics import METHODS, Metrics
from lookalike.service.status import grpc_code
from lookalike.tracing import TRACEPARENT, Tracing, trace_id

_TRACEPARENT: ContextVar[str] = ContextVar("traceparent", default="")


def traceparent() -> str:
    """Of the span of the call that is being handled; empty where there is none."""
    return _TRACEPARENT.get()


class ObservingInterceptor(grpc.aio.ServerInterceptor):
    """Calls of other services, health's and reflection's, pass unseen."""

    def __init__(self, metrics: Metrics, tracing: Tracing) -> None:
        self._metrics = metrics
        self._tracing = tracing

    async def intercept_service(
        self,
        continuation: Callable[[Any], Awaitable[grpc.RpcMethodHandler[Any, Any] | None]],
        handler_call_details: Any,
    ) -> grpc.RpcMethodHandler[Any, Any] | None:
        """The handler of one of our methods, watched."""
        handler: Any = await continuation(handler_call_details)
        method = handler_call_details.method
        if handler is None or method not in METHODS:
            return handler  # type: ignore[no-any-return]
        parent = _parent(handler_call_details) if self._tracing.on else ""
        stream = handler.response_streaming
        if handler.request_streaming:  # as `decoding` makes all of them, and refusals, which read nothing
            behaviour = handler.stream_stream if stream else handler.stream_unary
            make: Any = grpc.stream_stream_rpc_method_handler if stream else grpc.stream_unary_rpc_method_handler
        else:
            behaviour = handler.unary_stream if stream else handler.unary_unary
            make = grpc.unary_stream_rpc_method_handler if stream else grpc.unary_unary_rpc_method_handler
        watch = self._watched_stream if inspect.isasyncgenfunction(behaviour) else self._watched
        watched: grpc.RpcMethodHandler[Any, Any] = make(
            watch(behaviour, method, parent),
            request_deserializer=handler.request_deserializer,
            response_serializer=handler.response_serializer,
        )
        return watched

    def _watched(self, behaviour: Any, method: str, parent: str) -> Any:
        async def call(request: Any, context: Any) -> Any:
            with self._call(method, parent, context):
                return await behaviour(request, context)

        return call

    def _watched_stream(self, behaviour: Any, method: str, parent: str) -> Any:
        async def call(request: Any, context: Any) -> AsyncIterator[Any]:
            with self._call(method, parent, context):
                async for message in behaviour(request, context):
                    yield message

        return call

    @contextmanager
    def _call(self, method: str, parent: str, context: Any) -> Iterator[None]:
        started = time.perf_counter()
        code = "OK"
        attributes = {"rpc.system": "grpc", "rpc.method": method.removeprefix("/")}
        try:
            with self._tracing.span(
                method.removeprefix("/"),
                parent=parent,
                kind="server",
                attributes=attributes,
                reason=lambda error: _ended(error, context),
            ) as span:
                _TRACEPARENT.set(span)
                logs.bind(trace_id=trace_id(span))
                yield
                code = _code(context, "OK")
        except BaseException as error:
            code = _ended(error, context)
            raise
        finally:
            self._metrics.called(method, code, time.perf_counter() - started)


def _ended(error: BaseException, context: Any) -> str:
    hung_up = isinstance(error, (asyncio.CancelledError, GeneratorExit))
    return "CANCELLED" if hung_up else _code(context, "UNKNOWN")


def _code(context: Any, otherwise: str) -> str:
    return grpc_code(context.code()).name if context.code() else otherwise


def _parent(details: Any) -> str:
    values = [value for key, value in details.invocation_metadata or () if key == TRACEPARENT]
    return values[0] if len(values) == 1 and isinstance(values[0], str) else ""
