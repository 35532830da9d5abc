"""MetaHeac differentiated by hand: a campaign's loss, its gradient, and how the gradient changes along a direction.

For Algorithm 1, which differentiates through a gradient: autograd takes about twice as long. Whatever is along a
direction d is the derivative by t, at 0, of what it is named after, with the weights at w + t d. Knows `bags`; nothing
of where users come from.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor
from torch.nn.functional import logsigmoid

from lookalike.model.bags import Bags
from lookalike.model.metaheac_weights import Shape, Weights

# Of what a ReLU left: what goes in is masked by what came out. `grad_input` may be what goes in.
_masked = torch.ops.aten.threshold_backward.grad_input


@dataclass(frozen=True)
class Users:
    """Users of a campaign and the campaign, by their ids.

    Attributes:
        narrow: rows of "narrow" by user.
        broad: rows of "broad" by user and field.
        linear: rows of "linear" by user, each with a weight of 1; none without a linear term.
        campaign: `[fields, rows of "campaign"]`, the weight of each id.
        labels: `[rows]`, 0 or 1.
    """

    narrow: Bags
    broad: Bags
    linear: Sequence[Bags]
    campaign: Tensor
    labels: Tensor


@dataclass
class Seen:
    """What the layers above the embeddings read, or a gradient or a derivative of that.

    Attributes:
        first: `[rows, n * h + k]`, the narrow fields' part of the first layers and of the mean of embeddings.
        broad: `[rows, broad fields * k]`.
        campaign: `[1, campaign fields * k]`.
        linear: `[rows]`, or 0.
    """

    first: Tensor
    broad: Tensor
    campaign: Tensor
    linear: Tensor


class Lookup:
    """From ids to what the layers above read."""

    def __init__(self, shape: Shape, users: Users, weights: Weights) -> None:
        self.shape, self.users, self.w = shape, users, weights

    def forward(self) -> Seen:
        """What there is to see."""
        return self._look(self.w, self._folded([(self.w["narrow"], self.w["first_narrow"])]))

    def along(self, d: Weights) -> Seen:
        """`forward`, along `d`."""
        pairs = [(d["narrow"], self.w["first_narrow"]), (self.w["narrow"], d["first_narrow"])]
        return self._look(d, self._folded(pairs))

    def backward(self, g: Seen, to: Weights) -> None:
        """Puts the gradient of what is looked up `to` its place, given that of what there is to see."""
        users = self.users
        self.g_folded = self._back_narrow.product(g.first)
        self._unfold(self.w, self.g_folded, to, add=False)
        to["broad"] = self._back_broad.product(g.broad.view(-1, self.shape.k))
        to["campaign"] = users.campaign.t() @ g.campaign.view(-1, self.shape.k)
        to["linear"] = torch.zeros_like(self.w["linear"])
        for bags in self._back_linear:
            to["linear"] += bags.product(g.linear.unsqueeze(1))

    def backward_along(self, d: Weights, g: Seen, to: Weights) -> None:
        """`backward`, along `d`, where what was handed to that becomes `g`."""
        before = self.g_folded
        self.backward(g, to)
        self._unfold(d, before, to, add=True)

    def _look(self, w: Weights, folded: Tensor) -> Seen:
        users = self.users
        rows = len(users.labels)
        return Seen(
            users.narrow.product(folded),
            users.broad.product(w["broad"]).view(rows, len(self.shape.users.broad) * self.shape.k),
            (users.campaign @ w["campaign"]).view(1, -1),
            sum((bags.product(w["linear"]).squeeze(1) for bags in users.linear), torch.zeros(())),
        )

    def _folded(self, pairs: Sequence[tuple[Tensor, Tensor]]) -> Tensor:
        """Each narrow field's ids through its part of the first layers, `[ids, n * h + k]`; summed over `pairs`."""
        result = torch.empty(self.shape.ids, self.w["first_bias"].numel())
        for ids, fields, size in self.shape.groups:
            part = result[ids].view(-1, size, result.shape[1])
            for number, (table, first) in enumerate(pairs):
                torch.baddbmm(part, table[ids].view(len(part), size, -1), first[fields], beta=min(number, 1), out=part)
        return result

    def _unfold(self, w: Weights, g: Tensor, to: Weights, *, add: bool) -> None:
        for ids, fields, size in self.shape.groups:
            part = g[ids].view(-1, size, g.shape[1])
            table, first = to["narrow"][ids].view(len(part), size, -1), to["first_narrow"][fields]
            torch.baddbmm(table, part, w["first_narrow"][fields].transpose(1, 2), beta=int(add), out=table)
            of_ids = w["narrow"][ids].view(len(part), size, -1)
            torch.baddbmm(first, of_ids.transpose(1, 2), part, beta=int(add), out=first)

    @cached_property
    def _back_narrow(self) -> Bags:
        return self.users.narrow.transposed(self.shape.ids)

    @cached_property
    def _back_broad(self) -> Bags:
        return self.users.broad.transposed(len(self.w["broad"]))

    @cached_property
    def _back_linear(self) -> list[Bags]:
        return [bags.transposed(len(self.w["linear"])) for bags in self.users.linear]


class Tower:
    """Experts, gates and critics. `g_x` is the gradient by `x`, and `d_x` is `x` along the direction."""

    def __init__(self, shape: Shape, weights: Weights, seen: Seen) -> None:
        self.shape, self.w, self.seen = shape, weights, seen

    def forward(self) -> tuple[Tensor, Tensor]:
        """Log-weights of the critics, Eq. 5, and what they say, Eq. 7: `[m, rows]` each."""
        w, seen, n = self.w, self.seen, self.shape.experts
        first = seen.first.addmm_(seen.broad, w["first_broad"]).add_(w["first_bias"])
        x, self.mean = self._split(first)
        self.x = [torch.clamp_min(x, 0, out=torch.empty(x.shape))]  # [n, rows, h] each
        for layer in range(self.shape.layers):
            self.x.append(torch.baddbmm(w[f"bias{layer}"], self.x[-1], w[f"weight{layer}"]).relu_())
        constant = torch.addmm(w["gate_bias"], seen.campaign, w["gate_campaign"])
        self.gate = torch.addmm(constant, self.mean, w["gate_user"]).relu_()
        logits = torch.addmm(w["gate_out_bias"], w["gate_out"], self.gate.t())
        self.share = logits[:n].softmax(0)  # [n, rows]
        log_weights = logits[n:].log_softmax(0)
        self.chance = log_weights.exp()
        self.mixed = _mixed(self.x[-1], self.share).div_(self.shape.divisor)
        return log_weights, torch.addmm(w["critics_bias"], w["critics"], self.mixed.t()).add_(seen.linear)

    def along(self, d: Weights, seen: Seen) -> tuple[Tensor, Tensor]:
        """`forward`, along `d`, where what it reads becomes `seen`."""
        w, at, n = self.w, self.seen, self.shape.experts
        self.d_seen = seen
        first = seen.first.addmm_(at.broad, d["first_broad"]).addmm_(seen.broad, w["first_broad"])
        z, self.d_mean = self._split(first.add_(d["first_bias"]))
        self.d_x = [_masked(z, self.x[0], 0, grad_input=torch.empty(z.shape))]
        for layer in range(self.shape.layers):
            z = torch.baddbmm(d[f"bias{layer}"], self.x[layer], d[f"weight{layer}"])
            z.baddbmm_(self.d_x[-1], w[f"weight{layer}"])
            self.d_x.append(_masked(z, self.x[layer + 1], 0, grad_input=z))
        constant = torch.addmm(d["gate_bias"], at.campaign, d["gate_campaign"])
        constant.addmm_(seen.campaign, w["gate_campaign"])
        gate = torch.addmm(constant, self.mean, d["gate_user"]).addmm_(self.d_mean, w["gate_user"])
        self.d_gate = _masked(gate, self.gate, 0, grad_input=gate)
        logits = torch.addmm(d["gate_out_bias"], d["gate_out"], self.gate.t()).addmm_(w["gate_out"], gate.t())
        self.d_share = self.share * (logits[:n] - (self.share * logits[:n]).sum(0))
        log_weights = logits[n:] - (self.chance * logits[n:]).sum(0)
        self.d_chance = self.chance * log_weights
        mixed = _mixed(self.x[-1], self.d_share).add_(_mixed(self.d_x[-1], self.share))
        self.d_mixed = mixed.div_(self.shape.divisor)
        opinions = torch.addmm(d["critics_bias"], d["critics"], self.mixed.t()).addmm_(w["critics"], self.d_mixed.t())
        return log_weights, opinions.add_(seen.linear)

    def backward(self, g_log_weights: Tensor, g_opinions: Tensor, to: Weights) -> Seen:
        """Puts gradients `to` their places, from those of what `forward` returned; returns those of what it reads."""
        w = self.w
        self.g_log_weights, self.g_opinions = g_log_weights, g_opinions
        self.g_mixed = (g_opinions.t() @ w["critics"]).div_(self.shape.divisor)  # [rows, h]
        torch.mm(g_opinions, self.mixed, out=to["critics"])
        torch.sum(g_opinions, 1, keepdim=True, out=to["critics_bias"])
        self.g_share = torch.linalg.vecdot(self.x[-1], self.g_mixed)
        self.g_tilt = self.g_share - (self.share * self.g_share).sum(0)
        of_critics = g_log_weights - self.chance * g_log_weights.sum(0)
        self.g_logits = torch.cat([self.share * self.g_tilt, of_critics])  # [n + m, rows]
        g_gate = self.g_logits.t() @ w["gate_out"]
        self.g_gate = _masked(g_gate, self.gate, 0, grad_input=g_gate)
        torch.mm(self.g_logits, self.gate, out=to["gate_out"])
        torch.sum(self.g_logits, 1, keepdim=True, out=to["gate_out_bias"])
        torch.mm(self.mean.t(), g_gate, out=to["gate_user"])
        self.g_constant = torch.sum(g_gate, 0, keepdim=True, out=to["gate_bias"])
        torch.mm(self.seen.campaign.t(), self.g_constant, out=to["gate_campaign"])
        self.g_z: dict[int, Tensor] = {}
        g_x = self.share.unsqueeze(2) * self.g_mixed
        for layer in reversed(range(self.shape.layers)):
            g_z = self.g_z[layer] = _masked(g_x, self.x[layer + 1], 0, grad_input=g_x)
            torch.bmm(self.x[layer].transpose(1, 2), g_z, out=to[f"weight{layer}"])
            torch.sum(g_z, 1, keepdim=True, out=to[f"bias{layer}"])
            g_x = torch.bmm(g_z, w[f"weight{layer}"].transpose(1, 2))
        self.g_first = self._joined(g_x, g_gate @ w["gate_user"].t())
        torch.mm(self.seen.broad.t(), self.g_first, out=to["first_broad"])
        torch.sum(self.g_first, 0, out=to["first_bias"])
        g_broad = self.g_first @ w["first_broad"].t()
        return Seen(self.g_first, g_broad, self.g_constant @ w["gate_campaign"].t(), g_opinions.sum(0))

    def backward_along(self, d: Weights, d_log_weights: Tensor, d_opinions: Tensor, to: Weights) -> Seen:
        """`backward`, along `d`, where what was handed to that becomes `d_log_weights` and `d_opinions`."""
        w, at = self.w, self.seen
        d_mixed = (d_opinions.t() @ w["critics"]).addmm_(self.g_opinions.t(), d["critics"]).div_(self.shape.divisor)
        torch.mm(d_opinions, self.mixed, out=to["critics"]).addmm_(self.g_opinions, self.d_mixed)
        torch.sum(d_opinions, 1, keepdim=True, out=to["critics_bias"])
        d_share = torch.linalg.vecdot(self.d_x[-1], self.g_mixed).add_(torch.linalg.vecdot(self.x[-1], d_mixed))
        d_tilt = d_share - (self.d_share * self.g_share + self.share * d_share).sum(0)
        of_critics = d_log_weights - self.d_chance * self.g_log_weights.sum(0) - self.chance * d_log_weights.sum(0)
        d_logits = torch.cat([self.d_share * self.g_tilt + self.share * d_tilt, of_critics])
        d_gate = (d_logits.t() @ w["gate_out"]).addmm_(self.g_logits.t(), d["gate_out"])
        d_gate = _masked(d_gate, self.gate, 0, grad_input=d_gate)
        torch.mm(d_logits, self.gate, out=to["gate_out"]).addmm_(self.g_logits, self.d_gate)
        torch.sum(d_logits, 1, keepdim=True, out=to["gate_out_bias"])
        torch.mm(self.mean.t(), d_gate, out=to["gate_user"]).addmm_(self.d_mean.t(), self.g_gate)
        d_constant = torch.sum(d_gate, 0, keepdim=True, out=to["gate_bias"])
        torch.mm(at.campaign.t(), d_constant, out=to["gate_campaign"])
        to["gate_campaign"].addmm_(self.d_seen.campaign.t(), self.g_constant)
        d_x = (self.d_share.unsqueeze(2) * self.g_mixed).addcmul_(self.share.unsqueeze(2), d_mixed)
        for layer in reversed(range(self.shape.layers)):
            d_z, g_z = _masked(d_x, self.x[layer + 1], 0, grad_input=d_x), self.g_z[layer]
            weight = torch.bmm(self.x[layer].transpose(1, 2), d_z, out=to[f"weight{layer}"])
            weight.baddbmm_(self.d_x[layer].transpose(1, 2), g_z)
            torch.sum(d_z, 1, keepdim=True, out=to[f"bias{layer}"])
            d_x = torch.bmm(d_z, w[f"weight{layer}"].transpose(1, 2))
            d_x.baddbmm_(g_z, d[f"weight{layer}"].transpose(1, 2))
        d_mean = (d_gate @ w["gate_user"].t()).addmm_(self.g_gate, d["gate_user"].t())
        d_first = self._joined(d_x, d_mean)
        torch.mm(at.broad.t(), d_first, out=to["first_broad"]).addmm_(self.d_seen.broad.t(), self.g_first)
        torch.sum(d_first, 0, out=to["first_bias"])
        d_broad = (d_first @ w["first_broad"].t()).addmm_(self.g_first, d["first_broad"].t())
        d_campaign = (d_constant @ w["gate_campaign"].t()).addmm_(self.g_constant, d["gate_campaign"].t())
        return Seen(d_first, d_broad, d_campaign, d_opinions.sum(0))

    def _split(self, first: Tensor) -> tuple[Tensor, Tensor]:
        """What the first layers give, `[n, rows, h]`, and the mean of embeddings, `[rows, k]`."""
        n, wide = self.shape.experts, first.shape[1] - self.shape.k
        return first[:, :wide].view(len(first), n, wide // n).transpose(0, 1), first[:, wide:]

    def _joined(self, g_x: Tensor, g_mean: Tensor) -> Tensor:
        """The gradient of what is split, from those of the first ReLUs' outputs and of the mean."""
        n, rows, h = g_x.shape
        first = torch.empty(rows, n * h + self.shape.k)
        z, mean = self._split(first)
        _masked(g_x, self.x[0], 0, grad_input=z)
        mean.copy_(g_mean)
        return first


class Passes:
    """The loss of some users under `weights`; then its gradient, and then that along a direction."""

    def __init__(self, shape: Shape, users: Users, weights: Weights) -> None:
        self.shape, self.users, self.weights = shape, users, weights
        self.lookup = Lookup(shape, users, weights)
        self.tower = Tower(shape, weights, self.lookup.forward())
        self.log_weights, self.opinions = self.tower.forward()

    def loss(self) -> float:
        """The mean cross-entropy, Eq. 2."""
        literal, labels = self.shape.config.literal_average, self.users.labels
        # A user's chance of the label that it has is Eq. 8 too, with the other sign; as printed it is not.
        self.sign = torch.ones(()) if literal else 2 * labels - 1
        terms = self.log_weights + logsigmoid(self.sign * self.opinions)
        log_p = terms.logsumexp(0)
        self.part = (terms - log_p).exp_()
        self.wrong = torch.sigmoid(-self.sign * self.opinions).mul_(self.sign)
        # How the log-likelihood of a user's label grows with log p, and that with log p.
        self.slope, self.bend = torch.ones(()), torch.zeros(())
        if literal:
            log_p = log_p - math.log(self.shape.config.num_critics)
            p = log_p.exp().clamp_(max=1 - 1e-7)
            odds = p / (1 - p)
            self.slope = torch.where(labels > 0, 1.0, -odds)
            self.bend = torch.where(labels > 0, 0.0, -odds * (1 + odds))
            log_p = torch.where(labels > 0, log_p, torch.log1p(-p))
        return -log_p.mean().item()

    def gradient(self) -> Weights:
        """Of the loss, by all weights. The loss comes first."""
        to = self.weights.like()
        of_log_weights = self.part * (-self.slope / len(self.users.labels))
        self.lookup.backward(self.tower.backward(of_log_weights, of_log_weights * self.wrong, to), to)
        to.flat.mul_(self.shape.fixed)
        return to

    def gradient_along(self, d: Weights) -> Weights:
        """`gradient`, along `d`: the loss's second derivative times `d`."""
        log_weights, opinions = self.tower.along(d, self.lookup.along(d))
        terms = log_weights + self.wrong * opinions
        log_p = (self.part * terms).sum(0)
        part, slope = self.part * (terms - log_p), self.bend * log_p
        wrong = self.wrong * (self.wrong - self.sign) * opinions
        share = -1 / len(self.users.labels)
        of_log_weights = (part * self.slope + self.part * slope) * share
        of_opinions = of_log_weights * self.wrong + self.part * (self.slope * share) * wrong
        to = self.weights.like()
        seen = self.tower.backward_along(d, of_log_weights, of_opinions, to)
        self.lookup.backward_along(d, seen, to)
        to.flat.mul_(self.shape.fixed)
        return to


def _mixed(x: Tensor, share: Tensor) -> Tensor:
    """Eq. 6: `[n, rows, h]` and `[n, rows]` to `[rows, h]`."""
    return torch.bmm(share.t().contiguous().unsqueeze(1), x.transpose(0, 1)).squeeze(1)
