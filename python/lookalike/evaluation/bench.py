"""The benchmark: every system, every run, one protocol; what is finished is kept and not measured again.

Knows all of the evaluation; the systems only by their contract.
"""

from __future__ import annotations

import hashlib
import os
import platform
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import lookalike
from lookalike.dataset.layout import CAMPAIGNS, SAMPLES, USERS, Dataset
from lookalike.errors import Cancelled, InvalidInput, NotFound
from lookalike.evaluation.examination import examine, tune
from lookalike.evaluation.protocol import Exam, Protocol
from lookalike.evaluation.published import published_as
from lookalike.evaluation.results import Identity, Origin, ResultFolder, RunResult, Tuned
from lookalike.evaluation.summary import Summary, summarise
from lookalike.evaluation.systems.registry import OURS, Factory
from lookalike.evaluation.systems.system import Tick
from lookalike.evaluation.table import write_all
from lookalike.files import file_digest
from lookalike.pool.ingest import ingest
from lookalike.pool.snapshot import Pool

Report = Callable[[str, int, int, str], None]
"""Called with (what, done, total, note)."""

# What a result can depend on; a change of how it is shown must not make it look old.
_MEASURING = ("dataset", "evaluation/systems", "model", "pool", "scoring", "training")
_MEASURING_FILES = (
    *("config.py", "evaluation/examination.py", "evaluation/metrics.py", "evaluation/protocol.py", "expander.py"),
    "schema.py",
)


@dataclass(frozen=True)
class Watch:
    """Who is told how far the work is, and who may stop it between two steps."""

    report: Report = lambda what, done, total, note: None
    cancelled: Callable[[], bool] = lambda: False

    def tick(self, what: str, note: str) -> Tick:
        """The heartbeat of one piece of work.

        Raises (the heartbeat): Cancelled: someone wants it to stop.
        """

        def beat(done: int, total: int) -> None:
            if self.cancelled():
                raise Cancelled("stopped; the same command goes on after what is finished")
            self.report(what, done, total, note)

        return beat


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
    command: str = "",
    watch: Watch | None = None,
) -> Summary:
    """Measure what is not measured yet, all systems of run 0 first; write the table after every run.

    Args:
        output: the folder of results, and of the pool made from the dataset's users.
        samples: of pre-training; default: one pass over the training campaigns, or `protocol.MOST_SAMPLES`.
        limit: test campaigns a run at most. grouped: a field of campaigns whose values are not parted by a split.
        fresh: discard what there is of these systems, and everything if it was measured otherwise.
        command: named in the table.

    Raises:
        InvalidInput: a number below 1, or data that cannot be split or judged; or a system diverges.
        FailedPrecondition: `output` holds results that were measured otherwise. DataCorrupted: a file is damaged.
        Cancelled: `watch` asked for it; what is finished is kept.
    """
    if runs < 1:
        raise InvalidInput(f"runs must be 1 or more, not {runs}", field="runs")
    bench = Bench.open(
        dataset_path, output, samples=samples, limit=limit, grouped=grouped, fresh=fresh, watch=watch or Watch()
    )
    if fresh:
        bench.folder.discard(systems)
    for run in range(runs):
        bench.measure(run, systems, runs)
        summary = summary_of(bench.folder, list(systems), name=dataset_path.resolve().name, runs=runs, command=command)
        write_all(summary, output)
    return summary


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
class Bench:
    """A folder of results, the protocol they are measured under, and who watches."""

    dataset: Dataset
    folder: ResultFolder
    protocol: Protocol
    watch: Watch

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
    ) -> Bench:
        """Begin in a folder, or go on; arguments and errors as of `run_bench`."""
        if samples is not None and samples < 1:
            raise InvalidInput(f"samples must be 1 or more, not {samples}", field="samples")
        dataset = Dataset.open(dataset_path)
        digest = _dataset_digest(dataset)
        pool = _pool(dataset, output / f"pool-{digest}", watch)
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

    def measure(self, run: int, systems: Mapping[str, Factory], runs: int) -> None:
        """Every system of the run, one of `runs`, that is not finished; the exam is made only if there is one."""
        exam: Exam | None = None
        for position, (key, make) in enumerate(systems.items()):
            if self.folder.result(key, run) is None:
                exam = exam or self.protocol.exam(run)
                self.folder.put(self._result(key, make, run, self.tuned(key, make), exam))
            self.watch.report("runs", run * len(systems) + position + 1, runs * len(systems), f"{key}, run {run}")

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
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    found: dict[str, str | int] = {"CPU": _cpu(), "cores": cores}
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
