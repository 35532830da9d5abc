"""`lookalike backup`: saves what a service keeps, while it serves. Knows `service.backup` and how to print."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Annotated

import typer

from lookalike.cli import display
from lookalike.cli.options import ConfigFile, Overrides, configuration


def backup(
    output: Annotated[Path, typer.Argument(metavar="FOLDER", help="Of the copy; that of an earlier time is renewed.")],
    config: ConfigFile = None,
    overrides: Overrides = None,
) -> None:
    """Save a service's operations, audiences and tokens to a folder. The service may run meanwhile.

    The folder is a data folder itself: with SQLite, copy it back and serve it; PostgreSQL's operations are in it as
    pg_dump writes them, for pg_restore. Saving to it again copies what is new and removes what was forgotten.

    \b
    Examples:
      lookalike backup /backup/lookalike --config /etc/lookalike/lookalike.yaml
      lookalike backup copy --set service.data_dir=lookalike-data
    """
    from lookalike.service.backup import back_up

    saved = asyncio.run(back_up(configuration(config, overrides).service, output))
    audiences = f"{saved.audiences:,} audiences, {saved.copied:,} of them new"
    display.say(f"{output} has {audiences}, and {saved.jobs:,} active operations")
    for name in saved.missing:
        display.say(f"audiences/{name} is in the database, but its folder is gone")
    for name in saved.damaged:
        display.say(f"audiences/{name} is damaged: its files do not fit its receipt, here as in the copy")
