"""`lookalike serve`: the gRPC front and the runtime behind it, started and ended together.

Knows `service` and `runtime`; they know nothing of each other's start.
"""

from __future__ import annotations

import asyncio
import logging
import signal
import sys
from collections.abc import Coroutine
from contextlib import AsyncExitStack, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from lookalike import logs
from lookalike.cli.child import READY_LINE
from lookalike.cli.options import CheckpointFolder, ConfigFile, Overrides, PoolFolder, configuration
from lookalike.cli.systemd import notify, watched

if TYPE_CHECKING:
    from lookalike.config import Config
    from lookalike.runtime.inprocess import InProcessRuntime
    from lookalike.runtime.torchserve import TorchServeRuntime


def serve(
    checkpoint: CheckpointFolder,
    pool: PoolFolder,
    config: ConfigFile = None,
    overrides: Overrides = None,
    insecure: Annotated[
        bool,
        typer.Option("--insecure", help="Without TLS and tokens, for who is on this machine: service.insecure=true."),
    ] = False,
) -> None:
    """Serve expansions over gRPC: builds the archive, starts TorchServe on loopback and the front service before it.

    It takes a certificate and its key, and tokens from `lookalike token`; or --insecure, on a loopback address alone.

    Prints the address when it is ready. Ctrl-C or SIGTERM ends everything; operations that were running go on when
    the same service.data_dir is served again.

    \b
    Examples:
      lookalike serve --checkpoint general --pool pool --insecure
      lookalike serve --checkpoint general --pool pool --insecure --set service.runtime=inprocess
      lookalike serve --checkpoint general --pool pool --set service.listen=0.0.0.0:8500 \\
        --set service.tls_certificate=server.pem --set service.tls_key=server.key
    """
    from lookalike.runtime.archive import build_archive
    from lookalike.service.endpoint import Endpoint
    from lookalike.training.checkpoint import fingerprint

    overrides = [*(overrides or ()), *(["service.insecure=true"] if insecure else ())]
    settings = configuration(config, overrides, checkpoint=checkpoint)
    logs.configure(settings.service.log_format, sys.stderr, level=logging.getLogger().level)
    logging.getLogger("lookalike").setLevel(logging.INFO)
    Endpoint(settings.service)  # says what is wrong with it now, and not when TorchServe runs
    name = fingerprint(checkpoint)
    if settings.service.runtime == "torchserve":
        build_archive(checkpoint, settings.torchserve.archive, settings)
    asyncio.run(_serve(settings, checkpoint, pool, name))


async def _serve(config: Config, checkpoint: Path, pool: Path, fingerprint: str) -> None:
    from lookalike.service.server import read_campaign_schema
    from lookalike.service.server import serve as serve_front

    stop = asyncio.Event()

    def end() -> None:
        notify("STOPPING=1")
        stop.set()

    for number in (signal.SIGINT, signal.SIGTERM):
        asyncio.get_running_loop().add_signal_handler(number, end)

    def ready(address: str) -> None:
        typer.echo(f"{READY_LINE} {address} (checkpoint {fingerprint[:12]}, pool {pool}, Ctrl-C ends it)")
        notify("READY=1", f"STATUS=serves on {address}")

    runtime = _runtime(config, checkpoint, fingerprint)
    async with AsyncExitStack() as stack:
        stack.push_async_callback(runtime.stop)
        await stack.enter_async_context(watched())
        if not await _unless_stopped(runtime.start(), stop):
            return
        await serve_front(
            config,
            pool=pool,
            checkpoint_fingerprint=fingerprint,
            runtime=runtime,
            ready=ready,
            stop=stop,
            campaign_schema=read_campaign_schema(checkpoint),
            model_created=(checkpoint / "checkpoint.json").stat().st_mtime,
        )


def _runtime(config: Config, checkpoint: Path, fingerprint: str) -> InProcessRuntime | TorchServeRuntime:
    if config.service.runtime == "inprocess":
        from lookalike.runtime.inprocess import InProcessRuntime

        return InProcessRuntime(checkpoint, config)
    from lookalike.runtime.torchserve import TorchServeRuntime

    log_file = config.service.data_dir / "torchserve.log"
    return TorchServeRuntime(
        config.torchserve, log_file=log_file, checkpoint=fingerprint, log_format=config.service.log_format
    )


async def _unless_stopped(work: Coroutine[None, None, None], stop: asyncio.Event) -> bool:
    """Await `work`; give it up when `stop` is set first. Whether it was done."""
    task, stopped = asyncio.ensure_future(work), asyncio.ensure_future(stop.wait())
    await asyncio.wait([task, stopped], return_when=asyncio.FIRST_COMPLETED)
    stopped.cancel()
    if task.done():
        task.result()
        return True
    task.cancel()
    with suppress(asyncio.CancelledError):
        await task
    return False
