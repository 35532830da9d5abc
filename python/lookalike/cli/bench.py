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
from lookalike.config import available_threads
from lookalike.errors import InvalidInput

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
        typer.Option(
            help="Of pre-training, for every system without a budget of its own.  "
            "[default: one pass, 2,000,000 at most]"
        ),
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
    table_only: Annotated[
        bool,
        typer.Option("--table-only", help="Measure nothing: show what is finished; write it if that is all there is."),
    ] = False,
) -> None:
    """Train and evaluate every system under one protocol, and write the table.

    All but those with a budget of their own pre-train on as many samples; the table says how many each saw. Rates are
    tuned on held-out training campaigns, never on test campaigns. Jobs share the work; what is measured does not depend
    on their number. A run that is finished is kept: after Ctrl-C the same command goes on from there. The table is
    written after every run, as text, Markdown, CSV and JSON.
    `lookalike figures` draws what is stored.

    \b
    Examples:
      lookalike bench ml1m
      lookalike bench ml1m --systems lr,lookalike --runs 1 --limit 20
      lookalike bench kuairand --grouped author_id
      lookalike bench ml1m --table-only
    """
    from lookalike.evaluation.systems.registry import chosen

    rows = chosen(None if systems is None else [key.strip() for key in systems.split(",") if key.strip()])
    options = {"runs": runs, "limit": limit, "samples": samples, "grouped": grouped}
    folder = output or folder_of(dataset, limit=limit, samples=samples, grouped=grouped)
    command = _command(dataset, {"systems": systems, **options, "output": output, "jobs": jobs, "threads": threads})
    if table_only:
        _refuse_beside_table_only({"fresh": fresh or None, "jobs": jobs, "threads": threads})
        _show_stored(dataset, folder, list(rows), options, command)
        return
    options |= {
        "jobs": min(available_threads(), MOST_JOBS) if jobs is None else jobs,
        "threads": 1 if threads is None else threads,
    }
    _print(_measured(dataset, folder, rows, options | {"fresh": fresh, "command": command}))
    _name_files(folder)


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


def _refuse_beside_table_only(given: Mapping[str, object]) -> None:
    for name, value in given.items():
        if value is not None:
            raise InvalidInput(
                f"--{name} is for measuring, and --table-only measures nothing: leave one of them out", field=name
            )


def _show_stored(dataset: Path, folder: Path, rows: list[str], options: Mapping[str, Any], command: str) -> None:
    """Print what was asked for, and write it too if that takes nothing from the tables there."""
    from lookalike.evaluation.bench import check_numbers, stored, summary_of
    from lookalike.evaluation.results import writable
    from lookalike.evaluation.systems.registry import SYSTEMS
    from lookalike.evaluation.table import write_all

    runs: int = options["runs"]
    check_numbers(runs=runs)
    kept = stored(dataset, folder, **{name: options[name] for name in ("samples", "limit", "grouped")})
    summary = summary_of(kept, rows, name=dataset.resolve().name, runs=runs, command=command)
    _print(summary)
    if kept.systems & set(SYSTEMS) <= set(rows) and kept.runs <= runs:
        with writable(folder):
            write_all(summary, folder)
        _name_files(folder)
    else:
        display.say(f"the tables in {folder} are left as they are: there are more systems or runs than were asked for")


def _print(summary: Summary) -> None:
    from rich.console import Console

    from lookalike.evaluation.table import TEXT_WIDTH, print_to

    console = Console()
    print_to(console if console.is_terminal else Console(width=TEXT_WIDTH), summary)


def _name_files(folder: Path) -> None:
    from lookalike.evaluation.table import FILES

    for name in FILES:
        display.say(str(folder / name))


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
