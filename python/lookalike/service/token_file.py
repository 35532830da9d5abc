"""Bearer tokens: who holds which, for how long, and what each allows. One JSON file, hashes only.

A file, and not the operations database, because every front process that shares a data folder sees it, it answers when
the database does not, it can be copied to several machines by whatever else configures them, and a backup of the
database holds nothing with which to get in. It is read again whenever it changes, so that a revocation counts at once.

Knows callers and files; knows no gRPC.
"""

from __future__ import annotations

import fcntl
import hashlib
import hmac
import json
import logging
import os
import re
import secrets
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

from pydantic import AwareDatetime, TypeAdapter

from lookalike.config import ServiceConfig, parse
from lookalike.errors import DataCorrupted, FailedPrecondition, InvalidInput, LookalikeError, NotFound
from lookalike.files import write_whole
from lookalike.service.caller import Scope

FORMAT = 1
# By which scanners for leaked secrets can tell one of ours.
PREFIX = "lk"
# As many as a key of AES-256 has: nothing to guess, so that a plain SHA-256 is enough to keep them.
SECRET_BYTES = 32
# An ended token is kept so long, that lines of the audit log can be traced to it.
KEEP_ENDED = timedelta(days=400)

_log = logging.getLogger(__name__)

_TENANT = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,62}")
_NOBODY = "0" * 64  # no token's hash


@dataclass(frozen=True, kw_only=True)
class Token:
    """What is kept of a token; the token itself is nowhere.

    Attributes:
        id: names it in lists and logs; also a part of the token.
        sha256: of the whole token.
        expires: None: never.
        revoked: when it was; None: it is not.
    """

    id: str
    tenant: str
    scopes: frozenset[Scope]
    sha256: str
    created: AwareDatetime
    expires: AwareDatetime | None = None
    revoked: AwareDatetime | None = None
    description: str = ""

    def state(self, now: datetime) -> str:
        """active, expired or revoked."""
        if self.revoked is not None:
            return "revoked"
        return "expired" if self.expires is not None and self.expires <= now else "active"


_TOKEN = TypeAdapter(Token)


class TokenFile:
    """The tokens in a file; where there is none there are no tokens. May be used from several threads and processes."""

    def __init__(self, path: Path, *, now: Callable[[], datetime] = lambda: datetime.now(UTC)) -> None:
        self.path = path
        self._now = now
        self._read: tuple[Any, Mapping[str, Token] | LookalikeError] = (None, {})

    def find(self, presented: str) -> Token | None:
        """The record of a token that was issued here, active or not; None for anything else.

        Raises:
            DataCorrupted, FailedPrecondition: the file cannot be trusted, so nobody can be.
        """
        _, _, rest = presented.partition("_")
        token = self._tokens().get(rest.partition("_")[0])
        digest = hashlib.sha256(presented.encode(errors="replace")).hexdigest()
        # Compared also where there is no such id, so that time tells nothing of which ids there are.
        same = hmac.compare_digest(digest, token.sha256 if token is not None else _NOBODY)
        return token if same else None

    def state(self, token: Token) -> str:
        """As of now: active, expired or revoked; the first alone lets in."""
        return token.state(self._now())

    def revoked(self, token_id: str) -> bool:
        """Whether it lets in no more, other than by having expired.

        Raises:
            DataCorrupted, FailedPrecondition: the file cannot be trusted.
        """
        token = self._tokens().get(token_id)
        return token is None or token.revoked is not None

    def all(self) -> list[Token]:
        """Every token that is kept, oldest first.

        Raises:
            DataCorrupted, FailedPrecondition: the file cannot be trusted.
        """
        return sorted(_load(self.path).values(), key=lambda token: (token.created, token.id))

    def create(
        self, tenant: str, scopes: Iterable[Scope], *, lifetime: timedelta | None, description: str = ""
    ) -> tuple[str, Token]:
        """A new token, which nobody can be told again, and its record.

        Raises:
            InvalidInput: no tenant's name, no scope, or a lifetime that is none.
        """
        if not _TENANT.fullmatch(tenant):
            raise InvalidInput(
                f"'{tenant}' is no tenant: 1 to 63 letters, digits, '.', '_' or '-', a letter or digit first",
                field="tenant",
            )
        scopes = frozenset(scopes)
        if not scopes:
            raise InvalidInput(f"give the token a scope: {', '.join(Scope)}", field="scope")
        if lifetime is not None and lifetime <= timedelta(0):
            raise InvalidInput("a token must last longer than that", field="expires")
        with self._changing() as tokens:
            text, token = _issue(tenant, scopes, self._now(), lifetime, description)
            tokens[token.id] = token
        return text, token

    def revoke(self, token_id: str) -> Token:
        """Let it in no more, from now on; what it is reading ends too. Doing so again changes nothing.

        Raises:
            NotFound: no such token.
        """
        _of(_load(self.path), token_id)  # before a folder is made for nothing
        with self._changing() as tokens:
            token = _of(tokens, token_id)
            token = tokens[token.id] = replace(token, revoked=token.revoked or self._now())
        return token

    def rotate(self, token_id: str, *, grace: timedelta) -> tuple[str, Token]:
        """A new token with the same tenant, scopes and lifetime; the old one lasts for `grace` at most.

        Raises:
            NotFound: no such token. FailedPrecondition: it has ended, so that nobody should have another for it.
        """
        _of(_load(self.path), token_id)
        now = self._now()
        with self._changing() as tokens:
            old = _of(tokens, token_id)
            if old.state(now) != "active":
                raise FailedPrecondition(f"token {old.id} is {old.state(now)}: create a new one", field="id")
            lifetime = old.expires - old.created if old.expires is not None else None
            text, token = _issue(old.tenant, old.scopes, now, lifetime, old.description)
            tokens[token.id] = token
            last = now + max(grace, timedelta(0))
            tokens[old.id] = replace(old, expires=min(old.expires or last, last))
        return text, token

    def _tokens(self) -> Mapping[str, Token]:
        try:
            status = self.path.stat()
            seen: Any = (status.st_ino, status.st_size, status.st_mtime_ns, status.st_ctime_ns)
        except OSError as error:
            seen = error.errno
        if self._read[0] != seen:
            try:
                self._read = (seen, _load(self.path))
            except LookalikeError as error:
                _log.error("nobody is let in: %s", error)  # once, and not for every call
                self._read = (seen, error)
        known = self._read[1]
        if isinstance(known, LookalikeError):
            raise type(known)(known.message, field=known.field, reason=known.reason)
        return known

    @contextmanager
    def _changing(self) -> Iterator[dict[str, Token]]:
        """The tokens, to be changed; written when the block ends well. One process at a time."""
        self.path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        lock = os.open(self.path.with_name(self.path.name + ".lock"), os.O_RDWR | os.O_CREAT, 0o600)
        try:
            fcntl.flock(lock, fcntl.LOCK_EX)
            tokens = dict(_load(self.path))
            yield tokens
            horizon = self._now() - KEEP_ENDED
            kept = [t for t in tokens.values() if (t.revoked or t.expires or self._now()) > horizon]
            text = json.dumps({"format": FORMAT, "tokens": [_to_json(token) for token in kept]}, indent=1)
            write_whole(self.path, text.encode() + b"\n", mode=0o600)
        finally:
            os.close(lock)


def tokens_path(config: ServiceConfig) -> Path:
    """Where a service's tokens are."""
    return config.tokens or config.data_dir / "tokens.json"


def _issue(
    tenant: str, scopes: frozenset[Scope], now: datetime, lifetime: timedelta | None, description: str
) -> tuple[str, Token]:
    token_id = secrets.token_hex(6)
    text = f"{PREFIX}_{token_id}_{secrets.token_urlsafe(SECRET_BYTES)}"
    token = Token(
        id=token_id,
        tenant=tenant,
        scopes=scopes,
        sha256=hashlib.sha256(text.encode()).hexdigest(),
        created=now,
        expires=now + lifetime if lifetime is not None else None,
        description=description,
    )
    return text, token


def _of(tokens: Mapping[str, Token], token_id: str) -> Token:
    if token_id not in tokens:
        raise NotFound(f"there is no token {token_id}: `lookalike token list` has their ids", field="id")
    return tokens[token_id]


def _load(path: Path) -> dict[str, Token]:
    try:
        with path.open("rb") as file:
            if os.fstat(file.fileno()).st_mode & 0o022:
                raise FailedPrecondition(
                    f"{path} may be written by others than its owner, who could let themselves in: chmod 600 {path}",
                    field="service.tokens",
                    reason="TOKENS_WRITABLE",
                )
            data = json.load(file)
        if data["format"] != FORMAT:
            raise DataCorrupted(f"{path} has format {data['format']}, not {FORMAT}", field="service.tokens")
        tokens = [parse(Token, one, field_prefix="tokens") for one in data["tokens"]]
    except FileNotFoundError:
        return {}
    except OSError as error:
        raise FailedPrecondition(f"cannot read {path}: {error.strerror}", field="service.tokens") from error
    except (ValueError, KeyError, TypeError, InvalidInput) as error:
        raise DataCorrupted(f"{path} is no file of tokens: {error}", field="service.tokens") from error
    return {token.id: token for token in tokens}


def _to_json(token: Token) -> dict[str, Any]:
    data: dict[str, Any] = _TOKEN.dump_python(token, mode="json", exclude_none=True)
    data["scopes"].sort()
    return data
