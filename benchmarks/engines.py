"""Users a second of the native engine and of what a user might take instead, on the same weights, users and cores.

    python benchmarks/engines.py --case lean --users 4e6 --threads 2 --repeat 5 --seconds 0.5

Writes JSON objects, a line each: what the machine can do, then each case. `score.py` starts it with the environment
that threads want, and shows what it writes.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, Final

import numpy as np
import torch
from competitors import UnableError, attempt, spread, timed
from pytorch_variants import Score, Scores, variants
from roofline import bounds, peaks, read_bytes_per_second
from score import NATIVE, add_arguments
from scoring_cases import CASES, Case, from_files

from lookalike import _core
from lookalike.config import ScoringConfig
from lookalike.errors import LookalikeError
from lookalike.schema import EncodedColumns
from lookalike.scoring.compiled import load_compiled
from lookalike.scoring.native import NativeEngine

REFERENCE: Final = "torchscript float32"
BATCHES: Final = (1_024, 2_048, 4_096, 8_192, 16_384, 65_536)
# For a first guess of the native engine's speed; enough for all threads to have work.
NATIVE_TRIAL: Final = 1 << 17
TRIAL_SECONDS: Final = 0.05
# A probability further off than this is another model's: the variant is wrong, not imprecise.
WRONG: Final = {"float32": 1e-4, "bfloat16": 0.1, NATIVE: 1e-2}


@dataclass
class Way:
    """One engine, loaded and tried out.

    Attributes:
        batch: users a call; 0: all of them.
        sweep: users a second by batch size, of short trials.
        users: scored in a run.
        seconds, cpu_seconds: of each run; where the latter are less than threads times the former, others had a core.
    """

    name: str
    score: Score
    prepare_seconds: float
    batch: int = 0
    sweep: dict[int, float] = field(default_factory=dict)
    users: int = 0
    seconds: list[float] = field(default_factory=list)
    cpu_seconds: list[float] = field(default_factory=list)
    scores: Scores = field(default_factory=lambda: np.zeros(0, np.float32))

    def run(self, users: EncodedColumns) -> None:
        """Score the first `self.users`, timed."""
        part = users.slice(0, self.users)
        cpu = time.process_time()
        seconds, self.scores = timed(lambda: in_batches(self.score, part, self.batch))
        self.cpu_seconds.append(time.process_time() - cpu)
        self.seconds.append(seconds)


def main() -> int:
    """The command line; 1 if a case cannot be made or an engine's scores are wrong."""
    arguments = _parse()
    try:
        files = from_files(arguments.model, arguments.pool, arguments.users) if arguments.model else None
    except LookalikeError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    torch.set_num_threads(arguments.threads)
    peak = peaks(arguments.threads)
    print(json.dumps({"roofline": peak, "simd_level": _core.simd_level()}), flush=True)
    wrong = False
    # One at a time in memory.
    for case in [files] if files else (CASES[name](arguments.users) for name in arguments.case or CASES):
        found = measure(case, arguments, peak)
        wrong = wrong or any("wrong" in way for way in found["ways"])
        print(json.dumps(found), flush=True)
    return 1 if wrong else 0


def _parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add_arguments(parser)
    return parser.parse_args()


def measure(case: Case, arguments: argparse.Namespace, peak: dict[str, float | None]) -> dict[str, Any]:
    """Load and try out every engine, then run them in turn, so that a machine that slows down slows all."""
    with tempfile.TemporaryDirectory(prefix="bench-score-") as folder:
        path = case.archive(Path(folder))
        torch.compiler.reset()  # it keeps a few variants of a function only, and then falls back without a word
        ways, failed = prepare(case, path, arguments)
        native = NativeEngine(path, ScoringConfig(threads=arguments.threads))
        work = arithmetic(case, path, native)
    for number in range(arguments.repeat):
        for way in ways:
            print(f"{case.name}: run {number + 1}, {way.name}", file=sys.stderr)
            way.run(case.users)
    reference = next(way for way in ways if way.name == REFERENCE)
    results = [result(way, reference) for way in ways]
    table_bandwidth = read_bytes_per_second(native.table_bytes, arguments.threads)
    return {
        "case": case.name,
        **case.facts(),
        "table_bytes": native.table_bytes,
        "table_bytes_per_second": table_bandwidth,
        "work": work,
        "bounds": bounds(peak, work, table_bandwidth),
        "ways": [*results, *failed],
        **best_of_pytorch(results),
    }


def prepare(case: Case, path: Path, arguments: argparse.Namespace) -> tuple[list[Way], list[dict[str, Any]]]:
    """Those that run, and what became of the others."""
    loaders: dict[str, Callable[[], Score]] = {
        name: load
        for name, load in variants(path, arguments.threads).items()
        if not any(word in name for word in arguments.skip)
    }
    loaders[NATIVE] = lambda: NativeEngine(path, ScoringConfig(threads=arguments.threads)).score
    for level in _core.simd_levels() if arguments.levels else []:
        loaders[f"{NATIVE} {level}"] = partial(at_level, level, path, arguments.threads)
    ways, failed = [], []
    for name, load in loaders.items():
        print(f"{case.name}: trying {name} ...", file=sys.stderr)
        try:
            ways.append(attempt(partial(tried, name, load, case.users, arguments.seconds)))
        except UnableError as error:
            if name == REFERENCE or name.startswith(NATIVE):
                raise
            failed.append({"way": name, "failed": str(error)})
    return ways, failed


def at_level(level: str, path: Path, threads: int) -> Score:
    """The native engine at an instruction set."""
    engine = NativeEngine(path, ScoringConfig(threads=threads))

    def score(users: EncodedColumns) -> Scores:
        _core.set_simd_level(level)
        try:
            return engine.score(users)
        finally:
            _core.set_simd_level(None)

    return score


def tried(name: str, load: Callable[[], Score], users: EncodedColumns, seconds: float) -> Way:
    """Loaded, with its best batch, and as many users as it scores in `seconds`."""
    native = name.startswith(NATIVE)
    batches = [NATIVE_TRIAL] if native else [batch for batch in BATCHES if batch <= users.length]
    batches = [min(batch, users.length) for batch in batches or BATCHES[:1]]

    def ready() -> Score:
        score = load()
        score(users.slice(0, batches[0]))  # compiles, where that is put off
        return score

    prepare_seconds, score = timed(ready)
    sweep = {batch: trial(score, users, batch) for batch in batches}
    best = max(sweep, key=lambda batch: sweep[batch])
    wanted = int(sweep[best] * seconds)
    if native:
        return Way(name, score, prepare_seconds, users=min(max(wanted, 1), users.length))
    whole_batches = max(min(wanted, users.length) // best, 1)
    return Way(name, score, prepare_seconds, batch=best, sweep=sweep, users=whole_batches * best)


def trial(score: Score, users: EncodedColumns, batch: int) -> float:
    """Users a second in batches of this size, the best of two: others on the machine can only slow it down."""
    score(users.slice(0, batch))
    once, _ = timed(lambda: score(users.slice(0, batch)))
    count = min(max(int(TRIAL_SECONDS / once), 1) * batch, users.length // batch * batch)
    return count / min(timed(lambda: in_batches(score, users.slice(0, count), batch))[0] for _ in range(2))


def in_batches(score: Score, users: EncodedColumns, batch: int) -> Scores:
    """All of the users, `batch` at a time; 0: at once."""
    if not batch:
        return score(users)
    scores = np.empty(users.length, np.float32)
    for start in range(0, users.length, batch):
        stop = min(start + batch, users.length)
        scores[start:stop] = score(users.slice(start, stop))
    return scores


def arithmetic(case: Case, path: Path, native: NativeEngine) -> dict[str, float]:
    """Multiply-adds and bytes a user: of the model as it is, and of the scorer, which folds the first layer."""
    script, schema, _ = load_compiled(path, torch.device("cpu"))
    first = script.first_weight.numel()
    dim, width = script.table.shape[1], script.first_weight.shape[1]
    state = script.state_dict()
    rest = sum(tensor.numel() for name, tensor in state.items() if name.startswith("deeper_weights."))
    n, m, last = script.num_experts, script.num_critics, script.critics_weight.shape[0]
    rest += script.gate_width * (n + m) + last * (n + m)  # gates; the experts' mean and the critics
    fields = [*schema.single, *schema.multi]
    pooled = [one.name for one, table in zip(fields, native.tables, strict=True) if table < 0]
    pooled_ids = sum(case.ids_per_user(name) for name in pooled)
    tables = len({table for table in native.tables if table >= 0})
    return {
        "model_multiply_adds": first + rest,
        "scorer_multiply_adds": first * len(pooled) / len(fields) + rest,
        # Sums of 16 bits of whole fields, single embeddings of pooled ones.
        "scorer_table_bytes": 2 * width * tables + 4 * dim * pooled_ids,
    }


def result(way: Way, reference: Way) -> dict[str, Any]:
    """What is written of a way: medians, the ratio to the reference, and how far its scores are off."""
    seconds = spread(way.seconds)
    rate = {
        "median": way.users / seconds["median"],
        "min": way.users / seconds["max"],
        "max": way.users / seconds["min"],
    }
    error = errors(way.scores, reference.scores)
    bound = WRONG[NATIVE if way.name.startswith(NATIVE) else way.name.split()[-1]]
    wrong = {} if error["p"]["max"] <= bound else {"wrong": f"a score is off by {error['p']['max']:.3g}"}
    return {
        "way": way.name,
        "prepare_seconds": way.prepare_seconds,
        "batch": way.batch or None,
        "sweep": way.sweep,
        "users": way.users,
        "seconds": seconds,
        "cpu_seconds": spread(way.cpu_seconds),
        "users_per_second": rate,
        "ratio": rate["median"] / (reference.users / spread(reference.seconds)["median"]),
        "error": error,
        **wrong,
    }


def errors(scores: Scores, reference: Scores) -> dict[str, dict[str, float]]:
    """Of the users that both have scored: largest and 99.99% quantile, in p and in log-odds, |dp| / (p (1 - p))."""
    count = min(len(scores), len(reference))
    p = reference[:count].astype(np.float64)
    off = np.abs(scores[:count] - p)
    if not np.isfinite(off).all():
        return {kind: {"max": float("inf"), "q9999": float("inf")} for kind in ("p", "logit")}
    # Nearer to 0 or 1 than a float32 can tell from 1, log-odds mean nothing.
    logit = off / np.maximum(p * (1 - p), np.finfo(np.float32).eps)
    return {
        kind: {"max": float(each.max()), "q9999": float(np.quantile(each, 0.9999))}
        for kind, each in (("p", off), ("logit", logit))
    }


def best_of_pytorch(results: list[dict[str, Any]]) -> dict[str, Any]:
    """The quickest variant of PyTorch whose scores are right, and how many times as quick the native engine is."""
    rates = {one["way"]: one["users_per_second"]["median"] for one in results if "wrong" not in one}
    native = next(one["users_per_second"]["median"] for one in results if one["way"] == NATIVE)
    best = max((name for name in rates if not name.startswith(NATIVE)), key=lambda name: rates[name])
    return {
        "best_pytorch": best,
        "native_to_torchscript": native / rates[REFERENCE],
        "native_to_best": native / rates[best],
    }


if __name__ == "__main__":
    started = time.perf_counter()
    code = main()
    print(f"{time.perf_counter() - started:.0f} s in all", file=sys.stderr)
    sys.exit(code)
