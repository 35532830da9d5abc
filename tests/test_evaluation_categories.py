"""Categories of campaigns and what is alike: by hand, and against a plain loop."""

from __future__ import annotations

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from lookalike.errors import InvalidInput
from lookalike.evaluation.categories import MOST_SHOWN, MOST_VALUES, Categories, alike, categories


def campaigns(**features: list[object]) -> pa.Table:
    count = len(next(iter(features.values())))
    return pa.table({"campaign_id": list(range(count)), **features, "split": ["test"] * count})


def test_of_a_list_the_first_value_and_nothing_where_there_is_none() -> None:
    table = campaigns(tags=[["a", "b"], [], None, ["b"]])
    assert categories(table, "tags", [3, 0, 1, 2]) == Categories("tags", ("b", "a", "", ""))


def test_without_a_field_the_first_that_makes_categories() -> None:
    many = MOST_VALUES + 2
    columns: dict[str, list[object]] = {
        "name": [f"n{i}" for i in range(many)],
        "alone": ["x"] * many,
        "mostly": ["x" if i <= many // 2 else "y" for i in range(many)],
        "kind": [f"k{i % 3}" for i in range(many)],
        "other": [f"o{i % 3}" for i in range(many)],
    }
    assert categories(campaigns(**columns), None, [4]) == Categories("kind", ("k1",))
    for field in ("name", "alone", "mostly"):
        assert categories(campaigns(**columns), field, [0]) == Categories(field, (str(columns[field][0]),))
    tagged = campaigns(**columns, tags=[[f"t{i % 5}", "t0"] for i in range(many)])
    assert categories(tagged, None, [4]) == Categories("tags", ("t4",))


def test_what_makes_no_categories_is_named_with_what_there_is() -> None:
    table = campaigns(kind=["a", "b"], brand=["c", "c"])
    with pytest.raises(InvalidInput, match="no field 'genre'; they have kind, brand") as raised:
        categories(table, "genre", [])
    assert raised.value.field == "category"
    with pytest.raises(InvalidInput, match="no field of the campaigns makes categories by itself; name one of brand"):
        categories(campaigns(brand=["c", "c"]), None, [])


@given(st.lists(st.sampled_from(["", *"abcdefghij"]), max_size=60))
def test_the_most_common_are_shown(of: list[str]) -> None:
    shown = Categories("kind", tuple(of)).shown
    counts = [of.count(value) for value in shown]
    assert len(shown) == min(MOST_SHOWN, len({*of} - {""}))
    assert counts == sorted(counts, reverse=True)
    assert all(of.count(value) <= min(counts) for value in {*of} - {"", *shown})


@given(
    st.lists(
        st.tuples(st.integers(-9, 9), st.integers(-9, 9), st.sampled_from(["", "a", "b", "c"])), min_size=2, max_size=20
    )
)
def test_alike_against_a_plain_loop(rows: list[tuple[int, int, str]]) -> None:
    points, of = np.array([row[:2] for row in rows], np.float64), [row[2] for row in rows]
    known = [i for i, value in enumerate(of) if value]
    if len(known) < 2:
        with pytest.raises(InvalidInput, match="fewer than two"):
            alike(points, of)
        return
    found = alike(points, of)
    same = 0
    for i in known:
        others = [j for j in known if j != i]
        distances = [((points[i] - points[j]) ** 2).sum() for j in others]
        nearest = others[int(np.argmin(distances))]
        same += of[nearest] == of[i]
    pairs = [(i, j) for i in known for j in known if i != j]
    assert found.share == pytest.approx(same / len(known))
    assert found.chance == pytest.approx(np.mean([of[i] == of[j] for i, j in pairs]))
