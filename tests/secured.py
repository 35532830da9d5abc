"""Test help: a front with TLS that asks for tokens, what is needed to talk to it, and what it refuses."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass, field
from datetime import timedelta
from pathlib import Path
from typing import Any

import grpc
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from certificates import Authority, Pair
from google.longrunning import operations_pb2, operations_pb2_grpc
from google.rpc import error_details_pb2, status_pb2
from serving import SECONDS, Front, ScriptedRuntime, config_for, front

from lookalike.channel import open_channel
from lookalike.client import Client
from lookalike.pool.ingest import ingest
from lookalike.service import endpoint
from lookalike.service.caller import Scope
from lookalike.service.token_file import TokenFile

DAY = timedelta(days=1)
SEEDS = [3, 1, 2]
USERS = 100_000  # of the big pool
NO_SUCH = "0" * 32


@dataclass
class Secured:
    """A front that asks for tokens, and what is needed to talk to it."""

    running: Front
    tokens: TokenFile
    authority: Authority
    folder: Path
    runtime: ScriptedRuntime
    stack: ExitStack
    certificate: Pair | None = None
    secrets: list[str] = field(default_factory=list)

    def token(self, *scopes: Scope, tenant: str = "shop", lifetime: timedelta | None = DAY) -> tuple[Path, str]:
        """A file with a new token, and the token's id."""
        text, token = self.tokens.create(tenant, scopes or Scope, lifetime=lifetime)
        path = self.folder / f"{token.id}.token"
        path.write_text(text + "\n")
        self.secrets.append(text)
        return path, token.id

    def client(self, token_file: Path | None = None, **options: Any) -> Client:
        options = {"timeout": SECONDS, "ca_file": self.authority.pem, **self._files(), **options}
        token_file = token_file or self.token()[0]
        return self.stack.enter_context(Client(self.running.address, token_file=token_file, **options))

    def channel(self, token_file: Path, **options: Any) -> grpc.Channel:
        """One that reads no further ahead than it must."""
        narrow = [("grpc.http2.bdp_probe", 0), ("grpc.http2.lookahead_bytes", 16_384)]
        files = {"ca_file": self.authority.pem, **self._files(), **options}
        return self.stack.enter_context(
            open_channel(self.running.address, token_file=token_file, options=narrow, **files)
        )

    @property
    def pair(self) -> Pair:
        """The server's own."""
        service = self.running.config.service
        assert service.tls_certificate is not None
        assert service.tls_key is not None
        return Pair(service.tls_certificate, service.tls_key)

    def knock(self, token_file: Path | None, **files: Any) -> grpc.StatusCode:
        """What one call comes to, without another try."""
        channel = self.channel(token_file, **files) if token_file else grpc.insecure_channel(self.running.address)
        return code_of(self.stack.enter_context(channel))

    def bare(self, ca: Path | None = None) -> grpc.Channel:
        """TLS, and no token."""
        pair = (
            (self.certificate.key.read_bytes(), self.certificate.certificate.read_bytes()) if self.certificate else ()
        )
        credentials = grpc.ssl_channel_credentials((ca or self.authority.pem).read_bytes(), *pair)
        return self.stack.enter_context(grpc.secure_channel(self.running.address, credentials))

    def lines(self, **wanted: object) -> list[dict[str, Any]]:
        """Of the audit log: those with the given fields."""
        path = self.running.config.service.audit_log or self.running.data_dir / "audit.jsonl"
        lines = [json.loads(line) for line in path.read_text().splitlines()]
        return [line for line in lines if wanted.items() <= line.items()]

    def _files(self) -> dict[str, Path]:
        if self.certificate is None:
            return {}
        return {"certificate_file": self.certificate.certificate, "key_file": self.certificate.key}


def code_of(channel: grpc.Channel) -> grpc.StatusCode:
    """What one call comes to, without another try."""
    stub = operations_pb2_grpc.OperationsStub(channel)
    try:
        stub.ListOperations(operations_pb2.ListOperationsRequest(), timeout=SECONDS)
    except grpc.RpcError as error:
        return error.code()
    return grpc.StatusCode.OK


Start = Callable[..., Secured]


@pytest.fixture(scope="module")
def authority(tmp_path_factory: pytest.TempPathFactory) -> Authority:
    return Authority(tmp_path_factory.mktemp("pki"), "authority")


@pytest.fixture(scope="module")
def stranger(tmp_path_factory: pytest.TempPathFactory) -> Authority:
    return Authority(tmp_path_factory.mktemp("pki"), "stranger")


@pytest.fixture
def start(sample_pool: Path, tmp_path: Path, authority: Authority, monkeypatch: pytest.MonkeyPatch) -> Iterator[Start]:
    """Starts a front with TLS, which looks at its certificates all the time; it and its clients end with the test."""
    monkeypatch.setattr(endpoint, "LOOK_SECONDS", 0.02)
    with ExitStack() as stack:

        def started(pool: Path = sample_pool, *, client_ca: Path | None = None, **service: Any) -> Secured:
            pair = authority.issue(f"server-{tmp_path.name}")
            tls = {"tls_certificate": pair.certificate, "tls_key": pair.key, "tls_client_ca": client_ca}
            config = config_for(tmp_path / "data", insecure=False, **tls, **service)
            runtime = ScriptedRuntime()
            running = stack.enter_context(front(config, pool, runtime))
            clients = stack.enter_context(ExitStack())
            tokens = TokenFile(config.service.tokens or tmp_path / "data" / "tokens.json")
            return Secured(running, tokens, authority, tmp_path, runtime, clients)

        yield started


@pytest.fixture
def secured(start: Start) -> Secured:
    return start()


@pytest.fixture(scope="module")
def big_pool(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Whose audiences are more than what a connection takes unread."""
    folder = tmp_path_factory.mktemp("big")
    pq.write_table(pa.table({"user_id": range(USERS), "age": [n % 90 for n in range(USERS)]}), folder / "u.parquet")
    ingest(folder / "u.parquet", folder / "pool")
    return folder / "pool"


def order(client: Client, **changes: Any) -> Any:
    return client.expand(**{"campaign": "spring", "seeds": SEEDS, "k": 5, **changes})


def status_of(error: grpc.RpcError) -> status_pb2.Status:
    (value,) = (value for key, value in error.trailing_metadata() if key == "grpc-status-details-bin")
    return status_pb2.Status.FromString(value)


def reason_of(error: grpc.RpcError) -> str:
    info = error_details_pb2.ErrorInfo()
    assert any(packed.Unpack(info) for packed in status_of(error).details)
    return info.reason


def refused(method: Callable[..., Any], request: Any, *authorization: str) -> grpc.RpcError:
    metadata = [("authorization", value) for value in authorization]
    with pytest.raises(grpc.RpcError) as caught:
        method(request, metadata=metadata, timeout=SECONDS)
    return caught.value
