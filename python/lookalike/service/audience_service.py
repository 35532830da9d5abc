"""AudienceService: takes orders, shows audiences, hands out their members.

Knows the door, the store and the dispatcher; errors raised here become statuses in `status`.
"""
# Names and signatures of the methods are gRPC's.
# ruff: noqa: ARG002, N802

from __future__ import annotations

import asyncio
import logging
import shutil
import time
import uuid
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
from google.longrunning import operations_pb2

from lookalike import logs
from lookalike.errors import InvalidInput, Unavailable
from lookalike.files import staged_folder
from lookalike.pool.snapshot import Pool
from lookalike.retrieval.audience import Audience
from lookalike.runtime.job import ExpansionJob
from lookalike.service import caller, observation, tokens
from lookalike.service.audiences import AudienceStore, pieces
from lookalike.service.convert import (
    audience_message,
    audience_name,
    members_page,
    user_ids_message,
    validation_message,
)
from lookalike.service.dispatcher import Dispatcher
from lookalike.service.door import Door, Order, names_something, request_hash
from lookalike.service.operations import OperationStore
from lookalike.service.operations_service import Present
from lookalike.service.records import Operation
from lookalike.v1 import audience_pb2, audience_pb2_grpc

_log = logging.getLogger(__name__)

MAX_PAGE = 10_000


class AudienceServicer(audience_pb2_grpc.AudienceServiceServicer):
    """See audience.proto."""

    def __init__(
        self,
        *,
        pool: Pool,
        door: Door,
        store: OperationStore,
        dispatcher: Dispatcher,
        audiences: AudienceStore,
        present: Present,
        jobs: Path,
        capacity: int,
        min_seeds: int,
        page_size: int,
    ) -> None:
        """`capacity`: operations that may run at once here; `min_seeds`: an expansion takes, matched in the pool."""
        self._pool = pool
        self._door = door
        self._store = store
        self._dispatcher = dispatcher
        self._audiences = audiences
        self._present = present
        self._jobs = jobs
        self._capacity = capacity
        self._min_seeds = min_seeds
        self._page_size = page_size
        self.accepting = True

    async def ExpandAudience(
        self, request: audience_pb2.ExpandAudienceRequest, context: Any
    ) -> operations_pb2.Operation:
        """Check, store the seeds, accept."""
        if not self.accepting:
            raise Unavailable("the server is shutting down; try again soon", reason="SHUTTING_DOWN")
        tenant = caller.current().tenant
        logs.bind(request_id=request.request_id)
        sha256 = await asyncio.to_thread(request_hash, request)
        if names_something(request):
            known = await self._store.find(
                tenant, request_id=request.request_id, audience_id=request.audience_id, request_sha256=sha256
            )
            if known is not None and not request.validate_only:
                return await self._present(known)
        order = await asyncio.to_thread(self._door.check, request)
        if request.validate_only:
            return await self._validate(tenant, order)
        # A client that hangs up must not leave an operation without its seeds.
        accepted = await asyncio.shield(self._accept(tenant, sha256, order))
        return await self._present(accepted)

    async def GetAudience(self, request: audience_pb2.GetAudienceRequest, context: Any) -> audience_pb2.Audience:
        """Its receipt, summed up."""
        audience_id, audience = await self._audiences.open(caller.current().tenant, request.name, field="name")
        return audience_message(audience_id, audience)

    async def ListAudienceMembers(
        self, request: audience_pb2.ListAudienceMembersRequest, context: Any
    ) -> audience_pb2.ListAudienceMembersResponse:
        """A page."""
        audience_id, audience = await self._open(request.audience)
        if request.page_size < 0:
            raise InvalidInput(f"page_size is {request.page_size}; it must be 0 or more", field="page_size")
        start = tokens.decode(request.page_token, listing=_listing(audience_id, audience), field="page_token")
        stop = min(start + min(request.page_size or self._page_size, MAX_PAGE), audience.num_members)
        members = await asyncio.to_thread(audience.members, min(start, stop), stop)
        more = tokens.encode(stop, listing=_listing(audience_id, audience)) if stop < audience.num_members else ""
        return audience_pb2.ListAudienceMembersResponse(
            members=members_page(members), next_page_token=more, total_size=audience.num_members
        )

    async def StreamAudienceMembers(
        self, request: audience_pb2.StreamAudienceMembersRequest, context: Any
    ) -> AsyncIterator[audience_pb2.StreamAudienceMembersResponse]:
        """Column after column; files are read on a thread."""
        audience_id, audience = await self._open(request.audience)
        listing = _listing(audience_id, audience)
        start = max(request.start_rank, 1) - 1
        if request.WhichOneof("from") == "resume_token":
            start = tokens.decode(request.resume_token, listing=listing, field="resume_token")
        elif request.start_rank < 0:
            raise InvalidInput(f"start_rank is {request.start_rank}; it must be 0 or more", field="start_rank")
        batches = pieces(audience, start)
        while (batch := await asyncio.to_thread(next, batches, None)) is not None:
            first = batch["rank"][0].as_py()
            yield audience_pb2.StreamAudienceMembersResponse(
                start_rank=first,
                user_ids=user_ids_message(batch["user_id"]),
                scores=batch["score"].to_pylist(),
                resume_token=tokens.encode(first - 1 + batch.num_rows, listing=listing),
                total_size=audience.num_members,
            )

    async def _open(self, name: str) -> tuple[str, Audience]:
        return await self._audiences.open(caller.current().tenant, name, field="audience")

    async def _validate(self, tenant: str, order: Order) -> operations_pb2.Operation:
        match = await asyncio.to_thread(self._door.match, order.seeds)
        exclusions = await asyncio.to_thread(self._door.match, order.exclusions)
        load = await self._store.load(tenant)
        return validation_message(
            match,
            exclusions,
            k=order.k,
            pool_users=self._pool.num_users,
            min_seeds=self._min_seeds,
            wait_seconds=load.wait_seconds(self._capacity),
            run_seconds=load.run_seconds,
        )

    async def _accept(self, tenant: str, sha256: str, order: Order) -> Operation:
        operation_id = uuid.uuid4().hex
        folder = self._jobs / operation_id
        await asyncio.to_thread(_write_people, folder, order)
        job = ExpansionJob(
            job_id=operation_id,
            campaign=order.campaign,
            features=order.features,
            seeds=folder / "seeds.parquet",
            k=order.k,
            include_seeds=order.include_seeds,
            random_seed=order.random_seed,
            filter=order.filter,
            exclusions=folder / "exclusions.parquet" if len(order.exclusions) else None,
            pool=self._pool.path,
            output=self._audiences.folder / operation_id,
            cancel_flag=folder / "cancel",
            traceparent=observation.traceparent(),
        )
        operation = Operation(
            id=operation_id,
            tenant=tenant,
            request_id=order.request_id or None,
            request_sha256=sha256,
            audience_id=order.audience_id or operation_id,
            priority=order.priority,
            job=job,
            users_total=self._pool.num_users,
            created=time.time(),
        )
        try:
            stored, created = await self._store.create(operation)
        except Unavailable:  # it may be accepted all the same: then it needs its folder, else `expiry` finds that
            raise
        except BaseException:
            await asyncio.to_thread(shutil.rmtree, folder, ignore_errors=True)
            raise
        finally:
            self._dispatcher.wake()
        if created:
            _log.info("operations/%s is accepted", stored.id)
        else:
            await asyncio.to_thread(shutil.rmtree, folder, ignore_errors=True)
        return stored


def _listing(audience_id: str, audience: Audience) -> str:
    return f"{audience_name(audience_id)}\0{audience.receipt.audience_sha256}"


def _write_people(folder: Path, order: Order) -> None:
    with staged_folder(folder) as staged:
        pq.write_table(pa.table({"user_id": order.seeds}), staged / "seeds.parquet")
        if len(order.exclusions):
            pq.write_table(pa.table({"user_id": order.exclusions}), staged / "exclusions.parquet")
