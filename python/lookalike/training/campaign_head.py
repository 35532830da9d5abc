"""A campaign's own weights above the general model: what they are, their prior, and the fit of them to its seeds.

Knows `model` and feature batches. The fit needs no learning rate and no epochs: it is convex but for the critics' mix.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from lookalike.model.features import FeatureBatch
from lookalike.model.metaheac import MetaHeac

# Steps of scoring (Newton with expected curvature): each gains a digit or more; so many are for odd campaigns.
MAX_STEPS = 30
BASIS_STD = 0.01  # small, as the embeddings': what is rare should not begin as noise
# Users that a fit of many begins with.
FEW = 8192
# Of the objective a sample; ranks have settled long before.
TOLERANCE = 1e-7
# Of a step: where the general model is sure and wrong, curvature is next to none, and a step a million times too long.
LEAST_SCALE = 1e-9
# Keeps logarithms and quotients of doubles finite; opinions of -690 are not so improbable.
LEAST_CHANCE = 1e-300


class HeadPrior(nn.Module):
    """What training campaigns say of a new campaign's own weights, before it has shown a seed.

    Own weights are a shift of every critic's weights, `[h]`, coefficients `[d]` of a linear term over ids in the span
    of `basis`, and what is left: a weight for each id. All are normal around 0; the intercept is free.

    Attributes:
        basis: `[user ids, d]`.
        shift_std, coefficient_std: deviations, scalars.
        id_variance: of the weight of an id, beyond the span; 0: there is none.
    """

    def __init__(self, table_rows: int, hidden: int, rank: int) -> None:
        super().__init__()
        self.hidden, self.rank = hidden, rank
        self.basis = nn.Parameter(BASIS_STD * torch.randn(table_rows, rank))
        self.shift_std, self.coefficient_std, self.id_variance = (
            nn.Parameter(torch.tensor(value), requires_grad=False) for value in (1.0, 1.0, 0.0)
        )

    def deviations(self) -> Tensor:
        """Of shifts and coefficients, `[h + d]`."""
        return torch.cat([self.shift_std.expand(self.hidden), self.coefficient_std.expand(self.rank)])


@dataclass(frozen=True)
class Judged:
    """Users as the general model sees them for a campaign: all that a campaign's own weights act on.

    Attributes:
        features: `[users, h + d]`: mixed expertise (Eq. 6), and the basis summed over a user's ids.
        opinions: `[users, m]`: the critics' (Eq. 7), without own weights.
        log_weights: `[users, m]`: the critics' gate's.
    """

    features: Tensor
    opinions: Tensor
    log_weights: Tensor

    def take(self, index: npt.NDArray[np.int64] | slice) -> Judged:
        """The users at `index`."""
        return Judged(self.features[index], self.opinions[index], self.log_weights[index])

    @staticmethod
    def concat(parts: Sequence[Judged]) -> Judged:
        """All users of the parts, in order."""
        return Judged(*(torch.cat([getattr(p, f.name) for p in parts]) for f in fields(Judged)))


def judge(model: MetaHeac, prior: HeadPrior, users: FeatureBatch, campaign: FeatureBatch) -> Judged:
    """Users `[users]` as one campaign sees them."""
    seen = model.represent(users)
    expert_gate, critic_gate = model.gates(seen.user_mean, campaign)
    mixed = model.mix(seen.hidden, expert_gate)
    return Judged(torch.cat([mixed, users.sum_ids(prior.basis)], dim=1), model.critics(mixed), critic_gate)


def log_odds(judged: Judged, shift: Tensor) -> Tensor:
    """log p / (1 - p) of Eq. 8 `[users]`, every opinion shifted by `shift` `[users]`."""
    opinions = judged.opinions + shift.unsqueeze(1)
    log_p = (judged.log_weights + nn.functional.logsigmoid(opinions)).logsumexp(1)
    log_not_p = (judged.log_weights + nn.functional.logsigmoid(-opinions)).logsumexp(1)
    return log_p - log_not_p


def cross_entropy(opinions: Tensor, log_weights: Tensor, shift: Tensor, labels: Tensor) -> Tensor:
    """Eq. 2 `[users]` under `opinions` and `log_weights` `[users, m]`, every opinion shifted by `shift` `[users]`."""
    opinions = opinions + shift.unsqueeze(1)
    if opinions.shape[1] == 1:
        return nn.functional.binary_cross_entropy_with_logits(opinions[:, 0], labels, reduction="none")
    log_p = (log_weights + nn.functional.logsigmoid(opinions)).logsumexp(1)
    log_not_p = (log_weights + nn.functional.logsigmoid(-opinions)).logsumexp(1)
    return -(labels * log_p + (1 - labels) * log_not_p)


@dataclass(frozen=True)
class Head:
    """A campaign's own weights `[h + d]` and intercept."""

    weights: Tensor
    intercept: Tensor

    def shift(self, judged: Judged) -> Tensor:
        """What it adds to each critic's opinion, `[users]` float64."""
        return (judged.features @ self.weights).double() + self.intercept


@torch.no_grad()
def fit_head(
    judged: Judged,
    labels: Tensor,
    deviations: Tensor,
    poll: Callable[[], None] = lambda: None,
    visit: Callable[[Head], None] = lambda _: None,
) -> Head:
    """The most probable own weights, given seeds and negatives, under normal priors of `deviations` `[h + d]`.

    Args:
        labels: `[users]` 0/1.
        poll: called at every step; raise from it to stop.
        visit: called with what there is after each step of the fit to all users, the last one included.
    """
    design = judged.features.new_ones(len(labels), len(deviations) + 1)  # [users, h + d + 1]
    scaled = torch.mul(judged.features, deviations.to(design), out=design[:, :-1])
    mean = scaled.mean(0)
    scaled -= mean
    posterior = _Posterior(design, judged.opinions.double(), judged.log_weights.double().exp(), labels.double())
    theta = torch.zeros(design.shape[1], dtype=torch.float64)
    stride = len(labels) // FEW
    if stride > 1:  # most of the way costs little by a part of the users
        theta = posterior.every(stride).climb(theta, poll)

    def head(theta: Tensor) -> Head:
        return Head(theta[:-1].float() * deviations, (theta[-1] - theta[:-1] @ mean.double()).float())

    return head(posterior.climb(theta, poll, lambda theta: visit(head(theta))))


@dataclass(frozen=True)
class _Posterior:
    """Of weights in units of their deviations, and an intercept: design `[users, h + d + 1]`, critics and labels."""

    design: Tensor
    opinions: Tensor
    weights: Tensor
    targets: Tensor

    @property
    def precision(self) -> Tensor:
        """Of the prior; the intercept is free, and this keeps its curvature above 0."""
        precision = torch.ones(self.design.shape[1], dtype=torch.float64)
        precision[-1] = 1e-6
        return precision

    def every(self, stride: int) -> _Posterior:
        """Of each `stride`-th user alone."""
        return _Posterior(*(part[::stride] for part in (self.design, self.opinions, self.weights, self.targets)))

    def climb(
        self, theta: Tensor, poll: Callable[[], None], visit: Callable[[Tensor], None] = lambda _: None
    ) -> Tensor:
        """From `theta` to the top, by scoring with the step halved where it overshoots."""
        prior, design, targets = self.precision, self.design, self.targets
        value, shift = self._value(theta)
        for _ in range(MAX_STEPS):
            poll()
            p, not_p, slope = self._chances(shift)
            gradient = design.mT @ torch.where(targets > 0, -slope / p, slope / not_p).to(design)
            curvature = design.mT @ (design * (slope / p * (slope / not_p)).to(design).unsqueeze(1))
            step = torch.linalg.solve(curvature.double() + prior.diag(), gradient.double() + prior * theta)
            scale = 1.0
            while scale > LEAST_SCALE:
                candidate = theta - scale * step
                new_value, new_shift = self._value(candidate)
                if new_value <= value:
                    break
                scale /= 2
            else:
                break
            gained = value - new_value
            theta, value, shift = candidate, new_value, new_shift
            visit(theta)
            if gained < TOLERANCE * len(targets):
                break
        return theta

    def _chances(self, shift: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """p, 1 - p and the slope of p `[users]`; each a sum of its own, so that none rounds to 0 where p nears 1."""
        shifted = self.opinions + shift.unsqueeze(1)
        yes, no = shifted.sigmoid(), (-shifted).sigmoid()
        return (
            (self.weights * yes).sum(1).clamp_min(LEAST_CHANCE),
            (self.weights * no).sum(1).clamp_min(LEAST_CHANCE),
            (self.weights * yes * no).sum(1),
        )

    def _value(self, theta: Tensor) -> tuple[float, Tensor]:
        shift = (self.design @ theta.to(self.design)).double()
        p, not_p, _ = self._chances(shift)
        fit = -torch.where(self.targets > 0, p, not_p).log().sum()
        return float(fit + 0.5 * (self.precision * theta.square()).sum()), shift
