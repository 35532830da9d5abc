"""TLS in front of the service: certificates that are renewed, replaced and asked for, and where it may listen."""

from __future__ import annotations

import ssl
from pathlib import Path
from typing import Any

import grpc
import pytest
from certificates import Authority, Pair
from processes import wait_until
from secured import DAY, NO_SUCH, USERS, Secured, Start, code_of, order, refused
from serving import SECONDS, ScriptedRuntime, config_for, front

from lookalike import errors
from lookalike.service import members
from lookalike.v1 import audience_pb2, audience_pb2_grpc

# ---------------------------------------------------------------------------------------------------- TLS, certificates


def test_a_certificate_is_replaced_while_a_channel_streams(
    start: Start, big_pool: Path, stranger: Authority, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(members, "MESSAGE_BYTES", 16_384)
    secured = start(big_pool)
    token_file, _ = secured.token()
    audience = order(secured.client(token_file), k=USERS).result(SECONDS)
    channel = secured.channel(token_file)
    stub = audience_pb2_grpc.AudienceServiceStub(channel)
    stream = stub.StreamAudienceMembers(
        audience_pb2.StreamAudienceMembersRequest(audience=audience.name), timeout=SECONDS
    )
    got = len(next(stream).scores)
    secured.pair.replace(stranger.issue("renewed"))
    wait_until(lambda: secured.knock(token_file, ca_file=stranger.pem) is grpc.StatusCode.OK)
    with pytest.raises(errors.Unauthenticated, match="not trusted"):
        secured.client(token_file).audience(audience.name)
    assert got + sum(len(message.scores) for message in stream) == USERS
    # Even a connection that was in use is made anew for the next call.
    assert code_of(channel) is grpc.StatusCode.UNAVAILABLE


def test_a_pair_that_does_not_fit_is_not_taken_up(
    secured: Secured, stranger: Authority, caplog: pytest.LogCaptureFixture
) -> None:
    fresh = stranger.issue("half-way")
    token_file, _ = secured.token()
    secured.pair.certificate.write_bytes(fresh.certificate.read_bytes())  # and the key is still to come
    wait_until(lambda: "is not the key of" in caplog.text)
    assert "the former certificate stays in use" in caplog.text
    assert secured.knock(token_file) is grpc.StatusCode.OK
    secured.pair.key.write_bytes(fresh.key.read_bytes())
    wait_until(lambda: secured.knock(token_file, ca_file=stranger.pem) is grpc.StatusCode.OK)
    secured.pair.key.unlink()
    wait_until(lambda: f"there is no file {secured.pair.key}" in caplog.text)
    assert secured.knock(token_file, ca_file=stranger.pem) is grpc.StatusCode.OK


def test_renewals_one_after_the_other(secured: Secured, authority: Authority) -> None:
    token_file, _ = secured.token()
    serials = set()
    for number in range(5):
        fresh = authority.issue(f"renewal-{number}")
        secured.pair.replace(fresh)
        wait_until(lambda fresh=fresh: _served(secured) == fresh.certificate.read_text())
        serials.add(_served(secured))
        assert list(secured.client(token_file).operations()) == []
    assert len(serials) == 5


def _served(secured: Secured) -> str:
    host, _, port = secured.running.address.rpartition(":")
    try:
        return ssl.get_server_certificate((host, int(port)))
    except OSError:  # just when the one server takes over from the other
        return ""


def test_a_client_certificate_is_asked_for_besides_the_token(
    start: Start, authority: Authority, stranger: Authority, tmp_path: Path
) -> None:
    accepted = tmp_path / "clients.pem"
    accepted.write_bytes(authority.pem.read_bytes())
    secured = start(client_ca=accepted)
    token_file, token_id = secured.token()

    def attempt(pair: Pair | None) -> grpc.StatusCode:
        return secured.knock(token_file, certificate_file=pair and pair.certificate, key_file=pair and pair.key)

    good = authority.issue("robot")
    assert attempt(good) is grpc.StatusCode.OK
    for bad in (None, authority.issue("late", lasts=-DAY), stranger.issue("foreign")):
        assert attempt(bad) is grpc.StatusCode.UNAVAILABLE
    secured.certificate = good
    stub = audience_pb2_grpc.AudienceServiceStub(secured.bare())
    request = audience_pb2.GetAudienceRequest(name=f"audiences/{NO_SUCH}")
    assert refused(stub.GetAudience, request).code() is grpc.StatusCode.UNAUTHENTICATED
    order(secured.client(token_file))
    (line,) = secured.lines(event="expand")
    assert (line["token"], line["certificate"]) == (token_id, "robot")
    in_use = secured.channel(token_file)
    assert code_of(in_use) is grpc.StatusCode.OK
    accepted.write_bytes(stranger.pem.read_bytes())  # the authorities are read again, too
    newcomer = stranger.issue("newcomer")
    wait_until(lambda: attempt(newcomer) is grpc.StatusCode.OK)
    assert attempt(authority.issue("another")) is grpc.StatusCode.UNAVAILABLE
    wait_until(lambda: code_of(in_use) is grpc.StatusCode.UNAVAILABLE)


def test_a_server_that_is_not_trusted_is_not_talked_to(start: Start, stranger: Authority, authority: Authority) -> None:
    secured = start()
    token_file, _ = secured.token()

    def attempt(ca: Authority = authority) -> None:
        with pytest.raises(errors.Unauthenticated) as caught:  # at once: to try again would not help
            list(secured.client(token_file, ca_file=ca.pem).operations())
        assert caught.value.reason == "SERVER_NOT_TRUSTED"

    attempt(stranger)
    for bad in (authority.issue("old", lasts=-DAY), authority.issue("other", host="other.example")):
        secured.pair.replace(bad)
        wait_until(lambda bad=bad: _served(secured) == bad.certificate.read_text())
        attempt()
    assert secured.lines() == []  # no token has reached it


def test_what_is_not_encrypted_is_not_answered(secured: Secured) -> None:
    assert secured.knock(None) is grpc.StatusCode.UNAVAILABLE


# ------------------------------------------------------------------------------------------------------------ settings


@pytest.mark.parametrize("listen", ["127.0.0.1:0", "0.0.0.0:0", "[::1]:0"])
def test_without_a_certificate_a_front_starts_only_where_that_is_asked_for(
    listen: str, sample_pool: Path, tmp_path: Path
) -> None:
    config = config_for(tmp_path, listen=listen, insecure=False)
    with (
        pytest.raises(errors.InvalidInput, match="--insecure") as caught,
        front(config, sample_pool, ScriptedRuntime()),
    ):
        pass
    assert caught.value.field == "service.tls_certificate"


def test_settings_that_contradict_each_other(sample_pool: Path, tmp_path: Path, authority: Authority) -> None:
    pair, other = authority.issue("pair"), authority.issue("other")
    locked = authority.issue("locked", password=b"secret")
    text = tmp_path / "text"
    text.write_text("not a certificate")
    cases: list[tuple[dict[str, Any], str, str]] = [
        ({"insecure": True, "tls_certificate": pair.certificate}, "service.insecure", "exclude each other"),
        ({"tls_certificate": pair.certificate}, "service.tls_key", "--insecure"),
        ({"tls_certificate": pair.certificate, "tls_key": other.key}, "service.tls_key", "is not the key of"),
        ({"tls_certificate": locked.certificate, "tls_key": locked.key}, "service.tls_key", "password"),
        ({"tls_certificate": text, "tls_key": pair.key}, "service.tls_certificate", "no certificate and key"),
        ({"tls_certificate": pair.certificate, "tls_key": tmp_path}, "service.tls_key", "cannot read"),
        (
            {"tls_certificate": pair.certificate, "tls_key": pair.key, "tls_client_ca": text},
            "service.tls_client_ca",
            "no certificates of authorities",
        ),
    ]
    for service, name, said in cases:
        config = config_for(tmp_path / "data", **{"insecure": False, **service})
        with pytest.raises(errors.InvalidInput, match=said) as caught, front(config, sample_pool, ScriptedRuntime()):
            pass
        assert caught.value.field == name
    assert not (tmp_path / "data").exists()


def test_a_port_that_another_service_has_is_not_shared(secured: Secured, sample_pool: Path, tmp_path: Path) -> None:
    """Though servers of one service share theirs."""
    tls = {"tls_certificate": secured.pair.certificate, "tls_key": secured.pair.key}
    config = config_for(tmp_path / "other", insecure=False, listen=secured.running.address, **tls)
    with pytest.raises(errors.Unavailable) as caught, front(config, sample_pool, ScriptedRuntime()):
        pass
    assert caught.value.reason == "ADDRESS_IN_USE"


def test_with_tls_a_front_may_listen_anywhere(start: Start) -> None:
    secured = start(listen="0.0.0.0:0")
    secured.running.address = secured.running.address.replace("0.0.0.0", "127.0.0.1")
    assert list(secured.client().operations()) == []
