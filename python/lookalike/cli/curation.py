"""`lookalike client`, the part on finished audiences: list, compare, change, refresh, delete; and users who opt out.

Knows `client` only.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from lookalike.cli import display
from lookalike.cli.connection import Connect, connected
from lookalike.cli.options import AsJson, length_of_time
from lookalike.cli.remote import (
    AudienceName,
    Reserve,
    Ttl,
    Wait,
    client_app,
    ordered,
    plain,
    show_audience,
)
from lookalike.errors import visible

__all__ = ["client_app"]

IdsFile = Annotated[
    Path, typer.Argument(metavar="FILE", help="Ids: Parquet with a column user_id, .roaring, or text; - is stdin.")
]


@client_app.command()
@connected
def audiences(
    connect: Connect,
    where: Annotated[
        str, typer.Option("--filter", help='For example: campaign = "spring" AND create_time < "2026-11-01".')
    ] = "",
    as_json: AsJson = False,
) -> None:
    """List finished audiences, oldest first."""
    with connect() as client:
        found = list(client.audiences(where))
    if as_json:
        display.print_json([plain(audience) for audience in found])
        return
    for audience in found:
        created = audience.create_time.ToJsonString()[:16]
        typer.echo(f"{audience.name}  {created}  {audience.size:>12,}  {visible(audience.campaign)}")


@client_app.command()
@connected
def refresh(
    connect: Connect,
    audience: AudienceName,
    churn_budget: Annotated[
        float | None, typer.Option(help="At most this share of the members, 0 to 1, may be new; any by default.")
    ] = None,
    seeds: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Other seeds than then; files as of `client expand`.")
    ] = None,
    size: Annotated[int | None, typer.Option("-k", "--size", help="Another size than then.")] = None,
    request_id: Annotated[str, typer.Option(help="The same id never orders twice; a new one by default.")] = "",
    audience_id: Annotated[str, typer.Option(help="The new one's name: audiences/AUDIENCE_ID.")] = "",
    priority: Annotated[str, typer.Option(help="LOW, NORMAL or HIGH, among your own operations.")] = "NORMAL",
    reserve: Reserve = None,
    ttl: Ttl = "",
    wait_for_it: Wait = False,
    as_json: AsJson = False,
) -> None:
    """Make a new audience of what another was made of, with the pool and the model the server has now.

    \b
    Examples:
      lookalike client refresh audiences/spring --churn-budget 0.1 --audience-id spring-2 --wait
      lookalike client changes audiences/spring audiences/spring-2
    """
    from lookalike.cli.seeds import read

    user_ids = read(seeds) if seeds is not None else None
    with connect() as client:
        expansion = client.refresh(
            audience,
            churn_budget=churn_budget,
            seeds=user_ids,
            k=size,
            request_id=request_id,
            audience_id=audience_id,
            priority=priority,
            reserve=reserve,
            ttl=length_of_time(ttl, "ttl") if ttl else None,
        )
        ordered(expansion, wait_for_it, as_json)


@client_app.command()
@connected
def update(
    connect: Connect,
    audience: AudienceName,
    size: Annotated[
        int | None, typer.Option("-k", "--size", help="Members, up to those and the reserve that is left.")
    ] = None,
    ttl: Annotated[str, typer.Option(metavar="TIME", help="Delete it in so long: 90d, 12h, 30m.")] = "",
    keep: Annotated[bool, typer.Option("--keep", help="Delete it at no time of its own.")] = False,
    as_json: AsJson = False,
) -> None:
    """Change an audience's size, or when it is deleted, and print what it is then."""
    with connect() as client:
        length = length_of_time(ttl, "ttl") if ttl else None
        show_audience(client.update_audience(audience, k=size, ttl=length, keep=keep), as_json)


@client_app.command()
@connected
def delete(
    connect: Connect,
    audience: AudienceName,
    allow_missing: Annotated[bool, typer.Option("--allow-missing", help="Succeed also when there is none.")] = False,
) -> None:
    """Delete an audience and its files."""
    with connect() as client:
        client.delete_audience(audience, allow_missing=allow_missing)


@client_app.command()
@connected
def compare(
    connect: Connect,
    names: Annotated[list[str], typer.Argument(metavar="AUDIENCE...", help="Two to ten: audiences/...")],
    as_json: AsJson = False,
) -> None:
    """Tell how far audiences overlap: users in both, Jaccard, share of the first, share of the second."""
    with connect() as client:
        compared = client.compare(names)
    if as_json:
        display.print_json(plain(compared))
        return
    for one in compared.overlaps:
        told = "too few to tell"
        if one.HasField("common"):
            told = f"{one.common:>12,}  {one.jaccard:.4f}  {one.share_of_first:.4f}  {one.share_of_second:.4f}"
        typer.echo(f"{one.first}  {one.second}  {told}")


@client_app.command()
@connected
def changes(
    connect: Connect,
    before: Annotated[str, typer.Argument(metavar="BEFORE", help="audiences/...")],
    after: Annotated[str, typer.Argument(metavar="AFTER", help="audiences/...")],
) -> None:
    """Print who left between two audiences (change, rank, user_id, score), and then who joined."""
    with connect() as client:
        typer.echo("change\trank\tuser_id\tscore")
        for change in client.changes(before, after):
            for member in change.members.to_pylist():
                typer.echo(f"{change.kind}\t{member['rank']}\t{member['user_id']}\t{member['score']:.6g}")


@client_app.command("opt-out")
@connected
def opt_out(
    connect: Connect,
    users: IdsFile,
    all_tenants: Annotated[
        bool, typer.Option("--all-tenants", help="Of every tenant's audiences; wants the scope admin.")
    ] = False,
    as_json: AsJson = False,
) -> None:
    """Leave users out of every audience, stored or to come. Run it again to see whether all files are rewritten.

    \b
    Examples:
      lookalike client opt-out users.txt
      echo 1234 | lookalike client opt-out -
    """
    from lookalike.cli.seeds import read

    user_ids = read(users, field="users")
    with connect() as client:
        answer = client.opt_out(user_ids, all_tenants=all_tenants)
    if as_json:
        display.print_json({"added": answer.added, "pending_audiences": answer.pending_audiences})
        return
    display.table([("opted out now", answer.added), ("audiences to be rewritten", answer.pending_audiences)])
