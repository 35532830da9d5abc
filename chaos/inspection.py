"""Looks at what is left when everything has been stopped: the store, the data folder, temporary files, processes."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Iterator
from pathlib import Path

import sqlalchemy as sa
from verdict import Found, Kept, Stored

from lookalike.errors import LookalikeError
from lookalike.files import file_digest
from lookalike.retrieval.audience import Audience
from lookalike.retrieval.receipt import AUDIENCE_NAME, MODEL_NAME
from lookalike.service.database import Database, database_url
from lookalike.service.records import OPERATIONS

# Of a front's data folder; what else is there is left over, but for logs, and SQLite's files beside the database.
KNOWN = frozenset({"jobs", "audiences", "lock", "database-id", "operations.db"})
LOGS = frozenset({".log", ".jsonl"})


def operations(url: str, data_dir: Path) -> list[Stored]:
    """All operations of the store, oldest first. With SQLite no front may be running."""
    return asyncio.run(_operations(database_url(url, data_dir)))


async def _operations(url: sa.URL) -> list[Stored]:
    database = await Database.open(url)
    try:
        rows = await database.run(
            lambda connection: connection.execute(sa.select(OPERATIONS).order_by(OPERATIONS.c.number)).mappings().all()
        )
    finally:
        await database.close()
    return [_stored(row) for row in rows]


def _stored(row: sa.RowMapping) -> Stored:
    error = json.loads(row["error"]) if row["error"] else {}
    return Stored(
        id=row["id"],
        request_id=row["request_id"] or "",
        state=row["state"],
        created=row["created"],
        ended=row["ended"],
        attempts=row["attempts"],
        reason=error.get("reason", ""),
        message=error.get("message", ""),
    )


def inspect(url: str, disk: Path, temporary: Path, processes: list[str]) -> Found:
    """Everything the verdict is about; `disk` has the data folder, archives and logs."""
    data_dir = disk / "data"
    audiences = {}
    left = list(_left(data_dir))
    left += [str(path) for path in sorted((disk / "archives").iterdir()) if path.suffix != ".mar"]
    for folder in sorted((data_dir / "audiences").iterdir()):
        if "." in folder.name:
            left.append(f"audiences/{folder.name}")
        else:
            audiences[folder.name] = _kept(folder)
    left += [str(path) for path in sorted(temporary.iterdir())]
    return Found(operations(url, data_dir), audiences, left, processes)


def _left(data_dir: Path) -> Iterator[str]:
    for path in sorted(data_dir.iterdir()):
        if path.name.removesuffix("-wal").removesuffix("-shm") not in KNOWN and path.suffix not in LOGS:
            yield path.name
    for folder in sorted((data_dir / "jobs").iterdir()):
        yield f"jobs/{folder.name}"


def _kept(folder: Path) -> Kept:
    try:
        audience = Audience.open(folder)
        audience.members(0, audience.num_members)
        for name, expected in ((AUDIENCE_NAME, "audience_sha256"), (MODEL_NAME, "model_sha256")):
            if file_digest(folder / name) != getattr(audience.receipt, expected):
                return Kept(damage=f"{name} is not as its receipt says")
        audience.seeds()
    except (LookalikeError, OSError) as error:
        return Kept(damage=str(error))
    return Kept(audience_sha256=audience.receipt.audience_sha256)
