"""Lets callers in, by their tokens, to what their scopes allow, and has the audit log say what they did.

The one interceptor that knows who calls; it stands before the one that turns errors into statuses. Everything behind it
asks `caller.current()`.
"""

from __future__ import annotations

import asyncio
import re
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine, Mapping
from contextlib import suppress
from typing import Any
from urllib.parse import unquote

import grpc

from lookalike.errors import LookalikeError, PermissionDenied, Unauthenticated, Unavailable
from lookalike.service.audit import AuditLog
from lookalike.service.audit_sums import AuditSums
from lookalike.service.caller import LOCAL, Caller, set_current
from lookalike.service.permissions import OPEN, RULES, Rule
from lookalike.service.status import abort
from lookalike.service.token_file import TokenFile

# Of the UNAUTHENTICATED that a wrong, a missing, an expired and a revoked token get alike.
REASON = "TOKEN_INVALID"

_BEARER = re.compile(r"[Bb]earer +([\x21-\x7e]+)")


class _Refused(Exception):
    """Why a call is turned away: what its caller is told, and what only the audit log is."""

    def __init__(self, error: LookalikeError, why: str, caller: Caller | None = None) -> None:
        super().__init__(why)
        self.error = error
        self.why = why
        self.caller = caller


class AuthInterceptor(grpc.aio.ServerInterceptor):
    """`close` it when the server has stopped: calls whose clients hung up may still be at work."""

    def __init__(self, tokens: TokenFile | None, audit: AuditLog, rules: Mapping[str, Rule] = RULES) -> None:
        """`tokens`: None: everybody is `caller.LOCAL`."""
        self._tokens = tokens
        self._audit = audit
        self._rules = rules
        self._sums = AuditSums(audit)
        self._tasks: set[asyncio.Task[Any]] = set()

    async def close(self) -> None:
        """Wait until what was begun is done and noted."""
        while self._tasks:
            await asyncio.gather(*self._tasks, return_exceptions=True)
        await self._sums.close()

    async def intercept_service(
        self,
        continuation: Callable[[Any], Awaitable[grpc.RpcMethodHandler[Any, Any] | None]],
        handler_call_details: Any,
    ) -> grpc.RpcMethodHandler[Any, Any] | None:
        """The handler of a call that is let in; or one that refuses it, before it has read the request."""
        method = handler_call_details.method
        if method in OPEN:
            return await continuation(handler_call_details)
        try:
            caller = self._caller(handler_call_details)
            handler: Any = await continuation(handler_call_details)
            if handler is None:
                return None  # UNIMPLEMENTED
            rule = self._permit(caller, method)
            if handler.request_streaming and rule != Rule(None):
                # What is passed on as it is, as reflection, must not care who calls.
                raise _Refused(_closed(method), "no rule", caller)
        except _Refused as refused:
            return self._refusal(method, refused)
        if handler.request_streaming:
            return handler  # type: ignore[no-any-return]
        if handler.response_streaming:
            return grpc.unary_stream_rpc_method_handler(
                self._streaming(handler.unary_stream, method, rule, caller),
                request_deserializer=handler.request_deserializer,
                response_serializer=handler.response_serializer,
            )
        return grpc.unary_unary_rpc_method_handler(
            self._unary(handler.unary_unary, method, rule, caller),
            request_deserializer=handler.request_deserializer,
            response_serializer=handler.response_serializer,
        )

    def _caller(self, details: Any) -> Caller:
        if self._tokens is None:
            return LOCAL
        values = [value for key, value in details.invocation_metadata or () if key == "authorization"]
        match = _BEARER.fullmatch(values[0]) if len(values) == 1 and isinstance(values[0], str) else None
        if match is None:
            raise _Refused(_unauthenticated(), "no bearer token")
        try:
            token = self._tokens.find(match[1])
        except LookalikeError as error:
            raise _Refused(_unreadable(), error.reason) from error
        if token is None:
            raise _Refused(_unauthenticated(), "unknown token")
        caller = Caller(token.tenant, token.scopes, token.id)
        state = self._tokens.state(token)
        if state != "active":
            raise _Refused(_unauthenticated(), f"{state} token", caller)
        return caller

    def _permit(self, caller: Caller, method: str) -> Rule:
        rule = self._rules.get(method)
        if rule is None:
            raise _Refused(_closed(method), "no rule", caller)
        if rule.scope is not None and rule.scope not in caller.scopes:
            error = PermissionDenied(f"this needs a token with the scope '{rule.scope}'", reason="SCOPE_MISSING")
            raise _Refused(error, f"no scope {rule.scope}", caller)
        return rule

    def _recheck(self, caller: Caller) -> None:
        """A token that was revoked meanwhile gets no answer. One that expired does: its calls began in time."""
        if self._tokens is None or caller.token_id is None:
            return
        try:
            revoked = self._tokens.revoked(caller.token_id)
        except LookalikeError as error:
            raise _unreadable() from error
        if revoked:
            raise _unauthenticated()

    def _refusal(self, method: str, refused: _Refused) -> grpc.RpcMethodHandler[Any, Any]:
        # What a stranger writes there is not for a log.
        named = method if method in self._rules else "(no method of ours)"

        async def refuse(_: Any, context: Any) -> None:
            await self._audit.note_refusal(why=refused.why, **_who(refused.caller, named, context))
            await abort(context, refused.error, method)

        # On the wire a call of one message is a stream of one: refused so, its request is never read.
        return grpc.stream_stream_rpc_method_handler(refuse)

    def _unary(self, behaviour: Any, method: str, rule: Rule, caller: Caller) -> Any:
        async def call(request: Any, context: Any) -> Any:
            set_current(caller)
            try:
                if rule.summed:
                    response = await self._counted(behaviour, request, context, method, rule, caller)
                elif rule.event:
                    # A client that hangs up does not keep its deed out of the log.
                    response = await asyncio.shield(
                        self._spawn(self._noted(behaviour, request, context, method, rule, caller))
                    )
                else:
                    response = await behaviour(request, context)
                self._recheck(caller)
            except LookalikeError as error:
                await abort(context, error, method)
            return response

        return call

    async def _noted(self, behaviour: Any, request: Any, context: Any, method: str, rule: Rule, caller: Caller) -> Any:
        who = _who(caller, method, context)
        try:
            response = await behaviour(request, context)
        except BaseException:
            with suppress(Unavailable):  # logged; and nothing came of the call
                await self._audit.note(rule.event, **who, **rule.fields(request, None), code=_code(context))
            raise
        members = rule.members(response) or None
        await self._audit.note(rule.event, **who, **rule.fields(request, response), code="OK", members=members)
        return response

    async def _counted(
        self, behaviour: Any, request: Any, context: Any, method: str, rule: Rule, caller: Caller
    ) -> Any:
        who = _who(caller, method, context)
        try:
            response = await behaviour(request, context)
        except Exception:
            with suppress(Unavailable):
                fields = rule.fields(request, None)
                await self._sums.note(rule.event, members=0, **who, **fields, code=_code(context))
            raise
        members = rule.members(response)
        await self._sums.note(rule.event, members=members, **who, **rule.fields(request, response), code="OK")
        return response

    def _streaming(self, behaviour: Any, method: str, rule: Rule, caller: Caller) -> Any:
        async def call(request: Any, context: Any) -> AsyncIterator[Any]:
            set_current(caller)
            members = 0

            def ended(_: Any) -> None:
                code = "CANCELLED" if context.cancelled() else _code(context, "OK")
                self._spawn(self._note_end(rule.event, **line, phase="end", code=code, members=members))

            try:
                if rule.event:
                    line = {**_who(caller, method, context), **rule.fields(request, None)}
                    await self._audit.note(rule.event, **line, phase="begin")
                    context.add_done_callback(ended)
                async for message in behaviour(request, context):
                    self._recheck(caller)
                    members += rule.members(message)
                    yield message
            except LookalikeError as error:
                await abort(context, error, method)

        return call

    async def _note_end(self, event: str, **fields: object) -> None:
        with suppress(Unavailable):  # logged; nobody is there to be told
            await self._audit.note(event, **fields)

    def _spawn(self, work: Coroutine[Any, Any, Any]) -> asyncio.Task[Any]:
        task = asyncio.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return task


def _unauthenticated() -> Unauthenticated:
    return Unauthenticated("no valid token came with the call: send 'authorization: Bearer TOKEN'", reason=REASON)


def _closed(method: str) -> PermissionDenied:
    return PermissionDenied(f"{method} is open to nobody", reason="METHOD_NOT_PERMITTED")


def _unreadable() -> Unavailable:
    return Unavailable("the server cannot check tokens; its log says why", reason="TOKENS_UNREADABLE")


def _who(caller: Caller | None, method: str, context: Any) -> dict[str, object]:
    """Fields of the audit log: who called from where."""
    names = context.auth_context().get("x509_common_name", ())
    return {
        "tenant": caller.tenant if caller is not None else None,
        "token": caller.token_id if caller is not None else None,
        "peer": unquote(context.peer()),
        "certificate": names[0].decode(errors="replace") if names else None,
        "method": method.rpartition("/")[2],
    }


def _code(context: Any, otherwise: str = "UNKNOWN") -> str:
    """The name of the status a call ended with."""
    value = context.code()
    number = value.value[0] if isinstance(value, grpc.StatusCode) else value
    return next((code.name for code in grpc.StatusCode if code.value[0] == number and number), otherwise)
