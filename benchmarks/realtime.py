"""Open-loop load on ScoreUsers: how long a caller waits for the scores of 100 users when 100 callers a second ask.

    make bench-realtime [ARGS='--host torchserve --rate 50 --json results.json']
    python benchmarks/realtime.py [--host process|torchserve] [--rate 100] [--users 100] [--seconds 60] [--json FILE|-]
    python benchmarks/realtime.py --server HOST:PORT --audience audiences/ID --pool POOL

Without --server it makes a pool and a model in build/realtime (kept), starts `lookalike serve` and expands. Calls
begin at their times whatever became of those before (Poisson arrivals; --even for one every 1/rate), and are timed
from when they were to begin, so that a stall counts for everybody it made wait. Percentiles are of all calls, exact.
The exit code tells whether every call was answered with the scores of the audience, not whether it was fast: the goal
is shown.

A virtual machine with a limit stands still now and then for 0.1 s. With --witness a process on each processor does
nothing but notice that, and the calls it happened to are told apart.
"""

from __future__ import annotations

import argparse
import asyncio
import gc
import json
import os
import random
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import grpc
import numpy as np
import numpy.typing as npt
import pyarrow as pa
from rich.console import Console
from topk import machine, version, write_json

from lookalike.cli.child import ServerProcess
from lookalike.client import Client
from lookalike.pool.snapshot import Pool
from lookalike.v1 import audience_pb2, scoring_pb2, scoring_pb2_grpc

WORK = Path(__file__).resolve().parents[1] / "build" / "realtime"
GOAL_MS = 10.0  # p99 for 100 users at 100 calls a second
WARM_SECONDS = 3.0
AFTER_SECONDS = 0.05  # until what had come together in a stall is done
PERCENTILES = (50, 90, 95, 99, 99.9, 100)
CHECKED = 100  # members whose scores are compared with the audience's
AUDIENCE = 10_000


def main() -> int:
    """The command line; 1 if a call failed or a score is not the audience's."""
    arguments = _parse()
    console = Console(stderr=arguments.json == "-", width=120)
    if arguments.server:
        document = measure(arguments, arguments.server, arguments.audience, arguments.pool)
    else:
        document = _own(arguments)
    show(console, document)
    if arguments.json:
        write_json(document, arguments.json)
    return 0 if not document["failures"] and document["scores_are_the_audiences"] else 1


def measure(arguments: argparse.Namespace, server: str, audience: str, pool: Path) -> dict[str, Any]:
    """Load a running service; all there is to tell of it."""
    opened = Pool.open(pool)
    first, right = _first_call(server, audience)
    seed = random.Random(1)
    requests = []
    for _ in range(512):  # made beforehand: what is measured is the service
        rows = np.array([seed.randrange(opened.num_users) for _ in range(arguments.users)])
        requests.append(_request(audience, opened.user_ids(rows)))
    gc.collect()
    gc.disable()  # a pause of ours is none of the service's
    with _witnesses(arguments.witness) as stalls:
        load = asyncio.run(_load(arguments, server, requests))
    times = np.array(load.milliseconds)
    disturbed = _disturbed(np.array(load.planned), times / 1000, stalls)
    return {
        "host": arguments.host,
        "rate": arguments.rate,
        "users": arguments.users,
        "seconds": arguments.seconds,
        "arrivals": "even" if arguments.even else "poisson",
        "calls": len(times),
        "failures": dict(load.failures),
        "first_call_ms": first,
        "scores_are_the_audiences": right,
        "percentiles_ms": _percentiles(times),
        "stalls": len(stalls),
        "disturbed_calls": int(disturbed.sum()),
        "undisturbed_percentiles_ms": _percentiles(times[~disturbed]),
        "mean_ms": round(float(times.mean()), 3) if len(times) else None,
        "late_starts_ms": {
            f"p{p:g}": round(float(np.percentile(load.late, p)), 3) for p in (50, 99, 100)
        },  # of the load itself: where this is large, the machine was not the service's alone
        "pool_users": opened.num_users,
        "machine": machine(),
        "versions": {name: version(name) for name in ("lookalike", "torch", "grpcio")},
    }


def _percentiles(times: npt.NDArray[Any]) -> dict[str, float]:
    return {f"p{p:g}": round(float(np.percentile(times, p)), 3) for p in PERCENTILES} if len(times) else {}


@contextmanager
def _witnesses(wanted: bool) -> Iterator[list[tuple[float, float]]]:
    """The list has, after the block, when some processor stood still."""
    stalls: list[tuple[float, float]] = []
    command = [sys.executable, str(Path(__file__).with_name("witness.py"))]
    processes = [
        subprocess.Popen([*command, str(cpu)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        for cpu in (sorted(os.sched_getaffinity(0)) if wanted else ())
    ]
    try:
        yield stalls
    finally:
        for process in processes:
            told, _ = process.communicate()
            stalls += [(begin, end) for begin, end in json.loads(told)]


def _disturbed(
    planned: npt.NDArray[Any], seconds: npt.NDArray[Any], stalls: Sequence[tuple[float, float]]
) -> npt.NDArray[np.bool_]:
    """Which calls were under way, or just after, when the machine stood still: then they waited for those before."""
    touched = np.zeros(len(planned), np.bool_)
    for begin, end in stalls:
        touched |= (planned < end + AFTER_SECONDS) & (planned + seconds > begin)
    return touched


@dataclass
class _Load:
    planned: list[float] = field(default_factory=list)
    milliseconds: list[float] = field(default_factory=list)
    late: list[float] = field(default_factory=list)
    failures: Counter[str] = field(default_factory=Counter)


async def _load(arguments: argparse.Namespace, server: str, requests: list[scoring_pb2.ScoreUsersRequest]) -> _Load:
    load, tasks = _Load(), set()
    gaps = random.Random(2)
    async with grpc.aio.insecure_channel(server, options=[("grpc.enable_http_proxy", 0)]) as channel:
        call = scoring_pb2_grpc.ScoringServiceStub(channel).ScoreUsers

        async def one(request: scoring_pb2.ScoreUsersRequest, planned: float, counts: bool) -> None:
            late = time.perf_counter() - planned
            try:
                await call(request, timeout=10)
            except grpc.aio.AioRpcError as error:
                load.failures[error.code().name] += 1
                return
            if counts:
                load.planned.append(planned)
                load.late.append(1000 * late)
                load.milliseconds.append(1000 * (time.perf_counter() - planned))

        start = planned = time.perf_counter()
        number = 0
        while planned < start + WARM_SECONDS + arguments.seconds:
            delay = planned - time.perf_counter()
            if delay > 0:
                await asyncio.sleep(delay)
            counts = planned >= start + WARM_SECONDS
            task = asyncio.create_task(one(requests[number % len(requests)], planned, counts))
            tasks.add(task)
            task.add_done_callback(tasks.discard)
            number += 1
            planned += 1 / arguments.rate if arguments.even else gaps.expovariate(arguments.rate)
        await asyncio.gather(*tasks)
    return load


def _first_call(server: str, audience: str) -> tuple[float, bool]:
    """Milliseconds of a call whose model nobody has asked for yet, and whether members score what the audience says."""
    with Client(server) as client:
        members = client.first_members(audience, AUDIENCE)
        members = random.Random(3).sample(members, min(CHECKED, len(members)))
        ids = [getattr(member, member.WhichOneof("user") or "string_id") for member in members]
        started = time.perf_counter()
        scores = client.score(audience, ids)
        milliseconds = 1000 * (time.perf_counter() - started)
    expected = pa.array([member.score for member in members], pa.float32())
    return round(milliseconds, 1), scores.users["score"].equals(expected)


def _request(audience: str, ids: pa.Array) -> scoring_pb2.ScoreUsersRequest:
    if pa.types.is_int64(ids.type):
        users = audience_pb2.UserIds(integers=audience_pb2.IntegerIds(values=ids.to_pylist()))
    else:
        users = audience_pb2.UserIds(strings=audience_pb2.StringIds(values=ids.to_pylist()))
    return scoring_pb2.ScoreUsersRequest(audience=audience, users=users)


def _own(arguments: argparse.Namespace) -> dict[str, Any]:
    """A pool, a model, a service and an audience of our own, and the load on them."""
    pool, general, history = WORK / f"pool-{arguments.pool_users}", WORK / "general", WORK / "history"
    WORK.mkdir(parents=True, exist_ok=True)
    lean = ("--profile", "lean")
    if not pool.is_dir():
        _lookalike("simulate", pool, *lean, "--pool", "--users", arguments.pool_users)
    if not general.is_dir():
        _lookalike("simulate", history, *lean, "--users", 20_000, "--campaigns", 40, "--overwrite")
        _lookalike("simulate", WORK / "small", *lean, "--pool", "--users", 20_000, "--overwrite")
        _lookalike("train", history, "--pool", WORK / "small", "--output", general, "--set", "training.max_seconds=20")
    data = WORK / f"data-{time.time_ns()}"
    settings = [f"service.data_dir={data}", f"torchserve.archive={WORK / 'lookalike.mar'}"]
    settings += [f"realtime.host={arguments.host}", f"realtime.workers={arguments.workers}"]
    if arguments.host != "torchserve":
        settings.append("service.runtime=inprocess")
    options = ["--checkpoint", str(general), "--pool", str(pool), "--insecure"]
    for setting in settings:
        options += ["--set", setting]
    with ServerProcess(options, WORK / "serve.log") as server:
        with Client(server.address) as client:
            seeds = Pool.open(pool).user_ids(np.arange(0, 20_000, 40))
            audience = client.expand(campaign="benchmark", seeds=seeds, k=AUDIENCE).result()
        return measure(arguments, server.address, audience.name, pool)


def _lookalike(*arguments: object) -> None:
    subprocess.run([sys.executable, "-m", "lookalike.cli", *map(str, arguments)], check=True, stdout=subprocess.DEVNULL)


def show(console: Console, document: dict[str, Any]) -> None:
    """What matters of it."""
    times = document["percentiles_ms"]
    console.print(
        f"{document['calls']:,} calls of {document['users']} users, {document['rate']:g} a second, "
        f"{document['arrivals']}, host {document['host']}, pool of {document['pool_users']:,}"
    )
    console.print("ms     ", "  ".join(f"{name} {value:.2f}" for name, value in times.items()))
    if undisturbed := document["undisturbed_percentiles_ms"] if document["stalls"] else {}:
        console.print("ms     ", "  ".join(f"{name} {value:.2f}" for name, value in undisturbed.items()), end=" ")
        console.print(f"without {document['disturbed_calls']:,} calls at {document['stalls']:,} stalls of the machine")
    console.print("late   ", "  ".join(f"{name} {value:.2f}" for name, value in document["late_starts_ms"].items()))
    console.print(f"first call {document['first_call_ms']:.0f} ms; failures {json.dumps(document['failures'])}")
    met = "met" if times and times["p99"] < GOAL_MS else "missed"
    console.print(f"goal: p99 below {GOAL_MS:g} ms for 100 users at 100 a second: {met}")
    console.print(f"members score what the audience says: {'yes' if document['scores_are_the_audiences'] else 'NO'}")


def _parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--host", choices=("process", "torchserve"), default="process", help="realtime.host")
    parser.add_argument("--workers", type=int, default=1, help="realtime.workers")
    parser.add_argument("--rate", type=float, default=100.0, help="calls a second")
    parser.add_argument("--users", type=int, default=100, help="users a call")
    parser.add_argument("--seconds", type=float, default=60.0, help="measured, after a few to warm up")
    parser.add_argument("--even", action="store_true", help="a call every 1/rate seconds")
    parser.add_argument("--pool-users", type=int, default=1_000_000, help="of the pool it makes")
    parser.add_argument("--server", default="", help="HOST:PORT of a service that runs; with")
    parser.add_argument("--audience", default="", help="audiences/ID of its, and")
    parser.add_argument("--pool", type=Path, help="the pool it serves")
    parser.add_argument("--witness", action="store_true", help="tell calls apart that the machine itself held up")
    parser.add_argument("--json", default="", help="write one document of everything; - is stdout")
    arguments = parser.parse_args()
    if bool(arguments.server) != bool(arguments.audience and arguments.pool):
        parser.error("--server, --audience and --pool go together")
    return arguments


if __name__ == "__main__":
    sys.exit(main())
