"""The selection against sorting everything, for every way of feeding it that changes nothing."""

from __future__ import annotations

import math
import mmap
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from selections import (
    DISTRIBUTIONS,
    LEVELS,
    UNALIGNED,
    Scores,
    check,
    chunks,
    cutoff_of,
    make,
    ranking,
    streams,
)

from lookalike import _core
from lookalike.errors import DataCorrupted, InvalidInput
from lookalike.retrieval.topk import MAX_ROWS, Cutoff, TopK


@pytest.fixture(params=LEVELS)
def level(request: pytest.FixtureRequest) -> Iterator[str]:
    _core.set_simd_level(request.param)
    yield request.param
    _core.set_simd_level(None)


@given(streams(), st.sampled_from(LEVELS), st.booleans(), st.sampled_from([None, 0.1, 0.9]))
@settings(max_examples=300)
def test_equals_sorting_for_every_chunking_order_bitmap_and_level(
    stream: tuple[Scores, int, int, int], level: str, shuffled: bool, skip_share: float | None
) -> None:
    scores, k, chunk, seed = stream
    rng = np.random.default_rng(seed)
    skipped = rng.random(len(scores)) < (skip_share or 0)
    skip = None if skip_share is None else np.packbits(skipped, bitorder="little")
    pieces = chunks(len(scores), chunk)
    if shuffled:
        rng.shuffle(pieces)
    _core.set_simd_level(level)
    try:
        top = TopK(k, num_rows=len(scores), skip=skip, nan="skip")
        for piece in pieces:
            top.push(scores[piece], piece.start)
        check(top, scores, k, skipped)
    finally:
        _core.set_simd_level(None)


@given(streams(), st.integers(2, 5))
@settings(max_examples=100)
def test_merging_equals_pushing(stream: tuple[Scores, int, int, int], parts: int) -> None:
    scores, k, chunk, seed = stream
    tops = [TopK(k, nan="skip") for _ in range(parts)]
    rng = np.random.default_rng(seed)
    for piece in chunks(len(scores), chunk):
        tops[rng.integers(parts)].push(scores[piece], piece.start)
    while len(tops) > 1:
        other = tops.pop(rng.integers(len(tops)))
        tops[0].merge(other)
    check(tops[0], scores, k)


@given(st.lists(st.floats(width=32, allow_nan=True), max_size=200), st.integers(0, 20))
def test_equals_sorting_for_any_floats(values: list[float], k: int) -> None:
    scores = np.array(values, np.float32)
    top = TopK(k, nan="skip")
    top.push(scores, 0)
    check(top, scores, k)


@pytest.mark.parametrize("k", [1, 100, 30_000, 200_000])
@pytest.mark.parametrize("distribution", sorted(DISTRIBUTIONS))
@pytest.mark.parametrize("threads", [2, 8])
def test_threads_that_push_at_once_change_nothing(distribution: str, k: int, threads: int) -> None:
    scores = make(distribution, 100_000, seed=3)
    skipped = np.random.default_rng(4).random(len(scores)) < 0.05
    top = TopK(k, num_rows=len(scores), skip=np.packbits(skipped, bitorder="little"), nan="skip")
    with ThreadPoolExecutor(threads) as pool:
        list(pool.map(lambda piece: top.push(scores[piece], piece.start), chunks(len(scores), 1013)))
    check(top, scores, k, skipped)


@pytest.mark.parametrize("k", [10, 50_000])
@pytest.mark.parametrize("distribution", ["random", "few values", "sorted up", "NaN"])
@pytest.mark.parametrize("threads", [1, 2, 8])
def test_one_push_on_many_threads_changes_nothing(distribution: str, k: int, threads: int) -> None:
    scores = make(distribution, 2**20 * 2 + 77, seed=5)  # below a million scores a thread none is started
    top = TopK(k, num_rows=len(scores), nan="skip")
    top.push(scores, 0, threads=threads)
    check(top, scores, k)


@pytest.fixture(scope="module", params=sorted(DISTRIBUTIONS))
def ranked_scores(request: pytest.FixtureRequest) -> tuple[Scores, npt.NDArray[np.int64]]:
    """Scores enough for two threads, and their ranking, which takes longer than what it is compared with."""
    scores = make(request.param, 2**20 + 77, seed=6)
    return scores, ranking(scores, np.zeros(len(scores), bool))


@pytest.mark.parametrize("k", [1, 1000, 100_000, 2**18])
@pytest.mark.parametrize("threads", [1, 2])
def test_one_large_push_equals_sorting(
    ranked_scores: tuple[Scores, npt.NDArray[np.int64]], k: int, threads: int
) -> None:
    scores, ranked = ranked_scores
    top = TopK(k, num_rows=len(scores), nan="skip")
    top.push(scores, 0, threads)
    assert top.cutoff == cutoff_of(scores, ranked, k)
    rows, found = top.finish(threads=threads)
    np.testing.assert_array_equal(rows, ranked[:k])
    np.testing.assert_array_equal(found, scores[ranked[:k]])


@pytest.mark.parametrize("k", [1, 100, 5000, 300_000])
@pytest.mark.parametrize("distribution", sorted(DISTRIBUTIONS))
def test_finishing_on_many_threads_changes_nothing(distribution: str, k: int) -> None:
    scores = make(distribution, 400_000, seed=7)

    def pushed() -> TopK:
        # A selection of its own for each: what one finish has put in order another would find so.
        top = TopK(k, nan="skip")
        for piece in chunks(len(scores), 50_021):
            top.push(scores[piece], piece.start)
        return top

    rows, found = pushed().finish()
    assert len(rows) == min(k, np.count_nonzero(~np.isnan(scores)))
    for threads in (2, 3, 8):
        more_rows, more_found = pushed().finish(threads=threads)
        np.testing.assert_array_equal(more_rows, rows)
        np.testing.assert_array_equal(more_found, found)
        unsorted_rows, unsorted_found = pushed().finish(sorted=False, threads=threads)
        np.testing.assert_array_equal(np.sort(unsorted_rows), np.sort(rows))
        np.testing.assert_array_equal(scores[unsorted_rows], unsorted_found)


def test_ties_at_the_cutoff_are_counted_over_everything(level: str) -> None:
    scores = np.tile(np.array([0, 1, 1, 2], np.float32), 25_000)
    top = TopK(30_000, num_rows=len(scores))
    for piece in reversed(chunks(len(scores), 777)):
        top.push(scores[piece], piece.start)
    # 25,000 twos, and then the first 5,000 of 50,000 ones.
    assert top.cutoff == Cutoff(1.0, 50_000, 5_000)
    assert top.ties_at_cutoff == 50_000


def test_nan_is_refused_and_nothing_is_half_done(level: str) -> None:
    scores = make("random", 200_000)
    bad = scores.copy()
    bad[123_456] = bad[150_000] = np.nan
    top = TopK(100)
    top.push(scores[:1000], 0)
    with pytest.raises(InvalidInput, match="row 124456 is NaN") as raised:
        top.push(bad, 1000, threads=2)
    assert raised.value.field == "scores"
    assert top.rows_seen == 1000
    check(top, scores[:1000], 100)


def test_nan_in_a_skipped_row_is_not_looked_at(level: str) -> None:
    scores = make("random", 1000)
    skipped = np.zeros(1000, bool)
    scores[77], skipped[77] = np.nan, True
    top = TopK(10, skip=np.packbits(skipped, bitorder="little"))
    top.push(scores, 0)
    check(top, scores, 10, skipped)


def test_finish_may_be_called_again_and_pushing_go_on() -> None:
    scores = make("few values", 20_000)
    top = TopK(500)
    for piece in chunks(len(scores), 4000):
        top.push(scores[piece], piece.start)
        check(top, scores[: piece.stop], 500)


def test_results_outlive_the_selection() -> None:
    top = TopK(3)
    top.push(np.array([1, 3, 2, 0], np.float32), 0)
    rows, scores = top.finish()
    del top
    assert (rows.tolist(), scores.tolist()) == ([1, 2, 0], [3, 2, 1])
    rows[0] = 9  # the arrays are the caller's own
    assert rows[0] == 9


def test_the_bitmap_lives_as_long_as_the_selection() -> None:
    skip = np.packbits(np.arange(80_000) % 2 == 0, bitorder="little")
    references = sys.getrefcount(skip)
    top = TopK(5, skip=skip)
    assert sys.getrefcount(skip) > references  # held, hence not copied
    del top
    assert sys.getrefcount(skip) == references
    loaded = TopK.load(TopK(5).save(), skip=skip)
    assert sys.getrefcount(skip) > references
    del loaded
    with pytest.raises(DataCorrupted):
        TopK.load(b"", skip=skip)
    assert sys.getrefcount(skip) == references


def test_read_only_and_memory_mapped_scores_are_taken(tmp_path: Any) -> None:
    make("random", 5000).tofile(tmp_path / "scores")
    scores: Scores = np.memmap(tmp_path / "scores", np.float32, mode="r")
    top = TopK(10)
    top.push(scores, 0)
    check(top, np.array(scores), 10)


def test_empty_selection() -> None:
    for top in (TopK(0), TopK(5)):
        assert top.cutoff is None
        assert top.ties_at_cutoff == 0
        assert [len(part) for part in top.finish()] == [0, 0]
    assert TopK(5).threshold == -math.inf


@pytest.mark.parametrize(
    ("scores", "fix"),
    [
        (np.zeros(4), "astype"),
        (np.zeros(4, ">f4"), "astype"),
        (np.zeros(4, np.float16), "astype"),
        (np.zeros(8, np.float32)[::2], "ascontiguousarray"),
        (np.zeros((2, 2), np.float32), "ravel"),
        (np.float32(1), "asarray"),
        ([1.0, 2.0], "asarray"),
        (UNALIGNED, "require"),
    ],
)
def test_scores_of_another_kind_are_refused_with_the_fix(scores: Any, fix: str) -> None:
    with pytest.raises(InvalidInput, match=fix) as raised:
        TopK(1).push(scores, 0)
    assert raised.value.field == "scores"


@pytest.mark.parametrize(
    ("call", "field"),
    [
        (lambda: TopK(-1), "k"),
        (lambda: TopK(1.5), "k"),  # type: ignore[arg-type]
        (lambda: TopK(1, num_rows=MAX_ROWS + 1), "num_rows"),
        (lambda: TopK(1, num_rows=2**70), "num_rows"),
        (lambda: TopK(1, nan="ignore"), "nan"),  # type: ignore[arg-type]
        (lambda: TopK(1, num_rows=9, skip=np.zeros(1, np.uint8)), "skip"),
        (lambda: TopK(1, skip=np.zeros(8, bool)), "skip"),
        (lambda: TopK(1, skip=np.zeros(1, np.uint8)).push(np.zeros(9, np.float32), 0), "skip"),
        (lambda: TopK(1, num_rows=3).push(np.zeros(3, np.float32), 1), "first_row"),
        (lambda: TopK(1).push(np.zeros(3, np.float32), MAX_ROWS - 2), "first_row"),
        (lambda: TopK(1).push(np.zeros(3, np.float32), -1), "first_row"),
        (lambda: TopK(1).push(np.zeros(3, np.float32), 0, threads=0), "threads"),
        (lambda: TopK(1).merge(TopK(2)), "other"),
        (lambda: TopK(1).finish(threads=0), "threads"),
        (lambda: TopK(1).finish(sorted=False, threads=0), "threads"),
        (lambda: TopK(1, distribution=True), "num_rows"),
        (lambda: TopK(1, num_rows=9).distribution, "distribution"),
        (lambda: TopK(1, num_rows=9, distribution=True).merge(TopK(1, num_rows=9)), "other"),
        (lambda: TopK(1, num_rows=9, distribution=True).merge(TopK(1, num_rows=8, distribution=True)), "other"),
        (lambda: _core.set_simd_level("mmx"), "level"),
    ],
)
def test_wrong_arguments_name_themselves(call: Callable[[], object], field: str) -> None:
    with pytest.raises(InvalidInput) as raised:
        call()
    assert raised.value.field == field


def test_a_selection_does_not_merge_into_itself() -> None:
    top = TopK(2)
    with pytest.raises(InvalidInput, match="itself"):
        top.merge(top)


def test_pushing_a_row_twice_is_noticed_when_rows_are_in_surplus() -> None:
    top = TopK(1, num_rows=5)
    top.push(np.zeros(3, np.float32), 0)
    with pytest.raises(InvalidInput, match="push every row once"):
        top.push(np.zeros(3, np.float32), 2)
    assert top.rows_seen == 3


def test_the_last_of_all_rows_can_be_selected(level: str) -> None:
    top = TopK(1)
    top.push(np.array([1, 2], np.float32), MAX_ROWS - 2)
    assert top.finish()[0].tolist() == [MAX_ROWS - 1]


def test_levels_can_be_asked_and_forced() -> None:
    assert LEVELS[0] == "scalar"
    assert _core.simd_level() == LEVELS[-1]
    _core.set_simd_level("scalar")
    assert _core.simd_level() == "scalar"
    _core.set_simd_level(None)
    assert _core.simd_level() == LEVELS[-1]


FIRST_USE = """
import numpy as np
from lookalike import _core
from lookalike.errors import InvalidInput
from lookalike.retrieval.topk import TopK

scores, top = np.array([1, 2], np.float32), TopK(1)
for use in (_core.simd_level, lambda: top.push(scores, 0)):
    try:
        print(use())
    except InvalidInput as error:
        print(f"{error.field}: {error.message}")
_core.set_simd_level("scalar")
print(_core.simd_level(), top.rows_seen)
"""


def first_use(variable: str) -> list[str]:
    """What the first uses of the core say in a process with this LOOKALIKE_SIMD."""
    environment = os.environ | {"LOOKALIKE_SIMD": variable}
    command = [sys.executable, "-c", FIRST_USE]
    return subprocess.run(command, env=environment, capture_output=True, text=True, check=True).stdout.splitlines()


@pytest.mark.parametrize("level", LEVELS)
def test_the_variable_sets_the_level_until_another_is_forced(level: str) -> None:
    assert first_use(level) == [level, "None", "scalar 2"]


@pytest.mark.parametrize("wrong", ["mmx", *sorted({"avx2", "avx512", "avx512vnni", "neon"} - set(LEVELS))])
def test_a_variable_that_is_no_level_of_this_machine_is_refused_at_every_use(wrong: str) -> None:
    error = f"LOOKALIKE_SIMD: LOOKALIKE_SIMD is '{wrong}': unset it, or give it what this machine can run: "
    assert first_use(wrong) == [error + ", ".join(LEVELS)] * 2 + ["scalar 0"]


def in_push(thread_id: int) -> bool:
    """Whether the thread is inside TopK.push, to whose frame the core's code belongs."""
    frame = sys._current_frames().get(thread_id)
    return frame is not None and frame.f_code is TopK.push.__code__


@pytest.fixture(scope="module")
def endless_scores() -> Scores:
    """8 GiB of zeros in pages that take no memory: a push of them lasts long beside the 50 ms between two polls."""
    pages = mmap.mmap(-1, 2**33, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS, prot=mmap.PROT_READ)
    return np.frombuffer(pages, np.float32)


def test_the_gil_is_released_while_pushing(endless_scores: Scores) -> None:
    scores = endless_scores[: 2**28]
    top = TopK(10)
    finished = threading.Event()

    def work() -> None:
        top.push(scores, 0)
        finished.set()

    worker = threading.Thread(target=work)
    interval = sys.getswitchinterval()
    sys.setswitchinterval(1000)  # now a thread runs until it gives the GIL up by itself
    try:
        worker.start()
        seen_inside = False
        while not seen_inside and not finished.wait(0.001):
            seen_inside = worker.ident is not None and in_push(worker.ident)
    finally:
        sys.setswitchinterval(interval)
    worker.join()
    assert seen_inside
    assert top.rows_seen == len(scores)


@pytest.mark.parametrize("threads", [1, 2])
def test_ctrl_c_abandons_a_push(endless_scores: Scores, threads: int) -> None:
    top = TopK(10)
    main = threading.get_ident()
    over = threading.Event()

    def interrupt() -> None:
        while not in_push(main):
            if over.wait(0):  # lets the pushing thread have the GIL
                return
        os.kill(os.getpid(), signal.SIGINT)

    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    thread = threading.Thread(target=interrupt)
    try:
        with pytest.raises(KeyboardInterrupt):  # noqa: PT012 - the signal comes when a push is seen
            thread.start()
            top.push(endless_scores, 0, threads)
    finally:
        over.set()
        thread.join()
        signal.signal(signal.SIGINT, before)
    # Were the signal handled after the push and not within it, that push would have been taken in.
    assert top.rows_seen == 0
    top.push(np.array([2], np.float32), 7)
    assert top.finish()[0].tolist() == [7]


OUT_OF_MEMORY = """
import resource
import numpy as np
from lookalike.errors import ResourceExhausted
from lookalike.retrieval.topk import TopK

scores = np.zeros(2**24, np.float32)
top = TopK(len(scores))  # will want 128 MiB
with open("/proc/self/statm") as file:
    size = int(file.read().split()[0]) * resource.getpagesize()
resource.setrlimit(resource.RLIMIT_AS, (size + 2**26, resource.RLIM_INFINITY))
try:
    top.push(scores, 0)
except ResourceExhausted:
    print("refused, seen", top.rows_seen)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_out_of_memory_is_an_error_of_the_tree_and_leaves_nothing() -> None:
    found = subprocess.run([sys.executable, "-c", OUT_OF_MEMORY], capture_output=True, text=True, check=False)
    assert found.stdout == "refused, seen 0\n", found.stderr
