"""`lookalike ingest`, `simulate`, `dataset get` and `convert`: getting data into the forms everything else reads.

Knows the dataset and pool rooms; torch is loaded only to read a checkpoint's vocabulary.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from lookalike.cli import display
from lookalike.cli.options import Overwrite
from lookalike.errors import InvalidInput

if TYPE_CHECKING:
    from lookalike.dataset.malformed import FileReport
    from lookalike.pool.snapshot import Pool

dataset_app = typer.Typer(
    no_args_is_help=True,
    help="Published data sets: downloaded from their publishers' own sites, or converted from files you have.",
    rich_markup_mode=None,
)
convert_app = typer.Typer(
    no_args_is_help=True,
    help="Convert a data set that nobody offers for download from the files you have of it.",
    rich_markup_mode=None,
)
dataset_app.add_typer(convert_app, name="convert", short_help="convert files you have")


@convert_app.callback()
def _group() -> None:
    # A group, for all that it has one command.
    pass


@dataset_app.command()
def get(
    name: Annotated[str, typer.Argument(metavar="NAME", help="ml1m or kuairand.")],
    output: Annotated[Path | None, typer.Option("--output", "-o", help="Folder to write; default: NAME.")] = None,
    cache: Annotated[Path | None, typer.Option(help="Where downloads are kept; default: ~/.cache/lookalike.")] = None,
    overwrite: Overwrite = False,
) -> None:
    """Download a data set, show its licence, and convert it: users.parquet, campaigns.parquet, samples.parquet.

    \b
    Examples:
      lookalike dataset get ml1m
      lookalike dataset get kuairand --output data/kuairand
    """
    from lookalike.dataset.published import get as get_published

    with display.progress() as report:
        dataset = get_published(
            name,
            output or Path(name),
            cache=cache,
            progress=lambda done, total: report("bytes", done, total, ""),
            notice=display.say,
            overwrite=overwrite,
        )
    _summary(dataset.path)


@convert_app.command()
def tencent2018(
    raw: Annotated[
        Path, typer.Argument(metavar="RAW", help="Folder with userFeature.data, adFeature.csv and train.csv.")
    ],
    output: Annotated[Path, typer.Option("--output", "-o", metavar="FOLDER", help="Folder to write.")],
    audience: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="Labelled test rows, aid,uid,label: take the ads' audience from here."),
    ] = None,
    audience_share: Annotated[
        float | None,
        typer.Option(help="Without --audience: the share of train.csv held out for it.  [default: 0.2]"),
    ] = None,
    longest: Annotated[
        int | None, typer.Option(help="Keep the first so many ids of a user's lists; the paper's authors: 10.")
    ] = None,
    seed: Annotated[int, typer.Option(help="Of the split of ads and of what is held out.")] = 0,
    max_malformed: Annotated[float, typer.Option(help="Share of a file's lines that may be malformed.")] = 0.01,
    overwrite: Overwrite = False,
) -> None:
    """Convert the Tencent Ads 2018 look-alike contest: users.parquet, campaigns.parquet, samples.parquet.

    A campaign is an ad. Users have the 14 features of the paper, ads its 6; other fields are left out. 60% of the ads,
    by seed, are for training. Malformed lines are left out and reported, here and in conversion.json beside the data.

    \b
    Examples:
      lookalike dataset convert tencent2018 preliminary_contest_data --output tencent2018
      lookalike dataset convert tencent2018 raw --output tencent2018 --audience raw/test1_truth.csv
    """
    from lookalike.dataset.tencent2018 import REPORT, convert

    with display.progress() as report:
        conversion = convert(
            raw,
            output,
            audience=audience,
            audience_share=audience_share,
            longest=longest,
            seed=seed,
            max_malformed=max_malformed,
            progress=lambda done, total: report("bytes", done, total, ""),
            overwrite=overwrite,
        )
    for file in conversion.files:
        _say_malformed(file)
    if conversion.campaigns_left_out:
        display.say(
            f"left out, with too few samples of either label: ads {', '.join(map(str, conversion.campaigns_left_out))}"
        )
    display.say(f"left out, as in the paper: {', '.join(conversion.fields_left_out)}")
    _summary(output)
    display.table([("samples", conversion.samples), ("report", output / REPORT)])


def _say_malformed(file: FileReport) -> None:
    if file.malformed:
        display.say(f"{file.file}: {file.malformed:,} of {file.lines:,} lines left out")
    for fault in file.faults:
        examples = ", ".join(f"{example.line:,} {example.text!r}" for example in fault.examples)
        display.say(
            f"  {fault.lines:,} with {fault.kind}: line {examples}{', ...' * (fault.lines > len(fault.examples))}"
        )


def simulate(
    output: Annotated[Path, typer.Argument(metavar="FOLDER", help="Folder to write.")],
    profile: Annotated[str, typer.Option(help="Kind of users: sample, lean or tencent.")] = "sample",
    users: Annotated[int | None, typer.Option(help="How many users.  [default: 5000]")] = None,
    campaigns: Annotated[int | None, typer.Option(help="How many campaigns, some for testing.  [default: 60]")] = None,
    pool: Annotated[bool, typer.Option("--pool", help="Write a pool of users alone, of any size.")] = False,
    benchmark: Annotated[
        bool, typer.Option("--benchmark", help="Write a dataset of which the best possible ranking is known.")
    ] = False,
    preset: Annotated[str | None, typer.Option(help="Which benchmark; see below.  [default: shared]")] = None,
    knobs: Annotated[
        list[str] | None, typer.Option("--knob", metavar="NAME=VALUE", help="Turn one knob of the preset; repeatable.")
    ] = None,
    seed: Annotated[int, typer.Option(help="Same seed, same bytes.")] = 0,
    string_ids: Annotated[bool, typer.Option("--string-ids", help="Ids are strings, not integers.")] = False,
    overwrite: Overwrite = False,
) -> None:
    """Write a synthetic dataset, or a pool: to try everything with no data at hand, at any size.

    The profile lean has 14 single-valued fields, 23 bytes a user; tencent the schema of the paper, 7 single-valued and
    7 multi-valued fields. Their vocabularies are fixed, and the users of a dataset are the first ones of every pool
    with the same profile and seed: train on the dataset and a small pool, and expand over a large one.

    With --benchmark the best ranking is known and lies beside the data, optimum.json and optimum.parquet, for a
    ranking to be compared with. Presets: shared, conflict, few-seeds, interactions, corrupted-ids, and independent,
    where campaigns have nothing in common. docs/synthetic.md explains them and their knobs, users and seeds among them.

    \b
    Examples:
      lookalike simulate sample --users 5000 --campaigns 60
      lookalike simulate history --profile lean --users 200000
      lookalike simulate pool --profile lean --users 1000000000 --pool
      lookalike simulate hard --benchmark --preset few-seeds --knob interactions=0.3
    """
    if benchmark:
        if pool or profile != "sample" or users is not None or campaigns is not None or string_ids:
            raise InvalidInput(
                "--pool, --profile, --users, --campaigns and --string-ids are not for --benchmark: its knobs say how "
                "many there are, as in --knob users=20000",
                field="benchmark",
            )
        _simulate_benchmark(output, preset or "shared", knobs or [], seed, overwrite)
        return
    if preset is not None or knobs:
        raise InvalidInput("--preset and --knob are for --benchmark", field="benchmark")
    users = 5000 if users is None else users
    if pool:
        if campaigns is not None or string_ids:
            raise InvalidInput("--campaigns and --string-ids are for datasets, not for --pool", field="pool")
        _simulate_pool(output, profile, users, seed, overwrite)
        return
    from lookalike.dataset.synthetic import simulate as write

    write(
        output,
        users=users,
        campaigns=60 if campaigns is None else campaigns,
        seed=seed,
        string_ids=string_ids,
        overwrite=overwrite,
        profile=profile,
    )
    _summary(output)


def _simulate_benchmark(output: Path, preset: str, changes: list[str], seed: int, overwrite: bool) -> None:
    from lookalike.dataset.benchmark import choose_knobs, read_optimum, simulate_benchmark

    knobs = choose_knobs(preset, changes)
    with display.progress() as report:
        simulate_benchmark(
            output,
            knobs,
            seed=seed,
            overwrite=overwrite,
            report=lambda what, done, total: report(what, done, total, ""),
        )
    best = read_optimum(output)["mean"]
    shown = (("AUC", "auc"), ("P@5%", "precision"), ("R@5%", "recall"))
    _summary(output, *((f"best {title}", f"{best[name]:.4f}") for title, name in shown))


def _simulate_pool(output: Path, profile: str, users: int, seed: int, overwrite: bool) -> None:
    from lookalike.dataset.profiles import find_profile
    from lookalike.pool.simulated import simulate_pool

    with display.progress() as report:
        written = simulate_pool(
            output,
            find_profile(profile),
            users=users,
            seed=seed,
            progress=lambda done, total: report("users", done, total, ""),
            overwrite=overwrite,
        )
    _pool_summary(written)


def ingest(
    users: Annotated[
        list[str],
        typer.Argument(metavar="USERS", help="Parquet files, folders, globs, or URIs of them (s3://, gs://)."),
    ],
    output: Annotated[Path, typer.Option("--output", "-o", metavar="FOLDER", help="Snapshot folder to write.")],
    schema: Annotated[
        Path | None,
        typer.Option(metavar="CHECKPOINT", help="Encode as this checkpoint does, so that the snapshot fits it."),
    ] = None,
    memory_gib: Annotated[float, typer.Option(help="What sorting may use before it goes to disk.")] = 4.0,
    publish: Annotated[
        bool, typer.Option("--publish", help="Let the link `current` beside FOLDER lead to it when it is complete.")
    ] = False,
    overwrite: Overwrite = False,
) -> None:
    """Turn Parquet into a pool: a memory-mapped snapshot of all candidates, sorted by user id.

    The Parquet needs a column user_id (integers or strings); every other column is a feature: text and integers are
    categories, lists are multi-valued, floating-point numbers are numeric.

    Without --schema the vocabulary is made of these users; that is right before training. Later snapshots of the
    same pool are ingested with the checkpoint they are for.

    \b
    Examples:
      lookalike ingest ml1m/users.parquet --output pool
      lookalike ingest users/ --output pools/tuesday --schema general --publish
      lookalike ingest 's3://bucket/users/day=*/' --output pools/tuesday
    """
    from lookalike.pool.ingest import ingest as write
    from lookalike.schema import FeatureSchema

    wanted = None
    if schema is not None:
        from lookalike.training.checkpoint import read_description

        wanted = FeatureSchema.from_json(read_description(schema)["user_schema"])
    with display.progress() as report:
        pool = write(
            users,
            output,
            schema=wanted,
            progress=lambda done, total: report("ingesting", done, total, ""),
            overwrite=overwrite,
            publish=publish,
            memory_gib=memory_gib,
        )
    _pool_summary(pool)


def _pool_summary(pool: Pool) -> None:
    display.table(
        [
            ("pool", pool.path),
            ("users", pool.num_users),
            ("fields", len(pool.schema.fields)),
            ("fingerprint", pool.fingerprint),
        ]
    )


def _summary(path: Path, *more: tuple[str, object]) -> None:
    import pyarrow.parquet as pq

    from lookalike.dataset.layout import Dataset

    dataset = Dataset.open(path)
    display.table(
        [
            ("dataset", path),
            ("users", pq.read_metadata(dataset.users_path).num_rows),
            ("campaigns to train", len(dataset.campaign_ids("train"))),
            ("campaigns to test", len(dataset.campaign_ids("test"))),
            *more,
        ]
    )
