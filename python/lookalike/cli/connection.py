"""How a command of `lookalike client` reaches its service: the options that all of them have. Knows `client` only."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Protocol, get_type_hints

import typer

if TYPE_CHECKING:
    from lookalike.client import Client

Server = Annotated[str, typer.Option("--server", metavar="HOST:PORT", help="Where `lookalike serve` listens.")]
Timeout = Annotated[float, typer.Option(help="Seconds to keep trying while the server does not answer.")]
TokenFile = Annotated[
    Path | None,
    typer.Option(metavar="FILE", help="Holds your token; with it, TLS. Without it, the server is on this machine."),
]
CaFile = Annotated[
    Path | None, typer.Option(metavar="FILE", help="PEM: whose servers are trusted. Default: whom the system trusts.")
]
CertificateFile = Annotated[
    Path | None, typer.Option(metavar="FILE", help="PEM: your own certificate, for servers that ask for one.")
]
KeyFile = Annotated[Path | None, typer.Option(metavar="FILE", help="PEM: its key.")]

DEFAULT_SERVER = "127.0.0.1:8500"
DEFAULT_TIMEOUT = 60.0  # a server that is just starting has TorchServe to bring up


class Connect(Protocol):
    """Opens the client that the options name."""

    def __call__(self) -> Client: ...


_OPTIONS: Mapping[str, tuple[Any, object]] = {
    "server": (Server, DEFAULT_SERVER),
    "timeout": (Timeout, DEFAULT_TIMEOUT),
    "token_file": (TokenFile, None),
    "ca_file": (CaFile, None),
    "certificate_file": (CertificateFile, None),
    "key_file": (KeyFile, None),
}


def connected(command: Callable[..., None]) -> Callable[..., None]:
    """Give a command the options of a connection in the place of its first parameter, `connect`, which opens one."""

    @functools.wraps(command)
    def run(**arguments: Any) -> None:
        command(functools.partial(_open, **{name: arguments.pop(name) for name in _OPTIONS}), **arguments)

    kinds = get_type_hints(command, include_extras=True)
    _, *own = (one.replace(annotation=kinds[name]) for name, one in inspect.signature(command).parameters.items())
    options = [
        inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, default=default, annotation=kind)
        for name, (kind, default) in _OPTIONS.items()
    ]
    # Typer asks for both.
    run.__signature__ = inspect.Signature([*own, *options])  # type: ignore[attr-defined]
    run.__annotations__ = {one.name: one.annotation for one in (*own, *options)}
    return run


def _open(server: str, **options: Any) -> Client:
    from lookalike.client import Client

    return Client(server, **options)
