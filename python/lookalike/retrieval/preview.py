"""Measures an `Insight`: folds are trained and kept, one pass over the pool ranks the seeds held out from them.

The customised model itself is not scored: no user outside the seeds tells whether it is right, and where a held-out
seed would rank is known from the folds.
"""

from __future__ import annotations

import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path

import numpy as np
import numpy.typing as npt

from lookalike import __version__
from lookalike.config import Config
from lookalike.errors import InvalidInput
from lookalike.model.metaheac import MetaHeac
from lookalike.pool.snapshot import Pool
from lookalike.retrieval.eligibility import Skipped
from lookalike.retrieval.heldout import Fold, Ranks, eligible_rows, rank
from lookalike.retrieval.insight import FORMAT_VERSION, Insight, caveats, headline
from lookalike.retrieval.recall_curve import RecallCurve
from lookalike.retrieval.receipt import MODEL_NAME, Stage
from lookalike.retrieval.request import Request, counts
from lookalike.retrieval.seed_quality import LEAST_ELIGIBLE, fine_tuning, judge
from lookalike.retrieval.telling import ValueCounts, telling
from lookalike.retrieval.watch import Watch
from lookalike.scoring.compiled import compile_model, compute_threads
from lookalike.scoring.engine import Engine, open_engine
from lookalike.training.adapt import adapt
from lookalike.training.adapted import Adapted, HeldOut
from lookalike.training.checkpoint import Checkpoint, to_plain

# Pools of so many eligible users are ranked whole, of larger ones a sample: it takes seconds, and places a cut at 1% of
# a billion users to within 1%.
MOST_USERS = 1 << 21
# A sample of fewer would make every interval as wide as the whole.
LEAST_USERS = 1_000


@dataclass(frozen=True)
class _Measured:
    """What the models and the pool gave; from here on it is arithmetic."""

    best_epoch: int
    ranks: Ranks
    folds: int
    passing: int | None  # held-out seeds that pass the filter, if there is one
    eligible: int
    seeds: ValueCounts  # of those who pass the filter, or of nobody if too few do
    passing_seeds: int  # seeds that pass the filter, held out or not
    others: ValueCounts


def measure(
    checkpoint: Checkpoint,
    pool: Pool,
    config: Config,
    request: Request,
    skip: Skipped,
    watch: Watch,
    *,
    sizes: Sequence[int] = (),
    sample_users: int = MOST_USERS,
    trained_on: bool = False,
) -> Insight:
    """The insight of a checked request.

    Args:
        config: with `scoring` resolved.
        skip: who is not eligible, every seed among them.
        sizes: for `Insight.asked`.
        sample_users: eligible users that are ranked, at most.
        trained_on: whether the general model was, or may have been, trained on this campaign.

    Raises:
        InvalidInput: a size below 1, or a sample below `LEAST_USERS`. EmptySeeds: too few seeds to adapt to.
        InternalError: a model has diverged. DataCorrupted: an id beyond its vocabulary. Cancelled.
    """
    if any(k < 1 for k in sizes):
        raise InvalidInput(f"sizes must be 1 or more, not {min(sizes)}", field="sizes")
    if sample_users < LEAST_USERS:
        raise InvalidInput(f"sample_users must be {LEAST_USERS:,} or more, not {sample_users:,}", field="sample_users")
    with watch.stage(Stage.ADAPTING) as report, compute_threads(config.scoring.threads):
        adapted = adapt(
            checkpoint,
            pool,
            request.encoded,
            request.seed_rows,
            config.adaptation,
            random_seed=request.random_seed,
            keep_folds=True,
            progress=report,
            cancelled=watch.cancelled,
        )
    held_out, passing = _judges(adapted, request, pool)
    with watch.stage(Stage.COMPILING) as report:
        *engines, general = _engines([*(one.model for one in held_out), checkpoint.model], request, config)
        report(1, 1)
    rng = np.random.default_rng(request.random_seed)
    rows, eligible = eligible_rows(skip.bitmap, pool.num_users, sample_users, rng)
    folds = [Fold(engine, one.seeds, one.trained) for engine, one in zip(engines, held_out, strict=True)]
    seeds, others = ValueCounts(pool.schema), ValueCounts(pool.schema)
    # Others pass the filter, so seeds that do not would differ from them by the filter, and by little else that shows.
    describing = _passing(request.seed_rows, request, pool)
    if request.filter is None or len(describing) >= LEAST_ELIGIBLE:
        seeds.add(pool.take(describing))
    with watch.stage(Stage.SCORING, len(rows)) as report:
        ranks = rank(pool, folds, general, rows, eligible, visit=others.add, progress=report, cancelled=watch.cancelled)
    measured = _Measured(adapted.best_epoch, ranks, len(folds), passing, eligible, seeds, len(describing), others)
    return _told(checkpoint, pool, config, request, measured, sizes, trained_on, watch.seconds)


def _judges(adapted: Adapted, request: Request, pool: Pool) -> tuple[list[HeldOut], int | None]:
    """The folds with the seeds that are to judge them: those who pass the filter, unless they are too few."""
    if request.filter is None:
        return list(adapted.held_out), None
    passing = [replace(one, seeds=_passing(one.seeds, request, pool)) for one in adapted.held_out]
    count = sum(len(one.seeds) for one in passing)
    if count < LEAST_ELIGIBLE:
        return list(adapted.held_out), count
    return [one for one in passing if len(one.seeds)], count


def _passing(rows: npt.NDArray[np.int64], request: Request, pool: Pool) -> npt.NDArray[np.int64]:
    """Those of some rows that pass the filter; all if there is none."""
    return rows if request.filter is None else rows[request.filter.passes(pool.take(rows))]


def _engines(models: Sequence[MetaHeac], request: Request, config: Config) -> list[Engine]:
    engines = []
    with tempfile.TemporaryDirectory(prefix="lookalike-insight-") as folder:
        path = Path(folder) / MODEL_NAME
        for model in models:
            compile_model(model, request.encoded, path, {})
            engines.append(open_engine(path, config.scoring))
    return engines


def _told(
    checkpoint: Checkpoint,
    pool: Pool,
    config: Config,
    request: Request,
    measured: _Measured,
    sizes: Sequence[int],
    trained_on: bool,
    seconds: Mapping[str, float],
) -> Insight:
    ranks, eligible = measured.ranks, measured.eligible
    curve = RecallCurve(ranks.customised, ranks.general, eligible, ranks.users)
    adaptation = config.adaptation
    regression = adaptation.optimizer != "head" and checkpoint.model.config.wide and adaptation.ridge > 0
    tuning = fine_tuning(
        ranks.customised, ranks.general, ranks.variance, epochs=measured.best_epoch, regression=regression
    )
    quality = judge(
        request.match,
        ranks.customised,
        tuning,
        compared=ranks.users,
        passing=measured.passing,
        trained_on=trained_on,
    )
    suggestions = curve.suggestions()
    return Insight(
        format_version=FORMAT_VERSION,
        code_version=__version__,
        created=datetime.now(UTC).isoformat(timespec="seconds"),
        campaign=request.campaign,
        features=request.features,
        headline=headline(quality, suggestions, eligible),
        seed_quality=quality,
        fine_tuning=tuning,
        suggestions=suggestions,
        curve=curve.points(curve.sizes()),
        asked=curve.points(sizes),
        reach=curve.reach(),
        telling=telling(pool.schema, measured.seeds, measured.others),
        caveats=_caveats(request, measured, curve, sizes),
        seeds=request.match,
        seeds_sha256=request.seeds_sha256,
        held_out_seeds=len(ranks.customised),
        folds=measured.folds,
        filter=request.filter.text if request.filter is not None else "",
        exclusions=counts(request.exclusions),
        exclusions_sha256=request.exclusions_sha256,
        eligible_users=eligible,
        compared_users=ranks.users,
        described_users=measured.others.users,
        pool=str(pool.path.absolute()),
        pool_users=pool.num_users,
        pool_sha256=pool.fingerprint,
        checkpoint_sha256=checkpoint.fingerprint,
        adaptation_config=to_plain(config.adaptation),
        random_seed=request.random_seed,
        engine=config.scoring.engine,
        device=config.scoring.device,
        seconds=seconds,
    )


def _caveats(request: Request, measured: _Measured, curve: RecallCurve, sizes: Sequence[int]) -> tuple[str, ...]:
    return caveats(
        eligible=measured.eligible,
        described=measured.others.users,
        compared=measured.ranks.users,
        smallest=curve.smallest,
        passing=(measured.passing or 0) >= LEAST_ELIGIBLE,
        telling_of=(measured.passing_seeds, len(request.seed_rows)) if request.filter is not None else None,
        sizes=sizes,
    )
