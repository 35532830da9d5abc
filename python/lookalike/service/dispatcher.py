"""Takes operations from the queue to the runtime, never more at once than it can run, and sees each to its end.

Knows the store, the queue's leases and the runtime's contract; knows no gRPC. Several dispatchers, one in each front,
may work off one queue.
"""

from __future__ import annotations

import asyncio
import logging
import math
import shutil
import time
from collections.abc import Coroutine, Sequence
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any
from weakref import WeakValueDictionary

from lookalike import logs
from lookalike.errors import Cancelled, LookalikeError
from lookalike.retrieval.receipt import Progress, Stage
from lookalike.retrieval.work import discard
from lookalike.runtime.job import Runtime
from lookalike.service.attempts import Attempts, NotOurs
from lookalike.service.leases import Leases
from lookalike.service.metrics import Metrics, Scored
from lookalike.service.operations import OperationStore
from lookalike.service.opt_out_keeper import OptOutKeeper
from lookalike.service.records import Operation, State
from lookalike.service.running import Running
from lookalike.service.status import unexpected

_log = logging.getLogger(__name__)

PERSIST_SECONDS = 2.0  # of progress at most are lost with the server
TEND_SECONDS = 0.5  # until a front notices what another one has queued or ended, at most
RENEW_SECONDS = 1.0  # between two signs of life, at most; with the answer comes what was cancelled elsewhere


class Dispatcher:
    """`start` it, `wake` it when something was queued, `close` it. All on one event loop."""

    def __init__(
        self,
        store: OperationStore,
        runtime: Runtime,
        *,
        leases: Leases,
        attempts: Attempts,
        jobs: Path,
        opt_outs: OptOutKeeper,
        metrics: Metrics,
    ) -> None:
        """`jobs`: a folder for each active operation; `opt_outs`: is told of each that has ended."""
        self._opt_outs = opt_outs
        self._store = store
        self._leases = leases
        self._runtime = runtime
        self._attempts = attempts
        self._jobs = jobs
        self._metrics = metrics
        self._running: dict[str, Running] = {}
        self._tasks: set[asyncio.Task[None]] = set()
        self._ends: WeakValueDictionary[str, asyncio.Event] = WeakValueDictionary()
        self._wake = asyncio.Event()
        self._unfinished: list[Operation] = []  # to be given back to the queue
        self._closed = False
        self._draining = asyncio.Event()

    async def start(self) -> None:
        """Put what a former server left running back into the queue, and begin."""
        await self._take_over(everything=not self._leases.shared)
        for routine in (self._dispatch(), self._persist(), self._tend()):
            self._spawn(routine)
        self.wake()

    def wake(self) -> None:
        """Look at the queue again."""
        self._wake.set()

    async def drain(self, seconds: float) -> None:
        """Take nothing more from the queue, and wait so long for what runs to end."""
        self._draining.set()
        deadline = time.monotonic() + seconds
        while (left := deadline - time.monotonic()) > 0:
            tasks = [running.task for running in self._running.values() if running.task is not None]
            if not tasks:
                return
            _log.info("waiting up to %.0f s for %d operations to end", left, len(tasks))
            await asyncio.wait(tasks, timeout=left, return_when=asyncio.FIRST_COMPLETED)

    async def close(self) -> None:
        """Stop what runs and put it back into the queue, for another server or the next; release all waiters."""
        self._closed = True
        ending = [running.task for running in self._running.values() if running.ending and running.task is not None]
        if ending:
            await asyncio.wait(ending, timeout=PERSIST_SECONDS)
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        for operation in self._unfinished:
            try:
                await self._note_ended(await self._leases.give_back(operation))
            except Exception as error:  # then it is taken over later, by whoever finds it abandoned
                _log.warning("cannot give operations/%s back to the queue: %s", operation.id, error)
        self.release_waiters()

    def release_waiters(self) -> None:
        """Make every `wait` return what it has."""
        self._closed = True
        for event in list(self._ends.values()):
            event.set()

    @property
    def running(self) -> int:
        """Operations that run here."""
        return len(self._running)

    def live(self, operation: Operation) -> Operation:
        """The operation with its progress of this moment."""
        running = self._running.get(operation.id)
        if running is None or running.progress is None or operation.state.done:
            return operation
        return replace(
            operation,
            progress=running.progress,
            users_scored=running.users_scored,
            users_total=running.users_total,
        )

    def remaining(self, operation_id: str) -> float | None:
        """Estimated seconds until the pool is scored, while it is being scored."""
        running = self._running.get(operation_id)
        return running.remaining() if running is not None else None

    async def cancel(self, tenant: str, operation_id: str) -> None:
        """End a queued operation now, a running one soon, wherever it runs; nothing happens to a done one.

        Raises:
            NotFound: the tenant has none of this id.
        """
        operation = await self._store.request_cancel(tenant, operation_id)
        if operation.state.done:
            self._tell_end(operation_id)
            await self._forget_job(operation)
            return
        with suppress(FileNotFoundError):  # it has just ended, and its folder with it
            await asyncio.to_thread((self._jobs / operation_id / "cancel").touch)
        running = self._running.get(operation_id)
        if running is not None:
            running.cancel.set()

    async def wait(self, tenant: str, operation_id: str, seconds: float) -> Operation:
        """The operation when it is done, or as it is after `seconds` or when this server ends.

        Raises:
            NotFound: the tenant has none of this id.
        """
        end = self._ends.setdefault(operation_id, asyncio.Event())
        operation = await self._store.get(tenant, operation_id)
        if not operation.state.done and not self._closed:
            with suppress(TimeoutError):
                await asyncio.wait_for(end.wait(), seconds)
            operation = await self._store.get(tenant, operation_id)
        return self.live(operation)

    def _spawn(self, routine: Coroutine[Any, Any, None]) -> asyncio.Task[None]:
        task = asyncio.create_task(routine)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return task

    async def _dispatch(self) -> None:
        while True:
            await self._wake.wait()
            self._wake.clear()
            try:
                await self._fill()
            except Exception as error:  # the store fails; it may be well again, and nobody else would look
                await _trouble("cannot read the queue", error)
                self.wake()

    async def _fill(self) -> None:
        while not self._draining.is_set() and len(self._running) < self._room:
            operation = await self._claim()
            if operation is None:
                return
            if self._draining.is_set():
                self._unfinished.append(operation)
                return
            before = self._running.get(operation.id)
            if before is not None and before.task is not None:  # ours once, lost, and ours again before it has stopped
                before.task.cancel()
                await asyncio.wait([before.task])
            self._metrics.claimed(operation)
            scored = Scored(self._metrics, operation.users_scored)
            running = self._running[operation.id] = Running(operation, scored, users_total=operation.users_total)
            running.task = self._spawn(self._see_through(running))

    @property
    def _room(self) -> int:
        """How many may run: one while that is a suspect."""
        suspected = any(self._leases.suspect(running.operation) for running in self._running.values())
        return 1 if suspected else self._runtime.capacity

    async def _alone(self, running: Running) -> None:
        """Until nothing runs beside it; nothing more is claimed meanwhile."""
        others = [other.task for other in self._running.values() if other is not running and other.task is not None]
        if others:
            _log.info("operations/%s waits for %d others, to run alone", running.operation.id, len(others))
            await asyncio.wait(others)

    async def _claim(self) -> Operation | None:
        claim = self._leases.claim()
        try:
            return await asyncio.shield(claim)
        except asyncio.CancelledError:  # we are being closed, and it goes on without us
            with suppress(Exception):
                operation = await claim
                self._unfinished += [operation] if operation is not None else []
            raise

    async def _see_through(self, running: Running) -> None:
        operation = running.operation
        logs.bind(operation=operation.id, tenant=operation.tenant, request_id=operation.request_id)
        try:
            if self._leases.suspect(operation):
                await self._alone(running)
            _log.info("operations/%s starts", operation.id)
            await self._run(running)
        except Exception as error:
            _log.warning("operations/%s goes back to the queue: %s", operation.id, error)
            self._unfinished.append(operation)
        except asyncio.CancelledError:  # we are being closed, or have lost it: then giving it back changes nothing
            self._unfinished.append(operation)
            raise
        finally:
            del self._running[operation.id]
            self.wake()

    async def _run(self, running: Running) -> None:
        """Run the operation until it is done, whatever happens but our own end."""
        operation = running.operation
        error: LookalikeError | None = None
        try:
            await self._attempts.run(running)
        except NotOurs:
            raise
        except LookalikeError as raised:
            error = raised
        except Exception as raised:
            error = unexpected(raised, what=f"operations/{operation.id}")
        running.ending = True
        await self._note_progress(running)
        state = State.SUCCEEDED
        if error is not None:
            state = State.CANCELLED if isinstance(error, Cancelled) else State.FAILED
        _log.info("operations/%s: %s%s", operation.id, state.value, f": {error}" if error is not None else "")
        if await self._leases.finish(operation, state, error):
            self._note_end(running, error)
            if error is None:
                self._opt_outs.wake()  # for who opted out while it ran
            await self._forget_job(operation)
            self._tell_end(operation.id)
        else:
            self._metrics.lease_lost()
            _log.warning("operations/%s was taken over by another server; its end is not ours to note", operation.id)

    def _note_end(self, running: Running, error: LookalikeError | None) -> None:
        self._metrics.ended(running.progress if error is not None else Progress(Stage.WRITING, 1, 1), error)
        if running.receipt is not None:
            running.scored(Progress(Stage.SCORING, running.receipt.pool_users, running.receipt.pool_users))
            self._metrics.succeeded(running.receipt.seconds)

    async def _persist(self) -> None:
        while True:
            await asyncio.sleep(PERSIST_SECONDS)
            for running in list(self._running.values()):
                if running.progress is not None and running.progress != running.persisted:
                    running.persisted = running.progress
                    try:
                        await self._note_progress(running)
                    except Exception as error:
                        _log.warning("cannot note the progress of operations/%s: %s", running.operation.id, error)

    async def _note_progress(self, running: Running) -> None:
        if running.progress is not None:
            await self._leases.note_progress(
                running.operation, running.progress, running.users_scored, running.users_total
            )

    async def _tend(self) -> None:
        """What a front does for the others and they for it, and what failed before."""
        renewed, capacity = -math.inf, self._runtime.capacity
        while True:
            await asyncio.sleep(TEND_SECONDS)
            if self._runtime.capacity > capacity:
                self.wake()
            capacity = self._runtime.capacity
            try:
                while self._unfinished:
                    await self._note_ended(await self._leases.give_back(self._unfinished[0]))
                    self._unfinished.pop(0)
                    self.wake()
                if time.monotonic() - renewed >= min(RENEW_SECONDS, self._leases.lease_seconds / 4):
                    renewed = time.monotonic()
                    if self._running and self._leases.shared:
                        await self._renew()
                    await self._take_over()
                if not self._leases.shared:
                    continue
                for operation_id in await self._store.ended(list(self._ends)) if self._ends else ():
                    self._tell_end(operation_id)
                self.wake()
            except Exception as error:
                await _trouble("cannot tend the queue", error)

    async def _renew(self) -> None:
        """Keep what we run, stop what is no longer ours, and hear of cancellations that another front was asked for."""
        before = list(self._running.values())
        held = await self._leases.renew([running.operation for running in before])
        for running in before:
            operation_id = running.operation.id
            if running.ending or running.task is None:
                continue
            if operation_id not in held:
                self._metrics.lease_lost()
                _log.warning("operations/%s was taken over by another server; stopping it here", operation_id)
                running.task.cancel()
            elif held[operation_id]:
                running.cancel.set()

    async def _take_over(self, *, everything: bool = False) -> None:
        await self._note_ended(await self._leases.requeue_abandoned(list(self._running), everything=everything))

    async def _note_ended(self, operations: Sequence[Operation]) -> None:
        """Of what was ended while it was in nobody's hands."""
        for operation in operations:
            _log.info("operations/%s: %s: %s", operation.id, operation.state.value, operation.error)
            self._metrics.ended(operation.progress, operation.error)
            self._tell_end(operation.id)
            await self._forget_job(operation)

    def _tell_end(self, operation_id: str) -> None:
        event = self._ends.get(operation_id)
        if event is not None:
            event.set()

    async def _forget_job(self, operation: Operation) -> None:
        """Seeds are people: they are not kept longer than needed. The receipt holds their hash."""
        await asyncio.to_thread(shutil.rmtree, self._jobs / operation.id, ignore_errors=True)
        if operation.job.output.parent.parent == self._jobs.parent:  # a path out of a database is not to lead elsewhere
            await asyncio.to_thread(discard, operation.job.output)


async def _trouble(what: str, error: Exception) -> None:
    """Say what fails and wait a moment: a store that is away is no defect, and says so itself."""
    if isinstance(error, LookalikeError):
        _log.warning("%s, trying again: %s", what, error)
    else:
        _log.error("%s, trying again", what, exc_info=error)
    await asyncio.sleep(PERSIST_SECONDS)
