"""Scores users for `score_processes`, one request after another; a program, not a library.

    python -m lookalike.runtime.score_worker CACHE_BYTES LOG_FORMAT

Reads requests from standard input and writes answers to standard output, each with its length (4 bytes, little-endian)
before it; an answer begins with OK or FAILED. It ends when its input does: with whoever started it, however that ended.
"""

from __future__ import annotations

import json
import logging
import os
import secrets
import sys
from typing import BinaryIO, cast

from lookalike import errors, logs
from lookalike.runtime.score_wire import FAILED, LENGTH, OK, job_from_bytes, scores_to_bytes
from lookalike.runtime.wire import error_to_json

_log = logging.getLogger(__name__)


def main() -> None:
    """See the module."""
    cache_bytes, log_format = sys.argv[1:]
    # Whatever prints must not print among the answers.
    answers = os.fdopen(os.dup(1), "wb", buffering=0)
    os.dup2(2, 1)
    logs.configure(cast(logs.Format, log_format), sys.stderr, level=logging.INFO)
    from lookalike.runtime.score_execute import ScoreExecutor

    executor = ScoreExecutor(int(cache_bytes))
    requests = sys.stdin.buffer
    _write(answers, OK)  # loaded, and ready
    while head := requests.read(LENGTH.size):
        request = requests.read(*LENGTH.unpack(head))
        try:
            answer = OK + scores_to_bytes(executor.score(job_from_bytes(request)))
        except errors.LookalikeError as error:
            answer = FAILED + json.dumps(error_to_json(error)).encode()
        except Exception as error:
            incident = secrets.token_hex(4)
            _log.exception("incident %s", incident)
            message = f"{type(error).__name__} in the worker; its log tells more under incident {incident}"
            answer = FAILED + json.dumps(error_to_json(errors.InternalError(message, reason="WORKER_ERROR"))).encode()
        _write(answers, answer)


def _write(file: BinaryIO, answer: bytes) -> None:
    left = memoryview(LENGTH.pack(len(answer)) + answer)
    while left:
        left = left[file.write(left) :]


if __name__ == "__main__":
    main()
