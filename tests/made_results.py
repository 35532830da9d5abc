"""Results as if measured, for what shows and compares them."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from lookalike.evaluation.results import CampaignResult, Grades, Identity, Origin, RunResult
from lookalike.evaluation.summary import Summary, summarise
from lookalike.evaluation.systems.system import Rates, Spent

IDENTITY = Identity(dataset="d" * 16, pool="p" * 64, samples=1000, limit=None, grouped=None, threshold=60)
ORIGIN = Origin(protocol=IDENTITY.digest, code="now", machine={"CPU": "of a test", "cores": 1})


def made(
    system: str, run: int, aucs: Sequence[float], *, losses: tuple[float, ...] = (), origin: Origin = ORIGIN
) -> RunResult:
    """Campaign i has 10 * (i + 1) seeds and ranks with `aucs[i]`; precision and recall go with it."""
    campaigns = tuple(
        CampaignResult(
            campaign_id=100 + i,
            seeds=10 * (i + 1),
            negatives=200 * (i + 1),
            users=400,
            positives=20,
            repeated=0,
            auc=auc,
            precision=auc / 4,
            recall=auc / 3,
            seconds=0.5,
            samples=300,
            losses=losses[: 1 + i % len(losses)] if losses else (),
        )
        for i, auc in enumerate(aucs)
    )
    grades = Grades(Spent(4.0, 1000), campaigns, float(np.mean(aucs)))
    title = {"lookalike": "Lookalike"}.get(system, system.upper())
    return RunResult(system, title, run, Rates(0.01, 0.1), grades, left_out=2, seconds=9.0, origin=origin)


def summary(
    results: Sequence[RunResult], *, runs: int = 2, asked: Sequence[str] | None = None, identity: Identity = IDENTITY
) -> Summary:
    by_system: dict[str, list[RunResult]] = {}
    for result in results:
        by_system.setdefault(result.system, []).append(result)
    return summarise(
        by_system,
        identity,
        name="made",
        command="lookalike bench made",
        runs=runs,
        ours="lookalike",
        asked=asked or list(by_system),
        tuning={},
        code="now",
    )
