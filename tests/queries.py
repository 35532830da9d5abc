"""Test help: the queries of the dashboard and of the alarms, and what is wrong with one, asked of a scrape."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import promql_parser as promql
import yaml
from prometheus_client.parser import text_string_to_metric_families

ROOT = Path(__file__).parents[1]

# What Prometheus adds to every series of a target.
_TARGET_LABELS = {"job", "instance"}


@dataclass(frozen=True)
class _Use:
    """A metric in a query: by which name, with which labels, and whether a counter's rise is taken of it."""

    metric: str
    labels: frozenset[str]
    rate: bool
    quantile: bool


def _uses(node: Any, *, rate: bool = False, quantile: bool = False, labels: frozenset[str] = frozenset()) -> list[_Use]:
    """Of a parsed query; labels of aggregations and joins count as asked of every metric under them."""
    if isinstance(node, promql.VectorSelector):
        own = frozenset(matcher.name for matcher in node.matchers.matchers)
        return [_Use(node.name, labels | own, rate, quantile)]
    if isinstance(node, promql.MatrixSelector):
        return _uses(node.vector_selector, rate=rate, quantile=quantile, labels=labels)
    if isinstance(node, promql.Call):
        rising = node.func.name in ("rate", "irate", "increase")
        within = node.func.name == "histogram_quantile"
        found: list[_Use] = []
        for argument in node.args:
            found += _uses(argument, rate=rate or rising, quantile=quantile or within, labels=labels)
        return found
    if isinstance(node, promql.AggregateExpr):
        by = frozenset(node.modifier.labels) if node.modifier is not None else frozenset()
        return _uses(node.expr, rate=rate, quantile=quantile, labels=labels | by)
    if isinstance(node, promql.BinaryExpr):
        found = []
        for side in (node.lhs, node.rhs):
            found += _uses(side, rate=rate, quantile=quantile, labels=labels)
        return found
    if isinstance(node, (promql.ParenExpr, promql.UnaryExpr, promql.SubqueryExpr)):
        return _uses(node.expr, rate=rate, quantile=quantile, labels=labels)
    return []


def dashboard_queries() -> list[str]:
    dashboard = json.loads((ROOT / "deploy" / "grafana" / "lookalike.json").read_text())
    return [target["expr"] for panel in dashboard["panels"] for target in panel.get("targets", ())]


def alert_rules() -> list[dict[str, Any]]:
    groups = yaml.safe_load((ROOT / "deploy" / "prometheus" / "alerts.yaml").read_text())["groups"]
    return [rule for group in groups for rule in group["rules"]]


def problems(query: str, text: str) -> list[str]:
    """What is wrong with a query, asked of this scrape."""
    types = {}
    labels: dict[str, set[str]] = {}
    for family in text_string_to_metric_families(text):
        for sample in family.samples:
            types[sample.name] = family.type
            labels.setdefault(sample.name, set()).update(sample.labels)
    found = []
    for use in _uses_of(query):
        if use.metric not in types:
            found.append(f"no metric {use.metric}")
            continue
        unknown = use.labels - labels[use.metric] - _TARGET_LABELS
        if unknown:
            found.append(f"{use.metric} has no {', '.join(sorted(unknown))}")
        rises = types[use.metric] == "counter" or (
            types[use.metric] == "histogram" and use.metric.endswith(("_bucket", "_sum", "_count"))
        )
        if use.rate != rises:
            found.append(f"{use.metric} is a {types[use.metric]}")
        if use.quantile != use.metric.endswith("_bucket") or (use.quantile and "le" not in use.labels):
            found.append(f"{use.metric} is no distribution, or is not taken as one")
    return found


def metrics_of(query: str) -> set[str]:
    """Names of what a query asks for."""
    return {use.metric for use in _uses_of(query)}


def _uses_of(query: str) -> list[_Use]:
    return _uses(promql.parse(query.replace("$__rate_interval", "5m")))
