"""`lookalike token`: who may use a service, and what for. Knows the file of tokens only; no server need run."""

from __future__ import annotations

from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from lookalike.cli import display
from lookalike.cli.options import AsJson, ConfigFile, Overrides, configuration, length_of_time
from lookalike.errors import InvalidInput

if TYPE_CHECKING:
    from lookalike.service.caller import Scope
    from lookalike.service.token_file import Token, TokenFile

token_app = typer.Typer(no_args_is_help=True, help="Who may use a service.", rich_markup_mode=None)

Id = Annotated[str, typer.Argument(metavar="ID", help="As `lookalike token list` prints it.")]
Output = Annotated[
    Path | None,
    typer.Option("--output", "-o", metavar="FILE", help="Write the token here, for its owner alone; not to stdout."),
]


@token_app.callback()
def _group() -> None:
    """Who may use a service: its tokens, in the file `service.tokens`. A running service takes a change up at once."""


@token_app.command()
def create(
    tenant: Annotated[str, typer.Option(help="Whose it is: tenants see what is theirs and nothing else.")],
    scope: Annotated[
        list[str], typer.Option(metavar="SCOPE", help="What it allows: expand, read, delete or admin; repeatable.")
    ],
    expires: Annotated[str, typer.Option(metavar="TIME", help="How long it lasts: 90d, 12h, 30m, or never.")] = "90d",
    description: Annotated[str, typer.Option(help="Who or what it is for.")] = "",
    output: Output = None,
    config: ConfigFile = None,
    overrides: Overrides = None,
) -> None:
    """Make a token and print it. It is shown this once: only its hash is kept.

    \b
    Examples:
      lookalike token create --tenant shop --scope expand --scope read --output shop.token
      lookalike token create --tenant shop --scope read --expires 12h --description "one export" > export.token
    """
    text, token = _tokens(config, overrides).create(
        tenant,
        [_scope(one) for one in scope],
        lifetime=None if expires == "never" else length_of_time(expires, "expires"),
        description=description,
    )
    _hand_over(text, token, output)


@token_app.command("list")
def list_tokens(as_json: AsJson = False, config: ConfigFile = None, overrides: Overrides = None) -> None:
    """List the tokens, oldest first: id, tenant, scopes, until when, and whether they let in."""
    tokens, now = _tokens(config, overrides).all(), datetime.now(UTC)
    if as_json:
        display.print_json(
            [
                {
                    "id": token.id,
                    "tenant": token.tenant,
                    "scopes": sorted(token.scopes),
                    "state": token.state(now),
                    "created": token.created.isoformat(),
                    "expires": token.expires.isoformat() if token.expires else None,
                    "revoked": token.revoked.isoformat() if token.revoked else None,
                    "description": token.description,
                }
                for token in tokens
            ]
        )
        return
    for token in tokens:
        until = f"{token.expires:%Y-%m-%d %H:%M}" if token.expires else "never expires"
        scopes = ",".join(sorted(token.scopes))
        typer.echo(
            f"{token.id}  {token.state(now):<8} {until:<16}  {token.tenant}  {scopes}  {token.description}".rstrip()
        )


@token_app.command()
def revoke(token_id: Id, config: ConfigFile = None, overrides: Overrides = None) -> None:
    """Let a token in no more, from this moment on; what is being read with it breaks off."""
    token = _tokens(config, overrides).revoke(token_id)
    display.say(f"revoked token {token.id} of tenant {token.tenant}")


@token_app.command()
def rotate(
    token_id: Id,
    grace: Annotated[str, typer.Option(metavar="TIME", help="How long the old one lasts beside the new.")] = "1d",
    output: Output = None,
    config: ConfigFile = None,
    overrides: Overrides = None,
) -> None:
    """Make a token with the tenant, scopes and lifetime of another, which ends after a time of grace. Prints the new.

    \b
    Examples:
      lookalike token rotate 3f0c9ad2b771 --output shop.token
      lookalike token rotate 3f0c9ad2b771 --grace 0m > shop.token
    """
    text, token = _tokens(config, overrides).rotate(token_id, grace=length_of_time(grace, "grace"))
    _hand_over(text, token, output)


def _tokens(config: Path | None, overrides: list[str] | None) -> TokenFile:
    from lookalike.service.token_file import TokenFile, tokens_path

    return TokenFile(tokens_path(configuration(config, overrides).service))


def _scope(name: str) -> Scope:
    from lookalike.service.caller import Scope

    if name not in set(Scope):
        raise InvalidInput(f"'{name}' is no scope; there are {', '.join(Scope)}", field="scope")
    return Scope(name)


def _hand_over(text: str, token: Token, output: Path | None) -> None:
    until = f"until {token.expires:%Y-%m-%d %H:%M} UTC" if token.expires else "for ever"
    display.say(f"token {token.id} of tenant {token.tenant} lasts {until}; it is shown this once")
    if output is None:
        typer.echo(text)
        return
    from lookalike.files import write_whole

    write_whole(output, text.encode() + b"\n", mode=0o600)
