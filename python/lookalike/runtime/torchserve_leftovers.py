"""What is left of a TorchServe whose front and leash were both killed by force: told by a free lock, ended, removed.

The lock of a work folder belongs to front and leash together and ends with the last of them, however they end. Knows
files and processes only.
"""

from __future__ import annotations

import contextlib
import fcntl
import logging
import os
import shutil
from collections.abc import Iterator
from pathlib import Path

import psutil

PREFIX = "lookalike-ts-"
END_SECONDS = 5.0  # after a kill; only a process the kernel holds fast takes that long

_LOCK_NAME = "lock"

_log = logging.getLogger(__name__)


def hold(work_dir: Path) -> int:
    """The descriptor of a new work folder's lock, held until all copies of it are closed."""
    new = work_dir / f"{_LOCK_NAME}.new"
    lock = os.open(new, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    new.rename(work_dir / _LOCK_NAME)  # nobody sees it free before it is held
    return lock


def remove_abandoned(parent: Path) -> None:
    """End and remove all below `parent` that nobody holds any more."""
    for work_dir in parent.glob(f"{PREFIX}*"):
        with contextlib.suppress(OSError), _abandoned(work_dir):
            _log.warning("a TorchServe was left behind in %s; ending it", work_dir)
            processes = list(_processes(work_dir))
            for process in processes:
                with contextlib.suppress(psutil.Error):
                    process.kill()
            psutil.wait_procs(processes, timeout=END_SECONDS)
            shutil.rmtree(work_dir, ignore_errors=True)


@contextlib.contextmanager
def _abandoned(work_dir: Path) -> Iterator[None]:
    """Raises `OSError` where it is somebody's, or nobody can tell."""
    lock = os.open(work_dir / _LOCK_NAME, os.O_RDWR | os.O_CLOEXEC | os.O_NOFOLLOW)
    try:
        if os.fstat(lock).st_uid != os.geteuid():
            raise PermissionError
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        yield
    finally:
        os.close(lock)


def _processes(work_dir: Path) -> Iterator[psutil.Process]:
    """JVM and workers: their configuration lies in the folder."""
    for process in psutil.process_iter():
        with contextlib.suppress(psutil.Error):
            if process.environ().get("TS_CONFIG_FILE") == str(work_dir / "config.properties"):
                yield process
