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
from collections.abc import AsyncIterator, Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from itertools import islice
from pathlib import Path
from typing import Any

from google.longrunning import operations_pb2

from lookalike import logs
from lookalike.errors import (
    InvalidInput,
    LookalikeError,
    QuotaExceeded,
    ResourceExhausted,
    Unavailable,
)
from lookalike.files import DISK_FULL, is_full
from lookalike.pool.snapshot import Pool
from lookalike.retrieval.audience import Audience
from lookalike.runtime.job import ExpansionJob
from lookalike.service import caller, observation, places, tokens
from lookalike.service.audiences import AudienceStore
from lookalike.service.convert import (
    audience_name,
    members_page,
    validation_message,
)
from lookalike.service.curation import CurationServicer, Curators
from lookalike.service.dispatcher import Dispatcher
from lookalike.service.door import Door, Order, names_something, request_hash
from lookalike.service.members import messages
from lookalike.service.operations import OperationStore
from lookalike.service.operations_service import Present
from lookalike.service.people import EXCLUSIONS_NAME, PREVIOUS_NAME, SEEDS_NAME, People
from lookalike.service.records import Operation
from lookalike.service.refresh import refresh_order
from lookalike.v1 import audience_pb2

_log = logging.getLogger(__name__)

MAX_PAGE = 10_000
# Submissions under way: a second's worth of what one process takes. With a thousand calls waiting gRPC itself begins to
# drop some, as CANCELLED and without a word on when to come again.
MAX_SUBMITTING = 256
SHORT_BYTES = 8192
READERS = 2  # audiences that are decoded at once: each takes a core
AHEAD = 4  # messages: two row groups of integer ids are decoded while those before are sent


class AudienceServicer(CurationServicer):
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
        capacity: Callable[[], int],
        min_seeds: int,
        page_size: int,
        curators: Curators,
    ) -> None:
        """`capacity`: operations that may run at once here; `min_seeds`: an expansion takes, matched in the pool."""
        super().__init__(curators)
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
        # Apart from the threads that check orders, which must not wait for large audiences.
        self._readers = ThreadPoolExecutor(READERS, thread_name_prefix="members")
        self._submitting = 0
        self.accepting = True

    async def ExpandAudience(
        self, request: audience_pb2.ExpandAudienceRequest, context: Any
    ) -> operations_pb2.Operation:
        """Check, store the seeds, accept."""
        if not self.accepting:
            raise Unavailable("the server is shutting down; try again soon", reason="SHUTTING_DOWN")
        if self._submitting >= MAX_SUBMITTING:
            raise QuotaExceeded(
                f"{self._submitting} submissions are under way, the most this server takes at once; try again soon",
                quota="submitting",
                subject="service",
                retry_seconds=1.0,
            )
        self._submitting += 1
        try:
            return await self._expand(request)
        finally:
            self._submitting -= 1

    async def _expand(self, request: audience_pb2.ExpandAudienceRequest) -> operations_pb2.Operation:
        tenant = caller.current().tenant
        logs.bind(request_id=request.request_id)
        if _is_short(request):
            sha256, order, people = self._read(request)
        else:
            sha256, order, people = await asyncio.to_thread(self._read, request)
        # An order that is right is looked up when it is stored.
        if names_something(request) and people is None:
            known = await self._store.find(
                tenant, request_id=request.request_id, audience_id=request.audience_id, request_sha256=sha256
            )
            if known is not None and not request.validate_only:
                return await self._present(known)
        if isinstance(order, LookalikeError):
            raise order
        if people is None:
            return await self._validate(tenant, order)
        # A client that hangs up must not leave an operation without its seeds.
        accepted = await asyncio.shield(self._accept(tenant, sha256, order, people))
        return await self._present(accepted)

    async def GetAudience(self, request: audience_pb2.GetAudienceRequest, context: Any) -> audience_pb2.Audience:
        """Its receipt, summed up."""
        opened = await self._audiences.opened(caller.current().tenant, request.name, field="name")
        return self._message(opened.record, opened.audience)

    async def RefreshAudience(
        self, request: audience_pb2.RefreshAudienceRequest, context: Any
    ) -> operations_pb2.Operation:
        """As ExpandAudience, of what the audience was made of."""
        if not self.accepting:
            raise Unavailable("the server is shutting down; try again soon", reason="SHUTTING_DOWN")
        tenant = caller.current().tenant
        logs.bind(request_id=request.request_id)
        sha256 = request_hash(request)
        if names_something(request) and not request.validate_only:
            known = await self._store.find(
                tenant, request_id=request.request_id, audience_id=request.audience_id, request_sha256=sha256
            )
            if known is not None:
                return await self._present(known)
        audience_id, audience = await self._audiences.open(tenant, request.name, field="name")
        order = await asyncio.to_thread(refresh_order, self._door, self._pool, request, audience_id, audience)
        if request.validate_only:
            return await self._validate(tenant, order)
        people = await asyncio.to_thread(_people, order)
        return await self._present(await asyncio.shield(self._accept(tenant, sha256, order, people)))

    async def ListAudienceMembers(
        self, request: audience_pb2.ListAudienceMembersRequest, context: Any
    ) -> audience_pb2.ListAudienceMembersResponse:
        """A page."""
        audience_id, audience = await self._named(request.audience)
        if request.page_size < 0:
            raise InvalidInput(f"page_size is {request.page_size}; it must be 0 or more", field="page_size")
        start = places.place(request.page_token, audience_name(audience_id), audience, field="page_token")
        stop = min(start + min(request.page_size or self._page_size, MAX_PAGE), audience.num_members)
        members = await asyncio.to_thread(audience.members, min(start, stop), stop)
        listing = places.listing(audience_name(audience_id), audience)
        more = tokens.encode(stop, listing=listing) if stop < audience.num_members else ""
        return audience_pb2.ListAudienceMembersResponse(
            members=members_page(members), next_page_token=more, total_size=audience.num_members
        )

    async def StreamAudienceMembers(
        self, request: audience_pb2.StreamAudienceMembersRequest, context: Any
    ) -> AsyncIterator[audience_pb2.StreamAudienceMembersResponse]:
        """Column after column; files are read on a thread, some messages ahead of the one that is sent."""
        audience_id, audience = await self._named(request.audience)
        listing = places.listing(audience_name(audience_id), audience)
        start = max(request.start_rank, 1) - 1
        if request.WhichOneof("from") == "resume_token":
            start = places.place(request.resume_token, audience_name(audience_id), audience, field="resume_token")
        elif request.start_rank < 0:
            raise InvalidInput(f"start_rank is {request.start_rank}; it must be 0 or more", field="start_rank")
        packed = request.encoding == audience_pb2.MEMBER_ENCODING_PACKED
        made = messages(audience, start, packed=packed, listing=listing)
        loop = asyncio.get_running_loop()
        coming = loop.run_in_executor(self._readers, _some, made)
        try:
            while some := await coming:
                coming = loop.run_in_executor(self._readers, _some, made)
                for message in some:
                    yield message
        finally:
            coming.cancel()  # what a thread is at just now ends unheard, and the file is closed

    async def _named(self, name: str) -> tuple[str, Audience]:
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
            wait_seconds=load.wait_seconds(self._capacity()),
            run_seconds=load.run_seconds,
        )

    def _read(self, request: audience_pb2.ExpandAudienceRequest) -> tuple[str, Order | LookalikeError, People | None]:
        """The request's hash; the order, or what is wrong with it; its people, if they are to be stored."""
        sha256 = request_hash(request)
        try:
            order = self._door.check(request)
        except LookalikeError as wrong:
            return sha256, wrong, None
        return sha256, order, None if request.validate_only else _people(order)

    async def _accept(self, tenant: str, sha256: str, order: Order, people: People) -> Operation:
        operation_id = uuid.uuid4().hex
        folder = self._jobs / operation_id
        if not people.few:
            try:
                await asyncio.to_thread(people.write, folder)
            except OSError as error:
                await _remove(folder, people)
                if is_full(error):
                    raise ResourceExhausted("the server's disk is full; try again later", reason=DISK_FULL) from error
                raise
        job = ExpansionJob(
            job_id=operation_id,
            campaign=order.campaign,
            features=order.features,
            seeds=folder / SEEDS_NAME,
            k=order.k,
            include_seeds=order.include_seeds,
            random_seed=order.random_seed,
            filter=order.filter,
            exclusions=folder / EXCLUSIONS_NAME if len(order.exclusions) else None,
            reserve=order.reserve,
            **_refreshing(folder, order),
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
            audience_ttl=order.ttl,
            audience_expires=order.expires,
        )
        try:
            stored, created = await self._store.create(operation, people if people.few else None)
        except Unavailable:  # it may be accepted all the same: then it needs its folder, else `expiry` finds that
            raise
        except BaseException:
            await _remove(folder, people)
            raise
        finally:
            self._dispatcher.wake()
        if created:
            _log.info("operations/%s is accepted", stored.id)
        else:
            await _remove(folder, people)
        return stored


def _refreshing(folder: Path, order: Order) -> dict[str, Any]:
    """What a job is told of the audience it refreshes."""
    if order.previous is None:
        return {}
    return {
        "previous": folder / PREVIOUS_NAME,
        "previous_name": order.previous.name,
        "previous_sha256": order.previous.audience_sha256,
        "churn_budget": order.previous.budget,
    }


def _is_short(request: audience_pb2.ExpandAudienceRequest) -> bool:
    """Whether it is read sooner than a thread would begin to: about a thousand seeds, no file and no filter."""
    return request.ByteSize() <= SHORT_BYTES and not (request.seeds_path or request.exclude_path or request.filter)


def _some(
    made: Iterator[audience_pb2.StreamAudienceMembersResponse],
) -> list[audience_pb2.StreamAudienceMembersResponse]:
    return list(islice(made, AHEAD))


def _people(order: Order) -> People:
    ids = {SEEDS_NAME: order.seeds}
    if len(order.exclusions):
        ids[EXCLUSIONS_NAME] = order.exclusions
    if order.previous is not None:
        ids[PREVIOUS_NAME] = order.previous.user_ids
    return People.of(ids)


async def _remove(folder: Path, people: People) -> None:
    """The files of an operation that was not accepted after all."""
    if not people.few:
        await asyncio.to_thread(shutil.rmtree, folder, ignore_errors=True)
