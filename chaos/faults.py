"""Carries out the faults of a plan, each at its time, and tells what it struck. Kills only what a front started."""

from __future__ import annotations

import contextlib
import heapq
import os
import signal
import time
from collections.abc import Callable, Sequence
from typing import Final

import psutil
from fleet import Clients, Disk, Front
from plan import Fault
from verdict import Struck

Say = Callable[[str], None]

SETTLED_SECONDS: Final = 6.0  # of a worker's life, after which it has its model, more or less
LONGEST: Final = 1.6  # times the plan's seconds: what has waited until then is not done any more


class Faults:
    """Call `strike` again and again until it is `over`; `release` ends what lasts.

    Attributes:
        struck: what was done. missed: kinds of faults for which there was nothing to strike until the end.
    """

    def __init__(
        self,
        planned: Sequence[Fault],
        fronts: Sequence[Front],
        disk: Disk,
        clients: Clients,
        *,
        begin: float,
        seconds: float,
        say: Say,
    ) -> None:
        """A plan of `seconds` that begins at the Unix time `begin`."""
        self._begin = self._looked = begin
        self._seconds = seconds
        self._give_up = begin + LONGEST * seconds
        self._planned = sorted(planned, key=lambda fault: fault.at)
        self._fronts = fronts
        self._disk = disk
        self._clients = clients
        self._say = say
        self._lasting: list[tuple[float, int, Fault, float, list[psutil.Process]]] = []  # until, ..., since, whom
        self.struck: list[Struck] = []
        self.missed: list[str] = []

    @property
    def over(self) -> bool:
        """Whether all has been done and has ended."""
        return not self._planned and not self._lasting and time.time() >= self._begin + self._seconds

    def strike(self) -> None:
        """Do what is due."""
        now = time.time()
        while self._lasting and self._lasting[0][0] <= now:
            self._end(heapq.heappop(self._lasting))
        waited, self._looked = now - self._looked, now
        while self._planned and self._begin + self._planned[0].at <= now:
            targets = self._targets(self._planned[0])
            if targets is None:
                self._begin += waited  # its clock stands still, lest all that waits strike at once
                break
            self._do(self._planned.pop(0), targets)
        if now >= self._give_up:
            self.missed += [fault.kind for fault in self._planned]
            self._planned.clear()

    def release(self) -> None:
        """End all that lasts."""
        while self._lasting:
            self._end(heapq.heappop(self._lasting))

    def _do(self, fault: Fault, targets: list[psutil.Process]) -> None:
        since = time.time()
        if fault.kind == "fill-disk":
            self._disk.fill(fault.left)
            what = f"{fault.left} bytes left for {fault.lasts} s"
        elif fault.kind == "kill-clients":
            self._clients.kill()
            what = "all clients"
        else:
            what = f"process {', '.join(str(target.pid) for target in targets)}"
            what += f" for {fault.lasts} s" if fault.lasts else ""
            for target in targets:
                _send(target, fault.kind)
        self._say(f"{fault.kind}: {what}")
        if fault.lasts:
            heapq.heappush(self._lasting, (since + fault.lasts, len(self.struck), fault, since, targets))
            self.struck.append(Struck(fault.kind, since, since + fault.lasts))
        else:
            self.struck.append(Struck(fault.kind, since, since))

    def _end(self, lasting: tuple[float, int, Fault, float, list[psutil.Process]]) -> None:
        _, number, fault, since, targets = lasting
        # Two may overlap: the disk is full until the last one ends.
        if fault.kind == "fill-disk" and not any(other[2].kind == "fill-disk" for other in self._lasting):
            self._disk.empty()
        for target in targets:
            with contextlib.suppress(psutil.NoSuchProcess):
                target.resume()
        self.struck[number] = Struck(fault.kind, since, time.time())

    def _targets(self, fault: Fault) -> list[psutil.Process] | None:
        """Whom it strikes, if it needs anybody; None while it has to wait."""
        fronts = list(self._fronts)
        front = fronts[int(fault.luck * len(fronts))]
        workers = front.below("worker")
        if fault.waits and not (front.wait_ready(0) and any(_settled(worker) for worker in workers)):
            return None
        match fault.kind:
            case "kill-front" | "stop-front" | "restart-front":
                found = [front.process] if front.process is not None else []
            case "kill-worker" | "stop-worker":
                found = [workers[int(fault.luck * len(fronts) % 1 * len(workers))]] if workers else []
            case "kill-jvm":
                found = front.below("jvm")[:1]
            case "kill-leash" | "kill-torchserve":
                found = front.below("leash")[:1]
            case _:
                return []
        return found or None


def _settled(worker: psutil.Process) -> bool:
    with contextlib.suppress(psutil.NoSuchProcess):
        return time.time() - worker.create_time() >= SETTLED_SECONDS
    return False


def _send(target: psutil.Process, kind: str) -> None:
    with contextlib.suppress(psutil.NoSuchProcess, ProcessLookupError):
        if kind == "kill-torchserve":
            os.killpg(target.pid, signal.SIGKILL)  # the leash leads it
        elif kind.startswith("kill-"):
            target.kill()
        elif kind == "restart-front":
            target.terminate()
        else:
            target.suspend()
