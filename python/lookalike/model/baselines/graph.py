"""Who liked what as neighbour lists, and draws from them of a fixed number of neighbours, some edges hidden.

Knows rows of features; nothing of networks.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from lookalike.model.bags import Entries


@dataclass(frozen=True)
class Drawn:
    """Neighbours of some nodes: `others` `[nodes, fan_out]`, where `present` `[nodes, fan_out]`; else anything."""

    others: Tensor
    present: Tensor


@dataclass(frozen=True)
class Neighbours:
    """Of every node on one side, its neighbours on the other.

    Attributes:
        starts: `[nodes + 1]` int64, where a node's neighbours begin in `others`.
        others: `[edges]` int64, in random order for each node, so that any stretch of them is a random sample.
    """

    starts: Tensor
    others: Tensor

    @staticmethod
    def of(nodes: Tensor, others: Tensor, count: int, generator: torch.Generator) -> Neighbours:
        """From edges between `count` nodes and others, `[edges]` each, one at least."""
        shuffled = torch.randperm(len(nodes), generator=generator)
        order = shuffled[torch.argsort(nodes[shuffled], stable=True)]
        degrees = torch.bincount(nodes, minlength=count)
        return Neighbours(torch.nn.functional.pad(degrees.cumsum(0), (1, 0)), others[order])

    def first(self, nodes: Tensor, fan_out: int) -> Drawn:
        """The same `fan_out` neighbours at every call, or all where there are no more."""
        return self._stretch(nodes, torch.zeros(len(nodes), dtype=torch.int64), fan_out)

    def draw(self, nodes: Tensor, fan_out: int, generator: torch.Generator) -> Drawn:
        """`fan_out` neighbours in a row from a random one on, each once, or all where there are no more."""
        share = torch.rand(len(nodes), generator=generator, dtype=torch.float64)
        degrees = self.starts[nodes + 1] - self.starts[nodes]
        return self._stretch(nodes, (share * degrees).long(), fan_out)

    def _stretch(self, nodes: Tensor, place: Tensor, fan_out: int) -> Drawn:
        starts = self.starts[nodes].unsqueeze(1)
        degrees = self.starts[nodes + 1].unsqueeze(1) - starts
        step = torch.arange(fan_out)
        index = starts + (place.unsqueeze(1) + step) % degrees.clamp(min=1)
        index = index.clamp(max=len(self.others) - 1)  # of the last nodes, if they have no neighbours
        return Drawn(self.others[index], step < degrees)


@dataclass(frozen=True)
class LikeGraph:
    """Users and campaigns of the training history, and who liked what.

    Attributes:
        users: features of the users, `[users]`.
        campaigns: features of the campaigns, `[campaigns]`.
        of_user: campaigns each user liked. One node more than there are users is in it: somebody who liked none.
        of_campaign: users who liked each campaign.
    """

    users: Entries
    campaigns: Entries
    of_user: Neighbours
    of_campaign: Neighbours

    @staticmethod
    def of(users: Entries, campaigns: Entries, likes: tuple[Tensor, Tensor], generator: torch.Generator) -> LikeGraph:
        """`likes` are the edges: users and the campaigns they liked, `[edges]` each, one at least."""
        fans, liked = likes
        return LikeGraph(
            users,
            campaigns,
            Neighbours.of(fans, liked, len(users) + 1, generator),
            Neighbours.of(liked, fans, len(campaigns), generator),
        )


@dataclass(frozen=True)
class FanOut:
    """Neighbours drawn: campaigns of a user, users of a campaign."""

    campaigns: int
    users: int


@dataclass(frozen=True)
class Sight:
    """What one step of training sees of a graph: a few neighbours, and never the edges it is asked about.

    Attributes:
        users, campaigns: `[pairs]` each, the pairs asked about.
    """

    graph: LikeGraph
    users: Tensor
    campaigns: Tensor
    fan_out: FanOut
    generator: torch.Generator

    @cached_property
    def _hidden(self) -> Tensor:
        return self._key(self.users, self.campaigns).sort().values

    def campaigns_of(self, users: Tensor) -> Drawn:
        """Some of those each user liked; `users` is `[n]`."""
        drawn = self.graph.of_user.draw(users, self.fan_out.campaigns, self.generator)
        return self._without_hidden(drawn, users.unsqueeze(1), drawn.others)

    def users_of(self, campaigns: Tensor) -> Drawn:
        """Some of those who liked each campaign; `campaigns` is `[n]`."""
        drawn = self.graph.of_campaign.draw(campaigns, self.fan_out.users, self.generator)
        return self._without_hidden(drawn, drawn.others, campaigns.unsqueeze(1))

    def _without_hidden(self, drawn: Drawn, users: Tensor, campaigns: Tensor) -> Drawn:
        keys = self._key(users, campaigns)
        where = torch.searchsorted(self._hidden, keys).clamp(max=len(self._hidden) - 1)
        return Drawn(drawn.others, drawn.present & (self._hidden[where] != keys))

    def _key(self, users: Tensor, campaigns: Tensor) -> Tensor:
        return users * len(self.graph.campaigns) + campaigns
