"""The TorchServe handler of real-time scores: one request's users, or a ping. Thin over `runtime.score_execute`.

A request's input `job` is what `score_wire` writes, and so is the answer. Both come by Predictions.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

from lookalike import __version__, errors
from lookalike.runtime.handling import begin, errors_for_torchserve
from lookalike.runtime.score_execute import ScoreExecutor
from lookalike.runtime.score_wire import job_from_bytes, scores_to_bytes


class ScoringHandler:
    """Loaded once a worker; TorchServe wants exactly one class in this module."""

    def initialize(self, context: Any) -> None:
        """Read the section `lookalike` of the archive's YAML; models are loaded when they are asked for."""
        self.executor = ScoreExecutor(begin(context).realtime.cache_mib << 20)

    def handle(self, data: Sequence[Mapping[str, Any]], context: Any) -> list[str | bytes]:
        """Answer one request (batch size is 1)."""
        context.set_response_header(0, "ts_stream_next", "false")  # whichever way it came
        if "ping" in data[0]:
            return [json.dumps({"version": __version__})]
        with errors_for_torchserve():
            if "job" not in data[0]:
                raise errors.InvalidInput("a request holds 'job' or 'ping'", field="input")
            return [scores_to_bytes(self.executor.score(job_from_bytes(data[0]["job"])))]
