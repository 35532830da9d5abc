"""Runs expansions on a thread of this process: for small pools, for tests, and where TorchServe is not wanted.

Knows `execute`; torch is imported when the first job runs.
"""

from __future__ import annotations

import asyncio
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import TracebackType
from typing import Self

from lookalike.config import Config
from lookalike.errors import Cancelled, Unavailable
from lookalike.retrieval.receipt import Progress, Receipt
from lookalike.runtime.execute import Executor
from lookalike.runtime.job import ExpansionJob, ProgressCallback, RuntimeHealth


class InProcessRuntime:
    """One job at a time: it already uses every core. `async with` it, or call `stop` at the end."""

    def __init__(self, checkpoint: Path, config: Config) -> None:
        self._executor = Executor(checkpoint, config)
        self._threads = ThreadPoolExecutor(max_workers=1, thread_name_prefix="expansion")
        self._stopping = threading.Event()

    @property
    def capacity(self) -> int:
        return 1

    async def run(self, job: ExpansionJob, progress: ProgressCallback) -> Receipt:
        """See `Runtime.run`. Cancelling the call stops the job and returns when it has stopped."""
        loop = asyncio.get_running_loop()
        abandoned = threading.Event()

        def report(step: Progress) -> None:
            loop.call_soon_threadsafe(progress, step)

        def stopped() -> bool:
            return abandoned.is_set() or self._stopping.is_set()

        try:
            work = loop.run_in_executor(self._threads, self._executor.run, job, report, stopped)
        except RuntimeError as error:
            raise Unavailable("the runtime was stopped") from error
        try:
            return await asyncio.shield(work)
        except Cancelled as error:
            if self._stopping.is_set() and not job.cancel_flag.exists():
                raise Unavailable("the runtime was stopped") from error
            raise
        except asyncio.CancelledError:
            abandoned.set()
            await asyncio.wait([work])
            work.exception()  # looked at, so that asyncio does not complain of it
            raise

    def health(self) -> RuntimeHealth:
        up = not self._stopping.is_set()
        return RuntimeHealth(up=up, workers=1, workers_ready=int(up))

    async def ready(self) -> bool:
        return not self._stopping.is_set()

    async def start(self) -> None:
        """Nothing to start."""

    async def stop(self) -> None:
        """Stop the job that runs and wait for it."""
        self._stopping.set()
        await asyncio.to_thread(self._threads.shutdown, cancel_futures=True)
        await asyncio.to_thread(self._executor.close)

    async def __aenter__(self) -> Self:
        await self.start()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        await self.stop()
