"""The facade: `Expander.open(checkpoint, pool).expand(campaign=..., seeds=..., k=...)`.

Everything above this floor (runtimes, service, command line) expands through here, so there is one way to do it.
"""

from __future__ import annotations

import hashlib
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from lookalike import __version__
from lookalike.config import Config
from lookalike.errors import AlreadyExists, EmptySeeds, FailedPrecondition, InvalidInput
from lookalike.files import file_digest, staged_folder
from lookalike.pool.snapshot import Pool
from lookalike.retrieval.audience import Audience, write_members, write_receipt, write_seeds
from lookalike.retrieval.receipt import (
    AUDIENCE_NAME,
    FORMAT_VERSION,
    MODEL_NAME,
    SEEDS_NAME,
    Adaptation,
    Progress,
    Receipt,
    SeedMatch,
    Stage,
)
from lookalike.retrieval.selection import Selection, select
from lookalike.schema import EncodedColumns, FeatureValue
from lookalike.scoring.compiled import (
    TorchScriptEngine,
    available_threads,
    choose_device,
    compile_model,
    compute_threads,
)
from lookalike.training.adapt import Adapted, adapt
from lookalike.training.checkpoint import Checkpoint, load_checkpoint

ProgressCallback = Callable[[Progress], None]
CancelledCallback = Callable[[], bool]


@dataclass(frozen=True)
class _Request:
    """What decides an audience's bytes, checked and in canonical form."""

    campaign: str
    features: Mapping[str, FeatureValue]
    encoded: EncodedColumns
    seed_rows: npt.NDArray[np.int64]  # matched, ascending
    match: SeedMatch
    seeds_sha256: str
    k: int
    include_seeds: bool
    random_seed: int


@dataclass
class _Watch:
    """Stage by stage: reports progress, polls for cancellation, takes the time."""

    progress: ProgressCallback | None
    cancelled: CancelledCallback | None
    seconds: dict[str, float] = field(default_factory=dict)

    @contextmanager
    def stage(self, stage: Stage, total: int = 1) -> Iterator[Callable[[int, int], None]]:
        self.report(stage, 0, total)
        started = time.perf_counter()
        yield lambda done, of: self.report(stage, done, of)
        self.seconds[stage.value.lower()] = round(time.perf_counter() - started, 4)

    def report(self, stage: Stage, done: int, total: int) -> None:
        if self.progress is not None:
            self.progress(Progress(stage, done, total))


class Expander:
    """A general checkpoint and a pool that fit together. Expansions may run on several threads at once."""

    def __init__(self, checkpoint: Checkpoint, pool: Pool, config: Config) -> None:
        if pool.schema.fingerprint != checkpoint.user_schema.fingerprint:
            raise FailedPrecondition(
                f"the pool {pool.path} was encoded with another user schema than the checkpoint's: "
                "ingest it again with --schema CHECKPOINT, or train on this pool",
                field="pool",
                reason="SCHEMA_MISMATCH",
            )
        self.checkpoint = checkpoint
        self.pool = pool
        self.config = config

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
        seeds: pa.Array | pa.ChunkedArray | Sequence[int | str],
        k: int,
        features: Mapping[str, FeatureValue] | None = None,
        output: Path | None = None,
        include_seeds: bool = False,
        random_seed: int = 0,
        job_id: str = "",
        progress: ProgressCallback | None = None,
        cancelled: CancelledCallback | None = None,
    ) -> Audience:
        """The exact top `k` of the pool for a campaign, as an audience folder with its receipt.

        Args:
            campaign: a name for the receipt.
            seeds: user ids of the pool's type; duplicates and users the pool lacks are counted and left out.
            k: 1 or more; fewer come back when fewer users are eligible.
            features: campaign features by name; left-out ones are missing, unseen values unknown.
            output: folder to create; default `audiences/<campaign>-<12 hex digits of the request>`. If it holds the
                audience of the very same request, that is returned and nothing is done.
            include_seeds: let seeds into the audience.
            random_seed: of negatives, folds and batches. The same request gives the same bytes.
            progress: called at least once a training step and once a scored block, on this thread.
            cancelled: asked as often.

        Raises:
            EmptySeeds, SchemaError, InvalidInput: the request is wrong. AlreadyExists: `output` holds something else.
            Cancelled: `cancelled()` turned true; nothing is left behind.
        """
        watch = _Watch(progress, cancelled)
        with watch.stage(Stage.MATCHING, len(seeds)) as report:
            request = self._check(campaign, dict(features or {}), seeds, k, include_seeds, random_seed)
            report(len(seeds), len(seeds))
        folder = Path(output) if output is not None else Path("audiences") / self._default_name(request)
        if folder.exists():
            return self._existing(folder, request)
        device = choose_device(self.config.scoring.device)
        with watch.stage(Stage.ADAPTING) as report, compute_threads(self.config.scoring.threads or available_threads()):
            adapted = adapt(
                self.checkpoint,
                self.pool,
                request.encoded,
                request.seed_rows,
                self.config.adaptation,
                random_seed=random_seed,
                device=device,
                progress=report,
                cancelled=cancelled,
            )
        with staged_folder(folder) as staged:
            with watch.stage(Stage.COMPILING) as report:
                provenance = {"code_version": __version__, **self._names(request)}
                compile_model(adapted.model, request.encoded, staged / MODEL_NAME, provenance)
                engine = TorchScriptEngine(staged / MODEL_NAME, self.config.scoring)
                report(1, 1)
            with watch.stage(Stage.SCORING, self.pool.num_users) as report:
                skip = np.zeros(0, np.int64) if include_seeds else request.seed_rows
                selection = select(self.pool, engine, k, skip, progress=report, cancelled=cancelled)
            with watch.stage(Stage.WRITING) as report:
                write_members(staged / AUDIENCE_NAME, self.pool.user_ids(selection.rows), selection.scores)
                write_seeds(staged / SEEDS_NAME, self.pool.user_ids(request.seed_rows))
            watch.seconds["select"] = round(selection.select_seconds, 4)
            write_receipt(staged, self._receipt(request, adapted, engine, selection, staged, job_id, watch.seconds))
        watch.report(Stage.WRITING, 1, 1)
        return Audience.open(folder)

    def _check(
        self,
        campaign: str,
        features: dict[str, FeatureValue],
        seeds: pa.Array | pa.ChunkedArray | Sequence[int | str],
        k: int,
        include_seeds: bool,
        random_seed: int,
    ) -> _Request:
        if not campaign:
            raise InvalidInput("a campaign needs a name", field="campaign")
        if k < 1:
            raise InvalidInput(f"k must be 1 or more, not {k}", field="k")
        if random_seed < 0:
            raise InvalidInput(f"random_seed must be 0 or more, not {random_seed}", field="random_seed")
        if len(seeds) == 0:
            raise EmptySeeds("no seeds were given; give user ids of the pool", field="seeds")
        encoded = self.checkpoint.campaign_schema.encode_features(features, where="features")
        rows = np.sort(self.pool.find(seeds))
        found = rows[rows >= 0]
        matched = np.unique(found)
        match = SeedMatch(
            given=len(seeds),
            matched=len(matched),
            duplicates=len(found) - len(matched),
            not_in_pool=len(rows) - len(found),
        )
        return _Request(
            campaign,
            features,
            encoded,
            matched,
            match,
            _ids_digest(self.pool.user_ids(matched)),
            k,
            include_seeds,
            random_seed,
        )

    def _names(self, request: _Request) -> dict[str, object]:
        """What identifies the request: equal names, equal bytes."""
        return {
            "campaign": request.campaign,
            "features": request.features,
            "seeds_sha256": request.seeds_sha256,
            "include_seeds": request.include_seeds,
            "random_seed": request.random_seed,
            "k_requested": request.k,
            "checkpoint_sha256": self.checkpoint_sha256,
            "pool_sha256": self.pool.fingerprint,
        }

    def _default_name(self, request: _Request) -> str:
        safe = "".join(c if c.isalnum() or c in "-_." else "_" for c in request.campaign)[:64]
        return f"{safe}-{hashlib.sha256(repr(self._names(request)).encode()).hexdigest()[:12]}"

    def _existing(self, folder: Path, request: _Request) -> Audience:
        audience = Audience.open(folder)
        recorded = audience.receipt.to_json()
        for name, value in self._names(request).items():
            if recorded[name] != value:
                raise AlreadyExists(
                    f"{folder} holds an audience with another {name}; choose another output", field="output"
                )
        return audience

    def _receipt(
        self,
        request: _Request,
        adapted: Adapted,
        engine: TorchScriptEngine,
        selection: Selection,
        staged: Path,
        job_id: str,
        seconds: Mapping[str, float],
    ) -> Receipt:
        cutoff = float(selection.scores[-1]) if len(selection.scores) else None
        return Receipt(
            format_version=FORMAT_VERSION,
            code_version=__version__,
            job_id=job_id,
            created=datetime.now(UTC).isoformat(timespec="seconds"),
            campaign=request.campaign,
            features=request.features,
            seeds=request.match,
            seeds_sha256=request.seeds_sha256,
            include_seeds=request.include_seeds,
            random_seed=request.random_seed,
            checkpoint_sha256=self.checkpoint_sha256,
            pool_sha256=self.pool.fingerprint,
            pool=self.pool.path.absolute(),
            pool_users=self.pool.num_users,
            users_scored=selection.users_scored,
            users_skipped=selection.users_skipped,
            k_requested=request.k,
            k=len(selection.rows),
            cutoff_score=cutoff,
            ties_at_cutoff=selection.ties_at_cutoff,
            ties_selected=int(np.count_nonzero(selection.scores == selection.scores[-1:])),
            engine=engine.name,
            device=str(engine.device),
            batch_size=engine.batch_size,
            threads=engine.threads,
            adaptation=Adaptation(
                best_epoch=adapted.best_epoch,
                samples=adapted.samples,
                folds=adapted.folds,
                held_out_auc=adapted.held_out_auc,
                general_auc=adapted.general_auc,
                history=adapted.history,
            ),
            seconds=seconds,
            audience_sha256=file_digest(staged / AUDIENCE_NAME),
            model_sha256=file_digest(staged / MODEL_NAME),
        )


def _ids_digest(ids: pa.Array) -> str:
    """SHA-256 of ids: eight little-endian bytes each, or UTF-8 each followed by a zero byte."""
    if pa.types.is_int64(ids.type):
        return hashlib.sha256(ids.to_numpy(zero_copy_only=False).astype("<i8").tobytes()).hexdigest()
    return hashlib.sha256("".join(f"{user_id}\0" for user_id in ids.to_pylist()).encode()).hexdigest()
