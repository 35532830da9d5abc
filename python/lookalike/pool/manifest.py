"""The manifest of a pool snapshot: what is in the folder, and the hashes that prove it.

Knows `schema`; knows nothing of how shards are written or read.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from lookalike.errors import DataCorrupted, NotFound, SchemaError
from lookalike.schema import FeatureSchema

MANIFEST_NAME = "manifest.json"
FORMAT = "lookalike-pool"
FORMAT_VERSION = 1


@dataclass(frozen=True, kw_only=True)
class Shard:
    """One Arrow IPC file, holding rows `first_row : first_row + rows` of the pool."""

    file: str
    first_row: int
    rows: int
    bytes: int
    sha256: str


@dataclass(frozen=True, kw_only=True)
class Manifest:
    """`id_type` is `int64` or `string`; `as_of` and `created` are RFC 3339, and no part of the fingerprint."""

    id_type: str
    rows: int
    schema: FeatureSchema
    shards: tuple[Shard, ...]
    created: str
    as_of: str

    @cached_property
    def fingerprint(self) -> str:
        """SHA-256 of what the pool holds: same users, schema and shard size: same fingerprint, anywhere, any time."""
        content = {
            "format_version": FORMAT_VERSION,
            "id_type": self.id_type,
            "rows": self.rows,
            "schema": self.schema.fingerprint,
            "shards": [[shard.rows, shard.bytes, shard.sha256] for shard in self.shards],
        }
        return hashlib.sha256(json.dumps(content, sort_keys=True, separators=(",", ":")).encode()).hexdigest()

    def write(self, folder: Path) -> None:
        """Write `manifest.json`; the folder is not public yet."""
        data = {
            "format": FORMAT,
            "format_version": FORMAT_VERSION,
            "fingerprint": self.fingerprint,
            "id_type": self.id_type,
            "rows": self.rows,
            "created": self.created,
            "as_of": self.as_of,
            "shards": [asdict(shard) for shard in self.shards],
            "schema_sha256": self.schema.fingerprint,
            "schema": self.schema.to_json(),
        }
        (folder / MANIFEST_NAME).write_text(json.dumps(data, indent=1, ensure_ascii=False), encoding="utf-8")

    @staticmethod
    def read(folder: Path) -> Manifest:
        """Read and check it.

        Raises:
            NotFound: no pool there. DataCorrupted: not a manifest of this format and version, or it was altered.
        """
        path = folder / MANIFEST_NAME
        try:
            data = json.loads(path.read_text(encoding="utf-8"))
        except (FileNotFoundError, NotADirectoryError) as error:
            raise NotFound(f"no pool at {folder}: {path} does not exist; make one with ingest", field="pool") from error
        except ValueError as error:
            raise DataCorrupted(f"{path} is not JSON: {error}", field=MANIFEST_NAME) from error
        if not isinstance(data, Mapping) or data.get("format") != FORMAT:
            raise DataCorrupted(f"{path} is no manifest of a pool", field=MANIFEST_NAME)
        if data.get("format_version") != FORMAT_VERSION:
            raise DataCorrupted(
                f"{folder} is a pool of format {data.get('format_version')}; this version reads {FORMAT_VERSION}: "
                "ingest it again",
                field=MANIFEST_NAME,
            )
        manifest = _parse(data, path)
        if manifest.fingerprint != data.get("fingerprint"):
            raise DataCorrupted(f"{path} was altered: its fingerprint does not fit its content", field=MANIFEST_NAME)
        return manifest


def _parse(data: Mapping[str, Any], path: Path) -> Manifest:
    try:
        return Manifest(
            id_type=data["id_type"],
            rows=data["rows"],
            schema=FeatureSchema.from_json(data["schema"]),
            shards=tuple(Shard(**shard) for shard in data["shards"]),
            created=data["created"],
            as_of=data["as_of"],
        )
    except (KeyError, TypeError, SchemaError) as error:
        raise DataCorrupted(f"{path} is damaged: {error!r}", field=MANIFEST_NAME) from error
