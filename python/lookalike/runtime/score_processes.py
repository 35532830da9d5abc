"""Scores users in processes of its own, which it starts, watches, starts again and ends. Torch-free.

Beside TorchServe, for what TorchServe's way through a JVM costs: see docs/scoring.md.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import sys
import time
import zlib
from asyncio.subprocess import PIPE, Process
from collections import deque
from pathlib import Path
from types import TracebackType
from typing import Self

import lookalike
from lookalike import logs
from lookalike.config import RealtimeConfig
from lookalike.errors import InternalError, ResourceExhausted, Unavailable
from lookalike.runtime.job import NOT_RUNNING
from lookalike.runtime.score_job import ScoreJob, Scores
from lookalike.runtime.score_wire import FAILED, LENGTH, OK, job_to_bytes, scores_from_bytes
from lookalike.runtime.torchserve_logfile import LogFile
from lookalike.runtime.wire import error_from_text

START_SECONDS = 120.0
# Of one request, the load of a large model among it; a worker that is silent for longer is started again.
ANSWER_SECONDS = 30.0
RESTART_DELAYS = (0.0, 1.0, 2.0, 5.0, 10.0, 30.0)
STOP_SECONDS = 2.0

_log = logging.getLogger(__name__)


class ScoreProcesses:
    """`realtime.workers` processes, each with models of its own. `async with` it, or `start` and `stop` it.

    An audience's requests go to one worker as long as that is not behind the others, so that its model is loaded once.
    """

    def __init__(self, config: RealtimeConfig, *, log_file: Path, log_format: logs.Format = "text") -> None:
        self._config = config
        self._log = LogFile(log_file)
        self._workers = [_Worker(config.cache_mib << 20, self._log.path, log_format) for _ in range(config.workers)]

    @property
    def pids(self) -> tuple[int, ...]:
        """Of the processes that run."""
        return tuple(worker.pid for worker in self._workers if worker.pid is not None)

    async def start(self) -> None:
        """Start all and return when each has loaded what it needs.

        Raises:
            Unavailable: one ended, or took too long; its log says why.
        """
        try:
            await asyncio.gather(*(worker.start() for worker in self._workers))
        except BaseException:
            await self.stop()
            raise

    async def stop(self) -> None:
        """End all; requests that wait raise Unavailable."""
        await asyncio.gather(*(worker.stop() for worker in self._workers))
        self._log.release()

    async def score(self, job: ScoreJob) -> Scores:
        """See `ScoreRuntime.score`."""
        ready = [worker for worker in self._workers if worker.ready]
        if not ready:
            raise Unavailable("what scores is being started again", reason=NOT_RUNNING)
        preferred = ready[zlib.crc32(job.audience.name.encode()) % len(ready)]
        free = [worker for worker in ready if worker.waiting < self._config.max_waiting]
        if not free:
            raise ResourceExhausted(
                f"{self._config.max_waiting} requests for scores wait for each worker; come again, or have more "
                "realtime.workers",
                reason="SCORING_BUSY",
            )
        worker = min(free, key=lambda worker: (worker.waiting + (worker is not preferred), worker is not preferred))
        return scores_from_bytes(await worker.ask(job_to_bytes(job)))

    async def __aenter__(self) -> Self:
        await self.start()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        await self.stop()


class _Worker:
    """One process. Answers come in the order of the requests."""

    def __init__(self, cache_bytes: int, log: Path, log_format: logs.Format) -> None:
        self._command = [sys.executable, "-m", "lookalike.runtime.score_worker", str(cache_bytes), log_format]
        self._log = log
        self._process: Process | None = None
        self._asked: deque[asyncio.Future[memoryview]] = deque()
        self._task: asyncio.Task[None] | None = None
        self._said = 0.0  # when it last answered
        self.ready = False

    @property
    def waiting(self) -> int:
        return len(self._asked)

    @property
    def pid(self) -> int | None:
        return self._process.pid if self._process is not None else None

    async def start(self) -> None:
        await self._launch()
        self._task = asyncio.create_task(self._keep(), name="score-worker")

    async def stop(self) -> None:
        self.ready = False
        if self._task is not None:
            self._task.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await self._task
        await self._end()

    async def ask(self, request: bytes) -> memoryview:
        process = self._process
        assert process is not None
        assert process.stdin is not None
        answer: asyncio.Future[memoryview] = asyncio.get_running_loop().create_future()
        self._asked.append(answer)
        # All or nothing, in one call: a request that was cut would be the end of the worker.
        process.stdin.write(LENGTH.pack(len(request)) + request)
        asked = time.monotonic()
        try:
            while not answer.done():  # those before it may take long, too
                left = max(asked, self._said) + ANSWER_SECONDS - time.monotonic()
                if left <= 0:
                    _log.error("a worker that scores said nothing for %.0f s; killing it", ANSWER_SECONDS)
                    _kill(process)
                    raise Unavailable("what scores does not answer", reason="WORKER_SILENT")
                await asyncio.wait([answer], timeout=left)
        finally:
            answer.cancel()  # nobody waits for it
        said = answer.result()
        if said[:1] == FAILED:
            text = str(said[1:], "utf-8")
            raise error_from_text(text) or InternalError(f"what scores said: {text[:200]}")
        return said[1:]

    async def _keep(self) -> None:
        """Until cancelled: take answers, and start another process when this one has ended."""
        while True:
            await self._answers()
            self.ready = False
            _log.error("a worker that scores has ended; starting it again. Its log is %s", self._log)
            await self._end()
            attempt = 0
            while not self.ready:
                await asyncio.sleep(RESTART_DELAYS[min(attempt, len(RESTART_DELAYS) - 1)])
                attempt += 1
                try:
                    await self._launch()
                except Unavailable as error:
                    _log.error("it did not start again (attempt %d): %s", attempt, error)
                except Exception:  # no memory, no descriptors: that may pass
                    _log.exception("it did not start again (attempt %d)", attempt)

    async def _launch(self) -> None:
        with self._log.open("ab") as log:
            self._process = await asyncio.create_subprocess_exec(
                *self._command, stdin=PIPE, stdout=PIPE, stderr=log, env=_environment(), start_new_session=True
            )
        try:
            async with asyncio.timeout(START_SECONDS):
                said = await self._read()
        except (TimeoutError, asyncio.IncompleteReadError) as error:
            await self._end()
            raise Unavailable(f"what scores did not start; its log is {self._log}", reason=NOT_RUNNING) from error
        except BaseException:
            await self._end()
            raise
        assert said == OK
        self.ready = True

    async def _answers(self) -> None:
        with contextlib.suppress(asyncio.IncompleteReadError, ConnectionError):
            while True:
                said = await self._read()
                self._said = time.monotonic()
                answer = self._asked.popleft()
                if not answer.done():  # whoever asked may have gone
                    answer.set_result(memoryview(said))

    async def _read(self) -> bytes:
        assert self._process is not None
        assert self._process.stdout is not None
        length = await self._process.stdout.readexactly(LENGTH.size)
        return await self._process.stdout.readexactly(*LENGTH.unpack(length))

    async def _end(self) -> None:
        process, self._process = self._process, None
        if process is not None:
            assert process.stdin is not None
            process.stdin.close()
            try:
                await asyncio.wait_for(process.wait(), STOP_SECONDS)
            except TimeoutError:
                _kill(process)
                await process.wait()
        while self._asked:
            answer = self._asked.popleft()
            if not answer.done():
                answer.set_exception(Unavailable("what scores has ended; ask again", reason="WORKER_DIED"))


def _environment() -> dict[str, str]:
    """Ours, in which this very package is found."""
    package = str(Path(lookalike.__file__).resolve().parents[1])
    return {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, [package, os.environ.get("PYTHONPATH")]))}


def _kill(process: Process) -> None:
    with contextlib.suppress(ProcessLookupError):
        process.kill()
