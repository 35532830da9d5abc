"""Refuses what is no request: bytes that do not decode as the message a method takes.

gRPC itself would answer UNKNOWN with the name of a Python class, and log a traceback for each. Knows gRPC and the error
tree; stands before every service, also before those that are not ours (health, reflection).
"""

from __future__ import annotations

import asyncio
import inspect
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any, NoReturn

import grpc
from google.protobuf.message import DecodeError

from lookalike.errors import InvalidInput
from lookalike.service.status import abort

REASON = "MALFORMED_REQUEST"

# What the deserializer hands on for bytes that are no request: it cannot answer the caller itself.
_MALFORMED = object()


class DecodingInterceptor(grpc.aio.ServerInterceptor):
    """Those after it see requests only. A caller who is turned away is so whatever was sent, unread.

    On the wire a call of one request is a stream of one, and is read here as such: where none comes, be it that its
    frame lied about its length, gRPC would never answer.
    """

    async def intercept_service(
        self,
        continuation: Callable[[Any], Awaitable[grpc.RpcMethodHandler[Any, Any] | None]],
        handler_call_details: Any,
    ) -> grpc.RpcMethodHandler[Any, Any] | None:
        """The handler, which is never given what is no request."""
        handler: Any = await continuation(handler_call_details)
        if handler is None or handler.request_deserializer is None:
            return handler  # type: ignore[no-any-return]
        given = _Given(handler_call_details.method, streaming=handler.request_streaming)
        shape = (
            "stream" if handler.request_streaming else "unary",
            "stream" if handler.response_streaming else "unary",
        )
        behaviour = _checked(getattr(handler, "_".join(shape)), given)
        make = (
            grpc.stream_stream_rpc_method_handler
            if handler.response_streaming
            else grpc.stream_unary_rpc_method_handler
        )
        checked: grpc.RpcMethodHandler[Any, Any] = make(
            behaviour,
            request_deserializer=_deserializer(handler.request_deserializer),
            response_serializer=handler.response_serializer,
        )
        return checked


class _Given:
    """What a method is given: a request, or a stream of them."""

    def __init__(self, method: str, *, streaming: bool) -> None:
        self._method = method
        self._streaming = streaming

    async def __call__(self, requests: AsyncIterator[Any], context: Any) -> Any:
        if self._streaming:
            return self._each(requests, context)
        request = await context.read()
        if request is grpc.aio.EOF:
            await self._refuse(context, "no whole request came")
        return await self._decoded(request, context)

    async def _each(self, requests: AsyncIterator[Any], context: Any) -> AsyncIterator[Any]:
        async for request in requests:
            yield await self._decoded(request, context)

    async def _decoded(self, request: Any, context: Any) -> Any:
        if request is _MALFORMED:
            await self._refuse(context, "what came does not decode as a request")
        return request

    async def _refuse(self, context: Any, why: str) -> NoReturn:
        text = f"{why}: send {self._method} the message that the service's protos say, with texts in UTF-8"
        try:
            await abort(context, InvalidInput(text, reason=REASON), self._method)
        except grpc.aio.InternalError:  # gRPC has ended the call already, for instance for its size
            raise asyncio.CancelledError from None


def _deserializer(deserialize: Callable[[bytes], Any]) -> Callable[[bytes], Any]:
    def attempt(data: bytes) -> Any:
        try:
            return deserialize(data)
        except DecodeError:
            return _MALFORMED

    return attempt


def _checked(behaviour: Any, given: _Given) -> Any:
    async def call(requests: AsyncIterator[Any], context: Any) -> Any:
        return await behaviour(await given(requests, context), context)

    async def call_streaming(requests: AsyncIterator[Any], context: Any) -> AsyncIterator[Any]:
        async for message in behaviour(await given(requests, context), context):
            yield message

    return call_streaming if inspect.isasyncgenfunction(behaviour) else call
