"""What is mistreated: fronts that a keeper starts again whenever they end, the disk they write to, and their clients.

Knows processes and the command line of `lookalike serve`.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

import psutil

from lookalike.cli.child import ServerProcess
from lookalike.errors import LookalikeError

START_AGAIN_SECONDS = 0.5
HERE = Path(__file__).resolve().parent


class Front:
    """A `lookalike serve` on a fixed port, as a service manager keeps it: started again 0.5 s after it has ended."""

    def __init__(self, name: str, arguments: Sequence[str], logs: Path) -> None:
        self.name = name
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            self.address = f"127.0.0.1:{probe.getsockname()[1]}"
        self._arguments = [*arguments, "--set", f"service.listen={self.address}"]
        self._logs = logs
        self._ending = threading.Event()
        self._ready = threading.Event()
        self._server: ServerProcess | None = None
        self.starts = 0
        self.failed_starts = 0
        self._thread = threading.Thread(target=self._keep, name=name, daemon=True)

    def start(self) -> None:
        self._thread.start()

    def wait_ready(self, seconds: float) -> bool:
        """Whether it is serving, by now or within `seconds`."""
        return self._ready.wait(seconds)

    @property
    def process(self) -> psutil.Process | None:
        """The front's own, if it lives."""
        server = self._server
        try:
            process = psutil.Process(server.pid) if server is not None else None
            return process if process is not None and process.status() != psutil.STATUS_ZOMBIE else None
        except (psutil.NoSuchProcess, AssertionError):
            return None

    def below(self, kind: str) -> list[psutil.Process]:
        """Its processes of a kind: "leash", "jvm" or "worker"."""
        process = self.process
        if process is None:
            return []
        with contextlib.suppress(psutil.NoSuchProcess):
            return [child for child in process.children(recursive=True) if _kind(child) == kind]
        return []

    def stop(self) -> None:
        """End it as an operator does, for good."""
        self._ending.set()
        process = self.process
        if process is not None:
            with contextlib.suppress(psutil.NoSuchProcess):
                process.send_signal(signal.SIGTERM)
        self._thread.join()

    def _keep(self) -> None:
        while not self._ending.is_set():
            self.starts += 1
            self._server = ServerProcess(self._arguments, self._logs / f"{self.name}-{self.starts:03d}.log")
            try:
                with self._server:
                    if self._ending.is_set():
                        return
                    self._ready.set()
                    self._server.wait()
            except (LookalikeError, OSError):  # it ended before it was ready; its log says why
                self.failed_starts += 1
            self._ready.clear()
            self._ending.wait(START_AGAIN_SECONDS)


class Clients:
    """The process of all clients, started again when it is killed."""

    def __init__(self, arguments: Sequence[str], log: Path) -> None:
        self._command = [sys.executable, str(HERE / "customers.py"), *arguments]
        self._log = log
        self._process: subprocess.Popen[bytes] | None = None
        self.starts = 0

    def start(self) -> None:
        self.starts += 1
        with self._log.open("ab") as log:
            self._process = subprocess.Popen(self._command, stdin=subprocess.DEVNULL, stdout=log, stderr=log)

    @property
    def done(self) -> bool:
        """Whether they have done with all their orders."""
        return self._process is not None and self._process.poll() == 0

    def restart_if_dead(self) -> None:
        if self._process is not None and self._process.poll() not in (None, 0):
            self.start()

    def kill(self) -> None:
        if self._process is not None and self._process.poll() is None:
            self._process.kill()
            self._process.wait()


class Disk:
    """A small file system of its own for all the service writes, where root may mount one; else a folder."""

    def __init__(self, path: Path, size: int) -> None:
        self.path = path
        self._filler = path / "filler"
        while path.is_mount():  # of a trial that was killed
            subprocess.run(["umount", "--lazy", str(path)], check=True)
        shutil.rmtree(path, ignore_errors=True)
        path.mkdir(parents=True)
        command = ["mount", "-t", "tmpfs", "-o", f"size={size},mode=0700", "lookalike-chaos", str(path)]
        try:
            done = subprocess.run(command, check=False, capture_output=True, text=True)
            self.why_not = done.stderr.strip() if done.returncode else ""
        except OSError as error:
            self.why_not = str(error)
        self.mounted = not self.why_not

    def fill(self, left: int) -> None:
        """Take all space but `left` bytes."""
        with self._filler.open("ab") as filler:
            while (free := self.free() - left) >= 4096:
                with contextlib.suppress(OSError):  # somebody was faster
                    os.posix_fallocate(filler.fileno(), filler.tell(), free // 4096 * 4096)
                filler.seek(0, os.SEEK_END)

    def empty(self) -> None:
        """Give it back."""
        self._filler.unlink(missing_ok=True)

    def free(self) -> int:
        status = os.statvfs(self.path)
        return status.f_bavail * status.f_frsize

    def close(self) -> None:
        """Unmount; what was on it is gone."""
        if self.mounted:
            subprocess.run(["umount", "--lazy", str(self.path)], check=True)
            self.mounted = False


@contextlib.contextmanager
def disk(path: Path, size: int) -> Iterator[Disk]:
    """A disk that is unmounted however the block ends."""
    opened = Disk(path, size)
    try:
        yield opened
    finally:
        opened.close()


def processes_with(text: str) -> list[psutil.Process]:
    """Live processes, but for this one, with `text` in their environment, as all that is started below it has."""
    found = []
    for process in psutil.process_iter():
        with contextlib.suppress(psutil.Error, OSError):
            mine = process.pid != os.getpid() and process.status() != psutil.STATUS_ZOMBIE
            if mine and text.encode() in Path(f"/proc/{process.pid}/environ").read_bytes():
                found.append(process)
    return found


def wait_until_gone(text: str, seconds: float) -> list[psutil.Process]:
    """Those of `processes_with` that are still there after `seconds`."""
    give_up = time.monotonic() + seconds
    while (found := processes_with(text)) and time.monotonic() < give_up:
        time.sleep(0.2)
    return found


def _kind(process: psutil.Process) -> str:
    try:
        command = " ".join(process.cmdline())
    except psutil.Error:
        return ""
    if "model_service_worker" in command:
        return "worker"
    if "torchserve_leash" in command:
        return "leash"
    return "jvm" if "java" in command.split(" ", 1)[0] else ""
