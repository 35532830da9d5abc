"""`lookalike token` and a client with what it makes, against a service that wants it."""

from __future__ import annotations

import json
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from certificates import Authority
from serving import Front, ScriptedRuntime, config_for, front

from lookalike.cli.app import run
from lookalike.service.token_file import TokenFile


@pytest.fixture
def authority(tmp_path: Path) -> Authority:
    return Authority(tmp_path / "pki", "authority")


@pytest.fixture
def secured(sample_pool: Path, tmp_path: Path, authority: Authority) -> Iterator[Front]:
    """Wants a client's certificate too."""
    pair = authority.issue("server")
    files = {"tls_certificate": pair.certificate, "tls_key": pair.key, "tls_client_ca": authority.pem}
    config = config_for(tmp_path / "data", insecure=False, **files)
    with front(config, sample_pool, ScriptedRuntime()) as running:
        yield running


def created(capsys: pytest.CaptureFixture[str], tmp_path: Path, *arguments: str) -> str:
    capsys.readouterr()
    assert run(["token", "create", "--set", f"service.data_dir={tmp_path / 'data'}", *arguments]) == 0
    return capsys.readouterr().out.strip()


def test_a_token_is_made_listed_rotated_and_revoked(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    where = ["--set", f"service.data_dir={tmp_path / 'data'}"]
    text = created(capsys, tmp_path, "--tenant", "shop", "--scope", "read", "--scope", "expand", "--description", "job")
    tokens = TokenFile(tmp_path / "data" / "tokens.json")
    token = tokens.find(text)
    assert token is not None
    assert token.expires is not None
    assert token.expires - token.created == timedelta(days=90)

    assert run(["token", "list", *where]) == 0
    listed = capsys.readouterr().out
    assert listed == f"{token.id}  active   {token.expires:%Y-%m-%d %H:%M}  shop  expand,read  job\n"

    heir_file = tmp_path / "heir"
    assert run(["token", "rotate", token.id, "--grace", "30m", "--output", str(heir_file), *where]) == 0
    said = capsys.readouterr()
    heir = tokens.find(heir_file.read_text().strip())
    assert heir is not None
    assert heir_file.stat().st_mode & 0o777 == 0o600
    assert said.out == ""
    assert heir.id in said.err
    assert heir_file.read_text().strip() not in said.err
    old = tokens.find(text)
    assert old is not None
    assert old.expires is not None
    assert old.expires < datetime.now(UTC) + timedelta(minutes=31)

    assert run(["token", "revoke", heir.id, *where]) == 0
    capsys.readouterr()
    assert run(["token", "list", "--json", *where]) == 0
    states = [(one["id"], one["state"], one["scopes"]) for one in json.loads(capsys.readouterr().out)]
    assert states == [(token.id, "active", ["expand", "read"]), (heir.id, "revoked", ["expand", "read"])]
    assert run(["token", "rotate", heir.id, *where]) == 5

    never = created(capsys, tmp_path, "--tenant", "shop", "--scope", "read", "--expires", "never")
    found = tokens.find(never)
    assert found is not None
    assert found.expires is None


def test_a_file_elsewhere_is_named_by_the_configuration(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    text = created(
        capsys, tmp_path, "--tenant", "shop", "--scope", "read", "--set", f"service.tokens={tmp_path / 'x' / 'tokens'}"
    )
    assert TokenFile(tmp_path / "x" / "tokens").find(text) is not None
    assert not (tmp_path / "data").exists()


def test_a_client_gets_in_with_its_files_and_does_what_its_token_allows(
    secured: Front, authority: Authority, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    robot = authority.issue("robot")
    for scopes in (("read",), ("read", "expand")):
        options = [word for scope in scopes for word in ("--scope", scope)]
        created(capsys, tmp_path, "--tenant", "shop", *options, "--output", str(tmp_path / "-".join(scopes)))
    where = ["--server", secured.address, "--ca-file", str(authority.pem)]
    where += ["--certificate-file", str(robot.certificate), "--key-file", str(robot.key)]
    may, may_not = (["--token-file", str(tmp_path / name)] for name in ("read-expand", "read"))
    (tmp_path / "seeds.txt").write_text("1\n2\n")
    order = ["client", "expand", "--campaign", "spring", "--seeds", str(tmp_path / "seeds.txt"), "-k", "4", *where]
    assert run([*order, *may_not]) == 10
    assert "scope 'expand'" in capsys.readouterr().err
    assert run([*order, *may, "--wait", "--json"]) == 0
    audience = json.loads(capsys.readouterr().out)
    assert run(["client", "members", audience["name"], "--limit", "9", *where, *may_not]) == 0
    assert len(capsys.readouterr().out.splitlines()) == 5
    (tmp_path / "read").write_text("lk_0_wrong")
    assert run(["client", "list", *where, *may_not]) == 9
    assert "no valid token" in capsys.readouterr().err
    without_certificate = [*where[:4], "--timeout", "1", *may]
    assert run(["client", "list", *without_certificate]) == 7
