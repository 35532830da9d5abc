"""Small networks on frozen vectors, one a campaign, side by side: many share the overhead of one.

Knows tensors only.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import pairwise

import torch
from torch import Tensor


class Heads:
    """`n` multi-layer perceptrons `[inputs, *hidden, 1]` with ReLU, each with parameters and Adam of its own.

    Attributes:
        parameters: weights `[n, in, out]` and biases `[n, 1, out]`, layer by layer.
    """

    def __init__(self, inputs: int, hidden: Sequence[int], generators: Sequence[torch.Generator], rate: float) -> None:
        widths = (inputs, *hidden, 1)
        each = [_draw(widths, generator) for generator in generators]
        self.parameters: list[Tensor] = [torch.stack(tensors).requires_grad_() for tensors in zip(*each, strict=True)]
        self.optimizer = torch.optim.Adam(self.parameters, lr=rate, fused=True)

    def __call__(self, vectors: Tensor) -> Tensor:
        """Log-odds `[n, rows]` of vectors `[n, rows, inputs]`."""
        return log_odds(self.parameters, vectors)

    def step(self, losses: Tensor) -> None:
        """One step of each head for its own loss, `[n]`."""
        self.optimizer.zero_grad()
        torch.autograd.backward(losses.sum())
        self.optimizer.step()

    def of(self, number: int) -> list[Tensor]:
        """A copy of one head's parameters, `[1, in, out]` and `[1, 1, out]` each."""
        return [p.detach()[number : number + 1].clone() for p in self.parameters]

    def keep(self, numbers: Sequence[int]) -> None:
        """Go on with these heads only."""
        index = torch.tensor(numbers)
        kept, state = [], {}
        for parameter in self.parameters:
            fewer = parameter.detach()[index].requires_grad_()
            moments = self.optimizer.state[parameter]
            state[fewer] = {name: t[index] if t.ndim else t for name, t in moments.items()}
            kept.append(fewer)
        self.parameters = kept
        self.optimizer = torch.optim.Adam(kept, lr=self.optimizer.param_groups[0]["lr"], fused=True)
        self.optimizer.state.update(state)


def log_odds(parameters: Sequence[Tensor], vectors: Tensor) -> Tensor:
    """Log-odds `[n, rows]` of vectors `[n, rows, inputs]` by `n` heads."""
    x = vectors
    for layer in range(0, len(parameters), 2):
        if layer:
            x = x.relu()
        x = torch.baddbmm(parameters[layer + 1], x, parameters[layer])
    return x.squeeze(2)


def _draw(widths: Sequence[int], generator: torch.Generator) -> list[Tensor]:
    """As `nn.Linear` begins."""
    drawn = []
    for inputs, outputs in pairwise(widths):
        bound = 1 / math.sqrt(inputs)
        drawn += [
            (2 * torch.rand(shape, generator=generator) - 1) * bound for shape in ((inputs, outputs), (1, outputs))
        ]
    return drawn
