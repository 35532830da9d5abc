"""Who may how much, and whose turn it is: quotas, and the order in which waiting tenants are served.

Pure arithmetic; knows the configuration and no database.

The order is start-time fair queueing (Goyal, Vin, Cheng: SIGCOMM 1996) over operations taken to be alike, after the
number that run: first whoever has the fewest running for its weight; among equals, whoever's turn begins earliest in
virtual time, where a turn ends 1 / weight after it began and time is where the last turn began; then whoever's head of
the queue waits longest. A tenant that was idle begins now, so it saves nothing up; and one that waits is passed by
another at most as often as their weights say, so nobody starves.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from lookalike.config import QuotasConfig


@dataclass(frozen=True)
class Quota:
    """What one tenant may; None: no limit."""

    queued: int
    running: int | None
    per_day: int | None
    weight: float


@dataclass(frozen=True)
class Waiting:
    """A tenant with something in the queue.

    Attributes:
        running: its operations that run now, anywhere.
        last_turn: when its last turn began, in virtual time; None before its first.
        due: of the head of its queue, in seconds.
    """

    tenant: str
    running: int
    last_turn: float | None
    due: float


@dataclass(frozen=True)
class Turn:
    """Whose turn, and when it begins in virtual time."""

    tenant: str
    start: float


class Quotas:
    """The configuration, for each tenant."""

    def __init__(self, config: QuotasConfig) -> None:
        self._config = config

    def of(self, tenant: str) -> Quota:
        """A tenant's own where it has one, else everyone's."""
        everyone, own = self._config, self._config.tenants.get(tenant)
        return Quota(
            queued=(own and own.queued) or everyone.queued,
            running=(own and own.running) or everyone.running or None,
            per_day=(own and own.per_day) or everyone.per_day or None,
            weight=(own and own.weight) or everyone.weight,
        )

    def turns(self, waiting: Iterable[Waiting], virtual_time: float) -> Sequence[Turn]:
        """Those who may have one more running, the next to be served first.

        `virtual_time`: when the last turn of all began.
        """
        ranked = []
        for one in waiting:
            quota = self.of(one.tenant)
            if quota.running is not None and one.running >= quota.running:
                continue
            end = virtual_time if one.last_turn is None else one.last_turn + 1 / quota.weight
            start = max(virtual_time, end)
            ranked.append((one.running / quota.weight, start, one.due, one.tenant))
        return [Turn(tenant, start) for _, start, _, tenant in sorted(ranked)]
