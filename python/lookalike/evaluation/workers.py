"""Processes that measure side by side: each opens what it works on once; they are told to stop, and end, together.

Knows processes and watches; knows nothing of what is measured.
"""

from __future__ import annotations

import multiprocessing
import os
import signal
import threading
import time
from collections.abc import Callable, Collection
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from functools import partial
from types import TracebackType
from typing import Any, Self

from lookalike.errors import ResourceExhausted
from lookalike.evaluation.watch import Watch

# How often the parent looks for Ctrl-C and passes on what workers report; a worker reports no more often.
POLL_SECONDS = 0.2
_OMP = "OMP_NUM_THREADS"

# In a worker: how to open what it works on, and that, once there was work.
_opening: list[Callable[[], Any]] = []
_opened: list[Any] = []


class Workers:
    """`with Workers(...) as workers:` work that is submitted runs in one of `count` processes of `threads` threads.

    Args:
        open_one: called once in each process with its watch; what it returns goes to every function submitted, what it
            raises is what they raise. Pickled, as functions, arguments and results are.
        watch: is told of each worker's work, as "worker 1" and so on; when it wants to stop, all workers do.
    """

    def __init__(self, count: int, threads: int, open_one: Callable[[Watch], Any], watch: Watch) -> None:
        # Spawned: a process forked from one that has used torch may hang in it.
        context = multiprocessing.get_context("spawn")
        self.count = count
        self._watch = watch
        self._stop = context.Event()
        self._reports = context.SimpleQueue()
        self._before = os.environ.get(_OMP)
        self._threads = threads
        numbers = context.SimpleQueue()
        for number in range(1, count + 1):
            numbers.put(number)
        arguments = (numbers, self._stop, self._reports, open_one)
        self._executor = ProcessPoolExecutor(count, context, _begin, arguments)

    def __enter__(self) -> Self:
        self._others = set(multiprocessing.active_children())
        # Torch and BLAS read it when they are loaded; each would take every core.
        os.environ[_OMP] = str(self._threads)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._stop.set()
        if kind is not None and not issubclass(kind, Exception):  # a second Ctrl-C does not wait for a step to end
            for process in set(multiprocessing.active_children()) - self._others:
                process.terminate()
        self._executor.shutdown(cancel_futures=True)
        if self._before is None:
            os.environ.pop(_OMP, None)
        else:
            os.environ[_OMP] = self._before

    def submit(self, function: Callable[..., Any], *arguments: Any) -> Future[Any]:
        """`function(opened, *arguments)` in the next process that is free."""
        return self._executor.submit(_call, function, arguments)

    def first_of(self, underway: Collection[Future[Any]]) -> Future[Any]:
        """One that has ended well, as soon as there is one.

        Raises:
            ResourceExhausted: a process is gone. Whatever the work raises.
        """
        while True:
            done, _ = wait(underway, POLL_SECONDS, FIRST_COMPLETED)
            self._pass_on()
            if self._watch.cancelled():
                self._stop.set()
            for future in done:
                try:
                    future.result()
                except BrokenProcessPool as error:
                    raise ResourceExhausted(
                        "a worker process was killed, perhaps for want of memory: fewer --jobs need less; "
                        "what is finished is kept",
                        field="jobs",
                    ) from error
                return future

    def _pass_on(self) -> None:
        while not self._reports.empty():
            self._watch.report(*self._reports.get())


def _begin(numbers: Any, stop: Any, reports: Any, open_one: Callable[[Watch], Any]) -> None:
    """In a new process."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C in a terminal is for the parent to pass on
    threading.Thread(target=_end_with_parent, daemon=True).start()
    number, last = numbers.get(), 0.0

    def report(what: str, done: int, total: int, note: str) -> None:
        nonlocal last
        now = time.monotonic()
        if now >= last + POLL_SECONDS:
            last = now
            reports.put((f"worker {number}", done, total, f"{note}: {what}"))

    _opening.append(partial(open_one, Watch(report, stop.is_set)))


def _end_with_parent() -> None:
    """A parent that was killed tells nobody; without it, a worker would wait for work for ever."""
    parent = multiprocessing.parent_process()
    assert parent is not None
    parent.join()
    os._exit(1)


def _call(function: Callable[..., Any], arguments: tuple[Any, ...]) -> Any:
    if not _opened:
        _opened.append(_opening[0]())
    return function(_opened[0], *arguments)
