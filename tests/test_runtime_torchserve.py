"""TorchServe as a runtime, with the real TorchServe and a handler of ours that loads no model."""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import AsyncIterator, Callable
from dataclasses import replace
from pathlib import Path

import psutil
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import pytest_asyncio
from processes import alive, child, wait_until, workers
from serving import CHECKPOINT, SECONDS, write_audience

import lookalike
from lookalike import errors
from lookalike.config import Config, TorchServeConfig
from lookalike.retrieval.receipt import Progress
from lookalike.runtime import torchserve_leftovers as leftovers
from lookalike.runtime.archive import build_archive
from lookalike.runtime.job import ExpansionJob
from lookalike.runtime.torchserve import TorchServeRuntime
from lookalike.runtime.torchserve_client import TorchServeClient
from lookalike.runtime.torchserve_instance import Server, TorchServeInstance
from lookalike.runtime.torchserve_process import Key, Keys, TorchServeProcess

STUB = Path(__file__).with_name("torchserve_stub.py")

# One TorchServe, on one loop, for all tests that leave it well.
module_loop = pytest.mark.asyncio(loop_scope="module")


@pytest.fixture(scope="module")
def config(tmp_path_factory: pytest.TempPathFactory) -> TorchServeConfig:
    folder = tmp_path_factory.mktemp("a folder, with spaces é")
    for name in ("model.safetensors", "checkpoint.json"):
        (folder / name).write_text("{}")
    settings = Config(torchserve=TorchServeConfig(archive=folder / "stub.mar", workers=2, startup_timeout_seconds=60))
    build_archive(folder, settings.torchserve.archive, settings, handler=STUB)
    return settings.torchserve


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def runtime(
    config: TorchServeConfig, tmp_path_factory: pytest.TempPathFactory
) -> AsyncIterator[TorchServeRuntime]:
    log = tmp_path_factory.mktemp("log") / "logs" / "torchserve.log"
    async with TorchServeRuntime(config, log_file=log, checkpoint=CHECKPOINT) as it:
        group = it.pid
        yield it
    assert group is not None
    assert alive(group) == []


def server_of(runtime: TorchServeRuntime) -> Server:
    server = runtime.instances[0]._server
    assert server is not None
    return server


def job_of(folder: Path, campaign: str) -> ExpansionJob:
    pq.write_table(pa.table({"user_id": [1, 2]}), folder / "seeds.parquet")
    return ExpansionJob(
        job_id=campaign,
        campaign=campaign,
        seeds=folder / "seeds.parquet",
        k=2,
        pool=folder / "pool",
        output=folder / "audience",
        cancel_flag=folder / "cancel",
    )


async def until(condition: Callable[[], bool]) -> None:
    await asyncio.to_thread(wait_until, condition)


@module_loop
async def test_a_job_runs_and_its_progress_comes(runtime: TorchServeRuntime, tmp_path: Path) -> None:
    job = job_of(tmp_path, "quick")
    expected = write_audience(job, pa.array([5, 6]))
    steps: list[Progress] = []
    assert await runtime.run(job, steps.append) == expected
    assert [step.stage.value for step in steps[:2]] == ["MATCHING", "SCORING"]
    assert await runtime.ready()
    assert (
        runtime.instances[0].log_file.parent.stat().st_mode & 0o077 == 0
    )  # by default the data folder, which it makes


@module_loop
async def test_as_many_jobs_at_once_as_workers(runtime: TorchServeRuntime, tmp_path: Path) -> None:
    assert runtime.capacity == 2
    pids: set[int] = set()
    both = asyncio.Event()

    def note(step: Progress) -> None:
        pids.add(step.done)
        if len(pids - {0}) == 2:
            both.set()

    job = job_of(tmp_path, "until cancelled")
    runs = [asyncio.create_task(runtime.run(job, note)) for _ in range(2)]
    await asyncio.wait_for(both.wait(), SECONDS)
    job.cancel_flag.touch()
    for run in runs:
        with pytest.raises(errors.Cancelled, match="as the flag said"):
            await run


@module_loop
async def test_the_handlers_error_comes_with_field_and_reason(runtime: TorchServeRuntime, tmp_path: Path) -> None:
    with pytest.raises(errors.EmptySeeds, match="café: none of 3 seeds ☕") as caught:
        await runtime.run(job_of(tmp_path, "refuse"), lambda step: None)
    assert (caught.value.field, caught.value.reason) == ("seeds", "NONE")


@module_loop
async def test_a_defect_of_the_handler_is_no_reason_to_try_again(runtime: TorchServeRuntime, tmp_path: Path) -> None:
    with pytest.raises(errors.InternalError, match="Prediction failed"):
        await runtime.run(job_of(tmp_path, "crash"), lambda step: None)
    await until(lambda: "ZeroDivisionError: of the handler's" in runtime.instances[0].log_file.read_text())


@module_loop
async def test_a_worker_that_exits_is_unavailable_and_replaced(runtime: TorchServeRuntime, tmp_path: Path) -> None:
    before = runtime.health().worker_restarts
    with pytest.raises(errors.Unavailable, match="Worker died") as caught:
        await runtime.run(job_of(tmp_path, "exit"), lambda step: None)
    assert caught.value.reason == "WORKER_DIED"
    job = job_of(tmp_path, "quick")
    write_audience(job, pa.array([5, 6]))
    await runtime.run(job, lambda step: None)
    await until(lambda: runtime.health().worker_restarts > before)
    await until(lambda: runtime.health().workers_ready == 2)
    assert runtime.health().up
    assert len(runtime.health().pids) >= 4  # leash, JVM, workers


@module_loop
async def test_a_killed_worker_is_unavailable(runtime: TorchServeRuntime, tmp_path: Path) -> None:
    def kill(step: Progress) -> None:
        if step.done:  # the worker's process id
            os.kill(step.done, signal.SIGKILL)

    with pytest.raises(errors.Unavailable, match="Worker died"):
        await runtime.run(job_of(tmp_path, "until cancelled"), kill)
    assert runtime.pid is not None
    group = runtime.pid
    await until(lambda: len(workers(group)) == 2)


@module_loop
async def test_keys_are_renewed_before_and_after_they_expire(runtime: TorchServeRuntime) -> None:
    process = server_of(runtime).process
    keys = process.keys()
    assert keys is not None
    first = keys.inference.token

    async def ping_with(stale: Key, times: int) -> None:
        remembered = times * [Keys(stale, keys.management, keys.api)]
        client = TorchServeClient(process.ports, lambda: remembered.pop() if remembered else process.keys())
        assert (await client.ping())["version"] == "stub"
        assert remembered == []
        await client.close()

    await ping_with(Key("wrong", time.time() + 3600), 1)  # refused; the file knows a better one
    await ping_with(Key(first, time.time() + 1), 2)  # about to expire, and the file knows no better one
    renewed = process.keys()
    assert renewed is not None
    assert renewed.inference.token != first
    assert (await server_of(runtime).client.ping())["version"] == "stub"  # which still had the first


@module_loop
async def test_the_settings_reach_the_handler(runtime: TorchServeRuntime) -> None:
    said = await server_of(runtime).client.ping()
    assert said["scoring"]["device"] == "auto"
    assert said["adaptation"]["negatives_per_seed"] == 20


@module_loop
async def test_everything_listens_on_loopback_only(runtime: TorchServeRuntime) -> None:
    assert runtime.pid is not None
    listening = [
        connection.laddr.ip
        for process in alive(runtime.pid)
        for connection in process.net_connections(kind="inet")
        if connection.status == psutil.CONN_LISTEN
    ]
    assert len(listening) >= 5
    assert {ip.removeprefix("::ffff:") for ip in listening} == {"127.0.0.1"}


@module_loop
async def test_a_call_without_a_key_is_refused(runtime: TorchServeRuntime) -> None:
    ports = server_of(runtime).process.ports
    wrong = Keys(Key("x", time.time() + 3600), Key("x", time.time() + 3600), "x")
    client = TorchServeClient(ports, lambda: wrong)
    with pytest.raises(errors.Unavailable, match="gives no new inference key"):
        await client.ping()
    await client.close()


def _places(group: int, log: Path, secrets: list[str]) -> set[str]:
    """Where any of the secrets can be found by who looks at processes, the log, or files that others may read."""
    work_dir = Path(psutil.Process(group).cwd())
    assert work_dir.stat().st_mode & 0o077 == 0
    texts = {path.name: path.read_text() for path in (log, *work_dir.iterdir()) if path.is_file()}
    for process in alive(group):
        texts[f"process {process.name()}"] = " ".join([*process.cmdline(), *process.environ().values()])
    return {name for name, text in texts.items() if any(secret in text for secret in secrets)}


@module_loop
async def test_its_keys_are_ours_alone(runtime: TorchServeRuntime) -> None:
    process = server_of(runtime).process
    keys = process.keys()
    assert keys is not None
    secrets = [keys.inference.token, keys.management.token, keys.api]
    assert _places(process.pid, runtime.instances[0].log_file, secrets) == {"key_file.json"}


@module_loop
async def test_an_archive_of_another_checkpoint_is_refused(
    runtime: TorchServeRuntime, config: TorchServeConfig, tmp_path: Path
) -> None:
    other = TorchServeInstance(config, log_file=tmp_path / "log", checkpoint="d" * 64)
    with pytest.raises(errors.FailedPrecondition, match="holds checkpoint cccc") as caught:
        await other._until_ready(server_of(runtime))
    await other.stop()
    assert caught.value.reason == "CHECKPOINT_MISMATCH"


@module_loop
async def test_a_killed_jvm_ends_the_job_and_is_replaced(config: TorchServeConfig, tmp_path: Path) -> None:
    async with TorchServeRuntime(config, log_file=tmp_path / "log", checkpoint=CHECKPOINT) as runtime:
        group = runtime.pid
        assert group is not None

        def kill(step: Progress) -> None:
            for process in alive(group):
                if process.name() == "java":
                    process.kill()

        with pytest.raises(errors.Unavailable):
            await runtime.run(job_of(tmp_path, "until cancelled"), kill)
        await until(lambda: alive(group) == [])  # its workers too
        job = job_of(tmp_path, "quick")
        write_audience(job, pa.array([5]))
        await runtime.run(job, lambda step: None)
        assert runtime.pid not in (None, group)
        assert (runtime.health().restarts, runtime.health().worker_restarts) == (1, 0)


def killed_by_force(config: TorchServeConfig, folder: Path, *, leash_too: bool) -> tuple[int, Path]:
    """Start a TorchServe from a process that is then killed; returns its group and its work folder."""
    code = f"""
import sys, time
from pathlib import Path
from lookalike.runtime.torchserve_process import TorchServeProcess
process = TorchServeProcess(Path({str(config.archive)!r}), Path({str(folder / "log")!r}))
while process.keys() is None:
    time.sleep(0.05)
print(process.pid, flush=True)
time.sleep({SECONDS})
"""
    environment = {**os.environ, "PYTHONPATH": str(Path(lookalike.__file__).parents[1]), "TMPDIR": str(folder)}
    with child([sys.executable, "-c", code], stdout=subprocess.PIPE, env=environment, text=True) as front:
        assert front.stdout is not None
        group = int(front.stdout.readline())
        wait_until(lambda: len(workers(group)) == 2)
        work_dir = Path(psutil.Process(group).cwd())
        if leash_too:
            os.kill(group, signal.SIGKILL)
    return group, work_dir


def test_nothing_outlives_a_front_killed_by_force(config: TorchServeConfig) -> None:
    with tempfile.TemporaryDirectory() as folder:  # short, for sockets
        group, work_dir = killed_by_force(config, Path(folder), leash_too=False)
        wait_until(lambda: alive(group) == [])
        assert not work_dir.exists()


def test_a_front_killed_with_its_leash_is_cleared_away_at_the_next_start(config: TorchServeConfig) -> None:
    with tempfile.TemporaryDirectory() as folder:
        group, work_dir = killed_by_force(config, Path(folder), leash_too=True)
        wait_until(lambda: group not in {process.pid for process in alive(group)})
        assert alive(group)
        held = Path(tempfile.mkdtemp(dir=folder, prefix=leftovers.PREFIX))
        lock = leftovers.hold(held)

        def cleared() -> bool:  # the lock goes with the leash's last thread, a little after its first
            leftovers.remove_abandoned(Path(folder))
            return alive(group) == []

        wait_until(cleared)
        assert not work_dir.exists()
        assert held.exists()
        os.close(lock)
        leftovers.remove_abandoned(Path(folder))
        assert not held.exists()


@module_loop
async def test_a_start_that_fails_leaves_nothing_and_shows_the_log(config: TorchServeConfig, tmp_path: Path) -> None:
    broken = tmp_path / "broken.mar"
    for name in ("model.safetensors", "checkpoint.json"):
        (tmp_path / name).write_text("{}")
    handler = tmp_path / "handler.py"
    handler.write_text(
        "class H:\n    def initialize(self, c): raise RuntimeError('no such planet')\n    handle = None\n"
    )
    build_archive(tmp_path, broken, Config(torchserve=config), handler=handler)
    started: list[TorchServeProcess] = []

    class Recorded(TorchServeInstance):
        async def _until_ready(self, server: Server) -> None:
            started.append(server.process)
            # However long the JVM takes, and whatever it says then.
            await until(lambda: "no such planet" in self.log_file.read_text().rpartition("\n")[0])
            with self.log_file.open("a") as log:
                log.write("and then something else\n" * 200)
            await super()._until_ready(server)

    instance = Recorded(replace(config, archive=broken, startup_timeout_seconds=2), log_file=tmp_path / "log")
    with pytest.raises(errors.Unavailable, match=r"(?s)did not start.*workers are ready.*log.*") as caught:
        await instance.start()
    await instance.stop()
    assert "no such planet" in caught.value.message
    assert [alive(process.pid) for process in started] == [[]]


@module_loop
async def test_no_archive(config: TorchServeConfig, tmp_path: Path) -> None:
    runtime = TorchServeRuntime(replace(config, archive=tmp_path / "none.mar"), log_file=tmp_path / "log")
    with pytest.raises(errors.NotFound, match="lookalike archive"):
        await runtime.start()
