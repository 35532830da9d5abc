"""Pinterest's row: users embedded by the campaigns they liked, then ranked by how dense seeds are around them.

Knows its network and the contract of a row.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import nn

from lookalike.errors import EmptySeeds, InvalidInput
from lookalike.evaluation.systems.edges import Edges, blocks, draws
from lookalike.evaluation.systems.system import LEARNING_RATES, History, Ranking, Rates, SeededCampaign, Spent, Tick
from lookalike.model.bags import Entries
from lookalike.model.baselines.pinterest import Densities, Hashes, TopicModel, Vectors, hinge_loss
from lookalike.training.tasks import Rows

# A user who likes half of all campaigns is given one he does not like with odds of 1,000 to 1.
TRIES = 10


@dataclass(frozen=True, kw_only=True)
class PinterestSettings:
    """What the MetaHeac paper gives all systems, and the rest as chosen on held-out training campaigns.

    Attributes:
        width: of u and t; 16 costs 0.016 AUC on `ml1m`, nothing on `kuairand`.
        hashes: 16 cost 0.007 to 0.02, 256 bring up to 0.003.
        bits: hyperplanes a hash; 6, 8 and 10 are alike, 12 cost 0.01 or less.
        smoothing: a of the densities; 1 costs 0.01, 0.01 is like 0.1.
        fewest: users of the pool in a region, below which it is dropped.
    """

    k: int = 16
    hidden: int = 64
    width: int = 64
    init_std: float = 0.01
    margin: float = 1.0
    batch: int = 512
    hashes: int = 64
    bits: int = 8
    smoothing: float = 0.1
    fewest: int = 10


class Pinterest:
    """deWet & Ou, "Finding Users Who Act Alike" (KDD'19). Holds 4 bytes for each user of the pool and hash."""

    key = "pinterest"
    title = "Pinterest"
    offline_rates: Sequence[float] = LEARNING_RATES
    online_rates: Sequence[float] = (Rates.online,)  # nothing is learnt online

    def __init__(self, settings: PinterestSettings | None = None) -> None:
        self.settings = settings or PinterestSettings()

    def pretrain(self, history: History, samples: int, rates: Rates, *, seed: int, tick: Tick) -> Spent:
        """Learn users and topics from `samples` pairs of a user and a campaign liked, each beside one not liked.

        Raises:
            InvalidInput: no training campaign has both labels, or training diverged.
        """
        started = time.perf_counter()
        settings = self.settings
        edges = Edges.of(history)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            self.model = TopicModel(
                history.pool.schema,
                len(history.tasks),
                k=settings.k,
                hidden=settings.hidden,
                width=settings.width,
                init_std=settings.init_std,
            )
        rng = np.random.default_rng(seed)
        users = edges.encode(history, self.model.fields)
        for done in self._steps(edges, users, samples, rates.offline, rng):
            tick(done, samples)
        vectors = self._embed(history, lambda: tick(samples, samples))
        self.regions = Hashes.draw(settings.width, settings.hashes, settings.bits, rng).regions(vectors)
        everyone = np.bincount(self.regions.ravel(), minlength=settings.hashes << settings.bits)
        self.densities = Densities(everyone, len(vectors), settings.smoothing, settings.fewest)
        return Spent(time.perf_counter() - started, samples)

    def customise(
        self,
        campaigns: Sequence[SeededCampaign],
        rates: Rates,
        *,
        seed: int,
        tick: Tick,
    ) -> Iterator[Ranking]:
        """Count each campaign's seeds in the regions of the hashes; its negatives are not used.

        Raises:
            EmptySeeds: a campaign has none.
        """
        for number, campaign in enumerate(campaigns):
            tick(number, len(campaigns))
            started = time.perf_counter()
            seeds = campaign.seeds.interested
            if len(seeds) == 0:
                raise EmptySeeds(f"campaign {campaign.campaign_id} has no seed in the pool; give one at least")
            of_seeds = self.densities.of_seeds(self.regions[seeds])
            seconds = time.perf_counter() - started
            yield Ranking(self.densities.scores(of_seeds, self.regions[campaign.candidates]), seconds, samples=0)
        tick(len(campaigns), len(campaigns))

    def _steps(
        self, edges: Edges, users: Entries, samples: int, rate: float, rng: np.random.Generator
    ) -> Iterator[int]:
        """Train by a step each time; yields the samples seen."""
        optimizer = torch.optim.Adam(self.model.parameters(), lr=rate, fused=True)
        topics, done = self.model.topics, 0
        for drawn in draws(len(edges.likes), samples, self.settings.batch, rng):
            user, liked, other = beside_others(edges, edges.likes[drawn], len(topics), rng)
            if len(user):
                loss = hinge_loss(
                    self.model(users.take(user)),
                    nn.functional.embedding(torch.from_numpy(liked), topics),
                    nn.functional.embedding(torch.from_numpy(other), topics),
                    self.settings.margin,
                )
                optimizer.zero_grad()
                torch.autograd.backward(loss)
                optimizer.step()
            done += len(drawn)
            yield done

    @torch.no_grad()
    def _embed(self, history: History, beat: Callable[[], None]) -> Vectors:
        parts = []
        for _, users in blocks(history, self.model.fields):
            beat()
            parts.append(self.model(users).numpy())
        vectors: Vectors = np.concatenate(parts)
        if not np.isfinite(vectors).all():
            raise InvalidInput("pre-training diverged: give a lower offline rate", field="rates.offline")
        return vectors


def beside_others(edges: Edges, picked: Rows, campaigns: int, rng: np.random.Generator) -> tuple[Rows, Rows, Rows]:
    """Users, the campaigns they liked, and for each one drawn evenly from those they are not known to like.

    `picked` are edges of interested users. One for whom none is found is left out.
    """
    users, other = edges.users[picked], np.zeros(len(picked), np.int64)
    left = np.arange(len(picked))
    for _ in range(TRIES):
        other[left] = rng.integers(campaigns, size=len(left))
        left = left[edges.known_to_like(users[left], other[left])]
    found = np.delete(np.arange(len(picked)), left)
    return users[found], edges.campaigns[picked[found]], other[found]
