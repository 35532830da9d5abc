"""Staged folders: whole or not there."""

from __future__ import annotations

import hashlib
from pathlib import Path

import pytest

from lookalike.errors import AlreadyExists
from lookalike.files import file_digest, staged_folder


def stage(output: Path, *names: str, overwrite: bool = False, fail: BaseException | None = None) -> None:
    """Write empty files of these names; relative to the staged folder, or anywhere."""
    with staged_folder(output, overwrite=overwrite) as folder:
        for name in names:
            path = folder / name
            path.parent.mkdir(exist_ok=True)
            path.touch()
        if fail is not None:
            raise fail


def test_the_folder_appears_when_the_block_ends_and_not_before(tmp_path: Path) -> None:
    output = tmp_path / "deep" / "out"
    with staged_folder(output) as folder:
        (folder / "sub").mkdir()
        (folder / "sub" / "a").write_text("a")
        assert not output.exists()
    assert (output / "sub" / "a").read_text() == "a"
    assert list(output.parent.iterdir()) == [output]


@pytest.mark.parametrize("error", [ValueError, KeyboardInterrupt])
@pytest.mark.parametrize("overwrite", [False, True])
def test_a_failure_leaves_things_as_they_were(tmp_path: Path, error: type[BaseException], overwrite: bool) -> None:
    output = tmp_path / "out"
    if overwrite:
        output.mkdir()
        (output / "old").touch()
    with pytest.raises(error):
        stage(output, "new", overwrite=overwrite, fail=error())
    assert list(tmp_path.rglob("*")) == ([output, output / "old"] if overwrite else [])


def test_an_existing_folder_needs_overwrite(tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    with pytest.raises(AlreadyExists, match="overwrite"):
        stage(tmp_path / "out", fail=AssertionError("the block must not run"))


def test_overwrite_replaces_the_whole_folder(tmp_path: Path) -> None:
    output = tmp_path / "out"
    output.mkdir()
    (output / "old").touch()
    with staged_folder(output, overwrite=True) as folder:
        (folder / "new").touch()
        assert (output / "old").exists()
    assert [path.name for path in output.iterdir()] == ["new"]
    assert list(tmp_path.iterdir()) == [output]


def test_a_folder_that_appears_meanwhile_is_not_touched(tmp_path: Path) -> None:
    output = tmp_path / "out"
    with pytest.raises(AlreadyExists, match="appeared"):
        stage(output, "new", str(output / "theirs"))
    assert list(tmp_path.rglob("*")) == [output, output / "theirs"]


def test_digest(tmp_path: Path) -> None:
    (tmp_path / "a").write_bytes(b"abc")
    assert file_digest(tmp_path / "a") == hashlib.sha256(b"abc").hexdigest()
    assert file_digest(tmp_path / "a", "md5") == "900150983cd24fb0d6963f7d28e17f72"
