"""Users and scores cross a process boundary unchanged, and nothing else is taken for them."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from lookalike import errors
from lookalike.runtime.score_job import ScoreJob, Scores
from lookalike.runtime.score_wire import job_from_bytes, job_to_bytes, scores_from_bytes, scores_to_bytes

INTEGERS = st.lists(st.integers(-(2**63), 2**63 - 1)).map(lambda values: pa.array(values, pa.int64()))
STRINGS = st.lists(st.text()).map(lambda values: pa.array(values, pa.large_string()))


def job(ids: pa.Array, **changes: object) -> ScoreJob:
    known = {"audience": Path("/a/ü"), "model_sha256": "m", "pool": Path("/p"), "user_ids": ids}
    return ScoreJob(**{**known, **changes})


@given(st.one_of(INTEGERS, STRINGS), st.integers(0, 5), st.booleans())
def test_a_job_comes_back(ids: pa.Array, start: int, with_ranks: bool) -> None:
    sent = job(ids.slice(start), with_ranks=with_ranks)
    back = job_from_bytes(bytearray(job_to_bytes(sent)))  # as TorchServe hands it over
    assert back.user_ids.equals(sent.user_ids)
    assert back.user_ids.type == sent.user_ids.type
    assert (back.audience, back.model_sha256, back.pool, back.with_ranks) == (Path("/a/ü"), "m", Path("/p"), with_ranks)


@given(st.lists(st.tuples(st.floats(width=32), st.booleans(), st.integers(0, 2**40), st.booleans())), st.booleans())
def test_scores_come_back_to_the_bit(rows: list[tuple[float, bool, int, bool]], with_ranks: bool) -> None:
    scores, found, ranks, members = (
        np.array([row[column] for row in rows], kind)
        for column, kind in enumerate((np.float32, np.bool_, np.int64, np.bool_))
    )
    sent = Scores(scores=scores, found=found, loaded=0.5)
    if with_ranks:
        sent = Scores(scores=scores, found=found, ranks=ranks, members=members)
    back = scores_from_bytes(scores_to_bytes(sent))
    assert back.scores.tobytes() == scores.tobytes()
    assert back.found.tolist() == found.tolist()
    assert back.loaded == sent.loaded
    assert (back.ranks is None, back.members is None) == (not with_ranks, not with_ranks)
    if with_ranks:
        assert back.ranks is not None
        assert back.members is not None
        assert (back.ranks.tolist(), back.members.tolist()) == (ranks.tolist(), members.tolist())


@pytest.mark.parametrize("data", [b"", b"\xff\xff\xff\x7f", b"\x02\0\0\0{}", job_to_bytes(job(pa.array([1, 2])))[:-3]])
def test_what_is_no_job_is_refused(data: bytes) -> None:
    with pytest.raises(errors.InvalidInput):
        job_from_bytes(data)
