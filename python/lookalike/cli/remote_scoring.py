"""`lookalike client score`: users scored by an audience's model on a running service. Knows `client` only."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import typer

from lookalike.cli import display
from lookalike.cli.connection import Connect, connected
from lookalike.cli.options import AsJson
from lookalike.cli.remote import (
    AudienceName,
)
from lookalike.errors import InvalidInput


@connected
def score(
    connect: Connect,
    audience: AudienceName,
    users: Annotated[
        Path, typer.Option("--users", metavar="FILE", help="Whom, at most 10,000; files as of --seeds; - is stdin.")
    ],
    ranks: Annotated[bool, typer.Option("--ranks", help="Also the rank each would have, and who is a member.")] = False,
    as_json: AsJson = False,
) -> None:
    """Score users by the model that made an audience. Prints user_id and score; none for who is not in the pool.

    \b
    Examples:
      echo 17 | lookalike client score audiences/0123... --users -
      lookalike client score audiences/spring --users visitors.parquet --ranks --json
    """
    from lookalike.cli.seeds import read

    user_ids = read(users, field="users")
    if not len(user_ids):
        raise InvalidInput(f"{users} has no users", field="users")
    with connect() as client:
        scores = client.score(audience, user_ids, with_ranks=ranks)
    if as_json:
        display.print_json({**asdict(scores), "users": scores.users.to_pylist()})
        return
    names = scores.users.schema.names
    typer.echo("\t".join(names))
    for row in scores.users.to_pylist():
        typer.echo("\t".join(_text(row[name]) for name in names))


def _text(value: object) -> str:
    return "" if value is None else f"{value:.6g}" if isinstance(value, float) else str(value)
