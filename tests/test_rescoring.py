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
from lookalike.pool.snapshot import Pool
from lookalike.retrieval import rescoring
from lookalike.retrieval.receipt import Stage
from lookalike.retrieval.rescoring import Selection, candidates, rescore
from lookalike.retrieval.scan import scan
from lookalike.retrieval.topk import TopK
from lookalike.retrieval.verify import verify
from lookalike.schema import EncodedColumns
from lookalike.scoring.compiled import TorchScriptEngine

LEAST = 40


@pytest.fixture(autouse=True)
def _few_are_enough(monkeypatch: pytest.MonkeyPatch) -> None:
    """Pools are small here; by default all of them would be scored again."""
    monkeypatch.setattr(rescoring, "LEAST", LEAST)


@pytest.fixture(scope="module")
def model(expander: Expander, order: dict[str, Any], tmp_path_factory: pytest.TempPathFactory) -> Path:
    return expander.expand(**order, output=tmp_path_factory.mktemp("model") / "audience").path / "model.pt"


@pytest.fixture(scope="module")
def reference(model: Path) -> TorchScriptEngine:
    return TorchScriptEngine(model, ScoringConfig(device="cpu", threads=1))


class Rounding:
    """An engine that is off: the reference's log-odds, rounded to multiples of `step`."""

    name = "rounding"
    exact = False
    batch_size = 300

    def __init__(self, reference: TorchScriptEngine, step: float) -> None:
        self.reference = reference
        self.step = step

    def score(self, users: EncodedColumns) -> npt.NDArray[np.float32]:
        p = self.reference.score(users).astype(np.float64)
        rounded = np.round(np.log(p / (1 - p)) / self.step) * self.step
        return (1 / (1 + np.exp(-rounded))).astype(np.float32)

    def score_into(self, top: _core.TopK, users: EncodedColumns, first_row: int) -> None:
        top.push(self.score(users), first_row, 1)


def by_hand(pool: Pool, reference: TorchScriptEngine, k: int, left_out: npt.NDArray[np.int64]) -> Selection:
    scores = reference.score(pool.read(0, pool.num_users))
    allowed = np.setdiff1d(np.arange(pool.num_users), left_out)
    best = allowed[np.lexsort((allowed, -scores[allowed]))[:k]]
    ties = int(np.count_nonzero(scores[allowed] == scores[best[-1]]))
    return Selection(best, scores[best], len(allowed), len(left_out), ties)


@settings(deadline=None, max_examples=40)
@given(
    k=st.integers(1, 2100),
    step=st.sampled_from([1e-6, 1e-3, 0.02, 0.3, 3.0]),
    left_out=st.sampled_from([0, 1, 700, 1990]),
    kept=st.sampled_from([None, 0]),
)
def test_any_engine_gives_the_references_top_k(
    expander: Expander, reference: TorchScriptEngine, k: int, step: float, left_out: int, kept: int | None
) -> None:
    pool = expander.pool
    k = min(k, pool.num_users)
    skipped = np.random.default_rng(k).choice(pool.num_users, left_out, replace=False)
    skip = empty_bitmap(pool.num_users)
    mark(skip, skipped)
    engine = Rounding(reference, step)
    # With nothing kept beyond k, scores are always too crowded, and a second pass is made.
    top = TopK(candidates(k, pool.num_users) if kept is None else k, num_rows=pool.num_users, skip=skip)
    scan(pool, engine, top)
    found = rescore(pool, engine, reference, top, k, skip=skip)
    expected = by_hand(pool, reference, k, skipped)
    np.testing.assert_array_equal(found.rows, expected.rows)
    np.testing.assert_array_equal(found.scores, expected.scores)
    assert (found.users_scored, found.users_skipped) == (expected.users_scored, expected.users_skipped)
    assert found.ties_at_cutoff == expected.ties_at_cutoff
    assert found.epsilon >= found.largest_error
    if step < 1:
        assert found.largest_error < 0.6 * step + 1e-4  # half a step, and what the measure bends near 0 and 1


def test_no_more_are_scored_again_than_the_margin_asks_for(expander: Expander, reference: TorchScriptEngine) -> None:
    engine = Rounding(reference, 1e-4)
    top = TopK(candidates(200, expander.pool.num_users), num_rows=expander.pool.num_users)
    scan(expander.pool, engine, top)
    assert 200 <= rescore(expander.pool, engine, reference, top, 200).users_rescored < 230


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
    expected = by_hand(
        expander.pool, TorchScriptEngine(audience.path / "model.pt", ScoringConfig(device="cpu")), 300, skipped
    )
    members = audience.members(0, 300)
    assert members["user_id"].combine_chunks().equals(expander.pool.user_ids(expected.rows))
    np.testing.assert_array_equal(members["score"].to_numpy(), expected.scores)
    if engine == "torchscript":
        assert receipt.rescoring is None
    else:
        assert receipt.rescoring is not None
        assert 300 <= receipt.rescoring.users < expander.pool.num_users
        assert receipt.rescoring.epsilon == 2 * receipt.rescoring.largest_error > 0
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


def test_a_diverged_model_is_said_to_be_so(expander: Expander, reference: TorchScriptEngine) -> None:
    class Diverged(Rounding):
        def score(self, users: EncodedColumns) -> npt.NDArray[np.float32]:
            return np.full(users.length, np.nan, np.float32)

    top = TopK(10, num_rows=expander.pool.num_users)
    with pytest.raises(InternalError, match="NaN"):
        scan(expander.pool, Diverged(reference, 1), top)
    near = Rounding(reference, 1e-3)
    scan(expander.pool, near, top := TopK(10, num_rows=expander.pool.num_users))
    with pytest.raises(InternalError, match="NaN"):
        rescore(expander.pool, near, Diverged(reference, 1), top, 5)


def test_real_campaigns_have_the_same_audience_with_every_engine(real_dataset: Path, tmp_path: Path) -> None:
    """A barely trained model will do: it ranks, and its scores crowd."""
    from lookalike.training.meta import train

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
