"""`lookalike bench`: every system on one dataset, and the table.

Knows `evaluation`; systems load what they need (torch, scikit-learn) when they run.
"""

from __future__ import annotations

import shlex
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from lookalike.cli import display

if TYPE_CHECKING:
    from lookalike.evaluation.summary import Summary
    from lookalike.evaluation.systems.registry import Factory
    from lookalike.evaluation.watch import Watch

ROOT = Path(".bench")
# Each holds the samples, and the users it has to do with, in memory.
MOST_JOBS = 4


def bench(
    dataset: Annotated[
        Path,
        typer.Argument(metavar="DATASET_DIR", help="Folder with users, campaigns and samples.", show_default=False),
    ],
    systems: Annotated[
        str | None, typer.Option(metavar="A,B,...", help="Which rows of the table, by their keys.  [default: all]")
    ] = None,
    runs: Annotated[int, typer.Option(help="How many runs; they differ in seed and split.")] = 5,
    limit: Annotated[
        int | None, typer.Option(help="Test campaigns a run at most, the same for every system: a quick look.")
    ] = None,
    samples: Annotated[
        int | None,
        typer.Option(help="Of pre-training, the same for every system.  [default: one pass, 2,000,000 at most]"),
    ] = None,
    grouped: Annotated[
        str | None,
        typer.Option(metavar="FIELD", help="Hold out whole groups of campaigns: those of one author_id, say."),
    ] = None,
    output: Annotated[
        Path | None,
        typer.Option("--output", "-o", metavar="FOLDER", help="Results and tables.  [default: .bench/NAME]"),
    ] = None,
    jobs: Annotated[
        int | None,
        typer.Option(help=f"Processes that measure side by side.  [default: one a core, {MOST_JOBS} at most]"),
    ] = None,
    threads: Annotated[int | None, typer.Option(help="Of torch, in each job.  [default: 1]")] = None,
    fresh: Annotated[bool, typer.Option("--fresh", help="Measure these systems again, whatever is stored.")] = False,
    table_only: Annotated[bool, typer.Option("--table-only", help="Measure nothing: show what is finished.")] = False,
) -> None:
    """Train and evaluate every system under one protocol and one budget, and write the table.

    Jobs share the work; what is measured does not depend on their number. A run that is finished is kept: after Ctrl-C
    the same command goes on from there. The table is written after every run, as text, Markdown, CSV and JSON. Rates
    are tuned on held-out training campaigns, never on test campaigns.
    `lookalike figures` draws what is stored.

    \b
    Examples:
      lookalike bench ml1m
      lookalike bench ml1m --systems lr,lookalike --runs 1 --limit 20
      lookalike bench kuairand --grouped author_id
      lookalike bench ml1m --table-only
    """
    from lookalike.evaluation.bench import usable_cores
    from lookalike.evaluation.systems.registry import chosen

    rows = chosen(None if systems is None else [key.strip() for key in systems.split(",") if key.strip()])
    options = {"runs": runs, "limit": limit, "samples": samples, "grouped": grouped}
    folder = output or folder_of(dataset, limit=limit, samples=samples, grouped=grouped)
    command = _command(dataset, {"systems": systems, **options, "output": output, "jobs": jobs, "threads": threads})
    if table_only:
        summary = _stored(folder, list(rows), dataset, runs, command)
    else:
        options |= {
            "jobs": min(usable_cores(), MOST_JOBS) if jobs is None else jobs,
            "threads": 1 if threads is None else threads,
        }
        summary = _measured(dataset, folder, rows, options | {"fresh": fresh, "command": command})
    _show(summary, folder)


def _measured(dataset: Path, folder: Path, rows: Mapping[str, Factory], options: Mapping[str, Any]) -> Summary:
    from lookalike.evaluation.bench import run_bench

    with watching() as watch:
        return run_bench(dataset, folder, rows, **options, watch=watch)


@contextmanager
def watching() -> Iterator[Watch]:
    """Progress on the terminal, and Ctrl-C that lets a step end."""
    from lookalike.evaluation.watch import Watch

    with display.interruptible() as asked, display.progress() as report:
        yield Watch(report, asked.is_set)


def _stored(folder: Path, rows: list[str], dataset: Path, runs: int, command: str) -> Summary:
    from lookalike.evaluation.bench import summary_of
    from lookalike.evaluation.results import ResultFolder

    return summary_of(ResultFolder.open(folder), rows, name=dataset.resolve().name, runs=runs, command=command)


def _show(summary: Summary, folder: Path) -> None:
    from rich.console import Console

    from lookalike.evaluation.table import TEXT_WIDTH, print_to, write_all

    written = write_all(summary, folder)
    console = Console()
    print_to(console if console.is_terminal else Console(width=TEXT_WIDTH), summary)
    for path in written:
        display.say(str(path))


def folder_of(dataset: Path, *, limit: int | None, samples: int | None, grouped: str | None) -> Path:
    """Where results lie if nothing else is said: quick looks and other protocols beside the whole, not in its way."""
    options = {"limit": limit, "samples": samples, "grouped": grouped}
    parts = [f"{name}-{value}" for name, value in options.items() if value is not None]
    return ROOT / "-".join([dataset.resolve().name, *parts])


def _command(dataset: Path, options: Mapping[str, object]) -> str:
    words = ["lookalike", "bench", str(dataset)]
    for name, value in options.items():
        if value is not None:
            words += [f"--{name}", str(value)]
    return shlex.join(words)
