"""Test help: a gRPC caller that sends whatever frames it is told, over TLS; for what no client library would send."""

from __future__ import annotations

import socket
import ssl
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Self
from urllib.parse import unquote

import grpc
import h2.config
import h2.connection
import h2.events
import h2.exceptions
import h2.settings

SECONDS = 30.0


def frame(message: bytes, *, flag: int = 0, length: int | None = None) -> bytes:
    """A message as gRPC frames it; `flag` and `length` may lie."""
    return bytes([flag]) + (len(message) if length is None else length).to_bytes(4, "big") + message


@dataclass
class Ended:
    """How a call ended.

    Attributes:
        status: HTTP's; 0 when there were no headers. code: gRPC's; None when the server sent none.
        reset: the error with which it ended the stream or the connection instead; None: it did not.
    """

    status: int = 0
    code: grpc.StatusCode | None = None
    message: str = ""
    reset: int | None = None
    headers: dict[str, str] = field(default_factory=dict)
    over: bool = False


class RawChannel:
    """One connection; a call after the other."""

    def __init__(self, address: str, authority: Path) -> None:
        host, _, port = address.rpartition(":")
        context = ssl.create_default_context(cafile=str(authority))
        context.set_alpn_protocols(["h2"])
        self._socket = context.wrap_socket(socket.create_connection((host, int(port)), SECONDS), server_hostname=host)
        # It is the server that is tested: what is sent must not be put right on the way.
        config = h2.config.H2Configuration(
            header_encoding="utf-8", validate_outbound_headers=False, normalize_outbound_headers=False
        )
        self._connection = h2.connection.H2Connection(config)
        self._connection.initiate_connection()
        self._flush()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._socket.close()

    def call(self, path: str, body: Iterable[bytes], headers: Iterable[tuple[str, str]] = (), **changed: str) -> Ended:
        """Send `body` in frames of these pieces and wait for the end. `changed`: headers unlike a client's."""
        plain = {
            ":method": "POST",
            ":scheme": "https",
            ":path": path,
            ":authority": "localhost",
            "te": "trailers",
            "content-type": "application/grpc",
        }
        plain |= {
            name.replace("_", "-") if not name.startswith("p_") else f":{name[2:]}": v for name, v in changed.items()
        }
        stream = self._connection.get_next_available_stream_id()
        self._connection.send_headers(stream, [*((k, v) for k, v in plain.items() if v), *headers])
        ended = Ended()
        try:
            for piece in body:
                self._send(stream, piece, ended)
            self._connection.end_stream(stream)
            self._flush()
        except (h2.exceptions.StreamClosedError, h2.exceptions.ProtocolError, OSError):
            pass  # the server has had enough; what it said is still to be read
        while not ended.over:
            self._read(stream, ended)
        return ended

    def send_raw(self, data: bytes) -> bytes:
        """Past HTTP/2, as it is; what comes until the server hangs up."""
        self._socket.sendall(data)
        return _until_closed(self._socket)

    def _send(self, stream: int, piece: bytes, ended: Ended) -> None:
        view = memoryview(piece)
        while view:
            room = min(
                self._connection.local_flow_control_window(stream), self._connection.max_outbound_frame_size, len(view)
            )
            if room:
                self._connection.send_data(stream, bytes(view[:room]))
                view = view[room:]
                self._flush()
            else:
                self._read(stream, ended)
            if ended.over:
                raise h2.exceptions.StreamClosedError(stream)

    def _flush(self) -> None:
        data = self._connection.data_to_send()
        if data:
            self._socket.sendall(data)

    def _read(self, stream: int, ended: Ended) -> None:
        try:
            data = self._socket.recv(65_536)
        except (ConnectionError, ssl.SSLError):
            data = b""
        if not data:
            ended.reset, ended.over = (-1 if ended.reset is None else ended.reset), True
        for event in self._connection.receive_data(data):
            if isinstance(event, h2.events.ConnectionTerminated):
                ended.reset, ended.over = int(event.error_code or 0), True
            if getattr(event, "stream_id", None) != stream:
                continue
            if isinstance(event, (h2.events.ResponseReceived, h2.events.TrailersReceived)):
                ended.headers |= {str(name): str(value) for name, value in event.headers or ()}
            elif isinstance(event, h2.events.DataReceived):
                self._connection.acknowledge_received_data(event.flow_controlled_length or 0, stream)
            elif isinstance(event, h2.events.StreamReset):
                ended.reset, ended.over = int(event.error_code or 0), True
            elif isinstance(event, h2.events.StreamEnded):
                ended.over = True
        self._flush()
        ended.status = int(ended.headers.get(":status", 0))
        if "grpc-status" in ended.headers:
            ended.code = next(code for code in grpc.StatusCode if code.value[0] == int(ended.headers["grpc-status"]))
            ended.message = unquote(ended.headers.get("grpc-message", ""))


def _until_closed(connection: socket.socket) -> bytes:
    data = b""
    while True:
        try:
            more = connection.recv(65_536)
        except (ConnectionError, ssl.SSLError):
            return data
        if not more:
            return data
        data += more
