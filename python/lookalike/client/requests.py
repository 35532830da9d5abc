"""The client's arguments as messages; what is wrong with one names it."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from datetime import datetime, timedelta
from functools import partial
from typing import TypeAlias, TypeVar

import pyarrow as pa
from google.protobuf.duration_pb2 import Duration
from google.protobuf.timestamp_pb2 import Timestamp

from lookalike.errors import InvalidInput
from lookalike.schema import FeatureValue
from lookalike.service.features import feature_message
from lookalike.v1 import audience_pb2

_T = TypeVar("_T")
UserIds: TypeAlias = pa.Array | pa.ChunkedArray | Sequence[int | str]


def expand_request(
    campaign: str,
    seeds: UserIds | None,
    seeds_path: str,
    k: int | None,
    pool_share: float | None,
    features: Mapping[str, FeatureValue] | None,
    include_seeds: bool = False,
    random_seed: int = 0,
) -> audience_pb2.ExpandAudienceRequest:
    """Of `Client.expand`.

    Raises:
        InvalidInput: arguments that do not fit together, or into the message.
    """
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


def restrict(
    request: audience_pb2.ExpandAudienceRequest,
    filter: str,  # noqa: A002
    exclude: UserIds,
    exclude_path: str,
) -> None:
    """Write into the order who is eligible.

    Raises:
        InvalidInput: as `expand_request`.
    """
    if len(exclude) and exclude_path:
        raise InvalidInput("give either exclude or exclude_path", field="exclude")
    request.filter = filter
    if exclude_path:
        request.exclude_path = exclude_path
    elif len(exclude):
        request.exclude_ids.CopyFrom(named("exclude", lambda: user_ids_message(exclude)))


def keep(
    request: audience_pb2.ExpandAudienceRequest | audience_pb2.RefreshAudienceRequest,
    priority: str,
    reserve: int | None,
    expires: datetime | None,
    ttl: timedelta | None,
) -> None:
    """Write into the order what becomes of the audience, and when its turn is.

    Raises:
        InvalidInput: as `expand_request`.
    """
    if expires is not None and ttl is not None:
        raise InvalidInput("give either expires or ttl", field="expires")
    request.priority = named("priority", lambda: audience_pb2.Priority.Value(f"PRIORITY_{priority.upper()}"))
    if reserve is not None:
        named("reserve", lambda: setattr(request, "reserve", reserve))
    if expires is not None:
        request.expire_time.CopyFrom(timestamp(expires))
    elif ttl is not None:
        request.ttl.CopyFrom(duration(ttl))


def user_ids_message(users: UserIds) -> audience_pb2.UserIds:
    """Ids as a message.

    Raises:
        TypeError, ValueError: they are neither integers nor strings.
    """
    values = users.to_pylist() if isinstance(users, (pa.Array, pa.ChunkedArray)) else list(users)
    if values and isinstance(values[0], str):
        return audience_pb2.UserIds(strings=audience_pb2.StringIds(values=values))
    return audience_pb2.UserIds(integers=audience_pb2.IntegerIds(values=values))


def ids_of(message: audience_pb2.UserIds) -> pa.Array:
    """Inverse of `user_ids_message`: int64 or large_string."""
    if message.WhichOneof("kind") == "strings":
        return pa.array(message.strings.values, pa.large_string())
    return pa.array(message.integers.values, pa.int64())


def timestamp(moment: datetime) -> Timestamp:
    """A time as a message; one without a zone is the machine's.

    Raises:
        InvalidInput: before the year 1 or so.
    """
    message = Timestamp()
    named("expires", lambda: message.FromDatetime(moment.astimezone()))
    return message


def duration(length: timedelta) -> Duration:
    """A length of time as a message."""
    message = Duration()
    message.FromTimedelta(length)
    return message


def named(field: str, make: Callable[[], _T]) -> _T:
    """Turns protobuf's complaint about a value into ours, which names the field."""
    try:
        return make()
    except (TypeError, ValueError, OverflowError) as error:
        raise InvalidInput(f"{field}: {error}", field=field) from error
