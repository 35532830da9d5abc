"""What a client can ask of the front service."""

from __future__ import annotations

import uuid
from collections.abc import Iterator, Mapping
from datetime import datetime, timedelta
from pathlib import Path
from types import TracebackType
from typing import Self

import pyarrow as pa
from google.longrunning import operations_pb2

from lookalike.channel import open_channel
from lookalike.client.connection import Connection
from lookalike.client.curation import CurationCalls
from lookalike.client.expansion import Expansion, response_of
from lookalike.client.requests import UserIds, expand_request, keep, named, restrict, user_ids_message
from lookalike.client.scoring import Scores, scores_of
from lookalike.errors import InvalidInput
from lookalike.schema import FeatureValue
from lookalike.service.members import batch_of
from lookalike.v1 import audience_pb2, scoring_pb2


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
        channel = open_channel(
            address, token_file=token_file, ca_file=ca_file, certificate_file=certificate_file, key_file=key_file
        )
        self.connection = Connection(channel, timeout)

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
        request = expand_request(campaign, seeds, seeds_path, k, pool_share, features, include_seeds, random_seed)
        restrict(request, filter, exclude, exclude_path)
        request.request_id = request_id or str(uuid.uuid4())
        request.audience_id = audience_id
        keep(request, priority, reserve, expires, ttl)
        operation = self.connection.retry(self.connection.audiences.ExpandAudience, request)
        return Expansion(self.connection, operation.name)

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
        keep(request, priority, reserve, expires, ttl)
        operation = self.connection.retry(self.connection.audiences.RefreshAudience, request)
        return Expansion(self.connection, operation.name)

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
        request = expand_request(campaign, seeds, seeds_path, k, pool_share, features)
        restrict(request, filter, exclude, exclude_path)
        request.validate_only = True
        request.audience_id = audience_id
        operation = self.connection.retry(self.connection.audiences.ExpandAudience, request)
        return response_of(operation).validation

    def operation(self, name: str) -> Expansion:
        """The expansion of an operation's name, from this client or another; asks the server nothing yet."""
        return Expansion(self.connection, name)

    def operations(self, filter: str = "") -> Iterator[Expansion]:  # noqa: A002
        """All operations the server remembers, oldest first; `filter` such as `done = false AND campaign = "x"`."""
        request = operations_pb2.ListOperationsRequest(name="operations", filter=filter)
        for page in self.connection.pages(self.connection.operations.ListOperations, request):
            yield from (Expansion(self.connection, operation.name) for operation in page.operations)

    def audience(self, name: str) -> audience_pb2.Audience:
        """What an audience (`audiences/...`) is and how it came about.

        Raises:
            NotFound: no such audience, or not finished.
        """
        return self.connection.retry(self.connection.audiences.GetAudience, audience_pb2.GetAudienceRequest(name=name))

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
            page = self.connection.retry(self.connection.audiences.ListAudienceMembers, request)
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
        for message in self.connection.resumed(self.connection.audiences.StreamAudienceMembers, request):
            yield batch_of(message)

    def score(self, audience: str, users: UserIds, *, with_ranks: bool = False) -> Scores:
        """How much users are like an audience's seeds, by the model that made it; at most 10,000, of the pool's ids.

        Args:
            with_ranks: also the rank each would have, and who is a member.

        Raises:
            NotFound: no such audience. InvalidInput: ids of another type. FailedPrecondition: the service scores nobody
                in real time, or the audience was made from a pool with another schema.
            ResourceExhausted: too many requests wait. Unavailable: no server there.
        """
        request = scoring_pb2.ScoreUsersRequest(audience=audience, with_ranks=with_ranks)
        request.users.CopyFrom(named("users", lambda: user_ids_message(users)))
        return scores_of(request, self.connection.retry(self.connection.scoring.ScoreUsers, request))

    def close(self) -> None:
        self.connection.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()
