"""What a check found. Knows nothing of checks."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from enum import StrEnum

from lookalike.errors import LookalikeError


class Level(StrEnum):
    OK = "ok"
    WARN = "warn"  # works, but not well, or not for long
    FAIL = "fail"  # does not work


@dataclass(frozen=True)
class Finding:
    """`fix`: what to do; empty when all is well."""

    check: str
    level: Level
    message: str
    fix: str = ""


def ok(check: str, message: str) -> Finding:
    """All is well."""
    return Finding(check, Level.OK, message)


def warn(check: str, message: str, fix: str) -> Finding:
    """It will do."""
    return Finding(check, Level.WARN, message, fix)


def fail(check: str, message: str, fix: str) -> Finding:
    """It will not."""
    return Finding(check, Level.FAIL, message, fix)


def attempt(check: str, fix: str, look: Callable[[], Finding]) -> Finding:
    """What `look` finds; an error it ends with is what is wrong, and never stops the other checks."""
    try:
        return look()
    except LookalikeError as error:
        return fail(check, error.message, fix)
    except Exception as error:
        return fail(check, f"{type(error).__name__}: {error}", fix)
