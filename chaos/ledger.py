"""What clients did and were told, a line each, on the disk before the client goes on. Knows files only.

Written by several threads and processes at once, which are killed at any moment.
"""

from __future__ import annotations

import json
import os
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any


@dataclass(frozen=True)
class Entry:
    """One line.

    Attributes:
        event: "sent", "accepted", "refused", "cancelled", "ended", "read" or "over".
        told: what came with it: the operation, a code, a state, digests.
    """

    time: float
    order: int
    event: str
    told: dict[str, Any]


class Ledger:
    """The open file of a writer."""

    def __init__(self, path: Path) -> None:
        self._file = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)

    def note(self, order: int, event: str, **told: object) -> None:
        line = json.dumps({"time": time.time(), "order": order, "event": event, "told": told}).encode() + b"\n"
        os.write(self._file, line)  # one write: lines of several writers do not mix


def read(path: Path) -> list[Entry]:
    """All lines, in the order they were written; none while there is no file."""
    if not path.exists():
        return []
    return [Entry(**json.loads(line)) for line in path.read_text().splitlines()]
