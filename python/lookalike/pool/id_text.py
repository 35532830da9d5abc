"""User ids as lines of text: what may stand before them, and what is said of a line that is none.

Knows lines; knows nothing of where they come from or what the ids are for.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from itertools import chain
from pathlib import Path

from lookalike.errors import InvalidInput, quoted

_HEAD = "user_id"
_MARK = "\ufeff"  # which spreadsheets put before UTF-8


def id_lines(lines: Iterable[str]) -> Iterator[str]:
    """Each line without blanks around it, so that it keeps its number; a head is a blank line, a mark is dropped."""
    rest = iter(lines)
    first = next(rest, "").removeprefix(_MARK).strip()
    return chain(["" if first.strip('"') == _HEAD else first], map(str.strip, rest))


def no_integer(number: int, line: str, path: Path, *, field: str) -> InvalidInput:
    """Of a line, counted from 1, where the pool's user ids are integers."""
    return InvalidInput(
        f"line {number:,} of {path} is {quoted(line)}, but user ids of this pool are integers: mend it", field=field
    )
