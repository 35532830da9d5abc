"""What a front counts and measures, as Prometheus metrics in a registry of its own.

Knows what is counted, not who counts it; docs/monitoring.md says what each means. No metric has a label for campaigns,
operations or tenants: there may be any number of them. Logs and the audit log have these.
"""

from __future__ import annotations

from collections.abc import Mapping

from google.longrunning import operations_pb2
from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, ProcessCollector

from lookalike import __version__
from lookalike.errors import LookalikeError
from lookalike.retrieval.receipt import Progress, Stage
from lookalike.service.records import Operation
from lookalike.service.status import ERROR_CODES, code_of
from lookalike.v1 import audience_pb2, scoring_pb2

# From a lookup in SQLite to a wait for an operation's end.
CALL_SECONDS = (0.001, 0.0025, 0.005, 0.01, 0.02, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60)
# From a model in memory to one that has to be loaded.
SCORE_SECONDS = (0.001, 0.002, 0.003, 0.004, 0.005, 0.0075, 0.01, 0.015, 0.02, 0.05, 0.1, 0.25, 1, 5)
# From matching a thousand seeds to scoring a billion users.
STAGE_SECONDS = (0.01, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120, 300, 600, 900, 1800, 3600)
WAIT_SECONDS = (0.05, 0.1, 0.5, 1, 5, 15, 30, 60, 120, 300, 600, 1200, 1800, 3600, 7200)
QUOTAS = ("quotas.queued", "quotas.per_day", "service.max_queued")
# An operation that ended before it ran was in no stage.
NO_STAGE = "QUEUED"

SERVICES = (
    audience_pb2.DESCRIPTOR.services_by_name["AudienceService"],
    scoring_pb2.DESCRIPTOR.services_by_name["ScoringService"],
    operations_pb2.DESCRIPTOR.services_by_name["Operations"],
)
METHODS = {
    f"/{service.full_name}/{method.name}": (service.full_name, method.name)
    for service in SERVICES
    for method in service.methods
}


class Metrics:
    """One front's. Every method may be called from any thread."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        ProcessCollector(registry=self.registry)
        self._build = self._gauge("audience_build_info", "Always 1; of what version this is.", "version", "checkpoint")
        self._operations = self._counter("audience_operations", "Operations that ended.", "stage", "code")
        self._stages = Histogram(
            "audience_stage_duration_seconds",
            "Time in a stage, of operations that succeeded.",
            ["stage"],
            buckets=STAGE_SECONDS,
            registry=self.registry,
        )
        self._scored = self._counter("audience_users_scored", "Users of pools scored, once for each operation.")
        self._waits = Histogram(
            "audience_queue_wait_seconds",
            "Time from acceptance to the first start.",
            buckets=WAIT_SECONDS,
            registry=self.registry,
        )
        self._retries = self._counter("audience_retries", "Runs ended by a worker's death or a full disk.")
        self._refusals = self._counter("audience_quota_refusals", "Operations refused for a quota.", "quota")
        self._leases = self._counter("audience_leases_lost", "Operations another front took over from this one.")
        self._store_errors = self._counter("audience_store_errors", "Transactions the operations database failed.")
        self._calls = self._counter(
            "grpc_server_handled", "Calls that ended.", "grpc_service", "grpc_method", "grpc_code"
        )
        self._call_seconds = Histogram(
            "grpc_server_handling_seconds",
            "Time from a call's arrival to its end.",
            ["grpc_service", "grpc_method"],
            buckets=CALL_SECONDS,
            registry=self.registry,
        )
        self.scoring = ScoringMetrics(self.registry)
        self._begin()

    def describe(self, checkpoint: str) -> None:
        """Say what is being served."""
        self._build.labels(__version__, checkpoint[:12]).set(1)

    def claimed(self, operation: Operation) -> None:
        """An operation was taken from the queue; only the first time counts as a wait."""
        if operation.fence == 1 and operation.started is not None:
            self._waits.observe(max(0.0, operation.started - operation.created))

    def ended(self, progress: Progress | None, error: LookalikeError | None) -> None:
        """An operation ended, and this front noted it; `progress`: its last, None if it never ran."""
        self._operations.labels(progress.stage.value if progress is not None else NO_STAGE, code_of(error)).inc()

    def succeeded(self, seconds: Mapping[str, float]) -> None:
        """Times by stage, of a receipt."""
        for stage in Stage:
            if (value := seconds.get(stage.value.lower())) is not None:
                self._stages.labels(stage.value).observe(value)

    def scored(self, users: int) -> None:
        self._scored.inc(users)

    def retried(self) -> None:
        self._retries.inc()

    def lease_lost(self) -> None:
        self._leases.inc()

    def refused(self, quota: str) -> None:
        self._refusals.labels(quota).inc()

    def store_failed(self) -> None:
        self._store_errors.inc()

    def called(self, method: str, code: str, seconds: float) -> None:
        """A call of one of `METHODS` ended."""
        self._calls.labels(*METHODS[method], code).inc()
        self._call_seconds.labels(*METHODS[method]).observe(seconds)

    def _begin(self) -> None:
        """Series that are there from the start: the first of a kind would else come without a rise to be seen."""
        for stage in (NO_STAGE, *Stage):
            for code in ERROR_CODES if stage != Stage.WRITING.value else (*ERROR_CODES, "OK"):
                self._operations.labels(stage, code)
        for stage in Stage:
            self._stages.labels(stage.value)
        for quota in QUOTAS:
            self._refusals.labels(quota)
        for method in METHODS.values():
            self._call_seconds.labels(*method)
            for code in ("OK", "INTERNAL", "UNKNOWN"):
                self._calls.labels(*method, code)

    def _counter(self, name: str, text: str, *labels: str) -> Counter:
        return Counter(name, text, labels, registry=self.registry)

    def _gauge(self, name: str, text: str, *labels: str) -> Gauge:
        return Gauge(name, text, labels, registry=self.registry)


class ScoringMetrics:
    """Of ScoreUsers."""

    def __init__(self, registry: CollectorRegistry) -> None:
        self._requests = Counter("audience_score_requests", "Calls of ScoreUsers.", ["code"], registry=registry)
        self._seconds = Histogram(
            "audience_score_seconds", "Time of those that were answered.", buckets=SCORE_SECONDS, registry=registry
        )
        self._users = Counter("audience_score_users", "Users they asked for.", registry=registry)
        self._hits = Counter("audience_score_model_hits", "Those whose model was in memory.", registry=registry)
        self._loads = Counter("audience_score_model_loads", "Those whose model had to be loaded.", registry=registry)
        for code in ("OK", *ERROR_CODES):
            self._requests.labels(code)

    def ended(self, error: LookalikeError | None, seconds: float) -> None:
        """A call was answered, or failed."""
        self._requests.labels(code_of(error)).inc()
        if error is None:
            self._seconds.observe(seconds)

    def scored(self, users: int, *, loaded: float) -> None:
        self._users.inc(users)
        (self._loads if loaded else self._hits).inc()


class Scored:
    """Counts an operation's users once, however often a part of the pool is scored again after an interruption."""

    def __init__(self, metrics: Metrics, already: int) -> None:
        self._metrics = metrics
        self._seen = already

    def __call__(self, progress: Progress) -> None:
        """A step of the operation."""
        if progress.stage is Stage.SCORING and progress.done > self._seen:
            self._metrics.scored(progress.done - self._seen)
            self._seen = progress.done
