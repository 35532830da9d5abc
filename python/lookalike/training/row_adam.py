"""Adam on the rows of a table that occur in a step, so that a step's cost does not grow with the vocabulary.

Knows torch only.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor


class RowAdam(torch.optim.Optimizer):
    """Rows that do not occur, and their moments, wait. The library's SparseAdam does the same in ten times the time."""

    def __init__(
        self, tables: Sequence[Tensor], lr: float, betas: tuple[float, float] = (0.9, 0.999), eps: float = 1e-8
    ) -> None:
        super().__init__([{"params": list(tables)}], {"lr": lr})
        self.betas, self.eps = betas, eps
        for table in tables:
            first, second = torch.zeros_like(table), torch.zeros_like(table)
            self.state[table] = {"step": torch.zeros(()), "first": first, "second": second}

    def step(self, closure: Any = None) -> Any:
        """Not how this is used: see `update`."""
        raise NotImplementedError("call update for each table")

    @torch.no_grad()
    def update(self, table: Tensor, rows: Tensor, leaf: Tensor) -> None:
        """Move `rows` of `table`, each once, of which `leaf` is a copy that has a gradient."""
        assert leaf.grad is not None
        state, lr = self.state[table], self.param_groups[0]["lr"]
        state["step"] += 1
        steps = float(state["step"])
        of_first, of_second = self.betas
        first = state["first"].index_select(0, rows).lerp_(leaf.grad, 1 - of_first)
        second = (
            state["second"].index_select(0, rows).mul_(of_second).addcmul_(leaf.grad, leaf.grad, value=1 - of_second)
        )
        state["first"].index_copy_(0, rows, first)
        state["second"].index_copy_(0, rows, second)
        bias_first, bias_second = 1 - of_first**steps, 1 - of_second**steps
        deviation = (second / bias_second).sqrt_().add_(self.eps)
        table.index_copy_(0, rows, leaf.detach().addcdiv(first, deviation, value=-lr / bias_first))
