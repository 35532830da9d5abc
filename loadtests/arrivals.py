"""When what arrives: each scenario as a plan that is made before anything begins, so that nothing slow delays it.

Pure arithmetic; knows neither Locust nor the service.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Final, Literal

import numpy as np

Action = Literal["order", "read", "score"]

CAMPAIGNS_A_DAY: Final = 450
# Who orders, and how much of it.
TENANTS: Final = {"shop": 0.6, "press": 0.3, "trial": 0.1}


@dataclass(frozen=True, order=True)
class Arrival:
    """Something that is to begin `at` seconds after the start, whatever became of what began before."""

    at: float
    tenant: str
    action: Action


@dataclass(frozen=True)
class Scenario:
    """A plan by its length in seconds and a factor to all its rates.

    Attributes:
        seconds: by default.
        large: whether an audience of many members is made before it begins; else one of few.
    """

    name: str
    seconds: float
    make: Callable[[np.random.Generator, float, float], Iterator[Arrival]]
    large: bool = False

    def plan(self, seconds: float, scale: float = 1.0, seed: int = 0) -> list[Arrival]:
        """In order of time."""
        return sorted(self.make(np.random.default_rng(seed), seconds, scale))


def _poisson(
    random: np.random.Generator, rate: float, begin: float, end: float, tenant: str, action: Action
) -> Iterator[Arrival]:
    """Independent arrivals, `rate` a second."""
    count = random.poisson(rate * (end - begin))
    for at in random.uniform(begin, end, count):
        yield Arrival(float(at), tenant, action)


def _steady(random: np.random.Generator, seconds: float, scale: float) -> Iterator[Arrival]:
    """A day's campaigns in `seconds`: busiest at three in the afternoon, when four times as many come as at night."""
    wanted = round(CAMPAIGNS_A_DAY * scale)
    names, shares = list(TENANTS), list(TENANTS.values())
    while wanted:
        hour = random.uniform(0, 24)
        if random.uniform(0, 1.6) < 1 + 0.6 * np.cos((hour - 15) / 24 * 2 * np.pi):
            yield Arrival(float(hour / 24 * seconds), str(random.choice(names, p=shares)), "order")
            wanted -= 1


def _burst(random: np.random.Generator, seconds: float, scale: float) -> Iterator[Arrival]:
    """A few orders all the time, and at the top of the hour all of what is scheduled for it, most of one tenant's."""
    for tenant in TENANTS:
        yield from _poisson(random, 0.05 * scale, 0, seconds, tenant, "order")
    hour = seconds / 6
    for tenant, count in (("shop", 40), ("press", 8), ("trial", 8)):
        for _ in range(round(count * scale)):
            yield Arrival(float(hour + random.uniform(0, 1)), tenant, "order")


def _readers(random: np.random.Generator, seconds: float, scale: float) -> Iterator[Arrival]:
    """Many who take a large audience, while orders come."""
    yield from _poisson(random, 2 * scale, 0, seconds, "press", "read")
    yield from _poisson(random, 0.1 * scale, 0, seconds, "shop", "order")


def _scoring(random: np.random.Generator, seconds: float, scale: float) -> Iterator[Arrival]:
    """Users who come by and are scored at once, while orders come."""
    yield from _poisson(random, 50 * scale, 0, seconds, "press", "score")
    yield from _poisson(random, 0.1 * scale, 0, seconds, "shop", "order")


SCENARIOS: Final = {
    one.name: one
    for one in (
        Scenario("steady", 600, _steady),
        Scenario("burst", 120, _burst),
        Scenario("readers", 60, _readers, large=True),
        Scenario("scoring", 60, _scoring),
    )
}
