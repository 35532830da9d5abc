"""Pre-training without meta-learning: one network on the samples of all training campaigns, mixed in every batch.

Knows stacked networks and tasks; knows nothing of adapting.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch

from lookalike.errors import InvalidInput
from lookalike.model.bags import unknown_ids
from lookalike.model.stacked import Campaigns, Users
from lookalike.pool.snapshot import Pool
from lookalike.training.general import EncodedUsers, General, Occurring
from lookalike.training.row_adam import RowAdam
from lookalike.training.tasks import Task

BATCH = 512  # the paper's, section 4.1


@dataclass(frozen=True)
class MixedConfig:
    """Adam's rate, how many samples to see, and the shares of ids that are replaced by unknown ones to train those."""

    lr: float
    samples: int
    campaign_id_dropout: float
    user_id_dropout: float


def train_mixed(
    general: General,
    pool: Pool,
    tasks: Sequence[Task],
    config: MixedConfig,
    rng: np.random.Generator,
    tick: Callable[[int, int], None],
) -> list[float]:
    """Train `general` in place; each task owns the heads of its number. Returns the loss of each batch.

    Raises:
        InvalidInput: the loss is no longer finite.
    """
    samples = _Mixed(tasks)
    users = EncodedUsers.of(pool, samples.rows, general.users)
    user_index = users.find(samples.rows)
    features = general.campaigns.encode([task.features for task in tasks])
    unknown_narrow, unknown_broad = unknown_ids(general.users.narrow), unknown_ids(general.users.broad)
    dense = torch.optim.Adam(general.network.parameters(), lr=config.lr, fused=True)
    sparse = RowAdam([general.broad], config.lr)
    losses = []
    seen = 0
    for index in samples.batches(config.samples, rng):
        tick(seen, config.samples)
        rows, owners = user_index[index], samples.owners[index]
        narrow = users.narrow.take(rows).with_unknown(config.user_id_dropout, unknown_narrow, rng)
        broad = users.broad.take(rows).with_unknown(config.user_id_dropout, unknown_broad, rng)
        campaign = features.take(owners).with_unknown(config.campaign_id_dropout, general.campaigns.unknown_of, rng)
        occurring = Occurring(broad, len(general.broad))
        where = torch.from_numpy(occurring.rows)
        table = general.broad.index_select(0, where).requires_grad_()
        log_odds = general.network(
            Users(narrow, occurring.entries), Campaigns(campaign, torch.from_numpy(owners)), table.unsqueeze(0)
        )
        labels = torch.from_numpy(samples.labels[index]).unsqueeze(0)
        loss = torch.nn.functional.binary_cross_entropy_with_logits(log_odds, labels)
        dense.zero_grad()
        torch.autograd.backward(loss)
        dense.step()
        sparse.update(general.broad, where, table)
        losses.append(loss.item())
        if not math.isfinite(losses[-1]):
            raise InvalidInput(f"pre-training diverged with a rate of {config.lr}: lower it", field="rates.offline")
        seen += len(index)
    tick(config.samples, config.samples)
    return losses


class _Mixed:
    """The samples of all tasks end to end."""

    def __init__(self, tasks: Sequence[Task]) -> None:
        self.rows = np.concatenate([task.samples.rows for task in tasks])
        self.labels = np.concatenate([task.samples.labels for task in tasks])
        self.owners = np.repeat(np.arange(len(tasks)), [len(task.samples) for task in tasks])

    def batches(self, total: int, rng: np.random.Generator) -> Iterator[npt.NDArray[np.int64]]:
        """`total` samples in batches, pass after pass, each in a new order."""
        while total > 0:
            order = rng.permutation(len(self.rows))[:total]
            total -= len(order)
            for start in range(0, len(order), BATCH):
                yield order[start : start + BATCH]
