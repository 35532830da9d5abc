"""Checks of what is served: checkpoint and pool, the archive built of them, and room on disk for their audiences."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

from lookalike.config import Config
from lookalike.doctor.finding import Finding, attempt, fail, ok, warn

# A running operation that wants everybody: a saved selection and its successor (12 bytes a user each), and the audience
# (id, score, rank).
BYTES_A_USER = 2 * 12 + 20
LEAST_FREE = 2**30


def checkpoint(path: Path) -> Finding:
    """Whether it can be read whole; loads it."""

    def look() -> Finding:
        from lookalike.training.checkpoint import load_checkpoint

        return ok("checkpoint", f"{path} is {load_checkpoint(path).fingerprint[:12]}")

    return attempt("checkpoint", "give a folder that `lookalike train` wrote, copied whole", look)


def pool(path: Path) -> Finding:
    """Whether it can be opened; its checksums are `lookalike pool verify`'s to check."""

    def look() -> Finding:
        from lookalike.pool.snapshot import Pool

        return ok("pool", f"{path} has {Pool.open(path).num_users:,} users")

    return attempt("pool", "give a folder that `lookalike ingest` wrote, copied whole", look)


def fit(checkpoint: Path, pool: Path, config: Config) -> Finding:
    """Whether the model knows the pool's fields."""

    def look() -> Finding:
        from lookalike.expander import Expander

        Expander.open(checkpoint, pool, config)
        return ok("fit", "the checkpoint scores this pool")

    return attempt("fit", "train on this pool (`lookalike train --pool`), or serve the pool it was trained on", look)


def archive(path: Path, checkpoint: Path, config: Config) -> Finding:
    """Whether TorchServe's archive was made of this code, this checkpoint and this configuration."""
    fix = f"lookalike archive --checkpoint {checkpoint} --output {path}; `lookalike serve` does so at its start"

    def look() -> Finding:
        from lookalike.runtime.archive import archive_state

        state = archive_state(checkpoint, path, config)
        if state == "missing":
            return warn("archive", f"there is no {path} yet", fix)
        if state == "foreign":
            return fail("archive", f"{path} is damaged, or no archive of ours", f"remove it, then {fix}")
        if state == "stale":
            return warn("archive", f"{path} was built of other code, another checkpoint or configuration", fix)
        return ok("archive", f"{path} is of this code and this checkpoint")

    return attempt("archive", fix, look)


def data_dir(path: Path) -> Finding:
    """Whether the service may write there; nothing is written."""
    existing = next(one for one in (path, *path.absolute().parents) if one.exists())
    if not existing.is_dir():
        return fail("data_dir", f"{existing} is a file", "choose another service.data_dir")
    if not os.access(existing, os.W_OK | os.X_OK):
        return fail("data_dir", f"{existing} may not be written by this user", f"chown or chmod {existing}")
    if existing != path:
        return ok("data_dir", f"{path} will be made")
    return ok("data_dir", f"{path} may be written")


def disk(path: Path, pool: Path, workers: int, free: int | None = None) -> Finding:
    """Whether there is room for the largest audiences that may be made at once."""

    def look() -> Finding:
        from lookalike.pool.snapshot import Pool

        users = Pool.open(pool).num_users
        existing = next(one for one in (path, *path.absolute().parents) if one.exists())
        left = shutil.disk_usage(existing).free if free is None else free
        most = workers * users * BYTES_A_USER
        text = f"{left / 2**30:.1f} GiB are free for {existing}"
        if left < LEAST_FREE:
            return fail("disk", text, "make room, or choose another service.data_dir")
        if left < LEAST_FREE + most:
            need = (LEAST_FREE + most) / 2**30
            return warn(
                "disk",
                f"{text}; {workers} audiences of all {users:,} users at once want {need:.1f}",
                "make room, or do not order audiences of everybody",
            )
        return ok("disk", text)

    return attempt("disk", "give a pool that can be opened", look)
