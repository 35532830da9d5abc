"""Test help: the real front service on a thread of its own, over a runtime that does as it is told."""

from __future__ import annotations

import asyncio
import contextlib
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
import pyarrow as pa
from audience_folders import Scored, make_audience, previous_of

from lookalike.config import Config, ServiceConfig
from lookalike.errors import Cancelled, LookalikeError
from lookalike.files import file_digest, staged_folder
from lookalike.pool.snapshot import Pool
from lookalike.retrieval.audience import AUDIENCE_NAME, Audience, write_members, write_receipt
from lookalike.retrieval.receipt import Adaptation, Progress, Receipt, SeedMatch, Stage
from lookalike.runtime.execute import read_seeds
from lookalike.runtime.job import ExpansionJob, ProgressCallback, Runtime, RuntimeHealth
from lookalike.runtime.score_job import ScoreRuntime
from lookalike.schema import FeatureSchema
from lookalike.service.server import serve

CHECKPOINT = "c" * 64
DATABASE_URL = ""  # of fronts whose test says nothing else
SECONDS = 30.0  # more than anything here takes; only a hang gets there


def write_audience(job: ExpansionJob, members: pa.Array, scores: np.ndarray | None = None) -> Receipt:
    """A real audience of the given members, published as an expander does it."""
    scores = np.linspace(1.0, 0.0, len(members), dtype=np.float32) if scores is None else scores
    seeds = read_seeds(job.seeds)
    with staged_folder(job.output) as staged:
        write_members(staged / AUDIENCE_NAME, members, scores)
        receipt = Receipt(
            format_version=1,
            code_version="test",
            job_id=job.job_id,
            created="2024-02-03T04:05:06+00:00",
            campaign=job.campaign,
            features=job.features,
            seeds=SeedMatch(given=len(seeds), matched=len(seeds), duplicates=0, not_in_pool=0),
            seeds_sha256="5" * 64,
            include_seeds=job.include_seeds,
            random_seed=job.random_seed,
            checkpoint_sha256=job.checkpoint,
            pool_sha256="9" * 64,
            pool=job.pool,
            pool_users=1000,
            users_scored=1000 - len(seeds),
            users_skipped=len(seeds),
            k_requested=job.k,
            k=len(members),
            cutoff_score=float(scores[-1]) if len(scores) else None,
            ties_at_cutoff=1,
            ties_selected=1,
            engine="test",
            device="cpu",
            batch_size=8,
            threads=1,
            adaptation=Adaptation(best_epoch=1, samples=10, folds=1, held_out_auc=0.75, general_auc=0.5),
            adaptation_config={},
            seconds={"scoring": 0.5},
            audience_sha256=file_digest(staged / AUDIENCE_NAME),
            model_sha256="a" * 64,
        )
        write_receipt(staged, receipt)
    return receipt


def first_users(job: ExpansionJob, first: int = 0, *, users: int) -> Receipt:
    """A real audience of k users of the pool, the best first, from row `first` on and around, without those who opted
    out or are excluded; with a reserve and a churn budget as the job has them. It says that the pool has `users`.
    """
    pool = Pool.open(job.pool)
    ids = pool.user_ids(np.arange(pool.num_users))
    scored = Scored(ids, np.roll(np.linspace(1.0, 0.0, len(ids)), first))
    known = set(ids.to_pylist())
    gone, excluded = (
        [one for one in read_seeds(path).to_pylist() if one in known] if path else []
        for path in (job.opted_out, job.exclusions)
    )
    previous = None
    if job.previous is not None:
        members = read_seeds(job.previous).to_pylist()
        previous = replace(
            previous_of(scored, members, job.churn_budget),
            name=job.previous_name,
            audience_sha256=job.previous_sha256,
        )
    seeds = read_seeds(job.seeds).to_pylist()
    made = {
        "job_id": job.job_id,
        "campaign": job.campaign,
        "features": job.features,
        "include_seeds": job.include_seeds,
        "random_seed": job.random_seed,
        "checkpoint_sha256": job.checkpoint,
        "filter": job.filter,
        "pool": job.pool,
        "pool_users": users,
    }
    return make_audience(
        job.output,
        scored,
        job.k,
        job.reserve,
        seeds=seeds,
        exclusions=excluded,
        opted_out=gone,
        previous=previous,
        seeds_are_skipped=False,
        receipt=made,
    )


@dataclass
class ScriptedRuntime:
    """Answers jobs as `first_users` does; can be held, can fail. Thread-safe from the test's side.

    `hold()` makes jobs stop half-way through scoring until `release()`, or until they are cancelled. `failures` are
    raised by the next runs, one each. `jobs` are those begun, `running` those at it now, `most` the most at once.
    """

    capacity: int = 1
    failures: list[LookalikeError | Exception] = field(default_factory=list)
    jobs: list[ExpansionJob] = field(default_factory=list)
    running: int = 0
    most: int = 0
    users: int = 1000
    first: int = 0
    _held: bool = False
    _changed: threading.Condition = field(default_factory=threading.Condition)

    def hold(self) -> None:
        self._held = True

    def release(self) -> None:
        self._held = False

    def wait_for(self, condition: Callable[[ScriptedRuntime], bool]) -> None:
        with self._changed:
            assert self._changed.wait_for(lambda: condition(self), SECONDS), "it did not come to that"

    def _count(self, change: int) -> None:
        with self._changed:
            self.running += change
            self.most = max(self.most, self.running)
            self._changed.notify_all()

    async def run(self, job: ExpansionJob, progress: ProgressCallback) -> Receipt:
        self.jobs.append(job)
        self._count(+1)
        try:
            progress(Progress(Stage.MATCHING, 1, 1))
            if self.failures:
                raise self.failures.pop(0)
            progress(Progress(Stage.SCORING, 0, self.users))
            progress(Progress(Stage.SCORING, self.users // 2, self.users))
            while self._held:
                if job.cancel_flag.exists():
                    raise Cancelled("stopped by its flag")
                await asyncio.sleep(0.01)
            progress(Progress(Stage.SCORING, self.users, self.users))
            return first_users(job, self.first, users=self.users)
        finally:
            self._count(-1)

    def health(self) -> RuntimeHealth:
        return RuntimeHealth(up=True, workers_ready=self.capacity)

    async def ready(self) -> bool:
        return True


@dataclass
class Front:
    """A running front: its address, its data, its end."""

    address: str
    config: Config
    stop: Callable[[], None]

    @property
    def data_dir(self) -> Path:
        return self.config.service.data_dir


def config_for(data_dir: Path, **service: object) -> Config:
    defaults = {
        "listen": "127.0.0.1:0",
        "data_dir": data_dir,
        "database_url": DATABASE_URL,
        "drain_seconds": 0.0,
        "shutdown_grace_seconds": 2.0,
        "metrics_listen": "",
        "insecure": True,
    }
    return Config(service=replace(ServiceConfig(), **{**defaults, **service}))


@contextlib.contextmanager
def front(
    config: Config,
    pool: Path,
    runtime: Runtime | Callable[[], contextlib.AbstractAsyncContextManager[Runtime]],
    *,
    scoring: Callable[[], contextlib.AbstractAsyncContextManager[ScoreRuntime]] | None = None,
    checkpoint: str = CHECKPOINT,
    campaign_schema: FeatureSchema | None = None,
    model_created: float | None = None,
) -> Iterator[Front]:
    """The front service, serving; `runtime` may be a factory of one that is started and stopped with it."""
    loop = asyncio.new_event_loop()
    stop = asyncio.Event()
    started = threading.Event()
    addresses: list[str] = []
    failures: list[BaseException] = []

    def ready(address: str) -> None:
        addresses.append(address)
        started.set()

    async def main() -> None:
        async with contextlib.AsyncExitStack() as stack:
            running = await stack.enter_async_context(runtime()) if callable(runtime) else runtime
            await serve(
                config,
                pool=pool,
                checkpoint_fingerprint=checkpoint,
                runtime=running,
                scoring=await stack.enter_async_context(scoring()) if scoring is not None else None,
                ready=ready,
                stop=stop,
                campaign_schema=campaign_schema,
                model_created=model_created,
            )

    def run() -> None:
        try:
            with asyncio.Runner(loop_factory=lambda: loop) as runner:
                runner.run(main())
        except BaseException as error:  # handed to the test's thread
            failures.append(error)
        finally:
            started.set()

    thread = threading.Thread(target=run, name="front")

    def end() -> None:
        if thread.is_alive():
            with contextlib.suppress(RuntimeError):  # its loop has just been closed
                loop.call_soon_threadsafe(stop.set)
        thread.join(SECONDS)
        assert not thread.is_alive(), "the front does not stop"

    thread.start()
    started.wait()
    try:
        if failures:
            thread.join()
            raise failures[0]
        yield Front(addresses[0], config, end)
    finally:
        end()


def members_of(front_of: Front, name: str) -> pa.Table:
    """An audience's Parquet, read past the service."""
    audience = Audience.open(front_of.data_dir / name)
    return audience.members(0, audience.num_members)
