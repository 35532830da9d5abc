"""Network addresses as people write them: `host:port`, and which of them never leave the machine. Knows `errors`."""

from __future__ import annotations

import ipaddress

from lookalike.errors import InvalidInput


def check_address(address: str, *, field: str) -> None:
    """Refuse what is not `host:port`.

    Raises:
        InvalidInput: it is not; `field` names it.
    """
    host, colon, port = address.rpartition(":")
    if not (host and colon and port.isascii() and port.isdigit() and int(port) < 2**16):
        raise InvalidInput(f"'{address}' is not of the form host:port", field=field)


def is_loopback(address: str) -> bool:
    """Whether what is sent to a `host:port` stays on this machine; a name other than localhost may not."""
    host = address.rpartition(":")[0]
    try:
        return host == "localhost" or ipaddress.ip_address(host.removeprefix("[").removesuffix("]")).is_loopback
    except ValueError:
        return False
