"""The contract between whoever asks for scores and whatever has the models: some users in, their scores out.

Torch-free, so that the front service can import it. Unlike an expansion's, these users travel by value: they are few.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import numpy as np
import numpy.typing as npt
import pyarrow as pa


@dataclass(frozen=True, kw_only=True)
class ScoreJob:
    """Users to be scored by an audience's customised model.

    Attributes:
        audience: its folder.
        model_sha256: of the model in it, from the receipt.
        pool: snapshot folder, from which the users' features are read.
        user_ids: `[users]` int64 or large_string, as in the pool.
        with_ranks: also tell ranks and members.
    """

    audience: Path
    model_sha256: str
    pool: Path
    user_ids: pa.Array
    with_ranks: bool = False


@dataclass(frozen=True, kw_only=True)
class Scores:
    """Of a job's users, in its order.

    Attributes:
        scores: `[users]` float32; 0 where not `found`, which is `[users]` bool.
        ranks: `[users]` int64 from 1, 0 where not found; members: `[users]` bool. None if they were not asked for.
        loaded: seconds it took to load the model; 0 if it was in memory.
    """

    scores: npt.NDArray[np.float32]
    found: npt.NDArray[np.bool_]
    ranks: npt.NDArray[np.int64] | None = None
    members: npt.NDArray[np.bool_] | None = None
    loaded: float = 0.0


class ScoreRuntime(Protocol):
    """Scores users. Implementations: `score_processes.ScoreProcesses`, `torchserve.TorchServeRuntime`."""

    async def score(self, job: ScoreJob) -> Scores:
        """Score a job's users.

        Raises:
            NotFound: audience or pool are gone. InvalidInput: ids of another type than the pool's.
            FailedPrecondition: the pool has another schema than the audience's. DataCorrupted: the model is damaged.
            ResourceExhausted: too many wait. Unavailable: what scores is away or died; ask again.
        """
        ...
