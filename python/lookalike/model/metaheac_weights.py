"""MetaHeac's parameters as `metaheac_twice` wants them: laid out for few and wide products, a campaign's in one piece.

Knows the network; not how it is differentiated or trained.
"""

from __future__ import annotations

import math
from itertools import groupby

import numpy as np
import torch
from torch import Tensor

from lookalike.model.metaheac import MetaHeac
from lookalike.model.stacked import UserFields, in_order


class Shape:
    """What there is to know of a network beside its weights.

    Narrow fields of about one size lie side by side in "narrow", padded to one size, so that they are one product.

    Attributes:
        groups: of these, the ids, the fields, and the size of each field.
        places: which row of "narrow" each id of `users.narrow` is.
        layers: of experts, beside the first.
        divisor: of the mixture, where it is as Eq. 6 is printed; else 1.
        sizes: of what is in one piece, by name.
        fixed: 0 where that holds no parameter, else 1.
    """

    def __init__(self, model: MetaHeac) -> None:
        config = self.config = model.config
        self.users, self.k = UserFields(model.users.schema), config.embedding_dim
        self.experts, self.layers = config.num_experts, len(config.hidden) - 1
        self.divisor = config.num_experts if config.literal_average else 1
        self._lay_out_narrow()
        with torch.no_grad():
            self.sizes = {name: weight.shape for name, weight in self._dense(model).items()}
            parameters = torch.ones(sum(math.prod(size) for size in self.sizes.values()))
            fixed = Weights(parameters, self.sizes)
            for name in ("first_narrow", "first_broad", "first_bias"):
                fixed[name][..., -self.k :] = 0
            half = config.gate_hidden
            fixed["gate_out"][: self.experts, half:] = 0
            fixed["gate_out"][self.experts :, :half] = 0
        self.fixed = parameters

    def _lay_out_narrow(self) -> None:
        self.narrow = sorted(self.users.narrow, key=lambda field: field.size)
        self.groups: list[tuple[slice, slice, int]] = []
        starts: dict[str, int] = {}
        self.ids = 0
        for _, group in groupby(self.narrow, lambda field: max(3, (field.size - 1).bit_length())):
            fields = list(group)
            size, first, number = fields[-1].size, self.ids, len(starts)
            for field in fields:
                starts[field.name] = self.ids
                self.ids += size
            self.groups.append((slice(first, self.ids), slice(number, len(starts)), size))
        places = [starts[field.name] + np.arange(field.size, dtype=np.int32) for field in self.users.narrow]
        self.places = np.concatenate([np.zeros(0, np.int32), *places])

    def dense(self, model: MetaHeac) -> Tensor:
        """The general parameters in one piece; zeros for "narrow". Differentiable."""
        return torch.cat([weight.flatten() for weight in self._dense(model).values()])

    def _dense(self, model: MetaHeac) -> dict[str, Tensor]:
        k, place = self.k, {field.name: i for i, field in enumerate(in_order(model.users.schema))}
        first = model.experts.weights[0].permute(1, 0, 2).reshape(len(place), k, -1)  # [fields, k, n * h]
        mean = torch.eye(k).div_(len(place)).expand(len(place), k, k)
        first = torch.cat([first, mean], 2)
        gates = model.expert_gate, model.critic_gate
        result = {
            "narrow": torch.zeros(self.ids, k),
            "first_narrow": first[[place[field.name] for field in self.narrow]],
            "first_broad": first[[place[field.name] for field in self.users.broad]].flatten(0, 1),
            "first_bias": torch.cat([model.experts.biases[0].flatten(), torch.zeros(k)]),
            "critics": model.critics.weight,
            "critics_bias": model.critics.bias.unsqueeze(1),
            "gate_user": torch.cat([gate.from_user.weight for gate in gates]).t(),
            "gate_campaign": torch.cat([gate.from_campaign.weight for gate in gates]).t(),
            "gate_bias": torch.cat([gate.from_campaign.bias for gate in gates]).unsqueeze(0),
            "gate_out": torch.block_diag(*(gate.output.weight for gate in gates)),  # type: ignore[no-untyped-call]
            "gate_out_bias": torch.cat([gate.output.bias for gate in gates]).unsqueeze(1),
        }
        for layer in range(self.layers):
            result[f"weight{layer}"] = model.experts.weights[layer + 1]
            result[f"bias{layer}"] = model.experts.biases[layer + 1]
        return result


class Weights(dict[str, Tensor]):
    """A campaign's parameters, a gradient of them, or a direction. All but the last three are parts of `flat`.

    narrow `[ids, k]`: embeddings of the users' narrow fields.
    first_narrow `[fields, k, n * h + k]`, first_broad `[fields * k, n * h + k]`, first_bias `[n * h + k]`: the experts'
        first layers, and as k more outputs the mean of all fields' embeddings, which has no parameters.
    weight0 `[n, h, h']`, bias0 `[n, 1, h']`, and so on: the experts' other layers.
    critics `[m, h]`, critics_bias `[m, 1]`.
    gate_user `[k, 2 * g]`, gate_campaign `[fields * k, 2 * g]`, gate_bias `[1, 2 * g]`: both gates' first layers.
    gate_out `[n + m, 2 * g]`, gate_out_bias `[n + m, 1]`: the second ones, and zeros where neither has weights.
    broad `[own, k]`, linear `[own, 1 or 0]`: embeddings and linear weights of the ids that the campaign's users have.
    campaign `[own, k]`: embeddings of the ids that the campaign has.
    """

    OWN = "broad", "linear", "campaign"

    def __init__(self, flat: Tensor, sizes: dict[str, torch.Size]) -> None:
        parts = torch.split(flat, [math.prod(size) for size in sizes.values()])
        super().__init__({name: part.view(size) for (name, size), part in zip(sizes.items(), parts, strict=True)})
        self.flat, self.sizes = flat, sizes

    def like(self) -> Weights:
        """Room for as many, without own embeddings."""
        return Weights(torch.empty_like(self.flat), self.sizes)

    def moved(self, gradient: Weights, alpha: float) -> Weights:
        """A step of gradient descent."""
        result = Weights(torch.sub(self.flat, gradient.flat, alpha=alpha), self.sizes)
        result.update({name: torch.sub(self[name], gradient[name], alpha=alpha) for name in self.OWN})
        return result
