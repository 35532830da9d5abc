"""The benchmark of the front, for a second: every figure it promises, of a real front and real clients."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

PROGRAM = Path(__file__).resolve().parents[1] / "benchmarks" / "front.py"


def test_it_measures_submissions_and_streams(tmp_path: Path) -> None:
    small = ("--rates", "20", "--seconds", "1", "--seeds", "7", "--members", "2e5", "--repeat", "1")
    command = [sys.executable, str(PROGRAM), *small, "--json", str(tmp_path / "found.json")]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    found = json.loads((tmp_path / "found.json").read_text())
    (submit,) = found["submit"]
    assert (submit["submitted"], submit["failures"], submit["database"]) == (60, {}, "sqlite")
    for name in ("submit", "store", "late"):
        assert 0 < submit["ms"][name]["p50"] <= submit["ms"][name]["p99"]
    assert submit["ms"]["store"]["p50"] < submit["ms"]["submit"]["p99"]
    assert submit["server_cpu_ms"] > 0
    kinds = ["integers, packed", "integers, repeated", "strings, packed", "bytes, the roofline"]
    assert [(run["count"], run["kind"]) for run in found["stream"]] == [(2 * 10**5, kind) for kind in kinds]
    assert [run.get("same") for run in found["stream"]] == [True, None, True, None]
    assert [run["bytes"] for run in found["stream"] if run["kind"] == "integers, packed"] == [24 * 10**5]
    assert all(run["mb_per_second"] > 0 for run in found["stream"])
    assert "taken up" in done.stdout
