"""examples/secure.sh as it is, on a small model: what it shows must be so."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
from processes import alive

from lookalike.pool.snapshot import Pool

SCRIPT = Path(__file__).resolve().parents[1] / "examples" / "secure.sh"


def test_the_example_shows_what_it_says(sample_checkpoint: Path, sample_pool: Path, tmp_path: Path) -> None:
    seeds = Pool.open(sample_pool).user_ids(np.arange(40)).to_pylist()
    (tmp_path / "seeds.txt").write_text("".join(f"{user_id}\n" for user_id in seeds))
    (tmp_path / "bin").mkdir()
    command = tmp_path / "bin" / "lookalike"  # of this very Python
    command.write_text(f'#!/bin/sh\nexec {sys.executable} -m lookalike.cli "$@"\n')
    command.chmod(0o755)
    folder = tmp_path / "folder"
    arguments = [sample_checkpoint, sample_pool, tmp_path / "seeds.txt", folder, "--set", "service.runtime=inprocess"]
    process = subprocess.Popen(
        [SCRIPT, *map(str, arguments)],
        env={**os.environ, "PATH": f"{command.parent}:{os.environ['PATH']}"},
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    try:
        _, said = process.communicate()
        assert process.returncode == 0, said
        assert "no valid token" in said
        assert alive(process.pid) == []
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
    audit = [json.loads(line) for line in (folder / "data" / "audit.jsonl").read_text().splitlines()]
    assert [(line["event"], line["certificate"]) for line in audit] == [("expand", "robot"), ("refused", "robot")]
    assert audit[1]["why"] == "revoked token"
    assert {"ca.key", "shop.token"} <= {path.name for path in folder.iterdir()}
    assert [path for path in folder.rglob("*") if path.stat().st_mode & 0o077] == []
