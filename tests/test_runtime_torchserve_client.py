"""What ends of calls to TorchServe mean, by a server that ends them so."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import grpc
import pytest

from lookalike import errors
from lookalike.runtime.job import ExpansionJob
from lookalike.runtime.torchserve_client import TorchServeClient
from lookalike.runtime.torchserve_process import Key, Keys

Code = grpc.StatusCode
JOB = ExpansionJob(
    job_id="a",
    campaign="c",
    features={},
    seeds=Path("/s"),
    k=1,
    pool=Path("/p"),
    output=Path("/o"),
    cancel_flag=Path("/f"),
)


class Ending(grpc.GenericRpcHandler):
    """Ends every stream with a status, or with none never."""

    def __init__(self, code: grpc.StatusCode | None, text: str = "") -> None:
        self.end = code, text

    def service(self, details: Any) -> Any:
        async def stream(_: bytes, context: Any) -> AsyncIterator[bytes]:
            code, text = self.end
            if code is None:
                await asyncio.Event().wait()
            await context.abort(code, text)
            yield b""

        return grpc.unary_stream_rpc_method_handler(stream)


@asynccontextmanager
async def connected(handler: Ending) -> AsyncIterator[TorchServeClient]:
    server = grpc.aio.server()
    server.add_generic_rpc_handlers((handler,))
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    key = Key("token", time.time() + 3600)
    keys = Keys(inference=key, management=key, api="key")
    client = TorchServeClient(dict.fromkeys(("grpc_inference", "grpc_management", "management"), port), lambda: keys)
    try:
        yield client
    finally:
        await client.close()
        await server.stop(None)


@pytest.mark.parametrize(
    ("code", "text", "kind", "reason"),
    [
        (Code.CANCELLED, "Locally cancelled by application!", errors.Unavailable, "WORKER_DIED"),
        (Code.CANCELLED, "io.grpc.Context was cancelled without error", errors.Unavailable, "WORKER_DIED"),
        (Code.INTERNAL, "Worker died.", errors.Unavailable, "WORKER_DIED"),
        (Code.RESOURCE_EXHAUSTED, "Worker died.", errors.Unavailable, "WORKER_DIED"),
        (Code.INTERNAL, "Received RST_STREAM with error code 2", errors.Unavailable, "UNAVAILABLE"),
        (Code.UNAVAILABLE, "Socket closed", errors.Unavailable, "UNAVAILABLE"),
        (Code.INTERNAL, "Prediction failed\nInternalServerException", errors.InternalError, "TORCHSERVE_ERROR"),
    ],
)
async def test_what_an_end_means(
    code: grpc.StatusCode, text: str, kind: type[errors.LookalikeError], reason: str
) -> None:
    async with connected(Ending(code, text)) as client:
        with pytest.raises(kind) as caught:
            await client.run(JOB, lambda _: None, silence=30)
    assert (type(caught.value), caught.value.reason) == (kind, reason)


async def test_a_channel_that_is_closed_under_a_call_is_a_restart() -> None:
    async with connected(Ending(None)) as client:
        call = asyncio.create_task(client.run(JOB, lambda _: None, silence=30))
        await asyncio.sleep(0)
        await client.close()
        with pytest.raises(errors.Unavailable, match="restarted") as caught:
            await call
    assert caught.value.reason == "WORKER_DIED"


async def test_who_cancels_a_run_is_not_told_of_a_restart() -> None:
    async with connected(Ending(None)) as client:
        call = asyncio.create_task(client.run(JOB, lambda _: None, silence=30))
        await asyncio.sleep(0)
        call.cancel()
        with pytest.raises(asyncio.CancelledError):
            await call
