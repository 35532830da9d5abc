"""Keeps a listener informed while a job is silent: sends its last progress every so often, from a thread.

Knows progress and a `send` function; TorchServe counts a worker as dead when it hears nothing for long.
"""

from __future__ import annotations

import json
import logging
import threading
from collections.abc import Callable
from contextvars import copy_context
from functools import partial
from types import TracebackType
from typing import Self

from lookalike.retrieval.receipt import Progress, Stage
from lookalike.runtime.wire import progress_to_json

_log = logging.getLogger(__name__)


class Heartbeat:
    """Sends progress as JSON: at once when the block begins and at every new stage, else every `interval` seconds.

    `send` is never called twice at once, nor after the block has ended. When it fails, the listener is gone: `lost`
    turns true and nothing more is sent.
    """

    def __init__(self, send: Callable[[bytes], None], *, interval: float) -> None:
        self._send = send
        self._interval = interval
        self._last = Progress(Stage.MATCHING, 0, 0)
        self._lock = threading.Lock()
        self._ended = threading.Event()
        # In our context, so that what it logs is about the same operation.
        beat = partial(copy_context().run, self._beat)
        self._thread = threading.Thread(target=beat, name="heartbeat", daemon=True)
        self.lost = False

    def report(self, progress: Progress) -> None:
        """Note a step; called as often as one likes."""
        new_stage = progress.stage is not self._last.stage
        self._last = progress
        if new_stage:
            self._tell()

    def _beat(self) -> None:
        while not self._ended.wait(self._interval):
            self._tell()

    def _tell(self) -> None:
        with self._lock:
            if self.lost or self._ended.is_set():
                return
            try:
                self._send(json.dumps(progress_to_json(self._last)).encode())
            except OSError:
                _log.warning("the listener is gone; the job will be stopped", exc_info=True)
                self.lost = True

    def __enter__(self) -> Self:
        self._tell()
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        with self._lock:
            self._ended.set()
        self._thread.join()
