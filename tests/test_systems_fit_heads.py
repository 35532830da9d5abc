"""Heads fitted side by side are as alone; each is stopped by its own held-out seeds and pulled by its own teacher."""

from __future__ import annotations

import dataclasses
from itertools import islice

import numpy as np
import pytest
import torch

from lookalike.evaluation.metrics import auc
from lookalike.evaluation.systems.fit_heads import Fitted, HeadSettings, Lesson, Teacher, fit_heads, follow
from lookalike.model.baselines.heads import Heads
from lookalike.training.tasks import Samples


def no_tick(done: int, total: int) -> None:
    assert 0 <= done <= total


HEADS = HeadSettings(hidden=(8, 8), batch=32, max_epochs=8)


def lesson(number: int, size: int, vectors: torch.Tensor, teacher: Teacher | None = None) -> Lesson:
    """Users who like what points one way, a way for each lesson."""
    rng = np.random.default_rng([11, number])
    rows = rng.permutation(len(vectors))[:size]
    way = rng.standard_normal(vectors.shape[1])
    liking = vectors.numpy()[rows] @ way + 0.5 * rng.standard_normal(size)
    samples = Samples(rows, (liking > np.quantile(liking, 0.7)).astype(np.float32))
    return dataclasses.replace(Lesson.of(samples, 0.2, rng), teacher=teacher)


@pytest.fixture(scope="module")
def vectors() -> torch.Tensor:
    return torch.randn(500, 6, generator=torch.Generator().manual_seed(3))


def test_together_is_as_alone(vectors: torch.Tensor, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of many sizes, in groups, some leaving early: each head is what it would be without the others."""
    sizes = [10, 60, 400, 33, 150, 20, 90]
    kept: list[int] = []
    keep = Heads.keep

    def counted(heads: Heads, numbers: list[int]) -> None:
        kept.append(len(numbers))
        keep(heads, numbers)

    monkeypatch.setattr(Heads, "keep", counted)
    monkeypatch.setattr("lookalike.evaluation.systems.fit_heads.TOGETHER", 5)
    many = list(fit_heads(vectors, [lesson(*z, vectors) for z in enumerate(sizes)], 0.02, HEADS, no_tick))
    assert kept  # some went on without the others
    for number, (size, fitted) in enumerate(zip(sizes, many, strict=True)):
        (alone,) = fit_heads(vectors, [lesson(number, size, vectors)], 0.02, HEADS, no_tick)
        assert alone.samples == fitted.samples
        np.testing.assert_allclose(fitted.losses, alone.losses, rtol=1e-4)
        for ours, theirs in zip(fitted.parameters, alone.parameters, strict=True):
            torch.testing.assert_close(ours, theirs, rtol=1e-3, atol=1e-4)


def test_the_best_epoch_is_kept_and_patience_ends(vectors: torch.Tensor) -> None:
    one = lesson(0, 300, vectors)
    (fitted,) = fit_heads(vectors, [one], 0.02, dataclasses.replace(HEADS, max_epochs=100), no_tick)
    assert HEADS.patience < len(fitted.losses) < 100
    until_best = len(fitted.losses) - HEADS.patience
    short = dataclasses.replace(HEADS, max_epochs=until_best)
    (best,) = fit_heads(vectors, [lesson(0, 300, vectors)], 0.02, short, no_tick)
    for ours, theirs in zip(fitted.parameters, best.parameters, strict=True):
        torch.testing.assert_close(ours, theirs)
    held_out = one.held_out
    assert auc(held_out.labels.astype(np.int8), fitted.scores(vectors[torch.from_numpy(held_out.rows)]).numpy()) > 0.8


def test_a_head_that_diverges_stays_as_it_began(vectors: torch.Tensor) -> None:
    (fitted,) = fit_heads(vectors, [lesson(0, 300, vectors)], 1e30, HEADS, no_tick)
    assert len(fitted.losses) == HEADS.patience
    assert bool(torch.isfinite(fitted.scores(vectors)).all())


def test_a_teacher_pulls_the_student(vectors: torch.Tensor) -> None:
    """The more it weighs, the nearer the head is to it, over users of the pool."""
    rows = np.arange(len(vectors))
    probabilities = torch.sigmoid(3 * vectors[:, 0] - 1).numpy()

    def divergence(fitted: Fitted) -> float:
        p = torch.from_numpy(probabilities).double()
        q = fitted.scores(vectors).double().sigmoid()
        return float((p * (p / q).log() + (1 - p) * ((1 - p) / (1 - q)).log()).mean())

    settings = dataclasses.replace(HEADS, patience=30, max_epochs=30)
    divergences = []
    for weight in (0.0, 0.5, 1.0):
        teacher = Teacher(weight, rows, probabilities)
        (fitted,) = fit_heads(vectors, [lesson(4, 300, vectors, teacher)], 0.02, settings, no_tick)
        divergences.append(divergence(fitted))
    assert divergences[0] > 2 * divergences[1] > 2 * divergences[2]


def test_what_is_followed_is_what_is_fitted(vectors: torch.Tensor) -> None:
    """After as many steps as an epoch has, the head that a first epoch leaves; and it goes on after that."""
    settings = dataclasses.replace(HEADS, max_epochs=1)
    (fitted,) = fit_heads(vectors, [lesson(0, 300, vectors)], 0.02, settings, no_tick)
    one = lesson(0, 300, vectors)
    count = len(list(one.train.batches(settings.batch)))
    heads = list(islice(follow(vectors, one, 0.02, settings), count + 2))
    assert count > 1
    for ours, theirs in zip(heads[count], fitted.parameters, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=0, atol=0)
    for before, after in ((heads[0], heads[1]), (heads[count], heads[count + 1])):
        assert any(not torch.equal(*pair) for pair in zip(before, after, strict=True))
