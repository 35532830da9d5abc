"""Which of several snapshots is the current one: a link beside them, swapped at once.

Knows files only; what is in a snapshot is `snapshot`'s.
"""

from __future__ import annotations

import secrets
from pathlib import Path

from lookalike.errors import AlreadyExists
from lookalike.files import sync

POINTER = "current"


def publish_snapshot(snapshot: Path) -> Path:
    """Make the link `current` beside `snapshot` lead to it, and return the link.

    Whoever opens the folder around, or the link, from now on opens `snapshot`; who opened before keeps what they have.
    The link is replaced in one step, so at any moment, after a crash too, it leads to the old one or to the new one.

    Raises:
        AlreadyExists: as `pointer_beside`.
    """
    pointer = pointer_beside(snapshot)
    beside = pointer.with_name(f"{POINTER}.tmp-{secrets.token_hex(4)}")
    beside.symlink_to(snapshot.absolute().name)  # relative: the folder may be moved or mounted elsewhere
    try:
        beside.replace(pointer)
    except BaseException:
        beside.unlink(missing_ok=True)
        raise
    sync(pointer.parent)
    return pointer


def pointer_beside(snapshot: Path) -> Path:
    """The link that publishing `snapshot` makes or replaces.

    Raises:
        AlreadyExists: something else than a link has that name, the snapshot itself perhaps.
    """
    pointer = snapshot.absolute().parent / POINTER
    if snapshot.name == POINTER or (pointer.exists() and not pointer.is_symlink()):
        raise AlreadyExists(f"publishing needs the name {pointer} for its link: rename what has it", field="output")
    return pointer


def follow(path: Path) -> Path:
    """The snapshot that `path` leads to: what is published in it, or itself; links are resolved.

    So the path of an open pool names one snapshot for ever, whatever is published later.
    """
    pointer = path / POINTER
    if pointer.is_symlink():
        return pointer.resolve()
    return path.resolve() if path.is_symlink() else path
