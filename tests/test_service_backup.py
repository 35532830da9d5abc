"""What is saved while a service serves can be served again: there, or elsewhere."""

from __future__ import annotations

import asyncio
import contextlib
import shutil
import subprocess
import threading
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from postgres import database, programs
from serving import SECONDS, ScriptedRuntime, config_for, front

from lookalike import errors
from lookalike.cli.app import run
from lookalike.client import Client
from lookalike.config import Config
from lookalike.retrieval.receipt import AUDIENCE_NAME
from lookalike.retrieval.verify import verify
from lookalike.runtime.inprocess import InProcessRuntime
from lookalike.service.backup import DUMP_NAME, Saved, back_up
from lookalike.training.checkpoint import fingerprint
from lookalike.v1 import audience_pb2

Metadata = audience_pb2.ExpandAudienceMetadata


def save(config: Config, output: Path) -> Saved:
    return asyncio.run(back_up(config.service, output))


def order(client: Client, **changes: object) -> Any:
    return client.expand(**{"campaign": "spring", "seeds": [1, 2, 3], "k": 5, **changes})


@pytest.fixture
def client_programs(monkeypatch: pytest.MonkeyPatch) -> None:
    """pg_dump and pg_restore of the server's own version."""
    if (folder := programs()) is not None:
        monkeypatch.setenv("PATH", str(folder), prepend=":")


@pytest.fixture
def empty_url(request: pytest.FixtureRequest, database_url: str) -> Iterator[str]:
    """As `database_url`: of another database of the same kind."""
    with database(request.getfixturevalue("postgres")) if database_url else contextlib.nullcontext("") as url:
        yield url


def restore(copy: Path, data_dir: Path, url: str) -> None:
    """As docs/operator.md says."""
    shutil.copytree(copy, data_dir)
    if url:
        subprocess.run(["pg_restore", "--no-owner", f"--dbname={url}", data_dir / DUMP_NAME], check=True)


@pytest.mark.usefixtures("client_programs")
def test_every_audience_is_there_and_verifies_elsewhere(
    sample_checkpoint: Path,
    sample_pool: Path,
    small_config: Config,
    order: dict[str, Any],
    database_url: str,
    empty_url: str,
    tmp_path: Path,
) -> None:
    name = fingerprint(sample_checkpoint)

    def serving(data_dir: Path, url: str) -> Any:
        service = config_for(data_dir, database_url=url).service
        config = replace(small_config, service=service)
        return front(config, sample_pool, lambda: InProcessRuntime(sample_checkpoint, config), checkpoint=name)

    with serving(tmp_path / "data", database_url) as running, Client(running.address) as client:
        client.expand(**order, audience_id="first").result(SECONDS)
        enough, ordered = threading.Event(), []

        def keep_ordering() -> None:
            while not enough.is_set():
                ordered.append(client.expand(**order).result(SECONDS))

        busy = threading.Thread(target=keep_ordering)
        busy.start()
        try:
            for _ in range(3):
                save(running.config, tmp_path / "copy")
        finally:
            enough.set()
            busy.join()
    copy = tmp_path / "copy"
    restore(copy, tmp_path / "elsewhere", empty_url)
    shutil.rmtree(tmp_path / "data")
    with serving(tmp_path / "elsewhere", empty_url) as running, Client(running.address) as client:
        for expansion in client.operations("done = false"):  # refused, for their people were named by path
            with pytest.raises(errors.FailedPrecondition, match="was that moved"):
                expansion.result(SECONDS)
        done = list(client.operations("state = SUCCEEDED"))
        assert done
        names = [expansion.result(SECONDS).name for expansion in done]
        assert "audiences/first" in names
        for name_of in names:
            audience = client.audience(name_of)
            assert sum(batch.num_rows for batch in client.members(name_of)) == audience.size == order["k"]
            assert verify(Path(audience.parquet_path).parent, sample_users=100).passed
        # Nothing there that is in nobody's books.
        assert {Path(client.audience(one).parquet_path).parent.name for one in names} == {
            path.name for path in (tmp_path / "elsewhere" / "audiences").iterdir() if "." not in path.name
        }


@pytest.mark.usefixtures("client_programs")
def test_what_was_queued_goes_on(sample_pool: Path, database_url: str, empty_url: str, tmp_path: Path) -> None:
    runtime = ScriptedRuntime()
    runtime.hold()
    config = config_for(tmp_path / "data", database_url=database_url, lease_seconds=1.0)
    with front(config, sample_pool, runtime) as running:
        with Client(running.address) as client:
            names = [order(client).name for _ in range(3)]
            runtime.wait_for(lambda it: it.running == 1)
            assert save(running.config, tmp_path / "copy") == Saved(audiences=0, copied=0, jobs=3, missing=())
            client.operation(names[2]).cancel()
        running.stop()
    (tmp_path / "data").rename(tmp_path / "lost")
    restore(tmp_path / "copy", tmp_path / "data", empty_url)
    config = config_for(tmp_path / "data", database_url=empty_url, lease_seconds=1.0)
    with front(config, sample_pool, ScriptedRuntime()) as running, Client(running.address) as client:
        for name in names:
            assert client.operation(name).result(SECONDS).size == 5


def test_a_second_time_copies_what_is_new_and_drops_what_was_forgotten(sample_pool: Path, tmp_path: Path) -> None:
    config, copy = config_for(tmp_path / "data"), tmp_path / "copy"
    with front(config, sample_pool, ScriptedRuntime()) as running, Client(running.address) as client:
        first = order(client)
        first.result(SECONDS)
        folder = copy / "audiences" / first.name.rpartition("/")[2]
        assert save(running.config, copy).copied == 1
        inode = folder.stat().st_ino
        order(client).result(SECONDS)
        assert save(running.config, copy) == Saved(audiences=2, copied=1, jobs=0, missing=())
        assert folder.stat().st_ino == inode
        assert list((copy / "jobs").iterdir()) == []
    with front(replace_days(config, 1e-9), sample_pool, ScriptedRuntime()):
        pass  # forgets all audiences at its start
    assert save(config, copy).audiences == 0
    assert list((copy / "audiences").iterdir()) == []
    assert [path for path in copy.rglob("*") if path.name.endswith(".tmp") or ".tmp-" in path.name] == []
    assert [
        path for path in copy.rglob("*") if path.is_file() and path.parent == copy and path.stat().st_mode & 0o022
    ] == []
    assert copy.stat().st_mode & 0o077 == 0


def replace_days(config: Config, days: float) -> Config:
    return replace(config, service=replace(config.service, audience_days=days))


def test_an_audience_that_was_removed_by_hand_is_told(
    sample_pool: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with front(config_for(tmp_path / "data"), sample_pool, ScriptedRuntime()) as running:
        with Client(running.address) as client:
            name = order(client, audience_id="spring").name.rpartition("/")[2]
            client.operation(f"operations/{name}").result(SECONDS)
        shutil.rmtree(running.data_dir / "audiences" / name)
        assert run(["backup", str(tmp_path / "copy"), "--set", f"service.data_dir={tmp_path / 'data'}"]) == 0
    said = capsys.readouterr().err
    assert "0 audiences" in said
    assert f"audiences/{name} is in the database, but its folder is gone" in said


def test_an_audience_that_changes_while_it_is_copied_is_copied_again(
    sample_pool: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = config_for(tmp_path / "data")
    with front(config, sample_pool, ScriptedRuntime()) as running, Client(running.address) as client:
        name = order(client).result(SECONDS).name.rpartition("/")[2]
    members = tmp_path / "data" / "audiences" / name / AUDIENCE_NAME
    whole = members.read_bytes()
    members.write_bytes(whole[:-1])  # half-way
    copytree = shutil.copytree

    def copied(source: Path, target: Path, **options: Any) -> None:
        copytree(source, target, **options)
        members.write_bytes(whole)  # and done

    monkeypatch.setattr(shutil, "copytree", copied)
    assert save(config, tmp_path / "copy").damaged == ()
    assert (tmp_path / "copy" / "audiences" / name / AUDIENCE_NAME).read_bytes() == whole
    monkeypatch.undo()
    members.write_bytes(whole[:-1])
    assert save(config, tmp_path / "other").damaged == (name,)


def test_a_disk_that_is_full_is_no_audience_that_is_gone(
    sample_pool: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = config_for(tmp_path / "data")
    with front(config, sample_pool, ScriptedRuntime()) as running, Client(running.address) as client:
        order(client).result(SECONDS)

    def full(source: Path, target: Path, **options: Any) -> None:
        raise shutil.Error([(str(source), str(target), "[Errno 28] No space left on device")])

    monkeypatch.setattr(shutil, "copytree", full)
    with pytest.raises(errors.Unavailable, match="No space left"):
        save(config, tmp_path / "copy")
    assert list((tmp_path / "copy" / "audiences").iterdir()) == []


def test_where_nothing_may_be_saved(sample_pool: Path, tmp_path: Path) -> None:
    config = config_for(tmp_path / "data")
    with pytest.raises(errors.NotFound, match="ever served"):
        save(config, tmp_path / "copy")
    with front(config, sample_pool, ScriptedRuntime()) as running:
        for inside in (tmp_path / "data" / "copy", tmp_path):
            with pytest.raises(errors.InvalidInput, match="lie in each other"):
                save(running.config, inside)
        save(running.config, tmp_path / "copy")
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "something").touch()
    with front(config_for(tmp_path / "other"), sample_pool, ScriptedRuntime()) as running:
        for taken in (tmp_path / "full", tmp_path / "copy"):
            with pytest.raises(errors.FailedPrecondition, match="neither empty nor a copy"):
                save(running.config, taken)
    assert [path.name for path in (tmp_path / "full").iterdir()] == ["something"]
    # A copy that is being served is a data folder by now.
    with (
        front(config_for(tmp_path / "copy"), sample_pool, ScriptedRuntime()),
        pytest.raises(errors.FailedPrecondition, match="in use"),
    ):
        save(config, tmp_path / "copy")


def test_without_pg_dump_it_is_said(
    sample_pool: Path, postgres_url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = config_for(tmp_path / "data", database_url=postgres_url)
    with front(config, sample_pool, ScriptedRuntime()) as running:
        monkeypatch.setenv("PATH", str(tmp_path))
        with pytest.raises(errors.FailedPrecondition, match="client programs"):
            save(running.config, tmp_path / "copy")


def test_a_password_is_in_nobodys_arguments(
    sample_pool: Path, postgres_url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    url = postgres_url.replace("lookalike@", "lookalike:tell-nobody@")
    config = config_for(tmp_path / "data", database_url=url)
    program = tmp_path / "bin" / "pg_dump"
    program.parent.mkdir()
    program.write_text(
        f'#!/bin/sh\necho "$@" > {tmp_path}/arguments; echo "$PGPASSWORD" > {tmp_path}/password; exit 1\n'
    )
    program.chmod(0o755)
    with front(config, sample_pool, ScriptedRuntime()) as running:
        monkeypatch.setenv("PATH", str(program.parent), prepend=":")
        with pytest.raises(errors.Unavailable, match="pg_dump failed"):
            save(running.config, tmp_path / "copy")
    assert "tell-nobody" not in (tmp_path / "arguments").read_text()
    assert (tmp_path / "password").read_text().strip() == "tell-nobody"
    assert not (tmp_path / "copy" / f"{DUMP_NAME}.tmp").exists()
