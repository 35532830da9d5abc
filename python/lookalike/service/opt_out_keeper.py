"""Carries opt-outs out: in every stored audience, before anybody reads it, and in the jobs that make new ones.

The database says how far each audience has come; a server that is killed in between goes on, and so does any other.
Knows the records, the opt-outs and the folders.
"""

from __future__ import annotations

import asyncio
import logging
import math
import os
import time
from collections import OrderedDict
from collections.abc import Set as AbstractSet
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from weakref import WeakValueDictionary

import pyarrow as pa

from lookalike.errors import LookalikeError, NotFound, Unavailable
from lookalike.files import sync
from lookalike.retrieval.audience import Audience, write_ids
from lookalike.retrieval.revise import remove_users
from lookalike.service.audience_records import AudienceRecord, AudienceRecords
from lookalike.service.opt_outs import OptOutStore
from lookalike.service.records import Operation

_log = logging.getLogger(__name__)

EVERY_SECONDS = 30.0  # what another server was told, or failed at, is looked for
LOOK_SECONDS = 0.2

KNOWN_TENANTS = 16  # whose lists are kept in memory: 8 MB for a million users, and 100 MB where they are scored
AGAIN_SECONDS = 1.0  # between two looks at what another server was told, for those who are scored

PENDING = "OPT_OUT_PENDING"
LIST_NAME = "opted-out.parquet"


@dataclass(frozen=True)
class _Members:
    """Who had opted out by a number, and until when that need not be asked again."""

    number: int
    users: frozenset[int | str]
    until: float


class OptOutKeeper:
    """`run` it; all on one event loop."""

    def __init__(
        self, records: AudienceRecords, opt_outs: OptOutStore, *, audiences: Path, jobs: Path, id_type: pa.DataType
    ) -> None:
        """`audiences`, `jobs`: folders of the data folder; `id_type`: of the pool that jobs run on."""
        self._records = records
        self._opt_outs = opt_outs
        self._audiences = audiences
        self._jobs = jobs
        self._id_type = id_type
        self._locks: WeakValueDictionary[str, asyncio.Lock] = WeakValueDictionary()
        self._wake = asyncio.Event()
        self._closed = asyncio.Event()
        self._known: OrderedDict[str, tuple[int, pa.Array]] = OrderedDict()
        self._members: OrderedDict[str, _Members] = OrderedDict()
        self._woken = 0
        self._tasks: set[asyncio.Task[None]] = set()

    def wake(self) -> None:
        """Look at once what is to be done."""
        # Asked again, not read again: an end of an operation is mostly no opt-out.
        self._woken += 1
        self._members = OrderedDict((tenant, replace(one, until=-math.inf)) for tenant, one in self._members.items())
        self._wake.set()

    def close(self) -> None:
        """It runs no more: nobody is to wait for it."""
        self._closed.set()

    async def run(self) -> None:
        """Bring audiences up to date for ever, those that nobody reads too; a failure is logged and tried again."""
        while True:
            self._wake.clear()
            try:
                await self._catch_up()
            except Exception:
                _log.exception("cannot carry opt-outs out; trying again")
            with suppress(TimeoutError):
                await asyncio.wait_for(self._wake.wait(), EVERY_SECONDS)

    async def apply(self, record: AudienceRecord) -> None:
        """Bring an audience up to date: whoever opens it after this sees nobody who had opted out before.

        Raises:
            Unavailable: reason OPT_OUT_PENDING: its files cannot be changed; or the database does not answer.
            DataCorrupted: they are damaged.
        """
        lock = self._locks.setdefault(record.id, asyncio.Lock())
        async with lock:
            latest = await self._records.by_id(record.id)
            if latest is None or not latest.behind:  # gone; or somebody was faster
                return
            try:
                await self._bring(latest)
            except OSError as error:
                _log.error("users who opted out are still in the files of audiences/%s: %s", record.id, error)
                raise Unavailable(
                    "users have opted out of this audience, and the server cannot change its files; its log says why",
                    reason=PENDING,
                ) from error

    async def settle(self, tenant: str | None, seconds: float) -> int:
        """Wait until every audience of a tenant, or of all, is up to date, but no longer; how many are not."""
        give_up = time.monotonic() + seconds
        self.wake()
        while True:
            behind = await self._records.behind(tenant)
            left = give_up - time.monotonic()
            if not behind or left <= 0 or self._closed.is_set():
                return len(behind)
            with suppress(TimeoutError):
                await asyncio.wait_for(self._closed.wait(), min(LOOK_SECONDS, left))

    async def list_for(self, operation: Operation) -> Path | None:
        """The file of users that the operation's job is to leave out, the same for all its runs; None: nobody."""
        path = self._jobs / operation.id / LIST_NAME
        if await asyncio.to_thread(path.exists):
            return path
        number = await self._opt_outs.last(operation.tenant)
        if not number:
            return None
        users = await self._through(operation.tenant, number)
        if await asyncio.to_thread(_write_once, path, users):
            await self._records.note_opted_out(operation.id, number)
        return path

    async def of(self, tenant: str) -> AbstractSet[int | str]:
        """Everyone who has opted out; what another server was told, two seconds ago at the latest.

        The database is asked again while calls go on with what is known.

        Raises:
            Unavailable: the database does not answer.
        """
        known, moment = self._members.get(tenant), time.monotonic()
        if known is not None and moment < known.until + AGAIN_SECONDS:
            if moment >= known.until:
                self._members[tenant] = replace(known, until=moment + AGAIN_SECONDS)
                task = asyncio.create_task(self._again(tenant))
                self._tasks.add(task)
                task.add_done_callback(self._tasks.discard)
            return known.users
        lock = self._locks.setdefault(f"of\0{tenant}", asyncio.Lock())
        async with lock:  # one reads the list, however many ask
            return await self._of(tenant)

    async def _again(self, tenant: str) -> None:
        with suppress(LookalikeError):  # whoever asks next is told
            async with self._locks.setdefault(f"of\0{tenant}", asyncio.Lock()):
                await self._read_of(tenant)

    async def _of(self, tenant: str) -> AbstractSet[int | str]:
        known = self._members.get(tenant)
        if known is not None and time.monotonic() < known.until:  # somebody was faster
            return known.users
        return await self._read_of(tenant)

    async def _read_of(self, tenant: str) -> AbstractSet[int | str]:
        known = self._members.get(tenant)
        until, woken = time.monotonic() + AGAIN_SECONDS, self._woken
        number = await self._opt_outs.last(tenant)
        if known is None or known.number != number:
            users = await self._through(tenant, number)
            known = _Members(number, await asyncio.to_thread(lambda: frozenset(users.to_pylist())), until)
        # What was said while it was read may not be among it.
        self._members[tenant] = replace(known, until=until if self._woken == woken else -math.inf)
        self._members.move_to_end(tenant)
        while len(self._members) > KNOWN_TENANTS:
            self._members.popitem(last=False)
        return known.users

    async def _through(self, tenant: str, number: int) -> pa.Array:
        """Everyone who opted out by a number up to this one; what is known already is not read again."""
        known, users = self._known.pop(tenant, (0, pa.array([], self._id_type)))
        if known > number:  # somebody was faster, and knows more
            known, users = 0, users.slice(0, 0)
        users = pa.concat_arrays([users, await self._opt_outs.between(tenant, known, number, self._id_type)])
        self._known[tenant] = (number, users)
        while len(self._known) > KNOWN_TENANTS:
            self._known.popitem(last=False)
        return users

    async def _catch_up(self) -> None:
        for record in await self._records.behind():
            try:
                await self.apply(record)
            except LookalikeError as error:
                if error.reason != PENDING:  # which is in the log
                    _log.warning("users who opted out are not yet out of audiences/%s: %s", record.id, error)
            except Exception:  # a defect; the others must not wait for its mending
                _log.exception("users who opted out are still in audiences/%s", record.id)

    async def _bring(self, record: AudienceRecord) -> None:
        folder = self._audiences / record.id
        with suppress(NotFound):  # it is just being deleted, or somebody else has: then nobody is in it
            kind = await asyncio.to_thread(lambda: Audience.open(folder).id_type)
            users = await self._opt_outs.between(record.tenant, record.opted_out_through, record.opt_outs, kind)
            await asyncio.to_thread(remove_users, folder, users)
        await self._records.note_opted_out(record.id, record.opt_outs)


def _write_once(path: Path, user_ids: pa.Array) -> bool:
    """Write a file of ids whole, unless there is one; whether it was written. Two servers may try at once."""
    staged = path.with_name(f"{path.name}.tmp-{os.getpid()}-{time.monotonic_ns()}")
    try:
        write_ids(staged, user_ids)
        sync(staged)
        os.link(staged, path)
    except FileExistsError:
        return False
    finally:
        staged.unlink(missing_ok=True)
    return True
