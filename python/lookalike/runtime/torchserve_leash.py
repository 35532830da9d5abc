"""Runs the `torchserve` command so that it cannot outlive the process that started it; a program, not a library.

    python -m lookalike.runtime.torchserve_leash WORK_DIR GRACE_SECONDS text|json -- TORCHSERVE_ARGUMENTS

Leads a process group of its own. When its standard input ends (the starter closed it, or died, be it by kill -9) the
JVM is asked to stop, and after the grace period the group is killed: JVM, workers and this process. WORK_DIR goes too.
With `json`, whatever the JVM prints past its log becomes a line of JSON as well.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import sys
import threading
import time

import psutil

from lookalike.runtime.torchserve_logs import as_json

DRAIN_SECONDS = 2.0  # for the last lines of a JVM that ended by itself


def main() -> None:
    """See the module."""
    work_dir, grace, log_format, separator, *arguments = sys.argv[1:]
    if separator != "--" or os.getpgrp() != os.getpid():
        sys.exit(__doc__)
    # A handler rather than SIG_IGN, which the JVM would inherit. The group's SIGTERM is for the JVM.
    signal.signal(signal.SIGTERM, lambda *_: None)
    threading.Thread(target=_hold, args=(work_dir, float(grace)), daemon=True).start()
    sys.argv = ["torchserve", *arguments]
    from ts.model_server import start

    converter = _convert_output() if log_format == "json" else None
    try:
        start()  # returns when the JVM has ended
    finally:
        if converter is not None:
            sys.stdout.flush()
            os.close(1)  # with the JVM's, the last of its ends
            os.close(2)
            converter.join(DRAIN_SECONDS)
        _end(work_dir)


def _convert_output() -> threading.Thread:
    """Put a pipe in the place of this process's output, which the JVM inherits, and lines of JSON into that output."""
    log = os.fdopen(os.dup(1), "wb", buffering=0)
    source, drain = os.pipe()
    for descriptor in (1, 2):
        os.dup2(drain, descriptor)
    os.close(drain)
    converter = threading.Thread(target=as_json, args=(os.fdopen(source, errors="replace"), log), daemon=True)
    converter.start()
    return converter


def _hold(work_dir: str, grace: float) -> None:
    while os.read(0, 4096):
        pass
    for process in psutil.Process().children():
        process.terminate()
    time.sleep(grace)
    _end(work_dir)


def _end(work_dir: str) -> None:
    with contextlib.suppress(OSError):  # closed already
        sys.stdout.flush()
    shutil.rmtree(work_dir, ignore_errors=True)
    os.killpg(0, signal.SIGKILL)


if __name__ == "__main__":
    main()
