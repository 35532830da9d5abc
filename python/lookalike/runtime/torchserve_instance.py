"""One TorchServe: started, watched, started again when it dies, ended; and how many jobs it can take just now.

Torch-free. Process matters are `torchserve_process`'s, calls are `torchserve_client`'s; which of several instances gets
a job is `torchserve`'s to say.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from lookalike import logs
from lookalike.config import RealtimeConfig, TorchServeConfig
from lookalike.errors import FailedPrecondition, LookalikeError, Unavailable
from lookalike.retrieval.receipt import Progress
from lookalike.runtime.archive import SCORING_NAME, scoring_archive
from lookalike.runtime.job import NOT_RUNNING, ExpansionJob, ProgressCallback
from lookalike.runtime.torchserve_client import TorchServeClient
from lookalike.runtime.torchserve_logfile import LogFile
from lookalike.runtime.torchserve_process import TorchServeProcess

_log = logging.getLogger(__name__)

POLL_SECONDS = 0.2  # while it starts, or is in doubt
WATCH_SECONDS = 1.0  # while it is well
# TorchServe itself ends a silent worker; ours is the net below, for when it does not say so.
SILENCE_MARGIN_SECONDS = 30.0
RESTART_DELAYS = (0.0, 1.0, 2.0, 5.0, 10.0, 30.0)


@dataclass(frozen=True)
class Server:
    """One start of TorchServe."""

    process: TorchServeProcess
    client: TorchServeClient


class TorchServeInstance:
    """`start` it, `take` a place and `run` a job there, `retire` or `stop` it.

    A worker counts when TorchServe describes it as ready and, since the start and since the last trouble, a canary was
    answered: a prediction that goes all the way through the handler. When the JVM dies, or no worker is well for the
    start-up time-out, TorchServe is started anew; a job that ran meanwhile raises Unavailable and may be run again.

    Attributes:
        config: of the next start.
        retiring: it takes no more jobs; whoever sets it calls `retire`.
        busy: places taken: jobs that a worker is at, or will be in a moment.
        restarts: of TorchServe. worker_restarts: of single workers, by TorchServe.
    """

    def __init__(
        self,
        config: TorchServeConfig,
        *,
        log_file: Path,
        checkpoint: str = "",
        scoring: RealtimeConfig | None = None,
        log_format: logs.Format = "text",
        changed: Callable[[], None] = lambda: None,
    ) -> None:
        """`checkpoint`: fingerprint the archive must hold; empty: any. `scoring`: it is to have a model that scores
        users, too. `changed`: called when `places` may have.
        """
        self.config = config
        self._log = LogFile(log_file)
        self._checkpoint = checkpoint
        self._scoring = scoring
        self._log_format = log_format
        self._tell = changed
        self._server: Server | None = None
        self._up = False
        self._sound = False  # a canary was answered since the start and since the last trouble
        self._look = asyncio.Event()  # at once, and not in a second
        self._watch: asyncio.Task[None] | None = None
        self._jobs: set[asyncio.Task[None]] = set()
        self._ready: frozenset[int] = frozenset()  # process ids of the workers, when last seen
        self._known: frozenset[int] = frozenset()  # and of all that were ready since the start
        self.retiring = False
        self.busy = 0
        self.scoring = 0  # requests for scores that are under way
        self.restarts = 0
        self.worker_restarts = 0

    @property
    def log_file(self) -> Path:
        return self._log.path

    @property
    def pid(self) -> int | None:
        """Of the process group TorchServe runs in, if it runs."""
        return self._server.process.pid if self._server is not None else None

    @property
    def pids(self) -> tuple[int, ...]:
        return self._server.process.pids() if self._server is not None else ()

    @property
    def up(self) -> bool:
        return self._up and self._server is not None and self._server.process.returncode is None

    @property
    def ready_workers(self) -> int:
        """Workers that are ready, with a job or without."""
        return len(self._ready) if self.up else 0

    @property
    def places(self) -> int:
        """Jobs that may be here at once: taken places and free ones. In doubt, and when it retires, none is free."""
        if not self.up:
            return 0
        return len(self._ready) if self._sound and not self.retiring else min(self.busy, len(self._ready))

    def take(self) -> bool:
        """Take a place, if one is free; `run` gives it back."""
        if self.busy >= self.places:
            return False
        self.busy += 1
        return True

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
        self._up = True
        self._watch = asyncio.create_task(self._supervise(), name="torchserve-watch")
        self._tell()

    async def run(self, job: ExpansionJob, progress: ProgressCallback) -> None:
        """Run a job in the place that was taken; the place is free when the worker has done with it.

        Cancelling the call leaves the worker at it, and the place taken: TorchServe cannot be told.

        Raises:
            LookalikeError: whatever the job raised. Unavailable: the worker or TorchServe died.
        """
        report: ProgressCallback | None = progress

        def note(step: Progress) -> None:
            if report is not None:
                report(step)

        work = asyncio.create_task(self._run(job, note))
        self._jobs.add(work)
        work.add_done_callback(self._done)
        try:
            await asyncio.shield(work)
        except asyncio.CancelledError:
            if work.cancelled():
                raise Unavailable("TorchServe is being ended", reason="WORKER_DIED") from None
            raise
        finally:
            report = None

    async def score(self, job: bytes) -> bytes:
        """See `TorchServeClient.score`."""
        if self._server is None or not self.up:
            raise Unavailable("TorchServe is being restarted", reason=NOT_RUNNING)
        self.scoring += 1
        try:
            return await self._server.client.score(job)
        finally:
            self.scoring -= 1

    async def retire(self) -> None:
        """Take no more jobs, wait for those that run, and end. A job whose worker dies is not this one's any more."""
        self.retiring = True
        self._tell()
        while self._jobs:
            await asyncio.wait(set(self._jobs))
        await self.stop()

    async def stop(self) -> None:
        """End TorchServe, its JVM and its workers; jobs that run raise Unavailable."""
        self._up = False
        if self._watch is not None:
            self._watch.cancel()
            with suppress(asyncio.CancelledError, Exception):
                await self._watch
            self._watch = None
        await self._end_server()
        for job in self._jobs:
            job.cancel()
        await asyncio.gather(*self._jobs, return_exceptions=True)
        self._log.release()

    async def _run(self, job: ExpansionJob, progress: Callable[[Progress], None]) -> None:
        if self._server is None:
            raise Unavailable("TorchServe is being restarted", reason="WORKER_DIED")
        silence = self.config.response_timeout_seconds + SILENCE_MARGIN_SECONDS
        try:
            await self._server.client.run(job, progress, silence=silence)
        except Unavailable:
            self._doubt()
            raise

    def _done(self, job: asyncio.Task[None]) -> None:
        self._jobs.discard(job)
        self.busy -= 1
        if not job.cancelled():
            job.exception()  # looked at: whoever ordered it may have gone
        self._tell()

    def _doubt(self) -> None:
        self._sound = False
        self._look.set()
        self._tell()

    async def _launch(self) -> Server:
        archive = self.config.archive
        scoring = scoring_archive(archive) if self._scoring is not None else None
        process = TorchServeProcess(archive, self.log_file, scoring=scoring, log_format=self._log_format)
        client = TorchServeClient(process.ports, process.keys)
        server = Server(process, client)
        try:
            await self._until_ready(server)
        except BaseException:
            await process.stop()
            await client.close()
            raise
        return server

    async def _until_ready(self, server: Server) -> None:
        deadline = time.monotonic() + self.config.startup_timeout_seconds
        trouble, reason = "it has not answered", "TORCHSERVE_NOT_STARTED"
        while time.monotonic() < deadline:
            if server.process.returncode is not None:
                trouble, reason = "it ended", "TORCHSERVE_ENDED"
                break
            try:
                workers = await server.client.ready_workers()
                if len(workers) >= self.config.workers and await self._can_score(server.client):
                    self._check(await server.client.ping())
                    self._ready = self._known = workers
                    self._sound = True
                    return
                trouble = f"{len(workers)} of {self.config.workers} workers are ready"
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

    async def _can_score(self, client: TorchServeClient) -> bool:
        if self._scoring is None:
            return True
        if len(await client.ready_workers(SCORING_NAME)) < self._scoring.workers:
            return False
        await client.ping(SCORING_NAME)
        return True

    def _check(self, said: dict[str, str]) -> None:
        if self._checkpoint and said["checkpoint"] != self._checkpoint:
            raise FailedPrecondition(
                f"{self.config.archive} holds checkpoint {said['checkpoint'][:12]}, not {self._checkpoint[:12]}: "
                "build it again with `lookalike archive`",
                field="torchserve.archive",
                reason="CHECKPOINT_MISMATCH",
            )

    async def _supervise(self) -> None:
        """Until cancelled: notice dead and new workers, and start another TorchServe when this one is of no use."""
        last_alive = time.monotonic()
        while True:
            in_doubt = not self._sound and self.busy < len(self._ready)
            with suppress(TimeoutError):
                await asyncio.wait_for(self._look.wait(), POLL_SECONDS if in_doubt else WATCH_SECONDS)
            self._look.clear()
            assert self._server is not None
            if self._server.process.returncode is None:
                if await self._alive(self._server):
                    last_alive = time.monotonic()
                if time.monotonic() - last_alive < self.config.startup_timeout_seconds:
                    continue
            if self.retiring:  # nobody needs it again; its jobs end by themselves
                self._up = False
                self._tell()
                return
            await self._restart()
            last_alive = time.monotonic()

    async def _restart(self) -> None:
        self._up = False
        self._tell()
        _log.error("TorchServe died or has no worker; starting it again. Its log is %s", self.log_file)
        await self._end_server()
        self.restarts += 1
        self._server = await self._relaunch()
        self._up = True
        self._tell()

    async def _alive(self, server: Server) -> bool:
        """Whether there is a worker, and if none is at work, one that answers."""
        try:
            workers = await server.client.ready_workers()
        except LookalikeError:
            workers = frozenset()
        fresh = workers - self._known
        self.worker_restarts += len(fresh)
        self._known |= workers
        if fresh:
            self._sound = False
        if workers != self._ready:
            self._ready = workers
            self._tell()
        if not self._sound and len(workers) > self.busy:
            try:
                self._check(await server.client.ping())
            except LookalikeError as error:
                _log.warning("TorchServe's canary: %s", error)
                return self.busy > 0
            self._sound = True
            self._tell()
        return bool(workers)

    async def _relaunch(self) -> Server:
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
