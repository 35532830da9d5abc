"""Page tokens: back to the position for the listing they came from, and refused for any other."""

from __future__ import annotations

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from lookalike import errors
from lookalike.service import tokens


@given(position=st.integers(0, 2**63 - 1), listing=st.text())
def test_there_and_back(position: int, listing: str) -> None:
    assert tokens.decode(tokens.encode(position, listing=listing), listing=listing, field="t") == position


@given(position=st.integers(0, 2**63 - 1), listing=st.text(), other=st.text())
def test_another_listings_token_is_refused(position: int, listing: str, other: str) -> None:
    assume(listing != other)
    with pytest.raises(errors.InvalidInput) as caught:
        tokens.decode(tokens.encode(position, listing=listing), listing=other, field="t")
    assert (caught.value.field, caught.value.reason) == ("t", "INVALID_TOKEN")


def test_a_position_that_no_database_can_hold_is_refused() -> None:
    with pytest.raises(errors.InvalidInput):
        tokens.decode(tokens.encode(2**63, listing="x"), listing="x", field="t")


@given(st.text(min_size=1))
def test_anything_else_is_refused(token: str) -> None:
    with pytest.raises(errors.InvalidInput):
        tokens.decode(token, listing="x", field="t")


def test_no_token_is_the_beginning() -> None:
    assert tokens.decode("", listing="x", field="t") == 0
