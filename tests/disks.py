"""Test help: a small file system of the test's own, and filling it."""

from __future__ import annotations

import contextlib
import os
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest


@contextlib.contextmanager
def small_disk(path: Path, size: str) -> Iterator[Path]:
    """A file system of `size` at `path`; where it cannot be mounted the test is skipped."""
    path.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", f"size={size}", "none", str(path)]
    if not shutil.which("mount") or subprocess.run(mount, check=False, capture_output=True).returncode:
        pytest.skip("mounting needs root")
    try:
        yield path
    finally:
        subprocess.run(["umount", "--lazy", path], check=True)  # files there may be mapped still


@contextlib.contextmanager
def full(disk: Path, left: int = 0) -> Iterator[None]:
    """A disk that has `left` bytes to give while the block runs."""
    filler = disk / "filler"
    with filler.open("wb") as file:
        status = os.statvfs(disk)
        os.posix_fallocate(file.fileno(), 0, (status.f_bavail * status.f_frsize - left) // 4096 * 4096)
    try:
        yield
    finally:
        filler.unlink()
