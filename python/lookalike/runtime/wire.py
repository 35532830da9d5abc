"""How jobs, progress and errors cross a process boundary: as JSON.

Knows the contract of `job` and the error tree; knows neither gRPC nor TorchServe nor torch.
"""

from __future__ import annotations

import json
from typing import Any

from pydantic import TypeAdapter, ValidationError

from lookalike import errors
from lookalike.config import parse
from lookalike.retrieval.receipt import Progress
from lookalike.runtime.job import ExpansionJob

# An error travels in HTTP/2 headers, which gRPC limits to 8 KiB (TorchServe's Java to 16); JSON's \u escapes make a
# character six bytes.
MAX_MESSAGE = 1000

_JOB = TypeAdapter(ExpansionJob)
_PROGRESS = TypeAdapter(Progress)


def job_to_json(job: ExpansionJob) -> dict[str, Any]:
    """Plain data; `job_from_json` is its inverse."""
    data: dict[str, Any] = _JOB.dump_python(job, mode="json")
    return data


def job_from_json(data: Any) -> ExpansionJob:
    """Inverse of `job_to_json`.

    Raises:
        InvalidInput: a field is missing, unknown or of a wrong type.
    """
    return parse(ExpansionJob, data, field_prefix="job")


def job_from_text(text: bytes) -> ExpansionJob:
    """The job whose JSON `text` is.

    Raises:
        InvalidInput: not JSON, or not of a job.
    """
    try:
        return job_from_json(json.loads(text))
    except ValueError as error:
        raise errors.InvalidInput(f"a job is JSON: {error}", field="job") from error


def progress_to_json(progress: Progress) -> dict[str, Any]:
    """Plain data; `progress_from_json` is its inverse."""
    return {"stage": progress.stage.value, "done": progress.done, "total": progress.total}


def progress_from_json(data: Any) -> Progress:
    """Inverse of `progress_to_json`.

    Raises:
        InternalError: not what it writes.
    """
    try:
        return _PROGRESS.validate_python(data)
    except ValidationError as error:
        raise errors.InternalError(f"not a progress message: {error.errors()[0]['msg']}") from error


def error_to_json(error: errors.LookalikeError) -> dict[str, Any]:
    """Plain data; `error_from_json` is its inverse but for messages over MAX_MESSAGE characters, which are cut."""
    message = error.message if len(error.message) <= MAX_MESSAGE else error.message[: MAX_MESSAGE - 3] + "..."
    return {"class": error.default_reason, "reason": error.reason, "message": message, "field": error.field}


def error_from_json(data: Any) -> errors.LookalikeError | None:
    """Inverse of `error_to_json`; None for anything it did not write."""
    if not (isinstance(data, dict) and data.keys() == {"class", "reason", "message", "field"}):
        return None
    return errors.error_class(data["class"])(data["message"], field=data["field"], reason=data["reason"])


def error_from_text(text: str) -> errors.LookalikeError | None:
    """The error whose JSON `text` is; None when it is something else."""
    try:
        return error_from_json(json.loads(text))
    except json.JSONDecodeError:
        return None
