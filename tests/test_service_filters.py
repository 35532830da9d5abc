"""Filters of ListOperations: what they let through, and that whatever else comes is refused with a word."""

from __future__ import annotations

import contextlib
import itertools
from collections.abc import Iterator
from dataclasses import dataclass

import pytest
import sqlalchemy as sa
from hypothesis import given
from hypothesis import strategies as st
from operations import operation

from lookalike.errors import InvalidInput
from lookalike.service.filters import parse_filter
from lookalike.service.records import METADATA, OPERATIONS, Priority, State, to_row

CAMPAIGNS = ("x", "a b", 'say "hi"', "AND")
# Every state with every campaign, of two priorities, accepted one after the other at the seconds 0, 1, 2, ...
ROWS = list(itertools.product(State, CAMPAIGNS, (Priority.NORMAL, Priority.HIGH)))


@pytest.fixture(scope="module")
def connection() -> Iterator[sa.Connection]:
    engine = sa.create_engine("sqlite://")
    with engine.begin() as it:
        METADATA.create_all(it)
        for n, (state, campaign, priority) in enumerate(ROWS):
            row = to_row(operation(f"{n:032x}", campaign=campaign, priority=priority, created=float(n)))
            ended = n + 0.5 if state.done else None
            it.execute(OPERATIONS.insert().values({**row, "state": state.value, "ended": ended}))
        yield it
    engine.dispose()


def found(connection: sa.Connection, text: str) -> list[int]:
    where = parse_filter(text)
    query = sa.select(OPERATIONS.c.created).order_by(OPERATIONS.c.number)
    return [int(n) for n in connection.scalars(query if where is None else query.where(where))]


@dataclass(frozen=True)
class Term:
    """A filter's text, and what it means."""

    text: str
    rows: frozenset[int]


EVERYTHING = frozenset(range(len(ROWS)))


def quoted(text: str) -> str:
    return '"' + text.replace("\\", "\\\\").replace('"', '\\"') + '"'


def terms() -> list[Term]:
    known = []
    for state in State:
        rows = frozenset(n for n, row in enumerate(ROWS) if row[0] is state)
        known += [Term(f"state = {state}", rows), Term(f"metadata.state != STATE_{state}", EVERYTHING - rows)]
    for campaign in CAMPAIGNS:
        rows = frozenset(n for n, row in enumerate(ROWS) if row[1] == campaign)
        known += [Term(f"campaign={quoted(campaign)}", rows), Term(f"campaign!={quoted(campaign)}", EVERYTHING - rows)]
    done = frozenset(n for n, row in enumerate(ROWS) if row[0].done)
    high = frozenset(n for n, row in enumerate(ROWS) if row[2] is Priority.HIGH)
    fifth = '"1970-01-01T00:00:05Z"'
    return [
        *known,
        Term("done = true", done),
        Term("done = false", EVERYTHING - done),
        Term("done != true", EVERYTHING - done),
        Term("priority = HIGH", high),
        Term(f'audience = "audiences/{3:032x}"', frozenset({3})),
        Term(f"create_time < {fifth}", frozenset(range(5))),
        Term(f"create_time >= {fifth}", EVERYTHING - set(range(5))),
        Term(f"end_time > {fifth}", frozenset(n for n in done if n >= 5)),
        Term('create_time = "1970-01-01T01:00:05+01:00"', frozenset({5})),
    ]


def joined(inner: st.SearchStrategy[Term]) -> st.SearchStrategy[Term]:
    pairs = st.tuples(inner, inner)
    return (
        pairs.map(lambda p: Term(f"({p[0].text} AND {p[1].text})", p[0].rows & p[1].rows))
        | pairs.map(lambda p: Term(f"({p[0].text} {p[1].text})", p[0].rows & p[1].rows))
        | pairs.map(lambda p: Term(f"({p[0].text} OR {p[1].text})", p[0].rows | p[1].rows))
        | inner.map(lambda t: Term(f"(NOT {t.text})", EVERYTHING - t.rows))
        | inner.map(lambda t: Term(f"(-{t.text})", EVERYTHING - t.rows))
    )


@given(term=st.recursive(st.sampled_from(terms()), joined, max_leaves=8))
def test_a_filter_lets_through_what_it_says(connection: sa.Connection, term: Term) -> None:
    assert found(connection, term.text) == sorted(term.rows)


def test_the_empty_filter_lets_everything_through() -> None:
    assert parse_filter("") is None
    assert parse_filter(" \n ") is None


def test_or_binds_tighter_than_and(connection: sa.Connection) -> None:
    loose = found(connection, 'state = FAILED AND campaign = "x" OR campaign = "AND"')
    assert loose == found(connection, 'state = FAILED AND (campaign = "x" OR campaign = "AND")')


@pytest.mark.parametrize(
    "text",
    [
        "done",
        "done = maybe",
        "state = DONE",
        "state < RUNNING",
        "x = 1",
        "tenant = acme",
        "AND",
        "done = true AND",
        "done = true OR",
        "NOT",
        "(done = true",
        "done = true)",
        "()",
        'campaign = "open',
        "campaign = (x)",
        "create_time > yesterday",
        "NOT NOT done = true",
        "campaign = '\0'",
        "(" * 30 + "done = true" + ")" * 30,
        "done = true " * 1000,
    ],
)
def test_what_is_no_filter_is_refused(text: str) -> None:
    with pytest.raises(InvalidInput) as caught:
        parse_filter(text)
    assert caught.value.field == "filter"
    assert len(caught.value.message) < 600


@given(text=st.text(alphabet="()-=!<>\"'\\ \t\0azANDORNOT019:.é") | st.text())
def test_nothing_breaks_the_parser(connection: sa.Connection, text: str) -> None:
    with contextlib.suppress(InvalidInput):
        found(connection, text)
