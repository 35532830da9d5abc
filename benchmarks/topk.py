"""`make bench-topk`: the top-K beside a plain scan of the same scores, and beside what a user might take instead.

    make bench-topk [ARGS='--quick --json results.json']
    python benchmarks/topk.py [--rows 1e9] [--repeat 5] [--quick] [--no-baselines] [--only PART] [--json FILE|-]

Runs the program `bench_topk` (csrc/bench), then `competitors.py` for each package. Shows tables; with --json it writes
one document of everything, on stdout if FILE is `-` (the tables go to stderr then). The goals are shown, not enforced:
the exit code tells only whether every selection was right.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import re
import shlex
import signal
import subprocess
import sys
from importlib import metadata
from pathlib import Path
from typing import Any, Final, NamedTuple

from competitors import PACKAGES, thread_environment, whole
from rich import box
from rich.console import Console
from rich.table import Table

ROOT: Final = Path(__file__).resolve().parents[1]
COMPETITORS: Final = Path(__file__).with_name("competitors.py")
PROGRAM: Final = ROOT / "build" / "bench" / "csrc" / "bench" / "bench_topk"

ROWS: Final = 1_000_000_000
QUICK_ROWS: Final = 100_000_000
# All of them fit in memory with so many; a fifth of ROWS.
COMPARED_ROWS: Final = 200_000_000
QUICK_COMPARED_ROWS: Final = 20_000_000
COMPARED_K: Final = (1_000, 1_000_000)
QUICK_K: Final = (1_000, 1_000_000)
DISTRIBUTIONS: Final = ("lookalike", "numpy", "torch", "duckdb", "pyarrow", "polars", "faiss-cpu")
MEBIBYTE: Final = 2**20
WIDTH: Final = 170  # of the tables, whatever the window: a log has none


class Goal(NamedTuple):
    """What a figure is to be: at most, or at least, `bound`."""

    figure: str
    bound: float
    at_least: bool = False

    def met(self, value: float) -> bool:
        return value >= self.bound if self.at_least else value <= self.bound

    def text(self) -> str:
        sign = "≥" if self.at_least else "≤"
        return f"{sign} {self.bound:g} x {FIGURES[self.figure]}"


FIGURES: Final = {
    "ratio": "scan",
    "reference_ratio": "memory",  # the same k pushed at once, without what the case is about
    "competitor": "ours",
}

# By the first pattern that begins a case's name. Stated for ROWS rows, and for COMPARED_ROWS beside competitors.
GOALS: Final = {
    r"memory/random/k=1000/": Goal("ratio", 1.1),
    r"memory/random/k=100000/": Goal("ratio", 1.1),
    r"memory/random/k=1000000/": Goal("ratio", 2.5),
    r"memory/random/k=10000000/": Goal("ratio", 5),
    r"memory/[a-z]+/k=1000000/": Goal("ratio", 6),
    r"skip/": Goal("reference_ratio", 1.3),
    r"distribution/": Goal("reference_ratio", 1.15),
    r"stream/.*/chunk=(?!4096$)": Goal("reference_ratio", 1.3),
    r"numpy.argpartition/k=1000$": Goal("competitor", 50, at_least=True),
    r"torch.topk/k=1000$": Goal("competitor", 100, at_least=True),
}


class FailedError(Exception):
    """No results, or wrong ones."""


def main() -> int:
    """The command line; 1 if a result is wrong or there is none."""
    arguments = _parse()
    # Results alone on stdout, where they are asked for there.
    console = Console(stderr=arguments.json == "-", width=WIDTH)
    try:
        document = measure(arguments)
    except FailedError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    show_cases(console, document)
    show_comparison(console, document)
    if arguments.json:
        write_json(document, arguments.json)
    return 1 if any("failed" in one for one in document["comparison"]) else 0


def write_json(document: dict[str, Any], target: str) -> None:
    """To stdout if `target` is `-`, else to that file, whole or not at all."""
    text = json.dumps(document, indent=2) + "\n"
    if target == "-":
        sys.stdout.write(text)
        return
    beside = Path(f"{target}.tmp")
    beside.write_text(text, encoding="utf-8")
    beside.replace(target)


def _parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=whole, help="scores in memory (1e9)")
    parser.add_argument("--threads", type=whole, default=len(os.sched_getaffinity(0)), help="most threads (all)")
    parser.add_argument("--repeat", type=whole, help="runs of each case (5; 3 of a competitor)")
    parser.add_argument("--quick", action="store_true", help="1e8 rows, fewer cases, 3 runs")
    parser.add_argument("--baselines", action=argparse.BooleanOptionalAction, default=True, help="the competitors too")
    parser.add_argument("--only", default="", help="the cases of bench_topk with this in their name")
    parser.add_argument("--json", metavar="FILE", help="write everything there; - is stdout")
    parser.add_argument("--program", type=Path, default=PROGRAM, help="bench_topk, where make bench-topk puts it")
    arguments = parser.parse_args()
    if arguments.json and not Path(arguments.json).parent.is_dir():
        parser.error(f"--json: there is no folder {Path(arguments.json).parent}")  # sooner than after half an hour
    return arguments


def measure(arguments: argparse.Namespace) -> dict[str, Any]:
    """Run everything; the document of --json.

    Raises:
        FailedError: a selection was wrong, or a program did not run.
    """
    rows = arguments.rows or (QUICK_ROWS if arguments.quick else ROWS)
    compared_rows = min(rows, QUICK_COMPARED_ROWS if arguments.quick else COMPARED_ROWS)
    command = _program_command(arguments, rows, compared_rows)
    lines, code = run(command)
    if code != 0:
        raise FailedError(f"bench_topk ended with {code}" + (", as said above" if code > 0 else ", by a signal"))
    environment, *cases = lines
    comparison = [from_standard_library(case) for case in cases if case["kind"].startswith("std::")]
    cases = [case for case in cases if not case["kind"].startswith("std::")]
    if arguments.baselines:
        for package in PACKAGES:
            comparison += compare(package, compared_rows, arguments.threads, arguments.repeat or 3)
    for case in cases:
        case["goals"] = goals(case)
    for one in comparison:
        one["goals"] = competitor_goals(one)
    return {
        "command": shlex.join(["python", "benchmarks/topk.py", *sys.argv[1:]]),
        "programs": [shlex.join([Path(command[0]).name, *command[1:]])],
        "machine": machine(),
        "threads": arguments.threads,
        "environment": environment["environment"],
        "python": platform.python_version(),
        "packages": {name: version(name) for name in DISTRIBUTIONS},
        "cases": cases,
        "comparison": comparison,
    }


def _program_command(arguments: argparse.Namespace, rows: int, compared_rows: int) -> list[str]:
    if not arguments.program.is_file():
        raise FailedError(f"there is no {arguments.program}: make bench-topk builds it")
    threads = [arguments.threads] if arguments.quick else sorted({1, arguments.threads})
    command = [
        str(arguments.program),
        *("--rows", str(rows)),
        *("--threads", ",".join(map(str, threads))),
        *("--repeat", str(arguments.repeat or (3 if arguments.quick else 5))),
        *("--baseline-rows", str(compared_rows if arguments.baselines else 0)),
    ]
    if arguments.quick:
        command += ["--k", ",".join(map(str, QUICK_K))]
    if arguments.only:
        command += ["--only", arguments.only]
    return command


def run(command: list[str], environment: dict[str, str] | None = None) -> tuple[list[dict[str, Any]], int]:
    """The JSON lines that a program writes, and its exit code; its progress goes to stderr."""
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=environment) as process:
        assert process.stdout is not None
        lines = [json.loads(line) for line in process.stdout]
    return lines, process.returncode


def compare(package: str, rows: int, threads: int, repeat: int) -> list[dict[str, Any]]:
    """One package's ways."""
    print(f"{package} on {rows:,} scores ...", file=sys.stderr)
    ks = ",".join(map(str, COMPARED_K))
    command = [sys.executable, str(COMPETITORS), package, "--rows", str(rows), "--k", ks]
    command += ["--threads", str(threads), "--repeat", str(repeat)]
    results, code = run(command, thread_environment(threads))
    if code > 0:  # the others are worth having nevertheless
        results.append({"competitor": package, "rows": rows, "failed": "a wrong result, or none; it is said above why"})
    if code < 0:  # not its own end: most likely the system's, for want of memory
        reason = f"ended by {signal.Signals(-code).name}; is there memory enough?"
        results.append({"competitor": package, "rows": rows, "skipped": reason})
    return results


def from_standard_library(case: dict[str, Any]) -> dict[str, Any]:
    """As `competitors.py` writes them."""
    return {
        "competitor": case["kind"],
        **{name: case[name] for name in ("rows", "k", "threads", "repeat", "seconds")},
        "our_seconds": case["reference_seconds"],
        "ratio": case["reference_ratio"],
    }


def goals(case: dict[str, Any]) -> list[dict[str, Any]]:
    """Those of a case: its time, and its memory beyond the input."""
    found = goal_of(case["case"], case)
    limit, extra = case["extra_bytes_limit"], case["extra_bytes"]
    if limit is not None and extra is not None:
        goal = f"≤ {limit / MEBIBYTE:.0f}"
        found.append({"of": "memory", "goal": goal, "value": extra / MEBIBYTE, "met": extra <= limit})
    return found


def competitor_goals(result: dict[str, Any]) -> list[dict[str, Any]]:
    """Those beside a competitor, if it ran."""
    if "ratio" not in result:
        return []
    return goal_of(f"{result['competitor']}/k={result['k']}", {"competitor": result["ratio"]})


def goal_of(name: str, figures: dict[str, Any]) -> list[dict[str, Any]]:
    """The first of GOALS that is this case's, judged; none is fine."""
    for pattern, goal in GOALS.items():
        if re.match(pattern, name):
            value = figures[goal.figure]
            return [{"of": "time", "goal": goal.text(), "value": value, "met": goal.met(value)}]
    return []


def machine() -> dict[str, Any]:
    """What the figures depend on, beyond the program's own account."""
    models = re.findall(r"^model name\s*: (.*)$", _read("/proc/cpuinfo"), flags=re.MULTILINE)
    return {
        "cpu": models[0] if models else platform.processor(),
        "cores": len(os.sched_getaffinity(0)),
        "memory_bytes": os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"),
        "system": platform.platform(),
    }


def _read(path: str) -> str:
    try:
        return Path(path).read_text(encoding="utf-8")
    except OSError:
        return ""


def version(distribution: str) -> str | None:
    """Of a package, if it is installed."""
    try:
        return metadata.version(distribution)
    except metadata.PackageNotFoundError:
        return None


def show_cases(console: Console, document: dict[str, Any]) -> None:
    """A line a case, medians; ratios are to the scan with as many threads."""
    environment, host = document["environment"], document["machine"]
    table = Table(
        box=box.SIMPLE,
        pad_edge=False,
        title=f"{environment['rows']:,} scores; {host['cpu']}, {host['cores']} cores, {environment['simd_level']}, "
        f"{environment['compiler']}",
        caption=f"medians; x memory: to the same k pushed at once; scan: seconds, then GB/s; MiB: beyond the input; "
        f"goals are stated for {ROWS:,} scores",
    )
    columns = ("case", "seconds", "scan", "x scan", "x memory", "goal", "met", "GB/s", "scan", "MiB", "goal", "met")
    for column in columns:
        table.add_column(column, justify="left" if column in {"case", "goal", "met"} else "right", no_wrap=True)
    for case in document["cases"]:
        judged = {goal["of"]: goal for goal in case["goals"]}
        extra = case["extra_bytes"]
        table.add_row(
            case["case"],
            _decimal(case["seconds"]["median"]),
            _decimal(case["scan_seconds"]["median"]),
            _decimal(case["ratio"]),
            _decimal(case["reference_ratio"]),
            *_verdict(judged.get("time")),
            _decimal(case["gb_per_second"]),
            _decimal(case["scan_gb_per_second"]),
            "" if extra is None else f"{extra / MEBIBYTE:.0f}",
            *_verdict(judged.get("memory")),
        )
    console.print(table)


def show_comparison(console: Console, document: dict[str, Any]) -> None:
    """A line for each competitor and k; nothing if there are none."""
    if not document["comparison"]:
        return
    table = Table(
        box=box.SIMPLE,
        pad_edge=False,
        title=f"{document['comparison'][0]['rows']:,} random scores, {document['threads']} threads",
        caption="seconds, medians; x ours: how many times as long the competitor takes",
    )
    for column in ("competitor", "k", "seconds", "ours", "np.max", "x ours", "goal", "met"):
        table.add_column(column, justify="left" if column in {"competitor", "goal", "met"} else "right", no_wrap=True)
    for one in document["comparison"]:
        k = f"{one['k']:,}" if "k" in one else ""
        if "skipped" in one or "failed" in one:
            text = f"skipped: {one['skipped']}" if "skipped" in one else f"FAILED: {one['failed']}"
            table.add_row(one["competitor"], k, *[""] * 4, text[:70])
            continue
        scan = one.get("numpy_max_seconds")
        table.add_row(
            one["competitor"],
            k,
            _decimal(one["seconds"]["median"]),
            _decimal(one["our_seconds"]["median"]),
            _decimal(scan["median"] if scan else None),
            _decimal(one["ratio"]),
            *_verdict(next(iter(one["goals"]), None)),
        )
    console.print(table)


def _decimal(value: float | None) -> str:
    """Three digits that count, or nothing."""
    if value is None:
        return ""
    return f"{value:.0f}" if value >= 100 else f"{value:.3g}"


def _verdict(goal: dict[str, Any] | None) -> tuple[str, str]:
    return ("", "") if goal is None else (goal["goal"], "yes" if goal["met"] else "no")


if __name__ == "__main__":
    sys.exit(main())
