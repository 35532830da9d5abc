"""Logistic regression of one campaign on one-hot features: the bar every method with pre-training must clear.

Knows the schema and scikit-learn (the extra `evaluation`); free of torch.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
from sklearn.linear_model import LogisticRegression as Solver

from lookalike.errors import InvalidInput
from lookalike.model.one_hot import one_hot
from lookalike.schema import EncodedColumns, FeatureSchema

# Of 0.01, 0.1 and 1 (scikit-learn's default) the best on 25 training campaigns each of `kuairand` and `ml1m`.
INVERSE_REGULARISATION = 0.1
# Far more than it takes; a warning of no convergence would be an error in our tests.
MAX_ITERATIONS = 1000


class LogisticRegression:
    """Fit once on a campaign's seeds and negatives, then score any users of the same schema."""

    def __init__(self, schema: FeatureSchema, *, c: float = INVERSE_REGULARISATION) -> None:
        self._schema = schema
        self._solver = Solver(C=c, max_iter=MAX_ITERATIONS)

    def fit(self, users: EncodedColumns, labels: npt.NDArray[np.integer[Any]]) -> LogisticRegression:
        """Learn from users `[n]` and labels `[n]` (1 or 0); returns itself.

        Raises:
            InvalidInput: lengths differ, or the labels are all alike.
        """
        if users.length != len(labels) or len(np.unique(labels)) < 2:
            raise InvalidInput(
                f"{users.length} users and {len(labels)} labels; give one label a user, some 1 and some 0",
                field="labels",
            )
        self._solver.fit(one_hot(self._schema, users), labels)
        return self

    @property
    def iterations(self) -> int:
        """Of the solver, each over all users; fitted models only."""
        return int(self._solver.n_iter_[0])

    def score(self, users: EncodedColumns) -> npt.NDArray[np.float64]:
        """Log-odds `[n]` that each user is interested."""
        scores: npt.NDArray[np.float64] = self._solver.decision_function(one_hot(self._schema, users))
        return scores
