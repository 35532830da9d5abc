"""Joint pre-training: all training campaigns at once, user by user, each campaign with own weights above the network.

The experts see a user once for all campaigns that know the user, which is a hundredth of the work of seeing each
sample. Knows `model`, tasks and pools; knows nothing of checkpoints.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from lookalike.config import JointConfig, TrainingConfig
from lookalike.model.features import FeatureBatch
from lookalike.model.metaheac import MetaHeac
from lookalike.pool.snapshot import Pool
from lookalike.schema import EncodedColumns
from lookalike.stretches import places
from lookalike.training.campaign_head import HeadPrior, cross_entropy
from lookalike.training.head_fit import CampaignSamples
from lookalike.training.row_adam import RowAdam
from lookalike.training.tasks import Samples, Task

Index = npt.NDArray[np.int64]

# Of the first rate: what is left when the budget is spent.
MIN_RATE = 0.01
# What to try for deviations of own weights, as multiples of the training campaigns'. These are shrunk and know more
# samples than seeds alone, so the best may lie on either side.
SCALES = (0.5, 1.0, 2.0)
# What to try for the variance of an id's own weight (scikit-learn's C). Where campaigns have nothing in common, this is
# all there is, and a plain regression is best at 0.03 to 0.1.
ID_VARIANCES = (0.0, 0.003, 0.01, 0.03, 0.1)
# Where no campaign can be asked. It hardly matters where campaigns have much in common; where they have nothing, 0
# would lose to a regression on the seeds.
UNASKED_ID_VARIANCE = 0.03
# Users of an audience that judge: enough for a mean over campaigns, and a bound where audiences are huge.
MOST_JUDGED = 4096


@dataclass(frozen=True)
class Knowledge:
    """Who is known to be interested in what, user by user.

    Attributes:
        users: `[n]` pool rows, ascending, each once.
        starts: `[n + 1]`, where a user's entries begin.
        campaigns: `[entries]`, numbers of tasks.
        labels: `[entries]` float32, 0 or 1.
    """

    users: Index
    starts: Index
    campaigns: Index
    labels: npt.NDArray[np.float32]

    @staticmethod
    def of(tasks: Sequence[Task]) -> Knowledge:
        """Of all samples of the tasks."""
        rows = np.concatenate([task.samples.rows for task in tasks])
        order = np.argsort(rows, kind="stable")
        users, first = np.unique(rows[order], return_index=True)
        campaigns = np.repeat(np.arange(len(tasks)), [len(task.samples) for task in tasks])
        labels = np.concatenate([task.samples.labels for task in tasks])
        return Knowledge(users, np.append(first, len(rows)), campaigns[order], labels[order])

    def take(self, index: Index) -> tuple[Tensor, Tensor, Tensor]:
        """All entries of some users: which of `index`, which campaign, and the label, `[entries]` each."""
        counts = self.starts[index + 1] - self.starts[index]
        entries = places(self.starts[index], counts)
        which = np.repeat(np.arange(len(index)), counts)
        return (
            torch.from_numpy(which),
            torch.from_numpy(self.campaigns[entries]),
            torch.from_numpy(self.labels[entries]),
        )


class OwnWeightsOfAll(nn.Module):
    """The own weights of all training campaigns: shifts `[T, h]`, coefficients `[T, d]`, intercepts `[T]`."""

    def __init__(self, campaigns: int, hidden: int, rank: int) -> None:
        super().__init__()
        self.shift = nn.Parameter(0.05 * torch.randn(campaigns, hidden))
        self.coefficients = nn.Parameter(0.1 * torch.randn(campaigns, rank))
        self.intercept = nn.Parameter(torch.zeros(campaigns))


class JointTrainer:
    """The general model, the basis, the campaigns' own weights, and their optimisers. `step` takes some users."""

    def __init__(
        self,
        model: MetaHeac,
        prior: HeadPrior,
        config: JointConfig,
        settings: TrainingConfig,
        pool: Pool,
        tasks: Sequence[Task],
        total: int,
    ) -> None:
        """`total`: samples that training will see."""
        self.model, self.prior, self.config, self.settings, self.pool = model, prior, config, settings, pool
        self.knowledge = Knowledge.of(tasks)
        self.users = pool.take(self.knowledge.users)
        self.campaigns = model.campaigns.batch(EncodedColumns.concat([task.features for task in tasks]))
        self.trained_campaign_rows = model.campaigns.occurring(self.campaigns)
        self.own = OwnWeightsOfAll(len(tasks), prior.hidden, prior.rank)
        batch = min(config.batch_samples, total / config.min_steps)
        steps = round(len(self.knowledge.labels) / batch)
        self.steps_per_epoch = min(max(1, steps), len(self.knowledge.users))
        self._order: tuple[int, list[Index]] | None = None
        self._exams: tuple[Sequence[Task], list[_Exam]] | None = None
        normal = [self.own.shift, self.own.coefficients]
        others = [p for p in model.parameters() if p is not model.user_embedding] + [self.own.intercept]
        # The optimiser adds the prior's gradient itself: 2 w of the square of w.
        groups: list[dict[str, Any]] = [{"params": others}, {"params": normal, "weight_decay": 2 * config.l2}]
        self.optimizers: dict[str, torch.optim.Optimizer] = {
            "dense": torch.optim.Adam(groups, lr=config.lr, fused=True),
        }
        self.tables = (model.user_embedding, prior.basis)
        self.rows = RowAdam(self.tables, config.lr)
        self.optimizers["tables"] = self.rows

    def step(self, number: int, done: float) -> tuple[float, float, int]:
        """One update from the users whose turn it is, at a rate that falls to 0 as the budget is spent.

        All randomness comes from the configured seed and `number`: a resumed run continues the same sequence.
        """
        epoch, place = divmod(number, self.steps_per_epoch)
        index = self._turn(epoch, place)
        rng = np.random.default_rng([self.settings.seed, epoch, place])
        which, campaign, labels = self.knowledge.take(index)
        users = self.model.users.batch(self.users.take(index))
        users = self.model.users.with_unknown(users, self.settings.user_id_dropout, rng)
        campaigns = self.model.campaigns.with_unknown(self.campaigns, self.settings.campaign_id_dropout, rng)
        rows = self.model.users.occurring(users)
        leaves = [table.detach().index_select(0, rows).requires_grad_() for table in self.tables]
        for optimizer in self.optimizers.values():
            for group in optimizer.param_groups:
                group["lr"] = self.config.lr * max(1 - done, MIN_RATE)
            optimizer.zero_grad()
        with _deterministic():
            loss = self._loss(self.model.users.relative_to(rows, users)[0], campaigns, which, campaign, labels, *leaves)
            penalty = self.config.l2 * torch.stack([leaf.square().sum() for leaf in leaves]).sum()
            torch.autograd.backward(loss + penalty)
        self.optimizers["dense"].step()
        for table, leaf in zip(self.tables, leaves, strict=True):
            self.rows.update(table, rows, leaf)
        return loss.item(), loss.item(), len(labels)

    def validate(self, held_out: list[Task]) -> float:
        """Mean AUC on what campaigns never trained on brought later, with own weights fitted to their seeds."""
        self._deviations_of_training_campaigns()
        # What the model makes of them, 10 MB each or so, is in memory one at a time.
        return mean_auc(exam.seen(self.model, self.prior) for exam in self._exams_of(held_out))

    def finish(self, held_out: list[Task], poll: Callable[[], None]) -> None:
        """Choose the deviations of own weights by campaigns never trained on, one kind after the other.

        `poll` is called often; raise from it to stop.
        """
        self._deviations_of_training_campaigns()
        exams = [exam.seen(self.model, self.prior) for exam in self._exams_of(held_out)]
        if not exams:
            self.prior.id_variance.fill_(UNASKED_ID_VARIANCE)
            return
        self.prior.id_variance.fill_(ID_VARIANCES[0])
        for parameter, candidates in (
            (self.prior.coefficient_std, [scale * float(self.prior.coefficient_std) for scale in SCALES]),
            (self.prior.shift_std, [scale * float(self.prior.shift_std) for scale in SCALES]),
            (self.prior.id_variance, list(ID_VARIANCES)),
        ):
            values = []
            for candidate in candidates:
                parameter.fill_(candidate)
                values.append(mean_auc(exams, poll))
            parameter.fill_(candidates[int(np.argmax(values))])

    def _loss(
        self,
        users: FeatureBatch,
        campaigns: FeatureBatch,
        which: Tensor,
        campaign: Tensor,
        labels: Tensor,
        embedding: Tensor,
        basis: Tensor,
    ) -> Tensor:
        """Mean cross-entropy of pairs: user `which[i]` and campaign `campaign[i]`, `[pairs]` each. `users` index the
        rows of `embedding` and `basis`.

        What is linear in a user's and a campaign's vectors is multiplied for all users and all campaigns of the pairs
        and picked from: a few large matrices instead of a vector a pair.
        """
        model = self.model
        seen = model.represent(users, embedding)  # once a user
        known, column = torch.unique(campaign, return_inverse=True)  # of many campaigns, few are known to some users
        own_shift, coefficients, intercept = (
            part.index_select(0, known) for part in (self.own.shift, self.own.coefficients, self.own.intercept)
        )
        place = which * len(known) + column
        linear = (users.sum_ids(basis) @ coefficients.T + intercept).flatten()
        expert_gate, critic_gate = model.gates(seen.user_mean, campaigns, which, campaign)
        # Eq. 6 and 7 in another order: each expert's opinions, then their mixture.
        weights = expert_gate.exp()  # [pairs, n]
        shifts = (seen.hidden @ own_shift.T).flatten(1)  # [n, users * known]
        shift = (weights.T * shifts.index_select(1, place)).sum(0) + linear.index_select(0, place)
        by_expert = (seen.hidden @ model.critics.weight.T).transpose(0, 1).flatten(1)  # [users, n * m]
        by_expert = by_expert.index_select(0, which).view(len(which), *weights.shape[1:], -1)
        opinions = (weights.unsqueeze(2) * by_expert).sum(1) + model.critics.bias
        return cross_entropy(opinions, critic_gate, shift, labels).mean()

    def _turn(self, epoch: int, place: int) -> Index:
        """Which of the known users a step takes, ascending: as many as have the step's share of all samples."""
        if self._order is None or self._order[0] != epoch:  # drawn once an epoch: users are many
            order = np.random.default_rng([self.settings.seed, epoch]).permutation(len(self.knowledge.users))
            upto = np.cumsum(np.diff(self.knowledge.starts)[order])
            step = np.arange(1, self.steps_per_epoch)
            ends = np.searchsorted(upto, step * upto[-1] // self.steps_per_epoch)
            # A user at least in each, in the first, too, however many samples are of one user.
            ends = np.maximum.accumulate(np.maximum(ends - step, 0)) + step
            ends = np.minimum(ends, len(order) - self.steps_per_epoch + step)
            self._order = epoch, np.split(order, ends)
        return np.sort(self._order[1][place])

    def _exams_of(self, held_out: Sequence[Task]) -> list[_Exam]:
        """The campaigns that can be judged. Their users are read once: they are what `finish` will hold anyway."""
        if self._exams is None or self._exams[0] is not held_out:
            able = [task for task in held_out if task.seeds.trainable and task.audience.trainable]
            self._exams = held_out, [_Exam(self, task) for task in able]
        return self._exams[1]

    def _deviations_of_training_campaigns(self) -> None:
        with torch.no_grad():
            self.prior.shift_std.copy_(self.own.shift.square().mean().sqrt())
            self.prior.coefficient_std.copy_(self.own.coefficients.square().mean().sqrt())


@contextmanager
def _deterministic() -> Iterator[None]:
    """Sums of gathered rows in a fixed order, however many threads add them up: a resumed run must end in the same."""
    before = torch.are_deterministic_algorithms_enabled()
    settings: Any = torch.utils.deterministic  # its attributes are made at run time
    fill = settings.fill_uninitialized_memory
    torch.use_deterministic_algorithms(True, warn_only=True)
    settings.fill_uninitialized_memory = False  # costs a pass over every new tensor
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(before)
        settings.fill_uninitialized_memory = fill


class _Exam:
    """A campaign never trained on: own weights are fitted to its seeds and judged by its audience."""

    def __init__(self, trainer: JointTrainer, task: Task) -> None:
        rng = np.random.default_rng([trainer.settings.seed, len(task.samples)])
        audience = _some(task.audience.shuffled(rng), MOST_JUDGED)
        self.seeds = np.arange(len(task.seeds))
        self.audience = np.arange(len(task.seeds), len(task.seeds) + len(audience))
        both = Samples.concat(task.seeds, audience)
        self.labels = both.labels
        self.users = trainer.pool.take(both.rows)
        campaign = trainer.model.campaigns.batch(task.features)
        # As a new campaign's will be: ids that no training campaign has are unknown.
        self.campaign = trainer.model.campaigns.with_untrained_unknown(campaign, trainer.trained_campaign_rows)

    def seen(self, model: MetaHeac, prior: HeadPrior) -> _Seen:
        """By the model as it is now."""
        samples = CampaignSamples(model, prior, self.users, self.campaign, self.labels)
        return _Seen(samples, self.seeds, self.audience)


@dataclass(frozen=True)
class _Seen:
    """An exam as a model sees it, and which of its samples are seeds and which the audience."""

    samples: CampaignSamples
    seeds: Index
    audience: Index

    def auc(self, poll: Callable[[], None]) -> float:
        """With own weights under the prior as it is now."""
        return self.samples.held_out_auc(self.audience, self.samples.fit(self.seeds, poll))


def _some(samples: Samples, most: int) -> Samples:
    """At most so many of them, with as much of the rarer label as there is, up to half: AUC asks for no proportion.

    In a random few of a huge audience the rarer label would be missing, or too rare to judge by.
    """
    if len(samples) <= most:
        return samples
    positives, negatives = (np.flatnonzero(samples.labels == label) for label in (1, 0))
    rarer = min(len(positives), len(negatives), most // 2)
    cuts = [min(len(index), most - rarer) for index in (positives, negatives)]
    return samples.take(np.concatenate([index[:cut] for index, cut in zip((positives, negatives), cuts, strict=True)]))


def mean_auc(exams: Iterable[_Seen], poll: Callable[[], None] = lambda: None) -> float:
    """NaN if there are none."""
    aucs = [exam.auc(poll) for exam in exams]
    return float(np.mean(aucs)) if aucs else math.nan
