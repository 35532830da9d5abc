"""What every system is asked: which campaigns it learns from, which it meets, and which users it must rank.

Knows datasets, pools and tasks. The answers stay here; knows no system, so that all are asked alike.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from lookalike.dataset.layout import Dataset, Split
from lookalike.errors import InvalidInput, quoted
from lookalike.evaluation.systems.system import History, SeededCampaign
from lookalike.pool.snapshot import Pool
from lookalike.training.tasks import Samples, Task, load_tasks

# A twentieth of fewer is nobody, and P@5% is then nothing.
FEWEST_CANDIDATES = 20
TUNING_SHARE = 0.1
# Fewer say nothing of a rate: on kuairand a campaign's AUC has a standard deviation of 0.07. More only take longer.
FEWEST_TUNING, MOST_TUNING = 24, 40
# Of the paper's groups: this share of the test campaigns has at most T seeds (section 4.1).
FEW_SEEDS_SHARE = 0.8
# One pass over 2 million samples takes a network of the paper's size some minutes on a core.
MOST_SAMPLES = 2_000_000

_TUNING, _SPLIT, _LIMIT, _TUNING_LIMIT = range(4)  # what a random number is for

Mask = npt.NDArray[np.bool_]


@dataclass(frozen=True)
class Answers:
    """Who of a campaign's candidates turned out to be interested: `[candidates]` labels (1 or 0) and user ids."""

    labels: npt.NDArray[np.int8]
    user_ids: npt.NDArray[Any]


@dataclass(frozen=True)
class Exam:
    """One run's question to every system.

    Attributes:
        history: training campaigns, for the offline stage.
        campaigns: test campaigns, with nothing of what came later but whom to rank, in order of pool rows.
        answers: one for each of `campaigns`; never handed to a system.
        left_out: test campaigns that cannot be judged: one label only among seeds or candidates, or too few of these.
    """

    history: History
    campaigns: tuple[SeededCampaign, ...]
    answers: tuple[Answers, ...]
    left_out: int


class Protocol:
    """The splits of all runs of one dataset.

    Run 0 has the dataset's own split; every other deals the campaigns out anew, as many to each side. The campaigns
    that tune are training campaigns of run 0 and stay so in every run: no run is judged by what chose its rates. With
    `grouped` every run is dealt out, run 0 too, and campaigns of one value of that field are on one side.
    """

    def __init__(self, dataset: Dataset, pool: Pool, *, grouped: str | None = None, limit: int | None = None) -> None:
        """`limit`: so many test campaigns, and tuning campaigns, at most.

        Raises:
            InvalidInput: no test campaign, a limit below 1, or `grouped` is no single-valued field of the campaigns.
        """
        self._groups = groups(dataset, grouped=grouped, limit=limit)
        self._dataset = dataset
        self._pool = pool
        self._limit = limit
        own = np.array(dataset.campaigns()["split"].to_pylist()) == "test"
        self._tests = int(own.sum())
        if self._tests == 0:
            raise InvalidInput(
                f"{dataset.path / 'campaigns.parquet'} has no campaign of split 'test': set some apart",
                field="campaigns.parquet:split",
            )
        everyone = np.ones(len(own), bool)
        first = own if grouped is None else _choose(self._groups, everyone, self._tests, [_SPLIT, 0])
        count = tuning_size(int((~first).sum()))
        self._tuning = _choose(self._groups, ~first, count, [_TUNING])
        self._first = first

    def splits(self, run: int) -> list[Split | None]:
        """Of every campaign in file order, for the run numbered so, from 0."""
        if run == 0:
            return _as_splits(self._first)
        return _as_splits(_choose(self._groups, ~self._tuning, self._tests, [_SPLIT, run]))

    @property
    def tuning_splits(self) -> list[Split | None]:
        """Of every campaign in file order: the tuning campaigns are tests, and run 0's tests are nothing."""
        splits = _as_splits(self._tuning)
        return [None if out else split for out, split in zip(self._first, splits, strict=True)]

    def exam(self, run: int) -> Exam:
        """The run numbered so, from 0; the limit leaves the same campaigns to every system.

        Raises:
            InvalidInput: no campaign can be learnt from, or none can be judged.
        """
        return self._exam(self._dataset.with_splits(self.splits(run)), [_LIMIT, run])

    @cached_property
    def tuning_exam(self) -> Exam:
        """Training campaigns of run 0 alone: some are held out and treated like test campaigns.

        Raises:
            InvalidInput: as `exam`.
        """
        return self._exam(self._dataset.with_splits(self.tuning_splits), [_TUNING_LIMIT])

    @cached_property
    def threshold(self) -> int:
        """T of the paper's two groups, from all test campaigns of run 0, whatever the limit; the same in every run."""
        dataset = self._dataset.with_splits(self.splits(0))
        return seed_threshold([seed_count(task.seeds) for task in self._tests_of(dataset)])

    @cached_property
    def budget(self) -> int:
        """Samples of pre-training if nothing else is asked for: one pass of run 0, but no more than `MOST_SAMPLES`."""
        dataset = self._dataset.with_splits(self.splits(0))
        tasks = load_tasks(dataset, self._pool, dataset.campaign_schema(), "train")
        return min(sum(len(task.samples) for task in tasks), MOST_SAMPLES)

    def _tests_of(self, dataset: Dataset) -> list[Task]:
        """The test campaigns that can be judged.

        Raises:
            InvalidInput: there is none.
        """
        tasks = [t for t in load_tasks(dataset, self._pool, dataset.campaign_schema(), "test") if _can_be_judged(t)]
        if not tasks:
            raise InvalidInput(
                f"no campaign to be tested has both labels in its seed and its audience rows, and {FEWEST_CANDIDATES} "
                "audience rows or more",
                field="samples.parquet",
            )
        return tasks

    def _exam(self, dataset: Dataset, seed: list[int]) -> Exam:
        schema = dataset.campaign_schema()
        history = History(self._pool, schema, load_tasks(dataset, self._pool, schema, "train"))
        tasks = self._tests_of(dataset)
        left_out = len(dataset.campaign_ids("test")) - len(tasks)
        if self._limit is not None and len(tasks) > self._limit:
            chosen = np.random.default_rng(seed).choice(len(tasks), self._limit, replace=False)
            tasks = [tasks[index] for index in np.sort(chosen)]
        pairs = [_question_and_answers(task, self._pool) for task in tasks]
        return Exam(history, tuple(q for q, _ in pairs), tuple(a for _, a in pairs), left_out)


def tuning_size(training: int) -> int:
    """How many of so many training campaigns tune: a tenth, from 24 to 40, but never more than a quarter."""
    wanted = min(max(round(TUNING_SHARE * training), FEWEST_TUNING), MOST_TUNING)
    return max(1, min(wanted, training // 4))


def seed_threshold(seeds: Sequence[int]) -> int:
    """T such that the share of campaigns with at most T seeds is as near to 80% as can be; the smaller of two.

    Raises:
        InvalidInput: `seeds` is empty.
    """
    if not seeds:
        raise InvalidInput("no campaigns to divide by their seeds", field="seeds")
    values, counts = np.unique(np.asarray(seeds), return_counts=True)
    off = np.abs(np.cumsum(counts) / len(seeds) - FEW_SEEDS_SHARE)
    return int(values[np.argmin(off)])


def seed_count(seeds: Samples) -> int:
    """Users that the marketer hands in; the other samples are negatives."""
    return int(np.count_nonzero(seeds.labels))


def _can_be_judged(task: Task) -> bool:
    return task.seeds.trainable and task.audience.trainable and len(task.audience) >= FEWEST_CANDIDATES


def _question_and_answers(task: Task, pool: Pool) -> tuple[SeededCampaign, Answers]:
    # In the file's order the interested may come first.
    audience = task.audience.take(np.argsort(task.audience.rows, kind="stable"))
    ids = pool.user_ids(audience.rows)
    user_ids = ids.to_numpy() if pa.types.is_integer(ids.type) else np.array(ids.to_pylist())
    question = SeededCampaign(task.campaign_id, task.features, task.seeds, audience.rows)
    return question, Answers(audience.labels.astype(np.int8), user_ids)


def groups(dataset: Dataset, *, grouped: str | None, limit: int | None) -> npt.NDArray[np.int64]:
    """A number for each campaign, the same for those that must not be parted; needs no pool.

    Raises:
        InvalidInput: a limit below 1, or `grouped` is no single-valued field of the campaigns.
    """
    if limit is not None and limit < 1:
        raise InvalidInput(f"limit must be 1 or more, not {limit}", field="limit")
    campaigns = dataset.campaigns()
    if grouped is None:
        return np.arange(campaigns.num_rows)
    fields = [field.name for field in campaigns.schema if not pa.types.is_nested(field.type)]
    fields = [name for name in fields if name not in ("campaign_id", "split")]
    if grouped not in fields:
        raise InvalidInput(
            f"campaigns cannot be grouped by {quoted(grouped)}; their single-valued fields are "
            f"{', '.join(fields) or 'none: leave it out'}",
            field="grouped",
        )
    numbers: dict[object, int] = {}
    values = campaigns[grouped].to_pylist()
    # A campaign without a value is a group by itself.
    keys = [(c,) if value is None else value for c, value in zip(dataset.campaign_ids(), values, strict=True)]
    return np.array([numbers.setdefault(key, len(numbers)) for key in keys], np.int64)


def _choose(groups: npt.NDArray[np.int64], among: Mask, count: int, seed: list[int]) -> Mask:
    """Whole groups of the campaigns in `among`, in random order, each if it brings their number nearer to `count`.

    Raises:
        InvalidInput: that would be all of them, or none.
    """
    numbers, sizes = np.unique(groups[among], return_counts=True)
    taken: list[int] = []
    total = 0
    for index in np.random.default_rng(seed).permutation(len(numbers)):
        if abs(total + sizes[index] - count) < abs(total - count):
            taken.append(int(numbers[index]))
            total += int(sizes[index])
    if not 0 < total < int(among.sum()):
        raise InvalidInput(
            f"{int(among.sum())} campaigns in {len(numbers)} groups cannot be split in two: give more campaigns"
            + (", or another field" if len(numbers) < int(among.sum()) else ""),
            field="campaigns.parquet",
        )
    chosen: Mask = np.isin(groups, taken) & among
    return chosen


def _as_splits(tests: Mask) -> list[Split | None]:
    return ["test" if test else "train" for test in tests]
