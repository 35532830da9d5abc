"""Starts the front service, keeps it, ends it gracefully. The only module that knows all the others.

Torch-free: what runs expansions comes in as a `Runtime`, already started, and is the caller's to stop.
"""

from __future__ import annotations

import asyncio
import fcntl
import json
import logging
import os
import shutil
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
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
from lookalike.service.dispatcher import Dispatcher
from lookalike.service.door import Door
from lookalike.service.endpoint import Endpoint
from lookalike.service.operations import OperationStore, database_url
from lookalike.service.operations_service import OperationsServicer, presenter
from lookalike.service.status import ErrorInterceptor
from lookalike.service.token_file import TokenFile, tokens_path
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
) -> None:
    """Serve until `stop` is set; then finish calls within the grace period and leave jobs for the next start.

    Args:
        pool: snapshot all jobs run on.
        checkpoint_fingerprint: of the general checkpoint the runtime holds.
        runtime: started; it is not stopped here.
        ready: told the address once calls are answered.
        campaign_schema: lets unknown features be refused at the door; see `read_campaign_schema`.

    Raises:
        InvalidInput: see `Endpoint`. Unavailable: the address is taken.
        FailedPrecondition: another server uses the data folder, it is of another version, or the audit log cannot be
            written.
        NotFound, DataCorrupted: the pool, or the operations database.
    """
    service = config.service
    endpoint = Endpoint(service)
    # A name that is swapped to a newer snapshot must not change the one this server checks seeds against.
    opened = await asyncio.to_thread(lambda: Pool.open(pool.resolve()))
    async with _data_dir(service.data_dir) as data_dir:
        store = await OperationStore.open(database_url(data_dir))
        try:
            dispatcher = Dispatcher(
                store,
                ConfinedRuntime(runtime, data_dir),
                jobs=data_dir / "jobs",
                pool=opened.path,
                checkpoint=checkpoint_fingerprint,
                max_attempts=service.max_attempts,
            )
            audiences = AudienceStore(data_dir / "audiences")
            present = presenter(dispatcher, audiences)
            servicer = AudienceServicer(
                pool=opened,
                door=Door(opened, campaign_schema, service.seeds_dir),
                store=store,
                dispatcher=dispatcher,
                audiences=audiences,
                present=present,
                jobs=data_dir / "jobs",
                max_queued=service.max_queued,
                page_size=service.page_size,
            )
            operations = OperationsServicer(store, dispatcher, present)
            async with _authentication(service, data_dir) as authentication:
                await _run(service, endpoint, authentication, servicer, operations, dispatcher, ready, stop)
        finally:
            await store.close()


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
    authentication: AuthInterceptor,
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
            interceptors=[authentication, ErrorInterceptor((AUDIENCE_SERVICE, OPERATIONS_SERVICE))],
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
async def _data_dir(path: Path) -> AsyncIterator[Path]:
    """The data folder, ours alone while the block runs, cleared of what a killed server left half written."""
    path = await asyncio.to_thread(_make_data_dir, path)
    lock = os.open(path / "lock", os.O_RDWR | os.O_CREAT, 0o600)
    try:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise FailedPrecondition(
                f"another server uses {path}; stop it or choose another service.data_dir",
                field="service.data_dir",
                reason="DATA_DIR_IN_USE",
            ) from error
        await asyncio.to_thread(_remove_staged, path)
        yield path
    finally:
        os.close(lock)


def _make_data_dir(path: Path) -> Path:
    path.mkdir(parents=True, exist_ok=True, mode=0o700)  # seeds and audiences are people
    if path.stat().st_mode & 0o077:
        _log.warning("others on this machine may look into %s, where seeds and audiences are: chmod 700 it", path)
    for name in ("jobs", "audiences"):
        (path / name).mkdir(parents=True, exist_ok=True)
    return path.absolute()


def _remove_staged(data_dir: Path) -> None:
    for folder in data_dir.glob("*/*.tmp-*"):
        shutil.rmtree(folder, ignore_errors=True)
