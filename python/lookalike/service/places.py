"""Places in audiences, as tokens: good for an audience as it was then, and known again when it has changed since.

Knows audiences and `tokens`.
"""

from __future__ import annotations

from contextlib import suppress

from lookalike.errors import FailedPrecondition, InvalidInput
from lookalike.retrieval.audience import Audience
from lookalike.service import tokens

MEMBERS = ""


def listing(name: str, audience: Audience, of: str = MEMBERS) -> str:
    """Of tokens; `of`: what of the audience is listed."""
    return _listing(name, audience.receipt.audience_sha256, of)


def place(token: str, name: str, audience: Audience, *, field: str, of: str = MEMBERS) -> int:
    """Where a token goes on; 0 for the empty one.

    Raises:
        InvalidInput: no token of this listing. FailedPrecondition: of what the audience was before it was changed.
    """
    try:
        return tokens.decode(token, listing=listing(name, audience, of), field=field)
    except InvalidInput:
        for former in audience.receipt.revisions:
            with suppress(InvalidInput):
                tokens.decode(token, listing=_listing(name, former.audience_sha256, of), field=field)
                raise FailedPrecondition(
                    f"{name} has changed since, by opt-outs or of its size: read it from the start",
                    field=field,
                    reason="AUDIENCE_CHANGED",
                ) from None
        raise


class Between:
    """Places in the changes between two audiences. Their tokens are of both, so that either may be found changed."""

    def __init__(self, before: str, after: str, audiences: tuple[Audience, Audience]) -> None:
        """`before`, `after`: their names."""
        self._sides = tuple(zip((before, after), audiences, ("before", "after"), strict=True))
        self._of = f"changes\0{before}\0{after}"

    def token(self, position: int) -> str:
        """A token for this place."""
        listings = [listing(name, audience, f"{self._of}\0{side}") for name, audience, side in self._sides]
        return ".".join(tokens.encode(position, listing=one) for one in listings)

    def place(self, token: str, *, field: str) -> int:
        """Where a token goes on; 0 for the empty one.

        Raises:
            InvalidInput, FailedPrecondition: as `place`.
        """
        if not token:
            return 0
        parts = token.split(".")
        if len(parts) != len(self._sides) or not all(parts):
            raise tokens.foreign(field)
        places = {
            place(part, name, audience, field=field, of=f"{self._of}\0{side}")
            for part, (name, audience, side) in zip(parts, self._sides, strict=True)
        }
        if len(places) > 1:  # halves of two tokens
            raise tokens.foreign(field)
        return places.pop()


def _listing(name: str, sha256: str, of: str) -> str:
    return f"{name}\0{sha256}" + (f"\0{of}" if of else "")
