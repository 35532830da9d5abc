"""A runtime that reads people from, and writes audiences to, one folder and nowhere else.

A job's paths come out of a database. Whoever could write there must not thereby be able to write anywhere. Knows the
contract of `job` only.
"""

from __future__ import annotations

from pathlib import Path

from lookalike.errors import FailedPrecondition
from lookalike.retrieval.receipt import Receipt
from lookalike.runtime.job import ExpansionJob, ProgressCallback, Runtime, RuntimeHealth


class ConfinedRuntime:
    """Another runtime, for jobs whose files all lie below `root`, links followed."""

    def __init__(self, runtime: Runtime, root: Path) -> None:
        self._runtime = runtime
        self._root = root.resolve()

    @property
    def capacity(self) -> int:
        return self._runtime.capacity

    async def run(self, job: ExpansionJob, progress: ProgressCallback) -> Receipt:
        """See `Runtime.run`.

        Raises:
            FailedPrecondition: reason OUTSIDE_DATA_DIR: a path of the job leads elsewhere.
        """
        paths = {
            "output": job.output,
            "seeds": job.seeds,
            "exclusions": job.exclusions,
            "opted_out": job.opted_out,
            "previous": job.previous,
            "cancel_flag": job.cancel_flag,
        }
        for field, path in paths.items():
            if path is not None and self._root not in path.resolve().parents:
                raise FailedPrecondition(
                    f"the job's {field} lies outside the service's data folder, so it is not run; was that moved?",
                    field=field,
                    reason="OUTSIDE_DATA_DIR",
                )
        return await self._runtime.run(job, progress)

    def health(self) -> RuntimeHealth:
        return self._runtime.health()

    async def ready(self) -> bool:
        return await self._runtime.ready()
