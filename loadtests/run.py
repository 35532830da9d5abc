"""`make loadtest`: a service of its own, Locust against it by a scenario or by all, and a verdict by exit code.

    make loadtest [ARGS='--scenario burst --seconds 120 --scale 2']
    python loadtests/run.py [--scenario steady|burst|readers|scoring] [--seconds S] [--scale F] [--pool-users 1e6]

The service has TLS, three tenants with tokens, TorchServe with one worker, and a scorer beside it; what it serves is
simulated, and kept in build/loadtest for the next time. For each scenario loadtests/results/ gets CSV and HTML:
SCENARIO.* has exact percentiles and the verdict, SCENARIO-locust* are Locust's own, with its charts. Wants openssl.
Knows the command line.
"""

from __future__ import annotations

import argparse
import itertools
import shutil
import signal
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Final

from arrivals import SCENARIOS, TENANTS

from lookalike.cli.child import ServerProcess
from lookalike.errors import LookalikeError

HERE: Final = Path(__file__).resolve().parent
WORK: Final = HERE.parent / "build" / "loadtest"
RESULTS: Final = HERE / "results"
HISTORY_USERS: Final = 50_000
# Of the paper's size; lean's 14 fields.
MODEL: Final = ("model.num_experts=5", "model.num_critics=5", "training.max_seconds=30")
# `trial` is what a quota is for, and pays less.
QUOTAS: Final = "quotas.tenants={trial: {queued: 6, weight: 0.5}}"


def main() -> int:
    """The command line; 1 if a scenario went beyond its limits."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--scenario", choices=list(SCENARIOS), action="append", help="which; repeatable (all)")
    parser.add_argument("--seconds", type=float, default=0.0, help="how long things arrive (the scenario's own)")
    parser.add_argument("--scale", type=float, default=1.0, help="factor to all rates; limits are for 1 (1)")
    parser.add_argument("--users", type=int, default=4, help="Locust users that share the arrivals (4)")
    parser.add_argument("--pool-users", type=float, default=1e6, help="of the pool (1e6)")
    parser.add_argument("--set", action="append", default=[], metavar="SECTION.KEY=VALUE", help="of the service")
    arguments = parser.parse_args()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))  # the server must end with us
    wanted = arguments.scenario or list(SCENARIOS)
    try:
        pool = prepare(int(arguments.pool_users))
        folders = ["--checkpoint", str(WORK / "general"), "--pool", str(pool)]
        with ServerProcess([*folders, *_settings(*arguments.set)], RESULTS / "serve.log") as server:
            codes = {name: load(server.address, name, arguments) for name in wanted}
    except (LookalikeError, subprocess.CalledProcessError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    for name, code in codes.items():
        print(f"{name}: {'within its limits' if code == 0 else f'beyond its limits, or failed (exit code {code})'}")
    return 1 if any(codes.values()) else 0


def prepare(users: int) -> Path:
    """History, pool and a quickly trained checkpoint, kept for the next time; certificate and tokens, made anew."""
    shutil.rmtree(WORK / "service", ignore_errors=True)
    RESULTS.mkdir(parents=True, exist_ok=True)
    history, pool, general = WORK / "history", WORK / f"pool-{users}", WORK / "general"
    lean = ("--profile", "lean")
    if not history.is_dir():
        _lookalike("simulate", str(history), *lean, "--users", str(HISTORY_USERS), "--campaigns", "60")
    if not (WORK / "train-pool").is_dir():
        _lookalike("simulate", str(WORK / "train-pool"), *lean, "--users", str(HISTORY_USERS), "--pool")
    if not pool.is_dir():
        _lookalike("simulate", str(pool), *lean, "--users", str(users), "--pool")
    if not general.is_dir():
        model = itertools.chain.from_iterable(("--set", one) for one in MODEL)
        _lookalike("train", str(history), "--pool", str(WORK / "train-pool"), "--output", str(general), *model)
    tokens = WORK / "service" / "client"
    tokens.mkdir(parents=True, mode=0o700)
    subprocess.run(
        [
            *("openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes"),
            *("-days", "2", "-subj", "/CN=localhost", "-addext", "subjectAltName=DNS:localhost,IP:127.0.0.1"),
            *("-keyout", str(WORK / "service" / "server.key"), "-out", str(tokens / "ca.pem")),
        ],
        check=True,
        capture_output=True,
    )
    for tenant in TENANTS:
        scopes = itertools.chain.from_iterable(("--scope", scope) for scope in ("expand", "read", "score"))
        file = str(tokens / f"{tenant}.token")
        _lookalike("token", "create", "--tenant", tenant, *scopes, "--output", file, *_settings())
    return pool


def load(address: str, scenario: str, arguments: argparse.Namespace) -> int:
    """Run Locust; returns its exit code, which the limits decide."""
    tokens = WORK / "service" / "client"
    command = [sys.executable, "-m", "locust", "-f", str(HERE / "locustfile.py"), "--headless", "--only-summary"]
    command += ["--host", address, "-u", str(arguments.users), "-r", str(arguments.users), "--stop-timeout", "30"]
    command += ["--scenario", scenario, "--seconds", str(arguments.seconds), "--scale", str(arguments.scale)]
    command += ["--dataset", str(WORK / "history"), "--tokens", str(tokens), "--results", str(RESULTS)]
    command += ["--csv", str(RESULTS / f"{scenario}-locust"), "--html", str(RESULTS / f"{scenario}-locust.html")]
    return subprocess.run(command, check=False).returncode


def _settings(*more: str) -> list[str]:
    certificate, key = WORK / "service" / "client" / "ca.pem", WORK / "service" / "server.key"
    settings = [
        f"service.data_dir={WORK / 'service' / 'data'}",
        f"service.tls_certificate={certificate}",
        f"service.tls_key={key}",
        f"torchserve.archive={WORK / 'lookalike.mar'}",
        "realtime.host=process",
        QUOTAS,
        *more,
    ]
    return list(itertools.chain.from_iterable(("--set", setting) for setting in settings))


def _lookalike(*arguments: str) -> None:
    command: Sequence[str] = [sys.executable, "-m", "lookalike.cli", *arguments]
    subprocess.run(command, check=True)


if __name__ == "__main__":
    sys.exit(main())
