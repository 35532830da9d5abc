"""The audience store: finished audiences by resource name, and their members cut for the wire.

Knows audiences on disk, and whom to ask which folder a tenant's audience is in; knows no gRPC.
"""

from __future__ import annotations

import asyncio
import re
from collections.abc import Iterator
from pathlib import Path

import pyarrow as pa
import pyarrow.compute as pc

from lookalike.errors import InvalidInput, NotFound, quoted
from lookalike.retrieval.audience import Audience
from lookalike.service.operations import OperationStore
from lookalike.service.records import Operation

# Of a streamed message: 4 MiB is the most a client takes by default; from 256 KiB on size no longer matters for speed.
MESSAGE_BYTES = 512 * 1024
ROW_BYTES = 4 + 10  # a score, and the longest varint

_DRAWN_ID = re.compile("[0-9a-f]{32}")
_OWN_ID = re.compile("[a-z](?:[a-z0-9-]{0,61}[a-z0-9])?")


def is_own_id(audience_id: str) -> bool:
    """Whether a caller may choose this id; what looks like the server's own is not to be had."""
    return _OWN_ID.fullmatch(audience_id) is not None and _DRAWN_ID.fullmatch(audience_id) is None


class AudienceStore:
    """Finished audiences as folders below one, each named by the operation that made it."""

    def __init__(self, folder: Path, store: OperationStore) -> None:
        self.folder = folder
        self._store = store

    async def open(self, tenant: str, name: str, *, field: str) -> tuple[str, Audience]:
        """The id and the audience of a tenant's resource name.

        Raises:
            InvalidInput: not a name. NotFound: the tenant has no such audience, or it is not finished.
            DataCorrupted: damaged.
        """
        audience_id = name.removeprefix("audiences/")
        if audience_id == name or not (_DRAWN_ID.fullmatch(audience_id) or is_own_id(audience_id)):
            raise InvalidInput(
                f"{quoted(name)} must be of the form audiences/<32 hex digits, or your own id>", field=field
            )
        return audience_id, await self._read(await self._store.audience(tenant, audience_id), audience_id)

    async def of(self, operation: Operation) -> Audience:
        """The audience of an operation that has succeeded.

        Raises:
            NotFound: it is gone. DataCorrupted: damaged.
        """
        return await self._read(operation.id, operation.audience_id)

    async def _read(self, folder: str, audience_id: str) -> Audience:
        try:
            return await asyncio.to_thread(Audience.open, self.folder / folder)
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
