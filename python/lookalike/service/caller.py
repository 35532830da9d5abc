"""Who makes a call. Knows logs alone: what learns it (tokens, certificates) sets it, what must know it asks."""

from __future__ import annotations

from contextvars import ContextVar
from dataclasses import dataclass
from enum import StrEnum

from lookalike import logs


class Scope(StrEnum):
    """What a caller may do."""

    EXPAND = "expand"  # submit, refresh, cancel
    READ = "read"  # operations, audiences and their members
    SCORE = "score"  # given users, by an audience's model
    DELETE = "delete"  # operations, audiences, users who opted out
    ADMIN = "admin"  # what concerns all tenants: users who opt out of everything


@dataclass(frozen=True)
class Caller:
    """A tenant's user or program.

    Attributes:
        tenant: sees what is its own and nothing else.
        token_id: names the token in audit logs, never the token itself; None with no token.
    """

    tenant: str
    scopes: frozenset[Scope]
    token_id: str | None = None


LOCAL = Caller("local", frozenset(Scope))
"""Everyone on a loopback address, where a server asks for no tokens."""

_CURRENT: ContextVar[Caller] = ContextVar("caller", default=LOCAL)


def current() -> Caller:
    """Of the call that is being handled."""
    return _CURRENT.get()


def set_current(caller: Caller) -> None:
    """For the rest of the call's task, and for what it logs."""
    _CURRENT.set(caller)
    logs.bind(tenant=caller.tenant)
