"""Runs expansions in the workers of one or more TorchServes, which it starts and ends, and adds and takes away.

Torch-free, so that the front service can hold it. What becomes of one TorchServe is `torchserve_instance`'s.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Coroutine
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from lookalike import logs
from lookalike.config import RealtimeConfig, TorchServeConfig
from lookalike.errors import ResourceExhausted, Unavailable
from lookalike.retrieval.receipt import Receipt
from lookalike.runtime.job import NOT_RUNNING, ExpansionJob, ProgressCallback, RuntimeHealth
from lookalike.runtime.score_job import ScoreJob, Scores
from lookalike.runtime.score_wire import job_to_bytes, scores_from_bytes
from lookalike.runtime.torchserve_instance import TorchServeInstance

_log = logging.getLogger(__name__)


class TorchServeRuntime:
    """`torchserve.instances` TorchServes with `torchserve.workers` each. `async with` it, or `start` and `stop` it.

    A job goes to the instance with the fewest; there are never more than workers that are ready for them.
    """

    def __init__(
        self,
        config: TorchServeConfig,
        *,
        log_file: Path,
        checkpoint: str = "",
        scoring: RealtimeConfig | None = None,
        log_format: logs.Format = "text",
    ) -> None:
        """`log_file`: of the first instance; see `LogFile`. `checkpoint`: the archive must hold; empty: any.

        `scoring`: the instances are to score users, too, with workers for nothing else.
        """
        self._config = config
        self._log_file = log_file
        self._checkpoint = checkpoint
        self._scoring = scoring
        self._log_format = log_format
        self._instances: list[TorchServeInstance] = []
        self._retiring: list[TorchServeInstance] = []
        self._gone = (0, 0)  # restarts, and of workers, of instances that are no more
        self._tasks: set[asyncio.Task[None]] = set()
        self._changed = asyncio.Event()
        self._scaling = asyncio.Lock()

    @property
    def instances(self) -> tuple[TorchServeInstance, ...]:
        """Those that take jobs."""
        return tuple(self._instances)

    @property
    def capacity(self) -> int:
        return sum(instance.places for instance in (*self._instances, *self._retiring))

    @property
    def pid(self) -> int | None:
        """Of the process group of the first instance, if it runs."""
        return self._instances[0].pid if self._instances else None

    async def start(self) -> None:
        """Start all instances and return when every worker is ready.

        Raises:
            NotFound: no archive. FailedPrecondition: it holds another checkpoint.
            Unavailable: a TorchServe does not come up; the message ends with its log.
        """
        self._instances = [self._instance() for _ in range(self._config.instances)]
        try:
            async with asyncio.TaskGroup() as group:
                for instance in self._instances:
                    group.create_task(instance.start())
        except BaseExceptionGroup as several:
            await self.stop()
            raise several.exceptions[0] from None
        except BaseException:
            await self.stop()
            raise

    async def scale(self, config: TorchServeConfig) -> None:
        """Go on with other numbers of `instances` and `workers`; with another of workers the archive has been built.

        New instances come before old ones go, and those end when their last job has: nothing is run twice, as it would
        be if TorchServe took workers away itself. Returns when the new ones are ready; the old ones may take longer.

        Raises:
            Unavailable: a TorchServe does not come up; it then stays with those there are.
        """
        async with self._scaling:
            before, self._config = self._config, config
            old = list(self._instances)
            for instance in old:
                instance.config = config
            keep = 0 if config.workers != before.workers else min(len(old), config.instances)
            # The least busy go first.
            leaving = sorted(old, key=lambda instance: instance.busy)[: len(old) - keep]
            try:
                for _ in range(config.instances - keep):
                    await self._add()
                    if leaving:
                        self._retire(leaving.pop(0))
            except BaseException:
                self._config = before  # asked for again, it is all done again
                raise
            for instance in leaving:
                self._retire(instance)

    async def stop(self) -> None:
        """End every TorchServe, its JVM and its workers; jobs that run raise Unavailable."""
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        instances = [*self._instances, *self._retiring]
        self._instances, self._retiring = [], []
        await asyncio.gather(*(instance.stop() for instance in instances))

    async def run(self, job: ExpansionJob, progress: ProgressCallback) -> Receipt:
        """See `Runtime.run`. Cancelling the call leaves the worker at it: TorchServe cannot be told."""
        try:
            async with asyncio.timeout(self._config.startup_timeout_seconds):
                instance = await self._take()
        except TimeoutError as error:
            raise Unavailable("no worker of TorchServe is free", reason=NOT_RUNNING) from error
        await instance.run(job, progress)
        return await asyncio.to_thread(Receipt.read, job.output)

    async def score(self, job: ScoreJob) -> Scores:
        """See `ScoreRuntime.score`."""
        up = [instance for instance in self._instances if instance.up]
        if self._scoring is None or not up:
            raise Unavailable("no TorchServe runs that scores", reason=NOT_RUNNING)
        instance = min(up, key=lambda instance: instance.scoring)
        if instance.scoring >= self._scoring.workers * self._scoring.max_waiting:
            raise ResourceExhausted(
                f"{instance.scoring} requests for scores wait; come again, or have more realtime.workers",
                reason="SCORING_BUSY",
            )
        return scores_from_bytes(await instance.score(job_to_bytes(job)))

    def health(self) -> RuntimeHealth:
        everyone = (*self._instances, *self._retiring)
        return RuntimeHealth(
            up=any(instance.up for instance in self._instances),
            workers=self._config.instances * self._config.workers,
            workers_ready=sum(instance.ready_workers for instance in self._instances),
            restarts=self._gone[0] + sum(instance.restarts for instance in everyone),
            worker_restarts=self._gone[1] + sum(instance.worker_restarts for instance in everyone),
            pids=tuple(pid for instance in everyone for pid in instance.pids),
        )

    async def ready(self) -> bool:
        return any(instance.places for instance in self._instances)

    async def _take(self) -> TorchServeInstance:
        while True:
            changed = self._changed
            for instance in sorted(self._instances, key=lambda instance: instance.busy):
                if instance.take():
                    return instance
            await changed.wait()

    def _tell(self) -> None:
        self._changed.set()
        self._changed = asyncio.Event()

    def _instance(self) -> TorchServeInstance:
        return TorchServeInstance(
            self._config,
            log_file=self._log_file,
            checkpoint=self._checkpoint,
            scoring=self._scoring,
            log_format=self._log_format,
            changed=self._tell,
        )

    async def _add(self) -> None:
        instance = self._instance()
        try:
            await instance.start()
        except BaseException:
            await instance.stop()
            raise
        self._instances.append(instance)
        self._tell()
        _log.info("another TorchServe takes jobs; there are %d", len(self._instances))

    def _retire(self, instance: TorchServeInstance) -> None:
        instance.retiring = True  # now, and not when its task begins
        self._instances.remove(instance)
        self._retiring.append(instance)
        self._spawn(self._see_off(instance))

    async def _see_off(self, instance: TorchServeInstance) -> None:
        _log.info("a TorchServe takes no more jobs; it ends when %d have", instance.busy)
        await instance.retire()
        self._retiring.remove(instance)
        self._gone = (self._gone[0] + instance.restarts, self._gone[1] + instance.worker_restarts)

    def _spawn(self, work: Coroutine[Any, Any, None]) -> None:
        task = asyncio.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def __aenter__(self) -> Self:
        await self.start()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        await self.stop()
