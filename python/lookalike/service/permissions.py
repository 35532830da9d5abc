"""What each method asks of its caller, and what the audit log says of it. A method that is not in the table is refused.

Knows the protos' names; knows neither gRPC nor who calls.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
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
        summed: one line a minute tells of all calls that are alike; see `audit_sums`.
    """

    scope: Scope | None
    event: str = ""
    fields: Callable[[Any, Any], Fields] = lambda request, response: {}
    members: Callable[[Any], int] = lambda message: 0
    summed: bool = False


MAX_NAMES = 10  # of one request in a line

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


def _resources(names: Sequence[str]) -> list[str]:
    return [_resource(name) for name in names[:MAX_NAMES]]


def _updated(request: Any, response: Any) -> Fields:
    fields: dict[str, object] = {"audience": _resource(request.audience.name)}
    if response is not None:
        expires = response.expire_time.ToJsonString() if response.HasField("expire_time") else None
        fields |= {"size": response.size, "expire_time": expires}
    return fields


def _refreshed(request: Any, response: Any) -> Fields:
    fields: dict[str, object] = {"audience": _resource(request.name)}
    if request.validate_only:
        fields["validate_only"] = True
    elif response is not None:
        fields["operation"] = response.name
    return fields


def _opted_out(request: Any, response: Any) -> Fields:
    fields: dict[str, object] = {"users": len(request.user_ids.integers.values) + len(request.user_ids.strings.values)}
    if request.all_tenants:
        fields["all_tenants"] = True
    if response is not None:
        fields["added"] = response.added
    return fields


_AUDIENCES = "/lookalike.v1.AudienceService"
_OPERATIONS = "/google.longrunning.Operations"
_SCORING = "/lookalike.v1.ScoringService"

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
    f"{_AUDIENCES}/ListAudiences": Rule(Scope.READ),
    f"{_AUDIENCES}/UpdateAudience": Rule(Scope.EXPAND, "update", _updated),
    f"{_AUDIENCES}/DeleteAudience": Rule(
        Scope.DELETE, "delete", lambda request, response: {"audience": _resource(request.name)}
    ),
    f"{_AUDIENCES}/RefreshAudience": Rule(Scope.EXPAND, "refresh", _refreshed),
    f"{_AUDIENCES}/CompareAudiences": Rule(
        Scope.READ, "compare", lambda request, response: {"audiences": _resources(request.audiences)}
    ),
    f"{_AUDIENCES}/StreamAudienceChanges": Rule(
        Scope.READ,
        "read",
        lambda request, response: {"audiences": _resources([request.before, request.after])},
        lambda piece: len(piece.ranks),
    ),
    f"{_AUDIENCES}/OptOutUsers": Rule(Scope.DELETE, "opt_out", _opted_out),
    f"{_OPERATIONS}/GetOperation": Rule(Scope.READ),
    f"{_OPERATIONS}/ListOperations": Rule(Scope.READ),
    f"{_OPERATIONS}/WaitOperation": Rule(Scope.READ),
    f"{_OPERATIONS}/CancelOperation": Rule(
        Scope.EXPAND, "cancel", lambda request, response: {"operation": _resource(request.name)}
    ),
    f"{_OPERATIONS}/DeleteOperation": Rule(
        Scope.DELETE, "delete", lambda request, response: {"operation": _resource(request.name)}
    ),
    f"{_SCORING}/ScoreUsers": Rule(
        Scope.SCORE,
        "score",
        lambda request, response: {"audience": _resource(request.audience)},
        lambda response: len(response.scores),
        summed=True,
    ),
    "/grpc.reflection.v1alpha.ServerReflection/ServerReflectionInfo": Rule(None),
}

OPEN = frozenset(f"/grpc.health.v1.Health/{method}" for method in ("Check", "Watch"))
"""Answered without a token: whether it serves is all a load balancer can learn there."""
