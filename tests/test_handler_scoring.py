"""The TorchServe handler of real-time scores, without a server."""

from __future__ import annotations

import json
import sys
import warnings
from typing import Any

import numpy as np
import pytest

with warnings.catch_warnings():
    warnings.simplefilter("ignore", ResourceWarning)  # `ts` leaves a file open when it is imported
    from ts.context import Context, RequestProcessor

from lookalike import errors
from lookalike.runtime.archive import handler_file
from lookalike.runtime.handling import PredictionException
from lookalike.runtime.score_job import ScoreJob, Scores
from lookalike.runtime.score_wire import job_to_bytes, scores_from_bytes
from lookalike.runtime.wire import error_from_text

sys.path.insert(0, str(handler_file("scoring.py").parent))
import scoring


class OneScore:
    """An executor that scores everybody alike, or fails."""

    def __init__(self, failure: Exception | None = None) -> None:
        self.failure = failure

    def score(self, job: ScoreJob) -> Scores:
        if self.failure is not None:
            raise self.failure
        users = len(job.user_ids)
        return Scores(scores=np.full(users, 0.5, np.float32), found=np.ones(users, np.bool_))


def answer(executor: OneScore, inputs: dict[str, bytes]) -> Any:
    handler = scoring.ScoringHandler()
    handler.executor = executor
    context = Context("lookalike-scoring", "", {}, 1, None, "0.12.0")
    context.request_ids = {0: "1"}
    context.request_processor = [RequestProcessor({})]
    (said,) = handler.handle([{name: bytearray(value) for name, value in inputs.items()}], context)
    assert context.get_response_headers(0)["ts_stream_next"] == "false"
    return said


@pytest.fixture
def request_bytes(tmp_path: Any) -> bytes:
    import pyarrow as pa

    return job_to_bytes(ScoreJob(audience=tmp_path, model_sha256="m", pool=tmp_path, user_ids=pa.array([1, 2, 3])))


def test_torchserve_finds_exactly_one_class() -> None:
    from ts.utils.util import list_classes_from_module

    assert list_classes_from_module(scoring) == [scoring.ScoringHandler]


def test_a_request_and_a_ping(request_bytes: bytes) -> None:
    assert scores_from_bytes(answer(OneScore(), {"job": request_bytes})).scores.tolist() == [0.5, 0.5, 0.5]
    assert "version" in json.loads(answer(OneScore(), {"ping": b"1"}))


@pytest.mark.parametrize(
    ("failure", "inputs", "code", "kind"),
    [
        (errors.NotFound("gone", field="audience"), None, 404, errors.NotFound),
        (errors.FailedPrecondition("schema"), None, 422, errors.FailedPrecondition),
        (ZeroDivisionError("secret"), None, 500, errors.InternalError),
        (None, {"job": b"none"}, 400, errors.InvalidInput),
        (None, {}, 400, errors.InvalidInput),
    ],
)
def test_errors_travel_as_json_under_a_code(
    failure: Exception | None,
    inputs: dict[str, bytes] | None,
    code: int,
    kind: type[errors.LookalikeError],
    request_bytes: bytes,
) -> None:
    with pytest.raises(PredictionException) as caught:
        answer(OneScore(failure), {"job": request_bytes} if inputs is None else inputs)
    assert caught.value.error_code == code
    assert isinstance(error_from_text(caught.value.message), kind)
    assert "secret" not in caught.value.message
