"""The operations store: order, idempotency, restarts, and files that are not its own."""

from __future__ import annotations

import sqlite3
from collections.abc import AsyncIterator
from dataclasses import replace
from pathlib import Path

import pytest

from lookalike import errors
from lookalike.retrieval.receipt import Progress, Stage
from lookalike.runtime.job import ExpansionJob
from lookalike.service.operations import OperationStore, database_url
from lookalike.service.operations_service import parse_filter
from lookalike.service.records import Operation, State


def operation(name: str, *, request_id: str | None = None, sha: str = "s", campaign: str = "c") -> Operation:
    job = ExpansionJob(
        job_id=name,
        campaign=campaign,
        features={"category": "tøys", "tags": ["a", 1], "budget": 1.5, "none": None},
        seeds=Path("/s.parquet"),
        k=3,
        pool=Path("/pool"),
        output=Path("/out"),
        cancel_flag=Path("/flag"),
    )
    return Operation(id=name, request_id=request_id, request_sha256=sha, job=job, users_total=100, created=1.5)


@pytest.fixture
async def store(tmp_path: Path) -> AsyncIterator[OperationStore]:
    it = await OperationStore.open(database_url(tmp_path))
    yield it
    await it.close()


async def test_what_is_stored_is_what_was_given(store: OperationStore) -> None:
    given = operation("a", request_id="r")
    stored, new = await store.create(given, 10)
    assert new
    assert stored == replace(given, number=1)
    assert await store.get("a") == stored


async def test_first_come_first_served(store: OperationStore) -> None:
    for name in "cab":
        await store.create(operation(name), 10)
    assert [(await store.get(name)).queue_position for name in "cab"] == [0, 1, 2]
    claimed = [await store.claim() for _ in range(4)]
    assert [one.id if one else None for one in claimed] == ["c", "a", "b", None]
    assert claimed[0] is not None
    assert claimed[0].state is State.RUNNING
    assert claimed[0].started is not None


async def test_a_request_id_names_one_operation(store: OperationStore) -> None:
    first, _ = await store.create(operation("a", request_id="r"), 10)
    again, new = await store.create(operation("b", request_id="r"), 10)
    assert (again, new) == (first, False)
    assert await store.find_request("r", "s") == first
    assert await store.find_request("q", "s") is None
    with pytest.raises(errors.AlreadyExists):
        await store.create(operation("b", request_id="r", sha="t"), 10)
    with pytest.raises(errors.AlreadyExists):
        await store.find_request("r", "t")
    with pytest.raises(errors.NotFound):
        await store.get("b")


async def test_the_queue_has_a_limit_that_running_ones_do_not_count_to(store: OperationStore) -> None:
    await store.create(operation("a"), 1)
    with pytest.raises(errors.ResourceExhausted):
        await store.create(operation("b"), 1)
    await store.claim()
    await store.create(operation("b"), 1)


async def test_a_restart_runs_again_in_the_old_order_what_was_not_cancelled(tmp_path: Path) -> None:
    store = await OperationStore.open(database_url(tmp_path))
    for name in "abcd":
        await store.create(operation(name), 10)
    for _ in "abc":
        await store.claim()
    await store.note_progress("a", Progress(Stage.SCORING, 5, 9), 5, 9)
    await store.request_cancel("b")
    await store.finish("c", State.FAILED, errors.NotFound("no pool", field="pool"))
    await store.close()

    store = await OperationStore.open(database_url(tmp_path))
    await store.requeue_running()
    a, b, c, d = [await store.get(name) for name in "abcd"]
    assert [one.state for one in (a, b, c, d)] == [State.QUEUED, State.CANCELLED, State.FAILED, State.QUEUED]
    assert (a.progress, a.users_scored, a.users_total) == (Progress(Stage.SCORING, 5, 9), 5, 9)
    assert isinstance(b.error, errors.Cancelled)
    assert isinstance(c.error, errors.NotFound)
    assert (c.error.message, c.error.field) == ("no pool", "pool")
    assert await store.active_ids() == {"a", "d"}
    claimed = await store.claim()
    assert claimed is not None
    assert (claimed.id, claimed.started) == ("a", a.started)
    await store.close()


async def test_cancelling(store: OperationStore) -> None:
    for name in "ab":
        await store.create(operation(name), 10)
    await store.claim()
    running, queued = await store.request_cancel("a"), await store.request_cancel("b")
    assert (running.state, running.cancel_requested) == (State.RUNNING, True)
    assert (queued.state, queued.cancel_requested) == (State.CANCELLED, True)
    await store.finish("a", State.SUCCEEDED)
    assert (await store.request_cancel("a")).state is State.SUCCEEDED
    assert await store.claim() is None
    with pytest.raises(errors.NotFound):
        await store.request_cancel("z")


async def test_listing(store: OperationStore) -> None:
    for name in "abcde":
        await store.create(operation(name, campaign="x" if name in "ace" else "y"), 10)
    await store.claim()
    everything = await store.list(after=0, limit=100)
    assert [one.id for one in everything] == list("abcde")
    assert [one.id for one in await store.list(after=everything[1].number, limit=2)] == ["c", "d"]
    assert [one.id for one in await store.list(after=0, limit=9, states=[State.QUEUED], campaign="x")] == ["c", "e"]
    assert await store.list(after=0, limit=9, states=[]) == []


async def test_a_number_is_never_used_twice(store: OperationStore) -> None:
    await store.create(operation("a"), 10)
    await store.request_cancel("a")
    await store.delete("a")
    stored, _ = await store.create(operation("b"), 10)
    assert stored.number == 2


async def test_deleting(store: OperationStore) -> None:
    await store.create(operation("a", request_id="r"), 10)
    with pytest.raises(errors.FailedPrecondition):
        await store.delete("a")
    await store.request_cancel("a")
    await store.delete("a")
    with pytest.raises(errors.NotFound):
        await store.delete("a")
    assert (await store.create(operation("b", request_id="r"), 10))[1]


async def test_a_database_of_another_version_is_left_alone(tmp_path: Path) -> None:
    await (await OperationStore.open(database_url(tmp_path))).close()
    with sqlite3.connect(tmp_path / "operations.db") as connection:
        connection.execute("UPDATE schema_version SET version = 99")
    connection.close()
    with pytest.raises(errors.FailedPrecondition, match="version 99"):
        await OperationStore.open(database_url(tmp_path))


async def test_a_file_that_is_no_database(tmp_path: Path) -> None:
    (tmp_path / "operations.db").write_text("not a database, but long enough to be taken for one" * 100)
    with pytest.raises(errors.DataCorrupted, match="operations database"):
        await OperationStore.open(database_url(tmp_path))


@pytest.mark.parametrize(
    ("text", "states", "campaign"),
    [
        ("", None, None),
        ("  ", None, None),
        ("done=true", [State.CANCELLED, State.FAILED, State.SUCCEEDED], None),
        ("done = false", [State.QUEUED, State.RUNNING], None),
        ("metadata.state = STATE_RUNNING", [State.RUNNING], None),
        ("state = RUNNING AND done = true", [], None),
        ('campaign = "a b" AND done = false', [State.QUEUED, State.RUNNING], "a b"),
    ],
)
def test_filters(text: str, states: list[State] | None, campaign: str | None) -> None:
    assert parse_filter(text) == (states, campaign)


@pytest.mark.parametrize(
    "text", ["done", "done = maybe", "state = DONE", "done = true OR done = false", "x = 1", "AND"]
)
def test_filters_that_are_none(text: str) -> None:
    with pytest.raises(errors.InvalidInput):
        parse_filter(text)
