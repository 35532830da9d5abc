"""Log lines: what they are about, and that each is one line."""

from __future__ import annotations

import asyncio
import io
import json
import logging
import warnings
from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from lookalike import logs

NAME = "lookalike.test"
Start = Callable[[logs.Format], tuple[logging.Logger, io.StringIO]]


@pytest.fixture
def start() -> Iterator[Start]:
    logger = logging.getLogger(NAME)

    def configured(form: logs.Format) -> tuple[logging.Logger, io.StringIO]:
        stream = io.StringIO()
        logs.configure(form, stream, logger=NAME, level=logging.INFO)
        return logger, stream

    yield configured
    logger.handlers.clear()
    logger.propagate = True


def parsed(stream: io.StringIO) -> list[dict[str, Any]]:
    return [json.loads(line) for line in stream.getvalue().splitlines()]


def test_json_is_one_object_a_line_whatever_the_message(start: Start) -> None:
    logger, stream = start("json")
    logger.info('two\nlines, "quotes" and %s', "é\u2028")
    try:
        raise ValueError("bad\nvalue")
    except ValueError:
        logger.exception("it failed")
    first, second = parsed(stream)
    assert first["message"] == 'two\nlines, "quotes" and é\u2028'
    assert (first["level"], first["logger"]) == ("INFO", NAME)
    assert abs(datetime.fromisoformat(first["time"]) - datetime.now(UTC)) < timedelta(minutes=5)
    assert "traceback" not in first
    assert second["error"] == "ValueError"
    assert second["traceback"].startswith("Traceback")


def test_a_line_says_what_it_is_about_and_no_other_does(start: Start) -> None:
    logger, stream = start("json")

    async def handle(name: str, tenant: str | None) -> None:
        logs.bind(operation=name, tenant=tenant)
        await asyncio.sleep(0)
        logger.info("inside")
        await asyncio.to_thread(logger.info, "on a thread")

    async def both() -> None:
        await asyncio.gather(handle("a", "acme"), handle("b", None))

    asyncio.run(both())
    with logs.bound(operation="c"):
        logs.bind(tenant="shop")
        logger.info("in a block")
    logger.info("outside")
    about = {(line["message"], line.get("operation"), line.get("tenant")) for line in parsed(stream)}
    assert about == {
        ("inside", "a", "acme"),
        ("on a thread", "a", "acme"),
        ("inside", "b", None),
        ("on a thread", "b", None),
        ("in a block", "c", "shop"),
        ("outside", None, None),
    }


def test_text_is_for_people(start: Start) -> None:
    logger, stream = start("text")
    with logs.bound(operation="a", request_id="r"):
        logger.warning("slow")
    logger.warning("done")
    first, second = stream.getvalue().splitlines()
    assert first.endswith(f"WARNING {NAME}: slow [operation=a request_id=r]")
    assert second.endswith("done")


def test_warnings_are_lines_too() -> None:
    root = logging.getLogger()
    before = (list(root.handlers), root.level, root.propagate)
    stream = io.StringIO()
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("always")
            logs.configure("json", stream)
            warnings.warn("this is old", DeprecationWarning, stacklevel=1)
    finally:
        logging.captureWarnings(False)
        root.handlers[:], root.level, root.propagate = before
    (line,) = parsed(stream)
    assert line["logger"] == "py.warnings"
    assert "this is old" in line["message"]
