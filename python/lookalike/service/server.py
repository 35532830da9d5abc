"""Starts the front service, keeps it, ends it gracefully. The only module that knows all the others.

Torch-free: what runs expansions comes in as a `Runtime`, already started, and is the caller's to stop.
"""

from __future__ import annotations

import asyncio
import json
import logging
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, suppress
from pathlib import Path

import grpc
from google.longrunning import operations_pb2, operations_pb2_grpc
from grpc_health.v1 import health, health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection

from lookalike.config import Config, ServiceConfig
from lookalike.errors import DataCorrupted, FailedPrecondition, NotFound
from lookalike.pool.snapshot import Pool
from lookalike.runtime.confined import ConfinedRuntime
from lookalike.runtime.job import Runtime
from lookalike.schema import FeatureSchema
from lookalike.service.audience_service import AudienceServicer
from lookalike.service.audiences import AudienceStore
from lookalike.service.audit import AuditLog
from lookalike.service.authentication import AuthInterceptor
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
from lookalike.service.status import ErrorInterceptor
from lookalike.service.token_file import TokenFile, tokens_path
from lookalike.tracing import Tracing
from lookalike.v1 import audience_pb2, audience_pb2_grpc

_log = logging.getLogger(__name__)

AUDIENCE_SERVICE = audience_pb2.DESCRIPTOR.services_by_name["AudienceService"].full_name
OPERATIONS_SERVICE = operations_pb2.DESCRIPTOR.services_by_name["Operations"].full_name


async def serve(
    config: Config,
    *,
    pool: Path,
    checkpoint_fingerprint: str,
    runtime: Runtime,
    ready: Callable[[str], None],
    stop: asyncio.Event,
    campaign_schema: FeatureSchema | None = None,
    model_created: float | None = None,
) -> None:
    """Serve until `stop` is set; then finish calls within the grace period and leave jobs for the next start.

    Args:
        pool: snapshot all jobs run on.
        checkpoint_fingerprint: of the general checkpoint the runtime holds.
        runtime: started; it is not stopped here.
        ready: told the address once calls are answered.
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
            quotas = Quotas(config.quotas)
            store = OperationStore(database, quotas, max_queued=service.max_queued, metrics=metrics)
            dispatcher = Dispatcher(
                store,
                ConfinedRuntime(runtime, folder.path),
                leases=Leases(database, quotas, lease_seconds=service.lease_seconds),
                jobs=folder.jobs,
                pool=opened.path,
                checkpoint=checkpoint_fingerprint,
                max_attempts=service.max_attempts,
                metrics=metrics,
                tracing=tracing,
            )
            audiences = AudienceStore(folder.audiences, store)
            present = presenter(dispatcher, audiences)
            servicer = AudienceServicer(
                pool=opened,
                door=Door(opened, campaign_schema, service.seeds_dir),
                store=store,
                dispatcher=dispatcher,
                audiences=audiences,
                present=present,
                jobs=folder.jobs,
                capacity=runtime.capacity,
                min_seeds=config.adaptation.min_seeds,
                page_size=service.page_size,
            )
            operations = OperationsServicer(store, dispatcher, present)
            observed = Observed(store, dispatcher, runtime, folder.path, model_created, lambda: endpoint.expiry)
            watch = ObservingInterceptor(metrics, tracing)
            async with (
                _authentication(service, folder.path) as authentication,
                _forgetting(service, database, folder),
                exposition(service.metrics_listen, metrics, observed),
            ):
                interceptors = [watch, DecodingInterceptor(), authentication]
                await _run(service, endpoint, interceptors, servicer, operations, dispatcher, ready, stop)
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


async def _run(
    config: ServiceConfig,
    endpoint: Endpoint,
    interceptors: list[grpc.aio.ServerInterceptor],
    servicer: AudienceServicer,
    operations: OperationsServicer,
    dispatcher: Dispatcher,
    ready: Callable[[str], None],
    stop: asyncio.Event,
) -> None:
    checks = health.aio.HealthServicer()
    for name in (AUDIENCE_SERVICE, OPERATIONS_SERVICE):
        await checks.set(name, health_pb2.HealthCheckResponse.SERVING)

    def make(options: list[tuple[str, int]]) -> grpc.aio.Server:
        server = grpc.aio.server(
            interceptors=[*interceptors, ErrorInterceptor((AUDIENCE_SERVICE, OPERATIONS_SERVICE))],
            options=[("grpc.max_receive_message_length", config.max_message_mib * 2**20), *options],
        )
        audience_pb2_grpc.add_AudienceServiceServicer_to_server(servicer, server)
        operations_pb2_grpc.add_OperationsServicer_to_server(operations, server)
        health_pb2_grpc.add_HealthServicer_to_server(checks, server)
        names = (AUDIENCE_SERVICE, OPERATIONS_SERVICE, health.SERVICE_NAME, reflection.SERVICE_NAME)
        reflection.enable_server_reflection(names, server)
        return server

    address = endpoint.open(make)
    await dispatcher.start()
    try:
        await endpoint.start()
        ready(address)
        await stop.wait()
    finally:
        _log.info("shutting down; %.0f s for calls to end", config.shutdown_grace_seconds)
        servicer.accepting = False
        await checks.enter_graceful_shutdown()
        dispatcher.release_waiters()
        await endpoint.stop(config.shutdown_grace_seconds)
        await dispatcher.close()


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
