"""Who is told how far a measurement is, and who may stop it. Knows nothing of what is measured."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from lookalike.errors import Cancelled
from lookalike.evaluation.systems.system import Tick

Report = Callable[[str, int, int, str], None]
"""Called with (what, done, total, note)."""


@dataclass(frozen=True)
class Watch:
    """Who is told how far the work is, and who may stop it between two steps."""

    report: Report = lambda what, done, total, note: None
    cancelled: Callable[[], bool] = lambda: False

    def tick(self, what: str, note: str) -> Tick:
        """The heartbeat of one piece of work.

        Raises (the heartbeat): Cancelled: someone wants it to stop.
        """

        def beat(done: int, total: int) -> None:
            if self.cancelled():
                raise Cancelled("stopped; the same command goes on after what is finished")
            self.report(what, done, total, note)

        return beat
