"""Log lines that say which operation, tenant and request they are about: as text, or as one JSON object a line.

Ground floor; knows `logging` alone. Whoever handles a call or a job binds what it is about, and every line that is
written on its behalf carries it, from whatever module. Seeds, user ids and tokens are bound by nobody.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from datetime import UTC, datetime
from typing import Literal, TextIO

Format = Literal["text", "json"]

_ABOUT: ContextVar[Mapping[str, str]] = ContextVar("about", default={})  # noqa: B039 - never changed in place


def bind(**about: str | None) -> None:
    """Say what the rest of this task or thread is about; names that are empty or None are left as they were."""
    _ABOUT.set({**_ABOUT.get(), **{name: value for name, value in about.items() if value}})


@contextmanager
def bound(**about: str | None) -> Iterator[None]:
    """The same, for a block."""
    token = _ABOUT.set(_ABOUT.get())
    bind(**about)
    try:
        yield
    finally:
        _ABOUT.reset(token)


class ContextFilter(logging.Filter):
    """Lets every record pass, with what it is about as its attribute `about`."""

    def filter(self, record: logging.LogRecord) -> bool:
        """Runs on the thread, and in the task, that logs."""
        record.about = _ABOUT.get()
        return True


class JsonFormatter(logging.Formatter):
    """One object a line: time, level, logger, message, what it is about; of an exception its class and traceback."""

    def format(self, record: logging.LogRecord) -> str:
        """Without a newline, whatever the message holds."""
        line: dict[str, str] = {
            "time": f"{datetime.fromtimestamp(record.created, UTC):%Y-%m-%dT%H:%M:%S}.{int(record.msecs):03}Z",
            "level": record.levelname,
            "logger": record.name,
            "message": record.getMessage(),
            **getattr(record, "about", {}),
        }
        if record.exc_info and record.exc_info[0] is not None:
            line["error"] = record.exc_info[0].__name__
            line["traceback"] = self.formatException(record.exc_info)
        return json.dumps(line)


class TextFormatter(logging.Formatter):
    """For people: what a line is about stands in brackets at its end."""

    def __init__(self) -> None:
        super().__init__("%(asctime)s %(levelname)s %(name)s: %(message)s")

    def formatMessage(self, record: logging.LogRecord) -> str:  # noqa: N802 - logging's name
        """Above a traceback, which goes on lines of its own."""
        about = " ".join(f"{name}={value}" for name, value in getattr(record, "about", {}).items())
        return super().formatMessage(record) + (f" [{about}]" if about else "")


def configure(form: Format, stream: TextIO, *, logger: str = "", level: int = logging.WARNING) -> None:
    """Make a logger, the root by default, write to `stream` and nowhere else.

    Args:
        logger: a name; what is logged below it is written here alone, not by the handlers above it too.
        level: of this logger; those below may have their own.
    """
    handler = logging.StreamHandler(stream)
    handler.addFilter(ContextFilter())
    handler.setFormatter(JsonFormatter() if form == "json" else TextFormatter())
    target = logging.getLogger(logger)
    for former in list(target.handlers):
        target.removeHandler(former)
    target.addHandler(handler)
    target.setLevel(level)
    target.propagate = False
    if not logger:
        logging.captureWarnings(form == "json")  # else they go to stderr as they are
