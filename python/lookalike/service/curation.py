"""AudienceService's calls on finished audiences: list, compare, change, delete; and users who opt out.

Knows the audience store, the records and the opt-outs; orders nothing.
"""
# Names and signatures of the methods are gRPC's.
# ruff: noqa: ARG002, N802

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import AsyncIterator, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from itertools import combinations
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
from google.protobuf.empty_pb2 import Empty

from lookalike.errors import FailedPrecondition, InvalidInput, NotFound, PermissionDenied, Unavailable, quoted
from lookalike.pool.snapshot import Pool
from lookalike.retrieval.audience import Audience
from lookalike.retrieval.overlap import missing, overlaps
from lookalike.retrieval.revise import resize
from lookalike.service import caller, tokens
from lookalike.service.audience_records import EVERYONE, AudienceRecord, AudienceRecords
from lookalike.service.audiences import AudienceStore, named
from lookalike.service.caller import Scope
from lookalike.service.convert import audience_message, bare_audience, withheld
from lookalike.service.data_dir import DataDir
from lookalike.service.door import read_expiry, read_ttl, read_user_ids
from lookalike.service.filters import parse_audience_filter
from lookalike.service.members import user_ids_message
from lookalike.service.opt_out_keeper import OptOutKeeper
from lookalike.service.opt_outs import OptOutStore
from lookalike.service.places import Between
from lookalike.v1 import audience_pb2, audience_pb2_grpc

_log = logging.getLogger(__name__)

DEFAULT_PAGE = 50
MAX_PAGE = 1000
MAX_COMPARED = 10
MAX_OPT_OUTS = 100_000
# Of a streamed message: 200 KB with integers as ids; with strings of 400 bytes still what a client takes by default.
USERS_A_MESSAGE = 10_000
COMPARERS = 2  # calls that compare whole audiences at once: each takes a core, and 8 bytes a member
SETTLE_SECONDS = 60.0  # of a call without a deadline

_Change = audience_pb2.StreamAudienceChangesResponse
_UPDATABLE = ("expire_time", "k_requested")


@dataclass(frozen=True)
class Curators:
    """What the calls work with."""

    audiences: AudienceStore
    records: AudienceRecords
    opt_outs: OptOutStore
    keeper: OptOutKeeper
    folder: DataDir
    pool: Pool
    privacy_floor: int


class CurationServicer(audience_pb2_grpc.AudienceServiceServicer):
    """See audience.proto."""

    def __init__(self, curators: Curators) -> None:
        self._curators = curators
        # Apart from the threads of all other calls and of the queue, which must not wait for minutes.
        self._comparers = ThreadPoolExecutor(COMPARERS, thread_name_prefix="compare")

    async def ListAudiences(
        self, request: audience_pb2.ListAudiencesRequest, context: Any
    ) -> audience_pb2.ListAudiencesResponse:
        """A page, oldest first."""
        if request.page_size < 0:
            raise InvalidInput(f"page_size is {request.page_size}; it must be 0 or more", field="page_size")
        tenant, where = caller.current().tenant, parse_audience_filter(request.filter)
        listing = f"audiences\0{tenant}\0{request.filter}"
        after = tokens.decode_place(request.page_token, listing=listing, field="page_token")
        size = min(request.page_size or DEFAULT_PAGE, MAX_PAGE)
        found = await self._curators.records.list(tenant, after=after, limit=size + 1, where=where)
        shown = found[:size]
        more = tokens.encode_place(shown[-1].published, shown[-1].id, listing=listing) if len(found) > size else ""
        messages = [await self._summary(record) for record in shown]
        return audience_pb2.ListAudiencesResponse(audiences=messages, next_page_token=more)

    async def UpdateAudience(self, request: audience_pb2.UpdateAudienceRequest, context: Any) -> audience_pb2.Audience:
        """Size first, which may be refused; then the time."""
        tenant, wanted = caller.current().tenant, request.audience
        fields = _fields(request)
        opened = await self._curators.audiences.opened(tenant, wanted.name, field="audience.name")
        record = opened.record
        expires = None
        if "expire_time" in fields:
            expires = _new_expiry(request)
            _require_delete(record, expires)
        if "k_requested" in fields:
            if wanted.k_requested < 1:
                raise InvalidInput(
                    f"k_requested is {wanted.k_requested}; it must be 1 or more", field="audience.k_requested"
                )
            folder = self._curators.audiences.folder / record.id
            await asyncio.shield(asyncio.to_thread(resize, folder, wanted.k_requested))
        if "expire_time" in fields:
            await self._curators.records.set_expiry(tenant, record.audience_id, expires)
        opened = await self._curators.audiences.opened(tenant, wanted.name, field="audience.name")
        return self._message(opened.record, opened.audience)

    async def DeleteAudience(self, request: audience_pb2.DeleteAudienceRequest, context: Any) -> Empty:
        """Seen by nobody from the first step on; a killed server's work is gone on with."""
        audience_id = named(request.name, field="name")
        try:
            await asyncio.shield(self._delete(caller.current().tenant, audience_id))
        except NotFound:
            if not request.allow_missing:
                raise
        return Empty()

    async def CompareAudiences(
        self, request: audience_pb2.CompareAudiencesRequest, context: Any
    ) -> audience_pb2.CompareAudiencesResponse:
        """Exact counts; few users are not told of."""
        names = list(request.audiences)
        if not 2 <= len(names) <= MAX_COMPARED:
            raise InvalidInput(f"give 2 to {MAX_COMPARED} audiences, not {len(names)}", field="audiences")
        opened = [await self._open(name, "audiences") for name in names]
        loop = asyncio.get_running_loop()
        counts = await loop.run_in_executor(self._comparers, overlaps, opened, self._curators.folder.path)
        response = audience_pb2.CompareAudiencesResponse(sizes=[one.num_members for one in opened])
        for (first, second), common in zip(combinations(range(len(names)), 2), counts, strict=True):
            sizes = opened[first].num_members, opened[second].num_members
            overlap = response.overlaps.add(first=names[first], second=names[second])
            if not withheld(self._curators.privacy_floor, common, sizes[0] - common, sizes[1] - common):
                overlap.common = common
                overlap.jaccard = _share(common, sum(sizes) - common)
                overlap.share_of_first = _share(common, sizes[0])
                overlap.share_of_second = _share(common, sizes[1])
        return response

    async def StreamAudienceChanges(
        self, request: audience_pb2.StreamAudienceChangesRequest, context: Any
    ) -> AsyncIterator[audience_pb2.StreamAudienceChangesResponse]:
        """Files are read on a thread; flags of all members are in memory, a byte each."""
        before = await self._open(request.before, "before")
        after = await self._open(request.after, "after")
        between = Between(request.before, request.after, (before, after))
        start = between.place(request.resume_token, field="resume_token")
        loop = asyncio.get_running_loop()
        left = await loop.run_in_executor(self._comparers, missing, before, after)
        joined = await loop.run_in_executor(self._comparers, missing, after, before)
        counts = _Change(left=int(left.sum()), joined=int(joined.sum()))
        counts.kept = before.num_members - counts.left
        if withheld(self._curators.privacy_floor, counts.left, counts.joined, counts.kept):
            raise FailedPrecondition(
                f"there are changes of fewer than {self._curators.privacy_floor} users, which this server does not "
                "tell of",
                reason="PRIVACY_FLOOR",
            )
        if not counts.left and not counts.joined and not start:
            counts.resume_token = between.token(before.num_members + after.num_members)
            yield counts
        first = 0  # places go through the audience before, then through the one after
        for change, audience, flags in ((_Change.CHANGE_LEFT, before, left), (_Change.CHANGE_JOINED, after, joined)):
            users = _flagged(audience, flags, max(start - first, 0))
            while (batch := await asyncio.to_thread(next, users, None)) is not None:
                message = _Change(
                    change=change,
                    user_ids=user_ids_message(batch["user_id"]),
                    ranks=batch["rank"].to_numpy(),
                    scores=batch["score"].to_numpy(),
                    resume_token=between.token(first + batch["rank"][-1].as_py()),
                )
                message.MergeFrom(counts)
                yield message
            first += audience.num_members

    async def OptOutUsers(
        self, request: audience_pb2.OptOutUsersRequest, context: Any
    ) -> audience_pb2.OptOutUsersResponse:
        """Noted first, which is when it takes effect; then carried out, while the caller waits."""
        who = caller.current()
        if request.all_tenants and Scope.ADMIN not in who.scopes:
            raise PermissionDenied(f"all_tenants needs a token with the scope '{Scope.ADMIN}'", reason="SCOPE_MISSING")
        users = read_user_ids(self._curators.pool, request.user_ids, "user_ids").unique().to_pylist()
        if not users:
            raise InvalidInput("no users were given: fill user_ids", field="user_ids")
        if len(users) > MAX_OPT_OUTS:
            raise InvalidInput(
                f"user_ids has {len(users):,} users; give at most {MAX_OPT_OUTS:,} at once", field="user_ids"
            )
        if any(isinstance(one, str) and "\0" in one for one in users):
            raise InvalidInput("user_ids holds a null character: leave it out", field="user_ids")
        added = await asyncio.shield(
            self._curators.opt_outs.add(EVERYONE if request.all_tenants else who.tenant, users)
        )
        left = context.time_remaining()
        seconds = SETTLE_SECONDS if left is None else max(0.0, 0.9 * left - 0.5)
        pending = await self._curators.keeper.settle(None if request.all_tenants else who.tenant, seconds)
        return audience_pb2.OptOutUsersResponse(added=added, pending_audiences=pending)

    async def _open(self, name: str, field: str) -> Audience:
        _, audience = await self._curators.audiences.open(caller.current().tenant, name, field=field)
        return audience

    async def _delete(self, tenant: str, audience_id: str) -> None:
        operation_id = await self._curators.records.begin_delete(tenant, audience_id)
        try:
            await asyncio.to_thread(self._curators.folder.remove_audience, operation_id)
        except OSError as error:  # it is tried again now and then
            _log.error("cannot remove the files of audiences/%s: %s", operation_id, error)
            raise Unavailable(
                "the audience is deleted, but the server cannot remove its files yet; its log says why",
                reason="DELETE_PENDING",
            ) from error
        await self._curators.records.forget([operation_id])

    async def _summary(self, record: AudienceRecord) -> audience_pb2.Audience:
        audience = await self._curators.audiences.summed_up(record)
        return bare_audience(record) if audience is None else self._message(record, audience)

    def _message(self, record: AudienceRecord, audience: Audience) -> audience_pb2.Audience:
        return audience_message(record, audience, privacy_floor=self._curators.privacy_floor)


def _fields(request: audience_pb2.UpdateAudienceRequest) -> set[str]:
    """What is to be changed."""
    fields = set(request.update_mask.paths)
    if fields == {"*"}:
        fields = set(_UPDATABLE)
    unknown = fields - set(_UPDATABLE)
    if unknown:
        raise InvalidInput(
            f"update_mask names {quoted(min(unknown))}; there are {' and '.join(_UPDATABLE)}", field="update_mask"
        )
    if not fields:
        fields |= {"expire_time"} if request.audience.HasField("expire_time") else set()
        fields |= {"k_requested"} if request.audience.k_requested else set()
    if request.HasField("ttl"):
        if request.audience.HasField("expire_time"):
            raise InvalidInput("give either ttl or audience.expire_time", field="ttl")
        fields.add("expire_time")
    if not fields:
        raise InvalidInput(
            "nothing is to be changed: give audience.k_requested, audience.expire_time or ttl", field="update_mask"
        )
    return fields


def _new_expiry(request: audience_pb2.UpdateAudienceRequest) -> float | None:
    if request.HasField("ttl"):
        return time.time() + read_ttl(request.ttl)
    if not request.audience.HasField("expire_time"):
        return None
    return read_expiry(request.audience.expire_time, "audience.expire_time")


def _require_delete(record: AudienceRecord, expires: float | None) -> None:
    """To let an audience expire sooner is to delete it, a little later."""
    sooner = expires is not None and (record.expires is None or expires < record.expires)
    if sooner and Scope.DELETE not in caller.current().scopes:
        raise PermissionDenied(
            f"an audience that is to expire sooner needs a token with the scope '{Scope.DELETE}'",
            reason="SCOPE_MISSING",
        )


def _flagged(audience: Audience, flags: npt.NDArray[np.bool_], start: int) -> Iterator[pa.RecordBatch]:
    """The flagged members from rank `start + 1` on, in order of rank, so many at a time as a message takes."""
    for batch in audience.batches(USERS_A_MESSAGE, start):
        some = batch.filter(pa.array(flags[start : start + batch.num_rows]))
        start += batch.num_rows
        if some.num_rows:
            yield some


def _share(part: int, whole: int) -> float:
    return part / whole if whole else 0.0
