"""Layers of several campaigns at once: every parameter has a leading dimension, one copy for each campaign.

A general model is a stack of one. Knows `bags`; not how anything is trained. Differentiable once.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any, Self

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from lookalike.model.bags import Bags, Entries
from lookalike.schema import EncodedColumns, FeatureSchema, Field

# A field of few ids goes through the first layer id by id, once a batch, instead of user by user: for v ids that costs
# v / batch as many products, and then one wide row to add up for each user. They cost the same near 256 ids.
NARROW = 128

_Draw = Callable[[np.random.Generator, tuple[int, ...]], npt.NDArray[Any]]


class UserFields:
    """Which of a schema's fields are narrow and which broad, and how users are encoded for that."""

    def __init__(self, schema: FeatureSchema) -> None:
        self.count = len(schema.fields)
        self.narrow = tuple(field for field in in_order(schema) if field.size <= NARROW)
        self.broad = tuple(field for field in in_order(schema) if field.size > NARROW)

    def encode(self, columns: EncodedColumns) -> tuple[Entries, Entries]:
        """The narrow and the broad fields of all rows."""
        return Entries.of(columns, self.narrow), Entries.of(columns, self.broad)


def in_order(schema: FeatureSchema) -> tuple[Field, ...]:
    """The fields in the order of `features`: single-valued, then multi-valued."""
    return (*schema.single, *schema.multi)


def ids_of(fields: Sequence[Field]) -> int:
    """Rows of a table that holds these fields."""
    return sum(field.size for field in fields)


@dataclass(frozen=True)
class Users:
    """Users `[C, rows]` of C campaigns. Ids count on from campaign to campaign, by the rows of the campaign's table."""

    narrow: Entries
    broad: Entries


@dataclass(frozen=True)
class Campaigns:
    """Features of the campaigns: `[C]`, or of one for each user; then `owners` `[rows]` says whose heads are meant."""

    features: Entries
    owners: Tensor | None = None


@dataclass(frozen=True)
class LookedUp:
    """What the layers above the embeddings read.

    Attributes:
        bags: narrow ids, a bag for each user.
        narrow: `[C, ids, k]`, their table.
        broad: `[C, rows, broad fields * k]`.
        campaign: `[C, 1 or rows, campaign fields * k]`.
    """

    bags: Bags
    narrow: Tensor
    broad: Tensor
    campaign: Tensor

    def mean(self, num_fields: int) -> Tensor:
        """The mean of each user's field embeddings, `[C, rows, k]`."""
        stack, rows, _ = self.broad.shape
        k = self.narrow.shape[2]
        total = self.bags.of(self.narrow.flatten(0, 1)).view(stack, rows, k)
        return (total + self.broad.view(stack, rows, -1, k).sum(2)) / num_fields


class Stacked(nn.Module):
    """A layer or network whose parameters are `[copies, ...]`, each with the distribution it starts from."""

    def __init__(self) -> None:
        super().__init__()
        self._draws: dict[str, _Draw] = {}

    def add(self, name: str, *shape: int, bound: float = 0.0, std: float = 0.0) -> None:
        """A parameter of one copy, drawn uniformly within `bound` or normally with `std`; else zero. Not drawn yet."""
        self.register_parameter(name, nn.Parameter(torch.zeros(1, *shape)))
        if bound > 0:
            self._draws[name] = lambda rng, size: rng.uniform(-bound, bound, size)
        elif std > 0:
            self._draws[name] = lambda rng, size: std * rng.standard_normal(size)

    @torch.no_grad()
    def draw(self, rngs: Sequence[np.random.Generator]) -> Self:
        """A copy for each generator in place of those there are, drawn anew from it. Returns itself."""
        for module in self.modules():
            if isinstance(module, Stacked):
                for name, old in module.named_parameters(recurse=False):
                    shape = tuple(old.shape[1:])
                    value = torch.zeros(len(rngs), *shape)
                    if name in module._draws:
                        drawn = [module._draws[name](rng, shape) for rng in rngs]
                        value = torch.from_numpy(np.stack(drawn).astype(np.float32))
                    setattr(module, name, nn.Parameter(value, requires_grad=old.requires_grad))
        return self

    def take(self, index: Sequence[int]) -> Self:
        """A new stack of these copies, in that order; any may repeat."""
        return self.mapped(lambda p: p[list(index)])

    def averaged(self) -> Self:
        """A new stack of one, the mean of all copies."""
        return self.mapped(lambda p: p.mean(0, keepdim=True))

    @torch.no_grad()
    def mapped(self, change: Callable[[Tensor], Tensor]) -> Self:
        """A new stack with each parameter changed."""
        changed = {id(p): nn.Parameter(change(p.detach()), requires_grad=p.requires_grad) for p in self.parameters()}
        return copy.deepcopy(self, changed)


class Embeddings(Stacked):
    """Tables of the users' narrow fields and of the campaigns' fields. Broad ones are handed in, for they are large."""

    narrow: nn.Parameter
    campaign: nn.Parameter

    def __init__(self, users: UserFields, campaigns: FeatureSchema, k: int, std: float) -> None:
        super().__init__()
        self.add("narrow", ids_of(users.narrow), k, std=std)
        self.add("campaign", ids_of(in_order(campaigns)), k, std=std)

    def forward(self, users: Users, campaigns: Campaigns, broad: Tensor) -> LookedUp:
        """`broad` is `[C, ids, k]`."""
        stack = len(broad)
        by_field = users.broad.by_field().of(broad.flatten(0, 1))
        campaign = campaigns.features.by_field().of(self.campaign.flatten(0, 1))
        rows = len(users.narrow.lengths) // stack
        campaign_rows = len(campaigns.features.lengths) // stack
        return LookedUp(
            users.narrow.by_row(),
            self.narrow,
            by_field.view(stack, rows, by_field.numel() // (stack * rows)),
            campaign.view(stack, campaign_rows, -1),
        )


class FirstLayer(Stacked):
    """A linear layer on all embeddings of a user and, if asked for, of the campaign: `[C, rows, outputs]`."""

    narrow: nn.Parameter
    broad: nn.Parameter
    campaign: nn.Parameter
    bias: nn.Parameter

    def __init__(self, users: UserFields, campaign_fields: int, k: int, outputs: int) -> None:
        super().__init__()
        bound = 1 / math.sqrt((users.count + campaign_fields) * k)
        self.sizes = [field.size for field in users.narrow]
        self.add("narrow", len(users.narrow), k, outputs, bound=bound)
        self.add("broad", len(users.broad) * k, outputs, bound=bound)
        self.reads_campaign = campaign_fields > 0
        if self.reads_campaign:
            self.add("campaign", campaign_fields * k, outputs, bound=bound)
        self.add("bias", 1, outputs, bound=bound)

    def forward(self, x: LookedUp) -> Tensor:
        constant: Tensor = self.bias
        if self.reads_campaign:
            constant = torch.baddbmm(constant, x.campaign, self.campaign)  # [C, 1 or rows, outputs]
        if not self.sizes:
            return x.broad.matmul(self.broad) + constant
        folded: Tensor = _Fold.apply(x.narrow, self.narrow, self.sizes)  # type: ignore[no-untyped-call]
        stack, rows, _ = x.broad.shape
        total = x.bags.of(folded.flatten(0, 1)).view(stack, rows, -1)
        # In place where it is no view: at this width much of the time goes into passes over activations.
        return torch.baddbmm(total, x.broad, self.broad).add_(constant)


class _Fold(torch.autograd.Function):
    """Each narrow field's ids through its part of the layer: `[C, ids, k]`, `[C, fields, k, out]` to `[C, ids, out]`.

    By hand, for two dozen small products a batch cost more in the graph than in themselves.
    """

    @staticmethod
    def forward(ctx: Any, table: Tensor, weight: Tensor, sizes: list[int]) -> Tensor:
        ctx.save_for_backward(table, weight)
        ctx.sizes = sizes
        parts = [torch.bmm(ids, weight[:, field]) for field, ids in enumerate(torch.split(table, sizes, 1))]
        return torch.cat(parts, 1)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, Tensor | None, None]:
        table, weight = ctx.saved_tensors
        of_table = of_weight = None
        parts = torch.split(gradient, ctx.sizes, 1)
        if ctx.needs_input_grad[0]:
            of_table = torch.cat([torch.bmm(g, weight[:, i].transpose(1, 2)) for i, g in enumerate(parts)], 1)
        if ctx.needs_input_grad[1]:
            tables = torch.split(table, ctx.sizes, 1)
            of_weight = torch.stack([torch.bmm(t.transpose(1, 2), g) for t, g in zip(tables, parts, strict=True)], 1)
        return of_table, of_weight, None


class Dense(Stacked):
    """A linear layer: `[C, rows, inputs]` to `[C, rows, outputs]`."""

    weight: nn.Parameter
    bias: nn.Parameter

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        bound = 1 / math.sqrt(inputs)
        self.add("weight", inputs, outputs, bound=bound)
        self.add("bias", 1, outputs, bound=bound)

    def forward(self, x: Tensor) -> Tensor:
        return torch.baddbmm(self.bias, x, self.weight)


class Experts(Stacked):
    """n feed-forward networks on the embeddings, ReLU after every layer: `[C, n, rows, hidden[-1]]`."""

    def __init__(self, users: UserFields, campaign_fields: int, k: int, hidden: tuple[int, ...], n: int) -> None:
        super().__init__()
        self.n = n
        self.first = FirstLayer(users, campaign_fields, k, n * hidden[0])
        self.layers = len(hidden) - 1
        for layer, (inputs, outputs) in enumerate(pairwise(hidden)):
            bound = 1 / math.sqrt(inputs)
            self.add(f"weight{layer}", n, inputs, outputs, bound=bound)
            self.add(f"bias{layer}", n, 1, outputs, bound=bound)

    def forward(self, embedded: LookedUp) -> Tensor:
        x: Tensor = self.first(embedded).relu_()  # [C, rows, n * hidden[0]]
        stack, rows, _ = x.shape
        x = x.view(stack, rows, self.n, -1).transpose(1, 2).reshape(stack * self.n, rows, -1)
        for layer in range(self.layers):
            weight, bias = self.get_parameter(f"weight{layer}"), self.get_parameter(f"bias{layer}")
            x = torch.baddbmm(bias.flatten(0, 1), x, weight.flatten(0, 1)).relu_()
        return x.view(stack, self.n, rows, -1)


def mix(opinions: Tensor, weights: Tensor) -> Tensor:
    """Weighted sum over n: `[C, n, rows, h]`, `[C, rows, n]` to `[C, rows, h]`."""
    result: Tensor = _Mix.apply(opinions, weights)  # type: ignore[no-untyped-call]
    return result


class _Mix(torch.autograd.Function):
    """By hand, for it is a third of the passes over `opinions` that the graph would make."""

    @staticmethod
    def forward(ctx: Any, opinions: Tensor, weights: Tensor) -> Tensor:
        ctx.save_for_backward(opinions, weights)
        mixed = opinions[:, 0] * weights[:, :, :1]
        for i in range(1, opinions.shape[1]):
            mixed.addcmul_(opinions[:, i], weights[:, :, i : i + 1])
        return mixed

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, Tensor | None]:
        opinions, weights = ctx.saved_tensors
        of_opinions = of_weights = None
        if ctx.needs_input_grad[0]:
            of_opinions = torch.empty_like(opinions)
            for i in range(opinions.shape[1]):
                torch.mul(gradient, weights[:, :, i : i + 1], out=of_opinions[:, i])
        if ctx.needs_input_grad[1]:
            columns = [torch.linalg.vecdot(opinions[:, i], gradient) for i in range(opinions.shape[1])]
            of_weights = torch.stack(columns, 2)
        return of_opinions, of_weights


class Network(Stacked):
    """A whole network of C campaigns: embeddings, what is above them, and log-odds."""

    embeddings: Embeddings

    @property
    def offset(self) -> nn.Parameter:
        """What is added to the log-odds last, `[C, ...]`."""
        raise NotImplementedError

    def forward(self, users: Users, campaigns: Campaigns, broad: Tensor) -> Tensor:
        """Log-odds `[C, rows]`; `broad` is the table of the users' broad fields, `[C, ids, k]`."""
        raise NotImplementedError
