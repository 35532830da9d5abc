"""Seeds and exclusions from acceptance to the end: in the record or in files, never lost, and gone when it is over."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from operations import TENANT, operation, stores
from processes import child, wait_until
from serving import SECONDS, ScriptedRuntime, config_for, front

import lookalike
from lookalike import errors
from lookalike.client import Client
from lookalike.service import people
from lookalike.service.people import People
from lookalike.service.records import State


def parquet_ids(content: bytes) -> list[object]:
    return pq.read_table(pa.BufferReader(content))["user_id"].to_pylist()


@pytest.mark.parametrize("ids", [pa.array([3, -1, 2**63 - 1]), pa.array(["a", "é☕", ""], pa.large_string())])
def test_people_are_the_same_as_files(ids: pa.Array, tmp_path: Path) -> None:
    empty = pa.array([], ids.type)
    wanted = {"seeds.parquet": ids, "exclusions.parquet": ids.slice(1), "none.parquet": empty}
    both = People.of(wanted)
    assert parquet_ids(both.files["seeds.parquet"]) == ids.to_pylist()
    both.write(tmp_path / "both")
    (tmp_path / "both" / "none.parquet").unlink()  # as if it had been killed in between, and then began again
    (tmp_path / "both" / "flag").touch()
    both.write(tmp_path / "both")
    for name, column in wanted.items():
        assert pq.read_table(tmp_path / "both" / name)["user_id"].combine_chunks() == column
    assert {one.name for one in (tmp_path / "both").iterdir()} == {*wanted, "flag"}


def test_how_many_are_few() -> None:
    assert People.of({"seeds.parquet": pa.array(range(30_000))}).few
    assert not People({"seeds.parquet": b"s" * people.MOST_BYTES, "exclusions.parquet": b"e"}).few


@pytest.mark.parametrize("few", [True, False])
def test_a_job_gets_its_people_as_files(
    few: bool, sample_pool: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(people, "MOST_BYTES", 10**6 if few else 0)
    runtime = ScriptedRuntime()
    runtime.hold()
    with front(config_for(tmp_path), sample_pool, runtime) as running, Client(running.address) as client:
        first = client.expand(campaign="a", seeds=[5, 7, 5], exclude=[9], k=5)
        runtime.wait_for(lambda r: r.running == 1)
        waiting, cancelled = (client.expand(campaign=name, seeds=[8], k=5) for name in "bc")
        jobs = running.data_dir / "jobs"
        assert len(list(jobs.iterdir())) == (1 if few else 3)
        cancelled.cancel()
        assert len(list(jobs.iterdir())) == (1 if few else 2)
        (job,) = runtime.jobs
        assert pq.read_table(job.seeds)["user_id"].to_pylist() == [5, 7, 5]
        assert job.exclusions is not None
        assert pq.read_table(job.exclusions)["user_id"].to_pylist() == [9]
        runtime.release()
        assert first.result(SECONDS).seeds.given == 3
        assert waiting.result(SECONDS).seeds.given == 1
        wait_until(lambda: list(jobs.iterdir()) == [])


def test_who_is_refused_leaves_no_files(sample_pool: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(people, "MOST_BYTES", 0)
    runtime = ScriptedRuntime()
    runtime.hold()
    with front(config_for(tmp_path), sample_pool, runtime) as running, Client(running.address) as client:
        client.expand(campaign="a", seeds=[1], k=5, request_id="r")
        with pytest.raises(errors.AlreadyExists):
            client.expand(campaign="b", seeds=[1], k=5, request_id="r")
        client.expand(campaign="a", seeds=[1], k=5, request_id="r")
        assert len(list((running.data_dir / "jobs").iterdir())) == 1
        runtime.release()


def test_one_cancelled_before_it_has_a_folder_is_cancelled(
    sample_pool: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    reached, go, write = threading.Event(), threading.Event(), People.write

    def slow(self: People, folder: Path) -> None:
        reached.set()
        assert go.wait(SECONDS)
        write(self, folder)

    monkeypatch.setattr(People, "write", slow)
    runtime = ScriptedRuntime()
    runtime.hold()
    with front(config_for(tmp_path), sample_pool, runtime) as running, Client(running.address) as client:
        expansion = client.expand(campaign="a", seeds=[1], k=5)
        assert reached.wait(SECONDS)
        expansion.cancel()
        go.set()
        with pytest.raises(errors.Cancelled):
            expansion.result(SECONDS)


async def test_records_of_people_go_with_the_end(database_url: str, tmp_path: Path) -> None:
    async with stores(database_url, tmp_path) as both:
        for name in ("done", "cancelled", "waiting"):
            await both.store.create(operation(name), People({"seeds": name.encode() * 1000, "exclusions": b"x"}))
        assert await both.claim() == "done"
        (claimed,) = [one for one in await both.store.list(TENANT, after=0, limit=9) if one.id == "done"]
        assert await both.leases.people(claimed) == People({"seeds": b"done" * 1000, "exclusions": b"x"})
        await both.leases.finish(claimed, State.SUCCEEDED)
        await both.store.request_cancel(TENANT, "cancelled")
        found = {name: await both.leases.people(operation(name)) for name in ("done", "cancelled", "waiting")}
        assert {name for name, one in found.items() if one is not None} == {"waiting"}
    if not database_url:
        assert b"donedone" not in (tmp_path / "operations.db").read_bytes()
        assert b"waitingwaiting" in (tmp_path / "operations.db").read_bytes()


@pytest.mark.parametrize("name", ["../x", "/etc/x.pth", "a/b", "..", ""])
async def test_a_file_of_the_record_is_never_outside_of_its_folder(
    name: str, database_url: str, tmp_path: Path
) -> None:
    async with stores(database_url, tmp_path) as both:
        await both.store.create(operation("a"), People({name: b"x"}))
        with pytest.raises(errors.DataCorrupted, match="where a name of a file should be"):
            await both.leases.people(operation("a"))


def test_an_operation_whose_folder_is_gone_says_so(
    sample_pool: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(people, "MOST_BYTES", 0)
    runtime = ScriptedRuntime()
    runtime.hold()
    with front(config_for(tmp_path), sample_pool, runtime) as running, Client(running.address) as client:
        client.opt_out([3])
        client.expand(campaign="a", seeds=[1], k=5)
        runtime.wait_for(lambda r: r.running == 1)
        waiting = client.expand(campaign="b", seeds=[1], k=5)
        shutil.rmtree(running.data_dir / "jobs" / waiting.name.rpartition("/")[2])
        runtime.release()
        with pytest.raises(errors.NotFound, match="its seeds are gone"):
            waiting.result(SECONDS)


@contextmanager
def front_process(control: Path, data_dir: Path, pool: Path) -> Iterator[tuple[subprocess.Popen[str], str]]:
    program = Path(__file__).with_name("front_process.py")
    path = os.pathsep.join([str(program.parent), str(Path(lookalike.__file__).parents[1])])
    command = [sys.executable, str(program), str(control), str(data_dir), "", str(pool), "15"]
    with child(command, stdout=subprocess.PIPE, text=True, env={**os.environ, "PYTHONPATH": path}) as process:
        assert process.stdout is not None
        address = process.stdout.readline().strip()
        assert address, "the front did not start"
        yield process, address


def test_what_was_accepted_outlives_a_kill_with_its_people(sample_pool: Path, tmp_path: Path) -> None:
    control, data_dir, orders = tmp_path / "control", tmp_path / "data", 20
    control.mkdir()
    with (
        front_process(control, data_dir, sample_pool) as (process, address),
        Client(address, timeout=SECONDS) as client,
        ThreadPoolExecutor(orders) as together,
    ):
        submitted = [
            together.submit(client.expand, campaign=f"c{n}", seeds=list(range(1, n + 2)), k=5) for n in range(orders)
        ]
        names = [one.result().name for one in submitted]
        process.send_signal(signal.SIGKILL)
        process.wait()
    (control / "release").touch()
    with front_process(control, data_dir, sample_pool) as (_, address), Client(address, timeout=SECONDS) as client:
        for n, name in enumerate(names):
            audience = client.operation(name).result(SECONDS)
            assert (audience.campaign, audience.seeds.given) == (f"c{n}", n + 1)
        assert len(list(client.operations())) == orders
