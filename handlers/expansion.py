"""The TorchServe handler: one expansion a request, or a ping. Thin over `lookalike.runtime.execute`.

A request's input `job` is an ExpansionJob as JSON; with `stream`, which only StreamPredictions may carry, progress
messages come before the last one. A `ping` comes by Predictions.
"""

from __future__ import annotations

import json
import logging
import os
import secrets
import sys
import threading
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from ts.handler_utils.utils import send_intermediate_predict_response
from ts.utils.util import PredictionException

from lookalike import __version__, errors, logs
from lookalike.config import Config, parse
from lookalike.runtime.execute import Executor
from lookalike.runtime.heartbeat import Heartbeat
from lookalike.runtime.wire import error_to_json, job_from_text
from lookalike.training.checkpoint import fingerprint

HEARTBEAT_SECONDS = 0.5

# TorchServe turns these into gRPC statuses, and counts them; the error itself travels as JSON in the message.
CODES: Mapping[type[errors.LookalikeError], int] = {
    errors.InvalidInput: 400,
    errors.Unauthenticated: 401,
    errors.PermissionDenied: 403,
    errors.NotFound: 404,
    errors.AlreadyExists: 409,
    errors.FailedPrecondition: 422,
    errors.ResourceExhausted: 429,
    errors.Cancelled: 499,
    errors.Unavailable: 503,
}

_log = logging.getLogger("lookalike.handler")


class ExpansionHandler:
    """Loaded once a worker; TorchServe wants exactly one class in this module."""

    def initialize(self, context: Any) -> None:
        """Read the archive: the general checkpoint beside this file and the section `lookalike` of its YAML."""
        threading.Thread(target=_end_with_parent, args=(os.getppid(),), daemon=True).start()
        properties = context.system_properties
        checkpoint = Path(properties["model_dir"])
        config = configuration(context.model_yaml_config, properties.get("gpu_id"))
        # To where TorchServe's frontend reads what its workers have to say; the root logger stays TorchServe's own.
        logs.configure(config.service.log_format, sys.stdout, logger="lookalike", level=logging.INFO)
        self.checkpoint_sha256 = fingerprint(checkpoint)
        self.executor = Executor(checkpoint, config)

    def handle(self, data: Sequence[Mapping[str, Any]], context: Any) -> list[str]:
        """Answer one request (batch size is 1)."""
        # Says "this is the last message" to StreamPredictions; without it the worker would be killed.
        context.set_response_header(0, "ts_stream_next", "false")
        if "ping" in data[0]:
            return [json.dumps({"version": __version__, "checkpoint": self.checkpoint_sha256})]
        with logs.bound():  # what is bound for a request ends with it
            try:
                self._expand(data[0], context)
            except errors.LookalikeError as error:
                raise prediction_exception(error) from error
            except Exception as error:
                incident = secrets.token_hex(4)
                _log.exception("incident %s", incident)
                message = f"{type(error).__name__} in the worker; its log tells more under incident {incident}"
                raise prediction_exception(errors.InternalError(message, reason="WORKER_ERROR")) from error
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


def configuration(settings: Mapping[str, Any] | None, gpu: int | None) -> Config:
    """The archive's settings as our configuration; TorchServe's choice of GPU counts where ours is "auto".

    Raises:
        InvalidInput: the archive was built by another version.
    """
    tree = {name: dict(section) for name, section in ((settings or {}).get("lookalike") or {}).items()}
    if gpu is not None and tree.get("scoring", {}).get("device", "auto") == "auto":
        tree.setdefault("scoring", {})["device"] = f"cuda:{gpu}"
    return parse(Config, tree, field_prefix="model-config.yaml:lookalike")


def prediction_exception(error: errors.LookalikeError) -> PredictionException:
    """The error as TorchServe carries it."""
    code = next((code for kind, code in CODES.items() if isinstance(error, kind)), 500)
    return PredictionException(json.dumps(error_to_json(error)), code)


def _end_with_parent(parent: int) -> None:
    """Ends this worker soon after TorchServe's frontend died: it would else notice only when it next speaks."""
    while os.getppid() == parent:
        time.sleep(1.0)
    os._exit(1)
