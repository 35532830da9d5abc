"""What the front service refuses, and how it says so: wrong requests, names that are none, where it may not listen."""

from __future__ import annotations

from pathlib import Path

import grpc
import orders
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from google.rpc import error_details_pb2
from orders import detail, order
from serving import SECONDS, Front, ScriptedRuntime, config_for, front

from lookalike import errors
from lookalike.client import Client, Expansion
from lookalike.dataset.layout import Dataset
from lookalike.v1 import audience_pb2, audience_pb2_grpc

pytestmark = pytest.mark.usefixtures("each_database")
each_database, runtime, running = orders.each_database, orders.runtime, orders.running
client, channel = orders.client, orders.channel


def test_a_wrong_request_names_every_field(channel: grpc.Channel, client: Client) -> None:
    request = audience_pb2.ExpandAudienceRequest(k=2**32, request_id="x" * 200)
    with pytest.raises(grpc.RpcError) as caught:
        audience_pb2_grpc.AudienceServiceStub(channel).ExpandAudience(request)
    assert caught.value.code() is grpc.StatusCode.INVALID_ARGUMENT
    bad = detail(caught.value, error_details_pb2.BadRequest())
    assert {v.field for v in bad.field_violations} == {"k", "request_id", "campaign.name", "seed_ids"}
    info = detail(caught.value, error_details_pb2.ErrorInfo())
    assert (info.domain, info.reason) == ("lookalike", "INVALID_INPUT")
    assert list(client.operations()) == []


def test_features_the_model_does_not_know_are_refused_at_the_door(
    sample_dataset: Path, sample_pool: Path, tmp_path: Path
) -> None:
    schema = Dataset.open(sample_dataset).campaign_schema()
    with (
        front(config_for(tmp_path), sample_pool, ScriptedRuntime(), campaign_schema=schema) as running,
        Client(running.address) as client,
    ):
        with pytest.raises(errors.SchemaError, match="unknown feature 'colour'") as caught:
            order(client, features={"colour": "red"})
        assert caught.value.field == "campaign.features.colour"
        many = {f"feature_{'é' * 100}_{n}": "x" for n in range(100)}
        with pytest.raises(errors.InvalidInput, match="and 99 more"):  # and not RESOURCE_EXHAUSTED
            order(client, features=many)
        known = {schema.fields[0].name: None}
        assert order(client, features=known).result(SECONDS).size == 5


def test_seeds_by_path_stay_within_their_folder(sample_pool: Path, tmp_path: Path) -> None:
    seeds_dir = tmp_path / "seeds"
    seeds_dir.mkdir()
    pq.write_table(pa.table({"user_id": [1, 2]}), seeds_dir / "good.parquet")
    pq.write_table(pa.table({"user_id": [1, 2]}), tmp_path / "outside.parquet")
    (seeds_dir / "link.parquet").symlink_to(tmp_path / "outside.parquet")
    runtime = ScriptedRuntime()
    config = config_for(tmp_path / "data", seeds_dir=seeds_dir)
    with front(config, sample_pool, runtime) as running, Client(running.address) as client:

        def order_path(path: str) -> Expansion:
            return client.expand(campaign="c", seeds_path=path, k=1)

        first = client.expand(campaign="c", seeds_path="good.parquet", k=1, request_id="r")
        first.result(SECONDS)
        for outside in ("../outside.parquet", str(tmp_path / "outside.parquet"), "link.parquet"):
            with pytest.raises(errors.InvalidInput, match="outside the server's seeds folder") as caught:
                order_path(outside)
            assert caught.value.field == "seeds_path"
        with pytest.raises(errors.NotFound):
            order_path("none.parquet")
        (seeds_dir / "good.parquet").unlink()  # what was accepted stays so
        assert client.expand(campaign="c", seeds_path="good.parquet", k=1, request_id="r").name == first.name
    assert len(runtime.jobs) == 1


def test_no_seeds_path_without_a_folder(client: Client) -> None:
    with pytest.raises(errors.FailedPrecondition, match="seeds_dir"):
        client.expand(campaign="c", seeds_path="x.parquet", k=1)


def test_names_that_are_none(client: Client, channel: grpc.Channel) -> None:
    with pytest.raises(errors.InvalidInput, match="operations/"):
        client.operation("operations/../../etc").metadata()
    with pytest.raises(errors.NotFound):
        client.operation("operations/" + "0" * 32).metadata()
    with pytest.raises(errors.InvalidInput, match="audiences/"):
        client.audience("audiences/..")
    with pytest.raises(errors.NotFound):
        client.audience("audiences/" + "0" * 32)


def test_an_audience_somebody_removed(client: Client, running: Front) -> None:
    expansion = order(client)
    audience = expansion.result(SECONDS)
    folder = running.data_dir / audience.name
    folder.rename(folder.with_name("elsewhere"))
    with pytest.raises(errors.NotFound):
        expansion.result(SECONDS)
    with pytest.raises(errors.NotFound):
        client.audience(audience.name)


@pytest.mark.parametrize("listen", ["0.0.0.0:0", "[::]:0", "example.com:80", "127.0.0.1", "127.0.0.1:99999"])
def test_only_loopback_without_tls(listen: str, sample_pool: Path, tmp_path: Path) -> None:
    with (
        pytest.raises(errors.InvalidInput) as caught,
        front(config_for(tmp_path, listen=listen), sample_pool, ScriptedRuntime()),
    ):
        pass
    assert caught.value.field == "service.listen"


def test_a_taken_port_and_a_taken_folder_are_told(running: Front, sample_pool: Path, tmp_path: Path) -> None:
    with (
        pytest.raises(errors.FailedPrecondition, match="another server uses"),
        front(config_for(running.data_dir, database_url=""), sample_pool, ScriptedRuntime()),
    ):
        pass
    with (
        pytest.raises(errors.Unavailable, match="cannot listen"),
        front(config_for(tmp_path / "other", listen=running.address, database_url=""), sample_pool, ScriptedRuntime()),
    ):
        pass
