"""Adaptation by a campaign's own weights: one fit to all seeds, and one to each fold's to see what they are worth.

The network below stays the general one, so users are put through it once, whatever is fitted how often. Knows the
prior and the ridge; knows nothing of pools.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import numpy.typing as npt
import torch
from scipy.sparse import csr_matrix

from lookalike.config import AdaptationConfig
from lookalike.evaluation.metrics import auc
from lookalike.model.features import FeatureBatch
from lookalike.model.metaheac import MetaHeac
from lookalike.model.one_hot import one_hot
from lookalike.schema import EncodedColumns
from lookalike.training.adapted import Adapted, HeldOut, Ticker
from lookalike.training.campaign_head import Head, HeadPrior, Judged, fit_head, judge, log_odds
from lookalike.training.ridge import fit_ridge
from lookalike.training.tasks import Samples

Index = npt.NDArray[np.int64]
Floats = npt.NDArray[np.float64]

# Users put through the network at once: keeps the widest activation within a few L2 caches.
BATCH = 8192


@dataclass(frozen=True)
class OwnWeights:
    """What a campaign adds to the general model: a head, and a weight for each id `[user ids]`, or none."""

    head: Head
    ids: Floats | None


class CampaignSamples:
    """A campaign's samples as the general model sees them, to which own weights are fitted."""

    def __init__(
        self,
        model: MetaHeac,
        prior: HeadPrior,
        users: EncodedColumns,
        campaign: FeatureBatch,
        labels: npt.NDArray[np.float32],
        poll: Callable[[], None] = lambda: None,
    ) -> None:
        self.model, self.prior = model, prior
        self.judged = judge_all(model, prior, users, campaign, poll)
        self.labels = labels
        self._users = users

    @cached_property
    def ids(self) -> csr_matrix:
        """`[samples, user ids]`, how often each user has each id."""
        return one_hot(self.model.users.schema, self._users)

    def fit(
        self, index: Index | slice, poll: Callable[[], None], visit: Callable[[OwnWeights], None] | None = None
    ) -> OwnWeights:
        """Own weights from the samples at `index`: the head first, then what ids tell beyond it.

        Args:
            visit: called with what there is after each step of the head's fit, and with the result if ids add to it.
        """
        poll()
        judged, labels = self.judged.take(index), self.labels[index]

        def show(head: Head) -> None:
            if visit is not None:
                visit(OwnWeights(head, None))

        head = fit_head(judged, torch.from_numpy(labels), self.prior.deviations(), poll, show)
        variance = float(self.prior.id_variance)
        ids = None
        if variance > 0:
            ids = fit_ridge(self.ids[index], labels, log_odds(judged, head.shift(judged)).numpy(), variance, poll=poll)
            if visit is not None:
                visit(OwnWeights(head, ids))
        return OwnWeights(head, ids)

    def held_out_auc(self, index: Index, own: OwnWeights | None) -> float:
        """AUC on the samples at `index`; without own weights, of the general model."""
        judged = self.judged.take(index)
        shift = torch.zeros(len(index), dtype=torch.float64)
        if own is not None:
            shift = own.head.shift(judged)
            if own.ids is not None:
                shift = shift + torch.from_numpy(self.ids[index] @ own.ids)
        return auc(self.labels[index].astype(np.int8), log_odds(judged, shift).numpy())


def fit_to_seeds(
    model: MetaHeac,
    prior: HeadPrior,
    users: EncodedColumns,
    campaign: EncodedColumns,
    samples: Samples,
    folds: Sequence[tuple[Samples, Samples]],
    config: AdaptationConfig,
    *,
    rows: npt.NDArray[np.int64],
    keep_folds: bool,
    progress: Callable[[int, int], None] | None,
    cancelled: Callable[[], bool] | None,
) -> Adapted:
    """Give the general model the campaign's own weights, if these serve held-out seeds better than none.

    Args:
        samples, folds: all samples, and parts of them (trained on, held out); they index `users`.
        rows: `[users]` pool rows of `users`.
    """
    ticker = Ticker(len(folds) + 2, progress, cancelled)
    seen = CampaignSamples(model, prior, users, model.campaigns.batch(campaign), samples.labels, ticker.poll)
    ticker.tick()
    fitted, adapted_aucs, general_aucs = [], [], []
    for train, test in folds:
        own = seen.fit(train.rows, ticker.poll)
        fitted.append(own)
        adapted_aucs.append(seen.held_out_auc(test.rows, own))
        general_aucs.append(seen.held_out_auc(test.rows, None))
        ticker.tick()
    adapted_auc, general_auc = float(np.mean(adapted_aucs)), float(np.mean(general_aucs))
    best = int(config.max_epochs > 0 and adapted_auc > general_auc)
    history = [{"epoch": 0.0, "held_out_auc": general_auc}, {"epoch": 1.0, "held_out_auc": adapted_auc}]
    chosen = seen.fit(slice(None), ticker.poll) if best else None
    ticker.finish()
    return Adapted(
        model=with_own_weights(model, prior, chosen),
        best_epoch=best,
        samples=len(samples),
        folds=len(folds),
        held_out_auc=history[best]["held_out_auc"],
        general_auc=general_auc,
        history=tuple(history),
        held_out=tuple(
            HeldOut(
                with_own_weights(model, prior, own if best else None),
                np.sort(rows[test.interested]),
                np.sort(rows[train.rows]),
            )
            for own, (train, test) in zip(fitted, folds, strict=True)
        )
        if keep_folds
        else (),
    )


@torch.no_grad()
def judge_all(
    model: MetaHeac,
    prior: HeadPrior,
    users: EncodedColumns,
    campaign: FeatureBatch,
    poll: Callable[[], None] = lambda: None,
) -> Judged:
    """All users as the campaign sees them, some thousands at a time; `poll` is called at each block."""
    parts = []
    for start in range(0, users.length, BATCH):
        poll()
        block = model.users.batch(users.slice(start, min(start + BATCH, users.length)))
        parts.append(judge(model, prior, block, campaign))
    return Judged.concat(parts)


@torch.no_grad()
def with_own_weights(model: MetaHeac, prior: HeadPrior, own: OwnWeights | None) -> MetaHeac:
    """The customised model: own weights lie in the critics and in the linear term, so that scoring costs no more."""
    customised = model.copy()
    if own is not None:
        shift, coefficients = own.head.weights[: prior.hidden], own.head.weights[prior.hidden :]
        customised.critics.weight.add_(shift)
        customised.critics.bias.add_(own.head.intercept)
        customised.user_embedding[:, -1] += prior.basis @ coefficients
        if own.ids is not None:
            customised.user_embedding[:, -1] += torch.from_numpy(own.ids).float()
    return customised
