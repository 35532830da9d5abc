"""Starts the front service, keeps it, ends it gracefully. The only module that knows all the others.

Torch-free: what runs expansions comes in as a `Runtime`, already started, and is the caller's to stop.
"""

from __future__ import annotations

import asyncio
import json
import logging
import math
import time
from collections.abc import AsyncIterator, Callable, Coroutine
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import grpc
from google.longrunning import operations_pb2, operations_pb2_grpc
from grpc_health.v1 import health, health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection

from lookalike.config import Config, ServiceConfig
from lookalike.errors import DataCorrupted, FailedPrecondition, NotFound
from lookalike.pool.snapshot import Pool
from lookalike.runtime.confined import ConfinedRuntime
from lookalike.runtime.job import Runtime
from lookalike.runtime.score_job import ScoreRuntime
from lookalike.schema import FeatureSchema
from lookalike.service.attempts import Attempts
from lookalike.service.audience_records import AudienceRecords
from lookalike.service.audience_service import AudienceServicer
from lookalike.service.audiences import AudienceStore
from lookalike.service.audit import AuditLog
from lookalike.service.authentication import AuthInterceptor
from lookalike.service.curation import Curators
from lookalike.service.data_dir import DataDir, bind, data_dir
from lookalike.service.database import Database, database_url
from lookalike.service.decoding import DecodingInterceptor
from lookalike.service.dispatcher import Dispatcher
from lookalike.service.door import Door
from lookalike.service.endpoint import Endpoint
from lookalike.service.expiry import Expiry
from lookalike.service.exposition import Observed, exposition
from lookalike.service.fairness import Quotas
from lookalike.service.leases import Leases
from lookalike.service.metrics import Metrics
from lookalike.service.observation import ObservingInterceptor
from lookalike.service.operations import OperationStore
from lookalike.service.operations_service import OperationsServicer, presenter
from lookalike.service.opt_out_keeper import OptOutKeeper
from lookalike.service.opt_outs import OptOutStore
from lookalike.service.scoring_service import ScoringServicer
from lookalike.service.status import ErrorInterceptor
from lookalike.service.token_file import TokenFile, tokens_path
from lookalike.tracing import Tracing
from lookalike.v1 import audience_pb2, audience_pb2_grpc, scoring_pb2, scoring_pb2_grpc

_log = logging.getLogger(__name__)

AUDIENCE_SERVICE = audience_pb2.DESCRIPTOR.services_by_name["AudienceService"].full_name
OPERATIONS_SERVICE = operations_pb2.DESCRIPTOR.services_by_name["Operations"].full_name
SCORING_SERVICE = scoring_pb2.DESCRIPTOR.services_by_name["ScoringService"].full_name
SERVICES = (AUDIENCE_SERVICE, OPERATIONS_SERVICE, SCORING_SERVICE)


async def serve(
    config: Config,
    *,
    pool: Path,
    checkpoint_fingerprint: str,
    runtime: Runtime,
    scoring: ScoreRuntime | None = None,
    ready: Callable[[str], None],
    stop: asyncio.Event,
    hurry: asyncio.Event | None = None,
    campaign_schema: FeatureSchema | None = None,
    model_created: float | None = None,
) -> None:
    """Serve until `stop` is set; then wait for what runs, finish calls, and leave the other jobs for the next start.

    Args:
        pool: snapshot all jobs run on.
        checkpoint_fingerprint: of the general checkpoint the runtime holds.
        runtime: started; it is not stopped here.
        scoring: likewise, for ScoreUsers, which has none by default.
        ready: told the address once calls are answered.
        hurry: set, nothing that runs is waited for any longer.
        campaign_schema: lets unknown features be refused at the door; see `read_campaign_schema`.
        model_created: Unix seconds, for the metric of the model's age.

    Raises:
        InvalidInput: see `Endpoint`; or no URL of a database. Unavailable: the address is taken, or the database cannot
            be reached.
        FailedPrecondition: another server uses the data folder, it is of a newer version or another database, or the
            audit log cannot be written.
        NotFound, DataCorrupted: the pool, or the operations database.
    """
    service = config.service
    metrics, tracing = Metrics(), Tracing(service.otlp_endpoint, service="lookalike-front")
    metrics.describe(checkpoint_fingerprint)
    endpoint = Endpoint(service)
    # A name that is swapped to a newer snapshot must not change the one this server checks seeds against.
    opened = await asyncio.to_thread(lambda: Pool.open(pool.resolve()))
    url = database_url(service.database_url, service.data_dir.absolute())
    async with data_dir(service.data_dir, shared=bool(service.database_url)) as folder:
        database = await Database.open(url, on_failure=metrics.store_failed)
        try:
            await bind(folder, database)
            records = AudienceRecords(database, audience_days=service.audience_days)
            opt_outs = OptOutStore(database)
            keeper = OptOutKeeper(
                records, opt_outs, audiences=folder.audiences, jobs=folder.jobs, id_type=opened.id_type
            )
            quotas = Quotas(config.quotas)
            store = OperationStore(database, quotas, max_queued=service.max_queued, metrics=metrics)
            leases = Leases(database, quotas, lease_seconds=service.lease_seconds, max_lost_runs=service.max_lost_runs)
            confined = ConfinedRuntime(runtime, folder.path)
            attempts = Attempts(
                confined,
                leases,
                jobs=folder.jobs,
                pool=opened.path,
                checkpoint=checkpoint_fingerprint,
                max_attempts=service.max_attempts,
                opt_outs=keeper,
                metrics=metrics,
                tracing=tracing,
            )
            dispatcher = Dispatcher(
                store, confined, leases=leases, attempts=attempts, jobs=folder.jobs, opt_outs=keeper, metrics=metrics
            )
            audiences = AudienceStore(folder.audiences, records, keeper)
            present = presenter(dispatcher, audiences, privacy_floor=service.privacy_floor)
            servicer = AudienceServicer(
                pool=opened,
                door=Door(opened, campaign_schema, service.seeds_dir, usual_reserve=partial(_usual_reserve, service)),
                store=store,
                dispatcher=dispatcher,
                audiences=audiences,
                present=present,
                jobs=folder.jobs,
                capacity=lambda: runtime.capacity,
                min_seeds=config.adaptation.min_seeds,
                page_size=service.page_size,
                curators=Curators(audiences, records, opt_outs, keeper, folder, opened, service.privacy_floor),
            )
            operations = OperationsServicer(store, dispatcher, present)
            scorer = ScoringServicer(
                pool=opened, audiences=audiences, opt_outs=keeper, runtime=scoring, metrics=metrics
            )
            observed = Observed(
                store, records, dispatcher, runtime, folder.path, model_created, lambda: endpoint.expiry
            )
            watch = ObservingInterceptor(metrics, tracing)
            async with (
                _authentication(service, folder.path) as authentication,
                _forgetting(service, database, folder),
                _keeping(keeper),
                exposition(service.metrics_listen, metrics, observed),
            ):
                services = _Services(servicer, operations, scorer)
                ends = (stop, hurry or asyncio.Event())
                interceptors = [watch, DecodingInterceptor(), authentication]
                await _run(service, endpoint, interceptors, services, dispatcher, ready, *ends)
        finally:
            await database.close()
            await asyncio.to_thread(tracing.close)


def read_campaign_schema(checkpoint: Path) -> FeatureSchema:
    """The campaign features a checkpoint knows, without loading the model.

    Raises:
        NotFound: no checkpoint there. DataCorrupted: not one of ours.
    """
    path = checkpoint / "checkpoint.json"
    try:
        return FeatureSchema.from_json(json.loads(path.read_text())["campaign_schema"])
    except FileNotFoundError as error:
        raise NotFound(f"no checkpoint at {checkpoint}", field="checkpoint") from error
    except (ValueError, KeyError, TypeError) as error:
        raise DataCorrupted(f"{path} is no checkpoint of ours: {error!r}", field="checkpoint") from error


@dataclass(frozen=True)
class _Services:
    audiences: AudienceServicer
    operations: OperationsServicer
    scoring: ScoringServicer

    def add_to(self, server: grpc.aio.Server) -> None:
        audience_pb2_grpc.add_AudienceServiceServicer_to_server(self.audiences, server)
        operations_pb2_grpc.add_OperationsServicer_to_server(self.operations, server)
        scoring_pb2_grpc.add_ScoringServiceServicer_to_server(self.scoring, server)


async def _run(
    config: ServiceConfig,
    endpoint: Endpoint,
    interceptors: list[grpc.aio.ServerInterceptor],
    services: _Services,
    dispatcher: Dispatcher,
    ready: Callable[[str], None],
    stop: asyncio.Event,
    hurry: asyncio.Event,
) -> None:
    checks = health.aio.HealthServicer()
    for name in SERVICES:
        await checks.set(name, health_pb2.HealthCheckResponse.SERVING)

    def make(options: list[tuple[str, int]]) -> grpc.aio.Server:
        server = grpc.aio.server(
            interceptors=[*interceptors, ErrorInterceptor(SERVICES)],
            options=[("grpc.max_receive_message_length", config.max_message_mib * 2**20), *options],
        )
        services.add_to(server)
        health_pb2_grpc.add_HealthServicer_to_server(checks, server)
        names = (*SERVICES, health.SERVICE_NAME, reflection.SERVICE_NAME)
        reflection.enable_server_reflection(names, server)
        return server

    address = endpoint.open(make)
    await dispatcher.start()
    try:
        await endpoint.start()
        ready(address)
        await stop.wait()
    finally:
        _log.info("shutting down; it takes no more orders")
        # First, for whoever shares the load out. Calls are answered while operations end, for somebody follows those.
        await checks.enter_graceful_shutdown()
        services.audiences.accepting = False
        drained_by = time.monotonic() + config.drain_seconds
        await _unless_hurried(dispatcher.drain(config.drain_seconds), hurry)
        left = 0.0 if hurry.is_set() else drained_by - time.monotonic()  # streams may have it, too
        dispatcher.release_waiters()
        await endpoint.stop(max(config.shutdown_grace_seconds, left))
        await dispatcher.close()


async def _unless_hurried(work: Coroutine[Any, Any, None], hurry: asyncio.Event) -> None:
    tasks: list[asyncio.Future[Any]] = [asyncio.ensure_future(work), asyncio.ensure_future(hurry.wait())]
    await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)


@asynccontextmanager
async def _authentication(config: ServiceConfig, data_dir: Path) -> AsyncIterator[AuthInterceptor]:
    """Who is let in, and the audit log of what they do."""
    audit_log = config.audit_log or data_dir / "audit.jsonl"
    tokens = None if config.insecure else TokenFile(tokens_path(config))
    if tokens is not None and not tokens.all():
        _log.warning("there are no tokens in %s, so nobody is let in: see `lookalike token create`", tokens.path)
    try:
        audit = AuditLog(audit_log)
    except OSError as error:
        raise FailedPrecondition(f"cannot write {audit_log}: {error.strerror}", field="service.audit_log") from error
    interceptor = AuthInterceptor(tokens, audit)
    try:
        yield interceptor
    finally:
        await interceptor.close()
        await audit.close()


def _usual_reserve(config: ServiceConfig, k: int) -> int:
    """Users to keep beside an audience of a size."""
    return min(max(config.reserve_least, math.ceil(config.reserve_share * k)), config.reserve_most)


@asynccontextmanager
async def _keeping(keeper: OptOutKeeper) -> AsyncIterator[None]:
    """Carries opt-outs out while the block runs."""
    task = asyncio.create_task(keeper.run())
    try:
        yield
    finally:
        keeper.close()
        task.cancel()
        with suppress(asyncio.CancelledError):
            await task


@asynccontextmanager
async def _forgetting(config: ServiceConfig, database: Database, folder: DataDir) -> AsyncIterator[None]:
    """Removes what has expired and what a killed server left half written, now and while the block runs."""
    expiry = Expiry(database, folder, operation_days=config.operation_days, audience_days=config.audience_days)
    await expiry.sweep(alone=not folder.shared)
    task = asyncio.create_task(expiry.run())
    try:
        yield
    finally:
        task.cancel()
        with suppress(asyncio.CancelledError):
            await task
