"""ScoringService: scores given users by an audience's model, while the caller waits for it.

Knows audiences, the pool's kind of ids and a `ScoreRuntime`; errors raised here become statuses in `status`.
"""
# Names and signatures of the methods are gRPC's.
# ruff: noqa: ARG002, N802

from __future__ import annotations

import asyncio
import os
import time
from collections import OrderedDict
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from lookalike.errors import Cancelled, FailedPrecondition, InternalError, InvalidInput, LookalikeError, NotFound
from lookalike.pool.snapshot import Pool
from lookalike.retrieval.receipt import RECEIPT_NAME
from lookalike.runtime.score_job import ScoreJob, ScoreRuntime, Scores
from lookalike.service import caller
from lookalike.service.audiences import AudienceStore
from lookalike.service.metrics import Metrics
from lookalike.service.opt_out_keeper import OptOutKeeper
from lookalike.v1 import audience_pb2, scoring_pb2, scoring_pb2_grpc

MAX_USERS = 10_000
KNOWN_AUDIENCES = 4096
AGAIN_SECONDS = 1.0  # between two looks whether an audience has expired, or is deleted elsewhere


@dataclass(frozen=True)
class _Known:
    """What there is to know of an audience until it is asked for again, or its receipt is another file."""

    folder: Path
    receipt_path: str
    receipt: tuple[int, int]
    model_sha256: str
    cutoff_score: float
    until: float


class ScoringServicer(scoring_pb2_grpc.ScoringServiceServicer):
    """See scoring.proto."""

    def __init__(
        self,
        *,
        pool: Pool,
        audiences: AudienceStore,
        opt_outs: OptOutKeeper,
        runtime: ScoreRuntime | None,
        metrics: Metrics,
    ) -> None:
        """`runtime`: started; None: this service scores nobody."""
        self._pool = pool
        self._audiences = audiences
        self._opt_outs = opt_outs
        self._runtime = runtime
        self._metrics = metrics
        self._known: OrderedDict[tuple[str, str], _Known] = OrderedDict()
        self._tasks: set[asyncio.Task[None]] = set()

    async def ScoreUsers(self, request: scoring_pb2.ScoreUsersRequest, context: Any) -> scoring_pb2.ScoreUsersResponse:
        """Find the audience, have its model score the users."""
        started = time.perf_counter()
        error: LookalikeError | None = InternalError("a defect")
        try:
            response, scores = await self._score(request)
            error = None
        except LookalikeError as raised:
            error = raised
            raise
        except asyncio.CancelledError:
            error = Cancelled("the caller hung up")
            raise
        finally:
            self._metrics.scoring.ended(error, time.perf_counter() - started)
        self._metrics.scoring.scored(len(scores.scores), loaded=scores.loaded)
        return response

    async def _score(self, request: scoring_pb2.ScoreUsersRequest) -> tuple[scoring_pb2.ScoreUsersResponse, Scores]:
        if self._runtime is None:
            raise FailedPrecondition(
                "this service scores nobody in real time: start it with realtime.host=process", reason="REALTIME_OFF"
            )
        tenant = caller.current().tenant
        user_ids = _user_ids(request.users, self._pool.id_type)
        known = await self._audience(tenant, request.audience)
        opted_out = await self._opt_outs.of(tenant)
        job = ScoreJob(
            audience=known.folder,
            model_sha256=known.model_sha256,
            pool=self._pool.path,
            user_ids=user_ids,
            with_ranks=request.with_ranks,
        )
        scores = await self._runtime.score(job)
        if opted_out:
            scores = _without([one in opted_out for one in user_ids.to_pylist()], scores)
        response = scoring_pb2.ScoreUsersResponse(
            scores=scores.scores.tolist(),
            found=scores.found.tolist(),
            cutoff_score=known.cutoff_score,
            model_sha256=known.model_sha256,
            pool_sha256=self._pool.fingerprint,
        )
        if scores.ranks is not None and scores.members is not None:
            response.ranks.extend(scores.ranks.tolist())
            response.members.extend(scores.members.tolist())
        return response, scores

    async def _audience(self, tenant: str, name: str) -> _Known:
        """Ask the store once a second, for an audience may expire; look at its receipt each time, for it may change.

        The store is asked again while calls go on with what is known, unless that is two seconds old.
        """
        known, now = self._known.get((tenant, name)), time.monotonic()
        if known is None or now >= known.until + AGAIN_SECONDS or _stamp(known.receipt_path) != known.receipt:
            return await self._look(tenant, name)
        if now >= known.until:
            self._known[tenant, name] = replace(known, until=now + AGAIN_SECONDS)
            task = asyncio.create_task(self._again(tenant, name))
            self._tasks.add(task)
            task.add_done_callback(self._tasks.discard)
        return known

    async def _again(self, tenant: str, name: str) -> None:
        with suppress(LookalikeError):  # whoever asks next is told
            await self._look(tenant, name)

    async def _look(self, tenant: str, name: str) -> _Known:
        until = time.monotonic() + AGAIN_SECONDS
        try:
            audience_id, audience = await self._audiences.open(tenant, name, field="audience")
        except LookalikeError:
            self._known.pop((tenant, name), None)
            raise
        # A name comes out of a database; whoever can write there is not to have files from elsewhere loaded.
        path = str(audience.path / RECEIPT_NAME)
        stamp = _stamp(path)
        if stamp is None or audience.path.resolve().parent != self._audiences.folder.resolve():
            raise NotFound(f"there is no audiences/{audience_id}", field="audience")
        receipt = audience.receipt
        known = _Known(audience.path, path, stamp, receipt.model_sha256, receipt.cutoff_score or 0.0, until)
        self._known[tenant, name] = known
        while len(self._known) > KNOWN_AUDIENCES:
            self._known.popitem(last=False)
        return known


def _without(out: list[bool], scores: Scores) -> Scores:
    """As if these users were not in the pool."""
    here = ~np.array(out)
    return replace(
        scores,
        scores=np.where(here, scores.scores, np.float32(0)),
        found=scores.found & here,
        ranks=np.where(here, scores.ranks, 0) if scores.ranks is not None else None,
        members=scores.members & here if scores.members is not None else None,
    )


def _stamp(path: str) -> tuple[int, int] | None:
    try:
        status = os.stat(path)  # noqa: PTH116 - a Path would cost as much as the look
    except OSError:
        return None
    return status.st_ino, status.st_mtime_ns


def _user_ids(users: audience_pb2.UserIds, id_type: pa.DataType) -> pa.Array:
    wanted = "integers" if pa.types.is_int64(id_type) else "strings"
    kind = users.WhichOneof("kind")
    values = getattr(users, kind).values if kind is not None else []
    if not 1 <= len(values) <= MAX_USERS:
        raise InvalidInput(f"there are {len(values):,} users; give 1 to {MAX_USERS:,}", field="users")
    if kind != wanted:
        raise InvalidInput(f"user ids of this pool are {wanted}, not {kind}", field="users")
    return pa.array(values, id_type)
