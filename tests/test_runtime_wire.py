"""Jobs, progress and errors cross a process boundary unchanged."""

from __future__ import annotations

import inspect
import json
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lookalike import errors
from lookalike.retrieval.receipt import Progress, Stage
from lookalike.runtime.job import ExpansionJob
from lookalike.runtime.wire import (
    MAX_MESSAGE,
    error_from_text,
    error_to_json,
    job_from_json,
    job_to_json,
    progress_from_json,
    progress_to_json,
)

KINDS = [
    kind
    for _, kind in inspect.getmembers(errors, inspect.isclass)
    if issubclass(kind, errors.LookalikeError) and kind is not errors.LookalikeError
]
TEXT = st.text(st.characters(exclude_categories=["Cs"]))
VALUES = st.none() | TEXT | st.integers(-(2**63), 2**63 - 1) | st.floats(allow_nan=False, allow_infinity=False)
VALUES |= st.lists(TEXT | st.integers(-(2**63), 2**63 - 1))


@given(
    features=st.dictionaries(TEXT, VALUES),
    k=st.integers(1, 2**32 - 1),
    random_seed=st.integers(0, 2**32 - 1),
    include_seeds=st.booleans(),
    name=TEXT,
    filter=TEXT,
    exclusions=st.none() | st.just(Path("/a b/ü.parquet")),
)
def test_a_job(
    features: dict[str, object],
    k: int,
    random_seed: int,
    include_seeds: bool,
    name: str,
    filter: str,  # noqa: A002
    exclusions: Path | None,
) -> None:
    job = ExpansionJob(
        job_id="j",
        campaign=name,
        features=features,
        seeds=Path("/a b/é.parquet"),
        k=k,
        pool=Path("/pool"),
        output=Path("/out"),
        cancel_flag=Path("/flag"),
        checkpoint="c",
        include_seeds=include_seeds,
        random_seed=random_seed,
        filter=filter,
        exclusions=exclusions,
    )
    back = job_from_json(json.loads(json.dumps(job_to_json(job))))
    assert back == job
    assert [type(value) for value in back.features.values()] == [type(value) for value in features.values()]


def test_a_job_with_a_field_missing() -> None:
    with pytest.raises(errors.InvalidInput) as caught:
        job_from_json({"job_id": "j"})
    assert caught.value.field == "job.campaign"


@given(stage=st.sampled_from(Stage), done=st.integers(0), total=st.integers(0))
def test_progress(stage: Stage, done: int, total: int) -> None:
    progress = Progress(stage, done, total)
    assert progress_from_json(json.loads(json.dumps(progress_to_json(progress)))) == progress


def test_what_is_no_progress() -> None:
    with pytest.raises(errors.InternalError):
        progress_from_json({"stage": "RESTING"})


@given(
    kind=st.sampled_from(KINDS), message=st.text(max_size=MAX_MESSAGE), field=st.none() | TEXT, reason=st.none() | TEXT
)
def test_an_error(kind: type[errors.LookalikeError], message: str, field: str | None, reason: str | None) -> None:
    error = kind(message, field=field, reason=reason)
    back = error_from_text(json.dumps(error_to_json(error)))
    assert type(back) is kind
    assert (back.message, back.field, back.reason) == (error.message, error.field, error.reason)


def test_a_long_error_is_cut() -> None:
    assert len(error_to_json(errors.NotFound("x" * 10_000))["message"]) == MAX_MESSAGE


@pytest.mark.parametrize("text", ["", "Worker died.", "[]", "{}", '{"class": "NOT_FOUND"}', "null"])
def test_what_is_no_error_of_ours(text: str) -> None:
    assert error_from_text(text) is None
