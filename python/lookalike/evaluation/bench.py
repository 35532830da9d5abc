"""The benchmark: every system, every run, one protocol; what is finished is kept and not measured again.

Knows all of the evaluation; the systems only by their contract.
"""

from __future__ import annotations

import hashlib
import platform
import sys
import time
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future
from contextlib import ExitStack
from dataclasses import dataclass, field, replace
from functools import cache, partial
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import lookalike
from lookalike.config import available_threads
from lookalike.dataset.layout import CAMPAIGNS, SAMPLES, USERS, Dataset
from lookalike.errors import FailedPrecondition, InvalidInput, NotFound
from lookalike.evaluation.examination import examine, tune
from lookalike.evaluation.protocol import Exam, Protocol, groups
from lookalike.evaluation.published import published_as
from lookalike.evaluation.results import Identity, Origin, ResultFolder, RunResult, Tuned, differences, held
from lookalike.evaluation.summary import Summary, summarise
from lookalike.evaluation.systems.registry import OURS, Factory
from lookalike.evaluation.systems.system import Tick
from lookalike.evaluation.table import write_all
from lookalike.evaluation.watch import Watch
from lookalike.evaluation.workers import Workers
from lookalike.files import file_digest
from lookalike.pool.ingest import ingest
from lookalike.pool.snapshot import Pool

# What a result can depend on; a change of how it is shown must not make it look old.
_MEASURING = ("dataset", "evaluation/systems", "model", "pool", "scoring", "training")
_MEASURING_FILES = (
    *("config.py", "evaluation/examination.py", "evaluation/metrics.py", "evaluation/protocol.py", "expander.py"),
    "schema.py",
)


def run_bench(
    dataset_path: Path,
    output: Path,
    systems: Mapping[str, Factory],
    *,
    runs: int = 5,
    samples: int | None = None,
    limit: int | None = None,
    grouped: str | None = None,
    fresh: bool = False,
    jobs: int = 1,
    threads: int = 1,
    command: str = "",
    watch: Watch | None = None,
) -> Summary:
    """Measure what is not measured yet, all systems of run 0 first; write the table after every run.

    Args:
        output: the folder of results, and of the pool made from the dataset's users.
        samples: of pre-training; default: one pass over the training campaigns, or `protocol.MOST_SAMPLES`.
        limit: test campaigns a run at most. grouped: a field of campaigns whose values are not parted by a split.
        fresh: discard what there is of these systems, and everything if it was measured otherwise.
        jobs: processes that measure side by side, each with its own copy of the samples; with 1, this one does.
        threads: of torch, in each.
        command: named in the table.

    Raises:
        InvalidInput: a number below 1, or data that cannot be split or judged; `output` cannot be written into; or a
            system diverges.
        FailedPrecondition: `output` holds results that were measured otherwise, or another benchmark measures into it.
        DataCorrupted: a file is damaged.
        ResourceExhausted: one of several processes was killed.
        Cancelled: `watch` asked for it; what is finished is kept.
    """
    check_numbers(runs=runs, jobs=jobs, threads=threads)
    watch = watch or Watch()
    with ExitStack() as hold:
        bench = Bench.open(
            dataset_path, output, samples=samples, limit=limit, grouped=grouped, fresh=fresh, watch=watch, hold=hold
        )
        if fresh:
            bench.folder.discard(systems)
        everything = [Piece(key, run) for run in range(runs) for key in systems]
        left = [piece for piece in everything if bench.folder.result(piece.key, piece.run) is None]

        def summary() -> Summary:
            name = dataset_path.resolve().name
            return summary_of(bench.folder, list(systems), name=name, runs=runs, command=command)

        if jobs == 1 or len(left) < 2:
            finished = bench.in_turn(left, systems, threads)
        else:
            open_one = partial(_in_worker, dataset_path, output)
            finished = bench.side_by_side(left, systems, Workers(min(jobs, len(left)), threads, open_one, watch))
        missing = Counter(piece.run for piece in left)
        for number, piece in enumerate(finished, len(everything) - len(left) + 1):
            watch.report("runs", number, len(everything), f"{piece.key}, run {piece.run}")
            missing[piece.run] -= 1
            if missing[piece.run] == 0 and number < len(everything):
                write_all(summary(), output)
        found = summary()
        write_all(found, output)
        return found


def check_numbers(**numbers: int | None) -> None:
    """Refuse what is given and below 1.

    Raises:
        InvalidInput: the field is the argument's name.
    """
    for name, value in numbers.items():
        if value is not None and value < 1:
            raise InvalidInput(f"{name} must be 1 or more, not {value}", field=name)


def stored(
    dataset_path: Path,
    output: Path,
    *,
    samples: int | None = None,
    limit: int | None = None,
    grouped: str | None = None,
) -> ResultFolder:
    """What was measured into `output`, to be read: makes no pool. Arguments as of `run_bench`; default: any samples.

    Raises:
        NotFound: no results. InvalidInput: as `run_bench`.
        FailedPrecondition: they are of another data set, or were measured with other options.
    """
    dataset = _opened(dataset_path, samples=samples, limit=limit, grouped=grouped)
    folder = ResultFolder.open(output)
    kept = folder.identity
    asked = replace(
        kept, dataset=_dataset_digest(dataset), samples=samples or kept.samples, limit=limit, grouped=grouped
    )
    if asked != kept:
        raise FailedPrecondition(
            f"{output} holds other results ({differences(kept, asked)}): name the data set and the options they were "
            "measured with, or another --output",
            field="output",
        )
    return folder


def summary_of(folder: ResultFolder, systems: Sequence[str], *, name: str, runs: int, command: str) -> Summary:
    """The table of what is finished; `name` is the dataset's.

    Raises:
        NotFound: nothing is. DataCorrupted: a file is damaged.
    """
    results = folder.finished(systems, runs)
    if not results:
        raise NotFound(f"{folder.path} has no finished run of {', '.join(systems)}", field="output")
    tuned = {key: folder.rates(key) for key in results}
    return summarise(
        results,
        folder.identity,
        name=name,
        command=command,
        runs=runs,
        ours=OURS,
        asked=systems,
        tuning={key: found for key, found in tuned.items() if found is not None},
        code=_code_digest(),
    )


@dataclass(frozen=True)
class Piece:
    """What is measured as a whole: one run of one system, and its rates if there are none yet."""

    key: str
    run: int


@dataclass(frozen=True)
class Bench:
    """A folder of results, the protocol they are measured under, and who watches."""

    dataset: Dataset
    folder: ResultFolder
    protocol: Protocol
    watch: Watch
    _exams: dict[int, Exam] = field(default_factory=dict, repr=False)

    @classmethod
    def open(
        cls,
        dataset_path: Path,
        output: Path,
        *,
        samples: int | None = None,
        limit: int | None = None,
        grouped: str | None = None,
        fresh: bool = False,
        watch: Watch,
        hold: ExitStack | None = None,
    ) -> Bench:
        """Begin in a folder, or go on; arguments and errors as of `run_bench`.

        Args:
            hold: the folder is held until this is closed. Without it, only while it is begun: who then measures must
                hold it.
        """
        dataset = _opened(dataset_path, samples=samples, limit=limit, grouped=grouped)
        digest = _dataset_digest(dataset)
        with ExitStack() as own:
            if hold is not None or not ResultFolder.begun(output):
                (hold or own).enter_context(held(output))
            pool = _pool(dataset, _pool_path(output, digest), watch)
            protocol = Protocol(dataset, pool, grouped=grouped, limit=limit)
            features = dataset.campaigns().drop_columns(["campaign_id", "split"]).to_pydict()
            identity = Identity(
                dataset=digest,
                pool=pool.fingerprint,
                samples=samples or protocol.budget,
                limit=limit,
                grouped=grouped,
                threshold=protocol.threshold,
                published=published_as(features),
            )
            return cls(dataset, ResultFolder.begin(output, identity, fresh=fresh), protocol, watch)

    def in_turn(self, left: Iterable[Piece], systems: Mapping[str, Factory], threads: int) -> Iterator[Piece]:
        """Measure each, and yield it when it is finished."""
        from lookalike.scoring.compiled import compute_threads

        for piece in left:
            with compute_threads(threads):
                self.measure(piece, systems[piece.key])
            yield piece

    def side_by_side(self, left: Sequence[Piece], systems: Mapping[str, Factory], workers: Workers) -> Iterator[Piece]:
        """Measure them in several processes, and yield each when it is finished.

        The first piece of a system that has no rates tunes it; the others of that system wait for it, what comes behind
        them does not.
        """
        waiting = list(left)
        underway: dict[Future[None], Piece] = {}
        tuned = {key for key in systems if self.folder.rates(key) is not None}
        with workers:
            while waiting or underway:
                tuning = {piece.key for piece in underway.values()} - tuned
                for piece in list(waiting):
                    if len(underway) < workers.count and piece.key not in tuning:
                        waiting.remove(piece)
                        underway[workers.submit(Bench.measure, piece, systems[piece.key])] = piece
                        tuning |= {piece.key} - tuned
                piece = underway.pop(workers.first_of(underway))
                tuned.add(piece.key)
                yield piece

    def measure(self, piece: Piece, make: Factory) -> None:
        """One run of one system, kept in the folder."""
        tuned = self.tuned(piece.key, make)
        self.folder.put(self._result(piece.key, make, piece.run, tuned, self._exam(piece.run)))

    def _exam(self, run: int) -> Exam:
        """The last one is kept: all systems of a run are asked the same."""
        if run not in self._exams:
            self._exams.clear()
            self._exams[run] = self.protocol.exam(run)
        return self._exams[run]

    def tuned(self, key: str, make: Factory) -> Tuned:
        """A system's rates: those kept, or else they are tuned and kept."""
        kept = self.folder.rates(key)
        if kept is not None:
            return kept
        exam, samples = self.protocol.tuning_exam, self.folder.identity.samples
        rates, trials = tune(make, exam, samples, seed=0, ticks=lambda what, note: self._tick(what, key, note))
        tuned = Tuned(key, rates, trials, len(exam.campaigns) if trials else 0, self.origin())
        self.folder.put_rates(tuned)
        return tuned

    def _result(self, key: str, make: Factory, run: int, tuned: Tuned, exam: Exam) -> RunResult:
        began = time.perf_counter()
        system = make()
        grades = examine(
            *(system, exam, tuned.rates, self.folder.identity.samples),
            seed=run,
            ticks=lambda what, note: self._tick(what, key, f"run {run}"),
        )
        seconds = time.perf_counter() - began
        return RunResult(key, system.title, run, tuned.rates, grades, exam.left_out, seconds, self.origin())

    def _tick(self, what: str, key: str, note: str) -> Tick:
        return self.watch.tick(what, f"{key}, {note}")

    def origin(self) -> Origin:
        """Of what is measured now."""
        return Origin(self.folder.identity.digest, _code_digest(), _machine())


def _in_worker(dataset_path: Path, output: Path, watch: Watch) -> Bench:
    """What this process has opened and holds, in another: nothing is made or looked through again."""
    dataset, folder = Dataset.open(dataset_path), ResultFolder.open(output)
    identity = folder.identity
    pool = Pool.open(_pool_path(output, identity.dataset))
    return Bench(dataset, folder, Protocol(dataset, pool, grouped=identity.grouped, limit=identity.limit), watch)


def _opened(path: Path, *, samples: int | None, limit: int | None, grouped: str | None) -> Dataset:
    """The data set, once the options are right: before a folder is made and what takes long begins."""
    check_numbers(samples=samples)
    dataset = Dataset.open(path)
    groups(dataset, grouped=grouped, limit=limit)
    return dataset


def _pool_path(output: Path, digest: str) -> Path:
    return output / f"pool-{digest}"


def _pool(dataset: Dataset, path: Path, watch: Watch) -> Pool:
    """Made once; the folder is named by what it is made of, and appears whole."""
    if path.is_dir():
        return Pool.open(path)
    return ingest(dataset.users_path, path, progress=watch.tick("users", "into the pool"))


def _dataset_digest(dataset: Dataset) -> str:
    joined = "".join(file_digest(dataset.path / name) for name in (USERS, CAMPAIGNS, SAMPLES))
    return hashlib.sha256(joined.encode()).hexdigest()[:16]


@cache
def _code_digest() -> str:
    root = Path(lookalike.__file__).parent
    files = [root / name for name in _MEASURING_FILES]
    files += [file for name in _MEASURING for file in (root / name).rglob("*.py")]
    seen = hashlib.sha256()
    for file in sorted(files):
        seen.update(file.relative_to(root).as_posix().encode() + file.read_bytes())
    return seen.hexdigest()[:16]


def _machine() -> dict[str, str | int]:
    found: dict[str, str | int] = {"CPU": _cpu(), "cores": available_threads()}
    if "torch" in sys.modules:
        found["torch threads"] = sys.modules["torch"].get_num_threads()
    found |= {"python": platform.python_version(), "lookalike": lookalike.__version__}
    for package in ("numpy", "scikit-learn", "torch"):
        try:
            found[package] = version(package)
        except PackageNotFoundError:  # an extra left out
            continue
    return found


def _cpu() -> str:
    """Its name where Linux tells it, else its kind."""
    info = Path("/proc/cpuinfo")
    lines = info.read_text(encoding="utf-8").splitlines() if info.is_file() else []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.machine()
