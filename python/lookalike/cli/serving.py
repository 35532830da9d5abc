"""`lookalike serve`: the gRPC front and the runtime behind it, started and ended together.

Knows `service` and `runtime`; they know nothing of each other's start.
"""

from __future__ import annotations

import asyncio
import gc
import logging
import signal
import sys
from collections.abc import Callable, Coroutine
from contextlib import AsyncExitStack, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, cast

import typer

from lookalike import logs
from lookalike.cli.child import READY_LINE
from lookalike.cli.options import CheckpointFolder, ConfigFile, Overrides, PoolFolder, configuration
from lookalike.cli.reloading import Reloading
from lookalike.cli.systemd import notify, watched
from lookalike.errors import InvalidInput

if TYPE_CHECKING:
    from lookalike.config import Config
    from lookalike.runtime.inprocess import InProcessRuntime
    from lookalike.runtime.score_job import ScoreRuntime
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

    Prints the address when it is ready. Ctrl-C or SIGTERM ends everything, once what runs has ended or has had
    service.drain_seconds; a second one ends it now. Operations that were running go on when the same service.data_dir
    is served again. SIGHUP reads --config again and takes up torchserve.instances and torchserve.workers meanwhile.

    \b
    Examples:
      lookalike serve --checkpoint general --pool pool --insecure
      lookalike serve --checkpoint general --pool pool --insecure --set service.runtime=inprocess
      lookalike serve --checkpoint general --pool pool --set service.listen=0.0.0.0:8500 \\
        --set service.tls_certificate=server.pem --set service.tls_key=server.key
    """
    from lookalike.runtime.archive import build_archive, build_scoring_archive
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
    if settings.realtime.host == "torchserve":
        _require_torchserve(settings)
        build_scoring_archive(settings)

    def read_again() -> Config:
        return configuration(config, overrides, checkpoint=checkpoint)

    # Without a file there is nothing to read again, and SIGHUP ends it as ever: its terminal has gone.
    asyncio.run(_serve(settings, checkpoint, pool, name, read_again if config is not None else None))


async def _serve(
    config: Config, checkpoint: Path, pool: Path, fingerprint: str, read_again: Callable[[], Config] | None
) -> None:
    from lookalike.service.server import read_campaign_schema
    from lookalike.service.server import serve as serve_front

    stop, hurry = asyncio.Event(), asyncio.Event()

    def end() -> None:
        notify("STOPPING=1")
        (hurry if stop.is_set() else stop).set()

    loop = asyncio.get_running_loop()
    for number in (signal.SIGINT, signal.SIGTERM):
        loop.add_signal_handler(number, end)
    if read_again is not None:
        loop.add_signal_handler(signal.SIGHUP, lambda: None)  # it has just been read

    def ready(address: str) -> None:
        gc.collect()
        gc.freeze()  # what was loaded stays: looking through it for garbage would stop all calls for 30 ms now and then
        typer.echo(f"{READY_LINE} {address} (checkpoint {fingerprint[:12]}, pool {pool}, Ctrl-C ends it)")
        notify("READY=1", f"STATUS=serves on {address}")

    runtime = _runtime(config, checkpoint, fingerprint)
    async with AsyncExitStack() as stack:
        stack.callback(gc.unfreeze)  # libraries look at their end whether all is gone, and say so on standard error
        stack.push_async_callback(runtime.stop)
        await stack.enter_async_context(watched())
        if not await _unless_stopped(runtime.start(), stop):
            return
        if read_again is not None:
            reloading = Reloading(config, runtime, checkpoint, read_again, fingerprint)
            loop.add_signal_handler(signal.SIGHUP, reloading.request)
            stack.push_async_callback(reloading.close)
        await serve_front(
            config,
            pool=pool,
            checkpoint_fingerprint=fingerprint,
            runtime=runtime,
            scoring=await _scoring(config, runtime, stack),
            ready=ready,
            stop=stop,
            hurry=hurry,
            campaign_schema=read_campaign_schema(checkpoint),
            model_created=(checkpoint / "checkpoint.json").stat().st_mtime,
        )


def _runtime(config: Config, checkpoint: Path, fingerprint: str) -> InProcessRuntime | TorchServeRuntime:
    if config.service.runtime == "inprocess":
        from lookalike.runtime.inprocess import InProcessRuntime

        return InProcessRuntime(checkpoint, config)
    from lookalike.runtime.torchserve import TorchServeRuntime

    return TorchServeRuntime(
        config.torchserve,
        log_file=config.service.data_dir / "torchserve.log",
        checkpoint=fingerprint,
        scoring=config.realtime if config.realtime.host == "torchserve" else None,
        log_format=config.service.log_format,
    )


def _require_torchserve(config: Config) -> None:
    if config.service.runtime != "torchserve":
        raise InvalidInput(
            "realtime.host=torchserve wants service.runtime=torchserve; realtime.host=process does without",
            field="realtime.host",
        )


async def _scoring(
    config: Config, runtime: InProcessRuntime | TorchServeRuntime, stack: AsyncExitStack
) -> ScoreRuntime | None:
    """What `realtime.host` names, started, and ended with the stack."""
    if config.realtime.host == "process":
        from lookalike.runtime.score_processes import ScoreProcesses

        log_file = config.service.data_dir / "scoring.log"
        processes = ScoreProcesses(config.realtime, log_file=log_file, log_format=config.service.log_format)
        return await stack.enter_async_context(processes)
    # `serve` has seen to it that this is TorchServe.
    return cast("TorchServeRuntime", runtime) if config.realtime.host == "torchserve" else None


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
