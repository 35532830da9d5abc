"""The client of the front service: order expansions, follow them, read audiences as Arrow.

    with Client("127.0.0.1:8500") as client:
        expansion = client.expand(campaign="spring", seeds=[17, 42, 99], k=10_000)
        for step in expansion.progress():
            print(step.stage, step.users_scored, step.users_total)
        audience = expansion.result()
        for batch in client.members(audience.name):
            ...

A server on another machine wants TLS and a token: `Client(address, token_file=..., ca_file=...)`.

Knows the protos and how statuses become errors; free of torch. Every call has a time-out; every failure is a
LookalikeError with `reason` and, where an input is at fault, `field`.
"""

from __future__ import annotations

import time
import uuid
from collections.abc import Callable, Iterator, Mapping
from datetime import datetime, timedelta
from functools import partial
from pathlib import Path
from types import TracebackType
from typing import Any, Self, TypeVar

import grpc
import pyarrow as pa
from google.longrunning import operations_pb2, operations_pb2_grpc

from lookalike.channel import open_channel
from lookalike.client_curation import CurationCalls, UserIds, duration, named, timestamp, user_ids_message
from lookalike.client_scoring import Scores, score_request, scores_of
from lookalike.client_tracing import traced
from lookalike.errors import InvalidInput, Unavailable
from lookalike.schema import FeatureValue
from lookalike.service.features import feature_message
from lookalike.service.members import batch_of
from lookalike.service.status import from_rpc_error, from_status
from lookalike.v1 import audience_pb2, audience_pb2_grpc, scoring_pb2_grpc

_T = TypeVar("_T")

# A lost operation costs nothing to ask for again, so a client outlasts a restart of the server of about this long.
RETRY_SECONDS = 30.0
RETRY_DELAY = 0.5
WAIT_SECONDS = 20.0  # of one WaitOperation; a longer wait is several

_Metadata = audience_pb2.ExpandAudienceMetadata


class Client(CurationCalls):
    """A connection to the front service; one may be shared by threads. Close it, or use `with`."""

    def __init__(
        self,
        address: str,
        *,
        timeout: float = 30.0,
        token_file: Path | None = None,
        ca_file: Path | None = None,
        certificate_file: Path | None = None,
        key_file: Path | None = None,
    ) -> None:
        """Connect when first used. `timeout`: seconds of one call; a whole stream of members has none.

        The files are `open_channel`'s; without a token the server must be on a loopback address.

        Raises:
            InvalidInput, NotFound: as `open_channel`.
        """
        self._timeout = timeout
        self._channel = traced(
            open_channel(
                address, token_file=token_file, ca_file=ca_file, certificate_file=certificate_file, key_file=key_file
            )
        )
        self._audiences = audience_pb2_grpc.AudienceServiceStub(self._channel)
        self._scoring = scoring_pb2_grpc.ScoringServiceStub(self._channel)
        self._operations: Any = operations_pb2_grpc.OperationsStub(self._channel)

    def expand(
        self,
        *,
        campaign: str,
        seeds: UserIds | None = None,
        seeds_path: str = "",
        k: int | None = None,
        pool_share: float | None = None,
        features: Mapping[str, FeatureValue] | None = None,
        include_seeds: bool = False,
        filter: str = "",  # noqa: A002
        exclude: UserIds = (),
        exclude_path: str = "",
        random_seed: int = 0,
        request_id: str = "",
        audience_id: str = "",
        priority: str = "NORMAL",
        reserve: int | None = None,
        expires: datetime | None = None,
        ttl: timedelta | None = None,
    ) -> Expansion:
        """Order an expansion; returns as soon as it is accepted.

        Args:
            campaign: a name for the receipt.
            seeds: user ids of the pool's type; or
            seeds_path: a Parquet file with a column `user_id`, relative to the server's seeds folder.
            k: users wanted; or
            pool_share: the same as a share of the pool.
            features: campaign features by name; left-out ones are missing.
            include_seeds: let seeds into the audience.
            filter: who is eligible, such as `country in ('DE', 'AT') and age >= 3`.
            exclude: user ids to leave out; or
            exclude_path: a file of them, as `seeds_path`.
            random_seed: the same request with the same seed gives the same audience.
            request_id: the same id never orders twice; a new one by default, so that this call may be repeated safely.
            audience_id: the audience will be `audiences/{audience_id}`; the server chooses by default.
            priority: LOW, NORMAL or HIGH, among your own operations.
            reserve: users to keep beside the audience, for those who opt out; the server decides by default.
            expires: when the audience is to be deleted; or
            ttl: how long after it is finished.

        Raises:
            InvalidInput: the request is wrong. AlreadyExists: `request_id` or `audience_id` was used with other
                content.
            QuotaExceeded: too many are queued, or were ordered today; `retry_seconds` says when to come again.
            Unavailable: no server there.
        """
        request = _request(campaign, seeds, seeds_path, k, pool_share, features, include_seeds, random_seed)
        _restrict(request, filter, exclude, exclude_path)
        request.request_id = request_id or str(uuid.uuid4())
        request.audience_id = audience_id
        _keep(request, priority, reserve, expires, ttl)
        return Expansion(self, self._retry(self._audiences.ExpandAudience, request).name)

    def refresh(
        self,
        name: str,
        *,
        churn_budget: float | None = None,
        seeds: UserIds | None = None,
        seeds_path: str = "",
        k: int | None = None,
        request_id: str = "",
        audience_id: str = "",
        priority: str = "NORMAL",
        reserve: int | None = None,
        expires: datetime | None = None,
        ttl: timedelta | None = None,
    ) -> Expansion:
        """Make a new audience of what another was made of, with the pool and the model the server has now.

        Args:
            name: of the other, audiences/...
            churn_budget: at most this share of the members, 0 to 1, may be new; None: any.
            seeds: other ones than then; or
            seeds_path: as of `expand`.
            k: another size than then.
            request_id, audience_id, priority, reserve, expires, ttl: as of `expand`.

        Raises:
            NotFound: no such audience. FailedPrecondition: the pool has ids of another type now. As `expand`.
        """
        if seeds is not None and seeds_path:
            raise InvalidInput("give either seeds or seeds_path", field="seeds")
        request = audience_pb2.RefreshAudienceRequest(name=name, audience_id=audience_id)
        request.request_id = request_id or str(uuid.uuid4())
        if churn_budget is not None:
            named("churn_budget", lambda: setattr(request, "churn_budget", churn_budget))
        if seeds is not None:
            request.seed_ids.CopyFrom(named("seeds", lambda: user_ids_message(seeds)))
        elif seeds_path:
            request.seeds_path = seeds_path
        if k is not None:
            named("k", lambda: setattr(request, "k", k))
        _keep(request, priority, reserve, expires, ttl)
        return Expansion(self, self._retry(self._audiences.RefreshAudience, request).name)

    def validate(
        self,
        *,
        campaign: str,
        seeds: UserIds | None = None,
        seeds_path: str = "",
        k: int | None = None,
        pool_share: float | None = None,
        features: Mapping[str, FeatureValue] | None = None,
        filter: str = "",  # noqa: A002
        exclude: UserIds = (),
        exclude_path: str = "",
        audience_id: str = "",
    ) -> audience_pb2.Validation:
        """Check an order without placing it: how many seeds and exclusions the pool knows, whether the seeds suffice,
        the size in users, and about how long it would wait and run.

        Raises:
            As `expand`.
        """
        request = _request(campaign, seeds, seeds_path, k, pool_share, features, include_seeds=False, random_seed=0)
        _restrict(request, filter, exclude, exclude_path)
        request.validate_only = True
        request.audience_id = audience_id
        operation = self._retry(self._audiences.ExpandAudience, request)
        return _response(operation).validation

    def operation(self, name: str) -> Expansion:
        """The expansion of an operation's name, from this client or another; asks the server nothing yet."""
        return Expansion(self, name)

    def operations(self, filter: str = "") -> Iterator[Expansion]:  # noqa: A002
        """All operations the server remembers, oldest first; `filter` such as `done = false AND campaign = "x"`."""
        token = ""
        while True:
            request = operations_pb2.ListOperationsRequest(name="operations", filter=filter, page_token=token)
            page = self._retry(self._operations.ListOperations, request)
            yield from (Expansion(self, operation.name) for operation in page.operations)
            token = page.next_page_token
            if not token:
                return

    def audience(self, name: str) -> audience_pb2.Audience:
        """What an audience (`audiences/...`) is and how it came about.

        Raises:
            NotFound: no such audience, or not finished.
        """
        return self._retry(self._audiences.GetAudience, audience_pb2.GetAudienceRequest(name=name))

    def first_members(self, name: str, count: int) -> list[audience_pb2.AudienceMember]:
        """The `count` best of an audience, or all when it has fewer.

        Raises:
            NotFound: no such audience, or not finished.
            FailedPrecondition: reason AUDIENCE_CHANGED: it was changed between two pages.
        """
        members: list[audience_pb2.AudienceMember] = []
        token = ""
        while len(members) < count:
            request = audience_pb2.ListAudienceMembersRequest(
                audience=name, page_size=min(count - len(members), 10_000), page_token=token
            )
            page = self._retry(self._audiences.ListAudienceMembers, request)
            members.extend(page.members)
            token = page.next_page_token
            if not token:
                break
        return members

    def members(self, name: str, *, start_rank: int = 1) -> Iterator[pa.RecordBatch]:
        """All members from `start_rank` on, in rank order: rank int64, user_id, score float32.

        A stream that breaks is taken up where it broke. No more than some batches are in memory at a time.

        Raises:
            NotFound: no such audience, or not finished. Unavailable: the server stays away. DataCorrupted: what came
                is no batch of members.
            FailedPrecondition: reason AUDIENCE_CHANGED: it was changed before a broken stream could be taken up.
        """
        request = audience_pb2.StreamAudienceMembersRequest(
            audience=name, start_rank=start_rank, encoding=audience_pb2.MEMBER_ENCODING_PACKED
        )
        give_up = time.monotonic() + RETRY_SECONDS
        while True:
            try:
                for message in self._audiences.StreamAudienceMembers(request):
                    yield batch_of(message)
                    request.resume_token = message.resume_token
                    give_up = time.monotonic() + RETRY_SECONDS
                return
            except grpc.RpcError as raised:
                error = from_rpc_error(raised)
                if not isinstance(error, Unavailable) or time.monotonic() >= give_up:
                    raise error from raised
                time.sleep(RETRY_DELAY)

    def score(self, audience: str, users: UserIds, *, with_ranks: bool = False) -> Scores:
        """How much users are like an audience's seeds, by the model that made it; at most 10,000, of the pool's ids.

        Args:
            with_ranks: also the rank each would have, and who is a member.

        Raises:
            NotFound: no such audience. InvalidInput: ids of another type. FailedPrecondition: the service scores nobody
                in real time, or the audience was made from a pool with another schema.
            ResourceExhausted: too many requests wait. Unavailable: no server there.
        """
        request = score_request(audience, named("users", lambda: user_ids_message(users)), with_ranks)
        return scores_of(request, self._retry(self._scoring.ScoreUsers, request))

    def close(self) -> None:
        self._channel.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()

    def _call(self, method: Callable[..., _T], request: object, *, more_seconds: float = 0.0) -> _T:
        try:
            return method(request, timeout=self._timeout + more_seconds)
        except grpc.RpcError as error:
            raise from_rpc_error(error) from error

    def _retry(self, method: Callable[..., _T], request: object) -> _T:
        """Calls that may be repeated, while the server is away; it may just be restarting."""
        give_up = time.monotonic() + self._timeout
        while True:
            try:
                return self._call(method, request)
            except Unavailable:
                if time.monotonic() + RETRY_DELAY >= give_up:
                    raise
                time.sleep(RETRY_DELAY)


class Expansion:
    """An operation on the server. It goes on whatever becomes of this object."""

    def __init__(self, client: Client, name: str) -> None:
        self._client = client
        self.name = name

    def metadata(self) -> audience_pb2.ExpandAudienceMetadata:
        """State, stage, users scored and total, times, as of now.

        Raises:
            NotFound: the server does not remember it.
        """
        return _metadata(self._get())

    def done(self) -> bool:
        """Whether it has ended, well or not.

        Raises:
            NotFound: the server does not remember it.
        """
        done: bool = self._get().done
        return done

    def progress(self, *, interval: float = 0.5) -> Iterator[audience_pb2.ExpandAudienceMetadata]:
        """How far it is, every `interval` seconds and once more when it has ended; `result` then tells how.

        Raises:
            NotFound: the server does not remember it. Unavailable: the server stays away.
        """
        operation = self._get()
        while not operation.done:
            yield _metadata(operation)
            operation = self._wait(interval)
        yield _metadata(operation)

    def result(self, timeout: float | None = None) -> audience_pb2.Audience:
        """Wait for the audience, as long as it takes or for `timeout` seconds.

        Raises:
            LookalikeError: the operation failed, with this error; Cancelled when it was cancelled.
            Unavailable: reason WAIT_TIMEOUT: it has not ended within `timeout`, and goes on.
        """
        deadline = None if timeout is None else time.monotonic() + timeout
        while True:
            left = WAIT_SECONDS if deadline is None else max(0.0, min(WAIT_SECONDS, deadline - time.monotonic()))
            operation = self._wait(left)
            if operation.done:
                return _response(operation).audience
            if deadline is not None and time.monotonic() >= deadline:
                raise Unavailable(f"{self.name} has not ended within {timeout:g} s; it goes on", reason="WAIT_TIMEOUT")

    def cancel(self) -> None:
        """Ask it to stop. It ends soon after as Cancelled, unless it was faster.

        Raises:
            NotFound: the server does not remember it.
        """
        request = operations_pb2.CancelOperationRequest(name=self.name)
        self._client._retry(self._client._operations.CancelOperation, request)

    def delete(self) -> None:
        """Make the server forget it; its audience stays.

        Raises:
            NotFound: the server does not remember it. FailedPrecondition: it has not ended.
        """
        request = operations_pb2.DeleteOperationRequest(name=self.name)
        self._client._call(self._client._operations.DeleteOperation, request)

    def _get(self) -> Any:
        request = operations_pb2.GetOperationRequest(name=self.name)
        return self._client._retry(self._client._operations.GetOperation, request)

    def _wait(self, seconds: float) -> Any:
        request = operations_pb2.WaitOperationRequest(name=self.name)
        request.timeout.FromMilliseconds(round(seconds * 1000))
        give_up = time.monotonic() + RETRY_SECONDS
        while True:
            try:
                return self._client._call(self._client._operations.WaitOperation, request, more_seconds=seconds)
            except Unavailable:
                if time.monotonic() >= give_up:
                    raise
                time.sleep(RETRY_DELAY)


def _request(
    campaign: str,
    seeds: UserIds | None,
    seeds_path: str,
    k: int | None,
    pool_share: float | None,
    features: Mapping[str, FeatureValue] | None,
    include_seeds: bool,
    random_seed: int,
) -> audience_pb2.ExpandAudienceRequest:
    if (seeds is None) == (not seeds_path):
        raise InvalidInput("give either seeds or seeds_path", field="seeds")
    if (k is None) == (pool_share is None):
        raise InvalidInput("give either k or pool_share", field="k")
    request = named("random_seed", lambda: audience_pb2.ExpandAudienceRequest(random_seed=random_seed))
    request.campaign.name = campaign
    request.include_seeds = include_seeds
    for name, value in (features or {}).items():
        request.campaign.features[name].CopyFrom(named(f"features.{name}", partial(feature_message, value)))
    if k is not None:
        named("k", lambda: setattr(request, "k", k))
    elif pool_share is not None:
        request.pool_share = pool_share
    if seeds is None:
        request.seeds_path = seeds_path
    else:
        request.seed_ids.CopyFrom(named("seeds", lambda: user_ids_message(seeds)))
    return request


def _restrict(
    request: audience_pb2.ExpandAudienceRequest,
    filter: str,  # noqa: A002
    exclude: UserIds,
    exclude_path: str,
) -> None:
    if len(exclude) and exclude_path:
        raise InvalidInput("give either exclude or exclude_path", field="exclude")
    request.filter = filter
    if exclude_path:
        request.exclude_path = exclude_path
    elif len(exclude):
        request.exclude_ids.CopyFrom(named("exclude", lambda: user_ids_message(exclude)))


def _keep(
    request: audience_pb2.ExpandAudienceRequest | audience_pb2.RefreshAudienceRequest,
    priority: str,
    reserve: int | None,
    expires: datetime | None,
    ttl: timedelta | None,
) -> None:
    if expires is not None and ttl is not None:
        raise InvalidInput("give either expires or ttl", field="expires")
    request.priority = named("priority", lambda: audience_pb2.Priority.Value(f"PRIORITY_{priority.upper()}"))
    if reserve is not None:
        named("reserve", lambda: setattr(request, "reserve", reserve))
    if expires is not None:
        request.expire_time.CopyFrom(timestamp(expires))
    elif ttl is not None:
        request.ttl.CopyFrom(duration(ttl))


def _metadata(operation: Any) -> audience_pb2.ExpandAudienceMetadata:
    metadata = _Metadata()
    operation.metadata.Unpack(metadata)
    return metadata


def _response(operation: Any) -> audience_pb2.ExpandAudienceResponse:
    if operation.HasField("error"):
        raise from_status(operation.error)
    response = audience_pb2.ExpandAudienceResponse()
    operation.response.Unpack(response)
    return response
