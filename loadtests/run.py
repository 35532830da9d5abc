"""`make loadtest`: a small synthetic service of its own, Locust against it for a minute, and a verdict by exit code.

    python loadtests/run.py [--users 4] [--seconds 60]

Writes CSV and HTML into loadtests/results/. Knows the command line only.
"""

from __future__ import annotations

import argparse
import itertools
import shutil
import signal
import subprocess
import sys
from pathlib import Path

from lookalike.cli.child import ServerProcess
from lookalike.errors import LookalikeError

HERE = Path(__file__).resolve().parent
WORK = HERE.parent / "build" / "loadtest"
RESULTS = HERE / "results"


def main() -> int:
    """The command line; returns Locust's exit code."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--users", type=int, default=4, help="marketers at once")
    parser.add_argument("--seconds", type=int, default=60, help="how long")
    arguments = parser.parse_args()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))  # the server must end with us
    try:
        prepare()
        settings = [f"service.data_dir={WORK / 'service'}", f"torchserve.archive={WORK / 'lookalike.mar'}"]
        options = itertools.chain.from_iterable(("--set", setting) for setting in settings)
        folders = ["--checkpoint", str(WORK / "general"), "--pool", str(WORK / "pool"), "--insecure"]
        with ServerProcess([*folders, *options], RESULTS / "serve.log") as server:
            return load(server.address, arguments.users, arguments.seconds)
    except LookalikeError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1


def prepare() -> None:
    """Dataset, pool and a quickly trained checkpoint; kept for the next time."""
    shutil.rmtree(WORK / "service", ignore_errors=True)
    RESULTS.mkdir(parents=True, exist_ok=True)
    if not (WORK / "dataset").is_dir():
        _lookalike("simulate", str(WORK / "dataset"), "--users", "5000", "--campaigns", "40")
    if not (WORK / "pool").is_dir():
        _lookalike("ingest", str(WORK / "dataset" / "users.parquet"), "--output", str(WORK / "pool"))
    if not (WORK / "general").is_dir():
        _lookalike(
            *("train", str(WORK / "dataset"), "--pool", str(WORK / "pool"), "--output", str(WORK / "general")),
            *("--set", "training.max_seconds=20"),
        )


def load(address: str, users: int, seconds: int) -> int:
    """Run Locust; returns its exit code, which the limits decide."""
    command = [sys.executable, "-m", "locust", "-f", str(HERE / "locustfile.py"), "--headless", "--host", address]
    command += ["-u", str(users), "-r", str(users), "-t", f"{seconds}s", "--stop-timeout", "30"]
    command += ["--dataset", str(WORK / "dataset"), "--only-summary"]
    command += ["--csv", str(RESULTS / "loadtest"), "--html", str(RESULTS / "loadtest.html")]
    return subprocess.run(command, check=False).returncode


def _lookalike(*arguments: str) -> None:
    subprocess.run([sys.executable, "-m", "lookalike.cli", *arguments], check=True)


if __name__ == "__main__":
    sys.exit(main())
