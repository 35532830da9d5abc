"""One trial: start the service and its clients, mistreat them, let them be, stop all, look at what is left.

Knows fleet, faults and inspection; what the outcome means is `verdict`'s matter.
"""

from __future__ import annotations

import os
import shutil
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import psutil
from faults import Faults
from fleet import Clients, Disk, Front, disk, processes_with, wait_until_gone
from inspection import inspect
from plan import Fault
from verdict import Found, Struck

from lookalike.client import Client
from lookalike.errors import Unavailable

Say = Callable[[str], None]

# Of an audience with its model, and of all that is there besides.
AUDIENCE_BYTES: Final = 200_000
OTHER_BYTES: Final = 24 << 20
START_SECONDS: Final = 600.0  # where others are at work, too
CALM_SECONDS: Final = 600.0
GONE_SECONDS: Final = 20.0  # a front that was killed leaves its TorchServe five, to end properly
TELL_SECONDS: Final = 15.0
FILL: Final = "fill-disk"


@dataclass(frozen=True)
class Setup:
    """What a trial is made of.

    Attributes:
        options: of each `lookalike serve`, less its port, data folder, archive and database.
        orders, dataset: what the clients read; ledger: what they write.
        seconds: of faults.
    """

    work: Path
    options: Sequence[str]
    fronts: int
    database: str
    orders: Path
    dataset: Path
    ledger: Path
    expansions: int
    seconds: float


@dataclass(frozen=True)
class Outcome:
    """What a trial leaves to judge.

    Attributes:
        found: after a start that nothing disturbed. swept: what that start removed.
        missed: kinds of faults that had nothing to strike.
        no_disk: why the disk could not be filled; empty if it could.
    """

    found: Found
    swept: Sequence[str]
    struck: Sequence[Struck]
    missed: Sequence[str]
    front_starts: int
    failed_starts: int
    client_starts: int
    no_disk: str


def run(setup: Setup, planned: Sequence[Fault], say: Say) -> Outcome:
    """The whole trial; nothing that it started lives when it returns.

    Raises:
        Unavailable: the service does not start, though nothing disturbs it.
    """
    with ExitStack() as stack:
        temporary = stack.enter_context(_temporary())
        stack.enter_context(_no_survivors(temporary))
        opened = stack.enter_context(disk(setup.work / "disk", OTHER_BYTES + AUDIENCE_BYTES * setup.expansions))
        stack.callback(_keep_logs, opened.path / "logs", setup.work / "logs")
        return _run(setup, [one for one in planned if one.kind != FILL or opened.mounted], opened, temporary, say)


def _run(setup: Setup, planned: Sequence[Fault], opened: Disk, temporary: Path, say: Say) -> Outcome:
    data_dir = opened.path / "data"
    fronts = _fronts(setup, data_dir, opened.path / "logs", "front")
    with _serving(fronts):
        begin = time.time() + 1.0
        arguments = [str(setup.orders), str(setup.ledger), str(setup.dataset), str(begin)]
        clients = Clients([*arguments, *(front.address for front in fronts)], setup.work / "clients.log")
        faults = Faults(planned, fronts, opened, clients, begin=begin, seconds=setup.seconds, say=say)
        try:
            clients.start()
            while not faults.over:
                faults.strike()
                clients.restart_if_dead()
                time.sleep(0.1)
            say("no more faults; waiting for clients and operations")
            _calm(fronts, clients, say)
        finally:
            faults.release()
            clients.kill()
        say("all have ended; stopping")
    before = inspect(setup.database, opened.path, temporary, []).left
    # A start removes what a killed server left half written.
    with _serving(_fronts(setup, data_dir, opened.path / "logs", "last")):
        pass
    running = [_named(process) for process in wait_until_gone(str(temporary), GONE_SECONDS)]
    found = inspect(setup.database, opened.path, temporary, running)
    shutil.rmtree(setup.work / "evidence", ignore_errors=True)
    shutil.copytree(data_dir, setup.work / "evidence")
    return Outcome(
        found=found,
        swept=[path for path in before if path not in found.left],
        struck=faults.struck,
        missed=faults.missed,
        front_starts=sum(front.starts for front in fronts),
        failed_starts=sum(front.failed_starts for front in fronts),
        client_starts=clients.starts,
        no_disk=opened.why_not,
    )


def _fronts(setup: Setup, data_dir: Path, logs: Path, name: str) -> list[Front]:
    fronts = []
    for number in range(setup.fronts):
        archive = data_dir.parent / "archives" / f"{name}-{number}.mar"
        settings = [f"service.data_dir={data_dir}", f"torchserve.archive={archive}"]
        settings += [f"service.database_url={setup.database}"] if setup.database else []
        options = [part for setting in settings for part in ("--set", setting)]
        fronts.append(Front(f"{name}-{number}", [*setup.options, *options], logs))
    return fronts


@contextmanager
def _serving(fronts: Sequence[Front]) -> Iterator[None]:
    try:
        for front in fronts:
            front.start()
        for front in fronts:
            if not front.wait_ready(START_SECONDS):
                raise Unavailable(f"{front.name} did not start; its logs say why")
        yield
    finally:
        for front in fronts:
            front.stop()


def _calm(fronts: Sequence[Front], clients: Clients, say: Say) -> None:
    """Wait until clients have done with everything, and the service with what clients have lost interest in."""
    give_up, tell = time.monotonic() + CALM_SECONDS, 0.0
    active = -1
    while not (clients.done and active == 0):
        clients.restart_if_dead()
        time.sleep(0.2)
        with suppress(Unavailable), Client(fronts[0].address, timeout=5.0) as client:
            active = sum(1 for _ in client.operations("done = false"))
        if time.monotonic() > give_up:
            say(f"giving up: {active} operations have not ended in {CALM_SECONDS:g} s that nothing disturbed")
            return
        if time.monotonic() > tell:
            tell = time.monotonic() + TELL_SECONDS
            say(f"{active} operations to end, clients {'done' if clients.done else 'at it'}")


@contextmanager
def _temporary() -> Iterator[Path]:
    """A folder for temporary files that all we start have in their environment, by which we know them."""
    # Short, for sockets of TorchServe's workers live below it.
    folder, former = Path(tempfile.mkdtemp(prefix="chaos-")), os.environ.get("TMPDIR")
    os.environ["TMPDIR"] = str(folder)
    try:
        yield folder
    finally:
        os.environ.pop("TMPDIR")
        if former is not None:
            os.environ["TMPDIR"] = former
        shutil.rmtree(folder, ignore_errors=True)


@contextmanager
def _no_survivors(temporary: Path) -> Iterator[None]:
    try:
        yield
    finally:
        for process in processes_with(str(temporary)):
            with suppress(psutil.NoSuchProcess):
                process.kill()


def _keep_logs(logs: Path, kept: Path) -> None:
    shutil.rmtree(kept, ignore_errors=True)
    with suppress(OSError):
        shutil.copytree(logs, kept)
        shutil.copy(logs.parent / "data" / "torchserve.log", kept)


def _named(process: psutil.Process) -> str:
    try:
        return f"{process.pid} ({' '.join(process.cmdline())[:200]})"
    except psutil.Error as error:
        return f"{process.pid} ({error})"
