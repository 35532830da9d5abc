"""Campaigns as training tasks: whose users, which labels, and how support and query sets are drawn.

Knows `dataset` and `pool`; knows nothing of networks.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from lookalike.dataset.layout import CampaignId, Dataset, Split
from lookalike.errors import InvalidInput
from lookalike.pool.snapshot import Pool
from lookalike.schema import EncodedColumns, FeatureSchema

# Campaigns that validate: so many tell their mean AUC to 0.01 or better, and any more could rather be learnt from. With
# joint training they are in memory at the end, 10 MB each or so.
MOST_HELD_OUT = 200

Rows = npt.NDArray[np.int64]
Labels = npt.NDArray[np.float32]


@dataclass(frozen=True)
class Samples:
    """Users of one campaign: pool rows `[n]` and labels `[n]` (1 interested, 0 not)."""

    rows: Rows
    labels: Labels

    def __len__(self) -> int:
        return len(self.rows)

    def take(self, index: npt.NDArray[np.integer[Any]]) -> Samples:
        """The samples at `index`, in that order."""
        return Samples(self.rows[index], self.labels[index])

    def shuffled(self, rng: np.random.Generator) -> Samples:
        """The same samples in another order."""
        return self.take(rng.permutation(len(self)))

    def batches(self, size: int) -> Iterator[Samples]:
        """In order, as many as it takes to be nearest to `size`, all of nearly one length."""
        count = max(1, round(len(self) / size))
        for index in np.array_split(np.arange(len(self)), count):
            yield self.take(index)

    @property
    def interested(self) -> Rows:
        """Pool rows of those with label 1, in order."""
        found: Rows = self.rows[self.labels == 1]
        return found

    @property
    def trainable(self) -> bool:
        """Whether both labels occur."""
        return bool(self.labels.any()) and not bool(self.labels.all())

    @staticmethod
    def concat(*parts: Samples) -> Samples:
        """All samples of the parts, in order."""
        return Samples(np.concatenate([p.rows for p in parts]), np.concatenate([p.labels for p in parts]))


@dataclass(frozen=True)
class Task:
    """One campaign. `seeds` is what a marketer hands in (with negatives), `audience` the feedback that came later."""

    campaign_id: CampaignId
    features: EncodedColumns  # one row
    seeds: Samples
    audience: Samples

    @cached_property
    def samples(self) -> Samples:
        """Seeds and feedback together, as the general model learns from both (paper section 3.5).

        Each user once, so that disjoint sets of samples are disjoint sets of users; interested if ever so.
        """
        both = Samples.concat(self.seeds, self.audience)
        rows, where = np.unique(both.rows, return_inverse=True)
        labels = np.zeros(len(rows), np.float32)
        np.maximum.at(labels, where, both.labels)
        return Samples(rows, labels)

    def support_and_query(self, support: int, query: int, rng: np.random.Generator) -> tuple[Samples, Samples]:
        """Two disjoint random sets (Algorithm 1, line 5), in the same proportion where the campaign is small."""
        total = min(support + query, len(self.samples))
        index = rng.choice(len(self.samples), total, replace=False, shuffle=True)
        cut = total * support // (support + query)
        return self.samples.take(index[:cut]), self.samples.take(index[cut:])


def load_tasks(dataset: Dataset, pool: Pool, campaigns: FeatureSchema, split: Split) -> list[Task]:
    """The tasks of a split whose samples hold both labels; users the pool lacks are left out.

    Raises:
        InvalidInput: no usable campaign is left.
    """
    tasks = []
    for campaign_id in dataset.campaign_ids(split):
        features = campaigns.encode_features(dataset.campaign_features(campaign_id), where="campaigns.parquet")
        seeds, audience = (_samples(dataset, pool, campaign_id, stage) for stage in ("seed", "audience"))
        task = Task(campaign_id, features, seeds, audience)
        if task.samples.trainable and len(task.samples) >= 4:
            tasks.append(task)
    if not tasks:
        raise InvalidInput(
            f"no '{split}' campaign of {dataset.path} has both labels among the users of the pool {pool.path}: "
            "is the pool made from this dataset's users?",
            field="samples.parquet",
        )
    return tasks


def _samples(dataset: Dataset, pool: Pool, campaign_id: CampaignId, stage: Literal["seed", "audience"]) -> Samples:
    user_ids, labels = dataset.samples(campaign_id, stage)
    rows = pool.find(user_ids)
    found = rows >= 0
    return Samples(rows[found], labels[found].astype(np.float32))


def digest(tasks: list[Task]) -> str:
    """SHA-256 of all campaigns, users and labels: a resumed run must see what the first saw."""
    seen = hashlib.sha256()
    for task in tasks:
        seen.update(repr(task.campaign_id).encode())
        for samples in (task.seeds, task.audience):
            seen.update(samples.rows.tobytes() + samples.labels.tobytes())
    return seen.hexdigest()


def hold_out(tasks: list[Task], share: float, rng: np.random.Generator) -> tuple[list[Task], list[Task]]:
    """Split off a share of the tasks for validation, `MOST_HELD_OUT` at most; of two tasks, one stays on each side."""
    count = min(max(1, round(len(tasks) * share)), len(tasks) - 1, MOST_HELD_OUT) if share > 0 else 0
    held = set(rng.choice(len(tasks), count, replace=False).tolist())
    return [t for i, t in enumerate(tasks) if i not in held], [t for i, t in enumerate(tasks) if i in held]


def base_rate(tasks: Sequence[Task]) -> float:
    """The share of positives among the samples of all tasks."""
    positives = sum(float(task.samples.labels.sum()) for task in tasks)
    return positives / sum(len(task.samples) for task in tasks)


def sampling_weights(tasks: list[Task], how: Literal["size", "sqrt", "uniform"]) -> npt.NDArray[np.float64]:
    """Probability of each task to be drawn `[tasks]`."""
    exponent = {"size": 1.0, "sqrt": 0.5, "uniform": 0.0}[how]
    weights = np.array([len(task.samples) for task in tasks], np.float64) ** exponent
    normalised: npt.NDArray[np.float64] = weights / weights.sum()
    return normalised
