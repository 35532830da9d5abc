"""The audience store: finished audiences by resource name.

Knows audiences on disk, and whom to ask which folder a tenant's audience is in; knows no gRPC.
"""

from __future__ import annotations

import asyncio
import re
from dataclasses import dataclass
from pathlib import Path

from lookalike.errors import DataCorrupted, InvalidInput, NotFound, quoted
from lookalike.retrieval.audience import Audience
from lookalike.service.audience_records import AudienceRecord, AudienceRecords
from lookalike.service.opt_out_keeper import OptOutKeeper
from lookalike.service.records import Operation

_DRAWN_ID = re.compile("[0-9a-f]{32}")
_OWN_ID = re.compile("[a-z](?:[a-z0-9-]{0,61}[a-z0-9])?")


def is_own_id(audience_id: str) -> bool:
    """Whether a caller may choose this id; what looks like the server's own is not to be had."""
    return _OWN_ID.fullmatch(audience_id) is not None and _DRAWN_ID.fullmatch(audience_id) is None


@dataclass(frozen=True)
class Opened:
    """A finished audience, open, and what is known of it."""

    record: AudienceRecord
    audience: Audience


class AudienceStore:
    """Finished audiences as folders below one, each named by the operation that made it."""

    def __init__(self, folder: Path, records: AudienceRecords, keeper: OptOutKeeper) -> None:
        self.folder = folder
        self._records = records
        self._keeper = keeper

    async def open(self, tenant: str, name: str, *, field: str) -> tuple[str, Audience]:
        """The id and the audience of a tenant's resource name, without users who have opted out.

        Raises:
            InvalidInput: not a name. NotFound: the tenant has no such audience, or it is not finished.
            DataCorrupted: damaged.
        """
        opened = await self.opened(tenant, name, field=field)
        return opened.record.audience_id, opened.audience

    async def opened(self, tenant: str, name: str, *, field: str) -> Opened:
        """As `open`, with all that is known of it."""
        record = await self._records.find(tenant, named(name, field=field))
        if record.behind:
            await self._keeper.apply(record)
        return await self._read(record)

    async def of(self, operation: Operation) -> Opened:
        """The audience of an operation that has succeeded, to be summed up: users who opted out may still count.

        Raises:
            NotFound: it is gone. DataCorrupted: damaged.
        """
        record = await self._records.by_id(operation.id)
        if record is None:
            raise NotFound(f"there is no audiences/{operation.audience_id}", field="name")
        return await self._read(record)

    async def summed_up(self, record: AudienceRecord) -> Audience | None:
        """As `of`, for a list; None if it is damaged or just gone."""
        try:
            return (await self._read(record)).audience
        except (NotFound, DataCorrupted):
            return None

    async def _read(self, record: AudienceRecord) -> Opened:
        try:
            return Opened(record, await asyncio.to_thread(Audience.open, self.folder / record.id))
        except NotFound as error:
            raise NotFound(f"there is no audiences/{record.audience_id}", field="name") from error


def named(name: str, *, field: str) -> str:
    """The id in a resource name.

    Raises:
        InvalidInput: not a name.
    """
    audience_id = name.removeprefix("audiences/")
    if audience_id == name or not (_DRAWN_ID.fullmatch(audience_id) or is_own_id(audience_id)):
        raise InvalidInput(f"{quoted(name)} must be of the form audiences/<32 hex digits, or your own id>", field=field)
    return audience_id
