"""A full disk: what is refused, and how; nothing half written; all goes on when there is space again."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import disks
import pytest
import sqlalchemy as sa
from serving import SECONDS, ScriptedRuntime, config_for, front

from lookalike import errors
from lookalike.client import Client
from lookalike.expander import Expander
from lookalike.retrieval.work import discard
from lookalike.scoring.compiled import compile_model
from lookalike.service.database import Database, database_url

FULL = errors.ResourceExhausted("the disk of x is full", field="output", reason="DISK_FULL")


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Path]:
    with disks.small_disk(tmp_path / "disk", "4m") as path:
        yield path


def test_a_model_that_cannot_be_written_does_not_end_the_process(expander: Expander) -> None:
    campaign = expander.checkpoint.campaign_schema.encode_features({}, where="features")
    with pytest.raises(OSError, match="No space left"):
        compile_model(expander.checkpoint.model, campaign, Path("/dev/full"), {})


def test_an_expansion_goes_on_with_the_same_bytes_when_there_is_space_again(
    expander: Expander, order: dict[str, Any], tmp_path: Path, disk: Path
) -> None:
    undisturbed = expander.expand(**order, output=tmp_path / "undisturbed")
    size = sum(path.stat().st_size for path in undisturbed.path.iterdir())
    at = []
    for left in (0, size // 2, size + size // 2):  # no model, half of one, a model and no audience
        with disks.full(disk, left), pytest.raises(errors.ResourceExhausted, match="disk.*full") as caught:
            expander.expand(**order, output=disk / "audience")
        assert caught.value.reason == "DISK_FULL"
        at.append(sorted(path.name.partition("-")[0] for path in disk.iterdir()))
    assert at == [[], [], ["audience.partial"]]
    audience = expander.expand(**order, output=disk / "audience")
    assert audience.receipt.audience_sha256 == undisturbed.receipt.audience_sha256
    assert audience.receipt.model_sha256 == undisturbed.receipt.model_sha256
    assert list(disk.iterdir()) == [audience.path]
    discard(audience.path)


async def test_the_database_does_nothing_and_goes_on(disk: Path) -> None:
    failed: list[None] = []
    database = await Database.open(database_url("", disk), on_failure=lambda: failed.append(None))
    insert = sa.text("INSERT INTO tenants (tenant, day, accepted) VALUES (hex(randomblob(9999)), 1, 1)")
    count = sa.text("SELECT count(*) FROM tenants")
    try:
        with disks.full(disk):
            with pytest.raises(errors.ResourceExhausted, match="database is full") as caught:
                await database.run(lambda connection: connection.execute(insert))
            assert await database.run(lambda connection: connection.scalar(count)) == 0
        assert (caught.value.reason, len(failed)) == ("DISK_FULL", 1)
        await database.run(lambda connection: connection.execute(insert))
        assert await database.run(lambda connection: connection.scalar(count)) == 1
    finally:
        await database.close()


@pytest.mark.parametrize("exists", [False, True])
async def test_a_database_on_a_full_disk_is_not_called_damaged(disk: Path, exists: bool) -> None:
    if exists:
        await (await Database.open(database_url("", disk))).close()
    with disks.full(disk), pytest.raises(errors.ResourceExhausted, match="free some space") as caught:
        await Database.open(database_url("", disk))
    assert (caught.value.field, caught.value.reason) == ("service.data_dir", "DISK_FULL")
    await (await Database.open(database_url("", disk))).close()


def test_a_front_refuses_and_tells_the_truth_and_recovers(disk: Path, sample_pool: Path) -> None:
    runtime = ScriptedRuntime()
    runtime.hold()
    with front(config_for(disk / "data"), sample_pool, runtime) as running, Client(running.address) as client:
        asked = {"campaign": "spring", "seeds": [1, 2, 3], "k": 5}
        begun = client.expand(**asked, request_id="begun")
        runtime.wait_for(lambda r: r.running == 1)
        with disks.full(disk):
            with pytest.raises(errors.ResourceExhausted, match=r"disk .*is full") as caught:
                client.expand(**asked, request_id="refused")
            assert caught.value.reason == "DISK_FULL"
            assert not begun.done()
            runtime.release()  # its audience cannot be written
            runtime.wait_for(lambda r: not r.running)
            assert not begun.done()
            assert [one.name for one in client.operations()] == [begun.name]
        assert client.expand(**asked, request_id="refused").result(SECONDS).size == 5
        assert begun.result(SECONDS).size == 5
        assert client.expand(**asked, request_id="begun").name == begun.name
    assert list((disk / "data" / "jobs").iterdir()) == []
    assert not [path for path in (disk / "data" / "audiences").iterdir() if "." in path.name]


def test_a_disk_that_stays_full_fails_the_operation_with_its_reason(sample_pool: Path, tmp_path: Path) -> None:
    runtime = ScriptedRuntime(failures=2 * [FULL])
    config = config_for(tmp_path, max_attempts=2)
    with front(config, sample_pool, runtime) as running, Client(running.address) as client:
        expansion = client.expand(campaign="spring", seeds=[1, 2, 3], k=5)
        with pytest.raises(errors.ResourceExhausted, match="given up after 2 runs; .* full") as caught:
            expansion.result(SECONDS)
        assert (caught.value.reason, caught.value.field) == ("DISK_FULL", "output")
        assert client.expand(campaign="spring", seeds=[1, 2, 3], k=5).result(SECONDS).size == 5


def test_another_limit_fails_at_once(sample_pool: Path, tmp_path: Path) -> None:
    runtime = ScriptedRuntime(failures=[errors.ResourceExhausted("out of memory")])
    with front(config_for(tmp_path), sample_pool, runtime) as running, Client(running.address) as client:
        expansion = client.expand(campaign="spring", seeds=[1, 2, 3], k=5)
        with pytest.raises(errors.ResourceExhausted, match="out of memory"):
            expansion.result(SECONDS)
        assert len(runtime.jobs) == 1
