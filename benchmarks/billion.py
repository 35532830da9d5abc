"""`make bench-billion`: one expansion over a billion synthetic users, as anybody would run it, on this machine.

    make bench-billion [ARGS='--users 1e8 --keep DIR --json results.json']
    python benchmarks/billion.py [--users 1e9] [--k 1e6] [--profile lean|tencent] [--keep DIR] [--json FILE|-]

Five commands, each a process of its own, so that its memory is its own: `lookalike simulate` of the pool and of a
history among its first users, `train`, `expand`, `verify`. Shows a table; the exit code is 1 if a command fails, if the
audience is not what its receipt says, or if the expansion held more than 4 GiB beside the page cache. Linux only.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import shlex
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Final

from competitors import whole
from rich import box
from rich.console import Console
from rich.table import Table
from topk import machine, version, write_json

from lookalike.dataset.layout import Dataset
from lookalike.dataset.profiles import PROFILES, Population
from lookalike.errors import LookalikeError
from lookalike.files import require_space
from lookalike.pool.simulated import pool_bytes

ROOT: Final = Path(__file__).resolve().parents[1]
# Seeds are some 600 of these; with their negatives and feedback 1.5 million samples to train on.
HISTORY_USERS: Final = 200_000
HISTORY_CAMPAIGNS: Final = 60
MODEL: Final = ("model.num_experts=5", "model.num_critics=5")
MEMORY_LIMIT: Final = 4 << 30
# Everything but the pool: history, model, audience.
OTHER_BYTES: Final = 1 << 30
POLL_SECONDS: Final = 0.02
STAGES: Final = ("matching", "adapting", "compiling", "scoring", "rescoring", "writing")


class FailedError(Exception):
    """A command failed, or the machine cannot take the benchmark."""


@dataclass(frozen=True)
class Run:
    """One command: what it took, from outside.

    Attributes:
        anonymous_bytes: the highest resident memory that is no file's, seen every 20 ms.
        read_bytes: what came from a disk, not from the page cache.
    """

    command: str
    seconds: float
    anonymous_bytes: int
    read_bytes: int
    output: str


def main() -> int:
    """The command line."""
    arguments = _parse()
    console = Console(stderr=arguments.json == "-", width=120, highlight=False)
    try:
        with _folder(arguments.keep) as folder:
            document = measure(arguments, folder)
    except (FailedError, LookalikeError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    show(console, document)
    if arguments.json:
        write_json(document, arguments.json)
    return 0 if document["verified"] and document["memory"]["met"] else 1


def _parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--users", type=whole, default=10**9, help="of the pool (1e9: 23 GB lean, 106 GB tencent)")
    parser.add_argument("--k", type=whole, default=10**6, help="of the audience (1e6)")
    parser.add_argument("--profile", choices=list(PROFILES), default="lean", help="kind of users (lean)")
    parser.add_argument("--train-seconds", type=whole, default=60, help="bound of the training (60)")
    parser.add_argument(
        "--set", action="append", default=[], metavar="SECTION.KEY=VALUE", help="configuration of expand and verify"
    )
    parser.add_argument("--keep", type=Path, metavar="DIR", help="work there, take the pool and the model if there")
    parser.add_argument("--json", metavar="FILE", help="write everything there; - is stdout")
    arguments = parser.parse_args()
    if arguments.json and not Path(arguments.json).parent.is_dir():
        parser.error(f"--json: there is no folder {Path(arguments.json).parent}")  # sooner than after ten minutes
    if not Path("/proc/self/io").exists():
        parser.error("memory and reads are taken from /proc, which only Linux has")
    return arguments


@contextmanager
def _folder(kept: Path | None) -> Iterator[Path]:
    if kept is not None:
        kept.mkdir(parents=True, exist_ok=True)
        yield kept
        return
    build = ROOT / "build"  # not the temp folder, which may lie in memory
    build.mkdir(exist_ok=True)
    with tempfile.TemporaryDirectory(prefix="bench-billion-", dir=build) as folder:
        yield Path(folder)


def measure(arguments: argparse.Namespace, folder: Path) -> dict[str, Any]:
    """Run everything in `folder`; the document of --json.

    Raises:
        FailedError, LookalikeError: a command failed, or the disk is too small.
    """
    name = f"{arguments.profile}-{arguments.users}"
    pool, history, general = (folder / f"{kind}-{name}" for kind in ("pool", "history", "general"))
    audience = folder / f"audience-{name}"
    shutil.rmtree(audience, ignore_errors=True)
    needed = OTHER_BYTES
    if not pool.exists():
        needed += pool_bytes(Population(PROFILES[arguments.profile], 0), arguments.users)
    require_space(folder, needed, purpose=f"the benchmark with {arguments.users:,} {arguments.profile} users")

    profile = ("--profile", arguments.profile)
    made = ("--users", str(min(arguments.users, HISTORY_USERS)), "--campaigns", str(HISTORY_CAMPAIGNS))
    training = [f"training.max_seconds={arguments.train_seconds}", *MODEL]
    runs: dict[str, Run | None] = {
        "generate": _make(pool, "simulate", pool, *profile, "--users", arguments.users, "--pool"),
        "history": _make(history, "simulate", history, *profile, *made),
        "train": _make(general, "train", history, "--pool", pool, "--output", general, *_settings(training)),
    }
    campaign = Dataset.open(history).campaign_ids("test")[0]
    order = ["--checkpoint", general, "--pool", pool, "--dataset", history, "--campaign", campaign]
    order += ["-k", arguments.k, "--output", audience, "--json", *_settings(arguments.set)]
    expand = run("expand", *order)
    verify = run("verify", audience, "--json", *_settings(arguments.set))
    runs |= {"expand": expand, "verify": verify}
    receipt, verification = json.loads(expand.output), json.loads(verify.output)
    shutil.rmtree(audience)
    seconds = {stage: receipt["seconds"].get(stage, 0.0) for stage in STAGES}
    return {
        "command": shlex.join(["python", "benchmarks/billion.py", *sys.argv[1:]]),
        "machine": machine(),
        "python": platform.python_version(),
        "packages": {name: version(name) for name in ("lookalike", "numpy", "pyarrow", "torch")},
        "threads": receipt["threads"],
        "profile": arguments.profile,
        "users": arguments.users,
        "k": arguments.k,
        "pool_bytes": sum(file.stat().st_size for file in pool.iterdir()),
        # Without a run's standard output, which for expand is the receipt.
        "runs": {name: one and {k: v for k, v in asdict(one).items() if k != "output"} for name, one in runs.items()},
        "seconds": seconds | {"other": expand.seconds - sum(seconds.values()), "verify": verify.seconds},
        "users_per_second": {
            "scoring": receipt["users_scored"] / seconds["scoring"],
            "expansion": receipt["users_scored"] / expand.seconds,
        },
        "memory": {
            "limit": MEMORY_LIMIT,
            "value": expand.anonymous_bytes,
            "met": expand.anonymous_bytes < MEMORY_LIMIT,
        },
        "verified": verification["passed"],
        "checks": verification["checks"],
        "receipt": receipt,
    }


def _settings(overrides: list[str]) -> list[str]:
    return [part for override in overrides for part in ("--set", override)]


def _make(output: Path, *command: object) -> Run | None:
    """Run what makes `output`, unless it is there: commands leave it whole or not at all."""
    return None if output.exists() else run(*command)


def run(*command: object) -> Run:
    """One `lookalike` command, watched; its progress goes to stderr.

    Raises:
        FailedError: it failed; it has said why.
    """
    words = [str(word) for word in command]
    print(f"lookalike {shlex.join(words)}", file=sys.stderr)
    with tempfile.TemporaryFile("w+", encoding="utf-8") as output:
        started = time.perf_counter()
        with subprocess.Popen([sys.executable, "-m", "lookalike.cli", *words], stdout=output) as process:
            anonymous = 0
            # Not reaped yet when it has ended, so that its account can still be read.
            while os.waitid(os.P_PID, process.pid, os.WEXITED | os.WNOWAIT | os.WNOHANG) is None:
                anonymous = max(anonymous, 1024 * _of_process(process.pid, "status").get("RssAnon", 0))
                time.sleep(POLL_SECONDS)
            seconds = time.perf_counter() - started
            read = _of_process(process.pid, "io").get("read_bytes", 0)
        if process.returncode != 0:
            raise FailedError(f"lookalike {words[0]} ended with {process.returncode}")
        output.seek(0)
        return Run(f"lookalike {shlex.join(words)}", seconds, anonymous, read, output.read())


def _of_process(pid: int, what: str) -> dict[str, int]:
    """The numbers of /proc/PID/`what` by name; sizes of `status` are in KiB."""
    lines = [line.split() for line in Path(f"/proc/{pid}/{what}").read_text(encoding="utf-8").splitlines()]
    return {words[0].rstrip(":"): int(words[1]) for words in lines if len(words) > 1 and words[1].isdigit()}


def show(console: Console, document: dict[str, Any]) -> None:
    """A line a stage: seconds, users a second, highest memory, bytes read from disk."""
    host, users = document["machine"], document["users"]
    console.print(
        f"{users:,} users ({document['profile']}, {document['pool_bytes'] / 1e9:.1f} GB), K = {document['k']:,}; "
        f"{host['cpu']}, {document['threads']} threads, engine {document['receipt']['engine']}"
    )
    table = Table(box=box.SIMPLE, pad_edge=False)
    for column in ("stage", "seconds", "M users/s", "memory GiB", "read GB"):
        table.add_column(column, justify="left" if column == "stage" else "right", no_wrap=True)
    runs, seconds = document["runs"], document["seconds"]
    for name in ("generate", "history", "train"):
        table.add_row(name, *_figures(runs[name], users if name == "generate" else None))
    table.add_row("expand", *_figures(runs["expand"], users), style="bold")
    for stage in (*STAGES, "other"):
        rate = f"{users / seconds[stage] / 1e6:.2f}" if stage == "scoring" else ""
        table.add_row(f"  {stage}", f"{seconds[stage]:.2f}", rate, "", "")
    table.add_row("verify", *_figures(runs["verify"], None))
    console.print(table)
    adaptation, memory = document["receipt"]["adaptation"], document["memory"]
    console.print(
        "memory: highest resident beside files; read: from disk, not the page cache; other: start, loading, sync"
    )
    console.print(
        f"{'verified' if document['verified'] else 'VERIFICATION FAILED'}; AUC on held-out seeds "
        f"{adaptation['held_out_auc']:.3f}; memory of the expansion {'within' if memory['met'] else 'BEYOND'} "
        f"{memory['limit'] >> 30} GiB"
    )


def _figures(one: dict[str, Any] | None, users: int | None) -> tuple[str, str, str, str]:
    if one is None:
        return "kept", "", "", ""
    rate = f"{users / one['seconds'] / 1e6:.2f}" if users else ""
    return f"{one['seconds']:.2f}", rate, f"{one['anonymous_bytes'] / 2**30:.2f}", f"{one['read_bytes'] / 1e9:.2f}"


if __name__ == "__main__":
    sys.exit(main())
