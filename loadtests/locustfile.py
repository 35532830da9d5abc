"""Locust users of the gRPC service, in an open loop: what a scenario plans begins when it is due, and is timed so.

    locust -f loadtests/locustfile.py --headless -u 4 -r 4 --host 127.0.0.1:8500 --scenario burst --dataset DATASET

Several things are timed, since one number would hide the others: `submit` (the call that orders), `operation_done`
(from when it was due to the operation's end), `first_chunk` and `last_chunk` (of the streamed members), `score`. Each
user has histograms of its own, which are merged at the end; their percentiles are exact, Locust's are rounded. With
--tokens there are several tenants, `TENANT.token` each; without, everybody is the one a service on loopback knows.

Knows the protos, and the package's channel and errors.
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

import gevent  # noqa: E402
import grpc  # noqa: E402
import pyarrow as pa  # noqa: E402
import yaml  # noqa: E402
from arrivals import SCENARIOS, TENANTS, Arrival  # noqa: E402
from gevent.lock import RLock  # noqa: E402
from gevent.pool import Group  # noqa: E402
from google.longrunning import operations_pb2, operations_pb2_grpc  # noqa: E402
from google.protobuf import duration_pb2  # noqa: E402
from locust import User, events, task  # noqa: E402
from locust.argument_parser import LocustArgumentParser  # noqa: E402
from locust.env import Environment  # noqa: E402
from locust.exception import StopUser  # noqa: E402
from record import Record, write  # noqa: E402

from lookalike.channel import open_channel  # noqa: E402
from lookalike.dataset.layout import Dataset  # noqa: E402
from lookalike.errors import LookalikeError, QuotaExceeded  # noqa: E402
from lookalike.service.status import from_rpc_error  # noqa: E402
from lookalike.v1 import audience_pb2, audience_pb2_grpc, campaign_pb2, scoring_pb2, scoring_pb2_grpc  # noqa: E402

CALL_SECONDS = 60.0
WAIT_SECONDS = 20  # of one WaitOperation; shorter than a call's deadline
PREPARE_SECONDS = 600.0
LEAD_SECONDS = 2.0  # until the first is due, when all users are there
SCORED_USERS = 100  # of a call

# gRPC keeps a thread of gevent's pool for each call that is under way. There are ten by default: with as many waits for
# operations, all else would wait for one of them to end, and look like a slow service.
gevent.get_hub().threadpool.maxsize = 4096

_records: list[Record] = []
_numbers = itertools.count()
_finished = itertools.count(1)
_lock = RLock()


@events.init_command_line_parser.add_listener  # type: ignore[untyped-decorator]
def _arguments(parser: LocustArgumentParser) -> None:
    here = Path(__file__).parent
    parser.add_argument("--scenario", choices=list(SCENARIOS), default="steady", help="what arrives when")
    parser.add_argument("--seconds", type=float, default=0.0, help="how long things arrive; 0: the scenario's own")
    parser.add_argument("--scale", type=float, default=1.0, help="factor to all its rates")
    parser.add_argument("--drain-seconds", type=float, default=600.0, help="for what has begun to end")
    parser.add_argument("--dataset", required=True, help="folder whose test campaigns are ordered")
    parser.add_argument("--audience-size", type=int, default=1000, help="users of an audience")
    parser.add_argument("--large-size", type=int, default=1_000_000, help="users of a large audience")
    parser.add_argument("--tokens", default="", help="folder with TENANT.token and ca.pem")
    parser.add_argument("--limits", default=str(here / "limits.yaml"), help="what lets pass")
    parser.add_argument("--results", default=str(here / "results"), help="folder for CSV and HTML")


class Plan:
    """What all users share: the arrivals, when they begin, and the audience that is read and scored by."""

    def __init__(self, environment: Environment) -> None:
        options: Any = environment.parsed_options
        scenario = SCENARIOS[options.scenario]
        self.dataset = Dataset.open(Path(options.dataset))
        self.seeds = list(_seeds(self.dataset))
        self.arrivals = scenario.plan(options.seconds or scenario.seconds, options.scale)
        size = options.large_size if scenario.large else options.audience_size
        self.audience = self.members = None
        if any(one.action != "order" for one in self.arrivals):
            tenant = next(one.tenant for one in self.arrivals if one.action != "order")
            self.audience, self.members = _prepared(environment, tenant, self.seeds[0], size)
        self.start = time.perf_counter() + LEAD_SECONDS


class Traffic(User):
    """A part of the arrivals."""

    plan: Plan | None = None

    def on_start(self) -> None:
        """Connections of one's own, a tenant each: channels with equal arguments would share one."""
        options = self.environment.parsed_options
        self.number = next(_numbers)
        self.size = options.audience_size
        self.random = random.Random(self.number)
        self.record = Record()
        _records.append(self.record)
        tenants = list(TENANTS)
        self.channels = {tenant: _channel(self.environment, tenant, self.number) for tenant in tenants}

    def on_stop(self) -> None:
        """Close the connections."""
        for channel in self.channels.values():
            channel.close()

    @task
    def arrive(self) -> None:
        """Begin what is due when it is due, and wait for the rest."""
        try:
            plan = _plan(self.environment)
        except Exception as error:
            self._failed("preparation", f"{type(error).__name__}: {error}")
            gevent.spawn(self.environment.runner.quit)
            raise StopUser from error
        options = self.environment.parsed_options
        users = self.environment.runner.target_user_count
        begun = Group()
        for arrival in plan.arrivals[self.number :: users]:
            gevent.sleep(max(0.0, plan.start + arrival.at - time.perf_counter()))
            begun.spawn(self._begin, plan, arrival)
        begun.join(timeout=options.drain_seconds)
        for _ in range(len(begun)):
            self._failed("arrival", f"has not ended {options.drain_seconds:g} s after the last one was due")
        begun.kill()
        if next(_finished) == users:
            gevent.spawn(self.environment.runner.quit)
        raise StopUser

    def _begin(self, plan: Plan, arrival: Arrival) -> None:
        due = plan.start + arrival.at
        try:
            if arrival.action == "order":
                self._order(plan, arrival.tenant, due)
            elif arrival.action == "read":
                self._read(arrival.tenant, plan.audience, plan.members, due)
            else:
                self._score(plan, arrival.tenant, due)
        except Exception as error:  # a defect here must not look like less load
            self._failed(arrival.action, f"{type(error).__name__}: {error}")
            raise

    def _order(self, plan: Plan, tenant: str, due: float) -> None:
        campaign, seeds = self.random.choice(plan.seeds)
        audiences = audience_pb2_grpc.AudienceServiceStub(self.channels[tenant])
        request = _request(campaign, seeds, self.size)
        operation = self._timed("submit", tenant, due, lambda: audiences.ExpandAudience(request, timeout=CALL_SECONDS))
        if operation is None:
            return
        channel = self.channels[tenant]
        audience = self._timed("operation_done", tenant, due, lambda: _result(channel, operation.name))
        if audience is not None:
            self._read(tenant, audience.name, audience.size, time.perf_counter())

    def _read(self, tenant: str, audience: Any, size: Any, due: float) -> None:
        request = audience_pb2.StreamAudienceMembersRequest(
            audience=audience, encoding=audience_pb2.MEMBER_ENCODING_PACKED
        )
        audiences = audience_pb2_grpc.AudienceServiceStub(self.channels[tenant])
        stream = audiences.StreamAudienceMembers(request, timeout=PREPARE_SECONDS)
        first = self._timed("first_chunk", tenant, due, lambda: next(stream))
        if first is None:
            return

        def rest() -> int:
            members = first.packed.count + sum(message.packed.count for message in stream)
            if members != size:
                raise RuntimeError(f"{members} members of {size} came")
            return int(members)

        self._timed("last_chunk", tenant, due, rest)

    def _score(self, plan: Plan, tenant: str, due: float) -> None:
        _, users = self.random.choice(plan.seeds)
        request = scoring_pb2.ScoreUsersRequest(audience=plan.audience or "")
        request.users.integers.values.extend(self.random.choices(users, k=SCORED_USERS))
        scorer = scoring_pb2_grpc.ScoringServiceStub(self.channels[tenant])

        def scored() -> Any:
            response = scorer.ScoreUsers(request, timeout=CALL_SECONDS)
            if len(response.scores) != SCORED_USERS:
                raise RuntimeError(f"{len(response.scores)} scores of {SCORED_USERS} came")
            return response

        self._timed("score", tenant, due, scored)

    def _timed(self, name: str, tenant: str, due: float, call: Callable[[], Any]) -> Any:
        """The call's result, or None when it failed or was shed; timed from `due` on, for all and for the tenant."""
        result: Any = None
        failure: Exception | None = None
        try:
            result = call()
        except grpc.RpcError as error:
            failure = from_rpc_error(error)
        except (LookalikeError, RuntimeError, StopIteration) as error:
            failure = error
        milliseconds = (time.perf_counter() - due) * 1000
        if name == "submit" and isinstance(failure, QuotaExceeded) and failure.retry_seconds > 0:
            self.record.shed += 1
            name, failure = "refused", None
        if failure is not None:
            self._failed(name, f"{type(failure).__name__}: {failure}")
        else:
            self.record.timed(name, milliseconds)
            self.record.timed(f"{name} {tenant}", milliseconds)
        self.environment.events.request.fire(
            request_type="grpc",
            name=name,
            response_time=milliseconds,
            response_length=result.ByteSize() if hasattr(result, "ByteSize") else 0,
            exception=failure,
        )
        return result

    def _failed(self, name: str, why: str) -> None:
        self.record.failures[f"{name}: {why[:200]}"] += 1


def _plan(environment: Environment) -> Plan:
    """Made by the first user that asks; the others wait, since it is done before anything else runs."""
    with _lock:
        if Traffic.plan is None:
            Traffic.plan = Plan(environment)
        return Traffic.plan


def _channel(environment: Environment, tenant: str, number: int) -> grpc.Channel:
    options: Any = environment.parsed_options
    tokens = Path(options.tokens) if options.tokens else None
    return open_channel(
        str(environment.host).removeprefix("grpc://"),
        token_file=tokens / f"{tenant}.token" if tokens else None,
        ca_file=tokens / "ca.pem" if tokens else None,
        options=[("lookalike.user", f"{tenant} {number}")],
    )


def _seeds(dataset: Dataset) -> Iterator[tuple[str, list[int]]]:
    for campaign in dataset.campaign_ids("test"):
        users, labels = dataset.samples(campaign, "seed")
        yield str(campaign), users.filter(pa.array(labels == 1)).to_pylist()


def _request(campaign: str, seeds: list[int], size: int) -> audience_pb2.ExpandAudienceRequest:
    request = audience_pb2.ExpandAudienceRequest(
        request_id=uuid.uuid4().hex, campaign=campaign_pb2.Campaign(name=campaign), k=size
    )
    request.seed_ids.integers.values.extend(seeds)
    return request


def _result(channel: grpc.Channel, name: str) -> audience_pb2.Audience:
    """The audience of an operation, when it has ended."""
    operations = operations_pb2_grpc.OperationsStub(channel)
    wait = operations_pb2.WaitOperationRequest(name=name, timeout=duration_pb2.Duration(seconds=WAIT_SECONDS))
    while True:  # whoever joins the greenlet gives up some time
        operation = operations.WaitOperation(wait, timeout=WAIT_SECONDS + CALL_SECONDS)
        if operation.done:
            break
    if operation.WhichOneof("result") != "response":
        raise RuntimeError(f"the operation failed: {operation.error.message}")
    response = audience_pb2.ExpandAudienceResponse()
    operation.response.Unpack(response)
    return response.audience


def _prepared(environment: Environment, tenant: str, seeds: tuple[str, list[int]], size: int) -> tuple[str, int]:
    """An audience to read and to score by: its name and members."""
    channel = _channel(environment, tenant, -1)
    with gevent.Timeout(PREPARE_SECONDS):
        audiences = audience_pb2_grpc.AudienceServiceStub(channel)
        audience = _result(channel, audiences.ExpandAudience(_request(*seeds, size), timeout=CALL_SECONDS).name)
    channel.close()
    return audience.name, audience.size


@events.quitting.add_listener  # type: ignore[untyped-decorator]
def _judge(environment: Environment, **_: Any) -> None:
    """Write what was measured, and set the exit code by the limits: 0 within them, 1 beyond."""
    options: Any = environment.parsed_options
    whole = Record()
    for record in _records:
        whole.add(record)
    broken = list(whole.broken(yaml.safe_load(Path(options.limits).read_text())[options.scenario]))
    if Traffic.plan is None:
        broken.append("nothing was begun: see the messages above")
    results = Path(options.results)
    results.mkdir(parents=True, exist_ok=True)
    write(results, options.scenario, whole, broken)
    for row in whole.rows():
        print("{:32} {:>7} x  p50 {:>9}  p95 {:>9}  p99 {:>9}  max {:>9} ms".format(*row))
    print(f"{options.scenario}: {whole.failures.total()} failures, {whole.shed} orders refused")
    for line in broken:
        print(f"beyond the limits: {line}")
    environment.process_exit_code = 1 if broken else 0
