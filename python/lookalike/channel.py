"""A gRPC channel to the front service: with TLS and a token, or plainly to one on this very machine.

Knows files and gRPC's credentials; knows no service. Free of torch.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import grpc

from lookalike.addresses import check_address, is_loopback
from lookalike.errors import InvalidInput
from lookalike.pem import read_authorities, read_pair, read_pem


def open_channel(
    address: str,
    *,
    token_file: Path | None = None,
    ca_file: Path | None = None,
    certificate_file: Path | None = None,
    key_file: Path | None = None,
    options: Sequence[tuple[str, Any]] = (),
) -> grpc.Channel:
    """A channel that connects when it is first used.

    Args:
        address: host:port; the server's certificate must be of this host.
        token_file: with one line, the token, read again for each call; without it, nothing is encrypted and the server
            must be on a loopback address.
        ca_file: PEM with the authorities whose servers are trusted; the system's by default.
        certificate_file: PEM with the client's certificate, for servers that ask for one; and
        key_file: its key.
        options: gRPC's own.

    Raises:
        InvalidInput: arguments that do not fit together, or files that are something else. NotFound: no such file.
    """
    check_address(address, field="address")
    # A proxy named in the environment is for the web.
    options = [("grpc.enable_http_proxy", 0), *options]
    if token_file is None:
        if ca_file or certificate_file or key_file:
            raise InvalidInput("a service with TLS wants a token: give its file", field="token_file")
        if not is_loopback(address):
            raise InvalidInput(
                f"'{address}' is not a loopback address, so it takes TLS and a token: give a token_file",
                field="token_file",
            )
        return grpc.insecure_channel(address, options=options)
    if (certificate_file is None) != (key_file is None):
        missing = "certificate_file" if certificate_file is None else "key_file"
        raise InvalidInput("a client's certificate and its key come together", field=missing)
    read_pem(token_file, field="token_file")
    certificate = key = None
    if certificate_file is not None and key_file is not None:
        certificate, key = read_pair(certificate_file, key_file, fields=("certificate_file", "key_file"))
    authorities = read_authorities(ca_file, field="ca_file") if ca_file is not None else None
    transport = grpc.ssl_channel_credentials(authorities, key, certificate)
    channel = grpc.secure_channel(address, transport, options=options)
    return grpc.intercept_channel(channel, _Bearer(token_file))


def with_metadata(details: Any, metadata: Sequence[tuple[str, str]]) -> grpc.ClientCallDetails:
    """A call's details as an interceptor got them, with other metadata."""
    return _CallDetails(
        details.method,
        details.timeout,
        metadata,
        details.credentials,
        details.wait_for_ready,
        details.compression,
    )


class _Details(NamedTuple):
    method: str
    timeout: float | None
    metadata: Any
    credentials: Any
    wait_for_ready: bool | None
    compression: Any


class _CallDetails(_Details, grpc.ClientCallDetails):
    pass


class _Bearer(grpc.UnaryUnaryClientInterceptor, grpc.UnaryStreamClientInterceptor):
    """The token in a file, as it is at each call: whoever rotates it need not tell us.

    Not gRPC's call credentials: those call Python from a thread of gRPC's own that holds a lock of the core. A server
    of the same process that is being stopped holds the interpreter and waits for that lock, for ever.
    """

    def __init__(self, path: Path) -> None:
        self._path = path

    def intercept_unary_unary(self, continuation: Any, client_call_details: Any, request: Any) -> Any:
        return continuation(self._with_token(client_call_details), request)

    def intercept_unary_stream(self, continuation: Any, client_call_details: Any, request: Any) -> Any:
        return continuation(self._with_token(client_call_details), request)

    def _with_token(self, details: Any) -> grpc.ClientCallDetails:
        token = read_pem(self._path, field="token_file").decode("ascii", "replace").strip()
        if not (token and token.isascii() and token.isprintable()):
            raise InvalidInput(f"{self._path} is to have one line, the token", field="token_file")
        metadata = (*(details.metadata or ()), ("authorization", f"Bearer {token}"))
        return with_metadata(details, metadata)
