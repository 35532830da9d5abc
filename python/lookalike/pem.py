"""Certificates and keys in PEM files, checked before gRPC takes them: it tells of bad ones by serving nobody.

Ground floor; knows only `errors`.
"""

from __future__ import annotations

import math
import ssl
from pathlib import Path

from lookalike.errors import InvalidInput, NotFound


def read_pair(certificate: Path, key: Path, *, fields: tuple[str, str]) -> tuple[bytes, bytes]:
    """A certificate (with the chain that leads to its authority) and its key; `fields` name the two in errors.

    Raises:
        InvalidInput: they are something else, do not belong together, or the key wants a password. NotFound: no file.
    """
    content = read_pem(certificate, field=fields[0]), read_pem(key, field=fields[1])

    def password() -> str:  # instead of OpenSSL's asking for it at the terminal
        raise InvalidInput(
            f"{key} wants a password: give a key without, in a file of its user's alone", field=fields[1]
        )

    try:
        ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER).load_cert_chain(certificate, key, password=password)
    except ssl.SSLError as error:
        if error.reason == "KEY_VALUES_MISMATCH":
            raise InvalidInput(f"{key} is not the key of {certificate}", field=fields[1]) from error
        raise InvalidInput(f"{certificate} and {key} are no certificate and key: {error}", field=fields[0]) from error
    return content


def read_authorities(path: Path, *, field: str) -> bytes:
    """Certificates of authorities.

    Raises:
        InvalidInput: it is something else. NotFound: there is no such file.
    """
    content = read_pem(path, field=field)
    try:
        ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER).load_verify_locations(path)
    except ssl.SSLError as error:
        raise InvalidInput(f"{path} holds no certificates of authorities: {error}", field=field) from error
    return content


def valid_until(content: bytes) -> float:
    """When the first of a file's certificates ends, in Unix seconds; NaN where that cannot be read."""
    from cryptography import x509  # not needed to import this module, nor installed with the library alone

    try:
        return min(one.not_valid_after_utc.timestamp() for one in x509.load_pem_x509_certificates(content))
    except ValueError:  # stricter than the library that serves with it, which is no reason not to serve
        return math.nan


def read_pem(path: Path, *, field: str) -> bytes:
    """The file's bytes, whatever they are.

    Raises:
        InvalidInput: it cannot be read. NotFound: there is no such file.
    """
    try:
        return path.read_bytes()
    except FileNotFoundError as error:
        raise NotFound(f"there is no file {path}", field=field) from error
    except OSError as error:
        raise InvalidInput(f"cannot read {path}: {error.strerror}", field=field) from error
