"""The `lookalike` command: puts the subcommands together, and ends with an exit code and never with a traceback.

Knows the commands and `exits`. What a command needs it imports when it runs: `--help` must not wait for torch.
"""

from __future__ import annotations

import logging
import signal
import sys
import traceback
from collections.abc import Sequence
from types import FrameType
from typing import Annotated, NoReturn

import typer

from lookalike import __version__
from lookalike.cli import (
    backup,
    bench,
    curation,
    data,
    doctor,
    exits,
    expansion,
    figures,
    insight,
    model,
    pool,
    remote_scoring,
    serving,
    tokens,
)
from lookalike.cli.settings import config_app

HELP = """Lookalike finds, for a campaign and its seed users, the K users of a pool who are most like them.

\b
From nothing to an audience:
  lookalike dataset get ml1m --output ml1m
  lookalike ingest ml1m/users.parquet --output pool
  lookalike train ml1m --pool pool --output general
  lookalike insight --checkpoint general --pool pool --dataset ml1m --campaign 11 --html insight.html
  lookalike expand --checkpoint general --pool pool --dataset ml1m --campaign 11 -k 500 --output audience
  lookalike verify audience

\b
The same as a service:
  lookalike serve --checkpoint general --pool pool --insecure
  lookalike client expand --dataset ml1m --campaign 11 -k 500 --wait
"""

app = typer.Typer(
    name="lookalike",
    help=HELP,
    epilog="\b\n" + exits.SUMMARY,
    no_args_is_help=True,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 120},
)

for command, summary in (
    (data.ingest, "Parquet of users -> pool"),
    (model.train, "dataset and pool -> general model"),
    (insight.insight, "model, pool, seeds -> what to expect of an audience, as a page or JSON"),
    (expansion.expand, "model, pool, seeds -> audience, in this process"),
    (expansion.verify, "check an audience against its receipt"),
    (model.archive, "general model -> archive for TorchServe"),
    (serving.serve, "serve expansions over gRPC"),
    (doctor.doctor, "what is wrong with an installation"),
    (backup.backup, "save what a service keeps, while it serves"),
    (data.simulate, "write a synthetic dataset"),
    (bench.bench, "every system on one dataset: the results table"),
    (figures.figures, "the figures to that table, and looks inside the systems"),
):
    app.command(short_help=summary)(command)
app.add_typer(data.dataset_app, name="dataset", short_help="get and convert published data sets")
app.add_typer(pool.pool_app, name="pool", short_help="look at pools, compare and publish them")
curation.client_app.command()(remote_scoring.score)
app.add_typer(curation.client_app, name="client", short_help="use a running service")
app.add_typer(tokens.token_app, name="token", short_help="say who may use a service")
app.add_typer(config_app, name="config", short_help="look at the configuration")


def _version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"lookalike {__version__}")
        raise typer.Exit


@app.callback()
def _common(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version.")
    ] = False,
    verbose: Annotated[bool, typer.Option("--verbose", "-v", help="Log what happens inside.")] = False,
    debug: Annotated[bool, typer.Option("--debug", help="Show the traceback of an error.")] = False,
) -> None:
    logging.basicConfig(
        level=logging.INFO if verbose else logging.WARNING,
        format="%(asctime)s %(levelname)s %(name)s: %(message)s",
        stream=sys.stderr,
    )


def _terminate(signum: int, frame: FrameType | None) -> NoReturn:
    # As an exception, so that staged files are removed and child processes ended on the way out.
    raise SystemExit(128 + signum)


def run(arguments: Sequence[str]) -> int:
    """Run one command line; returns its exit code. Messages go to stderr, results to stdout."""
    try:
        typer.main.get_command(app).main(args=[a for a in arguments if a != "--debug"], prog_name="lookalike")
    except SystemExit as end:
        return end.code if isinstance(end.code, int) else int(end.code is not None)
    except KeyboardInterrupt:
        return exits.INTERRUPTED
    except Exception as error:
        if "--debug" in arguments:
            traceback.print_exc()
        typer.echo(exits.describe(error), err=True)
        return exits.exit_code(error)
    return 0


def main() -> NoReturn:
    """The console script."""
    signal.signal(signal.SIGTERM, _terminate)
    sys.exit(run(sys.argv[1:]))
