"""`make bench-score`: users a second of the native engine beside PyTorch on the same weights, users and cores.

    make bench-score [ARGS='--case lean --levels --json results.json']
    python benchmarks/score.py [--case NAME ...] [--model FILE --pool DIR] [--levels] [--skip compile] [--json FILE|-]

Runs `engines.py` with as many threads for every engine. Shows tables; with --json it writes one document of everything,
on stdout if FILE is `-` (the tables go to stderr then). The goals are shown, not enforced: the exit code tells whether
every engine's scores were right. torch.compile needs a C++ compiler; without one its lines say so.
"""

from __future__ import annotations

import argparse
import os
import platform
import shlex
import sys
import tempfile
from pathlib import Path
from typing import Any, Final, NamedTuple

from competitors import thread_environment, whole
from rich import box
from rich.console import Console
from rich.table import Table
from scoring_cases import CASES
from topk import FailedError, machine, run, version, write_json

ENGINES: Final = Path(__file__).with_name("engines.py")
DISTRIBUTIONS: Final = ("lookalike", "numpy", "torch")
WIDTH: Final = 150
NATIVE: Final = "native"
SKIPPABLE: Final = ("compile", "folded", "bfloat16")


class Goal(NamedTuple):
    """At least so much, on two cores with AVX-512 for `users_per_second`."""

    case: str
    figure: str
    bound: float


GOALS: Final = (
    Goal("lean", "users_per_second", 3.5e6),
    Goal("lean", "native_to_torchscript", 15),
    Goal("lean", "native_to_best", 5),
    Goal("tencent", "native_to_torchscript", 8),
)
FIGURES: Final = {
    "users_per_second": "users/s",
    "native_to_torchscript": "x TorchScript float32",
    "native_to_best": "x the best of PyTorch",
}


def main() -> int:
    """The command line; 1 if an engine's scores are wrong or there are none."""
    arguments = _parse()
    # Results alone on stdout, where they are asked for there.
    console = Console(stderr=arguments.json == "-", width=WIDTH, highlight=False)
    try:
        document = measure(arguments)
    except FailedError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    show(console, document)
    if arguments.json:
        write_json(document, arguments.json)
    return 1 if any("wrong" in way for case in document["cases"] for way in case["ways"]) else 0


def _parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add_arguments(parser)
    parser.add_argument("--json", metavar="FILE", help="write everything there; - is stdout")
    arguments = parser.parse_args()
    if arguments.json and not Path(arguments.json).parent.is_dir():
        parser.error(f"--json: there is no folder {Path(arguments.json).parent}")  # sooner than after five minutes
    if (arguments.model is None) != (arguments.pool is None):
        parser.error("--model and --pool go together")
    return arguments


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Those of `engines.py`."""
    parser.add_argument("--case", action="append", choices=CASES, help="again for several; default: all")
    parser.add_argument("--model", type=Path, help="a customised model (model.pt) instead of the cases; with --pool")
    parser.add_argument("--pool", type=Path, help="whose first users the model scores")
    parser.add_argument("--users", type=whole, default=4_000_000, help="to choose from; an engine scores a part (4e6)")
    parser.add_argument("--threads", type=whole, default=len(os.sched_getaffinity(0)), help="of every engine (all)")
    parser.add_argument("--repeat", type=whole, default=5, help="runs of each engine (5)")
    parser.add_argument("--seconds", type=float, default=0.5, help="that a run should last (0.5)")
    parser.add_argument("--levels", action="store_true", help="the native engine at every instruction set, too")
    parser.add_argument(
        "--skip", action="append", default=[], choices=SKIPPABLE, help="variants of PyTorch; again for several"
    )


def measure(arguments: argparse.Namespace) -> dict[str, Any]:
    """Run everything; the document of --json.

    Raises:
        FailedError: there is no result; the program has said why.
    """
    threads = arguments.threads
    with tempfile.TemporaryDirectory(prefix="bench-score-inductor-") as cache:
        # Compiled afresh, so that the times of compiling are, and gone afterwards.
        environment = {**thread_environment(threads), "TORCHINDUCTOR_CACHE_DIR": cache}
        lines, code = run(_command(arguments, threads), environment)
    if code != 0 and not any("wrong" in way for case in lines[1:] for way in case["ways"]):
        raise FailedError(f"engines.py ended with {code}" + (", as said above" if code > 0 else ", by a signal"))
    peaks, *cases = lines
    return {
        "command": shlex.join(["python", "benchmarks/score.py", *sys.argv[1:]]),
        "machine": machine(),
        "threads": threads,
        "python": platform.python_version(),
        "packages": {name: version(name) for name in DISTRIBUTIONS},
        "repeat": arguments.repeat,
        "skipped": arguments.skip,
        **peaks,
        "cases": cases,
        "goals": goals(cases),
    }


def _command(arguments: argparse.Namespace, threads: int) -> list[str]:
    command = [sys.executable, str(ENGINES), "--threads", str(threads)]
    for name in ("users", "repeat", "seconds"):
        command += [f"--{name}", str(getattr(arguments, name))]
    for name in ("case", "skip"):
        command += [word for value in getattr(arguments, name) or [] for word in (f"--{name}", value)]
    if arguments.model is not None:
        command += ["--model", str(arguments.model), "--pool", str(arguments.pool)]
    return [*command, "--levels"] if arguments.levels else command


def goals(cases: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Those of the cases that were run, judged."""
    found = {case["case"]: case for case in cases}
    judged = []
    for goal in GOALS:
        if goal.case in found:
            value = figure(found[goal.case], goal.figure)
            met = value >= goal.bound
            judged.append({"case": goal.case, "figure": goal.figure, "goal": goal.bound, "value": value, "met": met})
    return judged


def figure(case: dict[str, Any], name: str) -> float:
    """Of a goal."""
    if name in case:
        return float(case[name])
    return float(next(way[name]["median"] for way in case["ways"] if way["way"] == NATIVE))


def show(console: Console, document: dict[str, Any]) -> None:
    """A table a case, then the goals."""
    host = document["machine"]
    peak = document["roofline"]
    half = peak["bfloat16_multiply_adds_per_second"]
    console.print(
        f"{host['cpu']}, {document['threads']} threads, {document['simd_level']}\n"
        f"peaks: {peak['float32_multiply_adds_per_second'] / 1e9:.0f} G multiply-adds/s in float32, "
        f"{f'{half / 1e9:.0f} G' if half else 'none'} in bfloat16; "
        f"{peak['memory_bytes_per_second'] / 1e9:.1f} GB/s from memory"
    )
    if document["skipped"]:
        console.print(f"left out of PyTorch: {', '.join(document['skipped'])}")
    for case in document["cases"]:
        console.print(_table(case))
        for way in case["ways"]:
            if "failed" in way:
                console.print(f"{way['way']} failed: {way['failed']}")
    for goal in document["goals"]:
        value, bound = (
            (f"{goal['value'] / 1e6:.2f} M", f"{goal['goal'] / 1e6:g} M")
            if goal["figure"] == "users_per_second"
            else (f"{goal['value']:.1f}", f"{goal['goal']:g}")
        )
        console.print(
            f"{goal['case']}: {value} {FIGURES[goal['figure']]}, goal ≥ {bound}: {'met' if goal['met'] else 'NOT MET'}"
        )


def _table(case: dict[str, Any]) -> Table:
    perfect, scorer = case["bounds"]["float32"], case["bounds"]["scorer"]
    kind = f"{case['fields']} fields" + (f", {case['multi_valued']} multi-valued" if case["multi_valued"] else "")
    table = Table(
        box=box.SIMPLE,
        pad_edge=False,
        title=f"{case['case']}: {kind}, {case['ids']:,} ids, {case['ids_per_user']:.1f} a user; "
        f"{case['experts']} experts",
        caption=f"native: {case['native_to_best']:.2f} x the best of PyTorch ({case['best_pytorch']}); perfect "
        f"float32, unfolded: {_millions(perfect['users_per_second'])} M/s; bound of the scorer, by {scorer['by']}: "
        f"{_millions(scorer['users_per_second'])} M/s, tables of {case['table_bytes'] / 2**20:.1f} MiB",
    )
    columns = (
        "engine",
        "M users/s",
        "min",
        "max",
        "x",
        "batch",
        "max |Δp|",
        "99.99%",
        "max logit",
        "99.99%",
        "ready s",
    )
    for column in columns:
        table.add_column(column, justify="left" if column == "engine" else "right", no_wrap=True)
    for way in case["ways"]:
        if "failed" in way:
            continue
        rate, error = way["users_per_second"], way["error"]
        table.add_row(
            way["way"],
            *(_millions(rate[each]) for each in ("median", "min", "max")),
            f"WRONG: {way['wrong']}" if "wrong" in way else f"{way['ratio']:.2f}",
            f"{way['batch']:,}" if way["batch"] else "",
            *(f"{error[kind][each]:.1e}" for kind in ("p", "logit") for each in ("max", "q9999")),
            f"{way['prepare_seconds']:.2f}",
            style="bold" if way["way"] == NATIVE else "",
        )
    return table


def _millions(rate: float) -> str:
    return f"{rate / 1e6:.3g}"


if __name__ == "__main__":
    sys.exit(main())
