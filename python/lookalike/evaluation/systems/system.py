"""The contract of a row of the results table: what a system sees offline, what it sees of a campaign, what it answers.

Knows pools and tasks. A campaign's later audience has no labels here, so that no system can look at them.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

import numpy as np
import numpy.typing as npt

from lookalike.dataset.layout import CampaignId
from lookalike.pool.snapshot import Pool
from lookalike.schema import EncodedColumns, FeatureSchema
from lookalike.training.tasks import Rows, Samples, Task

# The paper's grid for Adam, offline and online (section 4.1).
LEARNING_RATES = (0.001, 0.005, 0.01, 0.02, 0.1)


@dataclass(frozen=True)
class History:
    """What the offline stage may see: training campaigns with their seeds and their feedback (paper section 3.5)."""

    pool: Pool
    campaign_schema: FeatureSchema
    tasks: Sequence[Task]


@dataclass(frozen=True)
class SeededCampaign:
    """A campaign as a system meets it: features (one row), seeds with negatives, and users to be ranked."""

    campaign_id: CampaignId
    features: EncodedColumns
    seeds: Samples
    candidates: Rows  # [users], pool rows


@dataclass(frozen=True)
class Ranking:
    """A system's answer for one campaign.

    Attributes:
        scores: `[candidates]`, higher is better; only their order counts.
        seconds: of adapting to this campaign, scoring left out; campaigns adapted together share theirs by samples.
        samples: seeds and negatives whose gradient was taken, each as often as it was.
        losses: mean training loss by epoch, where there are epochs.
    """

    scores: npt.NDArray[np.float64]
    seconds: float
    samples: int
    losses: tuple[float, ...] = ()


@dataclass(frozen=True)
class Spent:
    """What the offline stage took: wall-clock seconds, and samples whose gradient was taken."""

    seconds: float
    samples: int


@dataclass(frozen=True)
class Rates:
    """Adam's learning rates of the two stages, each tuned on held-out training campaigns."""

    offline: float = 0.001
    online: float = 0.001


Tick = Callable[[int, int], None]
"""Called with (done, total) often enough to be a heartbeat; raises `Cancelled` when the work is to stop."""


class System(Protocol):
    """One row of the table. Made afresh for each run; `pretrain` comes first and once, also where it does nothing.

    Attributes:
        key: names it on the command line and in files.
        title: names it in the table; a stand-in says so.
        offline_rates, online_rates: what to try for each stage, the default first; alone where nothing is to be tuned.
    """

    key: str
    title: str
    offline_rates: Sequence[float]
    online_rates: Sequence[float]

    def pretrain(self, history: History, samples: int, rates: Rates, *, seed: int, tick: Tick) -> Spent:
        """The offline stage: see `samples` samples of the training campaigns, drawn with replacement or not."""
        ...

    def customise(
        self, campaigns: Sequence[SeededCampaign], rates: Rates, *, seed: int, tick: Tick
    ) -> Iterator[Ranking]:
        """The online stage for each campaign by itself, in order; a system may compute several together.

        Leaves the system as `pretrain` did, so that it can be called again with other rates.
        """
        ...


@dataclass(frozen=True)
class Underway:
    """A campaign's model in the middle of its online stage.

    Attributes:
        train: what it is fitted to.
        score: log-odds `[users]` of pool rows `[users]`.
    """

    train: Samples
    score: Callable[[Rows], npt.NDArray[np.float64]]


@runtime_checkable
class Stepwise(System, Protocol):
    """A system whose online stage goes step by step and can be looked at meanwhile."""

    def follow(self, campaign: SeededCampaign, rates: Rates, *, seed: int) -> Iterator[Underway]:
        """The model of one campaign before the first step and after each: the steps that `customise` takes.

        It does not stop where held-out seeds would have it stop, and only ends where there is nothing left to fit.
        """
        ...


@dataclass(frozen=True)
class Mixture:
    """What experts, critics and their gates make of users for one campaign.

    Attributes:
        expertise: `[users, h]`, the experts' representations as the gate mixes them (paper, Eq. 6).
        critics: `[users, m]`, the weights of the critics (paper, Eq. 5), which sum to 1.
    """

    expertise: npt.NDArray[np.float32]
    critics: npt.NDArray[np.float32]


@runtime_checkable
class Mixed(System, Protocol):
    """A system of experts and critics."""

    def mixture(self, campaign: SeededCampaign, rows: Rows) -> Mixture:
        """Of the users in these pool rows, by the general model."""
        ...
