"""The billion-user benchmark, on a few thousand: every figure it promises, and refusals before anything is written."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

from lookalike.pool.snapshot import Pool

PROGRAM = Path(__file__).resolve().parents[1] / "benchmarks" / "billion.py"


def benchmark(*arguments: object) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, str(PROGRAM), *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, check=False)


def test_it_measures_one_expansion(tmp_path: Path) -> None:
    small = ("--profile", "tencent", "--users", "3e3", "--k", 100, "--train-seconds", 1, "--keep", tmp_path / "kept")
    done = benchmark(*small, "--json", tmp_path / "first.json")
    assert done.returncode == 0, done.stderr
    assert "verified" in done.stdout
    first = json.loads((tmp_path / "first.json").read_text())
    pool = Pool.open(tmp_path / "kept/pool-tencent-3000")
    assert first["receipt"]["pool_sha256"] == pool.fingerprint
    assert (first["users"], first["receipt"]["k"], first["receipt"]["seeds"]["not_in_pool"]) == (3000, 100, 0)
    assert first["verified"]
    assert all(check["passed"] for check in first["checks"])
    assert 0 < first["runs"]["expand"]["anonymous_bytes"] == first["memory"]["value"] < 4 << 30
    assert set(first["seconds"]) > {"matching", "adapting", "compiling", "scoring", "writing", "verify"}
    assert min(first["seconds"].values()) >= 0


def test_a_disk_that_is_too_small_is_told_at_once(tmp_path: Path) -> None:
    done = benchmark("--users", "1e13", "--keep", tmp_path)
    assert done.returncode == 1
    assert "needs 230001.1 GB" in done.stderr
    assert list(tmp_path.iterdir()) == []
