"""Systems after their offline stage, as the table's run 0 has them: the same split, samples, rates and random numbers.

Knows the benchmark; not what is then asked of the systems.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import cached_property

import numpy as np
import numpy.typing as npt

from lookalike.evaluation.bench import Bench
from lookalike.evaluation.protocol import Exam
from lookalike.evaluation.systems.registry import Factory
from lookalike.evaluation.systems.system import Rates, System, Tick

RUN = 0


class Trained:
    """Each system is tuned, if it is not yet, and trained when it is first asked for, and then kept."""

    def __init__(self, bench: Bench, systems: Mapping[str, Factory]) -> None:
        self.bench = bench
        self._systems = systems
        self._made: dict[str, System] = {}

    @cached_property
    def exam(self) -> Exam:
        """What run 0 asks. Its answers are looked at only."""
        return self.bench.protocol.exam(RUN)

    def some(self, most: int) -> npt.NDArray[np.int64]:
        """So many of the exam's campaigns at most: places of random ones, ascending, the same at every call."""
        count = len(self.exam.campaigns)
        return np.sort(np.random.default_rng(RUN).choice(count, min(most, count), replace=False))

    def get(self, key: str) -> tuple[System, Rates]:
        """A system of the registry or its like.

        Raises:
            InvalidInput: it diverges, or no campaign can be learnt from. Cancelled.
        """
        rates = self.bench.tuned(key, self._systems[key]).rates
        if key not in self._made:
            system = self._systems[key]()
            tick = self.bench.watch.tick("pre-training", key)
            system.pretrain(self.exam.history, self.bench.folder.identity.samples, rates, seed=RUN, tick=tick)
            self._made[key] = system
        return self._made[key], rates

    def tick(self, note: str) -> Tick:
        """The heartbeat of a study."""
        return self.bench.watch.tick("campaigns", note)
