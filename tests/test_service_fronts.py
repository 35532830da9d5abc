"""Two front processes on one PostgreSQL share the queue; one dies, hangs or ends, and the other does its work."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import grpc
import psutil
import pytest
from processes import child, wait_until

import lookalike
from lookalike import errors
from lookalike.client import Client, Expansion
from lookalike.retrieval.audience import Audience
from lookalike.service.status import from_rpc_error
from lookalike.v1 import audience_pb2, audience_pb2_grpc

ORDERS = 12
SECONDS = 120.0  # more than anything here takes; only a hang gets there

pytestmark = pytest.mark.timeout(600)  # two servers start in each test


class OneFront:
    """A process, its address, and a client of it."""

    def __init__(self, process: subprocess.Popen[str], address: str, client: Client) -> None:
        self.process, self.address, self.client = process, address, client

    def send(self, number: signal.Signals) -> None:
        self.process.send_signal(number)


class Fronts:
    """Both, and what their jobs noted."""

    def __init__(self, control: Path, data_dir: Path, fronts: list[OneFront]) -> None:
        self.control, self.data_dir = control, data_dir
        self.first, self.second = fronts

    def release(self) -> None:
        (self.control / "release").touch()

    def notes(self, what: str) -> list[tuple[str, int]]:
        """Operations and processes that began, or ended."""
        path = self.control / "log"
        lines = [line.split() for line in path.read_text().splitlines()] if path.exists() else []
        return [(name, int(pid)) for word, name, pid in lines if word == what]

    def of(self, front: OneFront) -> list[str]:
        """Operations a front has begun."""
        return [name for name, pid in self.notes("begin") if pid == front.process.pid]


@pytest.fixture
def lease_seconds(request: pytest.FixtureRequest) -> float:
    return float(getattr(request, "param", 2.0))


@pytest.fixture
def fronts(postgres_url: str, sample_pool: Path, tmp_path: Path, lease_seconds: float) -> Iterator[Fronts]:
    control, data_dir = tmp_path / "control", tmp_path / "data"
    control.mkdir()
    arguments = [str(one) for one in (control, data_dir, postgres_url, sample_pool, lease_seconds)]
    with contextlib.ExitStack() as stack:
        processes = [started(stack, arguments) for _ in range(2)]  # both at once: one of them makes the database
        running = []
        for process in processes:
            address = address_of(process)
            running.append(OneFront(process, address, stack.enter_context(Client(address, timeout=SECONDS))))
        yield Fronts(control, data_dir, running)


def started(stack: contextlib.ExitStack, arguments: list[str]) -> subprocess.Popen[str]:
    """A front that ends with the stack."""
    program = Path(__file__).with_name("front_process.py")
    path = os.pathsep.join([str(program.parent), str(Path(lookalike.__file__).parents[1])])
    environment = {**os.environ, "PYTHONPATH": path}
    command = [sys.executable, str(program), *arguments]
    return stack.enter_context(child(command, stdout=subprocess.PIPE, text=True, env=environment))


def address_of(process: subprocess.Popen[str]) -> str:
    """What it prints when it serves."""
    assert process.stdout is not None
    address = process.stdout.readline().strip()
    assert address, "a front did not start"
    return address


def order(client: Client, **changes: object) -> Expansion:
    return client.expand(**{"campaign": "spring", "seeds": [1, 2, 3], "k": 5, **changes})


def ordered_at_both(fronts: Fronts) -> list[str]:
    """Names of operations, accepted at both fronts; each runs two, and the others wait."""
    clients = (fronts.first.client, fronts.second.client)
    names = [order(clients[n % 2], campaign=f"c{n}").name for n in range(ORDERS)]
    wait_until(lambda: len(fronts.notes("begin")) == 4)
    assert len(fronts.of(fronts.first)) == len(fronts.of(fronts.second)) == 2
    return names


def check_all_done_once(fronts: Fronts, front: OneFront, names: list[str]) -> None:
    for n, name in enumerate(names):
        audience = front.client.operation(name).result(SECONDS)
        assert (audience.campaign, audience.size) == (f"c{n}", 5)
        assert Audience.open(Path(audience.parquet_path).parent).num_members == 5
    ids = {name.removeprefix("operations/") for name in names}
    assert Counter(name for name, _ in fronts.notes("end")) == Counter(ids)
    wait_until(lambda: list((fronts.data_dir / "jobs").iterdir()) == [])
    assert {one.name for one in (fronts.data_dir / "audiences").iterdir()} == ids


def test_a_killed_fronts_work_is_done_by_the_other_once(fronts: Fronts) -> None:
    names = ordered_at_both(fronts)
    lost = fronts.of(fronts.first)
    fronts.first.send(signal.SIGKILL)
    fronts.first.process.wait()
    fronts.release()
    check_all_done_once(fronts, fronts.second, names)
    assert set(lost) <= set(fronts.of(fronts.second))
    attempts = {
        name.removeprefix("operations/"): fronts.second.client.operation(name).metadata().attempts for name in names
    }
    assert {name for name, count in attempts.items() if count == 2} == set(lost)


def test_a_job_that_kills_its_server_is_given_up_and_its_neighbour_is_not(sample_pool: Path, tmp_path: Path) -> None:
    control = tmp_path / "control"
    control.mkdir()
    arguments = [str(control), str(tmp_path / "data"), "", str(sample_pool), "60"]
    with contextlib.ExitStack() as stack:
        first = started(stack, arguments)
        with Client(address_of(first), timeout=SECONDS) as client:
            name = order(client, campaign="deadly").name
            neighbour = order(client, campaign="innocent").name
        wait_until(lambda: (control / "log").exists() and len((control / "log").read_text().splitlines()) == 2)
        first.send_signal(signal.SIGTERM)  # by an operator: that run is not counted
        first.wait(SECONDS)
        (control / "release").touch()
        for _ in range(2):
            assert started(stack, arguments).wait(SECONDS) == -signal.SIGKILL
        with Client(address_of(started(stack, arguments)), timeout=SECONDS) as client:
            with pytest.raises(errors.Unavailable, match="given up after 2 runs") as caught:
                client.operation(name).result(SECONDS)
            assert caught.value.reason == "SERVER_DIED"
            assert client.operation(name).metadata().attempts == 3
            assert client.operation(neighbour).result(SECONDS).size == 5
            assert order(client).result(SECONDS).size == 5
        assert len(list((tmp_path / "data" / "audiences").iterdir())) == 2


def test_a_front_that_hangs_loses_its_work_and_changes_nothing_when_it_wakes(fronts: Fronts) -> None:
    names = ordered_at_both(fronts)
    fronts.first.send(signal.SIGSTOP)
    fronts.release()
    check_all_done_once(fronts, fronts.second, names)
    before = [fronts.second.client.operation(name).metadata() for name in names]
    fronts.first.send(signal.SIGCONT)
    later = [order(fronts.first.client, campaign=f"c{ORDERS + n}").name for n in range(4)]
    check_all_done_once(fronts, fronts.first, names + later)
    assert [fronts.first.client.operation(name).metadata() for name in names] == before


@pytest.mark.parametrize("lease_seconds", [600.0], indirect=True)
def test_a_front_that_ends_hands_its_work_over_at_once(fronts: Fronts) -> None:
    names = ordered_at_both(fronts)
    fronts.first.send(signal.SIGTERM)
    fronts.first.process.wait(SECONDS)
    fronts.release()
    check_all_done_once(fronts, fronts.second, names)


def unread(address: str) -> int:
    """Connections to the address on which something has come that its process has not read."""
    port = f":{int(address.rpartition(':')[2]):04X}"
    tables = [Path("/proc/net") / name for name in ("tcp", "tcp6")]
    lines = [line.split() for table in tables for line in table.read_text().splitlines()[1:]]
    return sum(1 for line in lines if line[1].endswith(port) and int(line[4].partition(":")[2], 16))


def test_calls_that_a_front_has_not_begun_when_it_ends_may_be_tried_again(fronts: Fronts) -> None:
    request = audience_pb2.ExpandAudienceRequest(k=5, campaign={"name": "spring"})
    request.seed_ids.integers.values.extend([1, 2, 3])
    with contextlib.ExitStack() as stack:
        channels = [
            stack.enter_context(grpc.insecure_channel(fronts.first.address, options=[("test.channel", n)]))
            for n in range(8)
        ]
        for channel in channels:
            grpc.channel_ready_future(channel).result(SECONDS)
        fronts.first.send(signal.SIGSTOP)
        # Else it may still take one of them; and a connection of its own client may have something unread, too.
        wait_until(lambda: psutil.Process(fronts.first.process.pid).status() == psutil.STATUS_STOPPED)
        stubs = [audience_pb2_grpc.AudienceServiceStub(channel) for channel in channels]
        calls = [stub.ExpandAudience.future(request, timeout=SECONDS) for stub in stubs]
        wait_until(lambda: unread(fronts.first.address) >= len(calls))
        fronts.first.send(signal.SIGTERM)
        fronts.first.send(signal.SIGCONT)
        failed = [error for call in calls if (error := call.exception()) is not None]
        assert grpc.StatusCode.CANCELLED in {error.code() for error in failed}
        assert {type(from_rpc_error(error)) for error in failed} == {errors.Unavailable}


@pytest.mark.parametrize("lease_seconds", [600.0], indirect=True)
def test_cancelling_and_waiting_reach_the_other_front(fronts: Fronts) -> None:
    names = ordered_at_both(fronts)
    at_first = f"operations/{fronts.of(fronts.first)[0]}"
    fronts.second.client.operation(at_first).cancel()
    with pytest.raises(errors.Cancelled, match="stopped by its flag"):
        fronts.second.client.operation(at_first).result(SECONDS)
    metadata = fronts.first.client.operation(at_first).metadata()
    assert metadata.cancel_requested
    last = fronts.first.client.operation(names[-1])
    fronts.second.client.operation(names[-1]).cancel()
    with pytest.raises(errors.Cancelled):
        last.result(SECONDS)
    fronts.release()
    for name in set(names) - {at_first, names[-1]}:
        for front in (fronts.first, fronts.second):  # whichever ran it
            assert front.client.operation(name).result(SECONDS).size == 5


def test_one_request_id_at_both_fronts_is_one_operation(fronts: Fronts) -> None:
    first, second = (order(one.client, request_id="r", audience_id="spring") for one in (fronts.first, fronts.second))
    assert first.name == second.name
    fronts.release()
    assert first.result(SECONDS) == second.result(SECONDS)
    assert fronts.second.client.audience("audiences/spring").size == 5
    assert len(fronts.notes("begin")) == 1
