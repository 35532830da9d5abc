"""Files from publishers' sites: checked, cached, whole or not there.

Knows URLs and checksums; knows nothing of what is in a file.
"""

from __future__ import annotations

import os
import secrets
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import httpx

from lookalike.errors import DataCorrupted, Unavailable
from lookalike.files import file_digest

ProgressCallback = Callable[[int, int], None]

# A site that does not answer within 5 s will not: say so, and let the caller go on without it.
_TIMEOUT = httpx.Timeout(30.0, connect=5.0)
# The bytes as they lie on the server: a compressed transfer would be counted and checked as something else.
_HEADERS = {"Accept-Encoding": "identity"}


@dataclass(frozen=True)
class Remote:
    """A published file. `checksum` is the hex digest that the publisher states, by `algorithm`."""

    url: str
    file: str
    algorithm: str
    checksum: str


def default_cache() -> Path:
    """Where downloads are kept unless the caller says otherwise."""
    return Path.home() / ".cache" / "lookalike"


def fetch(remote: Remote, cache: Path, progress: ProgressCallback | None = None) -> Path:
    """The file's path in `cache`, downloaded unless it lies there already; its checksum is checked either way.

    `progress` is called with (bytes had, bytes in all; 0 if the site does not say).

    Raises:
        Unavailable: the site does not answer, refuses, or breaks off; the message says how to place the file by hand.
        DataCorrupted: the file is not what its publisher states.
    """
    path = cache / remote.file
    if path.exists():
        _check(path, remote, f"delete it to download it again from {remote.url}")
        return path
    cache.mkdir(parents=True, exist_ok=True)
    partial = cache / f"{remote.file}.part-{os.getpid()}-{secrets.token_hex(4)}"
    try:
        _download(remote, partial, path, progress)
        _check(partial, remote, "the site serves another file than it did; try again, or report it")
        partial.replace(path)
    finally:
        partial.unlink(missing_ok=True)
    return path


def _download(remote: Remote, partial: Path, path: Path, progress: ProgressCallback | None) -> None:
    try:
        with (
            httpx.stream("GET", remote.url, headers=_HEADERS, timeout=_TIMEOUT, follow_redirects=True) as response,
            partial.open("wb") as file,
        ):
            response.raise_for_status()
            total = int(response.headers.get("content-length", 0))
            for block in response.iter_raw():
                file.write(block)
                if progress is not None:
                    progress(response.num_bytes_downloaded, total)
    except httpx.HTTPError as error:
        raise Unavailable(
            f"cannot download {remote.url} ({type(error).__name__}: {error}). Where there is no network, get the file "
            f"on another machine and place it at {path}",
            field=remote.file,
        ) from error


def _check(path: Path, remote: Remote, fix: str) -> None:
    found = file_digest(path, remote.algorithm)
    if found != remote.checksum:
        raise DataCorrupted(
            f"{path} has the {remote.algorithm} {found}, not the published {remote.checksum}: {fix}", field=remote.file
        )
