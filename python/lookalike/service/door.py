"""Checks an ExpandAudienceRequest at the door and turns it into an order; says all that is wrong with it at once.

Knows the pool (its id type, its users) and the campaign schema; starts nothing.
"""

from __future__ import annotations

import hashlib
import logging
import math
import os
import stat
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from google.protobuf.duration_pb2 import Duration
from google.protobuf.timestamp_pb2 import Timestamp

from lookalike.errors import (
    EmptySeeds,
    FailedPrecondition,
    InvalidInput,
    LookalikeError,
    NotFound,
    SchemaError,
    quoted,
)
from lookalike.pool.filters import Filter
from lookalike.pool.snapshot import Pool
from lookalike.retrieval.receipt import SeedMatch
from lookalike.retrieval.request import Previous
from lookalike.schema import FeatureSchema, FeatureValue, as_ids
from lookalike.service import caller
from lookalike.service.audiences import is_own_id
from lookalike.service.features import feature_value
from lookalike.service.records import Priority
from lookalike.service.status import InvalidRequest
from lookalike.v1 import audience_pb2, campaign_pb2

_log = logging.getLogger(__name__)

MAX_K = 2**32 - 1  # rows of a pool are uint32
MAX_NAME = 256
MAX_REQUEST_ID = 128
MAX_SECONDS = 253_402_300_799  # Unix seconds of the last that a Timestamp can be


AnyOrder: TypeAlias = audience_pb2.ExpandAudienceRequest | audience_pb2.RefreshAudienceRequest


@dataclass(frozen=True)
class Order:
    """A checked request; `seeds` and `exclusions` are ids of the pool's type, without nulls."""

    campaign: str
    features: Mapping[str, FeatureValue]
    seeds: pa.Array
    k: int
    include_seeds: bool
    random_seed: int
    filter: str
    exclusions: pa.Array
    request_id: str
    audience_id: str
    priority: Priority
    reserve: int = 0
    ttl: float | None = None
    expires: float | None = None
    previous: Previous | None = None


@dataclass(frozen=True)
class Stored:
    """People of an order that come from elsewhere than its request."""

    seeds: pa.Array
    exclusions: pa.Array


class Door:
    """The checks of one pool; safe to call from any thread."""

    def __init__(
        self,
        pool: Pool,
        campaign_schema: FeatureSchema | None,
        seeds_dir: Path | None,
        *,
        usual_reserve: Callable[[int], int] = lambda _: 0,
    ) -> None:
        """`usual_reserve`: of an audience of a size, where a request does not say."""
        self._usual_reserve = usual_reserve
        self._pool = pool
        self._campaign_schema = campaign_schema
        self._seeds_dir = seeds_dir.resolve() if seeds_dir is not None else None

    def check(self, request: audience_pb2.ExpandAudienceRequest, stored: Stored | None = None) -> Order:
        """The order a request makes; of `stored` seeds if it has none, and with `stored` exclusions.

        Raises:
            InvalidInput, FailedPrecondition, NotFound: one thing is wrong. InvalidRequest: several are.
        """
        violations: list[LookalikeError] = []
        features = self._features(request.campaign.features, violations)
        _check_names(request, violations)
        k = self._k(request, violations)
        seeds = exclusions = pa.array([], self._pool.id_type)
        reserve = self._reserve(request, k, violations)
        ttl, expires = _expiration(request, violations)
        try:
            seeds = stored.seeds if stored and request.WhichOneof("seeds") is None else self._seeds(request)
        except LookalikeError as error:
            violations.append(error)
        try:
            exclusions = stored.exclusions if stored else self._exclusions(request)
        except LookalikeError as error:
            violations.append(error)
        try:
            if request.filter.strip():
                Filter(request.filter, self._pool.schema)
        except InvalidInput as error:
            violations.append(error)
        if len(violations) == 1:
            raise violations[0]
        if violations:
            raise InvalidRequest(violations)
        return Order(
            request.campaign.name,
            features,
            seeds,
            k,
            request.include_seeds,
            request.random_seed,
            request.filter,
            exclusions,
            request.request_id,
            request.audience_id,
            Priority(request.priority) if request.priority else Priority.NORMAL,
            reserve,
            ttl,
            expires,
        )

    def match(self, user_ids: pa.Array) -> SeedMatch:
        """What would become of seeds or exclusions."""
        rows = self._pool.find(user_ids)
        found = rows[rows >= 0]
        matched = len(np.unique(found))
        return SeedMatch(
            given=len(rows), matched=matched, duplicates=len(found) - matched, not_in_pool=len(rows) - len(found)
        )

    def _features(
        self, given: Mapping[str, campaign_pb2.FeatureValue], violations: list[LookalikeError]
    ) -> dict[str, FeatureValue]:
        features: dict[str, FeatureValue] = {}
        for name in sorted(given):
            where = f"campaign.features.{name}"
            features[name] = value = feature_value(given[name])
            if isinstance(value, float) and not math.isfinite(value):
                violations.append(
                    SchemaError(f"feature {quoted(where)} is {value}; leave it out if missing", field=where)
                )
            elif self._campaign_schema is not None:
                try:
                    self._campaign_schema.encode_features({name: value}, where="campaign.features")
                except SchemaError as error:
                    violations.append(error)
        return features

    def _k(self, request: audience_pb2.ExpandAudienceRequest, violations: list[LookalikeError]) -> int:
        if request.WhichOneof("size") == "k":
            if not 1 <= request.k <= MAX_K:
                violations.append(InvalidInput(f"k is {request.k:,}; it must be 1 to {MAX_K:,}", field="k"))
            return request.k
        share = request.pool_share
        if request.WhichOneof("size") is None:
            violations.append(InvalidInput("give the audience's size: k or pool_share", field="k"))
        elif not 0 < share <= 1:
            violations.append(
                InvalidInput(f"pool_share is {share:g}; it must be above 0 and at most 1", field="pool_share")
            )
        else:
            return max(1, round(share * self._pool.num_users))
        return 0

    def _reserve(self, request: audience_pb2.ExpandAudienceRequest, k: int, violations: list[LookalikeError]) -> int:
        if not request.HasField("reserve"):
            return max(0, min(self._usual_reserve(k), MAX_K - k))
        if k + request.reserve > MAX_K:
            violations.append(
                InvalidInput(
                    f"reserve is {request.reserve:,}; with the size it must be at most {MAX_K:,}", field="reserve"
                )
            )
        return request.reserve

    def _seeds(self, request: audience_pb2.ExpandAudienceRequest) -> pa.Array:
        if request.WhichOneof("seeds") == "seeds_path":
            seeds = self._from_file(request.seeds_path, "seeds_path")
            if not len(seeds):
                raise EmptySeeds(
                    f"{quoted(request.seeds_path)} holds no seeds: give a file with some", field="seeds_path"
                )
            return seeds
        seeds = read_user_ids(self._pool, request.seed_ids, "seed_ids")
        if not len(seeds):
            raise EmptySeeds("no seeds were given: fill seed_ids or seeds_path", field="seed_ids")
        return seeds

    def _exclusions(self, request: audience_pb2.ExpandAudienceRequest) -> pa.Array:
        if request.WhichOneof("exclusions") == "exclude_path":
            return self._from_file(request.exclude_path, "exclude_path")
        return read_user_ids(self._pool, request.exclude_ids, "exclude_ids")

    def _from_file(self, name: str, field: str) -> pa.Array:
        if self._seeds_dir is None:
            raise FailedPrecondition(
                f"this server takes no {field} (it was started without service.seeds_dir): send the ids themselves",
                field=field,
            )
        who = caller.current()
        with _opened(self._seeds_dir if who is caller.LOCAL else self._seeds_dir / who.tenant, name, field) as path:
            column = _user_ids(path, name, field)
        if column.type != self._pool.id_type:
            wanted = self._pool.id_type
            raise InvalidInput(
                f"user ids in {quoted(name)} are {column.type}, but this pool's are {wanted}: give those", field=field
            )
        return column


@contextmanager
def _opened(folder: Path, name: str, field: str) -> Iterator[str]:
    """A path to a file that lies in the folder, whatever becomes of the names on the way to it meanwhile."""
    outside = InvalidInput(
        f"{quoted(name)} lies outside the server's seeds folder: give a path relative to it", field=field
    )
    missing = NotFound(
        f"there is no file {quoted(name)} in the server's seeds folder: put it there, or send the ids themselves",
        field=field,
    )
    try:
        if not (folder / name).resolve().is_relative_to(folder):
            raise outside  # before it could be told whether such a file is there
        # Not to wait for the other end of a pipe.
        file = os.open(folder / name, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    except (FileNotFoundError, NotADirectoryError) as error:
        raise missing from error
    except (OSError, ValueError, RuntimeError) as error:  # not readable, too long, a null character, a loop of links
        why = error.strerror if isinstance(error, OSError) else "no file can be called that"
        raise InvalidInput(
            f"cannot open {quoted(name)} ({why}): give a file that the server may read", field=field
        ) from error
    try:
        path = f"/proc/self/fd/{file}"
        if not Path(path).resolve().is_relative_to(folder):  # a link on the way was turned since
            raise outside
        if not stat.S_ISREG(os.fstat(file).st_mode):
            raise missing
        yield path
    finally:
        os.close(file)


def _user_ids(path: str, name: str, field: str) -> pa.Array:
    """The column `user_id` of a Parquet file, as int64 or large_string."""
    try:
        with pq.ParquetFile(path) as file:
            column = file.read(columns=["user_id"])["user_id"].combine_chunks()
    except KeyError as error:
        raise SchemaError(f"{quoted(name)} has no column 'user_id': give it one", field=field) from error
    except (pa.ArrowException, OSError) as error:
        _log.info("cannot read %s as seeds: %s", quoted(name), error)
        raise InvalidInput(f"cannot read {quoted(name)}: it must be Parquet, whole", field=field) from error
    try:
        column = as_ids(
            column.dictionary_decode() if pa.types.is_dictionary(column.type) else column,
            where=f"{name}:user_id",
        )
    except SchemaError as error:
        raise SchemaError(error.message, field=field) from error
    if column.null_count:
        raise InvalidInput(f"{quoted(name)} holds {column.null_count} null user ids: leave them out", field=field)
    return column


def names_something(request: AnyOrder) -> bool:
    """Whether the request's ids are such as an operation can have; `Door.check` says what is wrong with others."""
    return len(request.request_id) <= MAX_REQUEST_ID and "\0" not in request.request_id + request.audience_id


def request_hash(request: AnyOrder) -> str:
    """SHA-256 of what a request asks for, whatever its `request_id`, and whether it only asks for a check."""
    content: Any = type(request)()
    content.CopyFrom(request)
    content.ClearField("request_id")
    content.ClearField("validate_only")
    if content.priority == audience_pb2.PRIORITY_NORMAL:  # the same as none, which is all that older clients know
        content.ClearField("priority")
    kind = b"" if isinstance(request, audience_pb2.ExpandAudienceRequest) else request.DESCRIPTOR.full_name.encode()
    return hashlib.sha256(kind + content.SerializeToString(deterministic=True)).hexdigest()


def read_user_ids(pool: Pool, ids: audience_pb2.UserIds, field: str) -> pa.Array:
    """Ids of the pool's type.

    Raises:
        InvalidInput: they are of another.
    """
    kind = ids.WhichOneof("kind")
    values = list(getattr(ids, kind).values) if kind else []
    wanted = "integers" if pa.types.is_int64(pool.id_type) else "strings"
    if values and kind != wanted:
        raise InvalidInput(f"{field} are {kind}, but this pool's user ids are {wanted}: send those", field=field)
    return pa.array(values, pool.id_type)


def read_ttl(ttl: Duration) -> float:
    """Seconds of a time to live.

    Raises:
        InvalidInput: not above 0, or beyond what a calendar has.
    """
    seconds = ttl.seconds + ttl.nanos / 1e9
    if not 0 < seconds <= MAX_SECONDS - time.time():
        raise InvalidInput(f"ttl is {seconds:g} s; it must be above 0 and end before the year 10000", field="ttl")
    return seconds


def read_expiry(moment: Timestamp, field: str = "expire_time") -> float:
    """Unix seconds of a time at which something is to expire, given as `field`.

    Raises:
        InvalidInput: it has passed, or is beyond what a calendar has.
    """
    seconds = moment.seconds + moment.nanos / 1e9
    if not time.time() < seconds <= MAX_SECONDS:
        raise InvalidInput("expire_time must be in the future, and before the year 10000", field=field)
    return seconds


def _expiration(
    request: audience_pb2.ExpandAudienceRequest, violations: list[LookalikeError]
) -> tuple[float | None, float | None]:
    """`ttl` and `expire_time`, in seconds."""
    try:
        match request.WhichOneof("expiration"):
            case "ttl":
                return read_ttl(request.ttl), None
            case "expire_time":
                return None, read_expiry(request.expire_time)
    except InvalidInput as error:
        violations.append(error)
    return None, None


def _check_names(request: audience_pb2.ExpandAudienceRequest, violations: list[LookalikeError]) -> None:
    name = request.campaign.name
    if not name.strip() or len(name) > MAX_NAME:
        violations.append(
            InvalidInput(f"the campaign needs a name of 1 to {MAX_NAME} characters", field="campaign.name")
        )
    if len(request.request_id) > MAX_REQUEST_ID:
        violations.append(InvalidInput(f"a request_id has at most {MAX_REQUEST_ID} characters", field="request_id"))
    for field, text in (("campaign.name", name), ("request_id", request.request_id)):
        if "\0" in text:
            violations.append(InvalidInput(f"{field} holds a null character: leave it out", field=field))
    if request.audience_id and not is_own_id(request.audience_id):
        violations.append(
            InvalidInput(
                "an audience_id is a lower-case letter, then up to 62 lower-case letters, digits and hyphens, not "
                "ending in a hyphen, nor 32 hexadecimal digits; leave it out to have one chosen",
                field="audience_id",
            )
        )
    if request.priority not in audience_pb2.Priority.values():
        violations.append(
            InvalidInput(f"priority is {request.priority}; it must be LOW, NORMAL or HIGH", field="priority")
        )
