"""Runs the `torchserve` command so that it cannot outlive the process that started it; a program, not a library.

    python -m lookalike.runtime.torchserve_leash WORK_DIR GRACE_SECONDS -- TORCHSERVE_ARGUMENTS

Leads a process group of its own. When its standard input ends (the starter closed it, or died, be it by kill -9) the
JVM is asked to stop, and after the grace period the group is killed: JVM, workers and this process. WORK_DIR goes too.
"""

from __future__ import annotations

import os
import shutil
import signal
import sys
import threading
import time

import psutil


def main() -> None:
    """See the module."""
    work_dir, grace, separator, *arguments = sys.argv[1:]
    if separator != "--" or os.getpgrp() != os.getpid():
        sys.exit(__doc__)
    # A handler rather than SIG_IGN, which the JVM would inherit. The group's SIGTERM is for the JVM.
    signal.signal(signal.SIGTERM, lambda *_: None)
    threading.Thread(target=_hold, args=(work_dir, float(grace)), daemon=True).start()
    sys.argv = ["torchserve", *arguments]
    from ts.model_server import start

    try:
        start()  # returns when the JVM has ended
    finally:
        _end(work_dir)


def _hold(work_dir: str, grace: float) -> None:
    while os.read(0, 4096):
        pass
    for process in psutil.Process().children():
        process.terminate()
    time.sleep(grace)
    _end(work_dir)


def _end(work_dir: str) -> None:
    sys.stdout.flush()
    shutil.rmtree(work_dir, ignore_errors=True)
    os.killpg(0, signal.SIGKILL)


if __name__ == "__main__":
    main()
