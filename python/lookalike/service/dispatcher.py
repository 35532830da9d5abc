"""Takes operations from the queue to the runtime, never more at once than it can run, and sees each to its end.

Knows the store and the runtime's contract; knows no gRPC.
"""

from __future__ import annotations

import asyncio
import logging
import shutil
import time
from contextlib import suppress
from dataclasses import dataclass, field, replace
from pathlib import Path
from weakref import WeakValueDictionary

from lookalike.errors import Cancelled, LookalikeError, Unavailable
from lookalike.retrieval.receipt import Progress, Receipt, Stage
from lookalike.retrieval.work import discard
from lookalike.runtime.job import NOT_RUNNING, ExpansionJob, Runtime
from lookalike.service.operations import OperationStore
from lookalike.service.records import Operation, State
from lookalike.service.status import unexpected

_log = logging.getLogger(__name__)

PERSIST_SECONDS = 2.0  # of progress at most are lost with the server
# Before a job whose worker died runs again; TorchServe needs about two seconds for a new worker.
RETRY_DELAYS = (1.0, 2.0, 5.0, 10.0, 20.0)


@dataclass
class _Running:
    """What is known of a running operation beyond the store."""

    progress: Progress | None = None
    users_scored: int = 0
    users_total: int = 0
    scoring_since: tuple[float, int] | None = None  # monotonic time and users scored then
    persisted: Progress | None = None
    cancel: asyncio.Event = field(default_factory=asyncio.Event)

    def note(self, progress: Progress) -> None:
        self.progress = progress
        if progress.stage is Stage.SCORING:
            self.users_scored, self.users_total = progress.done, progress.total
            if self.scoring_since is None or progress.done < self.scoring_since[1]:
                self.scoring_since = (time.monotonic(), progress.done)

    def remaining(self) -> float | None:
        """Seconds until the pool is scored, at the rate so far; None while nothing can be said."""
        if self.progress is None or self.progress.stage is not Stage.SCORING or self.scoring_since is None:
            return None
        since, users = self.scoring_since
        elapsed, scored = time.monotonic() - since, self.users_scored - users
        return elapsed * (self.users_total - self.users_scored) / scored if scored > 0 and elapsed > 0 else None


class Dispatcher:
    """`start` it, `wake` it when something was queued, `close` it. All on one event loop."""

    def __init__(
        self,
        store: OperationStore,
        runtime: Runtime,
        *,
        jobs: Path,
        pool: Path,
        checkpoint: str,
        max_attempts: int,
        retry_delays: tuple[float, ...] = RETRY_DELAYS,
    ) -> None:
        """`jobs`: a folder for each active operation; `pool`, `checkpoint`: what jobs run on, whenever ordered."""
        self._store = store
        self._runtime = runtime
        self._jobs = jobs
        self._pool = pool
        self._checkpoint = checkpoint
        self._max_attempts = max_attempts
        self._retry_delays = retry_delays
        self._running: dict[str, _Running] = {}
        self._tasks: set[asyncio.Task[None]] = set()
        self._ends: WeakValueDictionary[str, asyncio.Event] = WeakValueDictionary()
        self._wake = asyncio.Event()
        self._closed = False

    async def start(self) -> None:
        """Put what a former server left running back into the queue, and begin."""
        await self._store.requeue_running()
        await asyncio.to_thread(_remove_leftovers, self._jobs, await self._store.active_ids())
        for routine in (self._dispatch(), self._persist()):
            self._spawn(routine)
        self.wake()

    def wake(self) -> None:
        """Look at the queue again."""
        self._wake.set()

    async def close(self) -> None:
        """Leave what runs as it is in the store, to be run again by the next server, and release all waiters."""
        self._closed = True
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        self.release_waiters()

    def release_waiters(self) -> None:
        """Make every `wait` return what it has."""
        self._closed = True
        for event in list(self._ends.values()):
            event.set()

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

    async def cancel(self, operation_id: str) -> None:
        """End a queued operation now, a running one soon; nothing happens to a done one.

        Raises:
            NotFound: there is none of this id.
        """
        operation = await self._store.request_cancel(operation_id)
        if operation.state.done:
            self._tell_end(operation_id)
            await self._forget_job(operation)
            return
        with suppress(FileNotFoundError):  # it has just ended, and its folder with it
            await asyncio.to_thread((self._jobs / operation_id / "cancel").touch)
        running = self._running.get(operation_id)
        if running is not None:
            running.cancel.set()

    async def wait(self, operation_id: str, seconds: float) -> Operation:
        """The operation when it is done, or as it is after `seconds` or when this server ends.

        Raises:
            NotFound: there is none of this id.
        """
        end = self._ends.setdefault(operation_id, asyncio.Event())
        operation = await self._store.get(operation_id)
        if not operation.state.done and not self._closed:
            with suppress(TimeoutError):
                await asyncio.wait_for(end.wait(), seconds)
            operation = await self._store.get(operation_id)
        return self.live(operation)

    def _spawn(self, routine: object) -> None:
        task: asyncio.Task[None] = asyncio.create_task(routine)  # type: ignore[arg-type]
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _dispatch(self) -> None:
        while True:
            await self._wake.wait()
            self._wake.clear()
            try:
                await self._fill()
            except Exception:  # the store fails; it may be well again, and nobody else would look
                _log.exception("cannot read the queue; trying again")
                await asyncio.sleep(PERSIST_SECONDS)
                self.wake()

    async def _fill(self) -> None:
        while len(self._running) < self._runtime.capacity:
            operation = await self._store.claim()
            if operation is None:
                return
            self._running[operation.id] = _Running(users_total=operation.users_total)
            self._spawn(self._see_through(operation))

    async def _see_through(self, operation: Operation) -> None:
        try:
            await self._run(operation)
        except Exception:  # the store fails: it stays RUNNING there, and runs again at the next start
            _log.exception("cannot note the end of operations/%s", operation.id)
        finally:
            del self._running[operation.id]
            self._tell_end(operation.id)
            self.wake()

    async def _run(self, operation: Operation) -> None:
        """Run the operation until it is done, whatever happens but our own end."""
        error: LookalikeError | None = None
        try:
            await self._attempts(operation)
        except LookalikeError as raised:
            error = raised
        except Exception as raised:
            error = unexpected(raised, what=f"operations/{operation.id}")
        await self._note_progress(operation.id, self._running[operation.id])
        state = State.SUCCEEDED
        if error is not None:
            state = State.CANCELLED if isinstance(error, Cancelled) else State.FAILED
            _log.info("operations/%s: %s: %s", operation.id, state.value, error)
        await self._store.finish(operation.id, state, error)
        await self._forget_job(operation)

    async def _attempts(self, operation: Operation) -> None:
        job = replace(operation.job, pool=self._pool, checkpoint=self._checkpoint)
        running = self._running[operation.id]
        receipt = await asyncio.to_thread(_published, job)
        if receipt is not None:
            running.note(Progress(Stage.SCORING, receipt.pool_users, receipt.pool_users))
            running.note(Progress(Stage.WRITING, 1, 1))
            return
        attempt = 0
        while True:
            await self._store.begin_attempt(operation.id)
            try:
                await self._runtime.run(job, running.note)
                return
            except Unavailable as error:
                # A runtime that is down has not seen the job: that is no run, and the queue waits until it is up.
                down = error.reason == NOT_RUNNING
                if not down and attempt + 1 >= self._max_attempts:
                    raise Unavailable(
                        f"given up after {self._max_attempts} runs; the last ended with: {error.message}",
                        reason=error.reason,
                    ) from error
                delay = self._retry_delays[min(attempt, len(self._retry_delays) - 1)]
                _log.warning("operations/%s: run %d: %s; again in %g s", operation.id, attempt + 1, error, delay)
                attempt += 0 if down else 1
            with suppress(TimeoutError):
                await asyncio.wait_for(running.cancel.wait(), delay)
            if job.cancel_flag.exists():
                raise Cancelled("cancelled by CancelOperation")

    async def _persist(self) -> None:
        while True:
            await asyncio.sleep(PERSIST_SECONDS)
            for operation_id, running in list(self._running.items()):
                if running.progress is not None and running.progress != running.persisted:
                    running.persisted = running.progress
                    try:
                        await self._note_progress(operation_id, running)
                    except Exception:
                        _log.exception("cannot note the progress of operations/%s", operation_id)

    async def _note_progress(self, operation_id: str, running: _Running) -> None:
        if running.progress is not None:
            await self._store.note_progress(operation_id, running.progress, running.users_scored, running.users_total)

    def _tell_end(self, operation_id: str) -> None:
        event = self._ends.get(operation_id)
        if event is not None:
            event.set()

    async def _forget_job(self, operation: Operation) -> None:
        """Seeds are people: they are not kept longer than needed. The receipt holds their hash."""
        await asyncio.to_thread(shutil.rmtree, self._jobs / operation.id, ignore_errors=True)
        await asyncio.to_thread(discard, operation.job.output)


def _published(job: ExpansionJob) -> Receipt | None:
    """The receipt of a job that had done its work when the former server died, perhaps on another checkpoint."""
    try:
        receipt = Receipt.read(job.output)
    except LookalikeError:
        return None
    return receipt if receipt.job_id == job.job_id else None


def _remove_leftovers(jobs: Path, active: set[str]) -> None:
    """Folders of operations that are done, or were never accepted."""
    for folder in jobs.iterdir():
        if folder.name not in active:
            shutil.rmtree(folder, ignore_errors=True)
