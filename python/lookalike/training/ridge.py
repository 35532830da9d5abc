"""The campaign's own logistic regression over single ids, fitted to convergence: the strongest judge of few seeds.

Knows `model.features` only. What it finds is added to the linear term of the customised model.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from lookalike.model.features import FeatureBatch

MAX_ITERATIONS = 60


def fit_ridge(
    users: FeatureBatch, labels: Tensor, num_rows: int, inverse_penalty: float, *, poll: Callable[[], None]
) -> Tensor:
    """Weights `[num_rows]` that minimise the summed cross-entropy + |w|^2 / (2 * inverse_penalty), by L-BFGS.

    Args:
        users: `[samples]`, indexing `num_rows` table rows; each of a user's ids is one feature of value 1.
        labels: `[samples]` 0/1.
        poll: called at every evaluation; raise from it to stop.
    """
    weights = torch.zeros(num_rows, dtype=torch.float64, requires_grad=True)
    bias = torch.zeros((), dtype=torch.float64, requires_grad=True)
    targets = labels.double()
    optimizer = torch.optim.LBFGS([weights, bias], max_iter=MAX_ITERATIONS, line_search_fn="strong_wolfe")

    def evaluate() -> Tensor:
        poll()
        optimizer.zero_grad()
        logits = linear_term(users, weights) + bias
        fit = torch.nn.functional.binary_cross_entropy_with_logits(logits, targets, reduction="sum")
        # Divided by the number of samples, so that the solver's tolerances mean the same for every campaign.
        objective = (fit + weights.square().sum() / (2 * inverse_penalty)) / len(targets)
        torch.autograd.backward(objective)
        return objective

    optimizer.step(evaluate)  # type: ignore[no-untyped-call]
    return weights.detach().float()


def linear_term(users: FeatureBatch, weights: Tensor) -> Tensor:
    """Sum of the weights of each user's ids: `[rows]` from `[ids]`."""
    total = weights[users.single].sum(dim=1)
    if users.num_multi and users.values.numel():
        total = total.index_add(0, users.bags // users.num_multi, weights[users.values])
    return total
