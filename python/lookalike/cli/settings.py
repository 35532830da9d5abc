"""`lookalike config`: what can be configured, and what a command would run with. Knows `config` only."""

from __future__ import annotations

import typer

from lookalike.cli.options import ConfigFile, Overrides, configuration

config_app = typer.Typer(no_args_is_help=True, help="Look at the configuration.", rich_markup_mode=None)


@config_app.callback()
def _group() -> None:
    """Look at the configuration."""


@config_app.command()
def show(config: ConfigFile = None, overrides: Overrides = None) -> None:
    """Print the whole configuration as YAML: the defaults, with FILE and --set applied.

    \b
    Examples:
      lookalike config show > lookalike.yaml
      lookalike config show --config lookalike.yaml --set training.epochs=2
    """
    import yaml
    from pydantic import TypeAdapter

    from lookalike.config import Config

    tree = TypeAdapter(Config).dump_python(configuration(config, overrides), mode="json")
    typer.echo(yaml.safe_dump(tree, sort_keys=False), nl=False)
