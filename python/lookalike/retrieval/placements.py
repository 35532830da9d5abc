"""How far an AUC may be off because seeds were compared with some users and not with all: DeLong's users' half.

The placement of a user is the share of the held-out seeds that rank before her, half of the ties included; an AUC is
one less their mean (DeLong, DeLong and Clarke-Pearson 1988). Sums; knows nothing of models or pools.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from lookalike.retrieval.estimate import Floats


@dataclass(frozen=True, kw_only=True)
class UsersVariance:
    """Variance of the AUCs over all draws of the users compared, the seeds and models being as they are.

    Attributes:
        users: whom seeds were compared with, of the fold that has fewest.
        customised, general: of the AUC by either model; infinite if one user was all there was.
        difference: of the difference of the two, on the same users.
    """

    users: int
    customised: float
    general: float
    difference: float


class Placements:
    """Sums over users, of whom each fold compares its seeds with some.

    Args:
        seeds: held-out seeds of each fold: `[folds]`.
    """

    def __init__(self, seeds: Sequence[int]) -> None:
        self._weights = np.array(seeds, np.float64) / max(sum(seeds), 1)
        self._products = np.zeros((3 * len(seeds),) * 2)

    def add(self, compared: npt.NDArray[np.bool_], customised: Floats, general: Floats) -> None:
        """Count some users.

        Args:
            compared: which fold compares its seeds with whom: `[folds, users]`.
            customised, general: the users' placements by either model of a fold, any where not compared: of that shape.
        """
        columns = np.concatenate([compared.astype(np.float64), customised * compared, general * compared])
        self._products += columns @ columns.T

    def variance(self, population: int) -> UsersVariance:
        """What the draw of the users adds to the AUCs' errors, `population` being all who might have been drawn."""
        folds = len(self._weights)
        # [what, fold, what, fold], what being 0: compared, 1: placement by the customised, 2: by the general model.
        sums = self._products.reshape(3, folds, 3, folds)
        users = np.diag(sums[0, :, 0, :])
        fewest = round(float(users.min()))
        left = max(1 - fewest / population, 0.0)
        # One user more could move an AUC by 1 / users: it is never known better, even if all users are placed alike.
        least = math.inf if fewest < 2 and left else left / max(fewest, 1) ** 2
        return UsersVariance(
            users=fewest,
            customised=max(self._of(sums, np.array([0.0, 1.0, 0.0]), population), least),
            general=max(self._of(sums, np.array([0.0, 0.0, 1.0]), population), least),
            difference=self._of(sums, np.array([0.0, 1.0, -1.0]), population),
        )

    def _of(self, sums: npt.NDArray[np.float64], which: Floats, population: int) -> float:
        """Variance of the mean of a linear combination of the placements, over folds in proportion to their seeds."""
        shared = sums[0, :, 0, :]  # users whom both of two folds compare with: [folds, folds]
        users = np.diag(shared)
        values = np.einsum("a,afg->fg", which, sums[:, :, 0, :])  # of the first fold, over the shared users
        means = np.diag(values) / np.maximum(users, 1)
        products = np.einsum("a,b,afbg->fg", which, which, sums)
        products = products - values * means - (values * means).T + np.outer(means, means) * shared
        covariance = products / np.maximum(shared - 1, 1)
        # Of means of samples that have users in common, drawn from a finite population without replacement. Folds with
        # no user in common are off in opposite directions; how far is unknown, and they are taken as independent.
        drawn = np.maximum(shared / np.maximum(np.outer(users, users), 1) - 1 / population, 0)
        return max(float(self._weights @ (covariance * drawn) @ self._weights), 0.0)
