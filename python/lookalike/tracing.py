"""Traces by OpenTelemetry, handed from the client to the front, the queue and the worker as W3C `traceparent`s.

Ground floor; knows no gRPC but the exporter's. With no endpoint nothing is loaded, made or exported. Nothing here is
global: a program that embeds us keeps its own tracing, and its exporters do not see ours.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from types import TracebackType
from typing import TYPE_CHECKING, Literal, Self

from lookalike import __version__
from lookalike.errors import FailedPrecondition, InvalidInput, LookalikeError

if TYPE_CHECKING:
    from opentelemetry.context import Context
    from opentelemetry.sdk.trace import TracerProvider

TRACEPARENT = "traceparent"
# Spans leave once a second, so that a worker that is killed takes little with it.
EXPORT_MILLISECONDS = 1000
EXPORT_SECONDS = 5
FLUSH_MILLISECONDS = 3000

Kind = Literal["internal", "server", "consumer"]


def _reason(error: BaseException) -> str:
    return error.reason if isinstance(error, LookalikeError) else type(error).__name__


class Tracing:
    """Makes spans and sends them to an OTLP endpoint; with none, costs a function call. Close it at the end.

    Raises:
        InvalidInput: the endpoint is no http:// or https:// URL. FailedPrecondition: OpenTelemetry is not installed.
    """

    def __init__(self, endpoint: str, *, service: str) -> None:
        self._provider = _provider(endpoint, service) if endpoint else None
        self._tracer = self._provider.get_tracer("lookalike", __version__) if self._provider is not None else None

    @property
    def on(self) -> bool:
        """Whether anything is recorded."""
        return self._tracer is not None

    @contextmanager
    def span(
        self,
        name: str,
        *,
        parent: str = "",
        kind: Kind = "internal",
        attributes: Mapping[str, str | int | float] | None = None,
        reason: Callable[[BaseException], str] = _reason,
    ) -> Iterator[str]:
        """A span around the block; yields its `traceparent`, to be handed on; an empty one when tracing is off.

        `parent`: a traceparent; the span begins a trace when that is empty or none. Of an error that
        leaves the block `reason` is noted; its message, which may quote an input, is not.
        """
        if self._tracer is None:
            yield ""
            return
        from opentelemetry import trace

        span = self._tracer.start_span(
            name, context=_extract(parent), kind=trace.SpanKind[kind.upper()], attributes=attributes
        )
        try:
            yield _inject(trace.set_span_in_context(span))
        except BaseException as error:
            span.set_attribute("error.type", reason(error))
            span.set_status(trace.StatusCode.ERROR, reason(error))
            raise
        finally:
            span.end()

    def close(self) -> None:
        """Send what is left, for a few seconds at most."""
        if self._provider is not None:
            self._provider.force_flush(FLUSH_MILLISECONDS)
            self._provider.shutdown()


class StageSpans:
    """One span after another, for work that says which stage it is at. `with` it; call it with each stage's name."""

    def __init__(self, tracing: Tracing, parent: str) -> None:
        self._tracing = tracing
        self._parent = parent
        self._stage = ""
        self._open = ExitStack()

    def __call__(self, stage: str) -> None:
        """The work is at this stage; the same one again changes nothing."""
        if self._tracing.on and stage != self._stage:
            self._open.close()
            self._stage = stage
            self._open.enter_context(self._tracing.span(stage, parent=self._parent))

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._open.__exit__(kind, error, traceback)


def trace_id(traceparent: str) -> str:
    """By which a trace is looked up; empty for an empty one."""
    return traceparent.split("-")[1] if traceparent else ""


def _provider(endpoint: str, service: str) -> TracerProvider:
    if not endpoint.startswith(("http://", "https://")):
        raise InvalidInput(
            f"'{endpoint}' is no OTLP endpoint: one looks like http://127.0.0.1:4317", field="service.otlp_endpoint"
        )
    try:
        from opentelemetry.exporter.otlp.proto.grpc.trace_exporter import OTLPSpanExporter
        from opentelemetry.sdk.resources import Resource
        from opentelemetry.sdk.trace import TracerProvider
        from opentelemetry.sdk.trace.export import BatchSpanProcessor
    except ImportError as error:
        raise FailedPrecondition(
            f"service.otlp_endpoint needs OpenTelemetry ({error}): pip install 'lookalike[tracing]', or leave it empty",
            field="service.otlp_endpoint",
            reason="TRACING_NOT_INSTALLED",
        ) from error
    provider = TracerProvider(resource=Resource.create({"service.name": service, "service.version": __version__}))
    exporter = OTLPSpanExporter(endpoint=endpoint, timeout=EXPORT_SECONDS)
    provider.add_span_processor(BatchSpanProcessor(exporter, schedule_delay_millis=EXPORT_MILLISECONDS))
    return provider


def _extract(traceparent: str) -> Context:
    from opentelemetry.context import Context
    from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

    # An own context, not the current one: that is the embedding program's.
    return TraceContextTextMapPropagator().extract({TRACEPARENT: traceparent}, context=Context())


def _inject(context: Context) -> str:
    from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

    carrier: dict[str, str] = {}
    TraceContextTextMapPropagator().inject(carrier, context=context)
    return carrier.get(TRACEPARENT, "")
