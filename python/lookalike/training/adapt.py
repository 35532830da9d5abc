"""Adaptation: from the general model and a campaign's seeds to its customised model (paper section 3.5, online stage).

Chooses negatives and folds; how a model is fitted to them is the business of `head_fit` and `fine_tuning`.
"""

from __future__ import annotations

from collections.abc import Callable
from itertools import islice

import numpy as np
import numpy.typing as npt

from lookalike.config import AdaptationConfig
from lookalike.dataset.sampling import sample_rows
from lookalike.errors import EmptySeeds, FailedPrecondition
from lookalike.pool.snapshot import Pool
from lookalike.schema import EncodedColumns
from lookalike.training import stratified
from lookalike.training.adapted import Adapted
from lookalike.training.checkpoint import Checkpoint
from lookalike.training.fine_tuning import fine_tune
from lookalike.training.head_fit import fit_to_seeds
from lookalike.training.tasks import Samples


def adapt(
    checkpoint: Checkpoint,
    pool: Pool,
    campaign: EncodedColumns,
    seeds: npt.NDArray[np.int64],
    config: AdaptationConfig,
    *,
    random_seed: int = 0,
    keep_folds: bool = False,
    progress: Callable[[int, int], None] | None = None,
    cancelled: Callable[[], bool] | None = None,
) -> Adapted:
    """Fit the general model to a campaign's seeds and sampled negatives.

    Args:
        campaign: the campaign's encoded features, one row.
        seeds: pool rows of the seed users, each once.
        keep_folds: give back the models of the folds, too; the customised model is the same.
        progress: called with (steps done, most steps there can be), often enough to be a heartbeat.

    Raises:
        EmptySeeds: fewer seeds than `config.min_seeds`, or no user is left to be a negative. Cancelled.
        FailedPrecondition: as `customise`.
    """
    if len(seeds) < config.min_seeds:
        raise EmptySeeds(
            f"{len(seeds)} of the seeds are in the pool; give at least {config.min_seeds} that are "
            "(adaptation.min_seeds)",
            field="seeds",
        )
    rng = np.random.default_rng(random_seed)
    samples = _with_negatives(seeds, pool.num_users, config, rng)
    return customise(
        checkpoint,
        pool,
        campaign,
        samples,
        config,
        random_seed=random_seed,
        keep_folds=keep_folds,
        progress=progress,
        cancelled=cancelled,
    )


def customise(
    checkpoint: Checkpoint,
    pool: Pool,
    campaign: EncodedColumns,
    samples: Samples,
    config: AdaptationConfig,
    *,
    random_seed: int = 0,
    keep_folds: bool = False,
    progress: Callable[[int, int], None] | None = None,
    cancelled: Callable[[], bool] | None = None,
) -> Adapted:
    """Fit the general model to samples of a campaign, seeds and negatives (pool rows), in an order of no meaning.

    Raises:
        EmptySeeds: fewer than two seeds, or than two negatives. FailedPrecondition: the checkpoint was not trained for
            `config.optimizer`. Cancelled.
    """
    _check(checkpoint, samples, config)
    rows = samples.rows
    users = pool.take(rows)  # once: the pool may lie on a disk
    samples = Samples(np.arange(len(samples)), samples.labels)  # from here on, rows are those of `users`
    seeds = int(np.count_nonzero(samples.labels))
    rng = np.random.default_rng([random_seed, len(samples)])
    parts = min(config.parts, seeds, len(samples) - seeds)  # each must hold both labels
    count = _fold_count(seeds, parts, config.enough_held_out_seeds)
    folds = [
        (samples.take(learnt), samples.take(held))
        for learnt, held in islice(stratified.folds(samples.labels, parts, rng), count)
    ]
    if config.optimizer == "head":
        assert checkpoint.prior is not None
        return fit_to_seeds(
            checkpoint.model,
            checkpoint.prior,
            users,
            campaign,
            samples,
            folds,
            config,
            rows=rows,
            keep_folds=keep_folds,
            progress=progress,
            cancelled=cancelled,
        )
    # A copy of our own: calling a module under other parameters swaps them in place for the time of the call, so
    # campaigns adapting on several threads must not share one.
    return fine_tune(
        checkpoint.model.copy(),
        users,
        campaign,
        samples,
        folds,
        config,
        rows=rows,
        random_seed=random_seed,
        keep_folds=keep_folds,
        progress=progress,
        cancelled=cancelled,
    )


def _with_negatives(
    seeds: npt.NDArray[np.int64], num_users: int, config: AdaptationConfig, rng: np.random.Generator
) -> Samples:
    available = num_users - len(seeds)
    if available < 2:
        raise EmptySeeds("(nearly) every user of the pool is a seed; nobody is left to tell them from", field="seeds")
    negatives = sample_rows(num_users, min(config.negatives_per_seed * len(seeds), available), seeds, rng)
    return Samples(
        np.concatenate([seeds, negatives]),
        np.concatenate([np.ones(len(seeds), np.float32), np.zeros(len(negatives), np.float32)]),
    ).shuffled(rng)


def _check(checkpoint: Checkpoint, samples: Samples, config: AdaptationConfig) -> None:
    seeds = int(np.count_nonzero(samples.labels))
    if min(seeds, len(samples) - seeds) < 2:
        raise EmptySeeds(
            f"{seeds} seeds and {len(samples) - seeds} negatives cannot be split; give at least 2 of each",
            field="seeds",
        )
    if config.optimizer == "head" and checkpoint.prior is None:
        raise FailedPrecondition(
            "the general model knows no prior of campaigns' own weights: set adaptation.optimizer to adam, or train "
            "with training.method=joint",
            field="adaptation.optimizer",
            reason="NO_PRIOR",
        )


def _fold_count(seeds: int, parts: int, enough_held_out: int) -> int:
    """Few held-out seeds judge badly, so small campaigns are split more often; large ones need one look."""
    held_out = max(1.0, seeds / parts)
    return int(np.clip(np.ceil(enough_held_out / held_out), 1, parts))
