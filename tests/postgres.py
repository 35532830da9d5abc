"""Test help: a PostgreSQL server of the test run's own, in a temporary folder, reached by a socket there."""

from __future__ import annotations

import contextlib
import getpass
import os
import pwd
import shutil
import signal
import subprocess
import tempfile
import uuid
from collections.abc import Iterator
from pathlib import Path

import psycopg
from processes import wait_until

SECONDS = 60


def programs() -> Path | None:
    """The folder with initdb and postgres: on PATH, or where Debian has them, the newest; None: not installed."""
    found = shutil.which("initdb")
    folders = sorted(Path("/usr/lib/postgresql").glob("*/bin"), key=lambda one: float(one.parent.name))
    candidates = [*([Path(found).resolve().parent] if found else []), *reversed(folders)]
    return next((one for one in candidates if (one / "postgres").exists() and (one / "initdb").exists()), None)


@contextlib.contextmanager
def server(binaries: Path) -> Iterator[Path]:
    """A running server; yields its socket's folder. Only this user and root may connect."""
    user = getpass.getuser()
    if os.geteuid() == 0:  # which PostgreSQL refuses to be run by
        names = {one.pw_name for one in pwd.getpwall()}
        user = "postgres" if "postgres" in names else "nobody"
    folder = Path(tempfile.mkdtemp(prefix="lookalike-pg-"))
    if os.geteuid() == 0:
        shutil.chown(folder, user)
    become = {"user": user} if os.geteuid() == 0 else {}
    try:
        initdb = [binaries / "initdb", "-D", folder / "data", "-U", "lookalike", "-A", "trust", "-E", "UTF8", "-N"]
        subprocess.run(initdb, check=True, capture_output=True, cwd=folder, timeout=SECONDS, **become)
        settings = ("listen_addresses=", f"unix_socket_directories={folder}", "fsync=off", "max_connections=100")
        command = [binaries / "postgres", "-D", folder / "data", *(part for one in settings for part in ("-c", one))]
        with (folder / "log").open("w") as log:
            process = subprocess.Popen(command, stdout=log, stderr=log, cwd=folder, **become)
        try:
            ready = [binaries / "pg_isready", "-q", "-h", folder]
            wait_until(lambda: process.poll() is not None or subprocess.run(ready, check=False).returncode == 0)
            assert process.poll() is None, (folder / "log").read_text()
            yield folder
        finally:
            process.send_signal(signal.SIGINT)  # ends connections too
            process.wait(SECONDS)
    finally:
        shutil.rmtree(folder, ignore_errors=True)


@contextlib.contextmanager
def database(sockets: Path) -> Iterator[str]:
    """The URL of an empty database; dropped at the end, before the disk has all of it: that takes minutes for many."""
    name = f"test_{uuid.uuid4().hex}"
    with psycopg.connect(host=str(sockets), user="lookalike", dbname="postgres", autocommit=True) as connection:
        connection.execute(f"CREATE DATABASE {name}")
    try:
        yield f"postgresql://lookalike@/{name}?host={sockets}"
    finally:
        with psycopg.connect(host=str(sockets), user="lookalike", dbname="postgres", autocommit=True) as connection:
            connection.execute(f"DROP DATABASE {name} WITH (FORCE)")  # a front that was killed may still be connected
