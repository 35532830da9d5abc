"""The audit log's file: whole lines, whatever became of it meanwhile; and a limit to what strangers can put there."""

from __future__ import annotations

import asyncio
import json
import os
import stat
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from lookalike import errors
from lookalike.service import audit
from lookalike.service.audit import MAX_REFUSALS, AuditLog


def lines(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


async def test_lines_are_there_when_note_returns(tmp_path: Path) -> None:
    log = AuditLog(tmp_path / "log")
    await asyncio.gather(*(log.note("read", number=n, nothing=None, text='a\n"b"') for n in range(100)))
    found = lines(log.path)
    assert [line["number"] for line in found] == list(range(100))
    assert all(line.keys() == {"time", "event", "number", "text"} for line in found)
    assert stat.S_IMODE(log.path.stat().st_mode) == 0o600
    await log.close()


async def test_a_log_is_gone_on_with(tmp_path: Path) -> None:
    for number in range(2):
        log = AuditLog(tmp_path / "log")
        await log.note("read", number=number)
        await log.close()
    assert [line["number"] for line in lines(tmp_path / "log")] == [0, 1]


@pytest.mark.parametrize("rotate", [lambda path: path.rename(path.with_name("log.1")), Path.unlink])
async def test_a_log_that_was_moved_away_is_begun_anew(tmp_path: Path, rotate: Callable[[Path], Any]) -> None:
    log = AuditLog(tmp_path / "log")
    await log.note("read", number=0)
    rotate(log.path)
    await log.note("read", number=1)
    assert [line["number"] for line in lines(log.path)] == [1]
    await log.close()


async def test_a_log_that_was_copied_and_cut_has_no_hole(tmp_path: Path) -> None:
    log = AuditLog(tmp_path / "log")
    await log.note("read", number=0)
    os.truncate(log.path, 0)
    await log.note("read", number=1)
    assert [line["number"] for line in lines(log.path)] == [1]
    await log.close()


async def test_a_line_that_was_cut_short_spoils_no_other(tmp_path: Path) -> None:
    (tmp_path / "log").write_text('{"event": "read", "num')  # as a power cut leaves it
    log = AuditLog(tmp_path / "log")
    await log.note("read", number=1)
    await log.close()
    cut, whole = (tmp_path / "log").read_text().splitlines()
    assert cut == '{"event": "read", "num'
    assert json.loads(whole)["number"] == 1


async def test_a_full_disk_is_told_and_got_over(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    log = AuditLog(tmp_path / "log")
    write = os.write

    def almost_full(file: int, data: bytes) -> int:
        monkeypatch.setattr(audit.os, "write", no_room)
        return write(file, data[:10])

    def no_room(file: int, data: bytes) -> int:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(audit.os, "write", almost_full)
    for _ in range(2):
        with pytest.raises(errors.Unavailable) as caught:
            await log.note("read", number=0)
        assert caught.value.reason == "AUDIT_UNAVAILABLE"
    monkeypatch.setattr(audit.os, "write", write)
    await log.note("read", number=1)
    await log.close()
    cut, whole = log.path.read_text().splitlines()
    assert len(cut) == 10
    assert json.loads(whole)["number"] == 1


async def test_lines_are_on_the_disk_soon_after(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    synced: list[int] = []
    happened = asyncio.Event()
    loop = asyncio.get_running_loop()
    fsync = os.fsync

    def seen(file: int) -> None:
        fsync(file)
        synced.append(os.fstat(file).st_size)
        loop.call_soon_threadsafe(happened.set)

    monkeypatch.setattr(audit, "SYNC_SECONDS", 0.01)
    monkeypatch.setattr(audit.os, "fsync", seen)
    log = AuditLog(tmp_path / "log")
    await log.note("read")
    await asyncio.wait_for(happened.wait(), 30)
    assert synced == [log.path.stat().st_size]
    await log.close()


async def test_whoever_is_refused_cannot_fill_the_disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    now = [600.0]
    monkeypatch.setattr(audit.time, "monotonic", lambda: now[0])
    log = AuditLog(tmp_path / "log")
    for _ in range(MAX_REFUSALS + 7):
        await log.note_refusal(why="no bearer token")
    await log.note("read")
    assert len(lines(log.path)) == MAX_REFUSALS + 1
    now[0] += 60
    await log.note_refusal(why="no bearer token")
    await log.note_refusal(why="no bearer token")
    assert [line.get("missing") for line in lines(log.path)[-2:]] == [7, None]
    await log.close()


def test_a_log_that_cannot_be_begun_is_told_at_once(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        AuditLog(tmp_path / "none" / "log")
