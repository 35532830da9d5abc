"""Adaptation of many campaigns' networks at once: each gets what it would get alone, in a fraction of the time.

Campaigns of nearly one size advance in step, a batch of each at a time, their parameters stacked. Knows stacked
networks and the pool; knows nothing of systems or of what comes after the seeds.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor
from torch.nn.functional import binary_cross_entropy_with_logits

from lookalike.errors import InvalidInput
from lookalike.evaluation.metrics import auc
from lookalike.model.bags import Entries
from lookalike.model.stacked import Campaigns, Network, Users, ids_of
from lookalike.pool.snapshot import Pool
from lookalike.schema import EncodedColumns
from lookalike.training.general import General, Occurring
from lookalike.training.stratified import Index, split
from lookalike.training.tasks import Samples

# Campaigns in a stack: enough that calling the library costs little beside what it computes, few enough that what a
# batch of each needs stays in the cache.
GROUP = 4
# Users of a campaign that are scored at once, for the same reason.
_SCORED_AT_ONCE = 2048

Start = Callable[[Sequence[np.random.Generator], npt.NDArray[np.float64]], Network]
"""The network campaigns start from, a copy for each generator; given also the share of positives of each, `[C]`."""


@dataclass(frozen=True)
class OnlineConfig:
    """Adam's rate, and when to stop: once the AUC on held-out seeds has not risen for `patience` epochs.

    The parameters of the best epoch are the result. To fit once more, as many epochs on all seeds, would take 1.7 times
    as long and gained 0.001 of AUC, which is its standard error (24 training campaigns each of `kuairand`, `ml1m`);
    stopping by the held-out loss instead lost 0.003.
    """

    lr: float
    batch_size: int = 512  # the paper's, section 4.1
    max_epochs: int = 12
    patience: int = 2
    parts: int = 5  # one of them is held out


@dataclass(frozen=True)
class NewCampaign:
    """A campaign to adapt to: features (one row), seeds with negatives, and what its random choices follow."""

    features: EncodedColumns
    seeds: Samples
    random_seed: tuple[int, ...]


@dataclass(frozen=True)
class OwnNetwork:
    """A network that belongs to one campaign.

    Attributes:
        network: a stack of one.
        features: of the campaign, encoded.
        rows, broad: the rows of the general table of broad fields that are its own, `[u]`, and what they are, `[u, k]`.
    """

    network: Network
    features: Entries
    rows: Index
    broad: Tensor

    @torch.no_grad()
    def score(self, general: General, users: EncodedColumns) -> npt.NDArray[np.float32]:
        """Log-odds of users `[n]`; an id that none of the campaign's samples had keeps its general embedding."""
        broad = general.broad.index_copy(0, torch.from_numpy(self.rows), self.broad).unsqueeze(0)
        parts = [np.zeros(0, np.float32)]
        for start in range(0, users.length, _SCORED_AT_ONCE):
            some = Users(*general.users.encode(users.slice(start, min(start + _SCORED_AT_ONCE, users.length))))
            parts.append(self.network(some, Campaigns(self.features), broad)[0].numpy())
        return np.concatenate(parts)


@dataclass(frozen=True)
class Customised(OwnNetwork):
    """The network a campaign ends with, and how it came about.

    Attributes:
        best_epoch: epochs it was trained for; 0 leaves it as it started.
        held_out_auc: by which that was chosen.
        losses: mean training loss by epoch, those after the best included.
        samples: samples whose gradient was taken.
        seconds: of its group, by samples.
    """

    best_epoch: int
    held_out_auc: float
    losses: tuple[float, ...]
    samples: int
    seconds: float


def adapt_networks(
    general: General,
    pool: Pool,
    campaigns: Sequence[NewCampaign],
    start: Start,
    frozen: Sequence[str],
    config: OnlineConfig,
    tick: Callable[[int, int], None],
) -> Iterator[tuple[int, Customised]]:
    """Fine-tune a network for each campaign on its seeds; each with its position, as they get ready, smallest first.

    `general` stays as it is.

    Args:
        frozen: beginnings of the names of parameters that stay as they start; `embeddings` includes the broad fields'.
        tick: called with (campaigns done, campaigns) at every step; raise from it to stop.

    Raises:
        InvalidInput: a campaign has fewer than two samples of a label.
    """
    done = 0
    for positions in _groups([_num_batches(campaign.seeds, config) for campaign in campaigns]):
        began = time.perf_counter()
        members = [_Member(campaigns[position], pool, general, config) for position in positions]
        group = _Group(members, general, start, frozen, config)
        _advance(group, partial(tick, done, len(campaigns)))
        seconds = (time.perf_counter() - began) / max(1, sum(member.samples for member in members))
        done += len(members)
        tick(done, len(campaigns))
        for position, member in zip(positions, members, strict=True):
            yield position, member.result(seconds)


def follow(
    general: General, pool: Pool, campaign: NewCampaign, start: Start, frozen: Sequence[str], config: OnlineConfig
) -> tuple[Index, Iterator[OwnNetwork]]:
    """The steps that `adapt_networks` takes for one campaign, to look at them; nothing stops them.

    Returns:
        Which of the campaign's samples it learns from, and its network before the first step and after each.

    Raises:
        InvalidInput: as `adapt_networks`.
    """
    group = _Group([_Member(campaign, pool, general, config)], general, start, frozen, config)

    def networks() -> Iterator[OwnNetwork]:
        yield group.own(0)
        while True:
            for batch in group.batches():
                group.step(batch)
                yield group.own(0)

    return group.members[0].train, networks()


def _num_batches(seeds: Samples, config: OnlineConfig) -> int:
    training = len(seeds) - sum(_held_out(config.parts, int((seeds.labels == label).sum())) for label in (0, 1))
    return max(1, round(training / config.batch_size))


def _held_out(parts: int, count: int) -> int:
    if count < 2:
        raise InvalidInput(
            "a campaign needs at least two seeds and two negatives: one of each is held out", field="seeds"
        )
    return max(1, count // parts)


def _groups(num_batches: Sequence[int]) -> Iterator[list[int]]:
    """Positions of campaigns with equally many batches in an epoch, so that their epochs end together."""
    order = sorted(range(len(num_batches)), key=num_batches.__getitem__)
    group: list[int] = []
    for position in order:
        if group and (len(group) == GROUP or num_batches[group[0]] != num_batches[position]):
            yield group
            group = []
        group.append(position)
    if group:
        yield group


def _advance(group: _Group, poll: Callable[[], None]) -> None:
    """Epoch after epoch, with those members only that may still gain."""
    group.judge(0)
    for epoch in range(1, group.config.max_epochs + 1):
        group.epoch(poll)
        group.judge(epoch)
        going = [p for p, member in enumerate(group.members) if epoch - member.best_epoch < group.config.patience]
        if not going:
            break
        group.keep(going)


class _Member:
    """A campaign encoded, with its best so far. Ids of broad fields are numbered by the rows that its samples touch."""

    def __init__(self, campaign: NewCampaign, pool: Pool, general: General, config: OnlineConfig) -> None:
        self.random_seed = campaign.random_seed
        self.labels = campaign.seeds.labels
        self.features = general.campaigns.encode([campaign.features])
        self.narrow, broad = general.users.encode(pool.take(campaign.seeds.rows))
        occurring = Occurring(broad, len(general.broad))
        self.broad, self.rows = occurring.entries, occurring.rows
        self.train, self.held_out = split(self.labels, partial(_held_out, config.parts), self.rng("split"))
        self.order = self.rng("order")
        self.losses: list[float] = []
        self.samples = 0
        self.best_epoch, self.best_auc = 0, -1.0
        self.best: OwnNetwork | None = None

    def rng(self, purpose: str) -> np.random.Generator:
        """Random numbers of its own, so that they do not depend on who else is in the group."""
        return np.random.default_rng([*self.random_seed, ("split", "order", "start").index(purpose)])

    def result(self, seconds_a_sample: float) -> Customised:
        assert self.best is not None
        return Customised(
            self.best.network,
            self.best.features,
            self.best.rows,
            self.best.broad,
            self.best_epoch,
            self.best_auc,
            tuple(self.losses),
            self.samples,
            seconds_a_sample * self.samples,
        )


class _Group:
    """Campaigns that advance in step; position by position a copy of the network and a table of `broad` [C, ids, k]."""

    def __init__(
        self, members: Sequence[_Member], general: General, start: Start, frozen: Sequence[str], config: OnlineConfig
    ) -> None:
        self.members = list(members)
        self.config = config
        shares = np.array([member.labels[member.train].mean(dtype=np.float64) for member in members])
        self.network = start([member.rng("start") for member in members], shares)
        tables = [general.broad[torch.from_numpy(member.rows)] for member in members]
        self.broad = torch.nn.utils.rnn.pad_sequence(tables, batch_first=True)
        for name, parameter in self.network.named_parameters():
            parameter.requires_grad_(not name.startswith(tuple(frozen)))
        self.broad.requires_grad_("embeddings" not in frozen)
        self.optimizer = torch.optim.Adam(self._trainable(), lr=config.lr, fused=True)
        self.narrow_ids = ids_of(general.users.narrow)
        self.narrow_entries = Entries.concat([member.narrow for member in members])
        self.broad_entries = Entries.concat([member.broad for member in members])
        self.labels = np.concatenate([member.labels for member in members])
        self.first = np.cumsum([0, *[len(member.labels) for member in members[:-1]]])
        self.campaigns = self._campaigns()

    def _campaigns(self) -> Campaigns:
        features = Entries.concat([member.features for member in self.members])
        return Campaigns(features.moved(np.arange(len(self.members)) * self.network.embeddings.campaign.shape[1]))

    def _trainable(self) -> list[Tensor]:
        return [p for p in [*self.network.parameters(), self.broad] if p.requires_grad]

    def _log_odds(self, index: Index) -> Tensor:
        """`[C, rows]` of the samples `[C, rows]`, counted from the group's first; -1 is a user without any feature."""
        stack, rows = index.shape
        position = np.repeat(np.arange(stack), rows)
        users = Users(
            self.narrow_entries.take(index.reshape(-1)).moved(position * self.narrow_ids),
            self.broad_entries.take(index.reshape(-1)).moved(position * self.broad.shape[1]),
        )
        log_odds: Tensor = self.network(users, self.campaigns, self.broad)
        return log_odds

    def own(self, position: int) -> OwnNetwork:
        """A copy of what belongs to a member, as it is now."""
        member = self.members[position]
        own_rows = self.broad.detach()[position, : len(member.rows)].clone()
        return OwnNetwork(self.network.take([position]), member.features, member.rows, own_rows)

    def batches(self) -> list[tuple[Index, ...]]:
        """A pass over each member's training samples in a new order."""
        orders = [m.order.permutation(m.train) + first for m, first in zip(self.members, self.first, strict=True)]
        count = max(1, round(len(orders[0]) / self.config.batch_size))
        return list(zip(*[np.array_split(order, count) for order in orders], strict=True))

    def epoch(self, poll: Callable[[], None]) -> None:
        """Learn from one pass."""
        batches = self.batches()
        losses = torch.zeros(len(self.members))
        for batch in batches:
            poll()
            losses += self.step(batch)
        for member, loss in zip(self.members, losses.tolist(), strict=True):
            member.losses.append(loss / len(batches))
            member.samples += len(member.train)

    def step(self, batch: Sequence[Index]) -> Tensor:
        """One step on a batch of each member; the loss of each, `[C]`."""
        index = _padded(batch)
        # Each member's mean; their sum has for each the gradient it would have alone.
        weights = (index >= 0) / np.array([[len(part)] for part in batch])
        loss = binary_cross_entropy_with_logits(
            self._log_odds(index),
            torch.from_numpy(self.labels[index]),
            torch.from_numpy(weights.astype(np.float32)),
            reduction="none",
        )
        self.optimizer.zero_grad()
        torch.autograd.backward(loss.sum())
        self.optimizer.step()
        return loss.detach().sum(1)

    @torch.no_grad()
    def judge(self, epoch: int) -> None:
        """Let each member remember its parameters if they rank its held-out samples better than ever."""
        index = _padded([m.held_out + first for m, first in zip(self.members, self.first, strict=True)])
        size = math.ceil(_SCORED_AT_ONCE / len(index))
        parts = [self._log_odds(index[:, start : start + size]) for start in range(0, index.shape[1], size)]
        for position, (member, row) in enumerate(zip(self.members, torch.cat(parts, 1).numpy(), strict=True)):
            log_odds = row[: len(member.held_out)]
            # One that diverged is worse than anything, so that an earlier epoch is chosen.
            finite = bool(np.isfinite(log_odds).all())
            value = auc(member.labels[member.held_out].astype(np.int8), log_odds) if finite else 0.0
            if value > member.best_auc:
                member.best_epoch, member.best_auc, member.best = epoch, value, self.own(position)

    def keep(self, positions: list[int]) -> None:
        """Go on with these members only."""
        if len(positions) == len(self.members):
            return
        state, before = self.optimizer.state, self._trainable()
        self.network = self.network.take(positions)
        self.broad = self.broad.detach()[positions].requires_grad_(self.broad.requires_grad)
        self.optimizer = torch.optim.Adam(self._trainable(), lr=self.config.lr, fused=True)
        for old, new in zip(before, self._trainable(), strict=True):
            if not state[old]:  # the network has no use for it
                continue
            moments = {name: state[old][name][positions] for name in ("exp_avg", "exp_avg_sq")}
            self.optimizer.state[new] = {"step": state[old]["step"], **moments}
        self.members = [self.members[position] for position in positions]
        self.first = self.first[positions]
        self.campaigns = self._campaigns()


def _padded(parts: Sequence[Index]) -> Index:
    """As rows of one array, filled up with -1."""
    padded = np.full((len(parts), max(map(len, parts))), -1, np.int64)
    for row, part in zip(padded, parts, strict=True):
        row[: len(part)] = part
    return padded
