"""Tokens: what is kept of them, who finds which, until when; and files that cannot be trusted."""

from __future__ import annotations

import json
import logging
import threading
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lookalike import errors
from lookalike.service.caller import Scope
from lookalike.service.token_file import KEEP_ENDED, TokenFile

DAY = timedelta(days=1)
RECORD = {"id": "x", "tenant": "t", "scopes": ["read"], "sha256": "0", "created": "2026-01-01T00:00Z"}
NOW = datetime(2026, 5, 4, 3, 2, 1, tzinfo=UTC)


class Clock:
    def __init__(self) -> None:
        self.time = NOW

    def __call__(self) -> datetime:
        return self.time


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def tokens(tmp_path: Path, clock: Clock) -> TokenFile:
    return TokenFile(tmp_path / "data" / "tokens.json", now=clock)


def test_a_token_is_found_by_others_that_read_the_file(tokens: TokenFile) -> None:
    text, token = tokens.create("shop", [Scope.READ, Scope.EXPAND], lifetime=DAY, description="nightly job")
    found = TokenFile(tokens.path).find(text)
    assert found == token
    assert (found.tenant, found.scopes) == ("shop", {Scope.READ, Scope.EXPAND})
    assert tokens.state(found) == "active"


def test_neither_the_token_nor_its_secret_is_kept(tokens: TokenFile) -> None:
    text, token = tokens.create("shop", Scope, lifetime=DAY)
    kept = tokens.path.read_text()
    assert token.id in kept
    assert text not in kept
    assert text.split("_", 2)[2] not in kept
    assert tokens.path.stat().st_mode & 0o777 == 0o600
    assert sorted(path.name for path in tokens.path.parent.iterdir()) == ["tokens.json", "tokens.json.lock"]


@pytest.fixture(scope="module")
def one(tmp_path_factory: pytest.TempPathFactory) -> tuple[TokenFile, str, str]:
    """A file with one token, the token, and its id."""
    tokens = TokenFile(tmp_path_factory.mktemp("one") / "tokens.json")
    text, token = tokens.create("shop", Scope, lifetime=DAY)
    return tokens, text, token.id


@given(st.data())
def test_a_token_changed_anywhere_is_nobodys(one: tuple[TokenFile, str, str], data: st.DataObject) -> None:
    tokens, text, _ = one
    at = data.draw(st.integers(0, len(text) - 1))
    other = data.draw(st.text(max_size=2).filter(lambda piece: piece != text[at]))
    assert tokens.find(text[:at] + other + text[at + 1 :]) is None
    assert tokens.find(text) is not None


@given(st.text())
def test_whatever_else_is_presented_is_nobodys(one: tuple[TokenFile, str, str], text: str) -> None:
    tokens, _, token_id = one
    assert tokens.find(text) is None
    assert tokens.find(f"lk_{token_id}_{text}") is None


def test_a_token_expires(tokens: TokenFile, clock: Clock) -> None:
    token = tokens.create("shop", [Scope.READ], lifetime=DAY)[1]
    clock.time = NOW + DAY - timedelta(microseconds=1)
    assert tokens.state(token) == "active"
    clock.time = NOW + DAY
    assert tokens.state(token) == "expired"
    assert not tokens.revoked(token.id)
    for_ever = tokens.create("shop", [Scope.READ], lifetime=None)[1]
    clock.time = datetime.max.replace(tzinfo=UTC)
    assert tokens.state(for_ever) == "active"


def test_a_revocation_counts_for_who_had_read_the_file(tokens: TokenFile) -> None:
    text, token = tokens.create("shop", [Scope.READ], lifetime=DAY)
    front = TokenFile(tokens.path)
    assert not front.revoked(token.id)
    revoked = tokens.revoke(token.id)
    assert front.revoked(token.id)
    assert front.find(text) == revoked
    assert front.state(revoked) == "revoked"
    assert tokens.revoke(token.id) == revoked  # and not again, at another time
    with pytest.raises(errors.NotFound, match="lookalike token list"):
        tokens.revoke("0" * 12)


def test_a_rotated_token_lasts_for_the_grace_and_its_heir_as_long_as_it_did(tokens: TokenFile, clock: Clock) -> None:
    old_text, old = tokens.create("shop", [Scope.READ], lifetime=30 * DAY, description="export")
    clock.time = NOW + 10 * DAY
    new_text, new = tokens.rotate(old.id, grace=DAY)
    assert new_text != old_text
    assert (new.tenant, new.scopes, new.description) == (old.tenant, old.scopes, old.description)
    assert new.expires == clock.time + 30 * DAY
    found = tokens.find(old_text)
    assert found is not None
    assert found.expires == clock.time + DAY
    clock.time += DAY
    assert [tokens.state(token) for token in tokens.all()] == ["expired", "active"]
    with pytest.raises(errors.FailedPrecondition, match="expired: create a new one"):
        tokens.rotate(old.id, grace=DAY)


def test_grace_does_not_lengthen_a_life(tokens: TokenFile) -> None:
    old = tokens.create("shop", [Scope.READ], lifetime=DAY)[1]
    tokens.rotate(old.id, grace=90 * DAY)
    assert tokens.all()[0].expires == NOW + DAY


def test_what_ended_long_ago_is_forgotten(tokens: TokenFile, clock: Clock) -> None:
    ended = tokens.create("shop", [Scope.READ], lifetime=DAY)[1]
    kept = tokens.create("shop", [Scope.READ], lifetime=None)[1]
    clock.time = NOW + DAY + KEEP_ENDED
    latest = tokens.create("shop", [Scope.READ], lifetime=DAY)[1]
    assert ended.id not in {token.id for token in tokens.all()}
    assert tokens.all() == [kept, latest]


def test_tokens_made_at_once_are_all_there(tokens: TokenFile) -> None:
    made = [threading.Thread(target=lambda: TokenFile(tokens.path).create("a", Scope, lifetime=DAY)) for _ in range(20)]
    for thread in made:
        thread.start()
    for thread in made:
        thread.join()
    assert len(tokens.all()) == 20


@pytest.mark.parametrize("tenant", ["", "../other", "a/b", ".hidden", "a b", "x" * 64, "a\n"])
def test_a_tenant_is_a_name_that_may_be_a_folders(tenant: str, tokens: TokenFile) -> None:
    with pytest.raises(errors.InvalidInput) as caught:
        tokens.create(tenant, [Scope.READ], lifetime=DAY)
    assert caught.value.field == "tenant"
    assert not tokens.path.exists()


def test_a_token_for_nothing_or_no_time(tokens: TokenFile) -> None:
    with pytest.raises(errors.InvalidInput) as caught:
        tokens.create("shop", [], lifetime=DAY)
    assert caught.value.field == "scope"
    with pytest.raises(errors.InvalidInput) as caught:
        tokens.create("shop", [Scope.READ], lifetime=timedelta(0))
    assert caught.value.field == "expires"


def test_where_there_is_no_file_there_are_no_tokens(tokens: TokenFile) -> None:
    text, token = tokens.create("shop", Scope, lifetime=DAY)
    assert tokens.find(text)
    tokens.path.unlink()
    assert tokens.find(text) is None
    assert tokens.revoked(token.id)
    assert tokens.all() == []


@pytest.mark.parametrize(
    "content",
    [
        "",
        "{",
        "[]",
        "null",
        '{"format": 2, "tokens": []}',
        '{"format": 1, "tokens": [{"id": "x"}]}',
        json.dumps({"format": 1, "tokens": [{**RECORD, "scopes": ["all"]}]}),
        json.dumps({"format": 1, "tokens": [{**RECORD, "created": "2026-01-01T00:00"}]}),
    ],
    ids=["empty", "cut", "list", "null", "format", "fields", "scope", "no time zone"],
)
def test_a_damaged_file_lets_nobody_in(content: str, tokens: TokenFile, caplog: pytest.LogCaptureFixture) -> None:
    text, token = tokens.create("shop", Scope, lifetime=DAY)
    assert tokens.find(text)
    whole = tokens.path.read_text()
    tokens.path.write_text(content)
    with caplog.at_level(logging.ERROR):
        for _ in range(3):
            with pytest.raises(errors.DataCorrupted):
                tokens.find(text)
            with pytest.raises(errors.DataCorrupted):
                tokens.revoked(token.id)
    assert len(caplog.records) == 1  # not one for every call
    with pytest.raises(errors.DataCorrupted):  # and what is there is not lost to the next change
        tokens.create("shop", Scope, lifetime=DAY)
    assert tokens.path.read_text() == content
    tokens.path.write_text(whole)
    assert tokens.find(text)


@pytest.mark.parametrize("mode", [0o620, 0o602])
def test_a_file_that_others_may_write_lets_nobody_in(mode: int, tokens: TokenFile) -> None:
    text = tokens.create("shop", Scope, lifetime=DAY)[0]
    tokens.path.chmod(mode)
    with pytest.raises(errors.FailedPrecondition, match="chmod 600") as caught:
        tokens.find(text)
    assert caught.value.reason == "TOKENS_WRITABLE"
    tokens.path.chmod(0o600)
    assert tokens.find(text)
