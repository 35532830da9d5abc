"""The audience store: finished audiences by resource name.

Knows audiences on disk, and whom to ask which folder a tenant's audience is in; knows no gRPC.
"""

from __future__ import annotations

import asyncio
import re
from pathlib import Path

from lookalike.errors import InvalidInput, NotFound
from lookalike.retrieval.audience import Audience
from lookalike.service.operations import OperationStore
from lookalike.service.records import Operation

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
            shown = name if len(name) <= 100 else name[:97] + "..."
            raise InvalidInput(f"'{shown}' is not of the form audiences/<32 hex digits, or your own id>", field=field)
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
