"""Tenants over gRPC: what is another's is not there; names, priorities, quotas and estimates are one's own."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import audiences
import grpc
import numpy as np
import orders
import pytest
from audiences import Who
from google.longrunning import operations_pb2, operations_pb2_grpc
from google.rpc import error_details_pb2, status_pb2
from orders import order
from serving import SECONDS, Front, ScriptedRuntime, config_for, front

from lookalike import errors
from lookalike.cli.app import run
from lookalike.client import Client
from lookalike.config import Config, QuotasConfig, TenantQuota
from lookalike.pool.snapshot import Pool
from lookalike.v1 import audience_pb2, audience_pb2_grpc

Metadata = audience_pb2.ExpandAudienceMetadata
Validation = audience_pb2.Validation


who, runtime, client, channel = audiences.who, orders.runtime, orders.client, orders.channel


@pytest.fixture
def running(
    runtime: ScriptedRuntime, sample_pool: Path, database_url: str, tmp_path: Path, who: Who
) -> Iterator[Front]:
    service = config_for(tmp_path / "data", database_url=database_url).service
    quotas = QuotasConfig(tenants={"small": TenantQuota(queued=1, per_day=2)})
    with front(Config(service=service, quotas=quotas), sample_pool, runtime) as it:
        yield it


def test_anothers_operations_and_audiences_are_not_there(client: Client, channel: grpc.Channel, who: Who) -> None:
    expansion = order(client, audience_id="spring")
    audience = expansion.result(SECONDS)
    operations: grpc.Channel = operations_pb2_grpc.OperationsStub(channel)
    audiences = audience_pb2_grpc.AudienceServiceStub(channel)
    who.tenant = "rival"
    name, folder = expansion.name, "audiences/" + expansion.name.removeprefix("operations/")
    calls = [
        lambda: operations.GetOperation(operations_pb2.GetOperationRequest(name=name)),
        lambda: operations.WaitOperation(operations_pb2.WaitOperationRequest(name=name)),
        lambda: operations.CancelOperation(operations_pb2.CancelOperationRequest(name=name)),
        lambda: operations.DeleteOperation(operations_pb2.DeleteOperationRequest(name=name)),
        *(
            call
            for it in (audience.name, folder)
            for call in (
                lambda it=it: audiences.GetAudience(audience_pb2.GetAudienceRequest(name=it)),
                lambda it=it: audiences.ListAudienceMembers(audience_pb2.ListAudienceMembersRequest(audience=it)),
                lambda it=it: list(
                    audiences.StreamAudienceMembers(audience_pb2.StreamAudienceMembersRequest(audience=it))
                ),
            )
        ),
    ]
    for call in calls:
        with pytest.raises(grpc.RpcError) as caught:
            call()
        assert caught.value.code() is grpc.StatusCode.NOT_FOUND
    assert list(client.operations()) == []
    who.tenant = "acme"
    assert [one.name for one in client.operations()] == [name]
    expansion.delete()
    assert client.audience(audience.name) == audience
    who.tenant = "rival"
    with pytest.raises(errors.NotFound):
        client.audience(audience.name)


def test_ids_are_a_tenants_own(client: Client, who: Who) -> None:
    first = order(client, request_id="r", audience_id="spring")
    assert order(client, request_id="r", audience_id="spring").name == first.name
    who.tenant = "rival"
    second = order(client, request_id="r", audience_id="spring", k=7)
    assert second.name != first.name
    assert second.result(SECONDS).name == "audiences/spring"
    assert client.audience("audiences/spring").size == 7
    who.tenant = "acme"
    assert first.result(SECONDS).name == "audiences/spring"
    assert client.audience("audiences/spring").size == 5


def test_an_audience_has_its_callers_name(client: Client, running: Front) -> None:
    expansion = order(client, audience_id="spring-24")
    assert expansion.metadata().audience == "audiences/spring-24"
    assert expansion.result(SECONDS).name == "audiences/spring-24"
    assert sum(batch.num_rows for batch in client.members("audiences/spring-24")) == 5
    assert len(client.first_members("audiences/spring-24", 3)) == 3
    assert order(client, audience_id="spring-24").name == expansion.name  # whatever its request_id
    with pytest.raises(errors.AlreadyExists) as caught:
        order(client, audience_id="spring-24", k=6)
    assert (caught.value.field, caught.value.reason) == ("audience_id", "AUDIENCE_EXISTS")
    with pytest.raises(errors.AlreadyExists):
        client.validate(campaign="spring", seeds=[1], k=6, audience_id="spring-24")
    assert client.validate(campaign="spring", seeds=[1], k=6, audience_id="spring-25").k == 6
    assert order(client).metadata().audience.startswith("audiences/")


@pytest.mark.parametrize("audience_id", ["Spring", "1a", "a_b", "a-", "a" * 64, "../x", "a" * 32, "é", "a\0"])
def test_names_an_audience_cannot_have(client: Client, audience_id: str) -> None:
    with pytest.raises(errors.InvalidInput) as caught:
        order(client, audience_id=audience_id)
    assert caught.value.field == "audience_id"


def test_null_characters_are_refused_by_name(client: Client, channel: grpc.Channel) -> None:
    for field, changes in (("request_id", {"request_id": "a\0"}), ("campaign.name", {"campaign": "a\0"})):
        with pytest.raises(errors.InvalidInput, match="null character") as caught:
            order(client, **changes)
        assert caught.value.field == field
    with pytest.raises(errors.InvalidInput) as caught:
        list(client.operations("campaign = '\0'"))
    assert caught.value.field == "filter"


def test_a_priority_goes_first(client: Client, channel: grpc.Channel, runtime: ScriptedRuntime) -> None:
    runtime.hold()
    order(client)
    runtime.wait_for(lambda r: r.running == 1)
    queued = [order(client, campaign=name, priority=name) for name in ("LOW", "NORMAL", "HIGH")]
    assert [one.metadata().queue_position for one in queued] == [2, 1, 0]
    assert queued[2].metadata().priority == audience_pb2.PRIORITY_HIGH
    assert [one.name for one in client.operations("priority = HIGH")] == [queued[2].name]
    runtime.release()
    for one in queued:
        one.result(SECONDS)
    assert [job.campaign for job in runtime.jobs] == ["spring", "HIGH", "NORMAL", "LOW"]
    with pytest.raises(errors.InvalidInput) as caught:
        order(client, priority="URGENT")
    assert caught.value.field == "priority"
    request = audience_pb2.ExpandAudienceRequest(k=1, priority=9)  # type: ignore[arg-type]
    request.campaign.name = "c"
    request.seed_ids.integers.values.append(1)
    with pytest.raises(grpc.RpcError, match="priority is 9"):
        audience_pb2_grpc.AudienceServiceStub(channel).ExpandAudience(request)


def test_the_command_line_names_and_ranks(
    client: Client, running: Front, runtime: ScriptedRuntime, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    seeds = tmp_path / "seeds.txt"
    seeds.write_text("1\n2\n")
    arguments = ["client", "expand", "--campaign", "c", "--seeds", str(seeds), "-k", "3", "--server", running.address]
    assert run([*arguments, "--audience-id", "spring", "--priority", "high"]) == 0
    operation = client.operation(capsys.readouterr().out.strip())
    assert operation.result(SECONDS).name == "audiences/spring"
    assert operation.metadata().priority == audience_pb2.PRIORITY_HIGH
    assert run([*arguments, "--audience-id", "Spring"]) == 2
    assert "field: audience_id" in capsys.readouterr().err
    assert run([*arguments, "--priority", "urgent"]) == 2
    assert "field: priority" in capsys.readouterr().err


def test_one_tenants_flood_does_not_hold_another_up(client: Client, runtime: ScriptedRuntime, who: Who) -> None:
    runtime.hold()
    flood = [order(client, campaign="flood") for _ in range(10)]
    runtime.wait_for(lambda r: r.running == 1)
    who.tenant = "other"
    other = order(client, campaign="other")
    assert other.metadata().queue_position == 0
    runtime.release()
    other.result(SECONDS)
    who.tenant = "acme"
    for one in flood:
        one.result(SECONDS)
    assert [job.campaign for job in runtime.jobs].index("other") <= 2


def test_a_used_up_quota_is_told_with_its_name_and_a_delay(
    client: Client, channel: grpc.Channel, runtime: ScriptedRuntime, who: Who
) -> None:
    runtime.hold()
    who.tenant = "small"
    order(client)
    runtime.wait_for(lambda r: r.running == 1)
    order(client)
    with pytest.raises(errors.QuotaExceeded) as caught:
        order(client)
    assert caught.value.quota == "quotas.per_day"
    assert caught.value.subject == "tenant:small"
    assert caught.value.retry_seconds > 0
    request = audience_pb2.ExpandAudienceRequest(k=1)
    request.campaign.name = "c"
    request.seed_ids.integers.values.append(1)
    with pytest.raises(grpc.RpcError) as failed:
        audience_pb2_grpc.AudienceServiceStub(channel).ExpandAudience(request)
    assert failed.value.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
    (value,) = (value for key, value in failed.value.trailing_metadata() if key == "grpc-status-details-bin")
    quota, retry = error_details_pb2.QuotaFailure(), error_details_pb2.RetryInfo()
    details = status_pb2.Status.FromString(value).details
    assert any(one.Unpack(quota) for one in details)
    assert any(one.Unpack(retry) for one in details)
    assert [(v.subject, v.description) for v in quota.violations] == [("tenant:small", "quotas.per_day")]
    assert 0 < retry.retry_delay.seconds <= 86_400
    who.tenant = "acme"
    order(client)
    runtime.release()


def test_validate_only_gives_a_verdict_and_an_estimate_and_costs_nothing(
    client: Client, running: Front, runtime: ScriptedRuntime, sample_pool: Path, who: Who
) -> None:
    known = Pool.open(sample_pool).user_ids(np.arange(10)).to_pylist()
    who.tenant = "small"
    runtime.hold()
    for _ in range(5):  # more than its quotas
        few = client.validate(campaign="c", seeds=known[:9], k=1)
        enough = client.validate(campaign="c", seeds=[*known, -1], k=1)
    assert (few.seed_verdict, few.min_seeds) == (Validation.SEED_VERDICT_TOO_FEW, 10)
    assert enough.seed_verdict == Validation.SEED_VERDICT_SUFFICIENT
    assert enough.estimated_wait.ToMilliseconds() == 0
    assert enough.estimated_run.ToMilliseconds() > 0
    order(client)
    runtime.wait_for(lambda r: r.running == 1)
    busy = client.validate(campaign="c", seeds=known, k=1)
    assert busy.estimated_wait.ToMilliseconds() > 0
    order(client)  # two a day, and none of them was spent on validating
    assert len(list(client.operations())) == 2
    assert len(list((running.data_dir / "jobs").iterdir())) == 1  # that of the one that runs
    runtime.release()
