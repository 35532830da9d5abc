"""Scores of given users are the audience's own, to the bit; ranks, members, and which models are kept."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from lookalike import errors
from lookalike.dataset.synthetic import simulate
from lookalike.expander import Expander
from lookalike.pool.ingest import ingest
from lookalike.pool.snapshot import Pool
from lookalike.retrieval.audience import Audience, write_members, write_receipt
from lookalike.retrieval.receipt import AUDIENCE_NAME, MODEL_NAME
from lookalike.runtime import score_execute
from lookalike.runtime.score_execute import ScoreExecutor, _Members
from lookalike.runtime.score_job import ScoreJob, Scores
from lookalike.scoring.compiled import TorchScriptEngine

PLENTY = 1 << 30


@pytest.fixture(scope="module")
def audience(expander: Expander, order: dict[str, Any], tmp_path_factory: pytest.TempPathFactory) -> Audience:
    """Chosen by the native engine, and scored again."""
    made = expander.expand(**order, output=tmp_path_factory.mktemp("scored") / "audience")
    assert made.receipt.engine == "native"
    return made


@pytest.fixture
def copies(audience: Audience, tmp_path: Path) -> Callable[[str], Audience]:
    def copy(name: str) -> Audience:
        shutil.copytree(audience.path, tmp_path / name)
        return Audience.open(tmp_path / name)

    return copy


def job(audience: Audience, pool: Pool, ids: Any, **changes: Any) -> ScoreJob:
    known = {"audience": audience.path, "model_sha256": audience.receipt.model_sha256, "pool": pool.path}
    return ScoreJob(**{**known, "user_ids": pa.array(ids, pool.id_type), **changes})


def score(audience: Audience, pool: Pool, ids: Any, **changes: Any) -> Scores:
    return ScoreExecutor(PLENTY).score(job(audience, pool, ids, **changes))


def test_members_score_what_the_audience_says_to_the_bit(audience: Audience, pool: Pool) -> None:
    members = audience.members(0, audience.num_members)
    expected = members["score"].to_numpy()
    executor = ScoreExecutor(PLENTY)
    draw = np.random.default_rng(0)
    for size in (1, 2, 100, 255, 256, 257, len(expected)):  # whoever else is asked for
        chosen = draw.permutation(len(expected))[:size]
        ids = members["user_id"].combine_chunks().take(pa.array(chosen))
        scores = executor.score(job(audience, pool, ids.to_pylist()))
        assert scores.found.all()
        assert scores.scores.tobytes() == expected[chosen].tobytes()


def test_everybody_scores_what_the_reference_says(audience: Audience, pool: Pool) -> None:
    engine = TorchScriptEngine(audience.path / MODEL_NAME)
    rows = np.random.default_rng(1).permutation(pool.num_users)
    scores = score(audience, pool, pool.user_ids(rows).to_pylist())
    assert scores.scores.tobytes() == engine.score(pool.take(rows)).tobytes()


def test_who_is_not_in_the_pool_is_marked_where_he_stands(audience: Audience, pool: Pool) -> None:
    known = pool.user_ids(np.array([5, 3])).to_pylist()
    mixed = score(audience, pool, [-7, known[0], -8, known[1], known[0], -9], with_ranks=True)
    alone = score(audience, pool, known)
    assert mixed.found.tolist() == [False, True, False, True, True, False]
    assert mixed.scores[[1, 3, 4]].tolist() == [alone.scores[0], alone.scores[1], alone.scores[0]]
    assert mixed.scores[[0, 2, 5]].tolist() == [0, 0, 0]
    assert mixed.ranks is not None
    assert mixed.members is not None
    assert mixed.ranks[[0, 2, 5]].tolist() == [0, 0, 0]
    assert not mixed.members[[0, 2, 5]].any()
    nobody = score(audience, pool, [-1, -2])
    assert nobody.found.tolist() == [False, False]


def test_ranks_and_members_are_the_audiences(audience: Audience, pool: Pool) -> None:
    ids = pool.user_ids(np.arange(pool.num_users))
    scores = score(audience, pool, ids.to_pylist(), with_ranks=True)
    table = audience.members(0, audience.num_members)
    members = dict(zip(table["user_id"].to_pylist(), table["rank"].to_pylist(), strict=True))
    assert scores.ranks is not None
    assert scores.members is not None
    assert {user for user, member in zip(ids.to_pylist(), scores.members, strict=True) if member} == members.keys()
    known = table["score"].to_numpy()
    for user, value, rank in zip(ids.to_pylist(), scores.scores, scores.ranks, strict=True):
        assert rank == 1 + np.count_nonzero(known > value)
        assert rank <= members.get(user, rank)


@given(st.data())
def test_ranks_by_any_scores_and_ids(data: st.DataObject) -> None:
    text = data.draw(st.booleans())
    ids = data.draw(st.lists(st.text(max_size=2) if text else st.integers(-5, 40), unique=True, max_size=30))
    values = [np.float32(v) for v in data.draw(st.lists(st.sampled_from([0.0, 0.25, 0.5, 1.0]), min_size=len(ids)))]
    score_of = dict(zip(ids, values, strict=False))
    # UTF-8 sorts as code points do.
    ranked = sorted(ids, key=lambda one: (-score_of[one], one))[: data.draw(st.integers(0, len(ids)))]
    kind = pa.large_string() if text else pa.int64()
    members = _Members.__new__(_Members)
    members._ids = pa.array(ranked, kind)
    members._falling = -np.array([score_of[one] for one in ranked], np.float32)
    ranks, among = members.ranks(pa.array(ids, kind), np.array([score_of[one] for one in ids], np.float32))
    assert among.tolist() == [one in ranked for one in ids]
    assert ranks.tolist() == [1 + sum(score_of[other] > score_of[one] for other in ranked) for one in ids]


def test_the_models_used_last_are_kept(copies: Callable[[str], Audience], pool: Pool) -> None:
    first, second, third = copies("first"), copies("second"), copies("third")
    size = (first.path / MODEL_NAME).stat().st_size
    executor = ScoreExecutor(4 * size + (5 << 20))

    def loaded(audience: Audience) -> bool:
        return executor.score(job(audience, pool, [1])).loaded > 0

    assert [loaded(one) for one in (first, second, first, second)] == [True, True, False, False]
    tight = ScoreExecutor(1)
    assert tight.score(job(first, pool, [1])).loaded > 0
    assert tight.score(job(first, pool, [1])).loaded == 0  # the one in use stays, whatever its size
    assert tight.score(job(third, pool, [1])).loaded > 0
    assert tight.models == 1
    assert tight.score(job(first, pool, [1])).loaded > 0


def test_a_loaded_audience_counts_its_members_too(copies: Callable[[str], Audience], pool: Pool) -> None:
    first, second = copies("first"), copies("second")
    executor = ScoreExecutor(2 * (2 * (first.path / MODEL_NAME).stat().st_size + (1 << 20)) + 100)
    executor.score(job(first, pool, [1]))
    executor.score(job(second, pool, [1]))
    assert executor.models == 2
    executor.score(job(second, pool, [1], with_ranks=True))  # 300 members, 12 bytes each
    assert executor.models == 1


def test_members_that_were_replaced_are_read_again(copies: Callable[[str], Audience], pool: Pool) -> None:
    changed, executor = copies("replaced"), ScoreExecutor(PLENTY)
    table = changed.members(0, changed.num_members)
    first = table["user_id"][0].as_py()

    def member() -> bool:
        members = executor.score(job(changed, pool, [first], with_ranks=True)).members
        assert members is not None
        return bool(members[0])

    assert member()
    rest = table.slice(1)
    write_members(changed.path / "new", rest["user_id"].combine_chunks(), rest["score"].to_numpy())
    (changed.path / "new").rename(changed.path / AUDIENCE_NAME)
    receipt = replace(changed.receipt, k=rest.num_rows)
    write_receipt(changed.path, receipt)
    assert not member()


def test_pages_are_asked_for_once_they_had_to_be_waited_for(monkeypatch: pytest.MonkeyPatch) -> None:
    waited = 0
    monkeypatch.setattr(score_execute, "_faults", lambda: waited)
    ahead = score_execute._Ahead()

    def asked(faults: int) -> bool:
        nonlocal waited
        with ahead as asks:
            waited += faults
        return asks

    assert [asked(score_execute.MAX_FAULTS) for _ in range(3)] == [False, False, False]
    for expected in (score_execute.ASK_REQUESTS, 2 * score_execute.ASK_REQUESTS):  # twice as long when in vain
        assert not asked(score_execute.MAX_FAULTS + 1)
        assert [asked(0) for _ in range(expected)] == [True] * expected
    assert not asked(0)
    assert not asked(score_execute.MAX_FAULTS + 1)
    assert [asked(100) for _ in range(score_execute.ASK_REQUESTS + 1)] == [True] * score_execute.ASK_REQUESTS + [False]


def test_scores_are_the_same_with_asking(audience: Audience, pool: Pool) -> None:
    ids = pool.user_ids(np.arange(0, pool.num_users, 3)).to_pylist()
    executor = ScoreExecutor(PLENTY)
    without = executor.score(job(audience, pool, ids))
    executor._ahead._left = 1
    assert executor.score(job(audience, pool, ids)).scores.tobytes() == without.scores.tobytes()
    assert executor._ahead._left == 0


def test_an_audience_that_is_gone(copies: Callable[[str], Audience], pool: Pool) -> None:
    gone = copies("gone")
    shutil.rmtree(gone.path)
    with pytest.raises(errors.NotFound, match="audience is gone"):
        score(gone, pool, [1])


def test_another_model_than_the_receipts(copies: Callable[[str], Audience], pool: Pool) -> None:
    changed = copies("changed")
    with (changed.path / MODEL_NAME).open("ab") as file:
        file.write(b"x")
    with pytest.raises(errors.DataCorrupted, match="not the model of the receipt"):
        score(changed, pool, [1])


def test_ids_of_another_type(audience: Audience, pool: Pool) -> None:
    with pytest.raises(errors.InvalidInput) as caught:
        score(audience, pool, [], user_ids=pa.array(["a"], pa.large_string()))
    assert caught.value.field == "users"


def test_a_pool_of_another_schema(audience: Audience, pool: Pool, tmp_path: Path) -> None:
    simulate(tmp_path / "other", users=300, campaigns=5, seed=8)
    ingest(tmp_path / "other" / "users.parquet", tmp_path / "pool")
    executor = ScoreExecutor(PLENTY)
    known = job(audience, pool, [1])
    executor.score(known)
    with pytest.raises(errors.FailedPrecondition) as caught:
        executor.score(replace(known, pool=tmp_path / "pool"))
    assert caught.value.reason == "SCHEMA_MISMATCH"
    executor.score(known)
