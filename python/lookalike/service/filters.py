"""Filters of ListOperations and ListAudiences: a subset of AIP-160, read into a condition on columns.

Knows the columns; runs no SQL. Values travel as parameters, never in the text of a query.

Terms are `field = value` and `field != value`, for times also `<`, `<=`, `>` and `>=`; joined by `AND` (or nothing
between them), `OR`, which binds tighter as AIP-160 has it, `NOT` or `-` before a term, and parentheses.
"""

from __future__ import annotations

import operator
import re
from collections.abc import Callable, Sequence
from datetime import UTC, datetime
from typing import Any, TypeAlias

import sqlalchemy as sa

from lookalike.errors import InvalidInput, quoted
from lookalike.service.records import AUDIENCES, OPERATIONS, Priority, State

MAX_LENGTH = 2000
MAX_DEPTH = 20

_TOKEN = re.compile(
    r'\s*(?:(?P<text>"(?:[^"\\]|\\.)*"|\'(?:[^\'\\]|\\.)*\')|(?P<sign><=|>=|!=|=|<|>|\(|\)|-(?=\s*[a-zA-Z(]))'
    r"|(?P<word>[^\s()<>=!\"']+))",
    re.DOTALL,
)
_ORDER: dict[str, Callable[[Any, Any], Any]] = {
    "=": operator.eq,
    "!=": operator.ne,
    "<": operator.lt,
    "<=": operator.le,
    ">": operator.gt,
    ">=": operator.ge,
}
_TIMES = {"create_time": OPERATIONS.c.created, "start_time": OPERATIONS.c.started, "end_time": OPERATIONS.c.ended}
_AUDIENCE_TIMES = {"create_time": AUDIENCES.c.published, "expire_time": AUDIENCES.c.expires}
_EQUAL = ("=", "!=")
_TERMS = (
    f"done = true|false, state = {'|'.join(State)}, priority = {'|'.join(Priority.__members__)}, "
    'campaign = "NAME", audience = "audiences/ID", create_time, start_time or end_time'
)
_AUDIENCE_TERMS = 'campaign = "NAME", audience = "audiences/ID", create_time or expire_time'

Term: TypeAlias = Callable[[str, str, str], sa.ColumnElement[bool] | None]


def parse_filter(text: str) -> sa.ColumnElement[bool] | None:
    """The condition a filter means; None for the empty one, which lets everything through.

    Raises:
        InvalidInput: something else than a filter; the message says where and what could stand there.
    """
    return _parse(text, _term, _TERMS)


def parse_audience_filter(text: str) -> sa.ColumnElement[bool] | None:
    """Likewise of ListAudiences, on the audiences' columns.

    Raises:
        InvalidInput: as `parse_filter`.
    """
    return _parse(text, _audience_term, _AUDIENCE_TERMS)


def _parse(text: str, term: Term, terms: str) -> sa.ColumnElement[bool] | None:
    if len(text) > MAX_LENGTH:
        raise InvalidInput(f"the filter has {len(text):,} characters; {MAX_LENGTH:,} are allowed", field="filter")
    if "\0" in text:
        raise InvalidInput("the filter holds a null character: leave it out", field="filter")
    tokens = _tokens(text, terms)
    return _Parser(tokens, term, terms).whole() if tokens else None


def _tokens(text: str, terms: str) -> list[tuple[str, str]]:
    tokens, at = [], 0
    while text[at:].strip():
        match = _TOKEN.match(text, at)
        if match is None:
            raise _wrong(text[at:].strip(), terms)
        kind = match.lastgroup or ""
        value = match[kind]
        tokens.append((kind, re.sub(r"\\(.)", r"\1", value[1:-1], flags=re.DOTALL) if kind == "text" else value))
        at = match.end()
    return tokens


class _Parser:
    """Recursive descent over the tokens."""

    def __init__(self, tokens: Sequence[tuple[str, str]], term: Term, terms: str) -> None:
        self._tokens = tokens
        self._term = term
        self._terms = terms
        self._at = 0
        self._depth = 0

    def whole(self) -> sa.ColumnElement[bool]:
        condition = self._all()
        if self._at < len(self._tokens):
            raise self._unexpected()
        return condition

    def _all(self) -> sa.ColumnElement[bool]:
        self._depth += 1
        if self._depth > MAX_DEPTH:
            raise InvalidInput(f"the filter nests deeper than {MAX_DEPTH} parentheses: use fewer", field="filter")
        parts = [self._any()]
        while self._at < len(self._tokens) and self._tokens[self._at] != ("sign", ")"):
            self._take("word", "AND")
            parts.append(self._any())
        self._depth -= 1
        return sa.and_(*parts)

    def _any(self) -> sa.ColumnElement[bool]:
        parts = [self._one()]
        while self._take("word", "OR"):
            parts.append(self._one())
        return sa.or_(*parts)

    def _one(self) -> sa.ColumnElement[bool]:
        if self._take("word", "NOT") or self._take("sign", "-"):
            return sa.not_(self._single())
        return self._single()

    def _single(self) -> sa.ColumnElement[bool]:
        if self._take("sign", "("):
            condition = self._all()
            if not self._take("sign", ")"):
                raise self._unexpected()
            return condition
        start = self._at
        tokens = [*self._tokens[start : start + 3], ("", ""), ("", ""), ("", "")]
        (kind, field), (_, sign), (value_kind, value) = tokens[:3]
        if kind != "word" or sign not in _ORDER or value_kind not in ("word", "text"):
            raise self._unexpected()
        self._at += 3
        term = self._term(field.removeprefix("metadata."), sign, value)
        if term is None:
            raise _wrong(f"{field} {sign} {value}", self._terms)
        return term

    def _take(self, kind: str, value: str) -> bool:
        if self._at < len(self._tokens) and self._tokens[self._at] == (kind, value):
            self._at += 1
            return True
        return False

    def _unexpected(self) -> InvalidInput:
        shown = " ".join(value for _, value in self._tokens[self._at : self._at + 3])
        return _wrong(shown or "end", self._terms)


def _term(field: str, sign: str, value: str) -> sa.ColumnElement[bool] | None:
    """None: there is no such term."""
    compare = _ORDER[sign]
    if field in _TIMES:
        moment = _moment(value)
        return None if moment is None else sa.func.coalesce(compare(_TIMES[field], moment), sa.false())
    if sign not in _EQUAL:
        return None
    if field == "campaign":
        found = compare(OPERATIONS.c.campaign, value)
    elif field == "audience":
        found = compare(OPERATIONS.c.audience_id, value.removeprefix("audiences/"))
    elif field == "state" and value.removeprefix("STATE_") in State.__members__:
        found = compare(OPERATIONS.c.state, value.removeprefix("STATE_"))
    elif field == "priority" and value.removeprefix("PRIORITY_") in Priority.__members__:
        found = compare(OPERATIONS.c.priority, int(Priority[value.removeprefix("PRIORITY_")]))
    elif field == "done" and value in ("true", "false"):
        done = OPERATIONS.c.state.in_([state.value for state in State if state.done])
        found = done if (value == "true") is (sign == "=") else sa.not_(done)
    else:
        return None
    result: sa.ColumnElement[bool] = found
    return result


def _audience_term(field: str, sign: str, value: str) -> sa.ColumnElement[bool] | None:
    compare = _ORDER[sign]
    if field in _AUDIENCE_TIMES:
        moment = _moment(value)
        return None if moment is None else sa.func.coalesce(compare(_AUDIENCE_TIMES[field], moment), sa.false())
    if sign not in _EQUAL:
        return None
    found = None
    if field == "campaign":
        found = compare(AUDIENCES.c.campaign, value)
    elif field == "audience":
        found = compare(AUDIENCES.c.audience_id, value.removeprefix("audiences/"))
    return found


def _moment(text: str) -> float | None:
    """Unix seconds of a time as RFC 3339 writes it; without an offset, UTC."""
    try:
        moment = datetime.fromisoformat(text)
    except ValueError:
        return None
    return (moment if moment.tzinfo else moment.replace(tzinfo=UTC)).timestamp()


def _wrong(where: str, terms: str) -> InvalidInput:
    return InvalidInput(
        f"cannot read the filter's {quoted(where)}; terms are {terms} "
        '>= "2024-02-03T04:05:06Z", joined by AND, OR, NOT and parentheses',
        field="filter",
    )
