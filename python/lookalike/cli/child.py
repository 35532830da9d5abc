"""A `lookalike serve` as a child process: started, waited for, and certainly ended. For examples, load tests and tests.

Knows the command line only, as any other program would.
"""

from __future__ import annotations

import re
import signal
import subprocess
import sys
from collections import deque
from collections.abc import Sequence
from pathlib import Path
from types import TracebackType
from typing import Self

from lookalike.errors import Unavailable

READY_LINE = "lookalike serves on"
_ADDRESS = re.compile(rf"{READY_LINE} (\S+)")
# The service lets running calls end, then TorchServe's JVM; both have limits of their own below this one.
STOP_SECONDS = 40.0
LOG_LINES = 5


class ServerProcess:
    """`with ServerProcess(arguments, log) as server:` the service listens on `server.address` inside the block.

    Args:
        arguments: what follows `lookalike serve`; ports default to any free ones.
        log: file for the server's log.
    """

    def __init__(self, arguments: Sequence[str], log: Path) -> None:
        self._command = [sys.executable, "-m", "lookalike.cli", "serve", "--set", "service.listen=127.0.0.1:0"]
        self._command += ["--set", "service.metrics_listen=127.0.0.1:0"]
        self._command += arguments
        self._log = log
        self._process: subprocess.Popen[str] | None = None
        self.address = ""

    def __enter__(self) -> Self:
        """Start it and wait until it is ready.

        Raises:
            Unavailable: it ended instead; the message has the end of its log.
        """
        self._log.parent.mkdir(parents=True, exist_ok=True)
        with self._log.open("w") as log:
            # Not on our standard input: Ctrl-C in a terminal reaches it as it reaches us.
            self._process = subprocess.Popen(
                self._command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=log, text=True
            )
        try:
            assert self._process.stdout is not None
            for line in self._process.stdout:
                if match := _ADDRESS.search(line):
                    self.address = match[1]
                    return self
            raise Unavailable(f"the service did not start; {self._log} ends with: {self._tail()}")
        except BaseException:
            self.stop()
            raise

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.stop()

    @property
    def pid(self) -> int:
        """Of the process, once started."""
        assert self._process is not None
        return self._process.pid

    def wait(self) -> int:
        """Wait until it has ended by itself, or was ended by others; returns its exit code."""
        assert self._process is not None
        return self._process.wait()

    def stop(self) -> int:
        """End it, and all it started, as SIGTERM does; returns its exit code. May be called again."""
        assert self._process is not None
        if self._process.poll() is None:
            self._process.send_signal(signal.SIGTERM)
        try:
            return self._process.wait(STOP_SECONDS)
        except subprocess.TimeoutExpired:
            self._process.kill()
            return self._process.wait()
        finally:
            if self._process.stdout is not None:
                self._process.stdout.close()

    def _tail(self) -> str:
        with self._log.open(errors="replace") as log:
            return " ".join(line.strip() for line in deque(log, LOG_LINES))
