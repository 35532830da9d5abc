"""`lookalike client`: order expansions from a running service, follow them, read audiences. Knows `client` only."""

from __future__ import annotations

import itertools
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from lookalike.cli import display
from lookalike.cli.connection import Connect, connected
from lookalike.cli.options import (
    AsJson,
    CampaignName,
    DatasetFolder,
    Exclude,
    Features,
    Filter,
    IncludeSeeds,
    RandomSeed,
    SeedsFile,
    Size,
    length_of_time,
)
from lookalike.errors import InvalidInput, visible

if TYPE_CHECKING:
    from lookalike.client import Client, Expansion
    from lookalike.v1.audience_pb2 import Audience, ExpandAudienceMetadata

client_app = typer.Typer(no_args_is_help=True, help="Use a running service.", rich_markup_mode=None)

OperationName = Annotated[str, typer.Argument(metavar="OPERATION", help="operations/..., as `expand` printed it.")]
AudienceName = Annotated[str, typer.Argument(metavar="AUDIENCE", help="audiences/...")]

Reserve = Annotated[
    int | None, typer.Option(help="Users to keep beside it, for those who opt out; the server decides by default.")
]
Ttl = Annotated[str, typer.Option(metavar="TIME", help="Delete it so long after it is finished: 90d, 12h, 30m.")]
Wait = Annotated[bool, typer.Option("--wait", help="Follow it to its end and print the audience.")]

SHOWN_MEMBERS = 10


@client_app.callback()
def _group() -> None:
    """Use a running service: order expansions, follow them, read audiences."""


@client_app.command()
@connected
def expand(
    connect: Connect,
    campaign: CampaignName,
    size: Size,
    seeds: SeedsFile = None,
    features: Features = None,
    dataset: DatasetFolder = None,
    include_seeds: IncludeSeeds = False,
    filter: Filter = "",  # noqa: A002
    exclude: Exclude = None,
    random_seed: RandomSeed = 0,
    request_id: Annotated[str, typer.Option(help="The same id never orders twice; a new one by default.")] = "",
    audience_id: Annotated[str, typer.Option(help="Your own name: audiences/AUDIENCE_ID; drawn by default.")] = "",
    priority: Annotated[str, typer.Option(help="LOW, NORMAL or HIGH, among your own operations.")] = "NORMAL",
    reserve: Reserve = None,
    ttl: Ttl = "",
    wait_for_it: Wait = False,
    as_json: AsJson = False,
) -> None:
    """Order an expansion. Prints the operation's name; the server goes on without this command.

    \b
    Examples:
      lookalike client expand --dataset ml1m --campaign 11 -k 500 --wait
      lookalike client expand --campaign spring --seeds seeds.txt --feature category=shoes -k 100000
      lookalike client expand --dataset ml1m --campaign 11 -k 500 --wait \\
        --server lookalike.example:8500 --token-file shop.token --ca-file ca.pem
    """
    from lookalike.cli.seeds import gather, read_all

    user_ids, values = gather(campaign, seeds, features, dataset)
    excluded = read_all(exclude or ())
    with connect() as client:
        expansion = client.expand(
            campaign=campaign,
            seeds=user_ids,
            k=size,
            features=values,
            include_seeds=include_seeds,
            filter=filter,
            exclude=excluded,
            random_seed=random_seed,
            request_id=request_id,
            audience_id=audience_id,
            priority=priority,
            reserve=reserve,
            ttl=length_of_time(ttl, "ttl") if ttl else None,
        )
        ordered(expansion, wait_for_it, as_json)


@client_app.command()
@connected
def wait(
    connect: Connect,
    operation: OperationName,
    as_json: AsJson = False,
) -> None:
    """Follow an operation to its end and print its audience. An operation that failed gives its error's exit code."""
    with connect() as client:
        _follow(client.operation(operation), as_json)


@client_app.command()
@connected
def get(
    connect: Connect,
    name: Annotated[str, typer.Argument(metavar="NAME", help="operations/... or audiences/...")],
    as_json: AsJson = False,
) -> None:
    """Show an operation as it is now, or an audience and how it came about."""
    with connect() as client:
        if name.startswith("operations/"):
            _show_operation(name, client.operation(name).metadata(), as_json)
        elif name.startswith("audiences/"):
            show_audience(client.audience(name), as_json)
        else:
            raise InvalidInput(f"'{name}' is neither operations/... nor audiences/...", field="name")


@client_app.command()
@connected
def members(
    connect: Connect,
    audience: AudienceName,
    limit: Annotated[int, typer.Option(help="How many of the best to print.")] = SHOWN_MEMBERS,
    output: Annotated[
        Path | None, typer.Option("--output", "-o", metavar="FILE", help="Write all of them: .parquet or .csv.")
    ] = None,
) -> None:
    """Print the best members of an audience (rank, user_id, score), or write all of them to a file.

    \b
    Examples:
      lookalike client members audiences/0123... --limit 100
      lookalike client members audiences/0123... --output members.parquet
    """
    with connect() as client:
        if output is not None:
            display.table([("members", _download(client, audience, output)), ("file", output)])
            return
        typer.echo("rank\tuser_id\tscore")
        for member in client.first_members(audience, limit):
            user_id = getattr(member, member.WhichOneof("user") or "string_id")
            typer.echo(f"{member.rank}\t{user_id}\t{member.score:.6g}")


@client_app.command()
@connected
def cancel(
    connect: Connect,
    operation: OperationName,
) -> None:
    """Ask an operation to stop; it does so within about a second, unless it was faster."""
    with connect() as client:
        client.operation(operation).cancel()


@client_app.command("list")
@connected
def list_operations(
    connect: Connect,
    where: Annotated[
        str, typer.Option("--filter", help='For example: done = false AND campaign = "spring"; see audience.proto.')
    ] = "",
    as_json: AsJson = False,
) -> None:
    """List the operations the server remembers, oldest first."""
    with connect() as client:
        found = [(expansion.name, expansion.metadata()) for expansion in client.operations(where)]
    if as_json:
        display.print_json([{"operation": name, **plain(metadata)} for name, metadata in found])
        return
    for name, metadata in found:
        typer.echo(f"{name}  {_state(metadata):<10} {visible(metadata.campaign)}")


def ordered(expansion: Expansion, wait_for_it: bool, as_json: bool) -> None:
    """Show what has been ordered, or what becomes of it."""
    if wait_for_it:
        _follow(expansion, as_json)
    elif as_json:
        display.print_json({"operation": expansion.name})
    else:
        typer.echo(expansion.name)


def _follow(expansion: Expansion, as_json: bool) -> None:
    try:
        with display.progress() as report:
            for step in expansion.progress():
                report_step(report, step)
        audience = expansion.result()
    except KeyboardInterrupt:
        display.say(f"{expansion.name} goes on; stop it with: lookalike client cancel {expansion.name}")
        raise
    show_audience(audience, as_json)


def report_step(report: display.Report, step: ExpandAudienceMetadata) -> None:
    """Show how far an operation is."""
    if step.stage:
        stage = type(step).Stage.Name(step.stage).removeprefix("STAGE_").lower()
        report(stage, step.stage_done, step.stage_total, "")
    else:
        report(_state(step), 0, 0, f"{step.queue_position} ahead" if step.queue_position else "")


def _state(metadata: ExpandAudienceMetadata) -> str:
    return type(metadata).State.Name(metadata.state).removeprefix("STATE_").lower()


def _show_operation(name: str, metadata: ExpandAudienceMetadata, as_json: bool) -> None:
    if as_json:
        display.print_json({"operation": name, **plain(metadata)})
        return
    rows: list[tuple[str, object]] = [("operation", name), ("campaign", metadata.campaign), ("state", _state(metadata))]
    if metadata.users_total:
        rows.append(("users scored", f"{metadata.users_scored:,} of {metadata.users_total:,}"))
    if metadata.queue_position:
        rows.append(("ahead in the queue", metadata.queue_position))
    display.table(rows)


def show_audience(audience: Audience, as_json: bool) -> None:
    """Print what an audience is and how it came about."""
    if as_json:
        display.print_json(plain(audience))
        return
    seeds = audience.seeds
    seconds = ", ".join(f"{stage} {audience.stage_seconds[stage]:.2f}" for stage in audience.stage_seconds)
    display.table(
        [
            ("audience", audience.name),
            ("campaign", audience.campaign),
            ("members", audience.size),
            ("seeds", f"{seeds.given:,} given, {seeds.matched:,} matched, {seeds.not_in_pool:,} not in the pool"),
            ("users scored", audience.users_scored),
            ("users filtered", audience.users_filtered),
            ("users excluded", audience.exclusions.matched),
            ("cut-off", f"{audience.cutoff_score:.6g}, {audience.ties_at_cutoff:,} users on it"),
            ("seconds", seconds),
            ("reserve left", audience.reserve_left),
            *_events(audience),
            ("parquet", audience.parquet_path),
            ("receipt", audience.receipt_path),
        ]
    )


def _events(audience: Audience) -> list[tuple[str, object]]:
    rows: list[tuple[str, object]] = []
    if audience.HasField("refresh"):
        refresh = audience.refresh
        counts = f"{refresh.kept:,} kept, {refresh.joined:,} joined, {refresh.left:,} left"
        rows.append(("refreshes", f"{refresh.previous}: {counts if refresh.HasField('kept') else 'too few to tell'}"))
        means = f"{refresh.mean_score:.6g}, {refresh.mean_score_unbounded:.6g} whoever was there before"
        rows.append(("mean score", means))
    if audience.opted_out:
        rows.append(("opted out since", audience.opted_out))
    if audience.HasField("expire_time"):
        rows.append(("expires", audience.expire_time.ToJsonString()))
    return rows


def plain(message: Any) -> dict[str, Any]:
    """A message as JSON has it."""
    from google.protobuf.json_format import MessageToDict

    return MessageToDict(message, preserving_proto_field_name=True)


def _download(client: Client, audience: str, output: Path) -> int:
    """Write all members; the file appears when it is whole. Returns how many there are."""
    import pyarrow as pa
    import pyarrow.csv
    import pyarrow.parquet as pq

    writers = {".parquet": pq.ParquetWriter, ".csv": pa.csv.CSVWriter}
    if output.suffix not in writers:
        raise InvalidInput(f"'{output}' must end in .parquet or .csv", field="output")
    batches = client.members(audience)
    first = next(batches, None)
    if first is None:
        raise InvalidInput(f"{audience} has no members", field="audience")
    partial = output.with_name(f".{output.name}.partial")
    count = 0
    try:
        with writers[output.suffix](str(partial), first.schema) as writer:
            for batch in itertools.chain([first], batches):
                writer.write_table(pa.Table.from_batches([batch]))
                count += batch.num_rows
        partial.replace(output)
    finally:
        partial.unlink(missing_ok=True)
    return count
