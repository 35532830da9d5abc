"""What is going to happen: which orders are placed when and by what sort of client, and which faults strike when.

All of it is drawn from a seed before anything starts. Knows neither processes nor the service.
"""

from __future__ import annotations

import json
import random
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Final

# What a deck of faults holds; decks are shuffled, so that after each every kind has struck in these proportions.
DECK: Final = {
    "kill-worker": 5,
    "kill-jvm": 2,
    "kill-leash": 1,
    "kill-torchserve": 1,  # the whole group: leash, JVM, workers
    "kill-front": 2,
    "restart-front": 1,  # as an operator does it
    "stop-worker": 3,
    "stop-front": 2,
    "fill-disk": 4,
    "kill-clients": 1,
}
# Seconds that those take which end by themselves. TorchServe gives a silent worker up within this range.
LASTS: Final = {"stop-worker": (1.0, 20.0), "stop-front": (1.0, 8.0), "fill-disk": (3.0, 12.0)}
# Share of the faults that wait for a service at work. If all struck at any time, it would hardly do anything but start.
WAITS: Final = 0.8
# Bytes that a full disk has left: what of a job still fits differs, and with it where it fails.
LEFT: Final = (0, 8192, 40_960, 102_400, 151_552, 303_104)

# Sorts of clients, and of how many in twenty orders each is. What they do: `customers`.
SORTS: Final = {"patient": 7, "returning": 3, "vanishing": 2, "leaving": 3, "twice": 2, "cancelling": 3}
SIZES: Final = (100, 500, 2000)
RANDOM_SEEDS: Final = (0, 1, 2)


@dataclass(frozen=True)
class Order:
    """One expansion that a client is going to order.

    Attributes:
        at: seconds after the beginning. pause: seconds until the client does what its sort does.
    """

    number: int
    request_id: str
    at: float
    sort: str
    pause: float
    campaign: int
    k: int
    random_seed: int

    @property
    def content(self) -> str:
        """Equal for orders that must get the same bytes."""
        return f"{self.campaign}-{self.k}-{self.random_seed}"


@dataclass(frozen=True)
class Fault:
    """Something that is going to be done to the service.

    Attributes:
        at: seconds after the beginning. lasts: until it ends by itself; 0: it has no end of its own.
        luck: 0 to 1; picks among what it may strike, which is only known then.
        waits: for a service that is at work; others strike one that is just starting, too.
        left: bytes free on a full disk.
    """

    kind: str
    at: float
    lasts: float
    luck: float
    waits: bool = False
    left: int = 0


def draw_orders(seed: int, count: int, seconds: float, campaigns: Sequence[int]) -> list[Order]:
    """`count` orders within `seconds`, each campaign in one size, so that many orders ask for the same."""
    chance = random.Random(f"orders {seed}")
    sorts = _deck(SORTS, count, chance)
    sizes = {campaign: chance.choice(SIZES) for campaign in campaigns}
    orders = []
    for number, at in enumerate(sorted(chance.uniform(0.0, seconds) for _ in range(count))):
        campaign = chance.choice(campaigns)
        orders.append(
            Order(
                number=number,
                request_id=f"chaos-{seed}-{number:04d}",
                at=round(at, 2),
                sort=sorts[number],
                pause=round(chance.choice((0.0, 0.02, 0.2, 1.0)) * chance.uniform(0.5, 1.5), 3),
                campaign=campaign,
                k=sizes[campaign],
                random_seed=chance.choice(RANDOM_SEEDS),
            )
        )
    return orders


def draw_faults(seed: int, seconds: float, every: float, kinds: Sequence[str]) -> list[Fault]:
    """Faults of these kinds for `seconds`, one in `every` seconds on average."""
    chance = random.Random(f"faults {seed}")
    count = round(seconds / every)
    drawn = _deck({kind: DECK[kind] for kind in kinds}, count, chance) if kinds else []
    faults = []
    for kind, at in zip(drawn, sorted(chance.uniform(0.0, seconds) for _ in range(count)), strict=False):
        lasts = round(chance.uniform(*LASTS[kind]), 1) if kind in LASTS else 0.0
        left = chance.choice(LEFT)
        waits = chance.random() < WAITS
        luck = chance.random()
        faults.append(Fault(kind, round(at, 2), lasts, luck, waits, left if kind == "fill-disk" else 0))
    return faults


def write(orders: Sequence[Order], path: Path) -> None:
    """As `read` takes them."""
    path.write_text(json.dumps([asdict(order) for order in orders], indent=0))


def read(path: Path) -> list[Order]:
    """Inverse of `write`."""
    return [Order(**fields) for fields in json.loads(path.read_text())]


def _deck(counts: dict[str, int], wanted: int, chance: random.Random) -> list[str]:
    cards: list[str] = []
    while len(cards) < wanted:
        deck = [kind for kind, count in counts.items() for _ in range(count)]
        chance.shuffle(deck)
        cards += deck
    return cards[:wanted]
