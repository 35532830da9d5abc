"""`lookalike pool` and what `lookalike ingest` refuses."""

from __future__ import annotations

import json
from pathlib import Path

import pyarrow as pa
import pytest
from pool_rows import users, write

from lookalike.cli.app import run
from lookalike.pool.snapshot import Pool


@pytest.fixture
def pools(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Path:
    """A folder with monday and tuesday, which is published."""
    monkeypatch.chdir(tmp_path)
    table = users(200)
    write(tmp_path / "monday.parquet", table.slice(0, 150))
    write(tmp_path / "tuesday.parquet", table.slice(50))
    for day in ("monday", "tuesday"):
        assert run(["ingest", f"{day}*.parquet", "--output", f"pools/{day}", "--publish"]) == 0
    capsys.readouterr()
    return tmp_path / "pools"


def test_info(pools: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["pool", "info", "pools", "--json"]) == 0
    shown = json.loads(capsys.readouterr().out)
    pool = Pool.open(pools / "tuesday")
    assert (shown["pool"], shown["users"], shown["fingerprint"]) == (str(pool.path), 150, pool.fingerprint)
    assert shown["bytes"] == (pool.path / "users-00000.arrow").stat().st_size
    assert shown["bytes_per_user"] == round(shown["bytes"] / 150, 2)
    assert {field["name"]: field["vocabulary"] + 2 for field in shown["fields"]} == {
        field.name: field.size for field in pool.schema.fields
    }
    assert run(["pool", "info", "pools/tuesday"]) == 0
    text = capsys.readouterr().out
    assert all(word in text for word in ("field City", "categorical", "as_of", "int64", pool.fingerprint))


def test_verify(pools: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["pool", "verify", "pools"]) == 0
    assert Pool.open(pools).fingerprint in capsys.readouterr().out
    shard = pools / "tuesday/users-00000.arrow"
    data = bytearray(shard.read_bytes())
    data[len(data) // 2] ^= 1
    shard.write_bytes(data)
    assert run(["pool", "verify", "pools"]) == 8
    assert "users-00000.arrow" in capsys.readouterr().err
    shard.write_bytes(data[:-1])
    for command in (["pool", "verify", "pools"], ["pool", "info", "pools"], ["pool", "diff", "pools", "pools/monday"]):
        assert run(command) == 8
        assert "the manifest says" in capsys.readouterr().err


def test_diff(pools: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["pool", "diff", "pools/monday", "pools", "--json"]) == 0
    shown = json.loads(capsys.readouterr().out)
    assert [shown[name] for name in ("added", "removed", "changed", "unchanged")] == [50, 50, 0, 100]
    assert shown["fields"] == {"City": 0, "tags": 0}
    assert shown["incomparable"] == ["age"]
    assert run(["pool", "diff", "pools/monday", "pools/monday"]) == 0
    assert "unchanged" in capsys.readouterr().out


def test_publish_goes_back(pools: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["pool", "publish", "pools/monday"]) == 0
    assert Pool.open(pools).path == pools / "monday"
    (pools / "monday/users-00000.arrow").write_bytes(b"")
    assert run(["pool", "publish", "pools/tuesday"]) == 0
    assert run(["pool", "publish", "pools/monday"]) == 8  # damaged: what is current stays
    assert Pool.open(pools).path == pools / "tuesday"


@pytest.mark.parametrize("case", ["truncated", "duplicate", "null", "foreign"])
def test_what_ingest_refuses_leaves_the_current_snapshot(
    pools: Path, case: str, capsys: pytest.CaptureFixture[str]
) -> None:
    table = pa.concat_tables([users(5000), users(5000)]) if case == "duplicate" else users(5000)
    if case == "null":
        table = table.set_column(1, "user_id", pa.array([*range(4999), None]))
    path = write(Path("wednesday.parquet"), table)
    if case == "truncated":
        path.write_bytes(path.read_bytes()[:-2000])
    if case == "foreign":
        path.write_text("no Parquet at all, but long enough to have a footer")
    before = sorted(pools.rglob("*"))
    code, words = {
        "truncated": (8, "wednesday.parquet"),
        "duplicate": (2, "more than once"),
        "null": (2, "holds a null"),
        "foreign": (8, "not a Parquet file"),
    }[case]
    assert run(["ingest", str(path), "--output", "pools/wednesday", "--publish"]) == code
    said = capsys.readouterr().err
    assert words in said
    assert "wednesday.parquet" in said
    assert sorted(pools.rglob("*")) == before
    assert Pool.open(pools).path == pools / "tuesday"
