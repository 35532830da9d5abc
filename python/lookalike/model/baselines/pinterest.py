"""Pinterest's audience expansion (deWet & Ou, KDD'19): a user tower beside topic embeddings, and densities in hashes.

Knows `schema` and its features; not campaigns, pools or how it is judged.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from lookalike.model.bags import Entries
from lookalike.model.baselines.pooled_fields import PooledFields
from lookalike.schema import FeatureSchema

Vectors = npt.NDArray[np.float32]
Regions = npt.NDArray[np.int32]


class TopicModel(nn.Module):
    """u = tower(pooled fields of a user), t = an embedding of each topic; a user likes a topic by u . t."""

    def __init__(self, users: FeatureSchema, topics: int, *, k: int, hidden: int, width: int, init_std: float) -> None:
        super().__init__()
        self.fields = PooledFields(users, k, init_std)
        self.tower = nn.Sequential(nn.Linear(self.fields.width, hidden), nn.ReLU(), nn.Linear(hidden, width))
        self.topics = nn.Parameter(torch.randn(topics, width) * init_std)

    def forward(self, users: Entries) -> Tensor:
        """u, `[users, width]`."""
        vectors: Tensor = self.tower(self.fields(users))
        return vectors


def hinge_loss(users: Tensor, liked: Tensor, other: Tensor, margin: float) -> Tensor:
    """Mean of max(0, margin - u.t+ + u.t-) over pairs of topics; all `[pairs, width]`."""
    return (margin - (users * (liked - other)).sum(dim=1)).relu().mean()


@dataclass(frozen=True)
class Hashes:
    """Locality-sensitive hashes by random hyperplanes: a region is the sides of them on which a vector lies.

    Attributes:
        planes: `[width, hashes * bits]`, normals of hyperplanes through the origin.
        bits: hyperplanes a hash, which thus has `2 ** bits` regions.
    """

    planes: Vectors
    bits: int

    @staticmethod
    def draw(width: int, hashes: int, bits: int, rng: np.random.Generator) -> Hashes:
        """Independent hashes of vectors of `width`."""
        return Hashes(rng.standard_normal((width, hashes * bits), dtype=np.float32), bits)

    def regions(self, vectors: Vectors) -> Regions:
        """The region of each vector in each hash, `[vectors, hashes]`; those of hash h count from `h * 2 ** bits`."""
        sides = (vectors @ self.planes > 0).reshape(len(vectors), -1, self.bits)
        first = np.arange(sides.shape[1]) << self.bits
        regions: Regions = (sides @ (1 << np.arange(self.bits)) + first).astype(np.int32)
        return regions


@dataclass(frozen=True)
class Densities:
    """How many users of the pool each region holds, and what a seed list makes of that.

    Attributes:
        everyone: `[all regions]` users there, over all hashes.
        users: of the pool.
        smoothing: a of log((s + a) / S) - log((n + a) / N).
        fewest: a region with fewer users than this tells nothing.
    """

    everyone: npt.NDArray[np.int64]
    users: int
    smoothing: float
    fewest: int

    @property
    def telling(self) -> npt.NDArray[np.bool_]:
        """Which regions hold users enough, `[all regions]`."""
        return self.everyone >= self.fewest

    def of_seeds(self, seeds: Regions) -> npt.NDArray[np.float64]:
        """Log-density of seeds over that of everyone in each region, `[all regions]`; 0 where there are too few.

        Args:
            seeds: regions of the seeds, `[seeds, hashes]`.
        """
        among = np.bincount(seeds.ravel(), minlength=len(self.everyone))
        a = self.smoothing
        ratio = np.log((among + a) / len(seeds)) - np.log((self.everyone + a) / self.users)
        return np.where(self.telling, ratio, 0.0)

    def scores(self, of_seeds: npt.NDArray[np.float64], users: Regions) -> npt.NDArray[np.float64]:
        """Mean over a user's telling regions `[users]`; 0, as dense as anywhere, for one who has none.

        Args:
            of_seeds: what the method of this name returned.
            users: regions of those to score, `[users, hashes]`.
        """
        told = self.telling[users].sum(axis=1)
        scores: npt.NDArray[np.float64] = of_seeds[users].sum(axis=1) / np.maximum(told, 1)
        return scores
