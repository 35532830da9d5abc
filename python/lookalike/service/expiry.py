"""Forgetting: done operations and audiences whose time is over, folders that belong to nothing any more, and what was
deleted from the database and still stands in its log.

Knows the tables and the data folder. May run on several servers at once, and any number of times.
"""

from __future__ import annotations

import asyncio
import logging

import sqlalchemy as sa

from lookalike.service.audience_records import DAY, AudienceRecords
from lookalike.service.data_dir import DataDir
from lookalike.service.database import Database, now, transaction
from lookalike.service.operations import ACTIVE
from lookalike.service.records import AUDIENCES, OPERATIONS

_log = logging.getLogger(__name__)

EVERY_SECONDS = 600.0


class Expiry:
    """`sweep` now and then, or let `run` do it."""

    def __init__(self, database: Database, folder: DataDir, *, operation_days: float, audience_days: float) -> None:
        """Days after its end, and after it was made; 0: never."""
        self._database = database
        self._folder = folder
        self._records = AudienceRecords(database, audience_days=audience_days)
        self._operation_days = operation_days

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
        # What is marked is seen by nobody, and forgotten when its folder is gone: nothing is left by a killed server.
        await self._expire()
        gone = await self._records.begin_expiry()
        for audience_id in gone:
            try:
                await asyncio.to_thread(self._folder.remove_audience, audience_id)
                await self._records.forget([audience_id])
            except OSError as error:
                _log.error("cannot remove the files of audiences/%s, trying again: %s", audience_id, error)
        active, done, audiences = await self._known()
        await asyncio.to_thread(self._folder.clear, active, done, audiences, alone=alone)
        await asyncio.to_thread(self._database.empty_log)

    @transaction
    def _expire(self, connection: sa.Connection) -> None:
        """Forget operations whose time is over."""
        if self._operation_days:
            over = OPERATIONS.c.ended < now(connection) - self._operation_days * DAY
            connection.execute(OPERATIONS.delete().where(OPERATIONS.c.state.not_in(ACTIVE), over))

    @transaction
    def _known(self, connection: sa.Connection) -> tuple[set[str], set[str], set[str]]:
        """Operations that are not done, those that are, and audiences."""
        active = set(connection.scalars(sa.select(OPERATIONS.c.id).where(OPERATIONS.c.state.in_(ACTIVE))))
        done = set(connection.scalars(sa.select(OPERATIONS.c.id).where(OPERATIONS.c.state.not_in(ACTIVE))))
        return active, done, set(connection.scalars(sa.select(AUDIENCES.c.id)))
