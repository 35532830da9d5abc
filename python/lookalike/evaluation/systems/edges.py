"""The training campaigns as one labelled bipartite graph, and draws from it.

Knows tasks and pools; not what is learnt from them.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import numpy.typing as npt

from lookalike.errors import InvalidInput
from lookalike.evaluation.systems.system import History
from lookalike.model.bags import Entries
from lookalike.model.baselines.pooled_fields import PooledFields
from lookalike.training.tasks import Rows

Booleans = npt.NDArray[np.bool_]

# Users of a pool at a time: their features and what is computed of them take a few MiB.
BLOCK = 8192


@dataclass(frozen=True)
class Edges:
    """Samples of all training campaigns, campaign by campaign.

    Attributes:
        rows: `[users]` pool rows of the users that occur, ascending, each once.
        users: `[edges]` index into `rows`.
        campaigns: `[edges]` index into the history's tasks.
        liked: `[edges]`, whether the user is interested.
    """

    rows: Rows
    users: Rows
    campaigns: Rows
    liked: Booleans

    @staticmethod
    def of(history: History) -> Edges:
        """Seeds and feedback of every training campaign.

        Raises:
            InvalidInput: no training campaign has both users who are interested and users who are not.
        """
        samples = [task.samples for task in history.tasks]
        if not any(s.trainable for s in samples):
            raise InvalidInput(
                "no training campaign has both interested users and others: give samples of both labels",
                field="samples.parquet",
            )
        rows, users = np.unique(np.concatenate([s.rows for s in samples]), return_inverse=True)
        campaigns = np.repeat(np.arange(len(samples)), [len(s) for s in samples])
        return Edges(rows, users, campaigns, np.concatenate([s.labels for s in samples]) > 0)

    @cached_property
    def likes(self) -> Rows:
        """The edges of interested users, ascending."""
        return np.flatnonzero(self.liked)

    @cached_property
    def dislikes(self) -> Rows:
        """The other edges, ascending."""
        return np.flatnonzero(~self.liked)

    def known_to_like(self, users: Rows, campaigns: Rows) -> Booleans:
        """Which pairs are edges of interested users, `[pairs]`; both index as the attributes do."""
        keys = self._key(users, campaigns)
        where = np.searchsorted(self._liked_keys, keys)
        found: Booleans = self._liked_keys[np.minimum(where, len(self._liked_keys) - 1)] == keys
        return found

    @cached_property
    def _liked_keys(self) -> Rows:
        return np.sort(self._key(self.users[self.likes], self.campaigns[self.likes]))

    def _key(self, users: Rows, campaigns: Rows) -> Rows:
        return campaigns * len(self.rows) + users

    def find(self, rows: Rows) -> Rows:
        """Where pool rows `[n]` are in `rows`; its length for those that are not."""
        where = np.searchsorted(self.rows, rows)
        found = self.rows[np.minimum(where, len(self.rows) - 1)] == rows
        return np.where(found, where, len(self.rows))

    def encode(self, history: History, fields: PooledFields) -> Entries:
        """Features of the users that occur, in the order of `rows`."""
        return fields.encode(history.pool.take(self.rows))


def draws(count: int, samples: int, size: int, rng: np.random.Generator) -> Iterator[Rows]:
    """`samples` of the numbers below `count` in batches of `size`: all in random order, then all again in another."""
    order = np.zeros(0, np.int64)
    for done in range(0, samples, size):
        wanted = min(size, samples - done)
        while len(order) < wanted:
            order = np.concatenate([order, rng.permutation(count)])
        batch, order = np.split(order, [wanted])
        yield batch


def blocks(history: History, fields: PooledFields) -> Iterator[tuple[Rows, Entries]]:
    """Rows and features of the whole pool, in row order."""
    for start, columns in history.pool.blocks(BLOCK):
        yield np.arange(start, start + columns.length), fields.encode(columns)
