"""`make bench-ingest`: from Parquet to a pool, beside a plain read of the same columns.

    make bench-ingest [ARGS='--users 2e7 --json results.json']
    python benchmarks/ingest.py [--users 4e6] [--repeat 5] [--memory-gib 4] [--folder DIR] [--json FILE|-]

Users have 64-bit ids and 14 single-valued fields, half of them strings and half integers, of 100 values each. The plain
read decodes every column with pyarrow on all cores, strings as dictionaries, and drops it: no ingest can be quicker.
The schema is given, as for every pool after the first. Each run is a process of its own, so that its memory is; files
are warm in the page cache. The goal is shown, not enforced.
"""

from __future__ import annotations

import argparse
import multiprocessing
import platform
import resource
import shlex
import sys
import tempfile
import time
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from importlib import metadata
from pathlib import Path
from typing import Any, Final

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from competitors import spread, whole
from rich import box
from rich.console import Console
from rich.table import Table
from topk import machine, write_json

from lookalike.dataset.parquet import ParquetSource
from lookalike.pool.ingest import ingest
from lookalike.schema import FeatureSchema, Field, FieldKind

FIELDS: Final = 14
VALUES: Final = 100
MISSING: Final = 0.05
GROUP_ROWS: Final = 1 << 20
GOAL_USERS_PER_SECOND: Final = 1e6
MEBIBYTE: Final = 2**20

SCHEMA: Final = FeatureSchema(
    tuple(
        Field(f"f{number}", FieldKind.CATEGORICAL, tuple(f"value_{v}" if number % 2 else str(v) for v in range(VALUES)))
        for number in range(FIELDS)
    )
)


def main() -> int:
    """The command line."""
    arguments = _parse()
    document = measure(arguments.users, arguments.repeat, arguments.memory_gib, arguments.folder)
    show(Console(stderr=arguments.json == "-", width=120), document)
    if arguments.json:
        write_json(document, arguments.json)
    return 0


def _parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--users", type=whole, default=4_000_000, help="how many (4e6)")
    parser.add_argument("--repeat", type=whole, default=5, help="runs of each case (5)")
    parser.add_argument("--memory-gib", type=float, default=4.0, help="what the sort may use before it spills (4)")
    parser.add_argument("--folder", type=Path, help="where files go meanwhile; default: the temporary folder")
    parser.add_argument("--json", metavar="FILE", help="write everything there; - is stdout")
    return parser.parse_args()


def measure(users: int, repeat: int, memory_gib: float, folder: Path | None) -> dict[str, Any]:
    """Make the files, run everything; the document of --json."""
    with tempfile.TemporaryDirectory(prefix="bench-ingest-", dir=folder) as scratch:
        cases = []
        for order in ("shuffled", "ascending"):
            path = Path(scratch) / f"{order}.parquet"
            write(path, users, shuffled=order == "shuffled")
            cases.append({"case": f"plain read, {order}", "bytes": path.stat().st_size, **run(repeat, read, path)})
            pool = Path(scratch) / "pool"
            cases.append({"case": f"ingest, {order}", **run(repeat, ingest_once, path, pool, memory_gib)})
            path.unlink()
    for case in cases:
        case["users_per_second"] = users / case["seconds"]["median"]
    return {
        "command": shlex.join(["python", "benchmarks/ingest.py", *sys.argv[1:]]),
        "machine": machine(),
        "threads": pa.cpu_count(),
        "python": platform.python_version(),
        "packages": {name: metadata.version(name) for name in ("lookalike", "pyarrow", "duckdb", "numpy")},
        "users": users,
        "fields": FIELDS,
        "memory_gib": memory_gib,
        "goal_users_per_second": GOAL_USERS_PER_SECOND,
        "cases": cases,
    }


def write(path: Path, users: int, *, shuffled: bool) -> None:
    """Users by the seed 0; group by group, so that only their ids stand in memory."""
    rng = np.random.default_rng(0)
    ids = np.arange(users, dtype=np.int64) * 3 + 7
    if shuffled:
        rng.shuffle(ids)
    words = pa.array([f"value_{v}" for v in range(VALUES)])
    names = [field.name for field in SCHEMA.fields]
    schema = pa.schema(
        [("user_id", pa.int64()), *((name, pa.string() if n % 2 else pa.int64()) for n, name in enumerate(names))]
    )
    with pq.ParquetWriter(path, schema) as writer:
        for start in range(0, users, GROUP_ROWS):
            part = ids[start : start + GROUP_ROWS]
            columns = [pa.array(part)]
            for number in range(FIELDS):
                value = np.minimum(rng.zipf(1.3, len(part)), VALUES) - 1
                taken = pa.array(value, mask=rng.random(len(part)) < MISSING)
                columns.append(words.take(taken) if number % 2 else taken)
            writer.write_table(pa.table(columns, schema=schema))


def run(repeat: int, work: Callable[..., None], *arguments: object) -> dict[str, Any]:
    """The seconds of each run, of processor too, and the most memory any took; one run before them warms the cache."""
    spawn = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(1, mp_context=spawn, max_tasks_per_child=1) as processes:
        runs = [processes.submit(timed, work, *arguments).result() for _ in range(repeat + 1)][1:]
    return {
        "repeat": repeat,
        "seconds": spread([seconds for seconds, _, _ in runs]),
        "cpu_seconds": spread([cpu for _, cpu, _ in runs]),
        "peak_bytes": max(peak for _, _, peak in runs),
    }


def timed(work: Callable[..., None], *arguments: object) -> tuple[float, float, int]:
    """Seconds, seconds of processor, and the highest resident size in bytes."""
    started, cpu = time.perf_counter(), time.process_time()
    work(*arguments)
    seconds, cpu = time.perf_counter() - started, time.process_time() - cpu
    return seconds, cpu, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def read(path: Path) -> None:
    """The roofline."""
    names = ["user_id", *(field.name for field in SCHEMA.fields)]
    for _ in ParquetSource.open(path).batches(names, 1 << 18, dictionaries=True):
        pass


def ingest_once(path: Path, pool: Path, memory_gib: float) -> None:
    """What is measured."""
    ingest(path, pool, schema=SCHEMA, memory_gib=memory_gib, overwrite=True)


def show(console: Console, document: dict[str, Any]) -> None:
    """A line a case."""
    host = document["machine"]
    table = Table(
        box=box.SIMPLE,
        pad_edge=False,
        title=f"{document['users']:,} users, {document['fields']} fields; {host['cpu']}, {host['cores']} cores",
        caption=f"medians; goal of ingest: {document['goal_users_per_second'] / 1e6:g} M users/s",
    )
    for column in ("case", "seconds", "CPU seconds", "M users/s", "peak MiB", "met"):
        table.add_column(column, justify="left" if column in {"case", "met"} else "right", no_wrap=True)
    for case in document["cases"]:
        met = "yes" if case["users_per_second"] >= document["goal_users_per_second"] else "no"
        table.add_row(
            case["case"],
            f"{case['seconds']['median']:.2f}",
            f"{case['cpu_seconds']['median']:.2f}",
            f"{case['users_per_second'] / 1e6:.2f}",
            f"{case['peak_bytes'] / MEBIBYTE:.0f}",
            met if case["case"].startswith("ingest") else "",
        )
    console.print(table)


if __name__ == "__main__":
    sys.exit(main())
