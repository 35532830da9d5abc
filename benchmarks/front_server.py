"""The front of `front.py`, in a process of its own: the package's own service, over a runtime that trains no model.

    python benchmarks/front_server.py DATA_DIR POOL [DATABASE_URL]

Jobs wait for ever, two at a time, so that what is submitted stays in the queue; but those of the campaign "write" make
an audience of `k` random users, by the package's own writer in yet another process. Prints two addresses, the front's
and that of two methods of its own: a stream of bytes, the roofline of streams, and how long the store took.
"""

from __future__ import annotations

import asyncio
import gc
import json
import signal
import sys
import time
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any, Final

import grpc
import numpy as np
import pyarrow as pa
from hdrh.histogram import HdrHistogram

from lookalike import __version__
from lookalike.config import Config, QuotasConfig, ServiceConfig
from lookalike.errors import InternalError
from lookalike.files import file_digest, staged_folder
from lookalike.retrieval.audience import write_members, write_receipt
from lookalike.retrieval.receipt import AUDIENCE_NAME, Adaptation, Progress, Receipt, SeedMatch, Stage
from lookalike.runtime.job import ExpansionJob, ProgressCallback, RuntimeHealth
from lookalike.runtime.wire import job_from_json, job_to_json
from lookalike.service.operations import OperationStore
from lookalike.service.server import serve

MANY: Final = 1_000_000  # in the queue: none is refused
LONGEST_US: Final = 60_000_000
NOBODY: Final = SeedMatch(given=0, matched=0, duplicates=0, not_in_pool=0)


class WaitingRuntime:
    """Two jobs at a time, which end when they are asked to, but for those that write."""

    capacity = 2

    async def run(self, job: ExpansionJob, progress: ProgressCallback) -> Receipt:
        progress(Progress(Stage.SCORING, 0, 1))
        if job.campaign == "write":
            writer = await asyncio.create_subprocess_exec(sys.executable, __file__, json.dumps(job_to_json(job)))
            if await writer.wait():
                raise InternalError("the audience was not written")
            return Receipt.read(job.output)
        await asyncio.Event().wait()
        raise AssertionError("nobody sets it")

    def health(self) -> RuntimeHealth:
        return RuntimeHealth(up=True, workers_ready=self.capacity)

    async def ready(self) -> bool:
        return True


def write(job: ExpansionJob) -> None:
    """An audience of `k` users with random ids of 63 bits; strings where the campaign's feature `ids` says so."""
    random = np.random.default_rng(job.random_seed)
    numbers = random.integers(0, 2**63, job.k)
    ids = pa.array(numbers)
    if job.features.get("ids") == "strings":
        ids = pa.array(numbers).cast(pa.large_string())
    scores = np.sort(random.random(job.k, np.float32))[::-1]
    with staged_folder(job.output) as staged:
        write_members(staged / AUDIENCE_NAME, ids, scores)
        receipt = Receipt(
            format_version=1,
            code_version=__version__,
            job_id=job.job_id,
            created="2024-02-03T04:05:06+00:00",
            campaign=job.campaign,
            features=job.features,
            seeds=NOBODY,
            seeds_sha256="",
            include_seeds=job.include_seeds,
            random_seed=job.random_seed,
            checkpoint_sha256=job.checkpoint,
            pool_sha256="",
            pool=job.pool,
            pool_users=job.k,
            users_scored=job.k,
            users_skipped=0,
            k_requested=job.k,
            k=job.k,
            cutoff_score=float(scores[-1]),
            ties_at_cutoff=1,
            ties_selected=1,
            engine="none",
            device="cpu",
            batch_size=1,
            threads=1,
            adaptation=Adaptation(best_epoch=0, samples=0, folds=0, held_out_auc=0.5, general_auc=0.5),
            adaptation_config={},
            seconds={},
            audience_sha256=file_digest(staged / AUDIENCE_NAME),
            model_sha256="",
        )
        write_receipt(staged, receipt)


class Own(grpc.GenericRpcHandler):
    """`/bench/Bytes`: as many messages of as many bytes as the request says. `/bench/Store`: what `create` took."""

    def __init__(self) -> None:
        self.store = HdrHistogram(1, LONGEST_US, 3)

    def service(self, handler_call_details: Any) -> Any:
        """The method of a name."""
        if handler_call_details.method == "/bench/Bytes":
            return grpc.unary_stream_rpc_method_handler(self._bytes)
        return grpc.unary_unary_rpc_method_handler(self._taken)

    async def _bytes(self, request: bytes, _: Any) -> AsyncIterator[bytes]:
        count, size = json.loads(request)
        message = np.random.default_rng(0).bytes(size)
        for _number in range(count):
            yield message

    async def _taken(self, _: bytes, __: Any) -> bytes:
        encoded: bytes = self.store.encode()
        self.store.reset()
        return encoded

    def watch(self) -> None:
        """From now on, of every operation that is stored."""
        create = OperationStore.create

        async def timed(store: OperationStore, *arguments: Any) -> Any:
            started = time.perf_counter()
            try:
                return await create(store, *arguments)
            finally:
                self.store.record_value(max(1, round(1e6 * (time.perf_counter() - started))))

        OperationStore.create = timed  # type: ignore[assignment, method-assign]


async def main(data_dir: Path, pool: Path, database_url: str = "") -> None:
    """Serve until SIGTERM."""
    stop = asyncio.Event()
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, stop.set)
    service = ServiceConfig(
        listen="127.0.0.1:0",
        data_dir=data_dir,
        database_url=database_url,
        insecure=True,
        max_queued=MANY,
        metrics_listen="127.0.0.1:0",
        shutdown_grace_seconds=1.0,
    )

    def ready(address: str) -> None:
        gc.collect()
        gc.freeze()  # as `lookalike serve` does
        print(address, f"127.0.0.1:{port}", flush=True)

    own = Own()
    own.watch()
    beside = grpc.aio.server()
    beside.add_generic_rpc_handlers((own,))
    port = beside.add_insecure_port("127.0.0.1:0")
    await beside.start()
    await serve(
        Config(service=service, quotas=QuotasConfig(queued=MANY)),
        pool=pool,
        checkpoint_fingerprint="c" * 64,
        runtime=WaitingRuntime(),
        ready=ready,
        stop=stop,
    )
    await beside.stop(0)


if __name__ == "__main__":
    if len(sys.argv) == 2:
        write(job_from_json(json.loads(sys.argv[1])))
    else:
        asyncio.run(main(Path(sys.argv[1]), Path(sys.argv[2]), *sys.argv[3:]))
