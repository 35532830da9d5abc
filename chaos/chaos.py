"""`make chaos`: expansions ordered over gRPC while everything that can die does; then a verdict by exit code.

    python chaos/chaos.py [--seed 7] [--expansions 200] [--minutes 7] [--every 7] [--fronts 1] [--database URL]

Real fronts, a real TorchServe under each, real clients, small simulated data. Faults are drawn from the seed: kill -9
of workers, JVM, TorchServe, leash, front and clients; workers and fronts that are stopped and continued; a full disk.
What must be: `verdict`. Several fronts share the queue in a PostgreSQL, whose empty database the URL names. Linux only;
filling the disk needs root, which may mount one.
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import subprocess
import sys
import time
from collections import Counter
from dataclasses import asdict
from pathlib import Path
from typing import Any, Final

import ledger
import plan
import trial
from verdict import Verdict, judge

from lookalike import __version__
from lookalike.dataset.layout import Dataset
from lookalike.errors import LookalikeError

HERE: Final = Path(__file__).resolve().parent
WORK: Final = HERE.parent / "build" / "chaos"
CAMPAIGNS: Final = 20
MAX_ATTEMPTS: Final = 5
MAX_LOST_RUNS: Final = 10
# What the service and the undisturbed run have in common; more threads would be slower on tensors so small.
# Folds enough for a second of work, so that faults meet it.
SETTINGS: Final = ("scoring.threads=1", "scoring.device=cpu", "adaptation.enough_held_out_seeds=1500")
# A silent worker is given up soon, and a front that is stopped loses its operations within the time it may be.
SERVED: Final = (
    "torchserve.workers=2",
    "torchserve.response_timeout_seconds=8",
    "torchserve.startup_timeout_seconds=240",
    "service.lease_seconds=5",
    f"service.max_attempts={MAX_ATTEMPTS}",
    f"service.max_lost_runs={MAX_LOST_RUNS}",
)


def main() -> int:
    """The command line; 0 when nothing was lost."""
    arguments = _parse()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))  # all that we started must end with us
    try:
        document = chaos(arguments)
    except (LookalikeError, subprocess.CalledProcessError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    show(document)
    if arguments.json:
        Path(arguments.json).write_text(json.dumps(document, indent=1) + "\n")
    return 1 if document["wrong"] else 0


def chaos(arguments: argparse.Namespace) -> dict[str, Any]:
    """Prepare, mistreat, judge; returns the report.

    Raises:
        LookalikeError, CalledProcessError: something failed that nothing disturbed.
    """
    prepare()
    seconds = 60 * arguments.minutes
    campaigns = [int(one) for one in Dataset.open(WORK / "dataset").campaign_ids("test")[:CAMPAIGNS]]
    orders = plan.draw_orders(arguments.seed, arguments.expansions, seconds, campaigns)
    faults = plan.draw_faults(arguments.seed, seconds, arguments.every, arguments.faults)
    plan.write(orders, WORK / "orders.json")
    say(
        f"seed {arguments.seed}: {len(orders)} orders of {len({o.content for o in orders})} kinds, {len(faults)} faults"
    )
    for fault in faults:
        print(f"  at {fault.at:6.1f} s {fault.kind}" + (f" for {fault.lasts} s" if fault.lasts else ""), flush=True)
    undisturbed = run_undisturbed()
    say("the undisturbed run is done")
    (WORK / "ledger.jsonl").unlink(missing_ok=True)
    setup = trial.Setup(
        work=WORK,
        options=[
            *("--checkpoint", str(WORK / "general"), "--pool", str(WORK / "pool"), "--insecure"),
            *(part for setting in (*SETTINGS, *SERVED) for part in ("--set", setting)),
        ],
        fronts=arguments.fronts,
        database=arguments.database,
        orders=WORK / "orders.json",
        dataset=WORK / "dataset",
        ledger=WORK / "ledger.jsonl",
        expansions=arguments.expansions,
        seconds=seconds,
    )
    begun = time.monotonic()
    outcome = trial.run(setup, faults, say)
    entries = ledger.read(setup.ledger)
    verdict = judge(
        orders,
        undisturbed,
        entries,
        outcome.struck,
        outcome.found,
        max_attempts=MAX_ATTEMPTS,
        max_lost_runs=MAX_LOST_RUNS,
    )
    return report(arguments, outcome, verdict, time.monotonic() - begun)


def prepare() -> None:
    """Data set, pool and a quickly trained checkpoint; kept for the next time."""
    WORK.mkdir(parents=True, exist_ok=True)
    if not (WORK / "dataset").is_dir():
        _lookalike("simulate", str(WORK / "dataset"), "--users", "3000", "--campaigns", "60")
    if not (WORK / "pool").is_dir():
        _lookalike("ingest", str(WORK / "dataset" / "users.parquet"), "--output", str(WORK / "pool"))
    if not (WORK / "general").is_dir():
        _lookalike(
            *("train", str(WORK / "dataset"), "--pool", str(WORK / "pool"), "--output", str(WORK / "general")),
            *("--set", "training.max_seconds=20", "--set", "model.embedding_dim=4"),
            *("--set", "model.num_experts=2", "--set", "model.num_critics=2"),
        )


def run_undisturbed() -> dict[str, dict[str, str]]:
    """What each kind of order must get."""
    output = WORK / "undisturbed.json"
    command = [sys.executable, str(HERE / "undisturbed.py"), str(WORK / "orders.json"), str(WORK / "dataset")]
    command += [str(WORK / "general"), str(WORK / "pool"), str(output), *SETTINGS]
    subprocess.run(command, check=True, env={**os.environ, "OMP_WAIT_POLICY": "PASSIVE"})
    found: dict[str, dict[str, str]] = json.loads(output.read_text())
    return found


def report(arguments: argparse.Namespace, outcome: trial.Outcome, verdict: Verdict, seconds: float) -> dict[str, Any]:
    """Everything of a run, as JSON has it."""
    no_disk = outcome.no_disk and plan.DECK.keys() & set(arguments.faults) & {trial.FILL}
    return {
        "version": __version__,
        "seed": arguments.seed,
        "expansions": arguments.expansions,
        "minutes": arguments.minutes,
        "fronts": arguments.fronts,
        "database": "PostgreSQL" if arguments.database else "SQLite",
        "seconds": round(seconds, 1),
        "faults": dict(Counter(one.kind for one in outcome.struck)),
        "struck": [asdict(one) for one in outcome.struck],
        "missed": dict(Counter(outcome.missed)),
        "skipped": [f"{trial.FILL}: no small disk can be mounted here: {outcome.no_disk}"] if no_disk else [],
        "front_starts": outcome.front_starts,
        "failed_starts": outcome.failed_starts,
        "client_starts": outcome.client_starts,
        "accepted": verdict.accepted,
        "stored": len(outcome.found.operations),
        "ends": dict(verdict.ends),
        "runs": {str(count): operations for count, operations in sorted(verdict.runs.items())},
        "refusals": dict(verdict.refusals),
        "swept": list(outcome.swept),
        "wrong": verdict.wrong,
    }


def show(document: dict[str, Any]) -> None:
    """The report for people."""

    def counts(name: str) -> str:
        return ", ".join(f"{count} {what}" for what, count in sorted(document[name].items())) or "none"

    print(
        f"\nseed {document['seed']}, {document['fronts']} front(s) on {document['database']}, {document['seconds']} s"
    )
    print(f"faults       {counts('faults')}")
    for skipped in document["skipped"]:
        print(f"SKIPPED      {skipped}")
    print(f"starts       {document['front_starts']} of fronts, {document['client_starts']} of clients")
    print(f"             {document['failed_starts']} of fronts ended before they were ready")
    print(f"accepted     {document['accepted']} of {document['expansions']}; {document['stored']} in the store")
    print(f"ends         {counts('ends')}")
    print("runs         " + ", ".join(f"{n} with {runs}" for runs, n in document["runs"].items()))
    print(f"refusals     {counts('refusals')}")
    print(f"swept        {len(document['swept'])} left by killed servers, removed at the next start")
    for wrong in document["wrong"]:
        print(f"WRONG        {wrong}")
    print("verdict      " + (f"{len(document['wrong'])} WRONG" if document["wrong"] else "nothing lost"))


def say(text: str) -> None:
    """A line of what happens."""
    print(f"{time.strftime('%H:%M:%S')} {text}", flush=True)


def _parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seed", type=int, default=7, help="of orders and faults (7)")
    parser.add_argument("--expansions", type=int, default=200, help="how many are ordered (200)")
    parser.add_argument("--minutes", type=float, default=7.0, help="of faults; then all is let be (7)")
    parser.add_argument("--every", type=float, default=7.0, help="seconds from fault to fault, on average (7)")
    parser.add_argument("--faults", default=",".join(plan.DECK), help="only these kinds, separated by commas (all)")
    parser.add_argument("--fronts", type=int, default=1, help="servers that share the queue; needs --database (1)")
    parser.add_argument("--database", default="", metavar="URL", help="an empty PostgreSQL; default: SQLite")
    parser.add_argument("--json", metavar="FILE", help="write everything there")
    arguments = parser.parse_args()
    arguments.faults = [kind for kind in arguments.faults.split(",") if kind]
    if unknown := set(arguments.faults) - plan.DECK.keys():
        parser.error(f"--faults: there is no {', '.join(sorted(unknown))}; there are {', '.join(plan.DECK)}")
    if arguments.fronts > 1 and not arguments.database:
        parser.error("--fronts: only with a --database can several share the queue")
    return arguments


def _lookalike(*arguments: str) -> None:
    subprocess.run([sys.executable, "-m", "lookalike.cli", *arguments], check=True)


if __name__ == "__main__":
    sys.exit(main())
