"""What `Client.score` sends and returns. Knows the protos; free of torch."""

from __future__ import annotations

from dataclasses import dataclass

import pyarrow as pa
import pyarrow.compute as pc

from lookalike.client.requests import ids_of
from lookalike.v1 import scoring_pb2


@dataclass(frozen=True)
class Scores:
    """Users scored by an audience's model.

    Attributes:
        users: in the order asked for: user_id; score float32, null for who is not in the pool or has opted out; and if
            asked for: rank int64, 1 + the members who score higher, null likewise, and member bool.
        cutoff_score: of the last member.
        model_sha256: of the model that scored; pool_sha256: of the pool whose features were scored.
    """

    users: pa.RecordBatch
    cutoff_score: float
    model_sha256: str
    pool_sha256: str


def scores_of(request: scoring_pb2.ScoreUsersRequest, response: scoring_pb2.ScoreUsersResponse) -> Scores:
    """The answer as columns."""
    found = pa.array(response.found, pa.bool_())

    def known(values: pa.Array) -> pa.Array:
        return pc.if_else(found, values, pa.scalar(None, values.type))

    columns = {"user_id": ids_of(request.users), "score": known(pa.array(response.scores, pa.float32()))}
    if request.with_ranks:
        columns["rank"] = known(pa.array(response.ranks, pa.int64()))
        columns["member"] = pa.array(response.members, pa.bool_())
    return Scores(
        users=pa.RecordBatch.from_pydict(columns),
        cutoff_score=response.cutoff_score,
        model_sha256=response.model_sha256,
        pool_sha256=response.pool_sha256,
    )
