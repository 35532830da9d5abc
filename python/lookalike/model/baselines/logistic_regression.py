"""Logistic regression of one campaign on one-hot features: the bar every method with pre-training must clear.

Knows the schema and scikit-learn (the extra `evaluation`); free of torch.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
from scipy.sparse import csr_matrix
from sklearn.linear_model import LogisticRegression as Solver

from lookalike.errors import InvalidInput
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


def one_hot(schema: FeatureSchema, users: EncodedColumns) -> csr_matrix:
    """One column for each id of each field, missing and unknown included; `[users, sum of field sizes]`.

    A multi-valued field counts each of its values; an empty one has none.
    """
    rows, columns, start = [], [], 0
    for field in schema.fields:
        ids = users.ids[field.name].astype(np.int64)
        if field.name in users.offsets:
            offsets = users.offsets[field.name]
            rows.append(np.repeat(np.arange(users.length), np.diff(offsets)))
            ids = ids[offsets[0] : offsets[-1]]
        else:
            rows.append(np.arange(users.length))
        columns.append(start + ids)
        start += field.size
    row, column = np.concatenate(rows), np.concatenate(columns)
    return csr_matrix((np.ones(len(row)), (row, column)), shape=(users.length, start))
