"""The TorchServe handler: one expansion a request, or a ping. Thin over `lookalike.runtime.execute`.

A request's input `job` is an ExpansionJob as JSON; with `stream`, which only StreamPredictions may carry, progress
messages come before the last one. A `ping` comes by Predictions.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from ts.handler_utils.utils import send_intermediate_predict_response

from lookalike import __version__, errors, logs
from lookalike.runtime.execute import Executor
from lookalike.runtime.handling import begin, errors_for_torchserve
from lookalike.runtime.heartbeat import Heartbeat
from lookalike.runtime.wire import job_from_text
from lookalike.training.checkpoint import fingerprint

HEARTBEAT_SECONDS = 0.5


class ExpansionHandler:
    """Loaded once a worker; TorchServe wants exactly one class in this module."""

    def initialize(self, context: Any) -> None:
        """Read the archive: the general checkpoint beside this file and the section `lookalike` of its YAML."""
        config = begin(context)
        checkpoint = Path(context.system_properties["model_dir"])
        self.checkpoint_sha256 = fingerprint(checkpoint)
        self.executor = Executor(checkpoint, config)

    def handle(self, data: Sequence[Mapping[str, Any]], context: Any) -> list[str]:
        """Answer one request (batch size is 1)."""
        # Says "this is the last message" to StreamPredictions; without it the worker would be killed.
        context.set_response_header(0, "ts_stream_next", "false")
        if "ping" in data[0]:
            return [json.dumps({"version": __version__, "checkpoint": self.checkpoint_sha256})]
        with logs.bound(), errors_for_torchserve():  # what is bound for a request ends with it
            self._expand(data[0], context)
        return [json.dumps({"finished": True})]

    def _expand(self, request: Mapping[str, Any], context: Any) -> None:
        if "job" not in request:
            raise errors.InvalidInput("a request holds 'job' or 'ping'", field="input")
        job = job_from_text(bytes(request["job"]))
        logs.bind(operation=job.job_id, tenant=job.tenant, request_id=job.request_id)
        if "stream" not in request:  # a message before the last one would kill the frontend's side of this worker
            self.executor.run(job, lambda _: None, lambda: False)
            return

        def send(message: bytes) -> None:
            send_intermediate_predict_response([message], context.request_ids, "progress", 200, context)

        with Heartbeat(send, interval=HEARTBEAT_SECONDS) as heartbeat:
            self.executor.run(job, heartbeat.report, lambda: heartbeat.lost)
