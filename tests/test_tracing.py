"""Spans: where they go, what they carry, and that there are none without an endpoint."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
from otlp import receiver

import lookalike
from lookalike import errors
from lookalike.tracing import StageSpans, Tracing, trace_id

PARENT = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"


def test_spans_arrive_with_their_parents() -> None:
    with receiver() as otlp:
        tracing = Tracing(otlp.endpoint, service="tested")
        with tracing.span("outer", parent=PARENT, attributes={"size": 3}) as outer:
            assert trace_id(outer) == trace_id(PARENT)
            with StageSpans(tracing, outer) as stages:
                for stage in ("ONE", "ONE", "TWO"):
                    stages(stage)
        with tracing.span("alone", parent="not a traceparent") as alone:
            assert trace_id(alone) != trace_id(PARENT)
        tracing.close()
        spans = {span.name: span for span in otlp.spans}
    assert len(spans) == len(otlp.spans) == 4
    assert {span.service for span in spans.values()} == {"tested"}
    assert spans["outer"].parent == PARENT.split("-")[2]
    assert spans["outer"].attributes == {"size": 3}
    assert spans["ONE"].parent == spans["TWO"].parent == spans["outer"].id
    assert spans["alone"].parent == ""


def test_what_failed_says_why_and_quotes_nothing() -> None:
    with receiver() as otlp:
        tracing = Tracing(otlp.endpoint, service="tested")

        def work() -> None:
            with tracing.span("outer") as outer, StageSpans(tracing, outer) as stages:
                stages("ONE")
                stages("TWO")
                raise errors.NotFound("no user 4711", reason="NO_SUCH_USER")

        with pytest.raises(errors.NotFound):
            work()
        tracing.close()
    assert {span.name: span.failed for span in otlp.spans} == {
        "ONE": "",
        "TWO": "NO_SUCH_USER",
        "outer": "NO_SUCH_USER",
    }
    assert "4711" not in repr(otlp.spans)


def test_without_an_endpoint_nothing_is_loaded() -> None:
    code = """
import sys
from lookalike.tracing import StageSpans, Tracing
tracing = Tracing("", service="s")
with tracing.span("a", parent="00-1") as traceparent, StageSpans(tracing, traceparent) as stages:
    stages("ONE")
assert traceparent == "", traceparent
tracing.close()
assert not [name for name in sys.modules if name.startswith(("opentelemetry", "grpc"))]
"""
    environment = {"PYTHONPATH": str(Path(lookalike.__file__).parents[1])}
    subprocess.run([sys.executable, "-c", code], check=True, env=environment)


def test_no_endpoint_and_no_package_are_said(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(errors.InvalidInput, match="http://") as caught:
        Tracing("127.0.0.1:4317", service="s")
    assert caught.value.field == "service.otlp_endpoint"
    monkeypatch.setitem(sys.modules, "opentelemetry.sdk.trace.export", None)
    with pytest.raises(errors.FailedPrecondition, match=r"lookalike\[tracing\]") as missing:
        Tracing("http://127.0.0.1:4317", service="s")
    assert missing.value.reason == "TRACING_NOT_INSTALLED"


def test_a_receiver_that_is_away_holds_nobody_up() -> None:
    tracing = Tracing("http://127.0.0.1:1", service="s")
    with tracing.span("lost"):
        pass
    tracing.close()  # a hang is pytest's to notice
