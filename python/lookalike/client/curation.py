"""The part of the client that looks after finished audiences: list, compare, change, delete; and users who opt out.

Knows the protos and how statuses become errors; free of torch.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Literal

import pyarrow as pa

from lookalike.client.connection import Connection
from lookalike.client.requests import UserIds, duration, ids_of, named, timestamp, user_ids_message
from lookalike.errors import InvalidInput, Unavailable
from lookalike.v1 import audience_pb2

OPT_OUTS_A_CALL = 100_000  # what a server takes at once

_Change = audience_pb2.StreamAudienceChangesResponse


@dataclass(frozen=True)
class Changes:
    """Users who left one audience or joined another.

    Attributes:
        kind: "left", with their ranks and scores from before, or "joined".
        members: rank int64, user_id, score float32.
        left, joined, kept: how many there are in all.
    """

    kind: Literal["left", "joined"]
    members: pa.RecordBatch
    left: int
    joined: int
    kept: int


class CurationCalls:
    """Methods of `Client`."""

    connection: Connection

    def audiences(self, filter: str = "") -> Iterator[audience_pb2.Audience]:  # noqa: A002
        """All finished audiences, oldest first; `filter` such as `campaign = "x" AND create_time < "2026-01-01"`."""
        request = audience_pb2.ListAudiencesRequest(filter=filter)
        for page in self.connection.pages(self.connection.audiences.ListAudiences, request):
            yield from page.audiences

    def update_audience(
        self,
        name: str,
        *,
        k: int | None = None,
        expires: datetime | None = None,
        ttl: timedelta | None = None,
        keep: bool = False,
    ) -> audience_pb2.Audience:
        """Change what is given of an audience.

        Args:
            name: audiences/...
            k: its size: up to the members and the reserve that is left.
            expires: when it is to be deleted; or
            ttl: in how long; or
            keep: never, unless the server has a time for all.

        Raises:
            NotFound: no such audience. InvalidInput: nothing is given, or a value is wrong.
            FailedPrecondition: reason RESERVE_EXHAUSTED: it has not kept so many users.
            PermissionDenied: it would expire sooner, which wants the scope `delete`.
        """
        if sum((expires is not None, ttl is not None, keep)) > 1:
            raise InvalidInput("give one of expires, ttl and keep", field="expires")
        request = audience_pb2.UpdateAudienceRequest(ttl=duration(ttl) if ttl is not None else None)
        request.audience.name = name
        if k is not None:
            named("k", lambda: setattr(request.audience, "k_requested", k))
            request.update_mask.paths.append("k_requested")
        if expires is not None:
            request.audience.expire_time.CopyFrom(timestamp(expires))
        if keep or expires is not None:
            request.update_mask.paths.append("expire_time")
        return self.connection.retry(self.connection.audiences.UpdateAudience, request)

    def delete_audience(self, name: str, *, allow_missing: bool = False) -> None:
        """Remove an audience and its files; its operation remembers that it was there.

        Raises:
            NotFound: no such audience, unless `allow_missing`.
        """
        request = audience_pb2.DeleteAudienceRequest(name=name, allow_missing=allow_missing)
        try:
            self.connection.call(self.connection.audiences.DeleteAudience, request)
        except Unavailable:  # it may be gone by now
            request.allow_missing = True
            self.connection.retry(self.connection.audiences.DeleteAudience, request)

    def compare(self, names: Sequence[str]) -> audience_pb2.CompareAudiencesResponse:
        """How far 2 to 10 audiences overlap, two by two.

        Raises:
            NotFound: no such audience. InvalidInput: another number of them, or their ids are of different types.
        """
        return self.connection.retry(
            self.connection.audiences.CompareAudiences, audience_pb2.CompareAudiencesRequest(audiences=names)
        )

    def changes(self, before: str, after: str) -> Iterator[Changes]:
        """Who left between two audiences, then who joined, each in order of rank; nothing where they are the same.

        A stream that breaks is taken up where it broke.

        Raises:
            NotFound: no such audience. FailedPrecondition: reason PRIVACY_FLOOR: there are too few to be told of; or
                AUDIENCE_CHANGED: one has changed while the stream was broken.
        """
        request = audience_pb2.StreamAudienceChangesRequest(before=before, after=after)
        for message in self.connection.resumed(self.connection.audiences.StreamAudienceChanges, request):
            if message.change:
                yield _changes(message)

    def opt_out(self, users: UserIds, *, all_tenants: bool = False) -> audience_pb2.OptOutUsersResponse:
        """Leave users out of every audience, from now on; safe to repeat.

        When this returns nobody is given them any more. `pending_audiences` of the answer are still to be rewritten: to
        repeat the call is to wait for that.

        Args:
            users: ids of the pool's type, also such as it does not have yet.
            all_tenants: for everyone, not for your own tenant alone; wants the scope `admin`.

        Raises:
            InvalidInput: ids of another type, or none. PermissionDenied: a scope is missing.
        """
        values = users.to_pylist() if isinstance(users, (pa.Array, pa.ChunkedArray)) else list(users)
        added, answer = 0, audience_pb2.OptOutUsersResponse()
        for start in range(0, max(len(values), 1), OPT_OUTS_A_CALL):
            request = audience_pb2.OptOutUsersRequest(all_tenants=all_tenants)
            some = values[start : start + OPT_OUTS_A_CALL]
            request.user_ids.CopyFrom(named("users", lambda some=some: user_ids_message(some)))  # type: ignore[misc]
            answer = self.connection.retry(self.connection.audiences.OptOutUsers, request)
            added += answer.added
        answer.added = added
        return answer


def _changes(message: audience_pb2.StreamAudienceChangesResponse) -> Changes:
    columns = {
        "rank": pa.array(message.ranks, pa.int64()),
        "user_id": ids_of(message.user_ids),
        "score": pa.array(message.scores, pa.float32()),
    }
    kind: Literal["left", "joined"] = "left" if message.change == _Change.CHANGE_LEFT else "joined"
    return Changes(kind, pa.RecordBatch.from_pydict(columns), message.left, message.joined, message.kept)
