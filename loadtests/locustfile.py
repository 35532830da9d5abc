"""Locust users of the gRPC service: each orders an expansion, follows it to its end, and reads the audience.

    locust -f loadtests/locustfile.py --headless -u 4 -r 2 -t 60s --host 127.0.0.1:8500 --dataset DATASET

Four things are timed, since one number would hide three: `submit` (the call that orders), `operation_done` (from the
order to its end), `first_chunk` and `last_chunk` (of the streamed members). Knows the protos only.
"""

from __future__ import annotations

import itertools
import random
import time
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import grpc.experimental.gevent

grpc.experimental.gevent.init_gevent()  # before any channel: gRPC would block every user of the process

import grpc  # noqa: E402
import yaml  # noqa: E402
from google.longrunning import operations_pb2, operations_pb2_grpc  # noqa: E402
from google.protobuf import duration_pb2  # noqa: E402
from locust import User, constant, events, task  # noqa: E402
from locust.argument_parser import LocustArgumentParser  # noqa: E402
from locust.env import Environment  # noqa: E402
from locust.stats import RequestStats  # noqa: E402

from lookalike.dataset.layout import Dataset  # noqa: E402
from lookalike.v1 import audience_pb2, audience_pb2_grpc, campaign_pb2  # noqa: E402

CALL_SECONDS = 10.0
WAIT_SECONDS = 5  # of one WaitOperation; shorter than a call's deadline
OPERATION_SECONDS = 120.0

_numbers = itertools.count()


@events.init_command_line_parser.add_listener  # type: ignore[untyped-decorator]
def _arguments(parser: LocustArgumentParser) -> None:
    parser.add_argument("--dataset", required=True, help="folder whose test campaigns are ordered")
    parser.add_argument("--audience-size", type=int, default=500, help="users of an audience")
    parser.add_argument("--limits", default=str(Path(__file__).with_name("limits.yaml")), help="what lets pass")


class Marketer(User):
    """Closed loop: the next order follows the last audience."""

    wait_time = constant(0.2)

    def on_start(self) -> None:
        """A connection of one's own: channels with equal arguments would share one."""
        options = self.environment.parsed_options
        self.dataset = Dataset.open(Path(options.dataset))
        self.size = options.audience_size
        self.random = random.Random(next(_numbers))
        target = self.environment.host.removeprefix("grpc://")
        self.channel = grpc.insecure_channel(target, options=[("lookalike.user", self.random.random())])
        self.audiences = audience_pb2_grpc.AudienceServiceStub(self.channel)
        self.operations = operations_pb2_grpc.OperationsStub(self.channel)

    def on_stop(self) -> None:
        """Close the connection."""
        self.channel.close()

    @task
    def expand(self) -> None:
        """Order, wait, read."""
        request = self._request()
        started = time.perf_counter()
        operation = self._timed("submit", started, lambda: self.audiences.ExpandAudience(request, timeout=CALL_SECONDS))
        if operation is None:
            return
        response = self._timed("operation_done", started, lambda: self._finished(operation.name))
        if response is not None:
            self._read(response.audience.name, response.audience.size)

    def _request(self) -> audience_pb2.ExpandAudienceRequest:
        campaign = self.random.choice(self.dataset.campaign_ids("test"))
        users, labels = self.dataset.samples(campaign, "seed")
        request = audience_pb2.ExpandAudienceRequest(
            request_id=uuid.uuid4().hex,
            campaign=campaign_pb2.Campaign(name=str(campaign)),
            k=self.size,
        )
        request.seed_ids.integers.values.extend(users.to_numpy(zero_copy_only=False)[labels == 1].tolist())
        return request

    def _finished(self, name: str) -> audience_pb2.ExpandAudienceResponse:
        deadline = time.monotonic() + OPERATION_SECONDS
        wait = operations_pb2.WaitOperationRequest(name=name, timeout=duration_pb2.Duration(seconds=WAIT_SECONDS))
        while time.monotonic() < deadline:
            operation = self.operations.WaitOperation(wait, timeout=WAIT_SECONDS + CALL_SECONDS)
            if operation.done:
                break
        else:
            raise TimeoutError(f"{name} is not done after {OPERATION_SECONDS:g} s")
        if operation.WhichOneof("result") != "response":
            raise RuntimeError(f"{name}: {operation.error.message}")
        response = audience_pb2.ExpandAudienceResponse()
        operation.response.Unpack(response)
        return response

    def _read(self, name: str, size: int) -> None:
        started = time.perf_counter()
        stream = self.audiences.StreamAudienceMembers(
            audience_pb2.StreamAudienceMembersRequest(audience=name), timeout=CALL_SECONDS
        )
        first = self._timed("first_chunk", started, lambda: next(stream))
        if first is None:
            return

        def rest() -> int:
            members = len(first.scores) + sum(len(chunk.scores) for chunk in stream)
            if members != size:
                raise RuntimeError(f"{members} members of {size} came")
            return members

        self._timed("last_chunk", started, rest)

    def _timed(self, name: str, started: float, call: Callable[[], Any]) -> Any:
        """The call's result, or None when it failed; either is counted, from `started` on."""
        result: Any = None
        failure = None
        try:
            result = call()
        except (grpc.RpcError, RuntimeError, TimeoutError, StopIteration) as error:
            failure = error
        self.environment.events.request.fire(
            request_type="grpc",
            name=name,
            response_time=(time.perf_counter() - started) * 1000,
            response_length=result.ByteSize() if hasattr(result, "ByteSize") else 0,
            exception=failure,
        )
        return result


@events.quitting.add_listener  # type: ignore[untyped-decorator]
def _judge(environment: Environment, **_: Any) -> None:
    """Set the exit code by the limits: 0 within them, 1 beyond."""
    options: Any = environment.parsed_options
    limits = yaml.safe_load(Path(options.limits).read_text())
    broken = list(_broken(environment.stats, limits))
    for line in broken:
        print(f"beyond the limits: {line}")
    environment.process_exit_code = 1 if broken else 0


def _broken(stats: RequestStats, limits: dict[str, Any]) -> Iterator[str]:
    if stats.total.num_failures > limits["failures"]:
        yield f"{stats.total.num_failures} failures, {limits['failures']} allowed"
    for name, least in limits["requests"].items():
        count = stats.get(name, "grpc").num_requests
        if count < least:
            yield f"{count} x {name}, at least {least} expected"
    for name, most in limits["p95_ms"].items():
        p95 = stats.get(name, "grpc").get_response_time_percentile(0.95)
        if p95 > most:
            yield f"{name} p95 {p95:.0f} ms, {most} allowed"
