"""What was measured: a histogram of each thing timed, by HDR, and counts; merged over users, judged by limits, shown.

Knows neither Locust nor the service.
"""

from __future__ import annotations

import csv
from collections import Counter
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Final

from hdrh.histogram import HdrHistogram

from lookalike.retrieval.markup import Markup, element

LONGEST_MS: Final = 3_600_000
PERCENTILES: Final = {"p50": 50.0, "p95": 95.0, "p99": 99.0, "max": 100.0}
COLUMNS: Final = ("name", "count", *PERCENTILES)


class Record:
    """Of one user, or of all. Times are milliseconds, kept in steps of a hundredth, to three digits.

    Attributes:
        failures: what went wrong, and how often.
        shed: orders that were refused for a quota, with a word on when to come again.
    """

    def __init__(self) -> None:
        self._histograms: dict[str, HdrHistogram] = {}
        self.failures: Counter[str] = Counter()
        self.shed = 0

    def timed(self, name: str, milliseconds: float) -> None:
        """One more."""
        self._histogram(name).record_value(min(max(1, round(100 * milliseconds)), 100 * LONGEST_MS))

    def add(self, other: Record) -> None:
        """As if all of the other's had been recorded here."""
        for name, histogram in other._histograms.items():
            self._histogram(name).add(histogram)
        self.failures.update(other.failures)
        self.shed += other.shed

    def count(self, name: str) -> int:
        """How many were timed."""
        return int(self._histograms[name].get_total_count()) if name in self._histograms else 0

    def ms(self, name: str, percentile: str) -> float:
        """A percentile; 0 of nothing."""
        if name not in self._histograms:
            return 0.0
        return float(self._histograms[name].get_value_at_percentile(PERCENTILES[percentile])) / 100

    def rows(self) -> list[tuple[str, ...]]:
        """A row of COLUMNS for each thing timed."""
        return [
            (name, str(self.count(name)), *(f"{self.ms(name, one):.2f}" for one in PERCENTILES))
            for name in sorted(self._histograms)
        ]

    def broken(self, limits: Mapping[str, Any]) -> Iterator[str]:
        """What lies beyond the limits, a line each."""
        failed = self.failures.total()
        if failed > limits["failures"]:
            most = "; ".join(f"{count} x {what}" for what, count in self.failures.most_common(5))
            yield f"{failed} failures, {limits['failures']} allowed: {most}"
        if self.shed > limits["shed"]:
            yield f"{self.shed} orders refused, {limits['shed']} allowed"
        for name, least in limits["least"].items():
            if self.count(name) < least:
                yield f"{self.count(name)} x {name}, at least {least} expected"
        for name, percentiles in limits["most_ms"].items():
            for percentile, most_ms in percentiles.items():
                if self.ms(name, percentile) > most_ms:
                    yield f"{name} {percentile} {self.ms(name, percentile):.1f} ms, {most_ms} allowed"

    def _histogram(self, name: str) -> HdrHistogram:
        if name not in self._histograms:
            self._histograms[name] = HdrHistogram(1, 100 * LONGEST_MS, 3)
        return self._histograms[name]


def write(folder: Path, scenario: str, record: Record, broken: list[str]) -> None:
    """`SCENARIO.csv` and `SCENARIO.html`: percentiles, counts and the verdict."""
    counts = [("failures", str(record.failures.total())), ("shed", str(record.shed))]
    with (folder / f"{scenario}.csv").open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(COLUMNS)
        writer.writerows(record.rows())
        writer.writerows((*count, *("" for _ in PERCENTILES)) for count in counts)
    head = element("tr", *(element("th", column) for column in COLUMNS))
    rows = [element("tr", *(element("td", cell) for cell in row)) for row in [*record.rows(), *counts]]
    failures = [element("li", f"{count} x {what}") for what, count in record.failures.most_common()]
    verdict = [element("li", line) for line in broken] or [element("li", "within all limits")]
    page = element(
        "html",
        element("head", element("meta", charset="utf-8"), element("title", f"Load test: {scenario}"), _STYLE),
        element(
            "body",
            element("h1", f"Load test: {scenario}"),
            element("p", "Milliseconds from when each was due, by HDR histogram."),
            element("ul", *verdict),
            element("table", head, *rows),
            element("ul", *failures),
        ),
        lang="en",
    )
    (folder / f"{scenario}.html").write_text("<!doctype html>\n" + page, encoding="utf-8")


_STYLE: Final = Markup(
    "<style>body{font:16px system-ui;margin:2em}td,th{padding:.2em 1em;text-align:right;border-bottom:1px solid #ccc}"
    "td:first-child,th:first-child{text-align:left}</style>"
)
