"""Scores users with audiences' customised models, of which it keeps those used last: behind every host of scoring.

Knows audiences, pools and the reference engine (imported with it: torch); knows nothing of servers.
"""

from __future__ import annotations

import gc
import resource
import time
from collections import OrderedDict
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from lookalike.config import ScoringConfig
from lookalike.errors import DataCorrupted, FailedPrecondition, InternalError, NotFound
from lookalike.files import file_digest
from lookalike.pool.snapshot import Pool
from lookalike.retrieval.audience import Audience
from lookalike.retrieval.receipt import AUDIENCE_NAME, MODEL_NAME
from lookalike.retrieval.scan import DIVERGED
from lookalike.runtime.score_job import ScoreJob, Scores
from lookalike.scoring.compiled import TorchScriptEngine

# One thread: a hundred users are a millisecond's work, and waking another thread costs as much.
REFERENCE = ScoringConfig(engine="torchscript", device="cpu", threads=1)
# TorchScript compiles what it runs in its first two runs: a quarter of a second that no caller should wait for.
WARM_RUNS = 3
OPEN_POOLS = 2
MAX_FAULTS = 8  # of a request, before the next ones ask: about what asking costs
ASK_REQUESTS, MAX_ASK_REQUESTS = 256, 65_536
# Of a model in memory: freezing copies most weights (28 MB in a file were 51 in memory), and code has its own 1.1 MB.
FILE_TIMES, CODE_BYTES = 2, 1 << 20


class ScoreExecutor:
    """Models by audience, `cache_bytes` of them; and the pools used last, which are memory-mapped. For one thread."""

    def __init__(self, cache_bytes: int) -> None:
        self._cache_bytes = cache_bytes
        self._models: OrderedDict[tuple[Path, str], _Model] = OrderedDict()
        self._pools: OrderedDict[tuple[Path, int, int], Pool] = OrderedDict()
        self._ahead = _Ahead()

    @property
    def models(self) -> int:
        """In memory."""
        return len(self._models)

    def score(self, job: ScoreJob) -> Scores:
        """See `ScoreRuntime.score`."""
        pool = self._pool(job.pool)
        key = (job.audience, job.model_sha256)
        model, loaded = self._models.get(key), 0.0
        if model is None:
            started = time.perf_counter()
            model = self._models[key] = _Model(job, pool)
            loaded = time.perf_counter() - started
        self._models.move_to_end(key)
        model.check(pool)
        with self._ahead as ahead:
            rows = pool.find(job.user_ids, field="users", ahead=ahead)
            found = rows >= 0
            users = pool.take(rows[found], ahead=ahead)
        scores = np.zeros(len(rows), np.float32)
        scores[found] = model.engine.score(users)
        if np.isnan(scores).any():
            raise InternalError(DIVERGED)
        ranks = members = None
        if job.with_ranks:
            ranks, members = model.members().ranks(job.user_ids, scores)
            ranks, members = np.where(found, ranks, 0), members & found
        self._evict()
        return Scores(scores=scores, found=found, ranks=ranks, members=members, loaded=loaded)

    def _evict(self) -> None:
        while len(self._models) > 1 and sum(model.bytes for model in self._models.values()) > self._cache_bytes:
            self._models.popitem(last=False)

    def _pool(self, path: Path) -> Pool:
        try:
            status = path.stat()
        except OSError as error:
            raise NotFound(f"no pool at {path}: {error.strerror}", field="pool") from error
        key = (path, status.st_dev, status.st_ino)
        pool = self._pools.get(key)
        if pool is None:
            pool = self._pools[key] = Pool.open(path)
            while len(self._pools) > OPEN_POOLS:
                self._pools.popitem(last=False)
        self._pools.move_to_end(key)
        return pool


class _Ahead:
    """Whether to ask the disk for pages of a pool before they are touched.

    Asking takes a millisecond for a hundred users, half of all that scoring them takes; not asking takes a tenth of a
    millisecond for each page that is not in memory. So nobody asks until a request had to wait for pages; then all do,
    until it is tried again, more and more seldom if in vain.
    """

    def __init__(self) -> None:
        self._left = 0  # requests until it is tried without
        self._wait = ASK_REQUESTS
        self._faults = 0

    def __enter__(self) -> bool:
        self._faults = _faults()
        return self._left > 0

    def __exit__(self, *_: object) -> None:
        if self._left > 0:
            self._left -= 1
        elif _faults() - self._faults > MAX_FAULTS:
            self._left, self._wait = self._wait, min(2 * self._wait, MAX_ASK_REQUESTS)
        else:
            self._wait = ASK_REQUESTS


def _faults() -> int:
    """Pages this thread has waited for a disk for."""
    return resource.getrusage(resource.RUSAGE_THREAD).ru_majflt if hasattr(resource, "RUSAGE_THREAD") else 0


class _Model:
    """An audience's model, and its members once they have been asked for."""

    def __init__(self, job: ScoreJob, pool: Pool) -> None:
        path = job.audience / MODEL_NAME
        try:
            digest = file_digest(path)
        except FileNotFoundError as error:
            raise NotFound(f"the audience is gone, or its {MODEL_NAME} is", field="audience") from error
        if digest != job.model_sha256:
            raise DataCorrupted(f"{path} is not the model of the receipt", field=MODEL_NAME)
        self.engine = TorchScriptEngine(path, REFERENCE)
        self.bytes = FILE_TIMES * path.stat().st_size + CODE_BYTES
        self._folder = job.audience
        self._members: _Members | None = None
        self.check(pool)
        for _ in range(WARM_RUNS):
            self.engine.score(pool.take(np.zeros(1, np.int64)))
        # What is loaded stays: without this a collection of garbage walks all of torch, for 0.1 s, while callers wait.
        gc.unfreeze()  # models that have gone meanwhile do not
        gc.collect()
        gc.freeze()

    def check(self, pool: Pool) -> None:
        """Raises FailedPrecondition where the pool's fields are others than the model's."""
        if pool.schema.fingerprint != self.engine.schema.fingerprint:
            raise FailedPrecondition(
                "the audience was made from a pool with another user schema than the one that is served now: "
                "expand again",
                field="audience",
                reason="SCHEMA_MISMATCH",
            )

    def members(self) -> _Members:
        """Read again when the file is another: members who opted out are replaced there."""
        if self._members is None or not self._members.current(self._folder):
            self.bytes -= self._members.bytes if self._members is not None else 0
            self._members = _Members(self._folder)
            self.bytes += self._members.bytes
        return self._members


class _Members:
    """The members' scores, which descend, and their ids, which ascend where scores are equal."""

    def __init__(self, folder: Path) -> None:
        self._stamp = _stamp(folder)
        audience = Audience.open(folder)
        table = audience.members(0, audience.num_members)
        self._falling = -table["score"].to_numpy()  # ascending, for searchsorted
        self._ids = table["user_id"].combine_chunks()
        self.bytes = self._falling.nbytes + self._ids.nbytes

    def current(self, folder: Path) -> bool:
        return _stamp(folder) == self._stamp

    def ranks(
        self, user_ids: pa.Array, scores: npt.NDArray[np.float32]
    ) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.bool_]]:
        """1 + the members that score higher than each user, and whether the user is among those who score as much."""
        first = np.searchsorted(self._falling, -scores, side="left").astype(np.int64)
        end = np.searchsorted(self._falling, -scores, side="right").astype(np.int64)
        if not len(self._ids):
            return first + 1, np.zeros(len(scores), np.bool_)
        last = len(self._ids) - 1
        low, high = first, end
        while (open_ := low < high).any():
            middle = np.minimum((low + high) // 2, last)
            below = _bools(pc.less(self._ids.take(pa.array(middle)), user_ids))
            low, high = np.where(open_ & below, middle + 1, low), np.where(open_ & ~below, middle, high)
        there = _bools(pc.equal(self._ids.take(pa.array(np.minimum(low, last))), user_ids))
        return first + 1, (low < end) & there


def _stamp(folder: Path) -> tuple[int, int]:
    try:
        status = (folder / AUDIENCE_NAME).stat()
    except FileNotFoundError as error:
        raise NotFound("the audience is gone", field="audience") from error
    return status.st_ino, status.st_mtime_ns


def _bools(column: pa.Array) -> npt.NDArray[np.bool_]:
    bools: npt.NDArray[np.bool_] = column.to_numpy(zero_copy_only=False).astype(np.bool_, copy=False)
    return bools
