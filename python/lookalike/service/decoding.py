"""Refuses what is no request: bytes that do not decode as the message a method takes.

gRPC itself would answer UNKNOWN with the name of a Python class, and log a traceback for each. Knows gRPC and the error
tree; stands before every service, also before those that are not ours (health, reflection).
"""

from __future__ import annotations

import inspect
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any

import grpc
from google.protobuf.message import DecodeError

from lookalike.errors import InvalidInput
from lookalike.service.status import abort

REASON = "MALFORMED_REQUEST"

# What the deserializer hands on for bytes that are no request: it cannot answer the caller itself.
_MALFORMED = object()
_SHAPES: dict[tuple[bool, bool], tuple[str, Any]] = {  # by whether requests, and responses, are streams
    (False, False): ("unary_unary", grpc.unary_unary_rpc_method_handler),
    (False, True): ("unary_stream", grpc.unary_stream_rpc_method_handler),
    (True, False): ("stream_unary", grpc.stream_unary_rpc_method_handler),
    (True, True): ("stream_stream", grpc.stream_stream_rpc_method_handler),
}


class DecodingInterceptor(grpc.aio.ServerInterceptor):
    """Those after it see requests only. A caller who is turned away is so whatever was sent, unread."""

    async def intercept_service(
        self,
        continuation: Callable[[Any], Awaitable[grpc.RpcMethodHandler[Any, Any] | None]],
        handler_call_details: Any,
    ) -> grpc.RpcMethodHandler[Any, Any] | None:
        """The handler, which is never given what is no request."""
        handler: Any = await continuation(handler_call_details)
        if handler is None or handler.request_deserializer is None:
            return handler  # type: ignore[no-any-return]
        name, make = _SHAPES[handler.request_streaming, handler.response_streaming]
        checked: grpc.RpcMethodHandler[Any, Any] = make(
            _checked(getattr(handler, name), handler_call_details.method, streaming=handler.request_streaming),
            request_deserializer=_deserializer(handler.request_deserializer),
            response_serializer=handler.response_serializer,
        )
        return checked


def _deserializer(deserialize: Callable[[bytes], Any]) -> Callable[[bytes], Any]:
    def attempt(data: bytes) -> Any:
        try:
            return deserialize(data)
        except DecodeError:
            return _MALFORMED

    return attempt


def _checked(behaviour: Any, method: str, *, streaming: bool) -> Any:
    async def one(request: Any, context: Any) -> Any:
        if request is _MALFORMED:
            error = InvalidInput(
                f"what was sent to {method} does not decode as its request: send the message that the service's protos "
                "say, with texts in UTF-8",
                reason=REASON,
            )
            await abort(context, error, method)
        return request

    async def each(requests: AsyncIterator[Any], context: Any) -> AsyncIterator[Any]:
        async for request in requests:
            yield await one(request, context)

    async def given(request: Any, context: Any) -> Any:
        return each(request, context) if streaming else await one(request, context)

    async def call(request: Any, context: Any) -> Any:
        return await behaviour(await given(request, context), context)

    async def call_streaming(request: Any, context: Any) -> AsyncIterator[Any]:
        async for message in behaviour(await given(request, context), context):
            yield message

    return call_streaming if inspect.isasyncgenfunction(behaviour) else call
