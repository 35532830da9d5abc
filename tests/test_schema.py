"""Fields, encoding and encoded columns."""

from __future__ import annotations

import json
import math

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from lookalike.errors import SchemaError
from lookalike.schema import (
    EncodedColumns,
    FeatureSchema,
    Field,
    FieldKind,
    as_ids,
    id_type,
    kind_of,
    require_column,
)

CITY = Field("city", FieldKind.CATEGORICAL, values=("rome", "oslo"))
TAGS = Field("tags", FieldKind.MULTI, values=("a", "b", "c"))
AGE = Field("age", FieldKind.NUMERIC, boundaries=(10.0, 20.0))
SCHEMA = FeatureSchema((CITY, TAGS, AGE))


def test_ids_are_missing_unknown_then_values() -> None:
    ids, offsets = CITY.encode(pa.array([None, "paris", "rome", "oslo"]), where="city")
    assert ids.tolist() == [0, 1, 2, 3]
    assert offsets is None


def test_numbers_fall_in_bins_closed_below_and_nan_is_missing() -> None:
    column = pa.array([None, math.nan, -math.inf, 9.9, 10.0, 19.0, 20.0, math.inf])
    assert AGE.encode(column, where="age")[0].tolist() == [0, 0, 2, 2, 3, 3, 4, 4]


def test_integers_may_stand_for_numbers() -> None:
    assert AGE.encode(pa.array([5, None, 25]), where="age")[0].tolist() == [2, 0, 4]


def test_lists_lose_nulls_and_empty_ones_have_no_ids() -> None:
    column = pa.array([["a", None, "z"], [], None, ["c", "a"]])
    ids, offsets = TAGS.encode(column, where="tags")
    assert offsets is not None
    assert ids.tolist() == [2, 1, 4, 2]
    assert offsets.tolist() == [0, 2, 2, 2, 4]


@pytest.mark.parametrize(
    "column",
    [
        pa.array(["rome", None, "x"]).dictionary_encode(),
        pa.chunked_array([["rome"], [None, "x"]]),
        pa.array(["-", "rome", None, "x", "-"]).slice(1, 3),
        pa.array(["rome", None, "x"], pa.large_string()),
    ],
    ids=["dictionary", "chunked", "slice", "large"],
)
def test_every_arrow_form_of_text_encodes_alike(column: pa.Array) -> None:
    assert CITY.encode(column, where="city")[0].tolist() == [2, 0, 1]


@pytest.mark.parametrize(
    "column",
    [
        pa.array([["a", "z"], None, ["c", "a"]], pa.large_list(pa.string())),
        pa.array([["a", "z"], None, ["c", "a"]], pa.list_(pa.string(), 2)),
        pa.array([["b"], ["a", "z"], None, ["c", "a"]]).slice(1),
        pa.array([["a", "z"], None, ["c", "a"]], pa.list_(pa.dictionary(pa.int8(), pa.string()))),
    ],
    ids=["large", "fixed", "slice", "dictionary"],
)
def test_every_arrow_form_of_lists_encodes_alike(column: pa.Array) -> None:
    ids, offsets = TAGS.encode(column, where="tags")
    assert offsets is not None
    assert (ids.tolist(), offsets.tolist()) == ([2, 1, 4, 2], [0, 2, 2, 4])


@pytest.mark.parametrize("field", SCHEMA.fields, ids=lambda field: field.kind.value)
def test_a_column_of_nulls_is_missing(field: Field) -> None:
    ids, offsets = field.encode(pa.nulls(3), where="x")
    assert ids.tolist() == ([] if field is TAGS else [0, 0, 0])
    assert (offsets is None) == (field is not TAGS)


@pytest.mark.parametrize(
    ("field", "column"),
    [(CITY, pa.array([1.5])), (CITY, pa.array([["a"]])), (TAGS, pa.array(["a"])), (AGE, pa.array(["10"]))],
)
def test_a_column_of_another_kind_is_refused_by_name(field: Field, column: pa.Array) -> None:
    with pytest.raises(SchemaError, match="users:col") as caught:
        field.encode(column, where="users:col")
    assert caught.value.field == "users:col"


@pytest.mark.parametrize("kind", [pa.timestamp("s"), pa.struct([("a", pa.int8())]), pa.list_(pa.list_(pa.string()))])
def test_types_that_are_no_feature_are_refused(kind: pa.DataType) -> None:
    with pytest.raises(SchemaError, match="cast or drop"):
        kind_of(kind, where="x")


@pytest.mark.parametrize(
    ("known", "dtype"), [(254, np.uint8), (255, np.uint16), (65_534, np.uint16), (65_535, np.uint32)]
)
def test_ids_take_the_narrowest_unsigned_integer(known: int, dtype: type[np.unsignedinteger]) -> None:
    field = Field("f", FieldKind.CATEGORICAL, values=tuple(map(str, range(known))))
    assert field.size == known + 2
    assert field.dtype == dtype
    ids = field.encode(pa.array([str(known - 1)]), where="f")[0]
    assert ids.dtype == dtype
    assert ids[0] == field.size - 1


def test_json_and_fingerprint_round_trip() -> None:
    again = FeatureSchema.from_json(json.loads(json.dumps(SCHEMA.to_json())))
    assert again == SCHEMA
    assert again.fingerprint == SCHEMA.fingerprint
    assert FeatureSchema((CITY, AGE)).fingerprint != SCHEMA.fingerprint


@pytest.mark.parametrize("data", [{}, {"fields": [{"name": "x"}]}, {"fields": 3}, {"fields": [{"kind": "no"}]}])
def test_json_that_is_no_schema_is_refused(data: dict[str, object]) -> None:
    with pytest.raises(SchemaError):
        FeatureSchema.from_json(data)


def test_encoding_a_table_names_a_missing_column() -> None:
    with pytest.raises(SchemaError, match="'tags' is missing in users") as caught:
        SCHEMA.encode(pa.table({"city": ["rome"], "age": [1.0]}), where="users")
    assert caught.value.field == "users:tags"


def test_a_column_that_appears_twice_is_refused() -> None:
    with pytest.raises(SchemaError, match="more than once"):
        require_column(pa.schema([("a", pa.int8()), ("a", pa.int8())]), "a", where="t")


@pytest.mark.parametrize(
    ("features", "ids", "tags"),
    [
        ({"city": "oslo", "tags": ["b", "a"], "age": 15}, (3, 3), [3, 2]),
        ({"tags": "b", "age": None}, (0, 0), [3]),
        ({}, (0, 0), []),
        ({"age": math.nan, "tags": []}, (0, 0), []),
    ],
)
def test_one_row_by_name(features: dict[str, object], ids: tuple[int, int], tags: list[int]) -> None:
    row = SCHEMA.encode_features(features, where="features")  # type: ignore[arg-type]
    assert row.length == 1
    assert (row.ids["city"][0], row.ids["age"][0]) == ids
    assert row.ids["tags"].tolist() == tags
    assert row.offsets["tags"].tolist() == [0, len(tags)]


@pytest.mark.parametrize("features", [{"town": "rome"}, {"city": ["rome"]}, {"age": "old"}, {"age": {}}])
def test_wrong_features_are_refused_by_name(features: dict[str, object]) -> None:
    with pytest.raises(SchemaError) as caught:
        SCHEMA.encode_features(features, where="features")  # type: ignore[arg-type]
    assert caught.value.field == f"features.{next(iter(features))}"


@pytest.mark.parametrize(("column", "value"), [(pa.array([3]), 3.0), (pa.array([True]), True), (pa.array(["3"]), 3)])
def test_a_value_by_name_is_the_same_text_as_in_a_column(column: pa.Array, value: float) -> None:
    field = Field("f", FieldKind.CATEGORICAL, values=("3", "true"))
    by_name = FeatureSchema((field,)).encode_features({"f": value}, where="f").ids["f"]
    assert by_name[0] >= 2
    assert by_name.tolist() == field.encode(column, where="f")[0].tolist()


def test_ids_of_users_are_int64_or_strings() -> None:
    assert id_type(pa.uint16(), where="x") == pa.int64()
    assert as_ids(pa.array([1, None], pa.int8()), where="x").equals(pa.array([1, None], pa.int64()))
    assert as_ids(pa.array(["a"]).dictionary_encode(), where="x").equals(pa.array(["a"], pa.large_string()))
    with pytest.raises(SchemaError, match="integers or strings"):
        id_type(pa.float64(), where="x")
    with pytest.raises(SchemaError, match="64 bits"):
        as_ids(pa.array([2**63], pa.uint64()), where="x")


_rows = st.lists(
    st.tuples(
        st.sampled_from(["rome", "oslo", "bonn", None]),
        st.none() | st.lists(st.sampled_from(["a", "b", "z"])),
        st.none() | st.floats(),
    ),
    max_size=20,
)


def _encode(rows: list[tuple[object, object, object]]) -> EncodedColumns:
    city, tags, age = zip(*rows, strict=True) if rows else ((), (), ())
    return SCHEMA.encode(
        pa.table(
            {
                "city": pa.array(city, pa.string()),
                "tags": pa.array(tags, pa.list_(pa.string())),
                "age": pa.array(age, pa.float64()),
            }
        ),
        where="rows",
    )


def _plain(columns: EncodedColumns) -> list[tuple[int, list[int], int]]:
    starts = columns.offsets["tags"]
    return [
        (
            int(columns.ids["city"][r]),
            columns.ids["tags"][starts[r] : starts[r + 1]].tolist(),
            int(columns.ids["age"][r]),
        )
        for r in range(columns.length)
    ]


@given(_rows, st.data())
def test_slice_take_and_concat_agree_with_encoding_those_rows(
    rows: list[tuple[object, object, object]], data: st.DataObject
) -> None:
    whole = _encode(rows)
    start = data.draw(st.integers(0, len(rows)))
    stop = data.draw(st.integers(start, len(rows)))
    part = whole.slice(start, stop)
    assert _plain(part) == _plain(_encode(rows[start:stop]))
    chosen = data.draw(st.lists(st.integers(0, part.length - 1))) if part.length else []
    taken = part.take(np.array(chosen, np.int64))
    assert _plain(taken) == [_plain(part)[row] for row in chosen]
    assert _plain(EncodedColumns.concat([part, taken, whole])) == _plain(part) + _plain(taken) + _plain(whole)
