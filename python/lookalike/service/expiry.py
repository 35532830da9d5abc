"""Forgetting: done operations and audiences whose time is over, and folders that belong to nothing any more.

Knows the tables and the data folder. May run on several servers at once, and any number of times.
"""

from __future__ import annotations

import asyncio
import logging

import sqlalchemy as sa

from lookalike.service.data_dir import DataDir
from lookalike.service.database import Database, now, transaction
from lookalike.service.operations import ACTIVE
from lookalike.service.records import AUDIENCES, OPERATIONS, as_id

_log = logging.getLogger(__name__)

EVERY_SECONDS = 600.0
DAY = 86_400.0


class Expiry:
    """`sweep` now and then, or let `run` do it."""

    def __init__(self, database: Database, folder: DataDir, *, operation_days: float, audience_days: float) -> None:
        """Days after its end, and after it was made; 0: never."""
        self._database = database
        self._folder = folder
        self._operation_days = operation_days
        self._audience_days = audience_days

    async def run(self) -> None:
        """Sweep for ever; a failure is logged and tried again."""
        while True:
            await asyncio.sleep(EVERY_SECONDS)
            try:
                await self.sweep(alone=False)
            except Exception:
                _log.exception("cannot remove what has expired; trying again")

    async def sweep(self, *, alone: bool) -> None:
        """Forget what has expired, then remove folders of what is forgotten.

        `alone`: nothing runs and nothing is being accepted, here or elsewhere.
        """
        # The records go first: a folder without one is found again, a record without a folder would be a lie.
        for audience_id in await self._expire():
            await asyncio.to_thread(self._folder.remove_audience, audience_id)
        active, audiences = await self._known()
        await asyncio.to_thread(self._folder.clear, active, audiences, alone=alone)

    @transaction
    def _expire(self, connection: sa.Connection) -> list[str]:
        """Forget operations and audiences whose time is over; returns the audiences' ids."""
        if self._operation_days:
            over = OPERATIONS.c.ended < now(connection) - self._operation_days * DAY
            connection.execute(OPERATIONS.delete().where(OPERATIONS.c.state.not_in(ACTIVE), over))
        if not self._audience_days:
            return []
        over = AUDIENCES.c.published < now(connection) - self._audience_days * DAY
        expired = [as_id(one) for one in connection.scalars(sa.select(AUDIENCES.c.id).where(over))]
        connection.execute(AUDIENCES.delete().where(AUDIENCES.c.id.in_(expired)))
        return expired

    @transaction
    def _known(self, connection: sa.Connection) -> tuple[set[str], set[str]]:
        active = set(connection.scalars(sa.select(OPERATIONS.c.id).where(OPERATIONS.c.state.in_(ACTIVE))))
        return active, set(connection.scalars(sa.select(AUDIENCES.c.id)))
