"""Shows Prometheus the metrics over HTTP, with those that are looked up when it asks: queue, opt-outs, runtime, disk.

Knows metrics, the stores and the runtime's health; knows no gRPC. The server answers on threads of its own.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import shutil
import time
from collections.abc import AsyncIterator, Callable, Iterable, Iterator, Mapping
from concurrent.futures import TimeoutError as NoAnswer
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path

from prometheus_client import start_http_server
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from lookalike.addresses import check_address
from lookalike.errors import LookalikeError, Unavailable
from lookalike.runtime.job import Runtime
from lookalike.service.audience_records import AudienceRecords, Pending
from lookalike.service.dispatcher import Dispatcher
from lookalike.service.metrics import Metrics
from lookalike.service.operations import OperationStore, Queue

_log = logging.getLogger(__name__)

STORE_SECONDS = 3.0  # for the database, of a scrape's usual ten


@dataclass(frozen=True)
class Observed:
    """What is looked at when Prometheus asks.

    Attributes:
        model_created: Unix seconds; None when that is not known.
        certificates: when those in use end, by the key of the configuration.
    """

    store: OperationStore
    records: AudienceRecords
    dispatcher: Dispatcher
    runtime: Runtime
    data_dir: Path
    model_created: float | None
    certificates: Callable[[], Mapping[str, float]]


@asynccontextmanager
async def exposition(listen: str, metrics: Metrics, observed: Observed) -> AsyncIterator[None]:
    """Answer Prometheus at `listen` while the block runs; nowhere when that is empty.

    Raises:
        InvalidInput: no address. Unavailable: it is taken, or is not this machine's.
    """
    if not listen:
        yield
        return
    check_address(listen, field="service.metrics_listen")
    host, _, port = listen.rpartition(":")
    metrics.registry.register(_Looker(observed, asyncio.get_running_loop()))
    try:
        server, thread = start_http_server(int(port), host.strip("[]"), metrics.registry)
    except OSError as error:
        raise Unavailable(
            f"cannot show metrics on {listen}: {error}; choose another service.metrics_listen, or '' for none",
            field="service.metrics_listen",
            reason="ADDRESS_IN_USE",
        ) from error
    _log.info("metrics are at http://%s:%d/metrics", host, server.server_port)
    try:
        yield
    finally:
        # On a thread, for a scrape that is being answered may wait for this loop.
        await asyncio.to_thread(server.shutdown)
        await asyncio.to_thread(server.server_close)
        await asyncio.to_thread(thread.join)


class _Looker(Collector):
    def __init__(self, observed: Observed, loop: asyncio.AbstractEventLoop) -> None:
        self._it = observed
        self._loop = loop

    def describe(self) -> Iterable[Metric]:
        """Nothing is looked at before Prometheus asks."""
        return ()

    def collect(self) -> Iterator[Metric]:
        """What cannot be learnt now is left out: an old number would be a wrong one."""
        it, health = self._it, self._it.runtime.health()
        stored = self._stored()
        gauges = {
            "audience_store_up": ("Whether the operations database answers.", float(stored is not None)),
            "audience_operations_running": ("Operations that run in this front.", float(it.dispatcher.running)),
            "audience_workers": ("Workers there should be.", float(max(health.workers, it.runtime.capacity))),
            "audience_workers_ready": ("Workers that are well.", float(health.workers_ready)),
            "audience_runtime_up": ("Whether what runs expansions does.", float(health.up)),
            "audience_runtime_memory_bytes": ("Of its own processes, shared pages divided.", _memory(health.pids)),
        }
        if stored is not None:
            queue, pending = stored
            gauges["audience_queue_depth"] = ("Operations that wait, of all fronts.", float(queue.depth))
            gauges["audience_queue_oldest_seconds"] = ("How long the oldest of them has.", queue.oldest_seconds)
            gauges["audience_opt_outs_pending"] = (
                "Audiences that users who opted out must still be taken out of, of all fronts.",
                float(pending.audiences),
            )
            gauges["audience_opt_outs_oldest_seconds"] = ("Since the oldest of them opted out.", pending.oldest_seconds)
        if it.model_created is not None:
            age = max(0.0, time.time() - it.model_created)
            gauges["audience_model_age_seconds"] = ("Since the general model was made.", age)
        with contextlib.suppress(OSError):
            gauges["audience_data_free_bytes"] = (
                "Free in the data folder.",
                float(shutil.disk_usage(it.data_dir).free),
            )
        yield from _families(gauges)
        expiry = GaugeMetricFamily(
            "audience_certificate_expiry_timestamp_seconds", "When certificates in use end.", labels=["key"]
        )
        for key, moment in it.certificates().items():
            expiry.add_metric([key], moment)
        yield expiry
        yield CounterMetricFamily(
            "audience_runtime_restarts", "Times what runs expansions was started again.", health.restarts
        )
        yield CounterMetricFamily(
            "audience_worker_restarts", "Times a worker of it was started again.", health.worker_restarts
        )

    def _stored(self) -> tuple[Queue, Pending] | None:
        async def ask() -> tuple[Queue, Pending]:
            return await self._it.store.queue(), await self._it.records.pending()

        asked = asyncio.run_coroutine_threadsafe(ask(), self._loop)
        try:
            return asked.result(STORE_SECONDS)
        except NoAnswer:
            asked.cancel()
        except LookalikeError:  # logged where it was raised
            pass
        return None


def _families(gauges: Mapping[str, tuple[str, float]]) -> Iterator[Metric]:
    for name, (text, value) in gauges.items():
        yield GaugeMetricFamily(name, text, value)


def _memory(pids: Iterable[int]) -> float:
    """Proportional: a pool that several workers have mapped counts once."""
    total = 0
    for pid in pids:
        with contextlib.suppress(OSError):  # it has just ended
            for line in Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines():
                if line.startswith("Pss:"):
                    total += 1024 * int(line.split()[1])
    return float(total)
