"""What a user might take instead of `lookalike.retrieval.topk`, each timed beside it on the same random scores.

    python benchmarks/competitors.py numpy --rows 2e8 --k 1000,1000000 --threads 2 --repeat 3

One package a process, so that none pays for another's memory and each finds its threads set before it is loaded. Writes
a JSON object a line: one for each way the package offers and each k. `topk.py` runs them all.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import sys
import time
from collections.abc import Callable, Iterator
from typing import Any, Final, TypeVar

import numpy as np
import numpy.typing as npt

from lookalike.retrieval.topk import TopK

Scores = npt.NDArray[np.float32]
Selected = tuple[npt.NDArray[Any], npt.NDArray[Any]]
"""Rows and scores, best first."""
Select = Callable[[int], Selected]
Ways = dict[str, Select]
T = TypeVar("T")

# A way is not run again once it took so long in all: the slowest take minutes, and their ratio is beyond doubt.
BUDGET_SECONDS: Final = 60.0


class WrongResultError(Exception):
    """A competitor selected other scores than ours: one of the two is wrong."""


class UnableError(Exception):
    """A competitor cannot: it is not installed, or ran out of memory. A result like another."""


def numpy_ways(scores: Scores, threads: int) -> Ways:
    """One thread, whatever is asked for."""
    del threads

    def select(k: int) -> Selected:
        rows = np.argpartition(scores, scores.size - k)[scores.size - k :]
        rows = rows[np.argsort(-scores[rows])]
        return rows, scores[rows]

    return {"numpy.argpartition": select}


def torch_ways(scores: Scores, threads: int) -> Ways:
    """On the CPU."""
    import torch

    torch.set_num_threads(threads)
    tensor = torch.from_numpy(scores)

    def select(k: int) -> Selected:
        best, rows = torch.topk(tensor, k)
        return rows.numpy(), best.numpy()

    return {"torch.topk": select}


def duckdb_ways(scores: Scores, threads: int) -> Ways:
    """Over Arrow columns, which it reads where they lie."""
    import duckdb
    import pyarrow as pa

    connection = duckdb.connect()
    connection.execute(f"SET threads = {threads}")
    connection.register("pool", pa.table({"row": np.arange(scores.size, dtype=np.uint32), "score": scores}))

    def select(k: int) -> Selected:
        query = f"SELECT row, score FROM pool ORDER BY score DESC, row LIMIT {k}"
        best = connection.execute(query).fetchnumpy()
        return best["row"], best["score"]

    return {"duckdb ORDER BY LIMIT": select}


def polars_ways(scores: Scores, threads: int) -> Ways:
    """Its threads were set by POLARS_MAX_THREADS."""
    import polars as pl

    if pl.thread_pool_size() != threads:
        raise RuntimeError(f"polars runs {pl.thread_pool_size()} threads: start with POLARS_MAX_THREADS={threads}")
    frame = pl.DataFrame({"row": np.arange(scores.size, dtype=np.uint32), "score": scores})

    def select_by_sort(k: int) -> Selected:
        return columns(frame.lazy().sort("score", descending=True).head(k).collect())

    def select_by_top_k(k: int) -> Selected:
        return columns(frame.top_k(k, by="score").sort("score", descending=True))  # top_k alone leaves no order

    def columns(best: pl.DataFrame) -> Selected:
        return best["row"].to_numpy(), best["score"].to_numpy()

    return {"polars lazy sort.head": select_by_sort, "polars top_k": select_by_top_k}


def faiss_ways(scores: Scores, threads: int) -> Ways:
    """Its selection has no door of its own in Python: a search by inner product with 1 is nearest to one.

    On the CPU it has no limit on k; on the GPU k ends at 2,048. The other way is a helper of its index structures,
    which rearranges scores and rows in place: copies are part of the price.
    """
    import faiss

    faiss.omp_set_num_threads(threads)
    base = scores.reshape(-1, 1)
    query = np.ones((1, 1), dtype=np.float32)

    def select_by_search(k: int) -> Selected:
        best, rows = faiss.knn(query, base, k, metric=faiss.METRIC_INNER_PRODUCT)
        return rows[0], best[0]

    def select_by_partition(k: int) -> Selected:
        best = scores.copy()
        rows = np.arange(scores.size, dtype=np.int64)
        partition = faiss.CMin_float_partition_fuzzy  # type: ignore[attr-defined] # its stubs leave it out
        partition(faiss.swig_ptr(best), faiss.swig_ptr(rows), scores.size, k, k, None)
        order = np.argsort(-best[:k])
        return rows[:k][order], best[:k][order]

    return {"faiss.knn, 1-d": select_by_search, "faiss partition_fuzzy": select_by_partition}


PACKAGES: Final[dict[str, Callable[[Scores, int], Ways]]] = {
    "numpy": numpy_ways,
    "torch": torch_ways,
    "duckdb": duckdb_ways,
    "polars": polars_ways,
    "faiss": faiss_ways,
}


def thread_environment(threads: int) -> dict[str, str]:
    """What must be set before a package is loaded: how many threads, and that they sleep while they wait."""
    count = str(threads)
    return {**os.environ, "OMP_NUM_THREADS": count, "POLARS_MAX_THREADS": count, "OMP_WAIT_POLICY": "PASSIVE"}


def results(package: str, scores: Scores, ks: list[int], threads: int, repeat: int) -> Iterator[dict[str, Any]]:
    """What each way of the package takes, or why it does not go. Raises: WrongResultError."""
    try:
        ways = attempt(lambda: PACKAGES[package](scores, threads))
    except UnableError as error:
        yield {"competitor": package, "rows": scores.size, "skipped": str(error)}
        return
    for name, select in ways.items():
        for k in (k for k in ks if k <= scores.size):
            try:
                yield measure(name, select, scores, k, threads, repeat)
            except UnableError as error:
                yield {"competitor": name, "rows": scores.size, "k": k, "skipped": str(error)}


def measure(name: str, select: Select, scores: Scores, k: int, threads: int, repeat: int) -> dict[str, Any]:
    """Scan, ours and theirs in turn, so that a machine that slows down slows all; medians.

    Raises:
        WrongResultError: the scores selected differ.
        UnableError: they raised something.
    """
    scan_seconds: list[float] = []
    our_seconds: list[float] = []
    their_seconds: list[float] = []
    while len(their_seconds) < repeat and sum(their_seconds) < BUDGET_SECONDS:
        seconds, highest = timed(lambda: np.max(scores))
        scan_seconds.append(seconds)
        seconds, ours = timed(lambda: select_ours(scores, k, threads))
        our_seconds.append(seconds)
        seconds, theirs = timed(lambda: attempt(lambda: select(k)))
        their_seconds.append(seconds)
        check(name, scores, ours, theirs, float(highest))
    ours_median, theirs_median = statistics.median(our_seconds), statistics.median(their_seconds)
    return {
        "competitor": name,
        "rows": scores.size,
        "k": k,
        "threads": threads,
        "repeat": len(their_seconds),
        "seconds": spread(their_seconds),
        "our_seconds": spread(our_seconds),
        "numpy_max_seconds": spread(scan_seconds),
        "ratio": theirs_median / ours_median,
    }


def select_ours(scores: Scores, k: int, threads: int) -> Selected:
    """The library, as a user calls it."""
    top = TopK(k, num_rows=scores.size)
    top.push(scores, 0, threads=threads)
    return top.finish(threads=threads)


def check(name: str, scores: Scores, ours: Selected, theirs: Selected, highest: float) -> None:
    """The same scores, best first, each of the row beside it; rows may differ where scores are equal."""
    our_scores, (rows, best) = ours[1], theirs
    if our_scores[0] != highest:
        raise WrongResultError(f"the best score of {name}'s rival is not the highest")
    if not np.array_equal(best, our_scores) or not np.array_equal(scores[rows], best):
        raise WrongResultError(f"{name} selects other scores than lookalike")
    if np.unique(rows).size != rows.size:
        raise WrongResultError(f"{name} selects a row twice")


def attempt(call: Callable[[], T]) -> T:
    """Raises: UnableError: whatever a competitor raised."""
    try:
        return call()
    except Exception as error:
        first_line = next(iter(str(error).strip().splitlines()), "")
        raise UnableError(f"{type(error).__name__}: {first_line}") from error


def timed(call: Callable[[], T]) -> tuple[float, T]:
    """Seconds, and what was returned."""
    start = time.perf_counter()
    result = call()
    return time.perf_counter() - start, result


def spread(seconds: list[float]) -> dict[str, float]:
    """Median and extremes."""
    return {"median": statistics.median(seconds), "min": min(seconds), "max": max(seconds)}


def whole(text: str) -> int:
    """A whole number above 0, also as 1e9.

    Raises:
        ArgumentTypeError: it is none.
    """
    try:
        value = float(text)
    except ValueError:
        value = 0
    if value < 1 or value != value // 1:
        raise argparse.ArgumentTypeError(f"wants a whole number above 0, such as 1e6, not {text!r}")
    return int(value)


def whole_numbers(text: str) -> list[int]:
    """Several, separated by commas."""
    return [whole(part) for part in text.split(",")]


def main() -> int:
    """The command line; 1 if a result is wrong."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("package", choices=PACKAGES)
    parser.add_argument("--rows", type=whole, default=200_000_000)
    parser.add_argument("--k", type=whole_numbers, default=[1000, 1_000_000])
    parser.add_argument("--threads", type=whole, default=1)
    parser.add_argument("--repeat", type=whole, default=3)
    arguments = parser.parse_args()
    scores = np.random.default_rng(seed=0).random(arguments.rows, dtype=np.float32)
    try:
        for result in results(arguments.package, scores, arguments.k, arguments.threads, arguments.repeat):
            print(json.dumps(result), flush=True)
    except WrongResultError as error:
        print(f"wrong result: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
