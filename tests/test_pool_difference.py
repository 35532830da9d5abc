"""Differences between snapshots, against the plain rows."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pool_rows import users, write

from lookalike.dataset.vocabulary import build_schema
from lookalike.errors import FailedPrecondition
from lookalike.pool import difference
from lookalike.pool.difference import compare
from lookalike.pool.ingest import ingest
from lookalike.pool.snapshot import Pool

_words = st.sampled_from(["a", "b", "c", None])
_people = st.dictionaries(
    st.integers(-20, 20), st.tuples(_words, st.lists(st.sampled_from("xyz"), max_size=3)), min_size=1
)


def pool_of(folder: Path, people: dict[Any, tuple[str | None, list[str]]]) -> Pool:
    table = pa.table(
        {
            "user_id": list(people),
            "word": pa.array([word for word, _ in people.values()], pa.string()),
            "tags": pa.array([tags for _, tags in people.values()], pa.list_(pa.string())),
        }
    )
    folder.mkdir()
    return ingest(write(folder / "u.parquet", table), folder / "pool", shard_rows=5)


@settings(max_examples=25)
@given(old=_people, new=_people, text=st.booleans(), block=st.integers(1, 7))
def test_every_user_is_counted_as_what_became_of_them(
    tmp_path_factory: pytest.TempPathFactory, old: dict[Any, Any], new: dict[Any, Any], text: bool, block: int
) -> None:
    folder = tmp_path_factory.mktemp("diff")
    if text:
        old, new = ({f"u{user}": features for user, features in people.items()} for people in (old, new))
    # Each pool has the vocabulary of its own rows, so the same value has other ids.
    before, after = pool_of(folder / "old", old), pool_of(folder / "new", new)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(difference, "_BLOCK_ROWS", block)
        found = compare(before, after)
    both = old.keys() & new.keys()
    assert (found.users_old, found.users_new) == (len(old), len(new))
    assert (found.added, found.removed) == (len(new) - len(both), len(old) - len(both))
    assert (found.changed, found.unchanged) == (
        sum(old[user] != new[user] for user in both),
        sum(old[user] == new[user] for user in both),
    )
    assert found.fields == {
        "word": sum(old[user][0] != new[user][0] for user in both),
        "tags": sum(old[user][1] != new[user][1] for user in both),
    }


def test_fields_that_came_went_or_cannot_be_compared_are_named(tmp_path: Path) -> None:
    table = users(300)
    old = ingest(write(tmp_path / "u.parquet", table), tmp_path / "old")
    age = pa.array([None if value is None else value + 50 for value in table["age"].to_pylist()])
    later = table.drop_columns("tags").set_column(0, "age", age).append_column("shoes", pa.array(["x"] * 300))
    new = ingest(write(tmp_path / "v.parquet", later), tmp_path / "new")
    found = compare(old, new)
    assert found.fields == {"City": 0}
    assert (found.fields_added, found.fields_removed, found.incomparable) == (("shoes",), ("tags",), ("age",))
    assert (found.unchanged, found.changed, found.added, found.removed) == (300, 0, 0, 0)
    again = ingest(tmp_path / "v.parquet", tmp_path / "again", schema=build_schema(table.select(["age", "City"])))
    seen: list[tuple[int, int]] = []
    assert compare(old, again, lambda done, total: seen.append((done, total))).fields["age"] > 250
    assert seen[-1] == (600, 600)


def test_ids_of_two_types_cannot_be_compared(tmp_path: Path) -> None:
    numbers = ingest(write(tmp_path / "u.parquet", users(10)), tmp_path / "a")
    texts = ingest(write(tmp_path / "v.parquet", users(10, text=True)), tmp_path / "b")
    with pytest.raises(FailedPrecondition, match="int64.*string"):
        compare(numbers, texts)
