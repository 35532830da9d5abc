"""Vocabularies: order, limits, bins, and that a table and its Parquet give the same one."""

from __future__ import annotations

import math
from collections import Counter
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lookalike.dataset import vocabulary
from lookalike.dataset.vocabulary import build_schema
from lookalike.errors import InvalidInput, SchemaError
from lookalike.schema import FieldKind


def test_kinds_order_and_exclusions() -> None:
    table = pa.table(
        {
            "user_id": [1, 2, 3],
            "city": ["b", "a", "b"],
            "level": [10, 9, 10],
            "member": [True, False, True],
            "tags": [["y", "x"], None, ["x", None]],
            "age": [1.0, None, 3.0],
            "nothing": pa.nulls(3),
        }
    )
    schema = build_schema(table)
    assert [(f.name, f.kind) for f in schema.fields] == [
        ("city", FieldKind.CATEGORICAL),
        ("level", FieldKind.CATEGORICAL),
        ("member", FieldKind.CATEGORICAL),
        ("tags", FieldKind.MULTI),
        ("age", FieldKind.NUMERIC),
        ("nothing", FieldKind.CATEGORICAL),
    ]
    values = {f.name: f.values for f in schema.fields}
    assert values == {
        "city": ("b", "a"),
        "level": ("10", "9"),
        "member": ("true", "false"),
        "tags": ("x", "y"),
        "age": (),
        "nothing": (),
    }
    encoded = schema.encode(table, where="t")
    assert encoded.ids["level"].tolist() == [2, 3, 2]
    assert encoded.ids["member"].tolist() == [2, 3, 2]


_texts = st.text(st.characters(codec="utf-8"), max_size=3)


@settings(max_examples=40)  # each starts an SQL engine or two
@given(st.lists(st.none() | _texts), st.integers(1, 3), st.integers(1, 5))
def test_values_go_by_frequency_then_text_within_the_limits(
    column: list[str | None], min_count: int, max_values: int
) -> None:
    counts = Counter(value for value in column if value is not None)
    expected = sorted((v for v, n in counts.items() if n >= min_count), key=lambda v: (-counts[v], v.encode()))
    tables = [
        pa.table({"f": pa.array(column, pa.string())}),
        pa.table({"f": pa.array([column], pa.list_(pa.string()))}),
    ]
    for table in tables:
        schema = build_schema(table, exclude=(), min_count=min_count, max_values=max_values)
        assert schema.fields[0].values == tuple(expected[:max_values])


@settings(max_examples=40)
@given(st.lists(st.none() | st.floats()), st.integers(1, 8))
def test_bins_are_ascending_finite_and_cover_every_number(column: list[float | None], bins: int) -> None:
    table = pa.table({"f": pa.array(column, pa.float64())})
    field = build_schema(table, exclude=(), numeric_bins=bins).fields[0]
    assert len(field.boundaries) < bins
    assert all(map(math.isfinite, field.boundaries))
    assert all(a < b for a, b in zip(field.boundaries, field.boundaries[1:], strict=False))
    ids = field.encode(table["f"], where="f")[0]
    for value, i in zip(column, ids.tolist(), strict=True):
        missing = value is None or math.isnan(value)
        assert i == 0 if missing else 2 <= i < field.size
    finite = [i for value, i in zip(column, ids.tolist(), strict=True) if value is not None and math.isfinite(value)]
    if finite:  # no bin is wasted: each holds a value of the table
        assert set(finite) == set(range(2, field.size))


def test_bins_of_distinct_numbers_are_of_one_size() -> None:
    numbers = np.random.default_rng(0).permutation(6400).astype(float)
    field = build_schema(pa.table({"f": numbers}), exclude=()).fields[0]
    ids = field.encode(pa.array(numbers), where="f")[0]
    sizes = np.bincount(ids)[2:]
    assert len(sizes) == 64
    assert np.all(np.abs(sizes - 100) <= 1)


def test_a_parquet_of_many_row_groups_gives_the_schema_of_the_table(
    sample_dataset: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(vocabulary, "_QUANTILE_SAMPLE", 500)  # so that numeric fields are sampled
    table = pq.read_table(sample_dataset / "users.parquet")
    pq.write_table(table, tmp_path / "users.parquet", row_group_size=123)
    from_table = build_schema(table)
    assert build_schema(tmp_path / "users.parquet") == from_table
    pq.write_table(table.slice(0, 700), tmp_path / "a.parquet")
    pq.write_table(table.slice(700), tmp_path / "b.parquet")
    assert build_schema([tmp_path / "a.parquet", tmp_path / "b.parquet"]) == from_table


def test_a_sample_puts_the_bins_near_where_all_rows_would(monkeypatch: pytest.MonkeyPatch) -> None:
    numbers = np.random.default_rng(0).normal(size=100_000)
    exact = build_schema(pa.table({"f": numbers}), exclude=(), numeric_bins=10).fields[0].boundaries
    monkeypatch.setattr(vocabulary, "_QUANTILE_SAMPLE", 10_000)
    sampled = build_schema(pa.table({"f": numbers}), exclude=(), numeric_bins=10).fields[0].boundaries
    assert sampled != exact
    assert np.allclose(sampled, exact, atol=0.05)


def test_values_are_the_same_for_every_arrow_form_of_text() -> None:
    column = pa.array(["b", "a", None, "b"])
    forms = [column, column.cast(pa.large_string()), column.dictionary_encode()]
    assert {build_schema(pa.table({"f": form}), exclude=()).fields[0].values for form in forms} == {("b", "a")}


@pytest.mark.parametrize("limits", [{"numeric_bins": 0}, {"min_count": 0}, {"max_values": 0}])
def test_nonsensical_limits_are_refused(limits: dict[str, int]) -> None:
    with pytest.raises(InvalidInput) as caught:
        build_schema(pa.table({"f": ["a"]}), **limits)  # type: ignore[arg-type]
    assert caught.value.field == next(iter(limits))


def test_a_table_without_features_is_refused() -> None:
    with pytest.raises(InvalidInput, match="no feature column"):
        build_schema(pa.table({"user_id": [1]}))


def test_a_type_that_is_no_feature_is_named() -> None:
    with pytest.raises(SchemaError) as caught:
        build_schema(pa.table({"when": pa.array([0], pa.timestamp("s"))}), where="users.parquet")
    assert caught.value.field == "users.parquet:when"


def test_names_that_differ_by_case_only_are_refused() -> None:
    with pytest.raises(SchemaError, match="rename one"):
        build_schema(pa.table({"Age": ["a"], "age": ["b"]}))
