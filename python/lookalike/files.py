"""Files that are whole or not there: staged folders, durable writes, checksums.

Ground floor; knows only `errors`.
"""

from __future__ import annotations

import errno
import hashlib
import os
import secrets
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from lookalike.errors import AlreadyExists, ResourceExhausted

# Reason of the ResourceExhausted that says a disk, or a quota of it, is used up.
DISK_FULL = "DISK_FULL"
_FULL = frozenset({errno.ENOSPC, errno.EDQUOT, errno.EFBIG})


def is_full(error: BaseException) -> bool:
    """Whether it says that a disk, or a quota of it, is used up."""
    return isinstance(error, OSError) and error.errno in _FULL


@contextmanager
def staged_folder(output: Path, *, overwrite: bool = False, within: Path | None = None) -> Iterator[Path]:
    """A new folder beside `output` to write into; it takes `output`'s name when the block ends well.

    With `within`, a folder on the same file system, it is written there, so that whoever owns that finds leftovers.

    When the block raises (Ctrl-C too) the new folder is removed and `output` is as it was. An old `output` is set
    aside before the rename and removed after it: a crash between the two leaves both under their temporary names.

    Raises:
        AlreadyExists: `output` exists and `overwrite` is false, or appeared meanwhile.
        ResourceExhausted: reason DISK_FULL: the block, or what comes after it, met a full disk.
    """
    if output.exists() and not overwrite:
        raise AlreadyExists(f"{output} exists; choose another name or ask to overwrite it", field="output")
    token = f"{os.getpid()}-{secrets.token_hex(4)}"
    staged = (within or output.parent) / f"{output.name}.tmp-{token}"
    try:
        output.parent.mkdir(parents=True, exist_ok=True)
        staged.mkdir()
        yield staged
        _sync_tree(staged)
        _publish(staged, output, aside=output.parent / f"{output.name}.old-{token}", overwrite=overwrite)
    except BaseException as error:
        shutil.rmtree(staged, ignore_errors=True)
        if isinstance(error, OSError) and is_full(error):
            raise ResourceExhausted(
                f"the disk of {output} is full ({os.strerror(error.errno or 0)}): free some space, or write elsewhere",
                field="output",
                reason=DISK_FULL,
            ) from error
        raise


def write_whole(path: Path, *parts: bytes, mode: int = 0o666) -> None:
    """Write a file beside, flush it to the disk and rename it: after a crash it holds the old bytes or the new.

    `mode` is that of the new file, less the umask, from its first byte on.
    """
    staged = path.with_name(f"{path.name}.tmp-{os.getpid()}-{secrets.token_hex(4)}")
    try:
        with os.fdopen(os.open(staged, os.O_WRONLY | os.O_CREAT | os.O_EXCL, mode), "wb") as file:
            file.writelines(parts)
            file.flush()
            os.fsync(file.fileno())
        staged.replace(path)
    except BaseException:
        staged.unlink(missing_ok=True)
        raise
    sync(path.parent)


def _publish(staged: Path, output: Path, *, aside: Path, overwrite: bool) -> None:
    replaced = overwrite and output.exists()
    if replaced:
        output.rename(aside)
    try:
        staged.rename(output)
    except OSError as error:
        if replaced:
            aside.rename(output)
        if is_full(error):
            raise
        raise AlreadyExists(f"{output} appeared while its successor was written", field="output") from error
    sync(output.parent)
    if replaced:
        _remove(aside)


def _remove(path: Path) -> None:
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path, ignore_errors=True)
    else:
        path.unlink()


def _sync_tree(folder: Path) -> None:
    for path in sorted(folder.rglob("*")):
        sync(path)
    sync(folder)


def sync(path: Path) -> None:
    """Wait until a file, or the names in a folder, would survive a crash."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def file_digest(path: Path, algorithm: str = "sha256") -> str:
    """Hex digest of a file's bytes."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, algorithm).hexdigest()


def require_space(folder: Path, needed: int, *, purpose: str) -> None:
    """Refuse to begin what cannot end: `folder` is there, and `needed` is in bytes.

    Raises:
        ResourceExhausted: its disk has less left; the message says how much is needed.
    """
    free = shutil.disk_usage(folder).free
    if needed > free:
        raise ResourceExhausted(
            f"{purpose} needs {needed / 1e9:.1f} GB on the disk of {folder.absolute()}, which has "
            f"{free / 1e9:.1f} GB left: free some, or choose another place",
            field="output",
        )
