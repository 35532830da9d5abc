"""The operations database: made, upgraded from every version, refused when it is newer, not ours, or away."""

from __future__ import annotations

import json
import sqlite3
from pathlib import Path

import alembic.command
import alembic.config
import pytest
import sqlalchemy as sa
from alembic.autogenerate import compare_metadata
from alembic.runtime.migration import MigrationContext
from operations import operation, stores
from serving import ScriptedRuntime, config_for, front

from lookalike import errors
from lookalike.client import Client
from lookalike.runtime.wire import job_to_json
from lookalike.service import database as database_module
from lookalike.service.database import Database, database_url
from lookalike.service.records import METADATA, PEOPLE, State

# As a server before tenants and Alembic made it: the schema, word for word.
VERSION_1 = """
CREATE TABLE schema_version (version INTEGER NOT NULL);
INSERT INTO schema_version VALUES (1);
CREATE TABLE operations (
	number INTEGER NOT NULL PRIMARY KEY AUTOINCREMENT,
	id VARCHAR(64) NOT NULL,
	request_id VARCHAR(128),
	request_sha256 VARCHAR(64) NOT NULL,
	campaign TEXT NOT NULL,
	job TEXT NOT NULL,
	state VARCHAR(16) NOT NULL,
	stage VARCHAR(16),
	stage_done BIGINT NOT NULL,
	stage_total BIGINT NOT NULL,
	users_scored BIGINT NOT NULL,
	users_total BIGINT NOT NULL,
	attempts INTEGER NOT NULL,
	cancel_requested BOOLEAN NOT NULL,
	created FLOAT NOT NULL,
	started FLOAT,
	ended FLOAT,
	error TEXT,
	UNIQUE (id),
	UNIQUE (request_id)
);
CREATE INDEX ix_operations_state ON operations (state);
"""
DELETED = "d" * 32  # an audience whose operation was deleted


def version_1(folder: Path) -> dict[str, str]:
    """A data folder of old, with an operation in every state, by id; the last one accepted is gone."""
    (folder / "audiences" / DELETED).mkdir(parents=True)
    states = {f"{n:032x}": state.value for n, state in enumerate(State)}
    with sqlite3.connect(folder / "operations.db") as connection:
        connection.executescript(VERSION_1)
        for n, (name, state) in enumerate(states.items()):
            job = json.dumps(job_to_json(operation(name).job))
            row = (name, f"r{n}", "s", "c", job, state, "SCORING", 5, 9, 5, 100, 1, False, 10.0 + n, 20.0, 30.0, None)
            connection.execute(
                "INSERT INTO operations (id, request_id, request_sha256, campaign, job, state, stage, stage_done, "
                "stage_total, users_scored, users_total, attempts, cancel_requested, created, started, ended, error) "
                "VALUES (" + ", ".join("?" * len(row)) + ")",
                row,
            )
        connection.execute("UPDATE sqlite_sequence SET seq = 77 WHERE name = 'operations'")
    connection.close()
    return states


async def test_an_old_database_is_brought_up_without_loss(tmp_path: Path) -> None:
    states = version_1(tmp_path)
    for _ in range(2):  # the second time there is nothing to do
        async with stores("", tmp_path) as both:
            listed = await both.store.list("local", after=0, limit=100)
            assert {one.id: one.state.value for one in listed} == states
            assert [one.number for one in listed] == [1, 2, 3, 4, 5]
            assert [one.audience_id for one in listed] == list(states)
            assert all((one.users_scored, one.attempts, one.started) == (5, 1, 20.0) for one in listed)
            asked = {"audience_id": "", "request_sha256": "s"}
            assert await both.store.find("local", request_id="r0", **asked) == listed[0]
            (succeeded,) = (one.id for one in listed if one.state is State.SUCCEEDED)
            for audience in (succeeded, DELETED):
                assert await both.audience(audience, tenant="local") == audience
            with pytest.raises(errors.NotFound):
                await both.audience(DELETED, tenant="other")
    async with stores("", tmp_path) as both:
        assert (await both.create("new", tenant="local", created=99.0)).number == 78
        await both.leases.requeue_abandoned([], everything=True)
        claimed = [await both.claim() for _ in range(3)]
        assert claimed == [*[name for name, state in states.items() if state in ("QUEUED", "RUNNING")], "new"]


def test_a_data_folder_of_old_is_served(sample_pool: Path, tmp_path: Path) -> None:
    states = version_1(tmp_path)
    with front(config_for(tmp_path, operation_days=0), sample_pool, ScriptedRuntime()) as running:
        with Client(running.address) as client:
            assert [one.name for one in client.operations()] == [f"operations/{name}" for name in states]
        assert (tmp_path / "audiences" / DELETED).exists()


@pytest.mark.parametrize("database_url", ["sqlite", "postgresql"], indirect=True)
async def test_the_migrations_lead_to_the_tables_that_the_code_knows(database_url: str, tmp_path: Path) -> None:
    async with stores(database_url, tmp_path) as both:

        def differences(connection: sa.Connection) -> list[object]:
            known = {"alembic_version", "schema_version"}
            options = {
                "compare_type": True,
                "include_name": lambda name, kind, _: kind != "table" or name not in known,
            }
            found = compare_metadata(MigrationContext.configure(connection, opts=options), METADATA)
            return [one for one in found if not (isinstance(one, list) and one[0][0] == "modify_default")]

        assert await both.database.run(differences) == []


async def test_each_version_can_be_come_from(database_url: str, tmp_path: Path) -> None:
    """On an empty database of each version; PostgreSQL's versions have no other history."""
    url = database_module.database_url(database_url, tmp_path)
    engine = sa.create_engine(url)
    config = alembic.config.Config()
    config.set_main_option("script_location", str(Path(database_module.__file__).parent / "migrations"))
    with engine.begin() as connection:
        config.attributes["connection"] = connection
        alembic.command.upgrade(config, "0001")
    engine.dispose()
    async with stores(database_url, tmp_path) as both:
        await both.create("a")
        assert await both.claim() == "a"


async def test_a_database_of_a_newer_version_is_left_alone(database_url: str, tmp_path: Path) -> None:
    async with stores(database_url, tmp_path) as both:
        await both.database.run(lambda c: c.execute(sa.text("UPDATE alembic_version SET version_num = '0099'")))
    with pytest.raises(errors.FailedPrecondition, match="version 0099") as caught:
        async with stores(database_url, tmp_path):
            pass
    assert caught.value.reason == "SCHEMA_VERSION"


async def test_an_unknown_version_of_old_is_left_alone(tmp_path: Path) -> None:
    version_1(tmp_path)
    with sqlite3.connect(tmp_path / "operations.db") as connection:
        connection.execute("UPDATE schema_version SET version = 99")
    connection.close()
    with pytest.raises(errors.FailedPrecondition, match="version 0099"):
        await Database.open(database_url("", tmp_path))


async def test_an_upgrade_that_fails_leaves_the_database_as_it_was(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    version_1(tmp_path)

    def dump() -> list[str]:
        with sqlite3.connect(tmp_path / "operations.db") as connection:
            lines = list(connection.iterdump())
        connection.close()
        return lines

    before = dump()
    with monkeypatch.context() as patch:

        def broken(*args: object) -> None:
            raise OSError("the disk is gone")

        patch.setattr("pathlib.Path.glob", broken)  # by when half of it is done
        with pytest.raises(OSError, match="the disk is gone"):
            await Database.open(database_url("", tmp_path))
    assert dump() == before
    async with stores("", tmp_path) as both:
        assert len(await both.store.list("local", after=0, limit=9)) == 5


async def test_a_file_that_is_no_database(tmp_path: Path) -> None:
    (tmp_path / "operations.db").write_text("not a database, but long enough to be taken for one" * 100)
    with pytest.raises(errors.DataCorrupted, match="operations database"):
        await Database.open(database_url("", tmp_path))


@pytest.mark.parametrize("url", ["mysql://host/db", "postgresql", "sqlite:///x", "://", "postgresql://[::/x"])
def test_what_is_no_url_of_postgresql(url: str, tmp_path: Path) -> None:
    with pytest.raises(errors.InvalidInput) as caught:
        database_url(url, tmp_path)
    assert caught.value.field == "service.database_url"


async def test_a_server_that_is_not_there_is_told_without_its_password(tmp_path: Path) -> None:
    with pytest.raises(errors.Unavailable, match="cannot use the operations database") as caught:
        await Database.open(database_url(f"postgresql://me:secret@/db?host={tmp_path}", tmp_path))
    assert caught.value.reason == "DATABASE_UNAVAILABLE"
    assert "secret" not in caught.value.message


async def test_a_connection_that_breaks_is_unavailable_and_replaced(postgres_url: str, tmp_path: Path) -> None:
    async with stores(postgres_url, tmp_path) as both:
        await both.create("a")
        patience = sa.text("SHOW idle_in_transaction_session_timeout")
        assert await both.database.run(lambda c: c.scalar(patience)) == "10s"
        kill = sa.text("SELECT pg_terminate_backend(pg_backend_pid())")
        with pytest.raises(errors.Unavailable) as caught:
            await both.database.run(lambda c: c.execute(kill))
        assert caught.value.reason == "DATABASE_UNAVAILABLE"
        assert await both.states("a") == [State.QUEUED]


async def test_an_error_of_the_database_names_nobody(database_url: str, tmp_path: Path) -> None:
    def twice(connection: sa.Connection) -> None:
        for _ in range(2):
            connection.execute(PEOPLE.insert().values({"id": "one", "file": "seeds", "content": b"somebody"}))

    async with stores(database_url, tmp_path) as both:
        with pytest.raises(Exception, match="INSERT INTO people") as caught:
            await both.database.run(twice)
    assert "somebody" not in str(caught.value)
