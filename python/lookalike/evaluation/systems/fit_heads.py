"""Fits a small network on frozen vectors to each of many campaigns at once, and stops each as if it were alone.

Knows heads and samples; not where the vectors come from.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import partial

import numpy as np
import torch
from torch import Tensor, nn

from lookalike.evaluation.metrics import auc
from lookalike.evaluation.systems.system import Tick
from lookalike.model.baselines.heads import Heads, log_odds
from lookalike.training.stratified import split
from lookalike.training.tasks import Labels, Rows, Samples

# Heads side by side. From 8 to 64 it makes no difference; one at a time takes 1.6 times as long where campaigns are
# small (ml1m, 31 ms each together) and as long where products of matrices are all that counts (kuairand, 130 ms).
TOGETHER = 16
# Heads that have stopped are computed along until so few are still learning: to leave some out copies the others.
STILL_LEARNING = 0.75


@dataclass(frozen=True, kw_only=True)
class HeadSettings:
    hidden: tuple[int, ...] = (64, 64)
    batch: int = 512
    held_out: float = 0.2  # of the seeds, and of their negatives
    patience: int = 2  # epochs without gain on those before a campaign stops
    max_epochs: int = 30


@dataclass(frozen=True)
class Teacher:
    """What another model thinks of users of the pool: a head is pulled towards it.

    Attributes:
        weight: lambda of (1 - lambda) BCE(labels, head) + lambda KL(teacher || head), from 0 to 1. The divergence is
            reckoned without the teacher's own entropy, which no head can change.
        rows: `[users]` pool rows.
        probabilities: `[users]` that each is interested.
    """

    weight: float
    rows: Rows
    probabilities: Labels


@dataclass(frozen=True)
class Lesson:
    """What one campaign's head learns from, what it is judged by, and its own source of randomness."""

    train: Samples
    held_out: Samples
    rng: np.random.Generator
    teacher: Teacher | None = None

    @staticmethod
    def of(samples: Samples, held_out: float, rng: np.random.Generator) -> Lesson:
        """Of a campaign's samples, with a share of each label held out, one at least."""
        learnt, held = split(samples.labels, lambda count: max(1, round(held_out * count)), rng)
        return Lesson(samples.take(learnt), samples.take(held), rng)


@dataclass(frozen=True)
class Fitted:
    """A head: parameters of its best epoch, mean loss by epoch, samples whose gradient was taken, share of the time."""

    parameters: list[Tensor]
    losses: tuple[float, ...]
    samples: int
    seconds: float

    def scores(self, vectors: Tensor) -> Tensor:
        """Log-odds `[rows]` of vectors `[rows, inputs]`."""
        return log_odds(self.parameters, vectors.unsqueeze(0)).squeeze(0)


def fit_heads(
    vectors: Tensor, lessons: Sequence[Lesson], rate: float, settings: HeadSettings, tick: Tick
) -> Iterator[Fitted]:
    """Heads in the order of their lessons; each is what it would be without the others, up to rounding.

    Args:
        vectors: `[users of the pool, inputs]`.
        tick: called with epochs, done and at most.
    """
    total = len(lessons) * settings.max_epochs
    for first in range(0, len(lessons), TOGETHER):
        started = time.perf_counter()
        learners = [_Learner(lesson, settings) for lesson in lessons[first : first + TOGETHER]]
        _fit(vectors, learners, rate, partial(_shifted, tick, first * settings.max_epochs, total))
        seconds = time.perf_counter() - started
        seen = max(1, sum(learner.samples for learner in learners))
        for learner in learners:
            share = seconds * learner.samples / seen
            yield Fitted(learner.best, tuple(learner.losses), learner.samples, share)
    tick(total, total)


def follow(vectors: Tensor, lesson: Lesson, rate: float, settings: HeadSettings) -> Iterator[list[Tensor]]:
    """The steps that `fit_heads` takes for one lesson, to look at them: parameters before the first, after each."""
    learner = _Learner(lesson, settings)
    heads = _heads(vectors, [learner], rate)
    yield heads.of(0)
    while True:
        heads.step(_losses(heads, vectors, [learner.next_batch()]))
        yield heads.of(0)


def _shifted(tick: Tick, before: int, total: int, done: int) -> None:
    tick(before + done, total)


@dataclass
class _Learner:
    """A campaign on its way: its next batch, and the best of its head so far."""

    lesson: Lesson
    settings: HeadSettings
    best: list[Tensor] = field(default_factory=list)
    best_auc: float = -1.0
    best_epoch: int = 0
    losses: list[float] = field(default_factory=list)
    samples: int = 0
    stopped: bool = False

    def __post_init__(self) -> None:
        self._batches: list[Samples] = []
        self._epoch: list[float] = []

    @property
    def epochs(self) -> int:
        """Done or no longer needed."""
        return self.settings.max_epochs if self.stopped else len(self.losses)

    def next_batch(self) -> tuple[Rows, Labels, Labels]:
        """Pool rows, what their probabilities should be, and the weight of each in the loss; nothing once stopped."""
        if self.stopped:
            return np.zeros(0, np.int64), np.zeros(0, np.float32), np.zeros(0, np.float32)
        if not self._batches:
            self._batches = list(self.lesson.train.shuffled(self.lesson.rng).batches(self.settings.batch))[::-1]
        batch = self._batches.pop()
        self.samples += len(batch)
        weights = np.full(len(batch), 1 / len(batch), np.float32)
        teacher = self.lesson.teacher
        if teacher is None:
            return batch.rows, batch.labels, weights
        index = self.lesson.rng.integers(len(teacher.rows), size=self.settings.batch)
        taught = np.full(len(index), teacher.weight / len(index), np.float32)
        return (
            np.concatenate([batch.rows, teacher.rows[index]]),
            np.concatenate([batch.labels, teacher.probabilities[index]]),
            np.concatenate([(1 - teacher.weight) * weights, taught]),
        )

    def ended_epoch(self, loss: float) -> bool:
        """Take note of the loss of the last batch; whether it was an epoch's last."""
        self._epoch.append(loss)
        if self._batches:
            return False
        self.losses.append(float(np.mean(self._epoch)))
        self._epoch = []
        return True

    def judge(self, vectors: Tensor, head: list[Tensor]) -> None:
        """Keep the head if it ranks the held-out samples better than any before it, and stop when gains stop."""
        logits = log_odds(head, vectors[torch.from_numpy(self.lesson.held_out.rows)].unsqueeze(0)).squeeze(0).numpy()
        # One that has diverged is worse than any.
        value = auc(self.lesson.held_out.labels.astype(np.int8), logits) if np.isfinite(logits).all() else -1.0
        if value > self.best_auc:
            self.best, self.best_auc, self.best_epoch = head, value, len(self.losses)
        epochs = len(self.losses)
        self.stopped = epochs - self.best_epoch >= self.settings.patience or epochs == self.settings.max_epochs


def _heads(vectors: Tensor, learners: list[_Learner], rate: float) -> Heads:
    generators = [torch.Generator().manual_seed(int(learner.lesson.rng.integers(2**63))) for learner in learners]
    return Heads(vectors.shape[1], learners[0].settings.hidden, generators, rate)


def _fit(vectors: Tensor, learners: list[_Learner], rate: float, tick: Callable[[int], None]) -> None:
    heads = _heads(vectors, learners, rate)
    for number, learner in enumerate(learners):
        learner.best = heads.of(number)
    beside = learners  # whose heads are computed
    while True:
        tick(sum(learner.epochs for learner in learners))
        losses = _losses(heads, vectors, [learner.next_batch() for learner in beside])
        heads.step(losses)
        for number, loss in enumerate(losses.tolist()):
            if not beside[number].stopped and beside[number].ended_epoch(loss):
                beside[number].judge(vectors, heads.of(number))
        learning = [number for number, learner in enumerate(beside) if not learner.stopped]
        if not learning:
            return
        if len(learning) < STILL_LEARNING * len(beside):
            heads.keep(learning)
            beside = [beside[number] for number in learning]


def _losses(heads: Heads, vectors: Tensor, batches: list[tuple[Rows, Labels, Labels]]) -> Tensor:
    """The loss of each head on its batch, `[heads]`; shorter batches are padded with samples of weight 0."""
    longest = max(len(rows) for rows, _, _ in batches)
    index = np.zeros((len(batches), longest), np.int64)
    targets, weights = (np.zeros((len(batches), longest), np.float32) for _ in range(2))
    for number, (rows, target, weight) in enumerate(batches):
        index[number, : len(rows)] = rows
        targets[number, : len(rows)] = target
        weights[number, : len(rows)] = weight
    given = nn.functional.embedding(torch.from_numpy(index), vectors)  # [heads, longest, inputs]
    each = nn.functional.binary_cross_entropy_with_logits(heads(given), torch.from_numpy(targets), reduction="none")
    return (each * torch.from_numpy(weights)).sum(dim=1)
