"""`lookalike train` and `archive`: making the general model and packing it for TorchServe.

Knows `training` and `runtime.archive`.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from lookalike.cli import display
from lookalike.cli.options import CheckpointFolder, ConfigFile, Overrides, PoolFolder, configuration

if TYPE_CHECKING:
    from lookalike.training.pretraining import TrainingProgress


def train(
    dataset: Annotated[Path, typer.Argument(metavar="DATASET", help="Folder with users, campaigns and samples.")],
    pool: PoolFolder,
    output: Annotated[Path, typer.Option("--output", "-o", metavar="FOLDER", help="Checkpoint folder to write.")],
    resume: Annotated[bool, typer.Option(help="Continue a run that was stopped before.")] = True,
    config: ConfigFile = None,
    overrides: Overrides = None,
) -> None:
    """Train the general model on a dataset's training campaigns.

    Ctrl-C keeps what was learnt: the same command goes on from there.

    \b
    Examples:
      lookalike train ml1m --pool pool --output general
      lookalike train ml1m --pool pool --output general --set training.max_seconds=300
    """
    settings = configuration(config, overrides)

    from lookalike.dataset.layout import Dataset
    from lookalike.pool.snapshot import Pool
    from lookalike.training.pretraining import train as pretrain

    with display.interruptible() as asked, display.progress() as report:

        def show(step: TrainingProgress) -> None:
            validation = "" if step.validation_auc is None else f", AUC {step.validation_auc:.4f}"
            report("samples", step.samples, step.total_samples, f"loss {step.query_loss:.4f}{validation}")

        checkpoint = pretrain(
            *(Dataset.open(dataset), Pool.open(pool), output, settings),
            resume=resume,
            progress=show,
            cancelled=asked.is_set,
        )
    display.table([("checkpoint", output), *checkpoint.metrics.items()])


def archive(
    checkpoint: CheckpointFolder,
    output: Annotated[
        Path | None, typer.Option("--output", "-o", metavar="FILE", help="Default: torchserve.archive.")
    ] = None,
    config: ConfigFile = None,
    overrides: Overrides = None,
) -> None:
    """Pack a checkpoint and the handler into an archive for TorchServe, with torch-model-archiver.

    `lookalike serve` does this by itself; call it to look at the archive or to take it elsewhere.

    \b
    Example:
      lookalike archive --checkpoint general --output model_store/lookalike.mar
    """
    from lookalike.runtime.archive import build_archive

    settings = configuration(config, overrides, checkpoint=checkpoint)
    written = build_archive(checkpoint, output or settings.torchserve.archive, settings)
    display.table([("archive", written), ("bytes", written.stat().st_size)])
