"""How good a ranking is against known labels: AUC, precision and recall among the first 5%.

Knows arrays only: no models, no campaigns, no datasets.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from lookalike.errors import InvalidInput

Labels = npt.NDArray[np.integer[Any]]
Scores = npt.NDArray[np.floating[Any]]

TOP_SHARE = 0.05


@dataclass(frozen=True)
class Metrics:
    """Of one campaign: `k = floor(0.05 * users)` users are the top; `positives` of all `users` are labelled 1."""

    auc: float
    precision: float
    recall: float
    k: int
    users: int
    positives: int


def evaluate(labels: Labels, scores: Scores, user_ids: npt.ArrayLike) -> Metrics:
    """All metrics of one campaign's ranking. `labels`, `scores`, `user_ids` (integers or strings): `[users]`.

    Raises:
        InvalidInput: lengths differ, scores hold NaN, labels are not both 0 and 1, or there are fewer than 20 users.
    """
    precision, recall = precision_recall(labels, scores, user_ids)
    positives = int(np.count_nonzero(labels))
    return Metrics(auc(labels, scores), precision, recall, int(TOP_SHARE * len(labels)), len(labels), positives)


def auc(labels: Labels, scores: Scores) -> float:
    """Chance that a random positive scores above a random negative, ties counting one half.

    Raises:
        InvalidInput: lengths differ, scores hold NaN, or labels are not both 0 and 1.
    """
    labels, scores = _checked(labels, scores)
    positives = int(np.count_nonzero(labels))
    negatives = len(labels) - positives
    above = _ranks(scores)[labels == 1].sum() - positives * (positives + 1) / 2
    return float(above / (positives * negatives))


def pooled_auc(rankings: Sequence[tuple[Labels, Scores]]) -> float:
    """AUC over the users of all campaigns at once, given as `(labels, scores)`, `[users]` each.

    Scores of models adapted apart share no scale, so a user counts by rank among the candidates of the campaign, as a
    share of them. Large campaigns weigh more than they do in a mean over campaigns.

    Raises:
        InvalidInput: as `auc`, of any campaign; or there is none.
    """
    if not rankings:
        raise InvalidInput("no campaign to pool; give one at least", field="rankings")
    checked = [_checked(labels, scores) for labels, scores in rankings]
    shares = [(_ranks(scores) - 0.5) / len(scores) for _, scores in checked]
    return auc(np.concatenate([labels for labels, _ in checked]), np.concatenate(shares))


def _ranks(scores: Scores) -> npt.NDArray[np.float64]:
    """Ranks from 1, ascending; ties share the mean of theirs."""
    _, group, size = np.unique(scores, return_inverse=True, return_counts=True)
    ranks: npt.NDArray[np.float64] = (np.cumsum(size) - (size - 1) / 2)[group]
    return ranks


def precision_recall(
    labels: Labels, scores: Scores, user_ids: npt.ArrayLike, share: float = TOP_SHARE
) -> tuple[float, float]:
    """Precision and recall of the `floor(share * users)` best; ties fall by a hash of the user id, never by position.

    Raises:
        InvalidInput: lengths differ, scores hold NaN, labels are not both 0 and 1, or the top is empty.
    """
    labels, scores = _checked(labels, scores)
    ids = np.asarray(user_ids)
    if ids.shape != scores.shape:
        raise InvalidInput(f"{len(ids)} user ids for {len(scores)} scores", field="user_ids")
    k = int(share * len(scores))
    if k < 1:
        raise InvalidInput(f"{share:.0%} of {len(scores)} users is nobody; give more users", field="scores")
    cutoff = np.partition(scores, len(scores) - k)[len(scores) - k]
    hits = int(np.count_nonzero(labels[scores > cutoff]))
    tied = np.flatnonzero(scores == cutoff)
    free = k - int(np.count_nonzero(scores > cutoff))
    chosen = tied[np.argsort(_hashes(ids[tied]), kind="stable")[:free]]
    hits += int(np.count_nonzero(labels[chosen]))
    return hits / k, hits / int(np.count_nonzero(labels))


def _checked(labels: Labels, scores: Scores) -> tuple[Labels, Scores]:
    labels, scores = np.asarray(labels), np.asarray(scores)
    if labels.ndim != 1 or labels.shape != scores.shape:
        raise InvalidInput(f"labels {labels.shape} and scores {scores.shape} must be one row each", field="labels")
    if np.isnan(scores).any():
        raise InvalidInput("scores hold NaN", field="scores")
    if not np.array_equal(np.unique(labels), [0, 1]):
        raise InvalidInput("labels must hold both 0 and 1, and nothing else", field="labels")
    return labels, scores


def _hashes(ids: npt.NDArray[Any]) -> npt.NDArray[np.uint64]:
    """64 well-mixed bits an id: no order of ids, times of joining say, can favour anyone."""
    if ids.dtype.kind not in "iu":
        digests = [hashlib.blake2b(str(i).encode(), digest_size=8).digest() for i in ids.tolist()]
        return np.frombuffer(b"".join(digests), np.uint64)
    with np.errstate(over="ignore"):  # splitmix64
        mixed = ids.astype(np.uint64) + np.uint64(0x9E3779B97F4A7C15)
        mixed = (mixed ^ (mixed >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
        mixed = (mixed ^ (mixed >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
        return mixed ^ (mixed >> np.uint64(31))
