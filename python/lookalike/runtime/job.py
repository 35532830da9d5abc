"""The contract between whoever orders an expansion and whatever runs it: a job in, progress, a receipt out.

Torch-free, so that the front service can import it. Users travel by path, never by value: TorchServe takes a second
for 100 MB of request.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol

from lookalike.retrieval.receipt import Progress, Receipt
from lookalike.schema import FeatureValue

# Reason of the Unavailable with which a runtime that is down refuses a job it has not looked at.
NOT_RUNNING = "RUNTIME_NOT_RUNNING"


@dataclass(frozen=True, kw_only=True)
class ExpansionJob:
    """One expansion, as it crosses a process boundary (as JSON).

    Attributes:
        job_id: names the job in logs.
        campaign: the campaign's name, carried into the receipt.
        features: campaign features by field name; left-out ones are missing.
        seeds: Parquet file with a column `user_id` (int64 or string, as in the pool).
        k: audience size, 1 or more; capped by the eligible users.
        include_seeds: let seeds into the audience.
        filter: who is eligible; empty: everyone.
        exclusions: Parquet file of users to leave out, as of seeds; None: nobody.
        reserve: users to keep beside the audience.
        opted_out: Parquet file of users to leave out of whom no id is to be kept; None: nobody.
        previous: Parquet file of the members of the audience that this one refreshes; None: it refreshes none.
        previous_name, previous_sha256: that audience's name, and its members' file's.
        churn_budget: share of the members that may be no previous ones.
        random_seed: of negatives, splits and batches; the same job gives the same bytes.
        pool: snapshot folder.
        checkpoint: SHA-256 of the general checkpoint the job wants; a runtime that holds another refuses.
        output: audience folder to be created; must not exist, or hold this very job's finished audience.
        cancel_flag: the job stops soon after a file of this name appears, or its folder goes.
        tenant, request_id: who ordered it and by which id, for logs.
        traceparent: W3C's, of the span that the job's own spans belong under; empty: none.
    """

    job_id: str
    campaign: str
    seeds: Path
    k: int
    pool: Path
    output: Path
    cancel_flag: Path
    features: Mapping[str, FeatureValue] = field(default_factory=dict)
    checkpoint: str = ""
    include_seeds: bool = False
    random_seed: int = 0
    filter: str = ""
    exclusions: Path | None = None
    reserve: int = 0
    opted_out: Path | None = None
    previous: Path | None = None
    previous_name: str = ""
    previous_sha256: str = ""
    churn_budget: float = 1.0
    tenant: str = ""
    request_id: str = ""
    traceparent: str = ""


ProgressCallback = Callable[[Progress], None]


@dataclass(frozen=True, kw_only=True)
class RuntimeHealth:
    """How what runs expansions is.

    Attributes:
        up: whether a job started now would run, as far as is known.
        workers: there should be, which may be more than there are. workers_ready: that are well.
        restarts: of the whole of it, since it was started. worker_restarts: of single workers.
        pids: of its processes, if they are others than this one.
    """

    up: bool
    workers_ready: int
    workers: int = 0
    restarts: int = 0
    worker_restarts: int = 0
    pids: tuple[int, ...] = ()


class Runtime(Protocol):
    """Runs expansions. Implementations: `inprocess.InProcessRuntime`, `torchserve.TorchServeRuntime`."""

    @property
    def capacity(self) -> int:
        """Expansions that may run at once, as things are; the caller never starts more."""
        ...

    async def run(self, job: ExpansionJob, progress: ProgressCallback) -> Receipt:
        """Run the job to its end; `progress` is called on the event loop's thread.

        Raises:
            LookalikeError: whatever the job raised, of the same class; Unavailable when the runtime itself died,
                after which the same job may be run again.
        """
        ...

    def health(self) -> RuntimeHealth:
        """As it was when it was last looked at; asks nobody."""
        ...

    async def ready(self) -> bool:
        """Whether a job started now would run."""
        ...
