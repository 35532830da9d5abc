"""`lookalike doctor`: what is wrong with an installation. Knows the examination and how to print it."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from lookalike.cli import display
from lookalike.cli.options import AsJson, ConfigFile, Overrides, configuration
from lookalike.errors import DataCorrupted, NotFound

Checkpoint = Annotated[
    Path | None, typer.Option("--checkpoint", metavar="FOLDER", help="The general model that is to be served.")
]
PoolOption = Annotated[Path | None, typer.Option("--pool", metavar="FOLDER", help="The pool that is to be served.")]


def doctor(
    checkpoint: Checkpoint = None,
    pool: PoolOption = None,
    as_json: AsJson = False,
    config: ConfigFile = None,
    overrides: Overrides = None,
) -> None:
    """Say what is wrong with an installation and how to mend it; changes nothing, and may run beside the service.

    Checks software, checkpoint, pool, archive, folders, disk, limits, ports, database, certificates and clock, with the
    configuration that `lookalike serve` is given. Exit code 1 when something fails.

    \b
    Examples:
      lookalike doctor
      lookalike doctor --checkpoint general --pool pool --config lookalike.yaml --json
    """
    from lookalike.doctor.examination import examine
    from lookalike.doctor.finding import Level

    try:
        settings = configuration(config, overrides, checkpoint=checkpoint)
    except (NotFound, DataCorrupted):  # of the checkpoint, which is one of the findings
        settings = configuration(config, overrides)
    findings = []
    configured = config is not None or bool(overrides)
    for finding in examine(settings, checkpoint=checkpoint, pool=pool, configured=configured):
        findings.append(finding)
        if not as_json:
            typer.echo(f"{finding.level:<5} {finding.check}: {finding.message}")
            if finding.fix:
                typer.echo(f"      fix: {finding.fix}")
    if as_json:
        display.print_json(
            [{"check": one.check, "level": one.level, "message": one.message, "fix": one.fix} for one in findings]
        )
    if any(finding.level is Level.FAIL for finding in findings):
        raise typer.Exit(1)
