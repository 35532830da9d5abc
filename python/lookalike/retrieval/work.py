"""The work folder of an expansion: what a killed one leaves, so that the same request goes on where it stopped.

Beside the output, named by the request: the customised model, how it came about, and now and then the selection at a
watermark. Torch-free; knows files and the top-K, nothing of pools or campaigns.
"""

from __future__ import annotations

import fcntl
import hashlib
import json
import logging
import os
import secrets
import shutil
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from lookalike.config import parse
from lookalike.errors import AlreadyExists, DataCorrupted, InvalidInput, LookalikeError, Unavailable
from lookalike.files import DISK_FULL, file_digest, staged_folder, write_whole
from lookalike.retrieval.receipt import MODEL_NAME, Adaptation
from lookalike.retrieval.topk import TopK

FORMAT_VERSION = 1
WORK_NAME = "work.json"
PARTIAL_NAME = "selection.partial"
LOCK_NAME = "lock"
# Of scoring, so much and a shard is lost at most. Saving K = 10 million writes 80 MB, well below a tenth of that time.
SAVE_SECONDS = 10.0

_log = logging.getLogger(__name__)


def identity(names: Mapping[str, Any]) -> str:
    """SHA-256 of what identifies a request."""
    return hashlib.sha256(json.dumps(names, sort_keys=True).encode()).hexdigest()


def work_folder(output: Path, names: Mapping[str, Any]) -> Path:
    """Where the request keeps its work while it runs."""
    return output.with_name(f"{output.name}.partial-{identity(names)[:12]}")


def discard(output: Path) -> None:
    """Remove whatever expansions to `output` left; none may be running."""
    for folder in output.parent.glob(f"{output.name}.partial-*"):
        shutil.rmtree(folder, ignore_errors=True)


class Work:
    """`with Work(output, names, load) as work:` finds what an earlier run of the very same request left.

    One process at a time may hold a work folder. It is removed when the block ends well or with an error of ours,
    which would come again (Cancelled among them); it stays when the process is killed, stopped by Ctrl-C, or fails for
    the machine's sake, as on a full disk.

    Attributes:
        path: the folder; there from `begin` on, or from the start if `adaptation` is not None.
        adaptation: how the customised model came about, if it is there already.
        top: the selection at its last watermark, or None.
    """

    def __init__(self, output: Path, names: Mapping[str, Any], load: Callable[[memoryview], TopK]) -> None:
        """`load` makes a selection of what `TopK.save` gave; DataCorrupted and InvalidInput say that it cannot."""
        self._names = json.loads(json.dumps(names))  # as they will be read
        self._identity = identity(names)
        self._load = load
        self._lock: int | None = None
        self._saved = time.monotonic()
        self.path = work_folder(output, names)
        self.adaptation: Adaptation | None = None
        self.top: TopK | None = None

    @property
    def model(self) -> Path:
        """The customised model."""
        return self.path / MODEL_NAME

    def __enter__(self) -> Self:
        """Find an earlier run's work; what is damaged or foreign is set aside, with a warning.

        Raises:
            Unavailable: the same expansion is running.
        """
        if self.path.is_dir():
            self._lock = self._hold(self.path)
            try:
                self.adaptation, self.top = self._read()
            except DataCorrupted as error:
                aside = self.path.with_name(f"{self.path.name}.damaged-{secrets.token_hex(4)}")
                _log.warning("cannot go on with %s, starting over: %s; it is now %s", self.path, error, aside.name)
                self.path.rename(aside)
                self._release()
            else:
                rows = 0 if self.top is None else self.top.rows_seen
                _log.info("going on with %s at row %d", self.path, rows)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        done = error is None or (isinstance(error, LookalikeError) and error.reason != DISK_FULL)
        if self._lock is not None and done:
            shutil.rmtree(self.path, ignore_errors=True)
        self._release()

    def begin(self, adaptation: Adaptation, write_model: Callable[[Path], None]) -> None:
        """Make the folder, whole or not at all: `write_model` is given the path of the model to write.

        Raises:
            Unavailable: the same expansion has begun meanwhile.
        """
        try:
            with staged_folder(self.path) as staged:
                self._lock = self._hold(staged)
                write_model(staged / MODEL_NAME)
                data = {
                    "format_version": FORMAT_VERSION,
                    "names": self._names,
                    "adaptation": asdict(adaptation),
                    "model_sha256": file_digest(staged / MODEL_NAME),
                }
                (staged / WORK_NAME).write_text(json.dumps(data, ensure_ascii=False), encoding="utf-8")
        except AlreadyExists as error:
            self._release()
            raise self._running() from error
        except BaseException:
            self._release()
            raise
        self.adaptation = adaptation

    def save(self, top: TopK, *, now: bool = False) -> None:
        """Keep the selection, if it is time or `now`; a disk that is full stops nothing."""
        if not now and time.monotonic() - self._saved < SAVE_SECONDS:
            return
        try:
            write_whole(self.path / PARTIAL_NAME, bytes.fromhex(self._identity), top.save())
        except OSError as error:
            _log.warning("cannot save how far %s is: %s", self.path, error)
        self._saved = time.monotonic()

    def _read(self) -> tuple[Adaptation, TopK | None]:
        try:
            data = json.loads((self.path / WORK_NAME).read_text(encoding="utf-8"))
            if data["format_version"] != FORMAT_VERSION or data["names"] != self._names:
                raise DataCorrupted("it belongs to another request or version", field=WORK_NAME)
            adaptation = parse(Adaptation, data["adaptation"], field_prefix=WORK_NAME)
            if file_digest(self.model) != data["model_sha256"]:
                raise DataCorrupted("the customised model fails its checksum", field=MODEL_NAME)
            return adaptation, self._partial()
        except (OSError, ValueError, KeyError, TypeError, InvalidInput) as error:
            raise DataCorrupted(f"it is damaged: {error}", field=WORK_NAME) from error

    def _partial(self) -> TopK | None:
        for left in self.path.glob("*.tmp-*"):  # an audience that was being written, a selection that was being saved
            shutil.rmtree(left) if left.is_dir() else left.unlink()
        try:
            data = memoryview((self.path / PARTIAL_NAME).read_bytes())
        except FileNotFoundError:
            return None
        if data[:32] != bytes.fromhex(self._identity):
            raise DataCorrupted("its selection belongs to another request", field=PARTIAL_NAME)
        return self._load(data[32:])

    def _hold(self, folder: Path) -> int:
        """A lock that ends with the process, however it ends, and goes with the folder when it is renamed."""
        lock = os.open(folder / LOCK_NAME, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            os.close(lock)
            raise self._running() from error
        return lock

    def _release(self) -> None:
        if self._lock is not None:
            os.close(self._lock)
            self._lock = None

    def _running(self) -> Unavailable:
        return Unavailable(
            f"the same expansion is running, with its work in {self.path}: wait for it", reason="EXPANSION_RUNNING"
        )
