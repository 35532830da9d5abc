"""What each method asks of its caller, and what the audit log says of it. A method that is not in the table is refused.

Knows the protos' names; knows neither gRPC nor who calls.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from lookalike.service.caller import Scope

Fields = Mapping[str, object]


@dataclass(frozen=True)
class Rule:
    """What a method asks for.

    Attributes:
        scope: its caller needs; None: any valid token will do.
        event: its lines in the audit log have; empty: it has none, for it neither changes anything nor tells of people.
        fields: of that line, from the request and, where there is one, the response. Names only, never people.
        members: how many a message of the response hands out.
    """

    scope: Scope | None
    event: str = ""
    fields: Callable[[Any, Any], Fields] = lambda request, response: {}
    members: Callable[[Any], int] = lambda message: 0


# Ids that the service draws, and those a caller may choose.
_NAME = re.compile(r"(operations|audiences)/([0-9a-f]{32}|[a-z]([a-z0-9-]{0,61}[a-z0-9])?)")


def _resource(name: str) -> str:
    """A resource's name; whatever else a caller puts there, be it a token or a user id, is not for a log."""
    return name if _NAME.fullmatch(name) else "(no name of ours)"


def _ordered(request: Any, response: Any) -> Fields:
    fields: dict[str, object] = {"campaign": request.campaign.name[:256]}
    if request.validate_only:
        fields["validate_only"] = True
    elif response is not None:
        fields["operation"] = response.name
    return fields


_AUDIENCES = "/lookalike.v1.AudienceService"
_OPERATIONS = "/google.longrunning.Operations"

RULES: Mapping[str, Rule] = {
    f"{_AUDIENCES}/ExpandAudience": Rule(Scope.EXPAND, "expand", _ordered),
    f"{_AUDIENCES}/GetAudience": Rule(
        Scope.READ, "read", lambda request, response: {"audience": _resource(request.name)}
    ),
    f"{_AUDIENCES}/ListAudienceMembers": Rule(
        Scope.READ,
        "read",
        lambda request, response: {"audience": _resource(request.audience)},
        lambda page: len(page.members),
    ),
    f"{_AUDIENCES}/StreamAudienceMembers": Rule(
        Scope.READ,
        "read",
        lambda request, response: {"audience": _resource(request.audience)},
        lambda piece: len(piece.scores) or piece.packed.count,
    ),
    f"{_OPERATIONS}/GetOperation": Rule(Scope.READ),
    f"{_OPERATIONS}/ListOperations": Rule(Scope.READ),
    f"{_OPERATIONS}/WaitOperation": Rule(Scope.READ),
    f"{_OPERATIONS}/CancelOperation": Rule(
        Scope.EXPAND, "cancel", lambda request, response: {"operation": _resource(request.name)}
    ),
    f"{_OPERATIONS}/DeleteOperation": Rule(
        Scope.DELETE, "delete", lambda request, response: {"operation": _resource(request.name)}
    ),
    "/grpc.reflection.v1alpha.ServerReflection/ServerReflectionInfo": Rule(None),
}

OPEN = frozenset(f"/grpc.health.v1.Health/{method}" for method in ("Check", "Watch"))
"""Answered without a token: whether it serves is all a load balancer can learn there."""
