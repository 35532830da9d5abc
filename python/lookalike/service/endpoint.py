"""Where the front listens and how: TLS with certificates that are read again when they change, or plainly on loopback.

Knows gRPC's credentials and the configuration; knows neither tokens nor callers.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import grpc

from lookalike.addresses import check_address, is_loopback
from lookalike.config import ServiceConfig
from lookalike.errors import InvalidInput, LookalikeError, Unavailable
from lookalike.pem import read_authorities, read_pair

_log = logging.getLogger(__name__)

# A connection that is in use is not asked for its certificate again. So it is replaced once an hour, which lets the
# calls on it end in peace: a client authority that was taken out of the file keeps nobody in for longer than that.
MAX_CONNECTION_SECONDS = 3600


class Endpoint:
    """What `service.listen`, `service.tls_*` and `service.insecure` ask for.

    Raises:
        InvalidInput: they contradict each other, would let anybody in, or name files that are no certificates.
        NotFound: there is no such file.
    """

    def __init__(self, config: ServiceConfig) -> None:
        check_address(config.listen, field="service.listen")
        self._listen = config.listen
        self._certificates = _certificates(config)

    @property
    def options(self) -> Sequence[tuple[str, int]]:
        """For the server."""
        return [("grpc.max_connection_age_ms", MAX_CONNECTION_SECONDS * 1000)] if self._certificates else []

    def open(self, server: grpc.aio.Server) -> str:
        """Let the server listen; returns the address, with the port that was found where 0 was asked for.

        Raises:
            Unavailable: the address is taken, or is not this machine's.
        """
        try:
            if self._certificates is None:
                port = server.add_insecure_port(self._listen)
            else:
                port = server.add_secure_port(self._listen, self._certificates.credentials())
        except RuntimeError as error:
            raise Unavailable(f"cannot listen on {self._listen}: {error}", reason="ADDRESS_IN_USE") from error
        return f"{self._listen.rpartition(':')[0]}:{port}"


class Certificates:
    """The server's chain and key, and the authorities of its clients', as the files are now."""

    def __init__(self, certificate: Path, key: Path, client_ca: Path | None) -> None:
        """Raises as `read_pair` and `read_authorities`."""
        self._certificate, self._key, self._client_ca = certificate, key, client_ca
        self._seen = self._look()
        self._first = self._load()

    def credentials(self) -> grpc.ServerCredentials:
        """For a port. With authorities, a client that has no certificate of theirs does not get as far as a call."""
        required = self._client_ca is not None
        return grpc.dynamic_ssl_server_credentials(self._first, self._changed, require_client_authentication=required)

    def _changed(self) -> Any:
        """Called by gRPC at each handshake: what the files hold now, or None where that is not new or no good."""
        seen = self._look()
        if seen == self._seen:
            return None
        self._seen = seen
        try:
            fresh = self._load()
        except LookalikeError as error:  # perhaps only one of two files has been replaced yet: then they change again
            _log.error("the former certificate stays in use: %s", error)
            return None
        _log.info("%s is in use from now on", self._certificate)
        return fresh

    def _look(self) -> list[Any]:
        looks: list[Any] = []
        for path in (self._certificate, self._key, self._client_ca):
            try:
                status = path.stat() if path is not None else None
                looks.append(status and (status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns))
            except OSError as error:
                looks.append(error.errno)
        return looks

    def _load(self) -> Any:
        certificate, key = read_pair(
            self._certificate, self._key, fields=("service.tls_certificate", "service.tls_key")
        )
        authorities = None
        if self._client_ca is not None:
            authorities = read_authorities(self._client_ca, field="service.tls_client_ca")
        return grpc.ssl_server_certificate_configuration([(key, certificate)], authorities)


def _certificates(config: ServiceConfig) -> Certificates | None:
    if not config.insecure:
        if config.tls_certificate is None or config.tls_key is None:
            missing = "tls_certificate" if config.tls_certificate is None else "tls_key"
            raise InvalidInput(
                "give service.tls_certificate and service.tls_key; without TLS and tokens the service runs on a "
                "loopback address alone, when service.insecure (--insecure) says so",
                field=f"service.{missing}",
            )
        return Certificates(config.tls_certificate, config.tls_key, config.tls_client_ca)
    if config.tls_certificate or config.tls_key or config.tls_client_ca:
        raise InvalidInput("service.insecure and service.tls_* exclude each other", field="service.insecure")
    if not is_loopback(config.listen):
        raise InvalidInput(
            f"'{config.listen}' is not a loopback address: others may reach it, so it needs TLS and tokens; leave "
            "service.insecure (--insecure) out, and give service.tls_certificate and service.tls_key",
            field="service.listen",
        )
    return None
