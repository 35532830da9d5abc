"""Whatever engine scores the pool, the audience is the reference's, to the bit."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lookalike import _core
from lookalike.config import Config, ScoringConfig
from lookalike.dataset.layout import Dataset
from lookalike.errors import Cancelled, InternalError
from lookalike.expander import Expander
from lookalike.pool.bitmap import empty_bitmap, mark
from lookalike.pool.ingest import ingest
from lookalike.retrieval import rescoring
from lookalike.retrieval.receipt import Stage
from lookalike.retrieval.rescoring import Selection, candidates, rescore
from lookalike.retrieval.scan import scan
from lookalike.retrieval.topk import TopK
from lookalike.retrieval.verify import verify
from lookalike.scoring.compiled import TorchScriptEngine


@pytest.fixture(autouse=True)
def _few_are_enough(monkeypatch: pytest.MonkeyPatch) -> None:
    """Pools are small here; by default all of them would be scored again."""
    monkeypatch.setattr(rescoring, "LEAST", 20)
    monkeypatch.setattr(rescoring, "PLACES", 3)
    monkeypatch.setattr(rescoring, "NEIGHBOURS", 5)


class Given:
    """An engine whose scores are given, for users who are their row numbers."""

    name = "given"
    batch_size = 64

    def __init__(self, scores: Any) -> None:
        self.scores = np.asarray(scores, np.float32)
        self.asked: list[int] = []

    def score(self, users: Any) -> npt.NDArray[np.float32]:
        self.asked.extend(users.tolist())
        return self.scores[users]

    def score_into(self, top: _core.TopK, users: Any, first_row: int) -> None:
        top.push(self.scores[users], first_row, 1)


class Numbers:
    """A pool whose users are their row numbers."""

    def __init__(self, num_users: int) -> None:
        self.num_users = num_users
        self.shard_ends = (num_users // 3, num_users)

    def read(self, start: int, stop: int) -> npt.NDArray[np.int64]:
        return np.arange(start, stop)

    def take(self, rows: npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
        return rows


def found(
    near: Any, exact: Any, k: int, *, kept: int | None = None, skip: Any = None, reference: Any = None, **options: Any
) -> Selection:
    pool: Any = Numbers(len(near))
    engine: Any = Given(near)
    top = TopK(candidates(k, len(near)) if kept is None else kept, num_rows=len(near), skip=skip)
    scan(pool, engine, top)
    return rescore(pool, engine, reference or Given(exact), top, k, skip=skip, **options)


def sorted_by_hand(exact: Any, k: int, left_out: Any = ()) -> Selection:
    scores = np.asarray(exact, np.float32)
    allowed = np.setdiff1d(np.arange(len(scores)), np.asarray(left_out, np.int64))
    best = allowed[np.lexsort((allowed, -scores[allowed]))[:k]]
    ties = int(np.count_nonzero(scores[allowed] == scores[best[-1]])) if len(best) else 0
    return Selection(best, scores[best], len(allowed), len(scores) - len(allowed), ties)


def same(one: Selection, other: Selection) -> None:
    np.testing.assert_array_equal(one.rows, other.rows)
    np.testing.assert_array_equal(one.scores, other.scores)
    assert (one.users_scored, one.users_skipped) == (other.users_scored, other.users_skipped)
    assert one.ties_at_cutoff == other.ties_at_cutoff


@settings(max_examples=300)
@given(
    near=st.lists(st.sampled_from([0, 1e-30, 0.2, 0.5, 0.5001, 0.8, 0.99, 1]), min_size=1, max_size=300),
    error=st.sampled_from([0, 1e-6, 1e-3, 0.1, 0.9]),
    seed=st.integers(0, 9),
    k=st.integers(1, 300),
    left_out=st.sets(st.integers(0, 299)),
    crowded=st.booleans(),
)
def test_an_engine_that_is_near_gives_the_references_top_k(
    near: list[float], error: float, seed: int, k: int, left_out: set[int], crowded: bool
) -> None:
    """Ties, saturation, exclusions, few and many: as sorted by hand. Everybody is off by `error`, up or down."""
    scores = np.asarray(near, np.float32)
    sign = np.random.default_rng(seed).choice([-1.0, 1.0], len(scores))
    exact = (scores + sign * error * scores.astype(np.float64) * (1 - scores)).astype(np.float32)
    k = min(k, len(scores))
    skipped = [row for row in left_out if row < len(scores)]
    skip = empty_bitmap(len(scores))
    mark(skip, np.asarray(skipped, np.int64))
    selection = found(scores, exact, k, kept=k if crowded else None, skip=skip)
    same(selection, sorted_by_hand(exact, k, skipped))
    assert selection.users_rescored <= len(scores)
    assert selection.largest_error <= error + 1e-6


def test_no_more_are_scored_again_than_the_margin_asks_for() -> None:
    near = np.linspace(0.9, 0.1, 10_000, dtype=np.float32)
    exact = near * (1 + np.float32(1e-3) * (1 - near))
    selection = found(near, exact, 500)
    same(selection, sorted_by_hand(exact, 500))
    assert selection.epsilon == pytest.approx(2e-3, rel=0.01)
    # The sample, the members, and those within twice the margin: near scores descend by 8e-5 a row.
    assert 15 + 500 <= selection.users_rescored <= 15 + 500 + 10


def test_the_margin_is_measured_on_enough_users_and_over_the_whole_pool() -> None:
    """The best are right, and who is off is a little below: seen because `LEAST` are looked at, or by the sample."""
    near = np.linspace(0.9, 0.1, 1000, dtype=np.float32)
    exact = near.copy()
    exact[15] = 0.95
    same(found(near, exact, 3), sorted_by_hand(exact, 3))
    exact = near.copy()
    exact[rescoring._sample(1000)] += 0.05  # epsilon is .4 and more
    exact[60] = 0.96
    same(found(near, exact, 3), sorted_by_hand(exact, 3))


def test_a_pass_that_finds_larger_errors_is_made_again(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rescoring, "PLACES", 0)
    near = np.full(2000, 0.5, np.float32)  # the first of whom are right, so that nothing warns
    exact = near.copy()
    exact[1000:1005] = 0.5001
    near[50], exact[50] = 0.49995, 0.50012
    same(found(near, exact, 10, kept=10), sorted_by_hand(exact, 10))


def test_crowds_at_the_cutoff_are_scored_again_but_nobody_else() -> None:
    near = np.full(2000, 0.5, np.float32)
    near[100:1100] = 0.4
    skip = np.packbits(np.arange(2000) < 50, bitorder="little")
    reference = Given(near)
    selection = found(near, near, 10, kept=10, skip=skip, reference=reference)
    same(selection, sorted_by_hand(near, 10, np.arange(50)))
    assert selection.ties_at_cutoff == 950
    asked = set(reference.asked) - set(rescoring._sample(2000).tolist())
    assert asked == set(range(50, 100)) | set(range(1100, 2000)) - set(rescoring._sample(2000).tolist())
    assert selection.users_rescored == len(set(reference.asked))


def test_a_sum_of_rounded_weights_above_one_changes_nothing() -> None:
    exact = np.full(2000, 0.2, np.float32)
    near = exact.copy()
    exact[100:140] = np.float32(1.0000001)
    near[100:140] = np.linspace(0.9, 0.3, 40)
    same(found(near, exact, 5), sorted_by_hand(exact, 5))


def test_progress_ascends_and_a_second_pass_is_polled_too() -> None:
    near = np.full(2000, 0.5, np.float32)
    near[500:] = 0.1
    steps: list[tuple[int, int]] = []
    found(near, near, 10, kept=10, progress=lambda done, total: steps.append((done, total)))
    assert len({total for _, total in steps}) == 2  # the candidates, then the pool
    for total in {total for _, total in steps}:
        shares = [done for done, of in steps if of == total]
        assert shares == sorted(shares)
        assert max(shares) <= total
    blocks = [done for done, of in steps if of == 2000]
    with pytest.raises(Cancelled, match="scoring again"):
        found(near, near, 10, kept=10, cancelled=iter([False] * (len(steps) - 5) + [True]).__next__)
    assert len(blocks) >= 2000 // Given.batch_size


@pytest.mark.parametrize("passes", [1, 2])
def test_a_diverged_model_is_said_to_be_so(passes: int) -> None:
    near = np.full(2000, 0.5, np.float32)
    with pytest.raises(InternalError, match="the customised model scores NaN"):
        found(np.full(2000, np.nan), near, 10)
    broken = near.copy()
    broken[0 if passes == 1 else 1500] = np.nan
    with pytest.raises(InternalError, match="the customised model scores NaN"):
        found(near, broken, 10, kept=10)
    skip = np.packbits(np.isnan(broken), bitorder="little")  # who is left out may score what they will
    (row,) = np.flatnonzero(np.isnan(broken))
    assert row not in rescoring._sample(2000)
    same(found(near, broken, 10, kept=10, skip=skip), sorted_by_hand(near, 10, [row]))


@pytest.mark.parametrize("engine", ["native", "bfloat16", "torchscript"])
def test_the_audience_is_the_same_with_every_engine(
    engine: Any,
    expander: Expander,
    sample_checkpoint: Path,
    sample_pool: Path,
    small_config: Config,
    order: dict[str, Any],
    tmp_path: Path,
) -> None:
    config = replace(small_config, scoring=replace(small_config.scoring, engine=engine))
    audience = Expander.open(sample_checkpoint, sample_pool, config).expand(**order, output=tmp_path / "audience")
    receipt = audience.receipt
    assert receipt.engine == engine
    skipped = expander.pool.find(order["seeds"])
    reference = TorchScriptEngine(audience.path / "model.pt", ScoringConfig(device="cpu"))
    expected = sorted_by_hand(reference.score(expander.pool.read(0, expander.pool.num_users)), 300, skipped)
    same_rows = expander.pool.user_ids(expected.rows)
    members = audience.members(0, 300)
    assert members["user_id"].combine_chunks().equals(same_rows)
    np.testing.assert_array_equal(members["score"].to_numpy(), expected.scores)
    if engine == "torchscript":
        assert receipt.rescoring is None
    else:
        assert receipt.rescoring is not None
        assert 300 <= receipt.rescoring.users < expander.pool.num_users
        assert receipt.rescoring.epsilon >= 2 * receipt.rescoring.largest_error
        assert receipt.rescoring.epsilon_kind == "statistical"
    assert verify(audience.path, threads=1).passed


@pytest.mark.parametrize("engine", ["native", "bfloat16"])
def test_scoring_again_can_be_cancelled(
    engine: Any,
    sample_checkpoint: Path,
    sample_pool: Path,
    small_config: Config,
    order: dict[str, Any],
    tmp_path: Path,
) -> None:
    config = replace(small_config, scoring=replace(small_config.scoring, engine=engine))
    stages = []
    with pytest.raises(Cancelled, match="scoring again"):
        Expander.open(sample_checkpoint, sample_pool, config).expand(
            **order,
            output=tmp_path / "audience",
            progress=lambda step: stages.append(step.stage),
            cancelled=lambda: Stage.RESCORING in stages,
        )
    assert not list(tmp_path.iterdir())


def test_real_campaigns_have_the_same_audience_with_every_engine(real_dataset: Path, tmp_path: Path) -> None:
    """A barely trained model will do: it ranks, and its scores crowd."""
    from lookalike.training.pretraining import train

    dataset = Dataset.open(real_dataset)
    pool = ingest(dataset.users_path, tmp_path / "pool")
    config = Config()
    config = replace(
        config,
        training=replace(config.training, max_seconds=20.0),
        adaptation=replace(config.adaptation, max_epochs=2, enough_held_out_seeds=1),
    )
    train(dataset, pool, tmp_path / "checkpoint", config)
    for campaign in dataset.campaign_ids("test")[:5]:
        users, labels = dataset.samples(campaign, "seed")
        digests = set()
        for engine in ("native", "bfloat16", "torchscript"):
            chosen: Any = {"engine": engine, "device": "cpu"}
            expander = Expander.open(
                tmp_path / "checkpoint", tmp_path / "pool", replace(config, scoring=ScoringConfig(**chosen))
            )
            audience = expander.expand(
                campaign=str(campaign),
                features=dataset.campaign_features(campaign),
                seeds=users.filter(labels == 1),
                k=max(100, pool.num_users // 50),
                output=tmp_path / f"{campaign}-{engine}",
            )
            digests.add(audience.receipt.audience_sha256)
        assert len(digests) == 1
