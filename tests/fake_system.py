"""A system that learns nothing, remembers what it was shown, and ranks as a test wants it to."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt

from lookalike.dataset.layout import CampaignId
from lookalike.evaluation.systems.system import History, Ranking, Rates, SeededCampaign, Spent, Tick

Scores = npt.NDArray[np.float64]


def by_position(campaign: SeededCampaign, rates: Rates) -> Scores:
    return -np.arange(len(campaign.candidates), dtype=np.float64)


@dataclass(frozen=True)
class Seen:
    """One call: `campaigns` were trained on (pretrain) or ranked for (customise)."""

    stage: str
    campaigns: frozenset[CampaignId]
    rates: Rates
    seed: int
    samples: int = 0


@dataclass
class FakeSystem:
    key: str = "fake"
    title: str = "Fake"
    offline_rates: Sequence[float] = (0.001,)
    online_rates: Sequence[float] = (0.001,)
    rank: Callable[[SeededCampaign, Rates], Scores] = by_position
    seen: list[Seen] = field(default_factory=list)
    losses: tuple[float, ...] = ()
    pretrained: Rates | None = None

    def pretrain(self, history: History, samples: int, rates: Rates, *, seed: int, tick: Tick) -> Spent:
        assert self.pretrained is None, "a system is pre-trained once"
        self.pretrained = rates
        tick(samples, samples)
        ids = frozenset(task.campaign_id for task in history.tasks)
        self.seen.append(Seen("pretrain", ids, rates, seed, samples))
        return Spent(seconds=2.0, samples=samples)

    def customise(
        self, campaigns: Sequence[SeededCampaign], rates: Rates, *, seed: int, tick: Tick
    ) -> Iterator[Ranking]:
        assert self.pretrained is not None
        ids = frozenset(campaign.campaign_id for campaign in campaigns)
        self.seen.append(Seen("customise", ids, rates, seed))
        for number, campaign in enumerate(campaigns):
            tick(number, len(campaigns))
            trained = Rates(self.pretrained.offline, rates.online)
            yield Ranking(self.rank(campaign, trained), 0.5, len(campaign.seeds), self.losses)


def fakes(key: str = "fake", **arguments: object) -> tuple[Callable[[], FakeSystem], list[Seen]]:
    """A factory, and what all its systems see, in one list."""
    seen: list[Seen] = []
    return lambda: FakeSystem(key=key, title=key.title(), seen=seen, **arguments), seen  # type: ignore[arg-type]
