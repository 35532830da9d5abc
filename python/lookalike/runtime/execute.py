"""Runs one job in this process: the one function behind the in-process runtime and the TorchServe handler.

Knows jobs and the Expander (imported when first needed, for it brings torch); knows nothing of servers.
"""

from __future__ import annotations

import logging
import threading
import time
from collections import OrderedDict
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

import pyarrow as pa
import pyarrow.parquet as pq

from lookalike import logs
from lookalike.config import Config
from lookalike.errors import Cancelled, FailedPrecondition, InternalError, NotFound
from lookalike.retrieval.receipt import Progress, Receipt
from lookalike.retrieval.request import Previous
from lookalike.runtime.job import ExpansionJob, ProgressCallback
from lookalike.tracing import StageSpans, Tracing

if TYPE_CHECKING:
    from lookalike.expander import Expander

_log = logging.getLogger(__name__)

# A look at the file system costs microseconds; the engine may ask a thousand times a second.
FLAG_INTERVAL_SECONDS = 0.1


class CancelFlag:
    """Whether a file has appeared, or the folder it would appear in has gone, asked as often as one likes; once true
    it stays true.
    """

    def __init__(self, path: Path, interval: float = FLAG_INTERVAL_SECONDS) -> None:
        self._path = path
        self._interval = interval
        self._raised = False
        self._next_look = 0.0

    def __call__(self) -> bool:
        now = time.monotonic()
        if not self._raised and now >= self._next_look:
            self._next_look = now + self._interval
            # A job's folder goes when the job has an end, noted while this process was out of its front's sight.
            self._raised = self._path.exists() or not self._path.parent.exists()
        return self._raised


class Executor:
    """The general checkpoint, ready to run jobs on any pool.

    Keeps the pools used last open: a snapshot is memory-mapped, so this costs the checkpoint's memory and no more.
    Safe to call from many threads. Close it at the end, for its spans.
    """

    def __init__(self, checkpoint: Path, config: Config, *, open_pools: int = 2) -> None:
        self._checkpoint = checkpoint
        self._config = config
        self._open_pools = open_pools
        self._tracing = Tracing(config.service.otlp_endpoint, service="lookalike-worker")
        self._expanders: OrderedDict[tuple[Path, int, int], Expander] = OrderedDict()
        self._lock = threading.Lock()

    def run(self, job: ExpansionJob, progress: ProgressCallback, stopped: Callable[[], bool]) -> Receipt:
        """Run the job to its end; `progress` is called on this thread, `stopped` asks for an early one.

        Raises:
            LookalikeError: whatever went wrong; Cancelled when the job's flag appeared or `stopped()` turned true.
        """
        about = logs.bound(operation=job.job_id, tenant=job.tenant, request_id=job.request_id)
        with about, StageSpans(self._tracing, job.traceparent) as spans:

            def report(step: Progress) -> None:
                spans(step.stage.value)
                progress(step)

            _log.info("the job begins")
            receipt = execute(job, self._expander(job.pool), report, stopped)
            _log.info("the job has ended: %d users of %d", receipt.k, receipt.pool_users)
            return receipt

    def close(self) -> None:
        """Send what is left of traces."""
        self._tracing.close()

    def _expander(self, pool: Path) -> Expander:
        from lookalike.expander import Expander

        try:
            status = pool.stat()
        except OSError as error:
            raise NotFound(f"no pool at {pool}: {error.strerror}", field="pool") from error
        # A snapshot may be replaced under the same name; its folder is then another one.
        key = (pool.resolve(), status.st_dev, status.st_ino)
        with self._lock:
            expander = self._expanders.get(key)
            if expander is None:
                expander = Expander.open(self._checkpoint, pool, self._config)
                self._expanders[key] = expander
            self._expanders.move_to_end(key)
            while len(self._expanders) > self._open_pools:
                self._expanders.popitem(last=False)
            return expander


class _Stopped(Exception):
    """Stopped, not cancelled: no error of the expander's, so that it keeps what it has done."""


def execute(
    job: ExpansionJob, expander: Expander, progress: ProgressCallback, stopped: Callable[[], bool] = lambda: False
) -> Receipt:
    """Run the job on an open expander; the audience is at `job.output` when this returns.

    A job that was cut short, by `stopped()` or by the end of its process, goes on where it was when it is run again; a
    cancelled one leaves nothing.

    Raises:
        FailedPrecondition: the expander holds another checkpoint than the job wants.
        NotFound, DataCorrupted: the seeds file. LookalikeError: whatever `Expander.expand` raises.
    """
    if job.checkpoint and job.checkpoint != expander.checkpoint_sha256:
        raise FailedPrecondition(
            f"the job wants checkpoint {job.checkpoint[:12]}, but {expander.checkpoint_sha256[:12]} is loaded: "
            "build the archive again",
            field="checkpoint",
            reason="CHECKPOINT_MISMATCH",
        )
    flagged = CancelFlag(job.cancel_flag)

    def cancelled() -> bool:
        if flagged():
            return True
        if stopped():
            raise _Stopped
        return False

    try:
        audience = expander.expand(
            campaign=job.campaign,
            features=job.features,
            seeds=read_seeds(job.seeds),
            k=job.k,
            output=job.output,
            include_seeds=job.include_seeds,
            filter=job.filter,
            exclude=job.exclusions or (),
            random_seed=job.random_seed,
            reserve=job.reserve,
            opted_out=job.opted_out or (),
            previous=_previous(job),
            job_id=job.job_id,
            progress=progress,
            cancelled=cancelled,
        )
    except _Stopped as stop:
        raise Cancelled("the expansion was stopped") from stop
    receipt: Receipt = audience.receipt
    return receipt


def _previous(job: ExpansionJob) -> Previous | None:
    if job.previous is None:
        return None
    return Previous(
        user_ids=read_seeds(job.previous),
        name=job.previous_name,
        audience_sha256=job.previous_sha256,
        budget=job.churn_budget,
    )


def read_seeds(path: Path) -> pa.Array:
    """The column `user_id` of a job's seeds file.

    Raises:
        NotFound: no such file. InternalError: not what the service writes.
    """
    try:
        column = pq.read_table(path, columns=["user_id"], memory_map=True)["user_id"]
    except FileNotFoundError as error:
        raise NotFound(f"no seeds at {path}", field="seeds") from error
    except (pa.ArrowException, OSError, KeyError) as error:
        raise InternalError(f"cannot read the seeds at {path}: {error}", field="seeds") from error
    return column.combine_chunks()
