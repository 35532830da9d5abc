"""Runs expansions in the workers of a TorchServe it starts, watches, restarts and ends.

Torch-free, so that the front service can hold it. Process matters are `torchserve_process`'s, calls are
`torchserve_client`'s.
"""

from __future__ import annotations

import asyncio
import logging
import time
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Self

from lookalike import logs
from lookalike.config import TorchServeConfig
from lookalike.errors import FailedPrecondition, LookalikeError, Unavailable
from lookalike.retrieval.receipt import Receipt
from lookalike.runtime.job import NOT_RUNNING, ExpansionJob, ProgressCallback, RuntimeHealth
from lookalike.runtime.torchserve_client import TorchServeClient
from lookalike.runtime.torchserve_process import TorchServeProcess

_log = logging.getLogger(__name__)

POLL_SECONDS = 0.2  # while it starts
WATCH_SECONDS = 1.0  # while it runs
# TorchServe itself ends a silent worker; ours is the net below, for when it does not say so.
SILENCE_MARGIN_SECONDS = 30.0
RESTART_DELAYS = (0.0, 1.0, 2.0, 5.0, 10.0, 30.0)


@dataclass(frozen=True)
class _Server:
    process: TorchServeProcess
    client: TorchServeClient


class TorchServeRuntime:
    """As many jobs at once as the archive has workers. `async with` it, or `start` and `stop` it.

    When the JVM dies, or has no live worker for the start-up time-out, TorchServe is started anew; a job that ran
    meanwhile raises Unavailable and may be run again.
    """

    def __init__(
        self, config: TorchServeConfig, *, log_file: Path, checkpoint: str = "", log_format: logs.Format = "text"
    ) -> None:
        """`checkpoint`: fingerprint the archive must hold; empty: any."""
        self._config = config
        self.log_file = log_file
        self._checkpoint = checkpoint
        self._log_format = log_format
        self._server: _Server | None = None
        self._usable = asyncio.Event()
        self._watch: asyncio.Task[None] | None = None
        self._ready_workers = 0  # when last seen
        self._known_workers: frozenset[int] = frozenset()  # process ids of all that were ready since it started
        self._restarts = 0
        self._worker_restarts = 0

    @property
    def capacity(self) -> int:
        return self._config.workers

    @property
    def pid(self) -> int | None:
        """Of the process group TorchServe runs in, if it runs."""
        return self._server.process.pid if self._server is not None else None

    async def start(self) -> None:
        """Start TorchServe and return when every worker is ready and one has answered.

        Raises:
            NotFound: no archive. FailedPrecondition: it holds another checkpoint.
            Unavailable: TorchServe does not come up; the message ends with its log.
        """
        try:
            self._server = await self._launch()
        except Unavailable as error:
            if error.reason != "TORCHSERVE_ENDED":
                raise
            _log.warning("%s\nTrying once more: somebody may have taken one of its ports", error)
            self._server = await self._launch()
        self._usable.set()
        self._watch = asyncio.create_task(self._supervise(), name="torchserve-watch")

    async def stop(self) -> None:
        """End TorchServe, its JVM and its workers; jobs that run raise Unavailable."""
        self._usable.clear()
        if self._watch is not None:
            self._watch.cancel()
            with suppress(asyncio.CancelledError, Exception):
                await self._watch
            self._watch = None
        await self._end_server()

    async def run(self, job: ExpansionJob, progress: ProgressCallback) -> Receipt:
        """See `Runtime.run`. Cancelling the call leaves the worker at it: TorchServe cannot be told."""
        if self._server is not None and self._server.process.returncode is not None:
            self._usable.clear()  # dead, and not yet noticed
        try:
            await asyncio.wait_for(self._usable.wait(), self._config.startup_timeout_seconds)
        except TimeoutError as error:
            raise Unavailable("TorchServe is not running", reason=NOT_RUNNING) from error
        assert self._server is not None
        silence = self._config.response_timeout_seconds + SILENCE_MARGIN_SECONDS
        await self._server.client.run(job, progress, silence=silence)
        return await asyncio.to_thread(Receipt.read, job.output)

    def health(self) -> RuntimeHealth:
        server = self._server
        up = server is not None and self._usable.is_set() and server.process.returncode is None
        return RuntimeHealth(
            up=up,
            workers_ready=self._ready_workers if up else 0,
            restarts=self._restarts,
            worker_restarts=self._worker_restarts,
            pids=server.process.pids() if server is not None else (),
        )

    async def ready(self) -> bool:
        if self._server is None or not self._usable.is_set():
            return False
        try:
            return bool(await self._server.client.ready_workers())
        except LookalikeError:
            return False

    async def _launch(self) -> _Server:
        process = TorchServeProcess(self._config.archive, self.log_file, log_format=self._log_format)
        client = TorchServeClient(process.ports, process.keys)
        server = _Server(process, client)
        try:
            await self._until_ready(server)
        except BaseException:
            await process.stop()
            await client.close()
            raise
        return server

    async def _until_ready(self, server: _Server) -> None:
        deadline = time.monotonic() + self._config.startup_timeout_seconds
        trouble, reason = "it has not answered", "TORCHSERVE_NOT_STARTED"
        while time.monotonic() < deadline:
            if server.process.returncode is not None:
                trouble, reason = "it ended", "TORCHSERVE_ENDED"
                break
            try:
                workers = await server.client.ready_workers()
                if len(workers) >= self._config.workers:
                    self._check(await server.client.ping())
                    self._ready_workers, self._known_workers = len(workers), workers
                    return
                trouble = f"{len(workers)} of {self._config.workers} workers are ready"
            except (FailedPrecondition, asyncio.CancelledError):
                raise
            except LookalikeError as error:  # not yet listening, no model yet, ...
                trouble = error.message
            await asyncio.sleep(POLL_SECONDS)
        raise Unavailable(
            f"TorchServe did not start: {trouble}. Its log, {server.process.log_file}, ends:\n"
            f"{server.process.log_tail()}",
            reason=reason,
        )

    def _check(self, said: dict[str, str]) -> None:
        if self._checkpoint and said["checkpoint"] != self._checkpoint:
            raise FailedPrecondition(
                f"{self._config.archive} holds checkpoint {said['checkpoint'][:12]}, not {self._checkpoint[:12]}: "
                "build it again with `lookalike archive`",
                field="torchserve.archive",
                reason="CHECKPOINT_MISMATCH",
            )

    async def _supervise(self) -> None:
        """Until cancelled: notice a dead JVM or one without workers, and start another."""
        last_alive = time.monotonic()
        while True:
            await asyncio.sleep(WATCH_SECONDS)
            assert self._server is not None
            if self._server.process.returncode is None:
                if await self._has_worker(self._server):
                    last_alive = time.monotonic()
                if time.monotonic() - last_alive < self._config.startup_timeout_seconds:
                    continue
            self._usable.clear()
            _log.error("TorchServe died or has no worker; starting it again. Its log is %s", self.log_file)
            await self._end_server()
            self._restarts += 1
            self._server = await self._relaunch()
            self._usable.set()
            last_alive = time.monotonic()

    async def _has_worker(self, server: _Server) -> bool:
        try:
            workers = await server.client.ready_workers()
        except LookalikeError:
            workers = frozenset()
        self._ready_workers = len(workers)
        self._worker_restarts += len(workers - self._known_workers)
        self._known_workers |= workers
        return bool(workers)

    async def _relaunch(self) -> _Server:
        attempt = 0
        while True:
            await asyncio.sleep(RESTART_DELAYS[min(attempt, len(RESTART_DELAYS) - 1)])
            attempt += 1
            try:
                return await self._launch()
            except LookalikeError as error:
                _log.error("TorchServe did not start again (attempt %d): %s", attempt, error)
            except Exception:  # no disk, no memory, no descriptors: that may pass, and nobody else would try again
                _log.exception("TorchServe did not start again (attempt %d)", attempt)

    async def _end_server(self) -> None:
        if self._server is not None:
            server, self._server = self._server, None
            await server.process.stop()  # first: calls then end with a status
            await server.client.close()

    async def __aenter__(self) -> Self:
        await self.start()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        await self.stop()
