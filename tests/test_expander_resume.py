"""An expansion that is killed while it scores goes on from its watermark and gives the same bytes."""

from __future__ import annotations

import dataclasses
import logging
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from processes import child
from pydantic import TypeAdapter

import lookalike
from lookalike.config import AdaptationConfig, Config
from lookalike.errors import Cancelled, Unavailable
from lookalike.expander import Expander
from lookalike.pool.ingest import ingest
from lookalike.retrieval import work
from lookalike.retrieval.audience import Audience
from lookalike.retrieval.receipt import Progress, Stage
from lookalike.retrieval.verify import verify

BATCH = 256  # of `small_config`
STOP = 956  # rows scored when it is killed: batches of 256, and shards, which end at 700 and 1400
WATERMARK = 700
OPTIONS: dict[str, Any] = {"filter": "gender = 'gender_0'", "exclude": list(range(0, 6000, 11))}
VOLATILE: dict[str, Any] = {"created": "", "seconds": {}, "job_id": ""}


@pytest.fixture(scope="module")
def sharded(
    sample_dataset: Path, sample_pool: Path, sample_checkpoint: Path, tmp_path_factory: pytest.TempPathFactory
) -> Path:
    from lookalike.training.checkpoint import load_checkpoint

    path = tmp_path_factory.mktemp("sharded") / "pool"
    ingest(
        sample_dataset / "users.parquet", path, schema=load_checkpoint(sample_checkpoint).user_schema, shard_rows=700
    )
    return path


@pytest.fixture(scope="module")
def config(small_config: Config) -> Config:
    """How well it adapts is not looked at here."""
    return dataclasses.replace(small_config, adaptation=AdaptationConfig(max_epochs=1, enough_held_out_seeds=1))


@pytest.fixture(scope="module")
def expander(sample_checkpoint: Path, sharded: Path, config: Config) -> Expander:
    return Expander.open(sample_checkpoint, sharded, config)


@pytest.fixture(scope="module")
def untouched(expander: Expander, order: dict[str, Any], tmp_path_factory: pytest.TempPathFactory) -> Audience:
    return expander.expand(**order, **OPTIONS, output=tmp_path_factory.mktemp("whole") / "audience")


@pytest.fixture(autouse=True)
def _save_always(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(work, "SAVE_SECONDS", 0.0)


class Stopped(BaseException):
    """As Ctrl-C."""


def stop(output: Path, expander: Expander, order: dict[str, Any], **options: Any) -> Path:
    """An expansion that ends at row STOP as if its process had; returns what it leaves."""

    def progress(step: Progress) -> None:
        if step.stage is Stage.SCORING and step.done >= STOP:
            raise Stopped

    with pytest.raises(Stopped):
        expander.expand(**order, **OPTIONS, **options, output=output, progress=progress)
    (left,) = output.parent.iterdir()
    return left


def go_on(output: Path, expander: Expander, order: dict[str, Any]) -> tuple[Audience, list[Progress]]:
    steps: list[Progress] = []
    audience = expander.expand(**order, **OPTIONS, output=output, job_id="again", progress=steps.append)
    return audience, steps


def same(one: Audience, other: Audience) -> None:
    for name in ("audience.parquet", "model.pt", "seeds.parquet", "exclusions.parquet"):
        assert (one.path / name).read_bytes() == (other.path / name).read_bytes()
    assert dataclasses.replace(one.receipt, **VOLATILE) == dataclasses.replace(other.receipt, **VOLATILE)


def first_row(steps: list[Progress]) -> int:
    return next(step.done for step in steps if step.stage is Stage.SCORING)


def test_killed_while_it_scores(
    expander: Expander,
    order: dict[str, Any],
    untouched: Audience,
    sample_checkpoint: Path,
    config: Config,
    tmp_path: Path,
) -> None:
    """SIGKILL to a process that waits, STOP rows into scoring, for an answer on its pipe."""
    pq.write_table(pa.table({"user_id": order["seeds"]}), tmp_path / "seeds.parquet")
    output = tmp_path / "out" / "audience"
    settings = TypeAdapter(Config).dump_python(config, mode="json")
    code = f"""
import sys
from pathlib import Path
import pyarrow.parquet as pq
from pydantic import TypeAdapter
from lookalike.config import Config
from lookalike.expander import Expander
from lookalike.retrieval import work

work.SAVE_SECONDS = 0.0
config = TypeAdapter(Config).validate_python({settings!r})

def progress(step):
    if step.stage.value == "SCORING" and step.done >= {STOP}:
        print(step.done, flush=True)
        sys.stdin.readline()

Expander.open(Path({str(sample_checkpoint)!r}), Path({str(expander.pool.path)!r}), config).expand(
    campaign={order["campaign"]!r}, features={order["features"]!r}, k={order["k"]},
    seeds=pq.read_table({str(tmp_path / "seeds.parquet")!r})["user_id"], output=Path({str(output)!r}),
    progress=progress, **{OPTIONS!r})
"""
    path = str(Path(lookalike.__file__).parents[1])
    with child(
        [sys.executable, "-c", code],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        env={**os.environ, "PYTHONPATH": path},
    ) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == f"{STOP}\n"
        with pytest.raises(Unavailable, match="is running") as caught:  # while it lives
            go_on(output, expander, order)
        assert caught.value.reason == "EXPANSION_RUNNING"
        process.send_signal(signal.SIGKILL)
        assert process.wait() == -signal.SIGKILL
    assert not output.exists()
    audience, steps = go_on(output, expander, order)
    assert first_row(steps) == WATERMARK
    assert not [step for step in steps if step.stage is Stage.ADAPTING]
    same(audience, untouched)
    assert list(output.parent.iterdir()) == [output]
    assert verify(output, threads=1).passed


def test_what_ctrl_c_leaves_is_gone_on_with_twice(
    expander: Expander, order: dict[str, Any], untouched: Audience, tmp_path: Path
) -> None:
    output = tmp_path / "audience"
    left = stop(output, expander, order)
    assert left.name.startswith("audience.partial-")

    def progress(step: Progress) -> None:
        if step.stage is Stage.WRITING:
            raise Stopped

    with pytest.raises(Stopped):
        expander.expand(**order, **OPTIONS, output=output, progress=progress)
    assert list(tmp_path.iterdir()) == [left]
    (left / "audience.tmp-1-2").mkdir()  # left by a process killed while it wrote
    audience, steps = go_on(output, expander, order)
    assert first_row(steps) == 2000
    same(audience, untouched)
    assert list(tmp_path.iterdir()) == [output]


def test_one_that_was_scoring_again_does_not_scan_again(
    expander: Expander, order: dict[str, Any], untouched: Audience, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(work, "SAVE_SECONDS", 1e9)  # all there is to go on with is what is saved in between
    output = tmp_path / "audience"

    def progress(step: Progress) -> None:
        if step.stage is Stage.RESCORING and step.done > 0:
            raise Stopped

    with pytest.raises(Stopped):
        expander.expand(**order, **OPTIONS, output=output, progress=progress)
    audience, steps = go_on(output, expander, order)
    assert first_row(steps) == 2000
    same(audience, untouched)


def test_a_cancelled_one_leaves_nothing(expander: Expander, order: dict[str, Any], tmp_path: Path) -> None:
    stop(tmp_path / "audience", expander, order)
    with pytest.raises(Cancelled):
        expander.expand(**order, **OPTIONS, output=tmp_path / "audience", cancelled=lambda: True)
    assert list(tmp_path.iterdir()) == []


def test_another_request_starts_anew_and_leaves_the_first_alone(
    expander: Expander, order: dict[str, Any], tmp_path: Path
) -> None:
    left = stop(tmp_path / "audience", expander, order)
    steps: list[Progress] = []
    expander.expand(**{**order, "k": 5}, **OPTIONS, output=tmp_path / "audience", progress=steps.append)
    assert first_row(steps) == 0
    assert left.is_dir()


@pytest.mark.parametrize("damage", ["no facts", "foreign", "model", "selection", "another's selection"])
def test_what_is_damaged_or_foreign_is_set_aside(
    expander: Expander,
    order: dict[str, Any],
    untouched: Audience,
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
    damage: str,
) -> None:
    output = tmp_path / "audience"
    left = stop(output, expander, order)
    match damage:
        case "no facts":
            (left / "work.json").write_text("{")
        case "foreign":
            text = (left / "work.json").read_text()
            (left / "work.json").write_text(text.replace(lookalike.__version__, "0.0.0"))
            assert (left / "work.json").read_text() != text
        case "model":
            (left / "model.pt").write_bytes((left / "model.pt").read_bytes() + b"\0")
        case "selection":
            data = bytearray((left / "selection.partial").read_bytes())
            data[100] ^= 1
            (left / "selection.partial").write_bytes(data)
        case _:
            other = stop(tmp_path / "other" / "audience", expander, {**order, "k": 7})
            shutil.copyfile(other / "selection.partial", left / "selection.partial")
            shutil.rmtree(tmp_path / "other")
    with caplog.at_level(logging.WARNING):
        audience, steps = go_on(output, expander, order)
    assert "starting over" in caplog.text
    assert first_row(steps) == 0
    same(audience, untouched)
    (aside,) = tmp_path.glob(f"{left.name}.damaged-*")
    assert {*tmp_path.iterdir()} == {output, aside}


def test_a_selection_that_is_not_there_yet_is_no_damage(
    expander: Expander, order: dict[str, Any], untouched: Audience, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(work, "SAVE_SECONDS", 3600.0)
    left = stop(tmp_path / "audience", expander, order)
    assert not (left / "selection.partial").exists()
    audience, steps = go_on(tmp_path / "audience", expander, order)
    assert first_row(steps) == 0
    assert not [step for step in steps if step.stage is Stage.ADAPTING]
    same(audience, untouched)
