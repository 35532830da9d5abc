"""google.longrunning.Operations over the store and the dispatcher.

Knows operations; what they expand is the other service's matter.
"""
# Names and signatures of the methods are gRPC's.
# ruff: noqa: ARG002, N802

from __future__ import annotations

import asyncio
import re
from collections.abc import Awaitable, Callable
from dataclasses import replace
from datetime import UTC, datetime
from typing import Any

from google.longrunning import operations_pb2, operations_pb2_grpc
from google.protobuf.empty_pb2 import Empty

from lookalike.errors import InvalidInput, LookalikeError, NotFound, quoted
from lookalike.service import caller, tokens
from lookalike.service.audiences import AudienceStore
from lookalike.service.convert import audience_message, operation_message
from lookalike.service.dispatcher import Dispatcher
from lookalike.service.filters import parse_filter
from lookalike.service.operations import OperationStore
from lookalike.service.records import Gone, Operation, State

DEFAULT_PAGE = 100
MAX_PAGE = 1000
MAX_WAIT_SECONDS = 3600.0

Present = Callable[[Operation], Awaitable[operations_pb2.Operation]]

_ID = re.compile(r"operations/([0-9a-f]{32})")


def presenter(dispatcher: Dispatcher, audiences: AudienceStore, *, privacy_floor: int) -> Present:
    """How operations are shown: with their progress of the moment, and their audience when they have one."""

    async def present(operation: Operation) -> operations_pb2.Operation:
        audience = None
        if operation.audience_gone is not None:
            operation = replace(operation, error=_gone(operation))
        elif operation.state is State.SUCCEEDED:
            try:
                opened = await audiences.of(operation)
                audience = audience_message(opened.record, opened.audience, privacy_floor=privacy_floor)
            except LookalikeError as error:  # somebody removed or damaged the folder
                operation = replace(operation, error=error)
        return operation_message(
            dispatcher.live(operation), audience=audience, remaining=dispatcher.remaining(operation.id)
        )

    return present


def _gone(operation: Operation) -> NotFound:
    assert operation.audience_gone is not None
    why = operation.audience_gone.value
    when = datetime.fromtimestamp(operation.audience_gone_at or 0.0, UTC).isoformat(timespec="seconds")
    how = "has expired" if operation.audience_gone is Gone.EXPIRED else "was deleted"
    return NotFound(f"audiences/{operation.audience_id} {how}, on {when}", field="name", reason=f"AUDIENCE_{why}")


class OperationsServicer(operations_pb2_grpc.OperationsServicer):  # type: ignore[misc]
    """See google/longrunning/operations.proto."""

    def __init__(self, store: OperationStore, dispatcher: Dispatcher, present: Present) -> None:
        self._store = store
        self._dispatcher = dispatcher
        self._present = present

    async def GetOperation(self, request: operations_pb2.GetOperationRequest, context: Any) -> operations_pb2.Operation:
        """As it is now."""
        return await self._present(await self._store.get(_tenant(), _id(request.name)))

    async def ListOperations(
        self, request: operations_pb2.ListOperationsRequest, context: Any
    ) -> operations_pb2.ListOperationsResponse:
        """A page, in order of acceptance."""
        if request.name not in ("", "operations"):
            raise InvalidInput(f"name must be 'operations' or empty, not {quoted(request.name)}", field="name")
        if request.page_size < 0:
            raise InvalidInput(f"page_size is {request.page_size}; it must be 0 or more", field="page_size")
        where = parse_filter(request.filter)
        listing = f"operations\0{_tenant()}\0{request.filter}"
        after = tokens.decode(request.page_token, listing=listing, field="page_token")
        size = min(request.page_size or DEFAULT_PAGE, MAX_PAGE)
        found = await self._store.list(_tenant(), after=after, limit=size + 1, where=where)
        more = tokens.encode(found[size - 1].number, listing=listing) if len(found) > size else ""
        shown = [await self._present(operation) for operation in found[:size]]
        return operations_pb2.ListOperationsResponse(operations=shown, next_page_token=more)

    async def WaitOperation(
        self, request: operations_pb2.WaitOperationRequest, context: Any
    ) -> operations_pb2.Operation:
        """When it is done, or at the time-out, or just before the call's deadline."""
        seconds = MAX_WAIT_SECONDS
        if request.HasField("timeout"):
            seconds = min(seconds, max(0.0, request.timeout.ToNanoseconds() / 1e9))
        left = context.time_remaining()
        if left is not None:
            seconds = min(seconds, max(0.0, 0.9 * left))
        return await self._present(await self._dispatcher.wait(_tenant(), _id(request.name), seconds))

    async def CancelOperation(self, request: operations_pb2.CancelOperationRequest, context: Any) -> Empty:
        """Ask it to end; it is done soon after, as CANCELLED unless it was faster."""
        await asyncio.shield(self._dispatcher.cancel(_tenant(), _id(request.name)))
        return Empty()

    async def DeleteOperation(self, request: operations_pb2.DeleteOperationRequest, context: Any) -> Empty:
        """Forget a done one. Its audience stays."""
        await self._store.delete(_tenant(), _id(request.name))
        return Empty()


def _tenant() -> str:
    return caller.current().tenant


def _id(name: str) -> str:
    match = _ID.fullmatch(name)
    if match is None:
        raise InvalidInput(f"{quoted(name)} must be of the form operations/<32 hex digits>", field="name")
    return match[1]
