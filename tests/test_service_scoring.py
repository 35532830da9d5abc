"""ScoreUsers over gRPC: client, front and a process that scores, on audiences that were really made."""

from __future__ import annotations

import contextlib
import json
import shutil
import urllib.request
from collections.abc import AsyncIterator, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from prometheus_client.parser import text_string_to_metric_families
from serving import SECONDS, Front, ScriptedRuntime, config_for, front
from test_service_observability import free_port

from lookalike import errors
from lookalike.cli.app import run
from lookalike.client import Client
from lookalike.config import Config, RealtimeConfig
from lookalike.pool.snapshot import Pool
from lookalike.retrieval.audience import Audience
from lookalike.runtime.inprocess import InProcessRuntime
from lookalike.runtime.score_processes import ScoreProcesses
from lookalike.service import caller
from lookalike.service.audit import AuditLog
from lookalike.service.audit_sums import AuditSums
from lookalike.service.caller import Caller, Scope
from lookalike.service.permissions import RULES
from lookalike.training.checkpoint import fingerprint
from lookalike.v1 import scoring_pb2, scoring_pb2_grpc


class Scoring:
    """A front, a client, and an audience `audiences/spring` of 300 members."""

    def __init__(self, running: Front, client: Client, pool: Pool) -> None:
        self.running, self.client, self.pool = running, client, pool

    def made(self, name: str) -> Path:
        return Path(self.client.audience(f"audiences/{name}").parquet_path).parent

    def samples(self) -> dict[str, float]:
        """Of the metrics of scoring, without labels but `code`."""
        where = f"http://{self.running.config.service.metrics_listen}/metrics"
        with urllib.request.urlopen(where, timeout=SECONDS) as answer:
            families = text_string_to_metric_families(answer.read().decode())
        found = [
            sample for family in families for sample in family.samples if sample.name.startswith("audience_score_")
        ]
        return {
            sample.name + sample.labels.get("code", ""): sample.value for sample in found if "le" not in sample.labels
        }


@pytest.fixture(scope="module")
def scoring(
    sample_checkpoint: Path,
    sample_pool: Path,
    small_config: Config,
    order: dict[str, Any],
    tmp_path_factory: pytest.TempPathFactory,
) -> Iterator[Scoring]:
    folder = tmp_path_factory.mktemp("scoring")
    config = replace(
        config_for(folder / "data", metrics_listen=f"127.0.0.1:{free_port()}"),
        adaptation=small_config.adaptation,
        scoring=small_config.scoring,
    )

    @contextlib.asynccontextmanager
    async def processes() -> AsyncIterator[ScoreProcesses]:
        async with ScoreProcesses(RealtimeConfig(), log_file=folder / "scoring.log") as it:
            yield it

    with (
        front(
            config,
            sample_pool,
            lambda: InProcessRuntime(sample_checkpoint, config),
            scoring=processes,
            checkpoint=fingerprint(sample_checkpoint),
        ) as running,
        Client(running.address) as client,
    ):
        for number, name in enumerate(("spring", "summer")):
            client.expand(**order, audience_id=name, random_seed=number).result(SECONDS)
        yield Scoring(running, client, Pool.open(sample_pool))


def test_members_score_what_the_audience_says(scoring: Scoring) -> None:
    audience = Audience.open(scoring.made("spring"))
    members = audience.members(0, audience.num_members)
    scores = scoring.client.score("audiences/spring", members["user_id"], with_ranks=True)
    assert scores.users["user_id"].equals(members["user_id"].combine_chunks())
    assert scores.users["score"].equals(members["score"].combine_chunks())
    assert scores.users["rank"].to_pylist()[:3] == [1, 2, 3]
    assert set(scores.users["member"].to_pylist()) == {True}
    assert scores.model_sha256 == audience.receipt.model_sha256
    assert scores.pool_sha256 == audience.receipt.pool_sha256
    assert scores.cutoff_score == audience.receipt.cutoff_score == scores.users["score"][-1].as_py()


def test_who_is_no_member_and_who_is_unknown(scoring: Scoring) -> None:
    everybody = scoring.pool.user_ids(np.arange(scoring.pool.num_users))
    scores = scoring.client.score("audiences/spring", pa.concat_arrays([everybody, pa.array([-5])]), with_ranks=True)
    *rows, unknown = scores.users.to_pylist()
    assert unknown == {"user_id": -5, "score": None, "rank": None, "member": False}
    assert sum(row["member"] for row in rows) == 300
    for row in rows:
        assert (row["score"] >= scores.cutoff_score) or not row["member"]
        assert (row["score"] < scores.cutoff_score) == (row["rank"] > 300)
    assert scoring.client.score("audiences/spring", [1]).users.schema.names == ["user_id", "score"]


def test_two_audiences_have_two_models(scoring: Scoring) -> None:
    ids = scoring.pool.user_ids(np.arange(50))
    spring, summer = (scoring.client.score(f"audiences/{name}", ids) for name in ("spring", "summer"))
    assert spring.model_sha256 != summer.model_sha256
    assert not spring.users["score"].equals(summer.users["score"])


def test_what_is_wrong_with_a_request(scoring: Scoring) -> None:
    for users, said in (([], "0 users"), (range(10_001), "10,001 users"), (["a"], "integers, not strings")):
        with pytest.raises(errors.InvalidInput, match=said) as caught:
            scoring.client.score("audiences/spring", list(users))
        assert caught.value.field == "users"
    assert scoring.client.score("audiences/spring", list(range(10_000))).users.num_rows == 10_000
    with pytest.raises(errors.InvalidInput) as caught:
        scoring.client.score("spring", [1])
    assert caught.value.field == "audience"
    stub = scoring_pb2_grpc.ScoringServiceStub(scoring.client.connection.channel)
    with pytest.raises(Exception, match="0 users"):
        stub.ScoreUsers(scoring_pb2.ScoreUsersRequest(audience="audiences/spring"), timeout=SECONDS)


def test_what_another_tenant_has_is_not_there(scoring: Scoring, monkeypatch: pytest.MonkeyPatch) -> None:
    scoring.client.score("audiences/spring", [1])
    monkeypatch.setattr(caller, "current", lambda: Caller("other", frozenset(Scope)))
    with pytest.raises(errors.NotFound):
        scoring.client.score("audiences/spring", [1])


def test_an_audience_that_is_deleted_is_not_there_though_its_model_is_in_memory(
    scoring: Scoring, order: dict[str, Any]
) -> None:
    scoring.client.expand(**order, audience_id="gone", random_seed=9).result(SECONDS)
    scoring.client.score("audiences/gone", [1])
    shutil.rmtree(scoring.made("gone"))
    with pytest.raises(errors.NotFound):
        scoring.client.score("audiences/gone", [1])
    with pytest.raises(errors.NotFound):
        scoring.client.score("audiences/never", [1])


def test_calls_are_counted(scoring: Scoring) -> None:
    before = scoring.samples()
    scoring.client.score("audiences/spring", [1, 2, 3])
    with pytest.raises(errors.NotFound):
        scoring.client.score("audiences/never", [1])
    after = scoring.samples()
    rise = {name: after[name] - before[name] for name in before if after[name] != before[name]}
    assert rise.pop("audience_score_seconds_sum") > 0
    assert rise == {
        "audience_score_requests_totalOK": 1,
        "audience_score_requests_totalNOT_FOUND": 1,
        "audience_score_seconds_count": 1,
        "audience_score_users_total": 3,
        "audience_score_model_hits_total": 1,
    }
    assert after["audience_score_model_loads_total"] >= 1


def test_the_command(scoring: Scoring, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "users.txt").write_text("-5\n1\n")
    command = ["client", "score", "audiences/spring", "--server", scoring.running.address]
    assert run([*command, "--users", str(tmp_path / "users.txt"), "--ranks"]) == 0
    heading, unknown, _ = capsys.readouterr().out.splitlines()
    assert heading == "user_id\tscore\trank\tmember"
    assert unknown == "-5\t\t\tFalse"
    assert run([*command, "--users", str(tmp_path / "users.txt"), "--json"]) == 0
    said = json.loads(capsys.readouterr().out)
    assert [user["user_id"] for user in said["users"]] == [-5, 1]
    assert len(said["model_sha256"]) == 64
    (tmp_path / "empty.txt").write_text("")
    assert run([*command, "--users", str(tmp_path / "empty.txt")]) == 2


def test_who_has_opted_out_is_not_scored(scoring: Scoring) -> None:
    members = pa.concat_tables(pa.Table.from_batches([one]) for one in scoring.client.members("audiences/summer"))
    users = members["user_id"].combine_chunks()[:6]
    before = scoring.client.score("audiences/summer", users, with_ranks=True).users
    assert before["score"].null_count == 0
    scoring.client.opt_out(users[2:4])
    after = scoring.client.score("audiences/summer", users, with_ranks=True).users
    assert after["score"].is_null().to_pylist() == [False, False, True, True, False, False]
    assert after["score"].drop_null() == before["score"].take([0, 1, 4, 5])
    assert after["member"].to_pylist() == [True, True, False, False, True, True]


def test_a_service_without_it_says_how_to_have_it(sample_pool: Path, tmp_path: Path) -> None:
    with (
        front(config_for(tmp_path), sample_pool, ScriptedRuntime()) as running,
        Client(running.address) as client,
        pytest.raises(errors.FailedPrecondition, match="realtime.host") as caught,
    ):
        client.score("audiences/spring", [1])
    assert caught.value.reason == "REALTIME_OFF"


# ----------------------------------------------------------------------------------------------------------- audit log


def lines_of(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


async def test_calls_that_are_alike_have_two_lines(tmp_path: Path) -> None:
    audit = AuditLog(tmp_path / "audit.jsonl")
    sums = AuditSums(audit)
    for _ in range(500):
        await sums.note("score", members=100, audience="audiences/spring", code="OK")
        assert lines_of(audit.path)[0]["phase"] == "begin"  # before the answer
    await sums.note("score", members=0, audience="audiences/spring", code="NOT_FOUND")
    assert [line["phase"] for line in lines_of(audit.path)] == ["begin", "begin"]
    await sums.close()
    await audit.close()
    ends = [line for line in lines_of(audit.path) if line["phase"] == "end"]
    assert [(line["code"], line["calls"], line["members"]) for line in ends] == [
        ("OK", 500, 50_000),
        ("NOT_FOUND", 1, 0),
    ]


async def test_a_sum_ends_by_itself_and_the_next_begins(tmp_path: Path) -> None:
    audit = AuditLog(tmp_path / "audit.jsonl")
    sums = AuditSums(audit, seconds=0)
    await sums.note("score", members=1, code="OK")
    while sums._tasks:
        await next(iter(sums._tasks))
    await sums.note("score", members=2, code="OK")
    await sums.close()
    await audit.close()
    assert [(line["phase"], line.get("members")) for line in lines_of(audit.path)] == [
        ("begin", None),
        ("end", 1),
        ("begin", None),
        ("end", 2),
    ]


async def test_what_cannot_be_noted_is_not_answered(tmp_path: Path) -> None:
    (tmp_path / "log").mkdir()
    audit = AuditLog(tmp_path / "log" / "audit.jsonl")
    sums = AuditSums(audit)
    shutil.rmtree(tmp_path / "log")
    for _ in range(2):  # and is not taken for noted the next time
        with pytest.raises(errors.Unavailable):
            await sums.note("score", members=1, code="OK")
    (tmp_path / "log").mkdir()
    await sums.note("score", members=1, code="OK")
    await sums.close()
    await audit.close()
    assert [line["phase"] for line in lines_of(audit.path)] == ["begin", "end"]


def test_who_scored_is_in_the_log_and_whom_is_not(sample_pool: Path, tmp_path: Path) -> None:
    with front(config_for(tmp_path), sample_pool, ScriptedRuntime()) as running, Client(running.address) as client:
        for _ in range(3):
            with pytest.raises(errors.FailedPrecondition):
                client.score("audiences/spring", [987654321])
    begin, end = (line for line in lines_of(tmp_path / "audit.jsonl") if line["event"] == "score")
    assert (begin["phase"], begin["tenant"], begin["method"]) == ("begin", "local", "ScoreUsers")
    assert (end["audience"], end["code"], end["calls"]) == ("audiences/spring", "FAILED_PRECONDITION", 3)
    assert "987654321" not in (tmp_path / "audit.jsonl").read_text()


def test_it_has_a_scope_of_its_own() -> None:
    rule = RULES["/lookalike.v1.ScoringService/ScoreUsers"]
    assert (rule.scope, rule.summed) == (Scope.SCORE, True)
    assert [method for method, rule in RULES.items() if rule.scope is Scope.SCORE] == [
        "/lookalike.v1.ScoringService/ScoreUsers"
    ]
