"""What a client may be given, and what it refuses before anything is sent."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from certificates import Authority
from hypothesis import given
from hypothesis import strategies as st

from lookalike import errors
from lookalike.addresses import check_address, is_loopback
from lookalike.channel import open_channel


@pytest.fixture
def files(tmp_path: Path) -> dict[str, Path]:
    authority = Authority(tmp_path, "authority")
    pair = authority.issue("client")
    (tmp_path / "token").write_text("lk_1_2")
    return {
        "token_file": tmp_path / "token",
        "ca_file": authority.pem,
        "certificate_file": pair.certificate,
        "key_file": pair.key,
    }


@pytest.mark.parametrize("address", ["example.com:8500", "10.0.0.1:8500", "[2001:db8::1]:8500", "localhost.evil:8500"])
def test_without_a_token_nothing_is_sent_to_another_machine(address: str, files: dict[str, Path]) -> None:
    with pytest.raises(errors.InvalidInput, match="loopback") as caught:
        open_channel(address)
    assert caught.value.field == "token_file"
    open_channel(address, **files).close()


@pytest.mark.parametrize("left_out", ["certificate_file", "key_file"])
def test_a_certificate_and_its_key_come_together(left_out: str, files: dict[str, Path]) -> None:
    with pytest.raises(errors.InvalidInput) as caught:
        open_channel("127.0.0.1:1", **{name: path for name, path in files.items() if name != left_out})
    assert caught.value.field == left_out


def test_files_of_tls_without_a_token(files: dict[str, Path]) -> None:
    with pytest.raises(errors.InvalidInput) as caught:
        open_channel("127.0.0.1:1", ca_file=files["ca_file"])
    assert caught.value.field == "token_file"


@pytest.mark.parametrize("field", ["token_file", "ca_file", "certificate_file", "key_file"])
def test_a_file_that_is_not_there_or_something_else(field: str, files: dict[str, Path], tmp_path: Path) -> None:
    changed: dict[str, Any] = {**files, field: tmp_path / "none"}
    with pytest.raises(errors.NotFound) as missing:
        open_channel("127.0.0.1:1", **changed)
    assert missing.value.field == field
    if field != "token_file":
        (tmp_path / "none").write_text("something else")
        with pytest.raises(errors.InvalidInput):
            open_channel("127.0.0.1:1", **changed)


@given(st.ip_addresses(v=4), st.integers(0, 2**16 - 1))
def test_an_address_is_loopback_or_not(address: Any, port: int) -> None:
    assert is_loopback(f"{address}:{port}") == address.is_loopback
    check_address(f"{address}:{port}", field="x")


@pytest.mark.parametrize("address", ["", ":1", "host", "host:", "host:x", "host:-1", "host:65536", "host:²"])
def test_what_is_no_address(address: str) -> None:
    with pytest.raises(errors.InvalidInput) as caught:
        check_address(address, field="service.listen")
    assert caught.value.field == "service.listen"


@pytest.mark.parametrize(("address", "loopback"), [("localhost:1", True), ("[::1]:1", True), ("[::]:1", False)])
def test_other_addresses(address: str, loopback: bool) -> None:
    assert is_loopback(address) is loopback
