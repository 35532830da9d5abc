"""How long work shows itself: bars on a terminal, a log line now and then elsewhere, both on stderr; how it is stopped.

Knows names and numbers only, not what they count.
"""

from __future__ import annotations

import json
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import typer

from lookalike.errors import STEERING, visible

Report = Callable[[str, int, int, str], None]
"""Called with (what, done, total, note), as often as one likes; a total of 0 is unknown."""

# Often enough to see that it lives, seldom enough to keep a log readable.
LOG_INTERVAL_SECONDS = 10.0
# What takes less gets one line, when it is done.
FIRST_LOG_SECONDS = 1.0


@contextmanager
def progress() -> Iterator[Report]:
    """Shows what is reported while the block runs: one bar for each `what` on a terminal, else log lines."""
    if sys.stderr.isatty():
        with _bars() as report:
            yield report
    else:
        yield _LogLines()


@contextmanager
def _bars() -> Iterator[Report]:
    from rich.console import Console
    from rich.progress import (
        BarColumn,
        MofNCompleteColumn,
        Progress,
        TextColumn,
        TimeElapsedColumn,
        TimeRemainingColumn,
    )

    columns = (
        TextColumn("{task.description:<12}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
        TextColumn("{task.fields[note]}"),
    )
    with Progress(*columns, console=Console(stderr=True)) as bars:
        tasks: dict[str, Any] = {}
        last: dict[str, int] = {}

        def report(what: str, done: int, total: int, note: str = "") -> None:
            if what not in tasks:
                tasks[what] = bars.add_task(what, total=None, note="")
            elif done < last[what]:  # the next piece of work of this name
                bars.reset(tasks[what], total=total or None)
            last[what] = done
            bars.update(tasks[what], completed=done, total=total or None, note=note)

        yield report


@dataclass
class _Told:
    """Of one `what`: how far it was, when it is told of next, and whether it was told that it is finished."""

    done: int
    next: float
    finished: bool = False


class _LogLines:
    """A line when something is done, and now and then while it takes long; each `what` by itself."""

    def __init__(self) -> None:
        self._told: dict[str, _Told] = {}

    def __call__(self, what: str, done: int, total: int, note: str = "") -> None:
        now = time.monotonic()
        told = self._told.get(what)
        if told is None or done < told.done:  # the next piece of work of this name
            told = self._told[what] = _Told(done, now + FIRST_LOG_SECONDS)
        told.done = done
        finished = 0 < total <= done
        if now < told.next and (told.finished or not finished):
            return
        told.next, told.finished = now + LOG_INTERVAL_SECONDS, finished
        share = f"{done:,} of {total:,}" if total else f"{done:,}"
        say(f"{what}: {share}" + (f", {note}" if note else ""))


@contextmanager
def interruptible() -> Iterator[threading.Event]:
    """Ctrl-C sets the event, to be obeyed between two steps, where what was learnt is whole; a second ends at once."""
    asked = threading.Event()
    before = signal.getsignal(signal.SIGINT)

    def ask(_number: int, _frame: object) -> None:
        asked.set()
        signal.signal(signal.SIGINT, before)

    signal.signal(signal.SIGINT, ask)
    try:
        yield asked
    finally:
        signal.signal(signal.SIGINT, before)


def say(text: str) -> None:
    """A line for the person who watches; on stderr, so that stdout holds results only."""
    typer.echo(text, err=True)


def table(rows: Iterable[tuple[str, object]]) -> None:
    """Print names and values on stdout, in two columns."""
    rows = [(visible(name), value) for name, value in rows]
    width = max((len(name) for name, _ in rows), default=0)
    for name, value in rows:
        shown = f"{value:,}" if isinstance(value, int) and not isinstance(value, bool) else visible(str(value))
        typer.echo(f"{name:<{width}}  {shown}")


def print_json(data: Mapping[str, Any] | list[Any]) -> None:
    """Print plain data on stdout as indented JSON. Escapes what steers a terminal, of which JSON itself leaves much."""
    lines = json.dumps(data, indent=2, ensure_ascii=False).split("\n")
    typer.echo("\n".join(STEERING.sub(lambda found: f"\\u{ord(found[0]):04x}", line) for line in lines))
