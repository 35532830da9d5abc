"""`lookalike pool info | verify | diff | publish`: what is in a snapshot, whether it is sound, what changed.

Knows the pool room only.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from lookalike.cli import display
from lookalike.cli.options import AsJson

pool_app = typer.Typer(no_args_is_help=True, help="Snapshots of users.", rich_markup_mode=None)

Snapshot = Annotated[
    Path, typer.Argument(metavar="POOL", help="A snapshot's folder, or the folder around a published one.")
]


@pool_app.callback()
def _group() -> None:
    """Snapshots of users, as `lookalike ingest` writes them."""


@pool_app.command()
def info(pool: Snapshot, as_json: AsJson = False) -> None:
    """Tell what a snapshot holds. Reads its manifest and the headers of its shards.

    \b
    Example:
      lookalike pool info pools
    """
    from lookalike.pool.snapshot import Pool

    opened = Pool.open(pool)
    manifest = opened.manifest
    size = sum(shard.bytes for shard in manifest.shards)
    data: dict[str, object] = {
        "pool": str(opened.path),
        "users": opened.num_users,
        "ids": manifest.id_type,
        "as_of": manifest.as_of,
        "created": manifest.created,
        "shards": len(manifest.shards),
        "bytes": size,
        "bytes_per_user": round(size / opened.num_users, 2),
        "fingerprint": opened.fingerprint,
        "schema": opened.schema.fingerprint,
    }
    fields = [{"name": f.name, "kind": f.kind.value, "vocabulary": f.known} for f in opened.schema.fields]
    if as_json:
        display.print_json({**data, "fields": fields})
    else:
        display.table(
            [*data.items(), *((f"field {f['name']}", f"{f['kind']}, {f['vocabulary']:,} values") for f in fields)]
        )


@pool_app.command()
def verify(pool: Snapshot, as_json: AsJson = False) -> None:
    """Read a snapshot whole: checksums, ascending ids, encoded values within their vocabularies.

    \b
    Example:
      lookalike pool verify pools/monday
    """
    from lookalike.pool.snapshot import Pool

    opened = Pool.open(pool)
    with display.progress() as report:
        opened.verify(lambda done, total: report("users", done, total, ""))
    data = {"pool": str(opened.path), "users": opened.num_users, "fingerprint": opened.fingerprint, "verified": True}
    if as_json:
        display.print_json(data)
    else:
        display.table(data.items())


@pool_app.command()
def diff(old: Snapshot, new: Snapshot, as_json: AsJson = False) -> None:
    """Count who came, who left and whose features changed from one snapshot to another.

    \b
    Example:
      lookalike pool diff pools/monday pools/tuesday
    """
    from lookalike.pool.difference import compare
    from lookalike.pool.snapshot import Pool

    before, after = Pool.open(old), Pool.open(new)
    with display.progress() as report:
        found = compare(before, after, lambda done, total: report("users", done, total, ""))
    if as_json:
        display.print_json({"old": str(before.path), "new": str(after.path), **found.to_json()})
        return
    rows: list[tuple[str, object]] = [
        ("added", found.added),
        ("removed", found.removed),
        ("changed", found.changed),
        ("unchanged", found.unchanged),
        *((f"changed {name}", count) for name, count in found.fields.items() if count),
    ]
    for title, names in (
        ("fields added", found.fields_added),
        ("fields removed", found.fields_removed),
        ("incomparable", found.incomparable),
    ):
        if names:
            rows.append((title, ", ".join(names)))
    display.table(rows)


@pool_app.command()
def publish(pool: Annotated[Path, typer.Argument(metavar="POOL", help="A snapshot's folder.")]) -> None:
    """Let the link `current` beside a snapshot lead to it; who has another one open keeps that.

    \b
    Example:
      lookalike pool publish pools/monday
    """
    from lookalike.pool.publish import publish_snapshot
    from lookalike.pool.snapshot import Pool

    opened = Pool.open(pool)  # refuses what is damaged
    display.table([("published", publish_snapshot(opened.path)), ("pool", opened.path)])
