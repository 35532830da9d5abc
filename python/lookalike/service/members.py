"""Members of audiences as they are streamed, in both directions: batches of Arrow to messages and back.

Knows audiences on disk, Arrow and the protos; knows no gRPC. The client uses the way back.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from lookalike.errors import DataCorrupted
from lookalike.retrieval.audience import Audience
from lookalike.service import tokens
from lookalike.v1 import audience_pb2

# Of a message: 4 MiB is the most a client takes by default; from 256 KiB on size hardly matters for speed. Half a row
# group of integer ids, packed.
MESSAGE_BYTES = 768 * 1024
PACKED_BYTES = 8 + 4  # of a row: an id, or where it ends, and a score
REPEATED_BYTES = 10 + 4  # the longest varint


def messages(
    audience: Audience, start: int, *, packed: bool, listing: str
) -> Iterator[audience_pb2.StreamAudienceMembersResponse]:
    """Members from rank `start + 1` on, in messages of at most about MESSAGE_BYTES; tokens are of `listing`.

    Raises:
        DataCorrupted: the file is damaged.
    """
    rows = MESSAGE_BYTES // (PACKED_BYTES if packed else REPEATED_BYTES)
    for batch in audience.batches(rows, start, ["user_id", "score"]):
        for piece in _split(batch):
            message = audience_pb2.StreamAudienceMembersResponse(
                start_rank=start + 1,
                resume_token=tokens.encode(start + piece.num_rows, listing=listing),
                total_size=audience.num_members,
            )
            if packed:
                message.packed.CopyFrom(_packed(piece["user_id"], piece["score"]))
            else:
                message.user_ids.CopyFrom(user_ids_message(piece["user_id"]))
                message.scores.extend(piece["score"].to_pylist())
            yield message
            start += piece.num_rows


def user_ids_message(ids: pa.Array) -> audience_pb2.UserIds:
    """A column of ids."""
    if pa.types.is_int64(ids.type):
        return audience_pb2.UserIds(integers=audience_pb2.IntegerIds(values=ids.to_pylist()))
    return audience_pb2.UserIds(strings=audience_pb2.StringIds(values=ids.to_pylist()))


def batch_of(message: audience_pb2.StreamAudienceMembersResponse) -> pa.RecordBatch:
    """The members of a message, however it has them: rank int64, user_id int64 or large_string, score float32.

    Raises:
        DataCorrupted: its columns are of different lengths.
    """
    if message.HasField("packed"):
        ids, scores = _unpacked(message.packed)
    else:
        scores = pa.array(message.scores, pa.float32())
        if message.user_ids.WhichOneof("kind") == "strings":
            ids = pa.array(message.user_ids.strings.values, pa.large_string())
        else:
            ids = pa.array(message.user_ids.integers.values, pa.int64())
    if len(ids) != len(scores) or (message.HasField("packed") and message.packed.count != len(ids)):
        raise DataCorrupted(f"a message of {len(ids)} user ids and {len(scores)} scores", field="packed")
    ranks = pa.array(np.arange(message.start_rank, message.start_rank + len(scores), dtype=np.int64))
    return pa.RecordBatch.from_arrays([ranks, ids, scores], ["rank", "user_id", "score"])


def _split(batch: pa.RecordBatch) -> Iterator[pa.RecordBatch]:
    ids = batch["user_id"]
    text = 0 if pa.types.is_integer(ids.type) else pc.sum(pc.binary_length(ids)).as_py()
    if batch.num_rows > 1 and text > MESSAGE_BYTES:
        half = batch.num_rows // 2
        yield from _split(batch.slice(0, half))
        yield from _split(batch.slice(half))
    elif batch.num_rows:
        yield batch


def _packed(ids: pa.Array, scores: pa.Array) -> audience_pb2.PackedMembers:
    message = audience_pb2.PackedMembers(count=len(ids), scores=_bytes(scores, "<f4"))
    if pa.types.is_int64(ids.type):
        message.integer_ids = _bytes(ids, "<i8")
    else:
        _, offsets, text = ids.buffers()
        bounds = np.frombuffer(offsets, np.int64)[ids.offset : ids.offset + len(ids) + 1]
        message.string_ids = bytes(memoryview(text)[bounds[0] : bounds[-1]]) if text is not None else b""
        message.string_ends = (bounds[1:] - bounds[0]).astype("<u4").tobytes()
    return message


def _bytes(numbers: pa.Array, kind: str) -> bytes:
    values: bytes = numbers.to_numpy(zero_copy_only=True).astype(kind, copy=False).tobytes()
    return values


def _unpacked(message: audience_pb2.PackedMembers) -> tuple[pa.Array, pa.Array]:
    try:
        scores = pa.array(np.frombuffer(message.scores, "<f4"))
        if not message.string_ends:
            return pa.array(np.frombuffer(message.integer_ids, "<i8")), scores
        ends = np.frombuffer(message.string_ends, "<u4")
    except ValueError as error:
        raise DataCorrupted(f"a column that is no multiple of its width: {error}", field="packed") from error
    bounds = np.concatenate([[0], ends], dtype=np.int64)
    buffers = [None, pa.py_buffer(bounds), pa.py_buffer(message.string_ids)]
    try:
        ids = pa.Array.from_buffers(pa.large_string(), len(ends), buffers)
        ids.validate(full=True)
    except pa.ArrowInvalid as error:
        raise DataCorrupted(f"string ids do not fit their ends: {error}", field="packed") from error
    return ids, scores
