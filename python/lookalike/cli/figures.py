"""`lookalike figures`: every figure of a dataset's results, from what the benchmark stored and from looks inside.

Knows `evaluation`; systems load what they need (torch, scikit-learn) when they run.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from lookalike.cli import display
from lookalike.cli.bench import folder_of, watching


def figures(
    dataset: Annotated[
        Path,
        typer.Argument(metavar="DATASET_DIR", help="Folder with users, campaigns and samples.", show_default=False),
    ],
    only: Annotated[str | None, typer.Option(metavar="A,B,...", help="Which figures.  [default: all]")] = None,
    category: Annotated[
        str | None,
        typer.Option(
            metavar="FIELD", help="What groups campaigns; of a list the first value.  [default: the first that does]"
        ),
    ] = None,
    samples: Annotated[int | None, typer.Option(help="As of `bench`.")] = None,
    limit: Annotated[int | None, typer.Option(help="As of `bench`.")] = None,
    grouped: Annotated[str | None, typer.Option(metavar="FIELD", help="As of `bench`.")] = None,
    output: Annotated[
        Path | None,
        typer.Option("--output", "-o", metavar="FOLDER", help="That of `bench`.  [default: .bench/NAME]"),
    ] = None,
    threads: Annotated[int, typer.Option(help="Of torch.")] = 1,
    fresh: Annotated[bool, typer.Option("--fresh", help="Measure again what is kept for the figures.")] = False,
) -> None:
    """Draw every figure as PNG and SVG into FOLDER/figures; with the options of a benchmark, from its results.

    \b
    auc_by_seeds     AUC of campaigns with about as many seeds       stored results
    auc_by_group     AUC of the two groups of campaigns              stored results
    adaptation_loss  training loss by epoch                          stored results
    convergence      training loss and AUC by iteration              trains 5 systems
    representations  campaigns as experts see them, by t-SNE         trains 2 of them
    gates            which critics weigh how much for a campaign     the same
    calibration      recall foretold against recall found            trains ours

    Systems train as in run 0 of the benchmark, at the rates it tuned; without these, they are tuned first. What was
    measured is kept in FOLDER/figures/data: the same command draws it again without training.

    \b
    Examples:
      lookalike figures ml1m
      lookalike figures ml1m --only representations,gates --category decade
      lookalike figures ml1m --samples 100000 --limit 20
    """
    from lookalike.evaluation.bench import Bench, check_numbers
    from lookalike.evaluation.illustrate import illustrate
    from lookalike.evaluation.systems.registry import SYSTEMS
    from lookalike.scoring.compiled import compute_threads

    check_numbers(threads=threads)
    names = None if only is None else [name.strip() for name in only.split(",") if name.strip()]
    folder = output or folder_of(dataset, limit=limit, samples=samples, grouped=grouped)
    with watching() as watch, compute_threads(threads):
        bench = Bench.open(dataset, folder, samples=samples, limit=limit, grouped=grouped, watch=watch)
        drawn = illustrate(bench, SYSTEMS, only=names, category=category, fresh=fresh)
    display.table(drawn.facts)
    for path in drawn.paths:
        display.say(str(path))
