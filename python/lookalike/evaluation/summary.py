"""What the results say: means over runs, the two groups, ours against every row. All the numbers, in no format.

Knows results and statistics; knows nothing of how they were measured.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np

from lookalike.dataset.layout import CampaignId
from lookalike.evaluation.comparison import Difference, holm, paired_bootstrap, paired_t_test
from lookalike.evaluation.published import FIGURES, PublishedRow
from lookalike.evaluation.results import CampaignResult, Identity, RunResult, Tuned
from lookalike.evaluation.systems.system import Rates

Group = Literal["all", "few", "many"]
Metric = Literal["auc", "precision", "recall"]
GROUPS: tuple[Group, ...] = ("all", "few", "many")
METRICS: tuple[Metric, ...] = ("auc", "precision", "recall")


@dataclass(frozen=True)
class Spread:
    """A mean over runs, and their standard deviation where there are two or more."""

    mean: float
    deviation: float | None


@dataclass(frozen=True)
class Versus:
    """Ours minus a row. `p_holm` is corrected for the metrics and groups of the row; `p_runs` is the t-test's.

    `p_holm` is None where the bootstrap has no p.
    """

    difference: Difference
    p_holm: float | None
    p_runs: float | None


@dataclass(frozen=True)
class Row:
    """One system.

    Attributes:
        runs: the finished ones. metrics: the mean over campaigns, then over runs; None: no campaign in the group.
        offline_seconds, offline_samples: of pre-training, mean over runs.
        online_seconds, online_samples: of adaptation, mean over campaigns.
        versus: ours minus this row, by group and metric; empty for ours, and where no run is common.
        published: the paper's figures on this data. other_code: some of it was measured by other code than now.
    """

    key: str
    title: str
    runs: tuple[int, ...]
    metrics: Mapping[Group, Mapping[Metric, Spread | None]]
    pooled_auc: Spread
    rates: Rates
    offline_seconds: float
    offline_samples: float
    online_seconds: float
    online_samples: float
    versus: Mapping[Group, Mapping[Metric, Versus]]
    published: PublishedRow | None
    other_code: bool


@dataclass(frozen=True)
class Facts:
    """Of the test campaigns of the finished runs.

    Attributes:
        campaigns: of each run, by group, in the mean. most: of the run that has the most.
        base_rates: share of the candidates who are interested, mean over campaigns: what P@5% is by chance.
        left_out: campaigns a run that cannot be judged.
        repeated: share of campaigns of which more than a tenth of the candidates are among their own training samples.
    """

    campaigns: Mapping[Group, float]
    most: int
    base_rates: Mapping[Group, float | None]
    left_out: float
    repeated: float


@dataclass(frozen=True)
class Summary:
    """The whole table. `runs` were asked for; `rows` are in the table's order; `absent` have no finished run."""

    name: str
    command: str
    identity: Identity
    runs: int
    ours: str
    rows: tuple[Row, ...]
    absent: tuple[str, ...]
    facts: Facts
    tuning: Mapping[str, Tuned]
    machines: tuple[Mapping[str, str | int], ...]


def summarise(
    results: Mapping[str, Sequence[RunResult]],
    identity: Identity,
    *,
    name: str,
    command: str,
    runs: int,
    ours: str,
    asked: Sequence[str],
    tuning: Mapping[str, Tuned],
    code: str,
) -> Summary:
    """The summary of the finished results, which must not be empty.

    Args:
        name: the dataset's. asked: the systems of the table, in its order. ours: the one that others are compared with.
        code: the digest of our code now.
    """
    published = FIGURES.get(identity.published, {})
    rows = tuple(
        _row(results[key], identity.threshold, results.get(ours, ()), published.get(key), code)
        for key in asked
        if key in results
    )
    everything = [result for key in asked for result in results.get(key, ())]
    machines: list[Mapping[str, str | int]] = []
    for result in everything:
        if result.origin.machine not in machines:
            machines.append(result.origin.machine)
    return Summary(
        name=name,
        command=command,
        identity=identity,
        runs=runs,
        ours=ours,
        rows=rows,
        absent=tuple(key for key in asked if key not in results),
        facts=_facts(everything, identity.threshold),
        tuning=tuning,
        machines=tuple(machines),
    )


def in_group(campaigns: Sequence[CampaignResult], group: Group, threshold: int) -> list[CampaignResult]:
    """Those with at most T seeds (few), with more (many), or all."""
    return [c for c in campaigns if group == "all" or (c.seeds <= threshold) == (group == "few")]


def _row(
    results: Sequence[RunResult],
    threshold: int,
    ours: Sequence[RunResult],
    published: PublishedRow | None,
    code: str,
) -> Row:
    campaigns = [campaign for result in results for campaign in result.grades.campaigns]
    return Row(
        key=results[0].system,
        title=results[0].title,
        runs=tuple(result.run for result in results),
        metrics={g: {m: _spread(list(_by_run(results, g, m, threshold).values())) for m in METRICS} for g in GROUPS},
        pooled_auc=_some_spread([result.grades.pooled_auc for result in results]),
        rates=results[0].rates,
        offline_seconds=float(np.mean([result.grades.offline.seconds for result in results])),
        offline_samples=float(np.mean([result.grades.offline.samples for result in results])),
        online_seconds=float(np.mean([campaign.seconds for campaign in campaigns])),
        online_samples=float(np.mean([campaign.samples for campaign in campaigns])),
        versus={} if not ours or ours[0].system == results[0].system else _versus(ours, results, threshold),
        published=published,
        other_code=any(result.origin.code != code for result in results),
    )


def _by_run(results: Sequence[RunResult], group: Group, metric: Metric, threshold: int) -> dict[int, float]:
    """The mean over the group's campaigns, of each run that has some."""
    found = {result.run: in_group(result.grades.campaigns, group, threshold) for result in results}
    return {run: float(np.mean([getattr(c, metric) for c in chosen])) for run, chosen in found.items() if chosen}


def _spread(values: Sequence[float]) -> Spread | None:
    return _some_spread(values) if values else None


def _some_spread(values: Sequence[float]) -> Spread:
    return Spread(float(np.mean(values)), float(np.std(values, ddof=1)) if len(values) > 1 else None)


def _versus(
    ours: Sequence[RunResult], theirs: Sequence[RunResult], threshold: int
) -> dict[Group, dict[Metric, Versus]]:
    differences: dict[tuple[Group, Metric], Difference] = {}
    p_runs: dict[tuple[Group, Metric], float | None] = {}
    for group in GROUPS:
        mine, other = _by_pair(ours, group, threshold), _by_pair(theirs, group, threshold)
        common = [pair for pair in mine if pair in other]
        if not common:
            continue
        campaigns = _numbered([campaign for _, campaign in common])
        for metric in METRICS:
            apart = [getattr(mine[pair], metric) - getattr(other[pair], metric) for pair in common]
            differences[group, metric] = paired_bootstrap(np.array(apart), campaigns)
            means, others = (_by_run(r, group, metric, threshold) for r in (ours, theirs))
            both = sorted(means.keys() & others.keys())
            p_runs[group, metric] = paired_t_test([means[run] for run in both], [others[run] for run in both])
    adjusted = dict(zip(differences, holm([difference.p for difference in differences.values()]), strict=True))
    versus: dict[Group, dict[Metric, Versus]] = {}
    for (group, metric), difference in differences.items():
        found = Versus(difference, adjusted[group, metric], p_runs[group, metric])
        versus.setdefault(group, {})[metric] = found
    return versus


def _by_pair(
    results: Sequence[RunResult], group: Group, threshold: int
) -> dict[tuple[int, CampaignId], CampaignResult]:
    return {
        (result.run, campaign.campaign_id): campaign
        for result in results
        for campaign in in_group(result.grades.campaigns, group, threshold)
    }


def _numbered(campaigns: Sequence[CampaignId]) -> list[int]:
    numbers: dict[CampaignId, int] = {}
    return [numbers.setdefault(campaign, len(numbers)) for campaign in campaigns]


def _facts(results: Sequence[RunResult], threshold: int) -> Facts:
    """Every system of a run had the same campaigns, so one of each run tells."""
    by_run = list({result.run: result for result in results}.values())
    everyone = [campaign for result in by_run for campaign in result.grades.campaigns]
    grouped = {group: in_group(everyone, group, threshold) for group in GROUPS}
    rates = {group: [c.positives / c.users for c in campaigns] for group, campaigns in grouped.items()}
    return Facts(
        campaigns={group: len(campaigns) / len(by_run) for group, campaigns in grouped.items()},
        most=max(len(result.grades.campaigns) for result in by_run),
        base_rates={group: float(np.mean(values)) if values else None for group, values in rates.items()},
        left_out=float(np.mean([result.left_out for result in by_run])),
        repeated=float(np.mean([c.repeated > 0.1 * c.users for c in everyone])),
    )
