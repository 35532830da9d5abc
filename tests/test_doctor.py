"""The doctor: each check where all is well and where it is not, on real files, databases, ports and certificates."""

from __future__ import annotations

import hashlib
import json
import os
import socket
from collections.abc import Iterator
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from importlib import metadata
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import sqlalchemy as sa
from certificates import Authority
from serving import ScriptedRuntime, config_for, front

from lookalike.cli.app import run
from lookalike.config import Config, ServiceConfig
from lookalike.doctor import machine, parts, software
from lookalike.doctor.finding import Finding, Level
from lookalike.pool.ingest import ingest
from lookalike.runtime.archive import build_archive
from lookalike.service.caller import Scope
from lookalike.service.database import Database, database_url
from lookalike.service.token_file import TokenFile, tokens_path


def is_ok(finding: Finding, text: str = "") -> None:
    assert finding.level is Level.OK, finding
    assert text in finding.message
    assert finding.fix == ""


def warns(finding: Finding, text: str) -> None:
    assert finding.level is Level.WARN, finding
    assert text in finding.message
    assert finding.fix


def fails(finding: Finding, text: str) -> None:
    assert finding.level is Level.FAIL, finding
    assert text in finding.message
    assert finding.fix


def contents(folder: Path) -> dict[str, str]:
    return {
        str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest() if path.is_file() else "folder"
        for path in folder.rglob("*")
    }


def test_python() -> None:
    is_ok(software.python(), "Python 3")
    fails(software.python((3, 10, 4)), "3.10.4")


def test_extension() -> None:
    def missing(name: str) -> Any:
        raise ImportError(f"no module named {name}")

    def core(version: str, level: str) -> Any:
        levels = ["scalar", "avx2", "avx512"]
        return lambda _: SimpleNamespace(__version__=version, simd_level=lambda: level, simd_levels=lambda: levels)

    from lookalike import __version__

    assert software.extension().level is not Level.FAIL
    is_ok(software.extension(core(__version__, "avx512")), "avx512")
    warns(software.extension(core(__version__, "avx2")), "has avx512")
    fails(software.extension(core("0.0.1", "avx512")), "0.0.1")
    fails(software.extension(missing), "_core")


def test_torch() -> None:
    def broken(name: str) -> Any:
        raise OSError("libtorch_cpu.so: cannot open shared object file")

    def absent(name: str) -> str:
        raise metadata.PackageNotFoundError(name)

    is_ok(software.torch(), "PyTorch 2")
    fails(software.torch(version=lambda _: "1.13.0"), "1.13.0 is not")
    fails(software.torch(load=broken), "libtorch")
    fails(software.torch(version=absent), "not installed")


def test_torchserve() -> None:
    def absent(name: str) -> str:
        if name == "PyYAML":  # which TorchServe needs and does not ask for
            raise metadata.PackageNotFoundError(name)
        return metadata.version(name)

    is_ok(software.torchserve(), "0.12.0")
    fails(software.torchserve(lambda name: "0.11.0" if name == "torchserve" else metadata.version(name)), "0.11.0")
    fails(software.torchserve(absent), "PyYAML")


@pytest.mark.parametrize(
    ("said", "level"), [("21.0.1", Level.OK), ("1.8.0_292", Level.FAIL), ("19.0.2", Level.WARN), (None, Level.FAIL)]
)
def test_java(tmp_path: Path, said: str | None, level: Level) -> None:
    program = tmp_path / "bin" / "java"
    program.parent.mkdir()
    if said is not None:
        program.write_text(f"#!/bin/sh\necho 'openjdk version \"{said}\" 2026-01-01' >&2\n")
        program.chmod(0o755)
    assert software.java(lambda: tmp_path).level is level


def test_java_as_it_is_installed() -> None:
    assert software.java().level is not Level.FAIL


def test_checkpoint_and_pool(sample_checkpoint: Path, sample_pool: Path, small_config: Config, tmp_path: Path) -> None:
    is_ok(parts.checkpoint(sample_checkpoint))
    is_ok(parts.pool(sample_pool), "2,000 users")
    is_ok(parts.fit(sample_checkpoint, sample_pool, small_config))
    fails(parts.checkpoint(tmp_path / "none"), "no checkpoint")
    fails(parts.pool(tmp_path / "none"), "none")
    damaged = tmp_path / "damaged"
    damaged.mkdir()
    for name in ("checkpoint.json", "model.safetensors"):
        (damaged / name).write_bytes((sample_checkpoint / name).read_bytes()[:-40])
    fails(parts.checkpoint(damaged), str(damaged))
    pq.write_table(pa.table({"user_id": [1, 2], "shoe_size": ["40", "41"]}), tmp_path / "users.parquet")
    ingest(tmp_path / "users.parquet", tmp_path / "other")
    fails(parts.fit(sample_checkpoint, tmp_path / "other", small_config), "")


def test_archive(sample_checkpoint: Path, tmp_path: Path) -> None:
    archive, config = tmp_path / "lookalike.mar", Config()
    warns(parts.archive(archive, sample_checkpoint, config), "there is no")
    build_archive(sample_checkpoint, archive, config)
    is_ok(parts.archive(archive, sample_checkpoint, config))
    other = replace(config, torchserve=replace(config.torchserve, workers=2))
    warns(parts.archive(archive, sample_checkpoint, other), "another")
    archive.write_bytes(archive.read_bytes()[:100])
    fails(parts.archive(archive, sample_checkpoint, config), "damaged")


def test_data_dir(tmp_path: Path) -> None:
    is_ok(parts.data_dir(tmp_path), "may be written")
    is_ok(parts.data_dir(tmp_path / "a" / "b"), "will be made")
    assert not (tmp_path / "a").exists()
    (tmp_path / "file").touch()
    fails(parts.data_dir(tmp_path / "file" / "b"), "is a file")
    (tmp_path / "closed").mkdir(mode=0o500)
    if os.geteuid():
        fails(parts.data_dir(tmp_path / "closed"), "may not be written")


def test_disk(sample_pool: Path, tmp_path: Path) -> None:
    is_ok(parts.disk(tmp_path, sample_pool, 2, free=2**31))
    warns(parts.disk(tmp_path, sample_pool, 2, free=2**30 + 1), "2 audiences of all 2,000 users")
    fails(parts.disk(tmp_path, sample_pool, 2, free=2**20), "0.0 GiB")
    fails(parts.disk(tmp_path, tmp_path / "none", 2), "none")


def test_open_files() -> None:
    is_ok(machine.open_files(65_536))
    warns(machine.open_files(1024), "1024")
    fails(machine.open_files(128), "128")
    assert machine.open_files().check == "open_files"


@pytest.fixture
def taken() -> Iterator[str]:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        listener.listen()
        yield f"127.0.0.1:{listener.getsockname()[1]}"


def test_port(taken: str, tmp_path: Path) -> None:
    is_ok(machine.port("service.listen", "127.0.0.1:0", tmp_path), "free")
    is_ok(machine.port("service.metrics_listen", "", tmp_path), "none")
    fails(machine.port("service.listen", taken, tmp_path), taken)
    fails(machine.port("service.listen", "127.0.0.1:http", tmp_path), "http")


def test_a_running_service_may_have_its_port(sample_pool: Path, tmp_path: Path) -> None:
    with front(config_for(tmp_path, database_url=""), sample_pool, ScriptedRuntime()) as running:
        before = contents(tmp_path)
        is_ok(machine.port("service.listen", running.address, tmp_path), "a service runs")
        is_ok(machine.database(running.config.service), "version")
        assert contents(tmp_path).keys() == before.keys()
    assert not machine.in_use(tmp_path)


async def test_database(database_url: str, tmp_path: Path) -> None:
    config = ServiceConfig(database_url=database_url, data_dir=tmp_path)
    is_ok(machine.database(config), "empty")
    url = database_url_of(config)
    await (await Database.open(url)).close()
    before = contents(tmp_path)
    is_ok(machine.database(config), "is of version")
    change(url, "UPDATE alembic_version SET version_num = '0001'")
    warns(machine.database(config), "brings it to")
    change(url, "UPDATE alembic_version SET version_num = '9999'")
    fails(machine.database(config), "9999")
    assert contents(tmp_path).keys() == before.keys()


def database_url_of(config: ServiceConfig) -> sa.URL:
    return database_url(config.database_url, config.data_dir.absolute())


def change(url: sa.URL, statement: str) -> None:
    engine = sa.create_engine(url)
    with engine.begin() as connection:
        connection.execute(sa.text(statement))
    engine.dispose()


def test_database_that_is_not_there(tmp_path: Path) -> None:
    away = f"postgresql://nobody@/none?host={tmp_path}"
    fails(machine.database(ServiceConfig(database_url=away)), "cannot use")
    fails(machine.database(ServiceConfig(database_url="mysql://x")), "postgresql://")
    (tmp_path / "operations.db").write_bytes(b"no database at all, but long enough to be told from an empty one" * 20)
    fails(machine.database(ServiceConfig(data_dir=tmp_path)), "cannot use")


def test_certificate(tmp_path: Path) -> None:
    now = datetime.now(UTC)
    path = Authority(tmp_path, "ca").issue("server", lasts=timedelta(days=90, hours=1)).certificate
    is_ok(machine.certificate("service.tls_certificate", path), "90 days")
    warns(machine.certificate("service.tls_certificate", path, now + timedelta(days=80)), "10 days")
    fails(machine.certificate("service.tls_certificate", path, now + timedelta(days=91)), "expired")
    fails(machine.certificate("service.tls_certificate", path, now - timedelta(days=3)), "valid from")
    fails(machine.certificate("service.tls_certificate", tmp_path / "none.pem"), "none.pem")
    (tmp_path / "text.pem").write_text("no certificate")
    fails(machine.certificate("service.tls_certificate", tmp_path / "text.pem"), "")


def test_access(tmp_path: Path) -> None:
    is_ok(machine.access(ServiceConfig(insecure=True)), "anybody on this machine")
    fails(machine.access(ServiceConfig()), "service.tls_certificate")
    warns(machine.access(ServiceConfig(), configured=False), "no configuration was given")
    fails(machine.access(ServiceConfig(insecure=True, listen="0.0.0.0:8500")), "loopback")
    pair = Authority(tmp_path, "ca").issue("server")
    config = ServiceConfig(data_dir=tmp_path, tls_certificate=pair.certificate, tls_key=pair.key)
    warns(machine.access(config), "no valid tokens")
    TokenFile(tokens_path(config)).create("shop", [Scope.READ], lifetime=None)
    is_ok(machine.access(config), "1 valid tokens")


def test_clock(sample_checkpoint: Path, database_url: str) -> None:
    config = ServiceConfig(database_url=database_url)
    is_ok(machine.clock(config, sample_checkpoint, state=0))
    warns(machine.clock(config, sample_checkpoint, state=machine.UNSYNCHRONISED), "kernel")
    fails(machine.clock(config, sample_checkpoint, now=10**9, state=0), "2001-09-09")
    assert machine.clock(config, None).check == "clock"


def test_the_command(
    sample_checkpoint: Path, sample_pool: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    parts = ["doctor", "--checkpoint", str(sample_checkpoint), "--pool", str(sample_pool)]
    settings = [
        "service.listen=127.0.0.1:0",
        "service.metrics_listen=''",
        "service.insecure=true",
        f"service.data_dir={tmp_path / 'data'}",
    ]
    options = [word for setting in settings for word in ("--set", setting)]
    assert run([*parts, *options, "--set", "service.runtime=inprocess", "--json"]) == 0
    findings = json.loads(capsys.readouterr().out)
    assert len({one["check"] for one in findings}) == len(findings) >= 11
    assert "fail" not in {one["level"] for one in findings}
    assert list(tmp_path.iterdir()) == []
    assert run(["doctor", "--checkpoint", str(tmp_path / "none"), *options]) == 1
    said = capsys.readouterr().out
    assert "fail  checkpoint: no checkpoint at" in said
    assert "fix: give a folder that `lookalike train` wrote" in said
