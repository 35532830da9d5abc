"""Test help: audiences on disk, made by what makes them, of a pool whose scores are given."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from lookalike.files import file_digest, staged_folder
from lookalike.pool.bitmap import count, empty_bitmap, mark
from lookalike.retrieval.audience import (
    AUDIENCE_NAME,
    RESERVE_NAME,
    SEEDS_NAME,
    ids_digest,
    write_exclusions,
    write_ids,
    write_receipt,
)
from lookalike.retrieval.ranking import Ranking, rank
from lookalike.retrieval.receipt import EXCLUSIONS_NAME, Adaptation, Receipt, SeedMatch
from lookalike.retrieval.request import Previous
from lookalike.retrieval.rescoring import Selection
from lookalike.retrieval.topk import TopK


class Scored:
    """Stands where a pool does: users by row, and what each scores."""

    def __init__(self, user_ids: pa.Array, scores: Sequence[float]) -> None:
        self.ids = user_ids
        self.scores = np.asarray(scores, np.float32)

    def user_ids(self, rows: np.ndarray) -> pa.Array:
        return self.ids.take(pa.array(rows))

    def rows(self, user_ids: Collection[object]) -> np.ndarray:
        rows = pc.index_in(pa.array(list(user_ids), self.ids.type), value_set=self.ids)
        return np.unique(np.array([row for row in rows.to_pylist() if row is not None], np.int64))


def ranking(
    pool: Scored, k: int, reserve: int, *, skip: Collection[object] = (), previous: Previous | None = None
) -> tuple[Ranking, Selection]:
    """The list of an expansion that skips users."""
    bitmap = empty_bitmap(len(pool.scores))
    mark(bitmap, pool.rows(skip))
    top = TopK(k + reserve, num_rows=len(pool.scores), skip=bitmap)
    top.push(pool.scores, 0)
    selection = Selection.of(top)
    return rank(selection, k, reserve, previous, bitmap, lambda rows: pool.scores[rows]), selection


def previous_of(pool: Scored, members: Collection[object], budget: float) -> Previous:
    return Previous(
        user_ids=pa.array(sorted(members), pool.ids.type), name="audiences/old", budget=budget, rows=pool.rows(members)
    )


def make_audience(
    folder: Path,
    pool: Scored,
    k: int,
    reserve: int,
    *,
    seeds: Sequence[object] = (),
    exclusions: Sequence[object] = (),
    opted_out: Collection[object] = (),
    previous: Previous | None = None,
    seeds_are_skipped: bool = True,
    receipt: Mapping[str, object] | None = None,
) -> Receipt:
    """An audience folder as an expansion leaves it; seeds and exclusions are users of the pool. `receipt`: what else it
    is to say.
    """
    skip = {*(seeds if seeds_are_skipped else ()), *exclusions, *opted_out}
    chosen, selection = ranking(pool, k, reserve, skip=skip, previous=previous)
    with staged_folder(folder) as staged:
        chosen.write(staged, pool, reserve=reserve > 0, bounded=previous is not None and previous.budget < 1)
        seed_ids = pa.array(sorted(seeds), pool.ids.type)
        excluded = pa.array(sorted(exclusions), pool.ids.type)
        write_ids(staged / SEEDS_NAME, seed_ids)
        if len(exclusions):
            write_exclusions(staged / EXCLUSIONS_NAME, pool.ids.type, [excluded])
        has_reserve = (staged / RESERVE_NAME).exists()
        told = Receipt(
            format_version=1,
            code_version="test",
            job_id="0" * 32,
            created="2024-02-03T04:05:06+00:00",
            campaign="spring",
            features={},
            seeds=SeedMatch(given=len(seeds), matched=len(seeds), duplicates=0, not_in_pool=0),
            seeds_sha256=ids_digest([seed_ids]),
            include_seeds=False,
            random_seed=0,
            checkpoint_sha256="c" * 64,
            pool_sha256="9" * 64,
            pool=folder,
            pool_users=len(pool.scores),
            users_scored=selection.users_scored,
            users_skipped=selection.users_skipped,
            exclusions=SeedMatch(given=len(exclusions), matched=len(exclusions), duplicates=0, not_in_pool=0),
            exclusions_sha256=ids_digest([excluded]) if len(exclusions) else "",
            k_requested=k,
            k=chosen.size,
            cutoff_score=chosen.cutoff.score,
            ties_at_cutoff=chosen.cutoff.ties,
            ties_selected=chosen.cutoff.selected,
            engine="torchscript",
            device="cpu",
            batch_size=8,
            threads=1,
            adaptation=Adaptation(best_epoch=1, samples=10, folds=1, held_out_auc=0.75, general_auc=0.5),
            adaptation_config={},
            seconds={},
            audience_sha256=file_digest(staged / AUDIENCE_NAME),
            model_sha256="a" * 64,
            reserve_requested=reserve,
            reserve=chosen.reserve(file_digest(staged / RESERVE_NAME)) if has_reserve else None,
            churn_budget=previous.budget if previous is not None else 1.0,
            refresh=chosen.refresh(previous) if previous is not None else None,
            opted_out=count(bitmap_of(pool, opted_out)),
        )
        told = replace(told, **(receipt or {}))
        write_receipt(staged, told)
    return told


def bitmap_of(pool: Scored, users: Collection[object]) -> np.ndarray:
    bitmap = empty_bitmap(len(pool.scores))
    mark(bitmap, pool.rows(users))
    return bitmap
