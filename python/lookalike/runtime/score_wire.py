"""How users and scores cross a process boundary: a JSON head, and columns as they lie in memory.

    length of the head (4 bytes, little-endian), head, columns one after another

Knows the contract of `score_job`; knows neither gRPC nor TorchServe nor torch.
"""

from __future__ import annotations

import json
import struct
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from lookalike.errors import InvalidInput
from lookalike.runtime.score_job import ScoreJob, Scores

LENGTH = struct.Struct("<I")
OK, FAILED = b"\0", b"\1"  # what an answer of `score_worker` begins with: scores follow, or an error as JSON


def job_to_bytes(job: ScoreJob) -> bytes:
    """`job_from_bytes` is its inverse."""
    ids = job.user_ids
    head: dict[str, Any] = {
        "audience": str(job.audience),
        "model": job.model_sha256,
        "pool": str(job.pool),
        "ranks": job.with_ranks,
        "users": len(ids),
        "text": not pa.types.is_int64(ids.type),
    }
    if not head["text"]:
        return _pack(head, [ids.to_numpy(zero_copy_only=False)])
    if ids.offset:  # a slice: its buffers are of the whole
        ids = pa.concat_arrays([ids, pa.array([], ids.type)])
    _, offsets, text = ids.buffers()
    return _pack(head, [offsets.slice(0, 8 * (len(ids) + 1)), text or b""])


def job_from_bytes(data: bytes | bytearray | memoryview) -> ScoreJob:
    """Inverse of `job_to_bytes`.

    Raises:
        InvalidInput: not what it writes.
    """
    try:
        head, columns = _unpack(data)
        users = int(head["users"])
        if head["text"]:
            buffer = pa.py_buffer(columns)
            buffers = [None, buffer.slice(0, 8 * (users + 1)), buffer.slice(8 * (users + 1))]
            ids = pa.Array.from_buffers(pa.large_string(), users, buffers)
            ids.validate(full=True)
        else:
            ids = pa.array(np.frombuffer(columns, "<i8", users))
        return ScoreJob(
            audience=Path(head["audience"]),
            model_sha256=head["model"],
            pool=Path(head["pool"]),
            user_ids=ids,
            with_ranks=head["ranks"],
        )
    except (ValueError, KeyError, TypeError, struct.error, pa.ArrowException) as error:
        raise InvalidInput(f"no request for scores: {error}", field="job") from error


def scores_to_bytes(scores: Scores) -> bytes:
    """`scores_from_bytes` is its inverse."""
    head = {"users": len(scores.scores), "loaded": scores.loaded, "ranks": scores.ranks is not None}
    columns: list[Any] = [scores.scores, scores.found]
    if scores.ranks is not None and scores.members is not None:
        columns = [scores.scores, scores.ranks, scores.found, scores.members]
    return _pack(head, columns)


def scores_from_bytes(data: bytes | memoryview) -> Scores:
    """Inverse of `scores_to_bytes`."""
    head, columns = _unpack(data)
    users = head["users"]
    at = 4 * users
    scores = np.frombuffer(columns, "<f4", users)
    ranks = members = None
    if head["ranks"]:
        ranks = np.frombuffer(columns, "<i8", users, at)
        at += 8 * users
        members = np.frombuffer(columns, np.bool_, users, at + users)
    found = np.frombuffer(columns, np.bool_, users, at)
    return Scores(scores=scores, found=found, ranks=ranks, members=members, loaded=head["loaded"])


def _pack(head: dict[str, Any], columns: Sequence[Any]) -> bytes:
    text = json.dumps(head).encode()
    return b"".join([LENGTH.pack(len(text)), text, *columns])


def _unpack(data: bytes | bytearray | memoryview) -> tuple[dict[str, Any], memoryview]:
    (length,) = LENGTH.unpack_from(data)
    view = memoryview(data)[LENGTH.size :]
    head: dict[str, Any] = json.loads(bytes(view[:length]))
    return head, view[length:]
