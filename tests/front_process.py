"""A front in a process of its own, whose jobs wait for a file `release` and note when they begin and end. Those of the
campaign "deadly" then kill it; of these it bears two.

    python front_process.py CONTROL DATA_DIR DATABASE_URL POOL LEASE_SECONDS

Prints its address. SIGTERM ends it.
"""

from __future__ import annotations

import asyncio
import os
import signal
import sys
from pathlib import Path

import numpy as np
from serving import CHECKPOINT, config_for, write_audience

from lookalike.errors import Cancelled
from lookalike.pool.snapshot import Pool
from lookalike.retrieval.receipt import Progress, Receipt, Stage
from lookalike.runtime.job import ExpansionJob, ProgressCallback, RuntimeHealth
from lookalike.service.server import serve


class WaitingRuntime:
    """Two jobs at once. Notes in CONTROL/log: `begin ID PID`, and `end ID PID` when it has published."""

    capacity = 2

    def __init__(self, control: Path) -> None:
        self._control = control

    async def run(self, job: ExpansionJob, progress: ProgressCallback) -> Receipt:
        self._note("begin", job)
        progress(Progress(Stage.SCORING, 500, 1000))
        while not (self._control / "release").exists():
            if job.cancel_flag.exists():
                raise Cancelled("stopped by its flag")
            await asyncio.sleep(0.02)
        if job.campaign == "deadly":
            os.kill(os.getpid(), signal.SIGKILL)
        receipt = write_audience(job, Pool.open(job.pool).user_ids(np.arange(job.k)))
        self._note("end", job)
        return receipt

    def health(self) -> RuntimeHealth:
        return RuntimeHealth(up=True, workers_ready=self.capacity)

    async def ready(self) -> bool:
        return True

    def _note(self, what: str, job: ExpansionJob) -> None:
        with (self._control / "log").open("a") as log:
            log.write(f"{what} {job.job_id} {os.getpid()}\n")


async def main(control: Path, data_dir: Path, database_url: str, pool: Path, lease_seconds: float) -> None:
    stop = asyncio.Event()
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, stop.set)
    await serve(
        config_for(data_dir, database_url=database_url, lease_seconds=lease_seconds, max_lost_runs=2),
        pool=pool,
        checkpoint_fingerprint=CHECKPOINT,
        runtime=WaitingRuntime(control),
        ready=lambda address: print(address, flush=True),  # noqa: T201
        stop=stop,
    )


if __name__ == "__main__":
    control, data_dir, database_url, pool, lease_seconds = sys.argv[1:]
    asyncio.run(main(Path(control), Path(data_dir), database_url, Path(pool), float(lease_seconds)))
