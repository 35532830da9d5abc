"""What was measured, and the folder it is kept in: one file for each system and run, one for each system's rates.
Who measures holds the folder; who only reads need not, since every file appears whole.

Knows files and plain data; knows nothing of how anything is measured or shown.
"""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
import shutil
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from functools import cached_property
from pathlib import Path
from typing import ClassVar, Literal, TypeVar

import numpy as np
from pydantic import ConfigDict, TypeAdapter, ValidationError

from lookalike.dataset.layout import CampaignId
from lookalike.errors import DataCorrupted, FailedPrecondition, InvalidInput, NotFound
from lookalike.evaluation.systems.system import Rates, Spent
from lookalike.files import is_full, write_whole

Stage = Literal["offline", "online"]

_T = TypeVar("_T")
# JSON has no NaN, and a loss may be one.
STRICT = ConfigDict(extra="forbid", ser_json_inf_nan="strings")


@dataclass(frozen=True)
class CampaignResult:
    """One campaign of one run. `repeated` of its `users` (candidates) are among its own seeds or their negatives."""

    __pydantic_config__: ClassVar[ConfigDict] = STRICT

    campaign_id: CampaignId
    seeds: int
    negatives: int
    users: int
    positives: int
    repeated: int
    auc: float
    precision: float
    recall: float
    seconds: float
    samples: int
    losses: tuple[float, ...] = ()


@dataclass(frozen=True)
class Grades:
    """One system's exam: what it took offline, every campaign, and the AUC over the users of all campaigns."""

    __pydantic_config__: ClassVar[ConfigDict] = STRICT

    offline: Spent
    campaigns: tuple[CampaignResult, ...]
    pooled_auc: float

    @property
    def mean_auc(self) -> float:
        """Over campaigns: what rates are chosen by."""
        return float(np.mean([campaign.auc for campaign in self.campaigns]))


@dataclass(frozen=True)
class Trial:
    """One rate tried on the tuning campaigns: their mean AUC, or why there is none."""

    __pydantic_config__: ClassVar[ConfigDict] = STRICT

    stage: Stage
    rate: float
    auc: float | None
    seconds: float
    failure: str = ""


@dataclass(frozen=True)
class Origin:
    """What a file was made from and by: the digest of its `Identity`, of our code, and the machine in words."""

    __pydantic_config__: ClassVar[ConfigDict] = STRICT

    protocol: str
    code: str
    machine: Mapping[str, str | int]


@dataclass(frozen=True)
class Tuned:
    """A system's rates, and how they were found; no trials where there was nothing to tune."""

    __pydantic_config__: ClassVar[ConfigDict] = STRICT

    system: str
    rates: Rates
    trials: tuple[Trial, ...]
    campaigns: int
    origin: Origin


@dataclass(frozen=True)
class RunResult:
    """A finished run of a system. `seconds` is wall-clock time of all of it, scoring included."""

    __pydantic_config__: ClassVar[ConfigDict] = STRICT

    system: str
    title: str
    run: int
    rates: Rates
    grades: Grades
    left_out: int
    seconds: float
    origin: Origin


@dataclass(frozen=True)
class Identity:
    """What the results of one folder have in common: they can be compared because these are the same.

    Attributes:
        dataset: the digest of its files. pool: its fingerprint.
        samples: of pre-training. limit: test campaigns a run at most. grouped: the field whose values are not parted.
        threshold: T, the seeds that part the two groups of campaigns.
        published: of which publication's data it is, where figures were published; "" for others.
    """

    __pydantic_config__: ClassVar[ConfigDict] = STRICT

    dataset: str
    pool: str
    samples: int
    limit: int | None
    grouped: str | None
    threshold: int
    published: str = ""

    @cached_property
    def digest(self) -> str:
        """Names it in every result."""
        return hashlib.sha256(json.dumps(asdict(self), sort_keys=True).encode()).hexdigest()[:16]


@contextmanager
def writable(path: Path) -> Iterator[None]:
    """What is done to a folder of results in the block needs one that can be written into.

    Raises:
        InvalidInput: it cannot.
    """
    try:
        yield
    except OSError as error:
        if is_full(error) or isinstance(error, BlockingIOError):
            raise
        raise InvalidInput(
            f"results cannot be written into {path} ({error.strerror}): give another --output", field="output"
        ) from error


@contextmanager
def held(path: Path) -> Iterator[None]:
    """A folder of results, made if need be, for this process alone to measure into while the block runs.

    Raises:
        FailedPrecondition: another holds it. InvalidInput: it is no folder, or cannot be written into.
    """
    with writable(path):
        path.mkdir(parents=True, exist_ok=True)
        lock = os.open(path / "lock", os.O_RDWR | os.O_CREAT, 0o644)
    try:
        try:
            with writable(path):
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise FailedPrecondition(
                f"another benchmark measures into {path}: wait for it, or give another --output",
                field="output",
                reason="BENCHMARK_RUNNING",
            ) from error
        yield
    finally:
        os.close(lock)


class ResultFolder:
    """`protocol.json`, `rates/SYSTEM.json` and `results/SYSTEM-RUN.json` in one folder; every file appears whole."""

    def __init__(self, path: Path, identity: Identity) -> None:
        self.path = path
        self.identity = identity

    @staticmethod
    def begun(path: Path) -> bool:
        """Whether there are, or are to be, results."""
        return (path / "protocol.json").is_file()

    @classmethod
    def open(cls, path: Path) -> ResultFolder:
        """What was begun there.

        Raises:
            NotFound: nothing was. DataCorrupted: it is not what `begin` writes.
        """
        if not cls.begun(path):
            raise NotFound(f"no results in {path}: run the benchmark first, or name its folder", field="output")
        return cls(path, read(path / "protocol.json", Identity))

    @classmethod
    def begin(cls, path: Path, identity: Identity, *, fresh: bool) -> ResultFolder:
        """Go on in the folder, or start one. With `fresh`, results of another identity are removed.

        To start or to remove, the caller must hold it.

        Raises:
            FailedPrecondition: it holds results of another identity. DataCorrupted: it is not what this writes.
        """
        file = path / "protocol.json"
        before = read(file, Identity) if cls.begun(path) else None
        changed = before is not None and before != identity
        if before is not None and changed and not fresh:
            raise FailedPrecondition(
                f"{path} holds results that cannot be compared with new ones ({differences(before, identity)}): "
                "give another --output, or --fresh to discard them",
                field="output",
            )
        for part in ("rates", "results"):
            if changed:
                shutil.rmtree(path / part, ignore_errors=True)
            (path / part).mkdir(parents=True, exist_ok=True)
        if before != identity:
            write_whole(file, dump(Identity, identity))
        return cls(path, identity)

    @contextmanager
    def held(self) -> Iterator[None]:
        """As the function; for who has read the folder and now has to measure.

        Raises:
            FailedPrecondition: another holds it, or has begun anew in it. InvalidInput: it cannot be written into.
        """
        with held(self.path):
            now = ResultFolder.open(self.path).identity
            if now != self.identity:
                raise FailedPrecondition(
                    f"{self.path} was begun anew meanwhile ({differences(self.identity, now)}): start again with the "
                    "options of now, or give another --output",
                    field="output",
                )
            yield

    def rates(self, system: str) -> Tuned | None:
        """None: it was not tuned yet.

        Raises:
            DataCorrupted: the file is damaged, or of other data or another protocol.
        """
        file = self._rates_file(system)
        if not file.is_file():
            return None
        tuned = read(file, Tuned)
        self._check(file, tuned.origin, ours=tuned.system == system)
        return tuned

    def result(self, system: str, run: int) -> RunResult | None:
        """None: it was not finished yet.

        Raises:
            DataCorrupted: as `rates`.
        """
        file = self._result_file(system, run)
        if not file.is_file():
            return None
        result = read(file, RunResult)
        self._check(file, result.origin, ours=(result.system, result.run) == (system, run))
        return result

    def put_rates(self, tuned: Tuned) -> None:
        """Keep a system's rates; replaces those there."""
        write_whole(self._rates_file(tuned.system), dump(Tuned, tuned))

    def put(self, result: RunResult) -> None:
        """Keep a finished run; replaces the one there."""
        write_whole(self._result_file(result.system, result.run), dump(RunResult, result))

    def finished(self, systems: Sequence[str], runs: int) -> dict[str, list[RunResult]]:
        """The finished ones of the first `runs` runs of each system, by run; systems that have none are left out.

        Raises:
            DataCorrupted: as `rates`.
        """
        found = {key: [self.result(key, run) for run in range(runs)] for key in systems}
        kept = {key: [result for result in results if result is not None] for key, results in found.items()}
        return {key: results for key, results in kept.items() if results}

    @property
    def runs(self) -> int:
        """As many as hold every finished one."""
        numbers = [file.stem.rpartition("-")[2] for file in (self.path / "results").glob("*.json")]
        return max([0, *(int(number) + 1 for number in numbers if number.isdecimal())])

    @property
    def systems(self) -> set[str]:
        """Those that have a finished run."""
        return {file.stem.rpartition("-")[0] for file in (self.path / "results").glob("*.json")}

    def discard(self, systems: Collection[str]) -> None:
        """Forget the rates and all runs of these systems."""
        for key in systems:
            self._rates_file(key).unlink(missing_ok=True)
            for file in (self.path / "results").glob("*.json"):
                if file.stem.rpartition("-")[0] == key:
                    file.unlink()

    def _rates_file(self, system: str) -> Path:
        return self.path / "rates" / f"{system}.json"

    def _result_file(self, system: str, run: int) -> Path:
        return self.path / "results" / f"{system}-{run}.json"

    def _check(self, file: Path, origin: Origin, *, ours: bool) -> None:
        if origin.protocol != self.identity.digest or not ours:
            raise DataCorrupted(
                f"{file} belongs elsewhere: it is of another system, run, dataset or protocol; remove it",
                field=file.name,
            )


def differences(before: Identity, now: Identity) -> str:
    """In words, "" where there are none."""
    pairs = {name: (value, getattr(now, name)) for name, value in asdict(before).items()}
    short = {name: [str(value)[:12] for value in pair] for name, pair in pairs.items() if pair[0] != pair[1]}
    return "; ".join(f"{name} was {old}, now is {new}" for name, (old, new) in short.items())


def dump(kind: type[_T], value: _T) -> bytes:
    """As JSON."""
    return TypeAdapter(kind).dump_json(value, indent=1)


def read(file: Path, kind: type[_T]) -> _T:
    """What `dump` wrote.

    Raises:
        DataCorrupted: it did not.
    """
    try:
        return TypeAdapter(kind).validate_json(file.read_bytes())
    except ValidationError as error:
        raise DataCorrupted(
            f"{file} is damaged ({error.errors()[0]['msg']}): remove it, and it is made again", field=file.name
        ) from error
