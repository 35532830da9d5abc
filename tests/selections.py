"""Scores to select from, and what must be selected of them: by sorting everything."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import numpy.typing as npt
from hypothesis import strategies as st

from lookalike import _core
from lookalike.retrieval.topk import Cutoff, TopK

Scores = npt.NDArray[np.float32]
LEVELS = _core.simd_levels()
UNALIGNED = np.frombuffer(b"\0" * 17, np.uint8)[1:].view(np.float32)
TINY = np.float32(1e-45)  # the smallest denormal


def sigmoid(values: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    return 1 / (1 + np.exp(-values))


def max_last(rng: np.random.Generator, n: int) -> npt.NDArray[np.float64]:
    values = rng.random(n)
    values[-1:] = 2
    return values


def high_run(rng: np.random.Generator, n: int) -> npt.NDArray[np.float64]:
    """The best lie together: a sample of a few places may miss them, or meet nothing else."""
    values = rng.random(n)
    values[n // 3 : n // 3 + n // 50] += 1
    return values


def high_in_step(rng: np.random.Generator, n: int) -> npt.NDArray[np.float64]:
    """The best lie at a regular distance, at which a sample may be taken too."""
    values = rng.random(n)
    values[::64] += 1
    return values


DISTRIBUTIONS: dict[str, Callable[[np.random.Generator, int], npt.NDArray[Any]]] = {
    "random": lambda rng, n: rng.standard_normal(n),
    "constant": lambda rng, n: np.full(n, 0.25),
    "sorted up": lambda rng, n: np.sort(rng.standard_normal(n)),
    "sorted down": lambda rng, n: np.sort(rng.standard_normal(n))[::-1],
    "few values": lambda rng, n: rng.integers(-2, 3, n),
    "sigmoid": lambda rng, n: sigmoid(6 + rng.standard_normal(n) / 10),
    "maximum last": max_last,
    "high run": high_run,
    "high in step": high_in_step,
    "NaN": lambda rng, n: np.where(rng.random(n) < 0.3, np.nan, rng.standard_normal(n)),
    "special": lambda rng, n: rng.choice(np.array([0.0, -0.0, np.inf, -np.inf, 1, -1, TINY, -TINY], np.float32), n),
    "denormals": lambda rng, n: rng.integers(-4, 5, n).astype(np.float32) * TINY,
}


def make(distribution: str, size: int, seed: int = 0) -> Scores:
    return np.ascontiguousarray(DISTRIBUTIONS[distribution](np.random.default_rng(seed), size), np.float32)


def ranking(scores: Scores, skipped: npt.NDArray[np.bool_]) -> npt.NDArray[np.int64]:
    """The rows that may be selected, best first."""
    rows = np.flatnonzero(~skipped & ~np.isnan(scores))
    return rows[np.argsort(-scores[rows], kind="stable")]


def cutoff_of(scores: Scores, ranked: npt.NDArray[np.int64], k: int) -> Cutoff | None:
    chosen = ranked[:k]
    if not len(chosen):
        return None
    last = scores[chosen[-1]]
    tied, selected = (int(np.count_nonzero(scores[part] == last)) for part in (ranked, chosen))
    return Cutoff(float(last), tied, selected)


def check(top: TopK, scores: Scores, k: int, skipped: npt.NDArray[np.bool_] | None = None) -> None:
    if skipped is None:
        skipped = np.zeros(len(scores), bool)
    ranked = ranking(scores, skipped)
    expected, cutoff = ranked[:k], cutoff_of(scores, ranked, k)
    assert top.cutoff == cutoff
    assert top.ties_at_cutoff == (cutoff.tied if cutoff else 0)
    if cutoff:
        assert top.threshold <= cutoff.score
    rows, found = top.finish()
    assert rows.dtype == np.uint32
    assert found.dtype == np.float32
    np.testing.assert_array_equal(rows, expected)
    np.testing.assert_array_equal(found, scores[expected])
    assert not np.signbit(found[found == 0]).any()
    unsorted_rows, unsorted_scores = top.finish(sorted=False)
    np.testing.assert_array_equal(np.sort(unsorted_rows), np.sort(rows))
    np.testing.assert_array_equal(scores[unsorted_rows], unsorted_scores)
    assert top.rows_seen == len(scores)
    assert top.rows_skipped == skipped.sum()
    assert top.nan_count == np.isnan(scores[~skipped]).sum()


def chunks(size: int, chunk: int) -> list[slice]:
    return [slice(begin, begin + chunk) for begin in range(0, size, chunk)]


@st.composite
def streams(draw: st.DrawFn) -> tuple[Scores, int, int, int]:
    """Scores, k, chunk and a seed."""
    size = draw(st.one_of(st.integers(0, 300), st.sampled_from([4095, 12_000])))
    k = draw(st.one_of(st.sampled_from([0, 1, size // 2, size, size + 7, 2**40]), st.integers(0, size)))
    # One score at a time only where there are few of them.
    chunk = draw(st.one_of(st.integers(1 if size <= 300 else 61, size + 1), st.sampled_from([64, 1000])))
    seed = draw(st.integers(0, 2**32 - 1))
    return make(draw(st.sampled_from(sorted(DISTRIBUTIONS))), size, seed), k, chunk, seed
