from __future__ import annotations

import re

import pytest

from lookalike import errors
from lookalike.errors import LookalikeError


def tree(root: type[LookalikeError] = LookalikeError) -> list[type[LookalikeError]]:
    return [
        root,
        *(kind for child in root.__subclasses__() if child.__module__ == errors.__name__ for kind in tree(child)),
    ]


CLASSES = tree()


@pytest.mark.parametrize("kind", CLASSES, ids=lambda kind: kind.__name__)
def test_the_reason_of_a_class_leads_back_to_it(kind: type[LookalikeError]) -> None:
    assert errors.error_class(kind("something").reason) is kind


@pytest.mark.parametrize("kind", CLASSES, ids=lambda kind: kind.__name__)
def test_reasons_are_upper_snake_and_documented_classes_are_all_there_are(kind: type[LookalikeError]) -> None:
    assert re.fullmatch(r"[A-Z][A-Z_]+", kind.default_reason)
    assert re.search(rf"^\s*{kind.__name__}\b", errors.__doc__ or "", re.MULTILINE)


def test_reasons_are_unique() -> None:
    assert len({kind.default_reason for kind in CLASSES}) == len(CLASSES)


def test_an_unknown_reason_is_our_own_fault() -> None:
    assert errors.error_class("NO_SUCH_REASON") is errors.InternalError


def test_an_error_carries_message_field_and_reason() -> None:
    error = errors.SchemaError("cast the column", field="users.parquet:age", reason="WRONG_TYPE")
    assert (str(error), error.message, error.field, error.reason) == (
        "cast the column",
        "cast the column",
        "users.parquet:age",
        "WRONG_TYPE",
    )
    assert errors.SchemaError("x").field is None


def test_empty_seeds_and_schema_errors_are_invalid_input() -> None:
    assert issubclass(errors.EmptySeeds, errors.InvalidInput)
    assert issubclass(errors.SchemaError, errors.InvalidInput)


@pytest.mark.parametrize("text", ["plain", "a b", "größer als 3", "日本", "a\u200db", "1\u00a0000"])
def test_text_that_steers_nothing_is_shown_as_it_is(text: str) -> None:
    assert errors.visible(text) == text


def test_text_that_would_steer_a_terminal_is_escaped() -> None:
    assert errors.visible("\x1b[31mred\x07\r\n") == r"\x1b[31mred\x07\r\n"
    assert errors.visible("a\u202eb\u2028\x9b") == r"a\u202eb\u2028\x9b"
