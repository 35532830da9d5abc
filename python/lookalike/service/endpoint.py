"""Where the front listens and how: TLS with certificates that are read again when they change, or plainly on loopback.

gRPC can ask a Python function for certificates at each handshake. It then holds a lock that stopping an asyncio server
takes too, while that holds the interpreter: a handshake in the wrong moment, and the process hangs for good. So a
renewed certificate gets a server of its own on the same port, and the former one is drained.

Knows gRPC's servers and the configuration; knows neither tokens nor callers.
"""

from __future__ import annotations

import asyncio
import logging
import math
import socket
from collections.abc import Callable, Coroutine, Mapping
from pathlib import Path
from typing import Any

import grpc

from lookalike.addresses import check_address, is_loopback
from lookalike.config import ServiceConfig
from lookalike.errors import InvalidInput, LookalikeError, Unavailable
from lookalike.pem import read_authorities, read_pair, valid_until

_log = logging.getLogger(__name__)

LOOK_SECONDS = 2.0  # between two looks at the files
# Calls may go on for so long with the certificates they began with; none that waits takes longer.
DRAIN_SECONDS = 3600.0

MakeServer = Callable[[list[tuple[str, int]]], grpc.aio.Server]


class Endpoint:
    """What `service.listen`, `service.tls_*` and `service.insecure` ask for. `open`, `start` and `stop` it, once.

    Raises:
        InvalidInput: they contradict each other, would let anybody in, or name files that are no certificates.
        NotFound: there is no such file.
    """

    def __init__(self, config: ServiceConfig) -> None:
        check_address(config.listen, field="service.listen")
        self._address = config.listen
        self._certificates = _certificates(config)
        self._make: MakeServer | None = None
        self._servers: list[grpc.aio.Server] = []  # the last takes the calls, those before it are draining
        self._tasks: set[asyncio.Task[None]] = set()

    @property
    def expiry(self) -> Mapping[str, float]:
        """When the certificates in use end, in Unix seconds, by the configuration's key; never where there are none."""
        return {"service.tls_certificate": math.inf} if self._certificates is None else self._certificates.expiry

    def open(self, make: MakeServer) -> str:
        """Take the address; returns it, with the port that was found where 0 was asked for.

        Args:
            make: a new server with all its services, with the given options added to its own.

        Raises:
            Unavailable: the address is taken, or is not this machine's.
        """
        self._make = make
        try:
            if self._certificates is None:
                # Two servers on one port would share the calls between them.
                self._servers.append(make([("grpc.so_reuseport", 0)]))
                port = self._servers[-1].add_insecure_port(self._address)
            else:
                _check_free(self._address)
                port = self._add(self._certificates.credentials)
        except (OSError, RuntimeError) as error:
            raise Unavailable(f"cannot listen on {self._address}: {error}", reason="ADDRESS_IN_USE") from error
        self._address = f"{self._address.rpartition(':')[0]}:{port}"
        return self._address

    async def start(self) -> None:
        """Answer calls, and from now on look at the certificates."""
        await self._servers[-1].start()
        if self._certificates is not None:
            self._spawn(self._renew(self._certificates))

    async def stop(self, grace: float) -> None:
        """Take no more calls, and end those that run after `grace` seconds."""
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        await asyncio.gather(*(server.stop(grace) for server in self._servers))

    def _add(self, credentials: grpc.ServerCredentials) -> int:
        """Another server for the address; returns the port."""
        assert self._make is not None
        server = self._make([("grpc.so_reuseport", 1)])
        port = server.add_secure_port(self._address, credentials)
        self._servers.append(server)
        return port

    async def _renew(self, certificates: Certificates) -> None:
        """Until cancelled: whenever the files change, a new server, whose clients all show their certificates anew."""
        while True:
            await asyncio.sleep(LOOK_SECONDS)
            if not await asyncio.to_thread(certificates.changed):
                continue
            try:
                self._add(certificates.credentials)
            except RuntimeError as error:
                _log.error("cannot listen on %s with the new certificate: %s", self._address, error)
                continue
            former, fresh = self._servers[-2:]
            await fresh.start()
            self._spawn(self._drain(former))
            _log.info("new connections to %s get the new certificate", self._address)

    async def _drain(self, server: grpc.aio.Server) -> None:
        await server.stop(DRAIN_SECONDS)
        if server in self._servers:
            self._servers.remove(server)

    def _spawn(self, work: Coroutine[None, None, None]) -> None:
        task = asyncio.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)


class Certificates:
    """The server's chain and key, and the authorities of its clients', as the files were when they were last good.

    With authorities, a client that has no certificate of theirs does not get as far as a call.
    """

    def __init__(self, certificate: Path, key: Path, client_ca: Path | None) -> None:
        """Raises as `read_pair` and `read_authorities`."""
        self._certificate, self._key, self._client_ca = certificate, key, client_ca
        self._seen = self._look()
        self.expiry: Mapping[str, float] = {}
        self.credentials = self._load()

    def changed(self) -> bool:
        """Whether `credentials` are others than before, because the files are. Bad ones are logged, and not taken."""
        seen = self._look()
        if seen == self._seen:
            return False
        self._seen = seen
        try:
            self.credentials = self._load()
        except LookalikeError as error:  # perhaps only one of two files has been replaced yet: then they change again
            _log.error("the former certificate stays in use: %s", error)
            return False
        return True

    def _look(self) -> list[Any]:
        looks: list[Any] = []
        for path in (self._certificate, self._key, self._client_ca):
            try:
                status = path.stat() if path is not None else None
                looks.append(status and (status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns))
            except OSError as error:
                looks.append(error.errno)
        return looks

    def _load(self) -> grpc.ServerCredentials:
        certificate, key = read_pair(
            self._certificate, self._key, fields=("service.tls_certificate", "service.tls_key")
        )
        ends = {"service.tls_certificate": valid_until(certificate)}
        if self._client_ca is None:
            self.expiry = ends
            return grpc.ssl_server_credentials([(key, certificate)])
        authorities = read_authorities(self._client_ca, field="service.tls_client_ca")
        self.expiry = ends | {"service.tls_client_ca": valid_until(authorities)}
        return grpc.ssl_server_credentials([(key, certificate)], authorities, require_client_auth=True)


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


def _check_free(address: str) -> None:
    """Raises `OSError` where somebody listens: servers of ours share their port, which others of ours must not join."""
    host, _, port = address.rpartition(":")
    if int(port):
        family, kind, protocol, _, where = socket.getaddrinfo(host.strip("[]"), int(port), type=socket.SOCK_STREAM)[0]
        with socket.socket(family, kind, protocol) as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)  # as gRPC does: ended connections are no matter
            probe.bind(where)
