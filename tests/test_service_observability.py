"""What a running front shows of itself: metrics that dashboard and alerts ask for, traces, logs; by a real server."""

from __future__ import annotations

import io
import json
import logging
import re
import socket
import time
import urllib.request
from dataclasses import dataclass, replace
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
from certificates import Authority
from opentelemetry import context, trace
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator
from otlp import Span, receiver
from prometheus_client.parser import text_string_to_metric_families
from queries import alert_rules, dashboard_queries, metrics_of, problems
from serving import SECONDS, ScriptedRuntime, config_for, front

from lookalike import errors, logs
from lookalike.client import Client
from lookalike.config import Config, QuotasConfig, TorchServeConfig
from lookalike.retrieval.receipt import Stage
from lookalike.runtime.archive import build_archive
from lookalike.runtime.inprocess import InProcessRuntime
from lookalike.runtime.torchserve import TorchServeRuntime
from lookalike.runtime.torchserve_logs import as_json
from lookalike.service.metrics import METHODS
from lookalike.training.checkpoint import fingerprint

ROOT = Path(__file__).parents[1]
PARENT = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"
TRACE = PARENT.split("-")[1]
Samples = dict[tuple[str, frozenset[tuple[str, str]]], float]


def free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        port: int = listener.getsockname()[1]
        return port


def scrape(config: Config) -> str:
    with urllib.request.urlopen(f"http://{config.service.metrics_listen}/metrics", timeout=SECONDS) as answer:
        text: str = answer.read().decode()
        return text


def samples_of(text: str) -> Samples:
    return {
        (sample.name, frozenset(sample.labels.items())): sample.value
        for family in text_string_to_metric_families(text)
        for sample in family.samples
    }


def value(samples: Samples, name: str, **labels: str) -> float:
    return samples[name, frozenset(labels.items())]


@dataclass
class Observed:
    """What is left of a front that ran an expansion, refused one and was asked for something that is not there."""

    text: str
    lines: list[dict[str, Any]]
    spans: list[Span]
    operation: str
    seeds: list[Any]

    @property
    def samples(self) -> Samples:
        return samples_of(self.text)


@pytest.fixture(scope="module")
def observed(
    sample_checkpoint: Path,
    sample_pool: Path,
    small_config: Config,
    order: dict[str, Any],
    tmp_path_factory: pytest.TempPathFactory,
) -> Observed:
    stream = io.StringIO()
    target = logging.getLogger("lookalike")
    before = (list(target.handlers), target.level, target.propagate)
    logs.configure("json", stream, logger="lookalike", level=logging.INFO)
    with receiver() as otlp:
        config = replace(
            config_for(
                tmp_path_factory.mktemp("observed"),
                metrics_listen=f"127.0.0.1:{free_port()}",
                otlp_endpoint=otlp.endpoint,
            ),
            adaptation=small_config.adaptation,
            scoring=small_config.scoring,
            quotas=QuotasConfig(per_day=1),
        )
        name = fingerprint(sample_checkpoint)
        with (
            front(
                config,
                sample_pool,
                lambda: InProcessRuntime(sample_checkpoint, config),
                checkpoint=name,
                model_created=time.time() - 3600,
            ) as running,
            Client(running.address) as client,
        ):
            token = context.attach(TraceContextTextMapPropagator().extract({"traceparent": PARENT}))
            try:
                expansion = client.expand(**order, request_id="the-request")
                expansion.result(SECONDS)
            finally:
                context.detach(token)
            with pytest.raises(errors.QuotaExceeded):
                client.expand(**order)
            with pytest.raises(errors.NotFound):
                client.audience("audiences/nothing")
            assert trace.get_current_span() is trace.INVALID_SPAN
            list(client.members(expansion.result(SECONDS).name))
            text = scrape(config)
        spans = otlp.wait_for(lambda spans: any(span.name == "WRITING" for span in spans))
    target.handlers[:], target.level, target.propagate = before
    lines = [json.loads(line) for line in stream.getvalue().splitlines()]
    return Observed(text, lines, spans, expansion.name.split("/")[1], order["seeds"].to_pylist())


def test_an_expansion_is_counted(observed: Observed, pool: Any) -> None:
    samples = observed.samples
    assert value(samples, "audience_operations_total", stage="WRITING", code="OK") == 1
    assert sum(v for (name, _), v in samples.items() if name == "audience_operations_total") == 1
    assert value(samples, "audience_users_scored_total") == pool.num_users
    for stage in set(Stage) - {Stage.RESCORING}:
        assert value(samples, "audience_stage_duration_seconds_count", stage=stage.value) == 1
    assert value(samples, "audience_queue_wait_seconds_count") == 1
    assert value(samples, "audience_queue_depth") == 0
    assert value(samples, "audience_operations_running") == 0
    assert value(samples, "audience_opt_outs_pending") == value(samples, "audience_opt_outs_oldest_seconds") == 0
    assert value(samples, "audience_workers") == 1
    assert 3600 <= value(samples, "audience_model_age_seconds") < 3600 + 10 * SECONDS
    assert value(samples, "audience_store_up") == value(samples, "audience_runtime_up") == 1
    assert value(samples, "audience_quota_refusals_total", quota="quotas.per_day") == 1
    assert value(samples, "audience_quota_refusals_total", quota="quotas.queued") == 0
    assert value(samples, "audience_store_errors_total") == value(samples, "audience_leases_lost_total") == 0


def test_calls_are_counted_by_how_they_ended(observed: Observed) -> None:
    def calls(method: str, code: str) -> float:
        service = next(service for service, name in METHODS.values() if name == method)
        labels = {"grpc_service": service, "grpc_method": method, "grpc_code": code}
        return value(observed.samples, "grpc_server_handled_total", **labels)

    assert calls("ExpandAudience", "OK") == 1
    assert calls("ExpandAudience", "RESOURCE_EXHAUSTED") == 1
    assert calls("GetAudience", "NOT_FOUND") == 1
    assert calls("StreamAudienceMembers", "OK") == 1
    service = METHODS["/lookalike.v1.AudienceService/ExpandAudience"][0]
    labels = {"grpc_service": service, "grpc_method": "ExpandAudience"}
    assert value(observed.samples, "grpc_server_handling_seconds_count", **labels) == 2


def test_nothing_names_a_tenant_a_campaign_or_an_operation(observed: Observed, order: dict[str, Any]) -> None:
    names = {name for _, labels in observed.samples for name, _ in labels}
    assert names <= {
        "stage", "code", "quota", "le", "key", "grpc_service", "grpc_method", "grpc_code", "version", "checkpoint",
    }  # fmt: skip
    assert observed.operation not in observed.text
    assert "local" not in observed.text


@pytest.mark.parametrize(
    ("query", "problem"),
    [
        ("rate(audience_operation_total[5m])", "no metric"),
        ('sum(rate(audience_operations_total{campaign="c"}[5m]))', "has no campaign"),
        ("sum by (tenant) (audience_queue_depth)", "has no tenant"),
        ("rate(audience_queue_depth[5m])", "is a gauge"),
        ("audience_operations_total", "is a counter"),
        ("histogram_quantile(0.5, rate(audience_queue_wait_seconds_bucket[5m]))", "no distribution"),
        ("histogram_quantile(0.5, sum by (le) (rate(audience_queue_wait_seconds_sum[5m])))", "no distribution"),
    ],
)
def test_a_wrong_query_is_found(observed: Observed, query: str, problem: str) -> None:
    assert any(problem in found for found in problems(query, observed.text))


def test_every_query_asks_for_what_there_is(observed: Observed) -> None:
    queries = [*dashboard_queries(), *(rule["expr"] for rule in alert_rules())]
    assert len(queries) > 40
    assert {query: found for query in queries if (found := problems(query, observed.text))} == {}


def test_every_metric_is_shown_or_watched(observed: Observed) -> None:
    queries = [*dashboard_queries(), *(rule["expr"] for rule in alert_rules())]
    asked = {metric for query in queries for metric in metrics_of(query)}
    unseen = [
        family.name
        for family in text_string_to_metric_families(observed.text)
        # When a series began: for Prometheus's own use.
        if not family.name.endswith("_created") and not asked & {sample.name for sample in family.samples}
    ]
    assert unseen == []


def test_every_alert_is_explained_where_it_says() -> None:
    headings = re.findall(r"^### (Lookalike\w+)$", (ROOT / "docs" / "operator.md").read_text(), re.MULTILINE)
    assert headings == [rule["alert"] for rule in alert_rules()]
    for rule in alert_rules():
        assert rule["annotations"]["runbook"] == f"docs/operator.md#{rule['alert'].lower()}"
        assert rule["labels"]["severity"] in ("critical", "warning")
        assert rule["annotations"]["summary"]


def test_every_metric_is_explained(observed: Observed) -> None:
    page = (ROOT / "docs" / "monitoring.md").read_text()
    for family in text_string_to_metric_families(observed.text):
        name = family.name + ("_total" if family.type == "counter" else "")
        assert name.startswith("process_") or name.endswith("_created") or f"`{name}" in page, name


def test_the_trace_of_a_caller_reaches_the_worker(observed: Observed) -> None:
    spans = [span for span in observed.spans if span.trace == TRACE]
    called = next(span for span in spans if span.name == "lookalike.v1.AudienceService/ExpandAudience")
    assert called.service == "lookalike-front"
    assert called.parent == PARENT.split("-")[2]
    expansion = next(span for span in spans if span.name == "expansion")
    assert expansion.parent == called.id
    assert expansion.attributes["lookalike.operation"] == observed.operation
    stages = {span.name: span for span in spans if span.service == "lookalike-worker"}
    assert set(stages) >= {stage.value for stage in Stage} - {"RESCORING"}
    assert {span.parent for span in stages.values()} == {expansion.id}
    refused = [span for span in observed.spans if span.name == called.name and span.failed]
    assert len(refused) == 1


def test_lines_say_what_they_are_about(observed: Observed) -> None:
    about = {"operation": observed.operation, "tenant": "local", "request_id": "the-request"}
    mine = [line for line in observed.lines if line.get("operation") == observed.operation]
    assert {line["logger"] for line in mine} >= {"lookalike.service.dispatcher", "lookalike.runtime.execute"}
    for line in mine:
        assert line.items() >= about.items()
        assert {"time", "level", "message"} <= line.keys()
    accepted = [line for line in observed.lines if line["message"].endswith("is accepted")]
    assert [(line["request_id"], line["trace_id"]) for line in accepted] == [("the-request", TRACE)]


def test_lines_hold_no_people(observed: Observed) -> None:
    numbers = {word for line in observed.lines for word in re.findall(r"(?<![.:\w])\d+(?!\w)", line["message"])}
    counts = {"300", "2000"}  # members and users of the pool
    assert counts <= numbers
    assert len(observed.seeds) > 10
    assert not (numbers - counts) & {str(seed) for seed in observed.seeds}


def test_a_trace_outlives_the_front(
    sample_checkpoint: Path, sample_pool: Path, small_config: Config, order: dict[str, Any], tmp_path: Path
) -> None:
    name = fingerprint(sample_checkpoint)
    with receiver() as otlp:
        config = replace(
            config_for(tmp_path, otlp_endpoint=otlp.endpoint),
            adaptation=small_config.adaptation,
            scoring=small_config.scoring,
        )
        held = ScriptedRuntime()
        held.hold()
        with front(config, sample_pool, held, checkpoint=name) as running, Client(running.address) as client:
            token = context.attach(TraceContextTextMapPropagator().extract({"traceparent": PARENT}))
            operation = client.expand(**order).name
            context.detach(token)
            held.wait_for(lambda it: it.running == 1)
        with (
            front(config, sample_pool, lambda: InProcessRuntime(sample_checkpoint, config), checkpoint=name) as running,
            Client(running.address) as client,
        ):
            client.operation(operation).result(SECONDS)
        spans = otlp.wait_for(lambda spans: any(span.name == "WRITING" for span in spans))
    runs = [span for span in spans if span.name == "expansion"]
    assert {span.trace for span in runs} == {TRACE}
    assert [span.failed for span in runs] == ["CancelledError", ""]
    worker = [span for span in spans if span.service == "lookalike-worker"]
    assert {(span.trace, span.parent) for span in worker} == {(TRACE, runs[1].id)}


def test_a_program_with_a_provider_has_spans_of_its_calls(
    sample_pool: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    exporter = InMemorySpanExporter()
    provider = TracerProvider()
    provider.add_span_processor(SimpleSpanProcessor(exporter))
    monkeypatch.setattr(trace, "get_tracer", provider.get_tracer)
    runtime = ScriptedRuntime()
    with (
        receiver() as otlp,
        front(config_for(tmp_path, otlp_endpoint=otlp.endpoint), sample_pool, runtime) as running,
        Client(running.address) as client,
    ):
        audience = client.expand(campaign="c", seeds=[1, 2, 3], k=5).result(SECONDS)
        assert sum(batch.num_rows for batch in client.members(audience.name)) == 5
        with pytest.raises(errors.NotFound):
            client.audience("audiences/nothing")
        running.stop()
        served = {(span.name, span.parent): span for span in otlp.wait_for(lambda spans: len(spans) >= 5)}
    calls = {span.name.rpartition("/")[2]: span for span in exporter.get_finished_spans()}
    assert calls.keys() == {"ExpandAudience", "WaitOperation", "StreamAudienceMembers", "GetAudience"}
    for span in calls.values():
        assert span.kind is trace.SpanKind.CLIENT
        assert (span.name, f"{span.context.span_id:016x}") in served
    failed = {name: span.status.description for name, span in calls.items() if not span.status.is_unset}
    assert failed == {"GetAudience": "NOT_FOUND"}
    ours = next(span for (name, _), span in served.items() if name.endswith("GetAudience"))
    assert ours.failed == "NOT_FOUND"


def test_torchserve_logs_and_traces_as_the_front_does(
    sample_checkpoint: Path, sample_pool: Path, small_config: Config, order: dict[str, Any], tmp_path: Path
) -> None:
    name = fingerprint(sample_checkpoint)
    log = tmp_path / "torchserve.log"
    with receiver() as otlp:
        served = TorchServeConfig(archive=tmp_path / "lookalike.mar", startup_timeout_seconds=240)
        config = replace(
            config_for(
                tmp_path / "data",
                metrics_listen=f"127.0.0.1:{free_port()}",
                log_format="json",
                otlp_endpoint=otlp.endpoint,
            ),
            adaptation=small_config.adaptation,
            scoring=small_config.scoring,
            torchserve=served,
        )
        build_archive(sample_checkpoint, served.archive, config)

        def runtime() -> TorchServeRuntime:
            return TorchServeRuntime(served, log_file=log, checkpoint=name, log_format="json")

        with front(config, sample_pool, runtime, checkpoint=name) as running, Client(running.address) as client:
            token = context.attach(TraceContextTextMapPropagator().extract({"traceparent": PARENT}))
            expansion = client.expand(**order, request_id="by TorchServe")
            context.detach(token)
            expansion.result(SECONDS * 8)
            samples = samples_of(scrape(config))
            spans = otlp.wait_for(lambda spans: any(span.name == "WRITING" for span in spans))
    worker = [span for span in spans if span.service == "lookalike-worker"]
    assert {span.trace for span in worker} == {TRACE}
    assert value(samples, "audience_workers_ready") == value(samples, "audience_runtime_up") == 1
    assert value(samples, "audience_runtime_memory_bytes") > 50e6
    assert value(samples, "audience_stage_duration_seconds_count", stage="SCORING") == 1
    lines = [json.loads(line) for line in log.read_text().splitlines()]
    assert any("Model server started" in line["message"] for line in lines)
    mine = [line for line in lines if line["logger"] == "lookalike.runtime.execute"]
    assert [line["operation"] for line in mine] == [expansion.name.split("/")[1]] * 2
    assert {(line["tenant"], line["request_id"]) for line in mine} == {("local", "by TorchServe")}
    assert any(line["logger"].startswith("torchserve.") for line in lines)


def test_what_java_prints_past_its_log_becomes_json() -> None:
    ready = '{"time": "2026-01-01T00:00:00.000Z", "level": "WARN", "logger": "torchserve.x", "message": "m"}'
    printed = ["io.grpc.internal.SerializingExecutor run\n", "\n", f"{ready}\n", '  a "quote", 100%\n', "{not: json}"]
    out = io.BytesIO()
    as_json(printed, out)
    written = out.getvalue().decode().splitlines()
    assert ready in written
    messages = [json.loads(line)["message"] for line in written]
    assert messages == ["io.grpc.internal.SerializingExecutor run", "m", '  a "quote", 100%', "{not: json}"]


def test_a_full_disk_does_not_stop_who_prints() -> None:
    lines = iter(["one", "two"])
    with Path("/dev/full").open("wb", buffering=0) as full:
        as_json(lines, full)
    assert next(lines, None) is None  # all were read


def test_when_certificates_end_is_shown(sample_pool: Path, tmp_path: Path) -> None:
    authority = Authority(tmp_path, "authority")
    pair = authority.issue("server", lasts=timedelta(days=10))
    tls = {"tls_certificate": pair.certificate, "tls_key": pair.key, "tls_client_ca": authority.pem}
    config = config_for(tmp_path / "data", metrics_listen=f"127.0.0.1:{free_port()}", insecure=False, **tls)
    with front(config, sample_pool, ScriptedRuntime()):
        samples = samples_of(scrape(config))
    name = "audience_certificate_expiry_timestamp_seconds"
    in_days = {
        key: (value(samples, name, key=f"service.{key}") - time.time()) / 86_400 for key in tls if "key" not in key
    }
    assert in_days == {"tls_certificate": pytest.approx(10, abs=0.1), "tls_client_ca": pytest.approx(2, abs=0.1)}


def test_a_taken_port_for_metrics_is_said_at_start(sample_pool: Path, tmp_path: Path) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        listen = f"127.0.0.1:{taken.getsockname()[1]}"
        with (
            pytest.raises(errors.Unavailable, match="metrics_listen") as caught,
            front(config_for(tmp_path, metrics_listen=listen), sample_pool, ScriptedRuntime()),
        ):
            pass
    assert caught.value.field == "service.metrics_listen"


@pytest.mark.parametrize("listen", ["8501", "127.0.0.1:http", ":8501", "127.0.0.1:99999"])
def test_a_wrong_address_for_metrics_is_said_at_start(sample_pool: Path, tmp_path: Path, listen: str) -> None:
    with (
        pytest.raises(errors.InvalidInput) as caught,
        front(config_for(tmp_path, metrics_listen=listen), sample_pool, ScriptedRuntime()),
    ):
        pass
    assert caught.value.field == "service.metrics_listen"


def test_what_waits_and_runs_is_shown(sample_pool: Path, tmp_path: Path) -> None:
    config = config_for(tmp_path, metrics_listen=f"127.0.0.1:{free_port()}")
    runtime = ScriptedRuntime()
    runtime.hold()
    order: dict[str, Any] = {"campaign": "c", "seeds": [1, 2, 3], "k": 5}
    with front(config, sample_pool, runtime) as running, Client(running.address) as client:
        first, second = client.expand(**order), client.expand(**order)
        runtime.wait_for(lambda it: it.running == 1)
        samples = samples_of(scrape(config))
        assert value(samples, "audience_queue_depth") == value(samples, "audience_operations_running") == 1
        assert value(samples, "audience_queue_oldest_seconds") > 0
        second.cancel()
        runtime.failures.append(errors.NotFound("no such thing"))
        runtime.release()
        first.result(SECONDS)
        with pytest.raises(errors.NotFound):
            client.expand(**order).result(SECONDS)
        samples = samples_of(scrape(config))
        assert value(samples, "audience_operations_total", stage="QUEUED", code="CANCELLED") == 1
        assert value(samples, "audience_operations_total", stage="MATCHING", code="NOT_FOUND") == 1
        assert value(samples, "audience_operations_total", stage="WRITING", code="OK") == 1
        assert value(samples, "audience_users_scored_total") == 1000
