"""Load tests: plans are what they say, histograms add up, limits decide; and a run against a real front."""

from __future__ import annotations

import csv
import subprocess
import sys
from collections import Counter
from pathlib import Path

import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st
from serving import ScriptedRuntime, config_for, front

LOADTESTS = Path(__file__).resolve().parents[1] / "loadtests"
sys.path.insert(0, str(LOADTESTS))

from arrivals import CAMPAIGNS_A_DAY, SCENARIOS, TENANTS  # noqa: E402
from record import Record, write  # noqa: E402

LIMITS = yaml.safe_load((LOADTESTS / "limits.yaml").read_text())


@pytest.mark.parametrize("name", SCENARIOS)
def test_a_plan_is_in_order_within_its_time_and_the_same_again(name: str) -> None:
    scenario = SCENARIOS[name]
    plan = scenario.plan(90.0)
    assert plan == sorted(plan) == scenario.plan(90.0) != scenario.plan(90.0, seed=1)
    assert all(0 <= one.at <= 90 and one.tenant in TENANTS for one in plan)
    twice = scenario.plan(90.0, scale=2.0)
    assert 1.7 < len(twice) / len(plan) < 2.4


def test_a_steady_day_has_all_its_campaigns_most_in_the_afternoon() -> None:
    plan = SCENARIOS["steady"].plan(24.0)
    assert len(plan) == CAMPAIGNS_A_DAY
    hours = Counter(int(one.at) // 6 for one in plan)
    assert hours[2] > 2 * hours[0]
    tenants = Counter(one.tenant for one in plan)
    assert tenants["shop"] > tenants["press"] > tenants["trial"]


def test_the_top_of_the_hour_is_a_second() -> None:
    plan = SCENARIOS["burst"].plan(120.0)
    burst = [one for one in plan if 20 <= one.at <= 21]
    assert len(burst) >= 56
    assert len(plan) - len(burst) < 60


TIMES = st.lists(st.floats(0.01, 1e5), max_size=50)


@settings(max_examples=50)
@given(parts=st.lists(st.tuples(st.sampled_from("ab"), TIMES), max_size=6))
def test_merged_is_as_if_recorded_in_one(parts: list[tuple[str, list[float]]]) -> None:
    one, merged = Record(), Record()
    for name, times in parts:
        part = Record()
        for milliseconds in times:
            one.timed(name, milliseconds)
            part.timed(name, milliseconds)
        part.failures[name] += 1
        part.shed += 2
        merged.add(part)
    assert merged.rows() == one.rows()
    assert (merged.failures.total(), merged.shed) == (len(parts), 2 * len(parts))


@settings(max_examples=50)
@given(times=st.lists(st.floats(0.05, 1e6), min_size=1, max_size=200))
def test_percentiles_are_right_to_three_digits(times: list[float]) -> None:
    record = Record()
    for milliseconds in times:
        record.timed("x", milliseconds)
    ordered = sorted(times)
    for name, share in (("p50", 0.5), ("p95", 0.95), ("p99", 0.99), ("max", 1.0)):
        nearest = ordered[max(1, int(share * len(ordered) + 0.5)) - 1]  # the rank as HDR rounds it
        assert record.ms("x", name) == pytest.approx(nearest, rel=2e-3, abs=0.011)


def test_limits_decide() -> None:
    limits = {"failures": 0, "shed": 1, "least": {"submit": 2}, "most_ms": {"submit": {"p50": 10}, "score": {"p99": 1}}}
    record = Record()
    record.timed("submit", 5)
    assert list(record.broken(limits)) == ["1 x submit, at least 2 expected"]
    record.timed("submit", 5)
    record.shed = 1
    assert list(record.broken(limits)) == []
    record.shed = 2
    record.failures["submit: NotFound: no"] = 1
    for _ in range(3):
        record.timed("submit", 20)
    assert [line.split(":")[0] for line in record.broken(limits)] == [
        "1 failures, 0 allowed",
        "2 orders refused, 1 allowed",
        "submit p50 20.0 ms, 10 allowed",
    ]


def test_every_scenario_has_limits_of_things_that_are_timed() -> None:
    assert LIMITS.keys() == SCENARIOS.keys()
    names = {"submit", "operation_done", "first_chunk", "last_chunk", "score"}
    for limits in LIMITS.values():
        assert limits.keys() == {"failures", "shed", "least", "most_ms"}
        for name in (*limits["least"], *limits["most_ms"]):
            what, _, tenant = name.partition(" ")
            assert what in names
            assert not tenant or tenant in TENANTS
        assert all(one in ("p50", "p95", "p99", "max") for most in limits["most_ms"].values() for one in most)


def test_what_is_written(tmp_path: Path) -> None:
    record = Record()
    record.timed("submit", 5)
    record.failures["submit: <b>"] = 2
    write(tmp_path, "steady", record, ["too <slow>"])
    rows = list(csv.reader((tmp_path / "steady.csv").read_text().splitlines()))
    assert rows[1] == ["submit", "1", "5.00", "5.00", "5.00", "5.00"]
    assert rows[2][:2] == ["failures", "2"]
    page = (tmp_path / "steady.html").read_text()
    assert "too &lt;slow&gt;" in page
    assert "2 x submit: &lt;b&gt;" in page


@pytest.mark.parametrize(("broken", "code"), [(False, 0), (True, 1)])
def test_locust_orders_follows_reads_and_judges(
    broken: bool, code: int, sample_dataset: Path, sample_pool: Path, tmp_path: Path
) -> None:
    limits = {"failures": 0, "shed": 0, "least": {"submit": 10, "last_chunk": 10}, "most_ms": {"submit": {"p50": 1e6}}}
    if broken:
        limits["least"] = {"submit": 1000}
    (tmp_path / "limits.yaml").write_text(yaml.safe_dump({"steady": limits}))
    with front(config_for(tmp_path / "data"), sample_pool, ScriptedRuntime(capacity=4)) as running:
        command = [sys.executable, "-m", "locust", "-f", str(LOADTESTS / "locustfile.py"), "--headless"]
        command += ["-u", "2", "-r", "2", "--host", running.address, "--scenario", "steady", "--scale", "0.05"]
        command += ["--seconds", "2", "--dataset", str(sample_dataset), "--audience-size", "50", "--only-summary"]
        command += ["--limits", str(tmp_path / "limits.yaml"), "--results", str(tmp_path / "results")]
        done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=240)
    assert done.returncode == code, done.stdout + done.stderr
    lines = (tmp_path / "results" / "steady.csv").read_text().splitlines()
    rows = {row["name"]: row for row in csv.DictReader(lines)}
    expected = str(round(0.05 * CAMPAIGNS_A_DAY))
    assert [rows[name]["count"] for name in ("submit", "operation_done", "first_chunk", "last_chunk")] == [expected] * 4
    assert rows["failures"]["count"] == rows["shed"]["count"] == "0"
