"""Opaque tokens that say where a listing goes on (AIP-158); each is good for the one listing it came from.

Knows `errors`.
"""

from __future__ import annotations

import base64
import hashlib
import json

from lookalike.errors import InvalidInput


def encode(position: int, *, listing: str) -> str:
    """A token for `position` (0 or more) of `listing`, which names what is listed and how."""
    payload = json.dumps([position, _digest(listing, position)]).encode()
    return base64.urlsafe_b64encode(payload).decode().rstrip("=")


def decode(token: str, *, listing: str, field: str) -> int:
    """The position; 0 for the empty token.

    Raises:
        InvalidInput: not a token of ours, or of another listing.
    """
    if not token:
        return 0
    try:
        position, digest = json.loads(base64.urlsafe_b64decode(token + "=" * (-len(token) % 4)))
        if isinstance(position, int) and 0 <= position < 2**63 and digest == _digest(listing, position):
            return position
    except (ValueError, TypeError, RecursionError):
        pass
    raise foreign(field)


def encode_place(moment: float, name: str, *, listing: str) -> str:
    """A token for the place behind what has this moment and name, in a listing in order of these."""
    payload = json.dumps([moment, name, _digest(listing, f"{moment!r}\0{name}")]).encode()
    return base64.urlsafe_b64encode(payload).decode().rstrip("=")


def decode_place(token: str, *, listing: str, field: str) -> tuple[float, str] | None:
    """The place; None, the beginning, for the empty token.

    Raises:
        InvalidInput: as `decode`.
    """
    if not token:
        return None
    try:
        moment, name, digest = json.loads(base64.urlsafe_b64decode(token + "=" * (-len(token) % 4)))
        if isinstance(moment, float) and isinstance(name, str) and digest == _digest(listing, f"{moment!r}\0{name}"):
            return moment, name
    except (ValueError, TypeError, RecursionError):
        pass
    raise foreign(field)


def foreign(field: str) -> InvalidInput:
    """What is raised of a token that is none of ours, or of another listing."""
    return InvalidInput(
        f"'{field}' is no token of this listing; pass one it returned, with the other arguments unchanged",
        field=field,
        reason="INVALID_TOKEN",
    )


def _digest(listing: str, position: int | str) -> str:
    """Not a secret: it catches mix-ups and typing errors, and there is nothing to gain by forging one."""
    return hashlib.sha256(f"{listing}\0{position}".encode()).hexdigest()[:16]
