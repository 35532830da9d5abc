"""Notices when a processor stands still; for `realtime.py --witness`.

    python benchmarks/witness.py CPU

Sleeps a millisecond at a time until its standard input ends, then prints the stalls as JSON: [[begin, end], ...], in
seconds of the monotonic clock, which all processes share.
"""

from __future__ import annotations

import gc
import json
import os
import select
import sys
import time
from contextlib import suppress

STALL_SECONDS = 0.004


def main() -> None:
    """The command line."""
    os.sched_setaffinity(0, {int(sys.argv[1])})
    with suppress(PermissionError):  # before everything else, so that it sees the machine's stalls and no process's
        os.sched_setscheduler(0, os.SCHED_FIFO, os.sched_param(50))
    gc.disable()
    stalls = []
    before = time.perf_counter()
    while not select.select([sys.stdin], [], [], 0.001)[0]:
        now = time.perf_counter()
        if now - before > STALL_SECONDS:
            stalls.append((before, now))
        before = now
    print(json.dumps(stalls))


if __name__ == "__main__":
    main()
