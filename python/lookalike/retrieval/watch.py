"""Stage by stage: reports progress, polls for cancellation, takes the time. Knows stages, not what is done in them."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import TypeAlias

from lookalike.retrieval.receipt import Progress, Stage

ProgressCallback: TypeAlias = Callable[[Progress], None]
CancelledCallback: TypeAlias = Callable[[], bool]


@dataclass
class Watch:
    """Of one expansion, or one insight."""

    progress: ProgressCallback | None
    cancelled: CancelledCallback | None
    seconds: dict[str, float] = field(default_factory=dict)

    @contextmanager
    def stage(self, stage: Stage, total: int = 1, done: int = 0) -> Iterator[Callable[[int, int], None]]:
        self.report(stage, done, total)
        started = time.perf_counter()
        yield lambda done, of: self.report(stage, done, of)
        self.seconds[stage.value.lower()] = round(time.perf_counter() - started, 4)

    def report(self, stage: Stage, done: int, total: int) -> None:
        if self.progress is not None:
            self.progress(Progress(stage, done, total))
