"""What `deploy/` and the operator's guide say must be so: every command, option, key and file they name is there."""

from __future__ import annotations

import asyncio
import configparser
import json
import os
import re
import shlex
import shutil
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from dataclasses import fields
from pathlib import Path
from typing import Any, get_type_hints

import pytest
import typer
import yaml
from serving import SECONDS, ScriptedRuntime, config_for, front

from lookalike.cli.app import app
from lookalike.cli.systemd import notify, watched
from lookalike.config import Config, load_config
from lookalike.runtime.torchserve_process import TorchServeProcess

ROOT = Path(__file__).parents[1]
DEPLOY = ROOT / "deploy"
UNITS = sorted((DEPLOY / "systemd").glob("*.service")) + sorted((DEPLOY / "systemd").glob("*.timer"))
CONFIGS = [DEPLOY / "systemd" / "lookalike.yaml", DEPLOY / "container" / "lookalike.yaml"]
PAGES = [*sorted((ROOT / "docs").glob("*.md")), ROOT / "README.md"]
GUIDE = (ROOT / "docs" / "operator.md").read_text()
CONTAINERFILE = (DEPLOY / "container" / "Containerfile").read_text()
COMPOSE = yaml.safe_load((DEPLOY / "container" / "compose.yaml").read_text())


def unit(path: Path) -> configparser.ConfigParser:
    parsed = configparser.ConfigParser(strict=False, interpolation=None)
    parsed.optionxform = str  # type: ignore[assignment, method-assign]
    parsed.read_string(path.read_text())
    return parsed


UsageError = typer.BadParameter.__mro__[1]  # of the click that typer has inside


def parse(command: str | list[str]) -> Any:
    """Let the command line's own parser read a command, as far as it would before it does anything."""
    words = shlex.split(command, comments=True) if isinstance(command, str) else command
    context: Any = typer.main.get_command(app).make_context("lookalike", words)
    while hasattr(context.command, "resolve_command"):
        name, found, rest = context.command.resolve_command(context, [*context._protected_args, *context.args])
        assert found is not None
        context = found.make_context(name, rest, parent=context)
    return context


def commands_in(page: str) -> list[str]:
    """What follows `lookalike` in the console blocks of a page, wherever it is installed and whoever runs it."""
    found = []
    for block in re.findall(r"^ *```console\n(.*?)^ *```", page, re.MULTILINE | re.DOTALL):
        for line in re.sub(r"\\\n\s*|  +# .*", " ", block).splitlines():
            found += re.findall(r"^\s*[$#] (?:.*? |.*?/bin/)?lookalike ([a-z][^|>&]*)", line)
    return found


def test_every_command_of_the_pages_is_one() -> None:
    found = [(page.name, command) for page in PAGES for command in commands_in(page.read_text())]
    assert len(found) > 25
    assert {"backup", "doctor", "token", "client", "serve"} <= {command.split()[0] for _, command in found}
    for page, command in found:
        try:
            context = parse(command)
        except UsageError as error:
            pytest.fail(f"{page}: lookalike {command}: {error}")
        load_config(None, [one for one in context.params.get("overrides") or () if "ID" not in one])


def test_a_wrong_command_is_found() -> None:
    assert commands_in("```console\n# sudo -u x /opt/a/bin/lookalike back\\\n   up --x  # y\n```") == ["back up --x "]
    for wrong in ("backup", "backups copy", "serve --checkpoint g", "token list --no-such", "doctor surplus"):
        with pytest.raises(UsageError):
            parse(wrong)
    parse("backup copy")


@pytest.mark.parametrize("path", PAGES, ids=lambda path: path.name)
def test_every_key_of_the_configuration_that_a_page_names_is_one(path: Path) -> None:
    sections = {field.name: get_type_hints(Config)[field.name] for field in fields(Config)}
    for section, key in re.findall(rf"`(?:--set )?({'|'.join(sections)})\.([a-z_]+)[`=:]", path.read_text()):
        a_module = (ROOT / "python" / "lookalike" / section / f"{key}.py").exists()
        if key not in ("log", "pt") and not a_module:  # nor a file
            assert key in {field.name for field in fields(sections[section])}, f"{section}.{key}"


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.parent.name)
def test_a_configuration_is_one(path: Path) -> None:
    config = load_config(path)
    assert not config.service.insecure
    assert config.service.data_dir.is_absolute()
    assert config.torchserve.archive.is_absolute()


@pytest.mark.parametrize("path", UNITS, ids=lambda path: path.name)
def test_a_unit_runs_a_command_that_is_one(path: Path) -> None:
    if path.suffix == ".timer":
        assert path.with_suffix(".service") in UNITS
        return
    service = unit(path)["Service"]
    program, *arguments = shlex.split(service["ExecStart"])
    assert program == "/opt/lookalike/bin/lookalike"
    context = parse(arguments)
    assert context.params["config"] == Path("/etc/lookalike/lookalike.yaml")
    written = [Path(one) for one in service.get("ReadWritePaths", "").split()] + [
        Path("/var/lib") / service["StateDirectory"] if "StateDirectory" in service else Path("/nowhere")
    ]
    config = load_config(CONFIGS[0])
    targets = [config.service.data_dir, context.params.get("output") or config.torchserve.archive]
    assert all(any(target.is_relative_to(one) for one in written) for target in targets)
    for installed in {str(path.relative_to(ROOT)) for path in [*UNITS, CONFIGS[0], DEPLOY / "logrotate" / "lookalike"]}:
        assert installed in GUIDE


def systemd_analyze(*arguments: str | Path) -> subprocess.CompletedProcess[str]:
    if shutil.which("systemd-analyze") is None:
        pytest.skip("wants systemd-analyze (Debian: systemd)")
    return subprocess.run(["systemd-analyze", *arguments], capture_output=True, text=True, check=False, timeout=60)


@pytest.fixture
def installed_units(tmp_path: Path) -> list[Path]:
    """With a program that is there, for systemd asks for it."""
    program = tmp_path / "lookalike"
    program.write_text("#!/bin/sh\n")
    program.chmod(0o755)
    for path in UNITS:
        (tmp_path / path.name).write_text(path.read_text().replace("/opt/lookalike/bin/lookalike", str(program)))
    return [tmp_path / path.name for path in UNITS]


def test_systemd_finds_no_fault_with_the_units(installed_units: list[Path]) -> None:
    done = systemd_analyze("verify", *installed_units)
    assert (done.returncode, done.stderr) == (0, "")
    broken = installed_units[0]
    broken.write_text(broken.read_text().replace("ProtectSystem=strict", "ProtectSystem=stricter"))
    assert "protect system" in systemd_analyze("verify", broken).stderr


def test_the_units_are_confined(installed_units: list[Path]) -> None:
    for path in installed_units:
        if path.suffix == ".service":
            done = systemd_analyze("security", "--offline=true", "--threshold=20", path)
            assert done.returncode == 0, done.stdout.splitlines()[-1]


class Listener:
    """What systemd hears."""

    def __init__(self, path: Path) -> None:
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self._socket.bind(str(path))
        self._socket.settimeout(SECONDS)
        self.heard: list[str] = []

    def wait_for(self, line: str) -> None:
        while line not in self.heard:
            self.heard += self._socket.recv(4096).decode().splitlines()

    def close(self) -> None:
        self._socket.close()


def test_the_service_tells_systemd_what_the_unit_says(
    sample_checkpoint: Path, sample_pool: Path, tmp_path: Path
) -> None:
    service = unit(DEPLOY / "systemd" / "lookalike.service")["Service"]
    assert service["Type"] == "notify"
    assert int(service["WatchdogSec"]) > 0
    heard = Listener(tmp_path / "notify")
    command = [sys.executable, "-m", "lookalike.cli", "serve", "--checkpoint", sample_checkpoint, "--pool", sample_pool]
    settings = ("listen=127.0.0.1:0", "metrics_listen=''", "runtime=inprocess", f"data_dir={tmp_path / 'data'}")
    command += ["--insecure", *(part for one in settings for part in ("--set", f"service.{one}"))]
    environment = {**os.environ, "NOTIFY_SOCKET": str(tmp_path / "notify"), "WATCHDOG_USEC": "200000"}
    with (tmp_path / "log").open("w") as log:
        process = subprocess.Popen(command, env=environment, stdout=subprocess.DEVNULL, stderr=log)
    try:
        heard.wait_for("READY=1")
        heard.heard.clear()
        heard.wait_for("WATCHDOG=1")
        process.send_signal(signal.SIGTERM)
        heard.wait_for("STOPPING=1")
        assert process.wait(SECONDS) == 0, (tmp_path / "log").read_text()
    finally:
        process.kill()
        process.wait()
        heard.close()


def test_a_hung_service_gives_no_sign_of_life(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    heard = Listener(tmp_path / "notify")
    monkeypatch.setenv("NOTIFY_SOCKET", str(tmp_path / "notify"))
    monkeypatch.setenv("WATCHDOG_USEC", "20000")

    async def hang() -> None:
        async with watched():
            await asyncio.to_thread(heard.wait_for, "WATCHDOG=1")
            await asyncio.to_thread(heard.wait_for, "WATCHDOG=1")
            time.sleep(0.2)  # noqa: ASYNC251 - this is the hang
            notify("WOKE=1")

    asyncio.run(hang())
    heard.heard.clear()
    heard.wait_for("WOKE=1")
    assert heard.heard.count("WATCHDOG=1") <= 1  # what was on its way
    monkeypatch.setenv("WATCHDOG_PID", "1")  # another's

    async def idle() -> None:
        async with watched():
            await asyncio.sleep(0.05)

    asyncio.run(idle())
    notify("END=1")
    heard.heard.clear()
    heard.wait_for("END=1")
    assert "WATCHDOG=1" not in heard.heard
    heard.close()
    notify("READY=1")  # nobody listens: no matter
    monkeypatch.setenv("NOTIFY_SOCKET", "nonsense")
    notify("READY=1")


def container(instruction: str) -> Any:
    """The last of an instruction in exec form."""
    text = re.findall(rf"^{instruction} (\[.*?\])$", CONTAINERFILE.replace("\\\n", ""), re.MULTILINE)[-1]
    return json.loads(text)


def test_the_container_runs_a_command_that_is_one() -> None:
    assert container("ENTRYPOINT") == ["lookalike"]
    context = parse(container("CMD"))
    front_of = COMPOSE["services"]["front"]
    mounted = {one.split(":")[1]: one.split(":")[0] for one in front_of["volumes"]}
    assert str(context.params["config"]) in mounted
    assert (DEPLOY / "container" / mounted[str(context.params["config"])]).is_file()
    folders = {Path(place) for place in mounted}
    for needed in (context.params["checkpoint"], context.params["pool"]):
        assert folders & set(needed.parents)
    assert "models/general" in GUIDE
    assert f"user {re.findall(r'^USER (.*)$', CONTAINERFILE, re.MULTILINE)[-1]}." in GUIDE
    user = re.search(r"--uid (\d+)", CONTAINERFILE)
    assert user is not None
    assert f"USER {user[1]}" in CONTAINERFILE


def test_what_the_container_is_configured_with_is_mounted() -> None:
    config = load_config(DEPLOY / "container" / "lookalike.yaml").service
    front_of, secrets = COMPOSE["services"]["front"], COMPOSE["secrets"]
    mounted = {Path(one.split(":")[1]) for one in front_of["volumes"]}
    given = {f"/run/secrets/{name}" for name in front_of["secrets"]}
    assert {str(config.tls_certificate), str(config.tls_key)} <= given
    assert config.database_url.rpartition("passfile=")[2] in given
    assert config.data_dir.parent in mounted
    assert config.seeds_dir in mounted
    assert f"{config.listen.rpartition(':')[2]}:" in f"{front_of['ports'][0]}:"
    for name, secret in secrets.items():
        assert Path(secret["file"]).name in GUIDE, name
    host, _, database = config.database_url.removeprefix("postgresql://").partition("@")[2].partition("/")
    assert host in COMPOSE["services"]
    assert database.partition("?")[0] == COMPOSE["services"][host]["environment"]["POSTGRES_DB"]
    assert f"`{host}:5432:{database.partition('?')[0]}:lookalike:`" in GUIDE


def test_the_container_is_built_of_what_there_is() -> None:
    ignored = (ROOT / ".dockerignore").read_text().splitlines()
    assert ignored[1] == "*"
    sent = {line[1:] for line in ignored if line.startswith("!")}
    assert all((ROOT / name).exists() for name in sent)
    tracked = subprocess.run(["git", "ls-files"], cwd=ROOT, capture_output=True, text=True, check=False).stdout.split()
    # What the build reads, by MANIFEST.in and setup.py.
    for needed in ("csrc", "cmake", "protos", "handlers", "python", "CMakeLists.txt", "pyproject.toml", "setup.py"):
        assert needed in sent
        assert not tracked or any(name.split("/")[0] == needed for name in tracked)
    for copied in re.findall(r"^COPY (?!--from)(.+) \S+$", CONTAINERFILE, re.MULTILINE):
        assert all(name == "." or name in sent for name in copied.split())


def test_the_container_is_healthy_when_the_service_is(sample_pool: Path, tmp_path: Path) -> None:
    port = free_port()
    instruction = CONTAINERFILE.replace("\\\n", "").partition("HEALTHCHECK")[2]
    program, *arguments = json.loads(instruction[instruction.index("[") : instruction.index("\n")])
    assert program == "python3"
    assert load_config(DEPLOY / "container" / "lookalike.yaml").service.metrics_listen.endswith(":8501")
    command = [sys.executable, *(one.replace(":8501", f":{port}") for one in arguments)]

    def healthy() -> bool:
        return subprocess.run(command, capture_output=True, check=False, timeout=SECONDS).returncode == 0

    assert not healthy()
    with front(config_for(tmp_path, metrics_listen=f"127.0.0.1:{port}"), sample_pool, ScriptedRuntime()):
        with urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics", timeout=SECONDS) as answer:
            assert b"audience_runtime_up 1.0" in answer.read()
        assert healthy()


def free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        port: int = listener.getsockname()[1]
        return port


def links(page: str) -> Iterator[tuple[str, str]]:
    for target in re.findall(r"\]\(([^)\s]+)\)", page):
        if "://" not in target:
            path, _, anchor = target.partition("#")
            yield path, anchor


@pytest.mark.parametrize("path", PAGES, ids=lambda path: path.name)
def test_links_lead_somewhere(path: Path) -> None:
    for target, anchor in links(path.read_text()):
        there = (path.parent / target).resolve() if target else path
        assert there.exists(), target
        if anchor:
            headings = re.findall(r"^#+ (.*)$", there.read_text(), re.MULTILINE)
            anchors = {re.sub(r"[^\w\- ]", "", heading).strip().lower().replace(" ", "-") for heading in headings}
            assert anchor in anchors, f"{target}#{anchor}"


def test_files_that_the_guide_names_are_there() -> None:
    named = set(re.findall(r"\bdeploy/[\w./-]+\w", GUIDE))
    assert len(named) > 6
    assert [name for name in named if not (ROOT / name).exists()] == []


def test_logs_are_rotated_where_they_are() -> None:
    text = (DEPLOY / "logrotate" / "lookalike").read_text()
    rotated = {Path(place) for place in re.findall(r"^(/\S+) \{", text, re.MULTILINE)}
    data_dir = load_config(CONFIGS[0]).service.data_dir
    assert rotated == {data_dir / "audit.jsonl", data_dir / "*.log"}
    assert "copytruncate" in text.partition("*.log {")[2]
    assert "copytruncate" not in text.partition("*.log {")[0]


def test_torchserves_log_begins_at_0_when_it_is_truncated(tmp_path: Path) -> None:
    """As copytruncate does it: a writer that did not append would leave a hole of the old size."""
    (tmp_path / "model.mar").write_bytes(b"no archive")
    log = tmp_path / "data" / "torchserve.log"
    process = TorchServeProcess(tmp_path / "model.mar", log)
    try:
        held = [
            int((fd.parents[1] / "fdinfo" / fd.name).read_text().split("flags:")[1].split()[0], 8)
            for pid in process.pids()
            for fd in Path(f"/proc/{pid}/fd").iterdir()
            if os.path.realpath(fd) == str(log)
        ]
        assert held
        assert all(flags & os.O_APPEND for flags in held)
        assert log.parent.stat().st_mode & 0o077 == 0  # made before the service makes it
    finally:
        asyncio.run(process.stop())
