"""The audience store: finished audiences by resource name, and their members cut for the wire.

Knows audiences on disk; knows neither operations nor gRPC.
"""

from __future__ import annotations

import asyncio
import re
from collections.abc import Iterator
from pathlib import Path

import pyarrow as pa
import pyarrow.compute as pc

from lookalike.errors import InvalidInput, NotFound
from lookalike.retrieval.audience import Audience

# Of a streamed message: 4 MiB is the most a client takes by default; from 256 KiB on size no longer matters for speed.
MESSAGE_BYTES = 512 * 1024
ROW_BYTES = 4 + 10  # a score, and the longest varint

_ID = re.compile(r"audiences/([0-9a-f]{32})")


class AudienceStore:
    """Finished audiences by id, as folders below one."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    async def open(self, name: str, *, field: str) -> tuple[str, Audience]:
        """The id and the audience of a resource name.

        Raises:
            InvalidInput: not a name. NotFound: no such audience, or not finished. DataCorrupted: damaged.
        """
        match = _ID.fullmatch(name)
        if match is None:
            raise InvalidInput(f"'{name}' is not of the form audiences/<32 hex digits>", field=field)
        return match[1], await self.get(match[1])

    async def get(self, audience_id: str) -> Audience:
        """The audience of an id.

        Raises:
            NotFound: no such audience, or not finished. DataCorrupted: damaged.
        """
        try:
            return await asyncio.to_thread(Audience.open, self.folder / audience_id)
        except NotFound as error:
            raise NotFound(f"there is no audiences/{audience_id}", field="name") from error


def pieces(audience: Audience, start: int) -> Iterator[pa.RecordBatch]:
    """Members from rank `start + 1` on, in batches of at most about MESSAGE_BYTES on the wire."""
    for batch in audience.batches(MESSAGE_BYTES // ROW_BYTES, start):
        yield from _split(batch)


def _split(batch: pa.RecordBatch) -> Iterator[pa.RecordBatch]:
    ids = batch["user_id"]
    text = 0 if pa.types.is_integer(ids.type) else pc.sum(pc.binary_length(ids)).as_py()
    if batch.num_rows > 1 and text > MESSAGE_BYTES:
        half = batch.num_rows // 2
        yield from _split(batch.slice(0, half))
        yield from _split(batch.slice(half))
    elif batch.num_rows:
        yield batch
