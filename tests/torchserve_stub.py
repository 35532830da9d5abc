"""A TorchServe handler for tests of what is around it: a job's campaign says what becomes of it. Loads no model."""

from __future__ import annotations

import json
import os
import time
from typing import Any

from ts.handler_utils.utils import send_intermediate_predict_response
from ts.utils.util import PredictionException

from lookalike import errors
from lookalike.retrieval.receipt import Progress, Stage
from lookalike.runtime.execute import CancelFlag
from lookalike.runtime.heartbeat import Heartbeat
from lookalike.runtime.wire import error_to_json, job_from_text


class StubHandler:
    def initialize(self, context: Any) -> None:
        self.settings = context.model_yaml_config["lookalike"]

    def handle(self, data: list[dict[str, Any]], context: Any) -> list[str]:
        context.set_response_header(0, "ts_stream_next", "false")
        if "ping" in data[0]:
            return [json.dumps({"version": "stub", "checkpoint": "c" * 64, "pid": os.getpid(), **self.settings})]
        job = job_from_text(bytes(data[0]["job"]))

        def send(message: bytes) -> None:
            send_intermediate_predict_response([message], context.request_ids, "progress", 200, context)

        try:
            with Heartbeat(send, interval=0.1) as heartbeat:
                heartbeat.report(Progress(Stage.SCORING, os.getpid(), 10**9))
                self.play(job.campaign, CancelFlag(job.cancel_flag))
        except errors.LookalikeError as error:
            raise PredictionException(json.dumps(error_to_json(error)), 400) from error
        return [json.dumps({"finished": True})]

    def play(self, campaign: str, cancelled: CancelFlag) -> None:
        if campaign == "until cancelled":
            while not cancelled():
                time.sleep(0.01)
            raise errors.Cancelled("as the flag said")
        if campaign == "refuse":
            raise errors.EmptySeeds(
                "café: none of 3 seeds ☕ is in the pool " + "é" * 3000, field="seeds", reason="NONE"
            )
        if campaign == "crash":
            raise ZeroDivisionError("of the handler's")
        if campaign == "exit":
            os._exit(3)
