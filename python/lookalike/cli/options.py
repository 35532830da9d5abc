"""Options that several commands share, and what they mean. Knows `config` and `errors` only."""

from __future__ import annotations

import re
from datetime import timedelta
from pathlib import Path
from typing import Annotated

import typer

from lookalike.config import AdaptationConfig, Config, load_config, parse
from lookalike.errors import InvalidInput

ConfigFile = Annotated[
    Path | None,
    typer.Option("--config", metavar="FILE", help="YAML configuration; `lookalike config show` prints every key."),
]
Overrides = Annotated[
    list[str] | None,
    typer.Option("--set", metavar="SECTION.KEY=VALUE", help="Override one key of the configuration; repeatable."),
]
CheckpointFolder = Annotated[
    Path, typer.Option("--checkpoint", metavar="FOLDER", help="The general model, as `lookalike train` wrote it.")
]
PoolFolder = Annotated[
    Path, typer.Option("--pool", metavar="FOLDER", help="The snapshot of all candidates, from `lookalike ingest`.")
]
Overwrite = Annotated[bool, typer.Option("--overwrite", help="Replace what is there.")]
AsJson = Annotated[bool, typer.Option("--json", help="Print JSON instead of text.")]

CampaignName = Annotated[str, typer.Option("--campaign", help="The campaign's name; with --dataset, its campaign_id.")]
SeedsFile = Annotated[
    Path | None,
    typer.Option(
        "--seeds",
        metavar="FILE",
        help="Parquet with a column user_id, a Roaring bitmap (.roaring), or text with one id a line, which may begin "
        "with a line user_id; - is stdin.",
    ),
]
Features = Annotated[
    list[str] | None,
    typer.Option("--feature", metavar="NAME=VALUE", help='A campaign feature; repeatable. A list: tags=["a","b"].'),
]
DatasetFolder = Annotated[
    Path | None, typer.Option("--dataset", metavar="FOLDER", help="Take the campaign's seeds and features from here.")
]
Size = Annotated[int, typer.Option("-k", "--size", help="How many users to find.")]
IncludeSeeds = Annotated[bool, typer.Option("--include-seeds", help="Let the seeds themselves into the audience.")]
Filter = Annotated[
    str,
    typer.Option("--filter", metavar="EXPRESSION", help="Who is eligible: \"country in ('DE','AT') and age >= '3'\"."),
]
Exclude = Annotated[
    list[Path] | None,
    typer.Option("--exclude", metavar="FILE", help="Users to leave out; files as of --seeds, not stdin; repeatable."),
]
RandomSeed = Annotated[int, typer.Option(help="Same request and same random seed, same bytes.")]


_UNITS = {"m": "minutes", "h": "hours", "d": "days"}


def length_of_time(text: str, field: str) -> timedelta:
    """What 90d, 12h or 30m mean.

    Raises:
        InvalidInput: something else.
    """
    match = re.fullmatch(r"(\d{1,5})([mhd])", text)
    if match is None:
        raise InvalidInput(f"'{text}' is no time: 90d, 12h or 30m", field=field)
    return timedelta(**{_UNITS[match[2]]: int(match[1])})


def configuration(file: Path | None, overrides: list[str] | None, *, checkpoint: Path | None = None) -> Config:
    """The configuration tree a command runs with. A checkpoint's own adaptation settings stand in for the defaults.

    Raises:
        InvalidInput: as `load_config`. NotFound, DataCorrupted: there is no such checkpoint.
    """
    if checkpoint is None:
        return load_config(file, overrides or [])
    from lookalike.training.checkpoint import read_description

    adaptation = parse(AdaptationConfig, read_description(checkpoint)["adaptation"], field_prefix="checkpoint")
    return load_config(file, overrides or [], base=Config(adaptation=adaptation))
