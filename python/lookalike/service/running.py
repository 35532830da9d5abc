"""An operation while it runs here: how far it is, how long it will take, what it has counted. Knows no store."""

from __future__ import annotations

import asyncio
import time
from dataclasses import dataclass, field

from lookalike.retrieval.receipt import Progress, Receipt, Stage
from lookalike.service.metrics import Scored
from lookalike.service.records import Operation


@dataclass
class Running:
    """What is known of a running operation beyond the store. `ending`: its end is being noted."""

    operation: Operation
    scored: Scored
    task: asyncio.Task[None] | None = None
    ending: bool = False
    progress: Progress | None = None
    users_scored: int = 0
    users_total: int = 0
    scoring_since: tuple[float, int] | None = None  # monotonic time and users scored then
    persisted: Progress | None = None
    receipt: Receipt | None = None
    cancel: asyncio.Event = field(default_factory=asyncio.Event)

    def note(self, progress: Progress) -> None:
        self.progress = progress
        self.scored(progress)
        if progress.stage is Stage.SCORING:
            self.users_scored, self.users_total = progress.done, progress.total
            if self.scoring_since is None or progress.done < self.scoring_since[1]:
                self.scoring_since = (time.monotonic(), progress.done)

    def remaining(self) -> float | None:
        """Seconds until the pool is scored, at the rate so far; None while nothing can be said."""
        if self.progress is None or self.progress.stage is not Stage.SCORING or self.scoring_since is None:
            return None
        since, users = self.scoring_since
        elapsed, scored = time.monotonic() - since, self.users_scored - users
        return elapsed * (self.users_total - self.users_scored) / scored if scored > 0 and elapsed > 0 else None
