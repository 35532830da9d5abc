"""What adaptation comes to: a customised model, how it came about, and what it was judged by.

Knows `model` only.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from lookalike.errors import Cancelled
from lookalike.model.metaheac import MetaHeac


@dataclass(frozen=True)
class HeldOut:
    """A model customised without some of the seeds, which can be judged by them.

    Attributes:
        model: as the customised one, but of the other seeds alone; on the CPU.
        seeds: pool rows it was not trained on, ascending.
        trained: pool rows it was trained on, seeds and negatives, ascending.
    """

    model: MetaHeac
    seeds: npt.NDArray[np.int64]
    trained: npt.NDArray[np.int64]


@dataclass(frozen=True)
class Adapted:
    """A customised model and how it came about.

    Attributes:
        model: the general model with this campaign's parameters, on the CPU.
        best_epoch: epochs of the final fit, 1 where it is fitted in one go; 0 means that the seeds were better served
            without.
        samples: seeds and negatives together.
        folds: held-out folds that chose `best_epoch`.
        held_out_auc: mean AUC on held-out seeds after `best_epoch` epochs.
        general_auc: the same before the first epoch.
        history: mean held-out AUC and training loss by epoch.
        held_out: the models of the folds, if asked for; no seed is held out twice.
    """

    model: MetaHeac
    best_epoch: int
    samples: int
    folds: int
    held_out_auc: float
    general_auc: float
    history: tuple[dict[str, float], ...]
    held_out: tuple[HeldOut, ...] = ()


class Ticker:
    """Counts steps, reports them, and stops the work when asked to."""

    def __init__(
        self, total: int, progress: Callable[[int, int], None] | None, cancelled: Callable[[], bool] | None
    ) -> None:
        self.done = 0
        self.total = total
        self._progress = progress
        self._cancelled = cancelled

    def poll(self) -> None:
        """Stop if asked to."""
        if self._cancelled is not None and self._cancelled():
            raise Cancelled("the expansion was cancelled while adapting")

    def tick(self) -> None:
        """Count one step."""
        self.poll()
        self.done += 1
        if self._progress is not None:
            self._progress(min(self.done, self.total), self.total)

    def finish(self) -> None:
        """Early stopping leaves steps undone; the stage is complete all the same."""
        if self._progress is not None:
            self._progress(self.total, self.total)
