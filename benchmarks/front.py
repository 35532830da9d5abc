"""`make bench-front`: what the front itself costs: accepting orders, and handing out members of audiences.

    make bench-front [ARGS='--rates 100,200,400 --seconds 30 --json results.json']
    python benchmarks/front.py [--rates 200] [--seconds 30] [--members 1e6,1e7] [--only submit|stream] [--json FILE|-]

A front in a process of its own (`front_server.py`: the package's service over a runtime that trains no model) and
clients in others (`front_load.py`), on loopback. Orders come at random moments at a given rate, whatever becomes of
those before, and are timed from the moment each was due; each has 300 seeds, and all stay in the queue. Audiences are
streamed whole to one client, beside a stream of nothing but bytes between the same processes.

Shows tables; the exit code is 1 if an order failed or a stream that was taken up twice has other members than the file.
Linux only.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import shlex
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final

import grpc
import numpy as np
from competitors import whole, whole_numbers
from hdrh.histogram import HdrHistogram
from rich import box
from rich.console import Console
from rich.table import Table
from topk import machine, version, write_json

from lookalike.client import Client
from lookalike.dataset.profiles import PROFILES
from lookalike.files import require_space
from lookalike.pool.simulated import simulate_pool

HERE: Final = Path(__file__).resolve().parent
BUILD: Final = HERE.parent / "build"  # not the temp folder, which may lie in memory: orders wait for a disk
POOL_USERS: Final = 200_000
PERCENTILES: Final = (50, 95, 99, 99.9)
GOAL_P99_MS: Final = 20.0
GOAL_MB_S: Final = 200.0
GOAL_RATE: Final = 200
MESSAGE: Final = 2**20  # of the roofline
MEBIBYTE: Final = 2**20
ORDER_SECONDS: Final = 600.0  # in which an audience is written


def main() -> int:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rates", type=whole_numbers, default=[GOAL_RATE], help="orders a second, one run each (200)")
    parser.add_argument("--seconds", type=whole, default=30, help="of each run, after 2 to warm up (30)")
    parser.add_argument("--seeds", type=whole, default=300, help="of an order (300)")
    parser.add_argument("--members", type=whole_numbers, default=[10**6, 10**7], help="of audiences (1e6,1e7)")
    parser.add_argument("--repeat", type=whole, default=5, help="streams of each kind (5)")
    parser.add_argument("--database-url", default="", help="an empty PostgreSQL database; default: SQLite")
    parser.add_argument("--only", choices=("submit", "stream"), help="one half")
    parser.add_argument("--json", metavar="FILE", help="write everything there; - is stdout")
    arguments = parser.parse_args()
    if arguments.database_url and len(arguments.rates) > 1:
        parser.error("--database-url: a database serves one data folder, so it takes one rate")
    console = Console(stderr=arguments.json == "-", width=150, highlight=False)
    BUILD.mkdir(exist_ok=True)
    document: dict[str, Any] = {
        "machine": machine() | {"python": platform.python_version(), "load": os.getloadavg()},
        "versions": {name: version(name) for name in ("lookalike", "grpcio", "protobuf", "pyarrow", "SQLAlchemy")},
        "command": shlex.join(sys.argv),
    }
    with tempfile.TemporaryDirectory(prefix="bench-front-", dir=BUILD) as folder:
        require_space(Path(folder), 60 * max(arguments.members), purpose="the benchmark")
        pool = simulate_pool(Path(folder) / "pool", PROFILES["lean"], users=POOL_USERS)
        np.save(Path(folder) / "ids.npy", pool.user_ids(np.arange(POOL_USERS)).to_numpy())
        if arguments.only != "stream":
            document["submit"] = [submitted(Path(folder), arguments, rate) for rate in arguments.rates]
            show_submitted(console, document["submit"])
        if arguments.only != "submit":
            document["stream"] = streamed(Path(folder), arguments)
            show_streamed(console, document["stream"])
    if arguments.json:
        write_json(document, arguments.json)
    right = not any(run["failures"] for run in document.get("submit", ()))
    return 0 if right and all(run.get("same", True) for run in document.get("stream", ())) else 1


class Server:
    """The front; `figures` are of /proc."""

    def __init__(self, process: subprocess.Popen[str], address: str, own: str) -> None:
        self._process = process
        self.address = address
        self.own = own

    def cpu_seconds(self) -> float:
        """Of the process so far."""
        fields = Path(f"/proc/{self._process.pid}/stat").read_text().rpartition(")")[2].split()
        return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")

    def reset_peak(self) -> None:
        """The highest resident size is what it is now."""
        Path(f"/proc/{self._process.pid}/clear_refs").write_text("5")

    def memory(self, what: str) -> int:
        """VmRSS or VmHWM, in bytes."""
        lines = Path(f"/proc/{self._process.pid}/status").read_text().splitlines()
        return 1024 * int(next(line for line in lines if line.startswith(what)).split()[1])

    def store_us(self) -> str:
        """A histogram of what `create` took since the last call, encoded."""
        with grpc.insecure_channel(self.own) as channel:
            call: Any = channel.unary_unary("/bench/Store")
            encoded: bytes = call(b"")
        return encoded.decode()


@contextmanager
def served(folder: Path, name: str, database_url: str = "") -> Iterator[Server]:
    """A front with a data folder of its own."""
    command = [sys.executable, str(HERE / "front_server.py"), str(folder / name), str(folder / "pool"), database_url]
    with (folder / f"{name}.log").open("w") as log:
        process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=log, text=True)
    try:
        assert process.stdout is not None
        addresses = process.stdout.readline().split()
        if len(addresses) != 2:
            raise RuntimeError(f"the front did not start: {(folder / f'{name}.log').read_text()[-2000:]}")
        yield Server(process, *addresses)
    finally:
        process.send_signal(signal.SIGTERM)
        process.wait()


def load(*arguments: object) -> dict[str, Any]:
    """What `front_load.py` prints."""
    command = [sys.executable, str(HERE / "front_load.py"), *map(str, arguments)]
    found: dict[str, Any] = json.loads(subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout)
    return found


def submitted(folder: Path, arguments: argparse.Namespace, rate: int) -> dict[str, Any]:
    """Orders at one rate, against a new front."""
    with served(folder, f"submit-{rate}", arguments.database_url) as server:
        before = server.cpu_seconds()
        run = load("submit", server.address, folder / "ids.npy", rate, arguments.seconds, arguments.seeds)
        cpu = server.cpu_seconds() - before
        histograms = {"submit": run.pop("taken_us"), "late": run.pop("late_us"), "store": server.store_us()}
    return run | {
        "rate": rate,
        "seconds": arguments.seconds,
        "seeds": arguments.seeds,
        "database": "postgresql" if arguments.database_url else "sqlite",
        "server_cpu_ms": 1000 * cpu / run["submitted"],
        "ms": {name: percentiles(encoded) for name, encoded in histograms.items()},
        "histograms": histograms,
    }


def percentiles(encoded: str) -> dict[str, float]:
    """Milliseconds."""
    histogram = HdrHistogram.decode(encoded)
    return {f"p{one:g}": histogram.get_value_at_percentile(one) / 1000 for one in PERCENTILES}


def streamed(folder: Path, arguments: argparse.Namespace) -> list[dict[str, Any]]:
    """Audiences of each size and type of ids, whole, and the roofline."""
    runs = []
    with served(folder, "stream") as server, Client(server.address, timeout=ORDER_SECONDS) as client:
        for members in arguments.members:
            for ids in ("integers", "strings"):
                order = client.expand(campaign="write", seeds=[1], k=members, features={"ids": ids})
                audience = order.result(ORDER_SECONDS)
                kinds = ("packed", "repeated") if ids == "integers" else ("packed",)
                for kind in kinds:
                    call = ("stream", server.address, audience.name, kind)
                    runs.append(measured(server, arguments.repeat, call) | {"kind": f"{ids}, {kind}"})
                same = load("resumed", server.address, audience.name, audience.parquet_path)["same"]
                runs[-len(kinds)]["same"] = same
            size = next(run["bytes"] for run in runs if run["count"] == members)
            plain = ("bytes", server.own, -(-size // MESSAGE), MESSAGE)
            runs.append(measured(server, arguments.repeat, plain) | {"kind": "bytes, the roofline", "count": members})
    return runs


def measured(server: Server, repeat: int, call: tuple[object, ...]) -> dict[str, Any]:
    """The median of some runs by speed, after one more; memory is the most that any but that took."""
    load(*call)
    runs = []
    for _ in range(repeat):
        resident, cpu = server.memory("VmRSS"), server.cpu_seconds()
        server.reset_peak()
        run = load(*call)
        run["server_cpu_seconds"] = server.cpu_seconds() - cpu
        run["server_grown_bytes"] = server.memory("VmHWM") - resident
        run["mb_per_second"] = run["bytes"] / run["seconds"] / 1e6
        runs.append(run)
    middle: dict[str, Any] = sorted(runs, key=lambda run: run["mb_per_second"])[len(runs) // 2]
    most = {name: max(run[name] for run in runs) for name in ("grown_bytes", "server_grown_bytes")}
    return middle | most | {"repeat": repeat}


def show_submitted(console: Console, runs: list[dict[str, Any]]) -> None:
    """A line a rate."""
    table = Table(
        box=box.SIMPLE,
        pad_edge=False,
        title=f"orders of {runs[0]['seeds']} seeds; milliseconds from when each was due ({runs[0]['database']})",
        caption=f"goal at {GOAL_RATE} a second: p99 < {GOAL_P99_MS:g} ms; store: its part; late: the client's own",
    )
    wanted = [("submit", f"p{one:g}") for one in PERCENTILES] + [("store", "p50"), ("store", "p99"), ("late", "p99")]
    for column in ("a second", "came", *(" ".join(one) for one in wanted), "server CPU ms", "failed", "met"):
        table.add_column(column, justify="right")
    for run in runs:
        met = run["rate"] == GOAL_RATE and ("yes" if run["ms"]["submit"]["p99"] < GOAL_P99_MS else "no")
        figures = [f"{run['ms'][name][which]:.1f}" for name, which in wanted]
        failed = str(sum(run["failures"].values()))
        table.add_row(
            str(run["rate"]), f"{run['per_second']:.0f}", *figures, f"{run['server_cpu_ms']:.2f}", failed, met or ""
        )
    console.print(table)


def show_streamed(console: Console, runs: list[dict[str, Any]]) -> None:
    """A line a kind and size."""
    table = Table(
        box=box.SIMPLE,
        pad_edge=False,
        title="audiences streamed whole to one client, medians; memory: the most beyond what was resident before",
        caption=f"goal: {GOAL_MB_S:g} MB/s of ids and scores. The client is Client.members, but for `repeated`",
    )
    columns = ("members", "what", "MB/s", "M members/s", "server CPU s", "client CPU s", "server MiB", "client MiB")
    for column in (*columns, "taken up", "met"):
        table.add_column(column, justify="left" if column == "what" else "right", no_wrap=True)
    for run in runs:
        met = "packed" in run["kind"] and ("yes" if run["mb_per_second"] >= GOAL_MB_S else "no")
        table.add_row(
            f"{run['count']:,}",
            run["kind"],
            f"{run['mb_per_second']:.0f}",
            "" if "bytes" in run["kind"] else f"{run['count'] / run['seconds'] / 1e6:.1f}",
            f"{run['server_cpu_seconds']:.2f}",
            f"{run['cpu_seconds']:.2f}",
            f"{run['server_grown_bytes'] / MEBIBYTE:.0f}",
            f"{run['grown_bytes'] / MEBIBYTE:.0f}",
            "" if "same" not in run else "same" if run["same"] else "OTHERS",
            met or "",
        )
    console.print(table)


if __name__ == "__main__":
    sys.exit(main())
