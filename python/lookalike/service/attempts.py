"""Runs a claimed operation's job on the runtime, again if its worker dies, until it has its audience or cannot have it.

Knows the runtime's contract, the leases and who has opted out; knows no queue and no gRPC.
"""

from __future__ import annotations

import asyncio
import logging
from contextlib import suppress
from dataclasses import replace
from pathlib import Path

from lookalike.errors import AlreadyExists, Cancelled, DataCorrupted, LookalikeError, NotFound, Unavailable
from lookalike.files import DISK_FULL
from lookalike.retrieval.receipt import Progress, Receipt, Stage
from lookalike.runtime.job import NOT_RUNNING, ExpansionJob, Runtime
from lookalike.service.leases import Leases
from lookalike.service.metrics import Metrics
from lookalike.service.opt_out_keeper import OptOutKeeper
from lookalike.service.records import Operation
from lookalike.service.running import Running
from lookalike.tracing import Tracing

_log = logging.getLogger(__name__)

# Refusals that are no run of the job: the runtime is down, or a front that has lost the operation is still at it.
NO_RUN = (NOT_RUNNING, "EXPANSION_RUNNING")
# Before a job runs again whose worker died or had no disk; TorchServe needs about two seconds for a new worker.
RETRY_DELAYS = (1.0, 2.0, 5.0, 10.0, 20.0)


class NotOurs(Exception):
    """An operation that cannot be gone on with: another front has it, or the store cannot tell."""


class Attempts:
    """How this front runs jobs."""

    def __init__(
        self,
        runtime: Runtime,
        leases: Leases,
        *,
        jobs: Path,
        pool: Path,
        checkpoint: str,
        max_attempts: int,
        opt_outs: OptOutKeeper,
        metrics: Metrics,
        tracing: Tracing,
    ) -> None:
        """`jobs`: a folder for each active operation; `pool`, `checkpoint`: what jobs run on, whenever ordered;
        `opt_outs`: whom jobs are to leave out.
        """
        self._runtime = runtime
        self._leases = leases
        self._jobs = jobs
        self._pool = pool
        self._checkpoint = checkpoint
        self._max_attempts = max_attempts
        self._opt_outs = opt_outs
        self._metrics = metrics
        self._tracing = tracing

    async def run(self, running: Running) -> None:
        """Until it has its audience; a worker that dies is no end of it.

        Raises:
            LookalikeError: the job's own, or too many workers have died; Cancelled. NotOurs: see there.
        """
        operation = running.operation
        job = replace(
            operation.job,
            pool=self._pool,
            checkpoint=self._checkpoint,
            tenant=operation.tenant,
            request_id=operation.request_id or "",
        )
        receipt = await asyncio.to_thread(_published, job)
        if receipt is not None:
            running.note(Progress(Stage.SCORING, receipt.pool_users, receipt.pool_users))
            running.note(Progress(Stage.WRITING, 1, 1))
            return
        await self._lay_out(operation)
        job = replace(job, opted_out=await self._list_opted_out(operation))  # beside its people
        attempt = 0
        while True:
            await self._begin_attempt(operation)
            try:
                running.receipt = await self._traced(running, job, attempt)
                return
            except AlreadyExists:
                # A front that has lost the operation was faster than its loss; the same job gives the same bytes.
                if await asyncio.to_thread(_published, job) is None:
                    raise
                return
            except LookalikeError as error:
                if not (isinstance(error, Unavailable) or error.reason == DISK_FULL):
                    raise
                # What has not seen the job has not run it, and the queue waits until it does.
                down = error.reason in NO_RUN
                if not down and attempt + 1 >= self._max_attempts:
                    raise type(error)(
                        f"given up after {self._max_attempts} runs; the last ended with: {error.message}",
                        field=error.field,
                        reason=error.reason,
                    ) from error
                delay = RETRY_DELAYS[min(attempt, len(RETRY_DELAYS) - 1)]
                _log.warning("operations/%s: run %d: %s; again in %g s", operation.id, attempt + 1, error, delay)
                if not down:
                    attempt += 1
                    self._metrics.retried()
            with suppress(TimeoutError):
                await asyncio.wait_for(running.cancel.wait(), delay)
            if job.cancel_flag.exists():
                raise Cancelled("cancelled by CancelOperation")

    async def _lay_out(self, operation: Operation) -> None:
        """Its people as files, which are all that a runtime sees of them."""
        folder = self._jobs / operation.id
        try:
            people = await self._leases.people(operation)
            if people is not None:
                await asyncio.to_thread(people.write, folder)
            # It may have been asked for before there was a folder for the flag.
            if await self._leases.cancel_requested(operation):
                await asyncio.to_thread((folder / "cancel").touch)
            if not await asyncio.to_thread(folder.exists):
                raise NotFound("its seeds are gone: its folder was removed from the data folder; order it again")
        except (DataCorrupted, NotFound):  # it would be so again
            raise
        except Exception as error:
            raise NotOurs(f"its seeds cannot be read from its record, or not be written: {error}") from error

    async def _traced(self, running: Running, job: ExpansionJob, attempt: int) -> Receipt:
        """Run it once, under a span of the trace it was ordered in, however long ago that was."""
        attributes: dict[str, str | int | float] = {
            "lookalike.operation": job.job_id,
            "lookalike.tenant": job.tenant,
            "lookalike.run": attempt + 1,
        }
        with self._tracing.span(
            "expansion", parent=job.traceparent, kind="consumer", attributes=attributes
        ) as traceparent:
            return await self._runtime.run(replace(job, traceparent=traceparent), running.note)

    async def _list_opted_out(self, operation: Operation) -> Path | None:
        try:
            return await self._opt_outs.list_for(operation)
        except Exception as error:
            raise NotOurs(f"who has opted out cannot be told: {error}") from error

    async def _begin_attempt(self, operation: Operation) -> None:
        try:
            ours = await self._leases.begin_attempt(operation)
        except Exception as error:
            raise NotOurs(f"its run cannot be noted: {error}") from error
        if not ours:
            raise NotOurs("another server has taken it over")


def _published(job: ExpansionJob) -> Receipt | None:
    """The receipt of a job that had done its work when the former server died, perhaps on another checkpoint."""
    try:
        receipt = Receipt.read(job.output)
    except LookalikeError:
        return None
    return receipt if receipt.job_id == job.job_id else None
