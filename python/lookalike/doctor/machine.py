"""Checks of what is around the service: limits, ports, the database, certificates, the clock.

Looks by the ways that leave no trace: the database is read and not migrated, a port is tried and let go.
"""

from __future__ import annotations

import ctypes
import resource
import socket
import time
from datetime import UTC, datetime
from pathlib import Path

from lookalike.config import ServiceConfig
from lookalike.doctor.finding import Finding, attempt, fail, ok, warn

# A connection each for clients; the rest is shards, libraries and the database.
LEAST_FILES, ENOUGH_FILES = 256, 4096
LEAST_DAYS = 21
CLOCK_SECONDS = 2.0
UNSYNCHRONISED = 5  # TIME_ERROR of adjtimex(2)


def open_files(limit: int | None = None) -> Finding:
    """How many files and connections a process of this user may have open."""
    soft = resource.getrlimit(resource.RLIMIT_NOFILE)[0] if limit is None else limit
    fix = f"ulimit -n {ENOUGH_FILES}, or LimitNOFILE={ENOUGH_FILES} in the systemd unit"
    if soft != resource.RLIM_INFINITY and soft < LEAST_FILES:
        return fail("open_files", f"only {soft} may be open", fix)
    if soft != resource.RLIM_INFINITY and soft < ENOUGH_FILES:
        return warn("open_files", f"{soft} may be open: about as many clients at once", fix)
    return ok("open_files", "no limit" if soft == resource.RLIM_INFINITY else f"{soft} may be open")


def port(key: str, listen: str, data_dir: Path) -> Finding:
    """Whether an address is free, or taken by the very service that uses the data folder."""
    check = f"port:{key}"
    if not listen:
        return ok(check, "none is wanted")
    host, _, number = listen.rpartition(":")
    try:
        family, kind, protocol, _, where = socket.getaddrinfo(host.strip("[]"), int(number), type=socket.SOCK_STREAM)[0]
        with socket.socket(family, kind, protocol) as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            probe.bind(where)
    except (OSError, ValueError, OverflowError) as error:
        if isinstance(error, OSError) and in_use(data_dir):
            return ok(check, f"{listen} is taken, and a service runs on {data_dir}")
        return fail(check, f"cannot listen on {listen}: {error}", f"choose another {key}, or end what listens there")
    return ok(check, f"{listen} is free")


def in_use(data_dir: Path) -> bool:
    """Whether a service holds the data folder's lock; asks the kernel's list and takes no lock itself."""
    try:
        inode = (data_dir / "lock").stat().st_ino
        locks = Path("/proc/locks").read_text().splitlines()
    except OSError:
        return False
    return any(line.split()[1] == "FLOCK" and line.split()[5].endswith(f":{inode}") for line in locks)


def database(config: ServiceConfig) -> Finding:
    """Whether it can be reached, and which version it is of."""

    def look() -> Finding:
        from lookalike.service.database import database_url, look_at

        url = database_url(config.database_url, config.data_dir.absolute())
        seen = look_at(url)
        if seen.version is None:
            return ok("database", f"{seen.name} is empty; the service's start makes its tables")
        if not seen.known:
            return fail(
                "database",
                f"{seen.name} is of version {seen.version}, this code knows {seen.newest} and older",
                "run the version that used it last, or restore what was saved before",
            )
        if seen.version != seen.newest:
            return warn(
                "database",
                f"{seen.name} is of version {seen.version}; the service's start brings it to {seen.newest}",
                "save it before that, for there is no way back",
            )
        return ok("database", f"{seen.name} is of version {seen.version}")

    return attempt("database", "start the database, or mend service.database_url", look)


def certificate(key: str, path: Path, now: datetime | None = None) -> Finding:
    """Whether a certificate may be used, and for how long."""
    check = f"certificate:{key}"
    now = now or datetime.now(UTC)

    def look() -> Finding:
        from cryptography import x509

        chain = x509.load_pem_x509_certificates(path.read_bytes())
        begins = max(one.not_valid_before_utc for one in chain)
        ends = min(one.not_valid_after_utc for one in chain)
        days = (ends - now).days
        if now < begins:
            return fail(check, f"{path} is valid from {begins:%Y-%m-%d %H:%M} UTC only", "mend the clock, or wait")
        if now >= ends:
            return fail(check, f"{path} has expired on {ends:%Y-%m-%d}", "renew it; the service takes it up by itself")
        if days < LEAST_DAYS:
            return warn(check, f"{path} expires in {days} days", "renew it; the service takes it up by itself")
        return ok(check, f"{path} is valid for {days} days")

    return attempt(check, f"give {key} a PEM file that this user may read", look)


def access(config: ServiceConfig, *, configured: bool = True) -> Finding:
    """Whether TLS, tokens and address go together, as the service's start checks them too.

    `configured`: false when nobody has said anything about it, in which nothing is wrong yet.
    """

    def look() -> Finding:
        if not configured:
            return warn(
                "access",
                "no configuration was given, so that nothing is known of TLS and tokens",
                "give doctor what serve is given: --config, --set",
            )
        from lookalike.service.endpoint import Endpoint
        from lookalike.service.token_file import TokenFile, tokens_path

        Endpoint(config)
        if config.insecure:
            return ok("access", f"anybody on this machine, at {config.listen}")
        active = sum(token.state(datetime.now(UTC)) == "active" for token in TokenFile(tokens_path(config)).all())
        if not active:
            return warn("access", "there are no valid tokens, so nobody is let in", "lookalike token create")
        return ok("access", f"TLS, and {active} valid tokens")

    return attempt("access", "see docs/access.md; on this machine alone: --set service.insecure=true", look)


def clock(config: ServiceConfig, made: Path | None, *, now: float | None = None, state: int | None = None) -> Finding:
    """Whether this machine's clock is set: by the kernel, by a file that must be older, by the database's.

    `made`: the checkpoint. `state`: of adjtimex(2).
    """
    fix = "synchronise the clock, for instance by systemd-timesyncd or chrony"
    now = time.time() if now is None else now

    def look() -> Finding:
        if made is not None and made.exists() and made.stat().st_mtime > now + CLOCK_SECONDS:
            return fail("clock", f"it shows {datetime.fromtimestamp(now, UTC):%Y-%m-%d %H:%M} UTC, before {made}", fix)
        if config.database_url:
            from lookalike.service.database import database_url, look_at

            off = abs(look_at(database_url(config.database_url, config.data_dir.absolute())).clock_ahead)
            if off > config.lease_seconds:
                return fail("clock", f"it is {off:.0f} s off the database's", fix)
            if off > CLOCK_SECONDS:
                return warn("clock", f"it is {off:.1f} s off the database's", fix)
        if (_kernel_clock() if state is None else state) == UNSYNCHRONISED:
            return warn("clock", "the kernel says that nothing keeps it right", fix)
        return ok("clock", "it is kept right")

    return attempt("clock", fix, look)


def _kernel_clock() -> int:
    """What adjtimex(2) says when it is asked to change nothing; its structure has 208 bytes on 64-bit machines."""
    return int(ctypes.CDLL(None).adjtimex(ctypes.create_string_buffer(512)))
