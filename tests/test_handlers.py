"""The TorchServe handler, with TorchServe's own classes around it but no server."""

from __future__ import annotations

import io
import json
import logging
import socket
import struct
import sys
import threading
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

with warnings.catch_warnings():
    warnings.simplefilter("ignore", ResourceWarning)  # `ts` leaves a file open when it is imported
    from ts.context import Context, RequestProcessor

from lookalike import errors, logs
from lookalike.retrieval.receipt import Progress, Stage
from lookalike.runtime.archive import handler_file
from lookalike.runtime.handling import PredictionException, configuration
from lookalike.runtime.job import ExpansionJob
from lookalike.runtime.wire import error_from_text, job_to_json

sys.path.insert(0, str(handler_file().parent))
import expansion


@pytest.fixture
def lines() -> Iterator[Callable[[], list[dict[str, Any]]]]:
    """What the package logs as JSON meanwhile."""
    stream = io.StringIO()
    target = logging.getLogger("lookalike")
    before = (list(target.handlers), target.level, target.propagate)
    logs.configure("json", stream, logger="lookalike", level=logging.INFO)
    yield lambda: [json.loads(line) for line in stream.getvalue().splitlines()]
    target.handlers[:], target.level, target.propagate = before


class FakeExecutor:
    def __init__(self, play: Callable[[Any, Any], None]) -> None:
        self.play = play
        self.jobs: list[ExpansionJob] = []

    def run(self, job: ExpansionJob, progress: Any, stopped: Any) -> None:
        self.jobs.append(job)
        self.play(progress, stopped)


class Worker:
    """A handler as a TorchServe worker holds it, and the frontend's end of its socket."""

    def __init__(self, play: Callable[[Any, Any], None] = lambda progress, stopped: None) -> None:
        self.handler = expansion.ExpansionHandler()
        self.handler.checkpoint_sha256 = "c" * 64
        self.handler.executor = self.executor = FakeExecutor(play)
        self.ours, frontend = socket.socketpair()
        self.frontend: socket.socket | None = frontend
        self.received = bytearray()
        self.reader = threading.Thread(target=self._read, args=(frontend,))

    def _read(self, frontend: socket.socket) -> None:
        while data := frontend.recv(65536):
            self.received += data

    def request(self, **inputs: bytes) -> tuple[int, bytes, dict[str, str]]:
        """Status code, message and headers of the last response."""
        context = Context("lookalike", "", {}, 1, None, "0.12.0")
        context.request_ids = {0: "1"}
        context.request_processor = [RequestProcessor({})]
        context.cl_socket = self.ours
        try:
            answer = self.handler.handle([{name: bytearray(value) for name, value in inputs.items()}], context)
            return 200, answer[0].encode(), context.get_response_headers(0)
        except PredictionException as error:
            return error.error_code, error.message.encode(), {}

    def messages(self) -> list[dict[str, Any]]:
        """What was sent before the last response, decoded."""
        self.ours.close()
        self.reader.join()
        return list(decode(bytes(self.received)))


@pytest.fixture
def worker(request: pytest.FixtureRequest) -> Iterator[Callable[..., Worker]]:
    made: list[Worker] = []

    def make(play: Callable[[Any, Any], None] = lambda progress, stopped: None) -> Worker:
        it = Worker(play)
        it.reader.start()
        made.append(it)
        return it

    yield make
    for it in made:
        it.ours.close()
        it.reader.join()
        assert it.frontend is not None
        it.frontend.close()


def decode(data: bytes) -> Iterator[dict[str, Any]]:
    """TorchServe's responses: code, message, and for each request its id, type, status, headers and body."""
    at = 0

    def number() -> int:
        nonlocal at
        (value,) = struct.unpack_from("!i", data, at)
        at += 4
        return value

    def text() -> str:
        nonlocal at
        size = number()
        at += size
        return data[at - size : at].decode()

    while at < len(data):
        code, _ = number(), text()
        text(), text()  # request id, content type
        number(), text()
        headers = {text(): text() for _ in range(number())}
        body = text()
        assert number() == -1
        yield {"code": code, "headers": headers, "body": json.loads(body)}


def job(folder: Path) -> bytes:
    return json.dumps(
        job_to_json(
            ExpansionJob(
                job_id="j",
                campaign="c",
                seeds=folder / "s.parquet",
                k=1,
                pool=folder,
                output=folder / "out",
                cancel_flag=folder / "flag",
            )
        )
    ).encode()


def test_torchserve_finds_exactly_one_class() -> None:
    from ts.utils.util import list_classes_from_module

    assert list_classes_from_module(expansion) == [expansion.ExpansionHandler]


def test_a_ping_is_answered_without_a_message_before_it(worker: Callable[..., Worker]) -> None:
    it = worker()
    code, message, headers = it.request(ping=b"1")
    assert (code, json.loads(message)["checkpoint"]) == (200, "c" * 64)
    assert headers["ts_stream_next"] == "false"
    assert it.messages() == []


def test_a_stream_has_progress_first_and_an_end(worker: Callable[..., Worker], tmp_path: Path) -> None:
    def play(progress: Callable[[Progress], None], stopped: Callable[[], bool]) -> None:
        progress(Progress(Stage.SCORING, 3, 9))
        assert not stopped()

    it = worker(play)
    code, message, _ = it.request(job=job(tmp_path), stream=b"1")
    assert (code, json.loads(message)) == (200, {"finished": True})
    assert it.executor.jobs[0].output == tmp_path / "out"
    sent = it.messages()
    assert [m["body"] for m in sent[:2]] == [
        {"stage": "MATCHING", "done": 0, "total": 0},
        {"stage": "SCORING", "done": 3, "total": 9},
    ]
    assert {m["code"] for m in sent} == {200}
    assert {m["headers"]["ts_stream_next"] for m in sent} == {"true"}


def test_the_last_message_says_so_after_progress_was_sent(worker: Callable[..., Worker], tmp_path: Path) -> None:
    it = worker()
    context = Context("lookalike", "", {}, 1, None, "0.12.0")
    context.request_ids = {0: "1"}
    context.request_processor = [RequestProcessor({})]
    context.cl_socket = it.ours
    ret = it.handler.handle([{"job": job(tmp_path), "stream": b"1"}], context)
    from ts.protocol.otf_message_handler import create_predict_response

    response = bytes(create_predict_response(ret, context.request_ids, "ok", 200, context))
    assert [m["headers"]["ts_stream_next"] for m in decode(response)] == ["false"]


def test_without_the_flag_nothing_is_sent_before_the_answer(worker: Callable[..., Worker], tmp_path: Path) -> None:
    it = worker(lambda progress, stopped: progress(Progress(Stage.SCORING, 1, 2)))
    code, _, _ = it.request(job=job(tmp_path))
    assert code == 200
    assert it.messages() == []


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (errors.EmptySeeds("e", field="seeds", reason="R"), 400),
        (errors.NotFound("e"), 404),
        (errors.AlreadyExists("e"), 409),
        (errors.FailedPrecondition("e"), 422),
        (errors.ResourceExhausted("e"), 429),
        (errors.Cancelled("e"), 499),
        (errors.Unavailable("e"), 503),
        (errors.DataCorrupted("e"), 500),
    ],
)
def test_errors_travel_as_json_under_a_code(
    error: errors.LookalikeError, code: int, worker: Callable[..., Worker], tmp_path: Path
) -> None:
    def play(progress: Any, stopped: Any) -> None:
        raise error

    got, message, _ = worker(play).request(job=job(tmp_path), stream=b"1")
    back = error_from_text(message.decode())
    assert got == code
    assert type(back) is type(error)
    assert (back.field, back.reason) == (error.field, error.reason)


def test_a_defect_is_logged_and_told_without_its_text(
    worker: Callable[..., Worker], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    def play(progress: Any, stopped: Any) -> None:
        raise ZeroDivisionError("secret")

    code, message, _ = worker(play).request(job=job(tmp_path), stream=b"1")
    error = error_from_text(message.decode())
    assert code == 500
    assert isinstance(error, errors.InternalError)
    assert "secret" not in error.message
    assert error.message.rsplit(" ", 1)[1] in caplog.text


@pytest.mark.parametrize("inputs", [{}, {"job": b"{}"}, {"job": b"not json"}])
def test_a_request_that_is_none(inputs: dict[str, bytes], worker: Callable[..., Worker]) -> None:
    code, message, _ = worker().request(stream=b"1", **inputs)
    assert code == 400
    assert isinstance(error_from_text(message.decode()), errors.InvalidInput)


def test_a_frontend_that_is_gone_stops_the_job(worker: Callable[..., Worker], tmp_path: Path) -> None:
    def play(progress: Callable[[Progress], None], stopped: Callable[[], bool]) -> None:
        it.ours.close()
        progress(Progress(Stage.ADAPTING, 0, 1))
        assert stopped()
        raise errors.Cancelled("stopped")

    it = worker(play)
    code, _, _ = it.request(job=job(tmp_path), stream=b"1")
    assert code == 499


def test_the_archives_settings() -> None:
    settings = {"lookalike": {"scoring": {"batch_size": 77}, "adaptation": {"lr": 0.5}}, "minWorkers": 1}
    config = configuration(settings, None)
    assert (config.scoring.batch_size, config.adaptation.lr, config.scoring.device) == (77, 0.5, "auto")
    assert configuration(settings, 3).scoring.device == "cuda:3"
    assert configuration({"lookalike": {"scoring": {"device": "cpu"}}}, 3).scoring.device == "cpu"
    assert configuration(None, None).scoring.device == "auto"
    with pytest.raises(errors.InvalidInput, match="no_such"):
        configuration({"lookalike": {"scoring": {"no_such": 1}}}, None)


def test_a_defect_is_logged_with_its_operation_and_nothing_more(
    worker: Callable[..., Worker], lines: Callable[[], list[dict[str, Any]]], tmp_path: Path
) -> None:
    def crash(progress: Any, stopped: Any) -> None:
        raise ZeroDivisionError("of the engine's")

    job = ExpansionJob(
        job_id="op",
        campaign="c",
        seeds=tmp_path / "seeds.parquet",
        k=1,
        pool=tmp_path,
        output=tmp_path / "out",
        cancel_flag=tmp_path / "cancel",
        tenant="shop",
        request_id="r",
    )
    it = worker(crash)
    code, message, _ = it.request(job=json.dumps(job_to_json(job)).encode(), stream=b"1")
    assert code == 500
    (line,) = [line for line in lines() if line["logger"] == "lookalike.handler"]
    assert (line["operation"], line["tenant"], line["request_id"]) == ("op", "shop", "r")
    assert line["error"] == "ZeroDivisionError"
    assert "of the engine's" in line["traceback"]
    assert line["message"].split()[1] in message.decode()
    logging.getLogger("lookalike.handler").warning("later")
    assert "operation" not in lines()[-1]
