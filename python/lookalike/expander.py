"""The facade: `Expander.open(checkpoint, pool).expand(campaign=..., seeds=..., k=...)`.

Everything above this floor (runtimes, service, command line) expands through here, so there is one way to do it.
"""

from __future__ import annotations

import shutil
from collections.abc import Mapping, Sequence
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from lookalike import __version__
from lookalike.config import Config, ScoringConfig
from lookalike.errors import AlreadyExists, DataCorrupted, FailedPrecondition
from lookalike.files import file_digest, staged_folder
from lookalike.pool.bitmap import Bitmap
from lookalike.pool.exclusions import Exclude, UserIds, marked_ids
from lookalike.pool.snapshot import Pool
from lookalike.retrieval.audience import Audience, write_exclusions, write_ids, write_receipt
from lookalike.retrieval.eligibility import Skipped
from lookalike.retrieval.insight import Insight
from lookalike.retrieval.preview import MOST_USERS, measure
from lookalike.retrieval.ranking import Ranking, rank
from lookalike.retrieval.receipt import (
    AUDIENCE_NAME,
    EXCLUSIONS_NAME,
    FORMAT_VERSION,
    MODEL_NAME,
    RECEIPT_NAME,
    RESERVE_NAME,
    SEEDS_NAME,
    Adaptation,
    Receipt,
    Rescoring,
    Stage,
)
from lookalike.retrieval.request import Previous, Request, check_request, counts, ineligible
from lookalike.retrieval.rescoring import Rows, Scores, Selection, candidates, rescore, score_exactly
from lookalike.retrieval.scan import scan
from lookalike.retrieval.topk import TopK
from lookalike.retrieval.watch import CancelledCallback, ProgressCallback, Watch
from lookalike.retrieval.work import Work, identity, work_folder
from lookalike.schema import FeatureSchema, FeatureValue
from lookalike.scoring.compiled import TorchScriptEngine, compile_model, compute_threads
from lookalike.scoring.engine import Engine, is_exact, open_engine, resolve
from lookalike.training.adapt import adapt
from lookalike.training.adapted import Adapted
from lookalike.training.checkpoint import Checkpoint, load_checkpoint, to_plain


class Expander:
    """A general checkpoint and a pool that fit together. Expansions may run on several threads at once."""

    def __init__(self, checkpoint: Checkpoint, pool: Pool, config: Config) -> None:
        if pool.schema.fingerprint != checkpoint.user_schema.fingerprint:
            raise FailedPrecondition(
                f"the pool {pool.path} was encoded with another user schema than the checkpoint's "
                f"({_misfit(pool.schema, checkpoint.user_schema)}): "
                "ingest it again with --schema CHECKPOINT, or train on this pool",
                field="pool",
                reason="SCHEMA_MISMATCH",
            )
        self.checkpoint = checkpoint
        self.pool = pool
        self.config = replace(config, scoring=resolve(config.scoring))

    @classmethod
    def open(cls, checkpoint: Path, pool: Path, config: Config | None = None) -> Expander:
        """Load a checkpoint folder and map a pool folder.

        Without `config`, adapts with what the checkpoint was tuned for.

        Raises:
            NotFound, DataCorrupted: as `load_checkpoint` and `Pool.open`. FailedPrecondition: they do not fit.
        """
        loaded = load_checkpoint(Path(checkpoint))
        return cls(loaded, Pool.open(Path(pool)), config or loaded.config)

    @property
    def checkpoint_sha256(self) -> str:
        """Fingerprint of the general checkpoint."""
        return self.checkpoint.fingerprint

    def expand(
        self,
        *,
        campaign: str,
        seeds: UserIds,
        k: int,
        features: Mapping[str, FeatureValue] | None = None,
        output: Path | None = None,
        include_seeds: bool = False,
        filter: str = "",  # noqa: A002
        exclude: Exclude = (),
        random_seed: int = 0,
        reserve: int = 0,
        opted_out: Exclude = (),
        previous: Previous | None = None,
        job_id: str = "",
        progress: ProgressCallback | None = None,
        cancelled: CancelledCallback | None = None,
    ) -> Audience:
        """The exact top `k` of the eligible users for a campaign, as an audience folder with its receipt.

        An expansion that was killed, or stopped by Ctrl-C, leaves `<output>.partial-<12 hex digits of the request>`;
        the very same request, made again, goes on from there and gives the same bytes.

        Args:
            campaign: a name for the receipt.
            seeds: user ids of the pool's type; duplicates and users the pool lacks are counted and left out.
            k: 1 or more; fewer come back when fewer users are eligible.
            features: campaign features by name; left-out ones are missing, unseen values unknown.
            output: folder to create; default `audiences/<campaign>-<12 hex digits of the request>`. If it holds the
                audience of the very same request, that is returned and nothing is done.
            include_seeds: let seeds into the audience, if they are eligible.
            filter: who is eligible, such as `country in ('DE', 'AT') and age >= '3'`; see `pool.filters.Filter`.
            exclude: users to leave out: ids, or files of them; see `pool.exclusions`. Seeds among them still count as
                seeds.
            random_seed: of negatives, folds and batches. The same request gives the same bytes.
            reserve: so many of those who come next are kept beside the members, for `retrieval.revise`.
            opted_out: users to leave out as `exclude`, but of whom no id is kept, be they seeds or excluded too.
            previous: the audience this one refreshes; its budget bounds how many members change.
            progress: called at least once a training step and once a scored block, on this thread.
            cancelled: asked as often.

        Raises:
            EmptySeeds, SchemaError, InvalidInput: the request is wrong, or nobody is eligible.
            AlreadyExists: `output` holds something else. Unavailable: the same expansion is running.
            Cancelled: `cancelled()` turned true; nothing is left behind.
        """
        watch = Watch(progress, cancelled)
        with watch.stage(Stage.MATCHING, len(seeds)) as report:
            request = check_request(
                self.pool,
                self.checkpoint.campaign_schema,
                campaign=campaign,
                features=features or {},
                seeds=seeds,
                k=k,
                include_seeds=include_seeds,
                random_seed=random_seed,
                filter=filter,
                exclude=exclude,
                reserve=reserve,
                opted_out=opted_out,
                previous=previous,
            )
            folder = Path(output) if output is not None else Path("audiences") / self._default_name(request)
            if folder.exists():
                report(len(seeds), len(seeds))
                return self._existing(folder, request)
            skip = ineligible(self.pool, request, self.config.scoring.threads)
            report(len(seeds), len(seeds))
        with Work(folder, self._names(request), lambda partial: self._load(partial, request, skip.bitmap)) as work:
            adapted = self._adapted(request, watch) if work.adaptation is None else None
            with watch.stage(Stage.COMPILING) as report:
                if adapted is not None:
                    self._begin(work, request, adapted)
                engine = open_engine(work.model, self.config.scoring)
                report(1, 1)
            top = work.top or TopK(self._candidates(request), num_rows=self.pool.num_users, skip=skip.bitmap)
            with watch.stage(Stage.SCORING, self.pool.num_users, top.rows_seen) as report:
                scan(self.pool, engine, top, save=work.save, progress=report, cancelled=cancelled)
            selection = self._exact(request, work, engine, top, skip, watch)
            chosen = rank(
                selection,
                request.k,
                request.reserve,
                request.previous,
                skip.bitmap,
                lambda rows: self._scored(work, rows, watch),
            )
            with staged_folder(folder, within=work.path) as staged:
                with watch.stage(Stage.WRITING):
                    self._write(staged, work, request, chosen)
                receipt = self._receipt(request, work, selection, chosen, skip, staged, job_id, watch.seconds)
                write_receipt(staged, receipt)
        watch.report(Stage.WRITING, 1, 1)
        return Audience.open(folder)

    def insight(
        self,
        *,
        campaign: str,
        seeds: UserIds,
        sizes: Sequence[int] = (),
        features: Mapping[str, FeatureValue] | None = None,
        filter: str = "",  # noqa: A002
        exclude: Exclude = (),
        random_seed: int = 0,
        sample_users: int = MOST_USERS,
        trained_on: bool = False,
        progress: ProgressCallback | None = None,
        cancelled: CancelledCallback | None = None,
    ) -> Insight:
        """What to expect of an audience of any size, before it is made; arguments as of `expand`, and

        Args:
            sizes: sizes to tell of, besides the curve's own.
            sample_users: of a pool with more eligible users, so many are ranked.
            trained_on: whether the general model was, or may have been, trained on this campaign: it has then seen the
                seeds, and the insight says that its figures are too high.

        Raises:
            EmptySeeds, SchemaError, InvalidInput: the request is wrong, or nobody is eligible.
            Cancelled: `cancelled()` turned true.
        """
        watch = Watch(progress, cancelled)
        with watch.stage(Stage.MATCHING, len(seeds)) as report:
            request = check_request(
                self.pool,
                self.checkpoint.campaign_schema,
                campaign=campaign,
                features=features or {},
                seeds=seeds,
                k=1,  # of any size
                include_seeds=False,
                random_seed=random_seed,
                filter=filter,
                exclude=exclude,
            )
            skip = ineligible(self.pool, request, self.config.scoring.threads)
            report(len(seeds), len(seeds))
        return measure(
            self.checkpoint,
            self.pool,
            self.config,
            request,
            skip,
            watch,
            sizes=sizes,
            sample_users=sample_users,
            trained_on=trained_on,
        )

    def _adapted(self, request: Request, watch: Watch) -> Adapted:
        # On the CPU even where a GPU scores: batches are small, and a GPU's sums are in no fixed order.
        with watch.stage(Stage.ADAPTING) as report, compute_threads(self.config.scoring.threads):
            return adapt(
                self.checkpoint,
                self.pool,
                request.encoded,
                request.seed_rows,
                self.config.adaptation,
                random_seed=request.random_seed,
                progress=report,
                cancelled=watch.cancelled,
            )

    def _begin(self, work: Work, request: Request, adapted: Adapted) -> None:
        facts = Adaptation(
            best_epoch=adapted.best_epoch,
            samples=adapted.samples,
            folds=adapted.folds,
            held_out_auc=adapted.held_out_auc,
            general_auc=adapted.general_auc,
            history=adapted.history,
        )
        names = self._names(request)
        work.begin(facts, lambda path: compile_model(adapted.model, request.encoded, path, names))

    def _candidates(self, request: Request) -> int:
        """How many to select while scoring: where an engine's scores are near, more than will be members."""
        total = self.pool.num_users
        return min(request.wanted, total) if is_exact(self.config.scoring) else candidates(request.wanted, total)

    def _load(self, partial: memoryview, request: Request, skip: Bitmap) -> TopK:
        top = TopK.load(partial, num_rows=self.pool.num_users, skip=skip)
        if top.k != self._candidates(request):
            raise DataCorrupted(f"its selection is of {top.k} users", field="k")
        return top

    def _exact(self, request: Request, work: Work, engine: Engine, top: TopK, skip: Skipped, watch: Watch) -> Selection:
        threads = self.config.scoring.threads
        if is_exact(self.config.scoring):
            return Selection.of(top, threads)
        work.save(top, now=True)
        with watch.stage(Stage.RESCORING, top.k) as report:
            return rescore(
                self.pool,
                engine,
                TorchScriptEngine(work.model, ScoringConfig(device="cpu", threads=threads)),
                top,
                min(request.wanted, self.pool.num_users),
                skip=skip.bitmap,
                threads=threads,
                progress=report,
                cancelled=watch.cancelled,
            )

    def _scored(self, work: Work, rows: Rows, watch: Watch) -> Scores:
        """The reference's scores of pool rows."""
        reference = TorchScriptEngine(work.model, ScoringConfig(device="cpu", threads=self.config.scoring.threads))
        return score_exactly(self.pool, reference, rows, cancelled=watch.cancelled)

    def _write(self, staged: Path, work: Work, request: Request, chosen: Ranking) -> None:
        bounded = request.previous is not None and request.previous.budget < 1
        chosen.write(staged, self.pool, reserve=bool(request.reserve), bounded=bounded)
        write_ids(staged / SEEDS_NAME, self.pool.user_ids(request.recorded_seeds))
        if request.exclusions_sha256:
            excluded = marked_ids(self.pool, request.recorded_exclusions)
            write_exclusions(staged / EXCLUSIONS_NAME, self.pool.id_type, excluded)
        shutil.copyfile(work.model, staged / MODEL_NAME)

    def _names(self, request: Request) -> dict[str, Any]:
        """What identifies the request, by the receipt's names: equal names, equal bytes."""
        scoring = self.config.scoring
        return {
            "code_version": __version__,
            "campaign": request.campaign,
            "features": request.features,
            "seeds_sha256": request.seeds_sha256,
            "include_seeds": request.include_seeds,
            "filter": request.filter.text if request.filter is not None else "",
            "exclusions_sha256": request.exclusions_sha256,
            "opted_out_sha256": request.opted_out_sha256,
            "previous_sha256": request.previous_sha256,
            "churn_budget": request.previous.budget if request.previous is not None else 1.0,
            "random_seed": request.random_seed,
            "reserve_requested": request.reserve,
            "k_requested": request.k,
            "checkpoint_sha256": self.checkpoint_sha256,
            "pool_sha256": self.pool.fingerprint,
            "adaptation_config": to_plain(self.config.adaptation),
            "engine": scoring.engine,
            "device": scoring.device,
            "batch_size": scoring.batch_size,
            "threads": scoring.threads,
        }

    def _default_name(self, request: Request) -> str:
        safe = "".join(c if c.isalnum() or c in "-_." else "_" for c in request.campaign)[:64]
        return f"{safe}-{identity(self._names(request))[:12]}"

    def _existing(self, folder: Path, request: Request) -> Audience:
        if not (folder / RECEIPT_NAME).exists():
            raise AlreadyExists(f"{folder} exists and holds no audience; choose another output", field="output")
        audience = Audience.open(folder)
        recorded = audience.receipt.to_json()
        for name, value in self._names(request).items():
            if recorded[name] != value:
                raise AlreadyExists(
                    f"{folder} holds an audience with another {name}; choose another output", field="output"
                )
        # Left where a run was killed when it had just published.
        shutil.rmtree(work_folder(folder, self._names(request)), ignore_errors=True)
        return audience

    def _receipt(
        self,
        request: Request,
        work: Work,
        selection: Selection,
        chosen: Ranking,
        skip: Skipped,
        staged: Path,
        job_id: str,
        seconds: Mapping[str, float],
    ) -> Receipt:
        assert work.adaptation is not None
        cutoff, reserve = chosen.cutoff, staged / RESERVE_NAME
        return Receipt(
            format_version=FORMAT_VERSION,
            job_id=job_id,
            created=datetime.now(UTC).isoformat(timespec="seconds"),
            **self._names(request),
            seeds=request.match,
            pool=self.pool.path.absolute(),
            pool_users=self.pool.num_users,
            users_scored=selection.users_scored,
            users_skipped=selection.users_skipped,
            users_filtered=skip.filtered,
            exclusions=counts(request.exclusions),
            opted_out=request.opted_out.matched if request.opted_out is not None else 0,
            removed=request.removed(self.pool),
            k=chosen.size,
            cutoff_score=cutoff.score,
            ties_at_cutoff=cutoff.ties,
            ties_selected=cutoff.selected,
            reserve=chosen.reserve(file_digest(reserve)) if reserve.exists() else None,
            refresh=chosen.refresh(request.previous) if request.previous is not None else None,
            adaptation=work.adaptation,
            rescoring=None if is_exact(self.config.scoring) else _rescoring(selection),
            seconds=seconds,
            audience_sha256=file_digest(staged / AUDIENCE_NAME),
            model_sha256=file_digest(staged / MODEL_NAME),
        )


def _misfit(pool: FeatureSchema, checkpoint: FeatureSchema) -> str:
    """Which fields differ, the first few."""
    ours, theirs = ({field.name: field for field in schema.fields} for schema in (pool, checkpoint))
    found = []
    for name in ours | theirs:
        if name not in ours:
            found.append(f"it has no '{name}'")
        elif name not in theirs:
            found.append(f"the checkpoint knows no '{name}'")
        elif ours[name].kind is not theirs[name].kind:
            found.append(f"'{name}' is {ours[name].kind.value}, not {theirs[name].kind.value}")
        elif ours[name] != theirs[name]:
            found.append(f"'{name}' has {ours[name].known} values, not {theirs[name].known}, or others")
    return "; ".join(found[:3] or ["fields in another order"]) + ("; ..." if len(found) > 3 else "")


def _rescoring(selection: Selection) -> Rescoring:
    return Rescoring(
        users=selection.users_rescored,
        epsilon=selection.epsilon,
        epsilon_kind="statistical",
        largest_error=selection.largest_error,
    )
