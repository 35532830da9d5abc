"""The campaign's own logistic regression over single ids, fitted to convergence: what no other campaign could tell.

Knows sparse matrices only. What it finds is added to the linear term of the customised model.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import numpy.typing as npt
from scipy.optimize import minimize
from scipy.sparse import csr_matrix

MAX_ITERATIONS = 60
Floats = npt.NDArray[np.float64]


def fit_ridge(
    ids: csr_matrix,
    labels: npt.NDArray[np.float32],
    offset: Floats,
    inverse_penalty: float,
    *,
    poll: Callable[[], None] = lambda: None,
) -> Floats:
    """Weights `[columns]` that minimise the summed cross-entropy + |w|^2 / (2 * inverse_penalty), by L-BFGS.

    Args:
        ids: `[samples, columns]`, how often each user has each id.
        labels: `[samples]` 0/1.
        offset: `[samples]`, log-odds that are known already; an intercept is fitted besides.
        poll: called at every evaluation; raise from it to stop.
    """
    occurs = np.zeros(ids.shape[1], np.bool_)  # the others' weights are 0
    occurs[ids.indices] = True
    number = np.cumsum(occurs) - 1
    ids = csr_matrix((ids.data, number[ids.indices], ids.indptr), shape=(ids.shape[0], int(occurs.sum())))
    transposed = ids.T.tocsr()
    signs = np.where(labels > 0, 1.0, -1.0)

    def objective(parameters: Floats) -> tuple[float, Floats]:
        poll()
        weights = parameters[:-1]
        margins = signs * (ids @ weights + offset + parameters[-1])
        slopes = -signs * _sigmoid(-margins)
        value = np.logaddexp(0, -margins).sum() + weights @ weights / (2 * inverse_penalty)
        gradient = np.append(transposed @ slopes + weights / inverse_penalty, slopes.sum())
        # Divided by the number of samples, so that the solver's tolerances mean the same for every campaign.
        return value / len(signs), gradient / len(signs)

    start = np.zeros(ids.shape[1] + 1)
    found = minimize(objective, start, jac=True, method="L-BFGS-B", options={"maxiter": MAX_ITERATIONS})
    weights = np.zeros(len(occurs))
    weights[occurs] = found.x[:-1]
    return weights


def _sigmoid(x: Floats) -> Floats:
    return np.exp(-np.logaddexp(0, -x))
