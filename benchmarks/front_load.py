"""The clients of `front.py`, each in a process of its own; prints what it measured as JSON.

    python benchmarks/front_load.py submit ADDRESS IDS.npy RATE SECONDS SEEDS
    python benchmarks/front_load.py stream ADDRESS AUDIENCE [packed|repeated]
    python benchmarks/front_load.py resumed ADDRESS AUDIENCE PARQUET
    python benchmarks/front_load.py bytes ADDRESS COUNT SIZE

Knows the protos and the package's own client.
"""

from __future__ import annotations

import asyncio
import gc
import json
import sys
import time
import uuid
from collections.abc import Callable
from hashlib import sha256 as digest
from pathlib import Path
from typing import Any, Final

import grpc
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from hdrh.histogram import HdrHistogram

from lookalike.service.members import batch_of
from lookalike.v1 import audience_pb2, audience_pb2_grpc, campaign_pb2

LONGEST_US: Final = 60_000_000
WARM_UP_SECONDS: Final = 2.0
CALL_SECONDS: Final = 30.0


async def submit(address: str, ids: Path, rate: float, seconds: float, seeds: int) -> dict[str, Any]:
    """Orders at random moments (a Poisson process), whatever becomes of those before; timed from when each was due."""
    random = np.random.default_rng(0)
    due = np.cumsum(random.exponential(1 / rate, round(rate * (seconds + WARM_UP_SECONDS))))
    users = np.load(ids)
    requests = [_order(users, random, seeds) for _ in due]
    taken, late = HdrHistogram(1, LONGEST_US, 3), HdrHistogram(1, LONGEST_US, 3)
    failures: dict[str, int] = {}
    async with grpc.aio.insecure_channel(address) as channel:
        stub: Any = audience_pb2_grpc.AudienceServiceStub(channel)
        await channel.channel_ready()

        async def one(at: float, request: audience_pb2.ExpandAudienceRequest, warm: bool) -> None:
            began = time.perf_counter()
            try:
                await stub.ExpandAudience(request, timeout=CALL_SECONDS)
            except grpc.RpcError as error:
                failures[error.code().name] = failures.get(error.code().name, 0) + 1
            if warm:
                taken.record_value(max(1, round(1e6 * (time.perf_counter() - at))))
                late.record_value(max(1, round(1e6 * (began - at))))

        gc.collect()
        gc.disable()  # the client's pauses are not the front's
        start = time.perf_counter()
        calls = []
        for moment, request in zip(due, requests, strict=True):
            if (left := start + moment - time.perf_counter()) > 0:
                await asyncio.sleep(left)
            calls.append(asyncio.create_task(one(start + moment, request, moment >= WARM_UP_SECONDS)))
        await asyncio.gather(*calls)
        wall = time.perf_counter() - start
    return {
        "submitted": len(calls),
        "failures": failures,
        "per_second": len(calls) / wall,
        "taken_us": taken.encode().decode(),
        "late_us": late.encode().decode(),
    }


def _order(users: np.ndarray, random: np.random.Generator, seeds: int) -> audience_pb2.ExpandAudienceRequest:
    request = audience_pb2.ExpandAudienceRequest(
        request_id=uuid.uuid4().hex, campaign=campaign_pb2.Campaign(name="wait"), k=1000
    )
    request.seed_ids.integers.values.extend(random.choice(users, seeds).tolist())
    return request


def stream(address: str, audience: str, encoding: str = "packed") -> dict[str, Any]:
    """All members of an audience, as a program takes them from `Client.members`; or as a former client did."""
    from lookalike.client import Client

    with Client(address) as client:
        first = client.first_members(audience, 1)  # connected, and everything imported
        assert first
        return _measured(lambda: _members(client, audience, encoding))


def _members(client: Any, audience: str, encoding: str) -> tuple[int, int]:
    members = size = 0
    if encoding == "packed":
        for batch in client.members(audience):
            members += batch.num_rows
            size += batch["user_id"].nbytes + batch["score"].nbytes
        return members, size
    request = audience_pb2.StreamAudienceMembersRequest(audience=audience)
    for message in client.connection.audiences.StreamAudienceMembers(request):
        members += len(message.scores)
        ids = message.user_ids
        size += 4 * len(message.scores) + 8 * len(ids.integers.values) + sum(map(len, ids.strings.values))
    return members, size


def resumed(address: str, audience: str, parquet: str) -> dict[str, Any]:
    """Whether a stream broken off twice and taken up by its tokens has the members of the file."""
    with grpc.insecure_channel(address) as channel, pq.ParquetFile(parquet) as file:
        stub = audience_pb2_grpc.AudienceServiceStub(channel)
        request = audience_pb2.StreamAudienceMembersRequest(
            audience=audience, encoding=audience_pb2.MEMBER_ENCODING_PACKED
        )
        whole, came = ([digest() for _ in range(3)] for _ in range(2))
        for batch in file.iter_batches():
            _add(whole, batch)
        members = file.metadata.num_rows
        for stop in (members // 3, members // 2, members):
            stream = stub.StreamAudienceMembers(request)
            for message in stream:
                _add(came, batch_of(message))
                request.resume_token = message.resume_token
                if message.start_rank + message.packed.count > stop:
                    break
            stream.cancel()
    return {"same": [one.hexdigest() for one in came] == [one.hexdigest() for one in whole]}


def _add(digests: list[Any], batch: pa.RecordBatch) -> None:
    for one, name in zip(digests, ("rank", "user_id", "score"), strict=True):
        column = batch[name]
        if pa.types.is_large_string(column.type):
            one.update("".join(f"{text}\0" for text in column.to_pylist()).encode())
        else:
            one.update(column.to_numpy())


def plain(address: str, count: int, size: int) -> dict[str, Any]:
    """The roofline: a stream of messages that are nothing but bytes."""
    with grpc.insecure_channel(address) as channel:
        call: Any = channel.unary_stream("/bench/Bytes")
        list(call(json.dumps([1, 1]).encode()))
        return _measured(lambda: (count, sum(map(len, call(json.dumps([count, size]).encode())))))


def _measured(work: Callable[[], tuple[int, int]]) -> dict[str, Any]:
    before = _memory("VmRSS")
    Path("/proc/self/clear_refs").write_text("5")  # the highest is what is resident now
    started, cpu = time.perf_counter(), time.process_time()
    count, size = work()
    seconds, cpu = time.perf_counter() - started, time.process_time() - cpu
    return {
        "count": count,
        "bytes": size,
        "seconds": seconds,
        "cpu_seconds": cpu,
        "grown_bytes": _memory("VmHWM") - before,
    }


def _memory(what: str) -> int:
    line = next(one for one in Path("/proc/self/status").read_text().splitlines() if one.startswith(what))
    return 1024 * int(line.split()[1])


def main(what: str, *arguments: str) -> None:
    """The command line."""
    if what == "submit":
        address, ids, rate, seconds, seeds = arguments
        found = asyncio.run(submit(address, Path(ids), float(rate), float(seconds), int(seeds)))
    elif what == "stream":
        found = stream(*arguments)
    elif what == "resumed":
        found = resumed(*arguments)
    else:
        found = plain(arguments[0], int(arguments[1]), int(arguments[2]))
    print(json.dumps(found))


if __name__ == "__main__":
    main(*sys.argv[1:])
