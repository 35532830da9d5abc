"""A refresh as an order: what an audience was made of, with what a request says otherwise.

Knows the door and audiences on disk; starts nothing.
"""

from __future__ import annotations

from dataclasses import replace

import pyarrow as pa
import pyarrow.parquet as pq

from lookalike.errors import EmptySeeds, FailedPrecondition, InvalidInput
from lookalike.pool.snapshot import Pool
from lookalike.retrieval.audience import Audience
from lookalike.retrieval.request import Previous
from lookalike.service.door import Door, Order, Stored
from lookalike.service.features import feature_message
from lookalike.v1 import audience_pb2


def refresh_order(
    door: Door, pool: Pool, request: audience_pb2.RefreshAudienceRequest, audience_id: str, audience: Audience
) -> Order:
    """The order that makes `audience`, known as `audience_id`, anew on `pool`.

    Raises:
        InvalidInput, NotFound, FailedPrecondition: as `Door.check`; or the pool's ids are of another type now.
    """
    budget = request.churn_budget if request.HasField("churn_budget") else 1.0
    if not 0 <= budget <= 1:
        raise InvalidInput(f"churn_budget is {budget:g}; it must be 0 to 1", field="churn_budget")
    if audience.id_type != pool.id_type:
        raise FailedPrecondition(
            f"audiences/{audience_id} has user ids of type {audience.id_type}, but the pool's are {pool.id_type} now: "
            "expand again",
            field="name",
            reason="POOL_OF_OTHER_IDS",
        )
    seeds = audience.seeds()
    if not len(seeds) and request.WhichOneof("seeds") is None:
        raise EmptySeeds("all seeds it was made of have opted out: give others", field="seed_ids")
    excluded = audience.exclusions()
    exclusions = pq.read_table(excluded)["user_id"].combine_chunks() if excluded else pa.array([], pool.id_type)
    order = door.check(_as_expansion(request, audience), Stored(seeds, exclusions))
    members = [batch["user_id"] for batch in audience.batches(1 << 20)]
    previous = Previous(
        user_ids=pa.concat_arrays([pa.array([], pool.id_type), *members]),
        name=f"audiences/{audience_id}",
        audience_sha256=audience.receipt.audience_sha256,
        budget=budget,
    )
    return replace(order, previous=previous)


def _as_expansion(
    request: audience_pb2.RefreshAudienceRequest, audience: Audience
) -> audience_pb2.ExpandAudienceRequest:
    """The request that ordered the audience, but for its people, with what is to be otherwise."""
    receipt = audience.receipt
    expansion = audience_pb2.ExpandAudienceRequest(
        request_id=request.request_id,
        validate_only=request.validate_only,
        k=request.k if request.HasField("k") else receipt.k_requested,
        include_seeds=receipt.include_seeds,
        random_seed=receipt.random_seed,
        filter=receipt.filter,
        audience_id=request.audience_id,
        priority=request.priority,
        reserve=request.reserve if request.HasField("reserve") else None,
    )
    expansion.campaign.name = receipt.campaign
    for name, value in receipt.features.items():
        expansion.campaign.features[name].CopyFrom(feature_message(value))
    for field in ("seeds", "expiration"):
        given = request.WhichOneof(field)
        if given == "seeds_path":
            expansion.seeds_path = request.seeds_path
        elif given is not None:
            getattr(expansion, given).CopyFrom(getattr(request, given))
    return expansion
