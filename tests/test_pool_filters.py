"""Filters: the same users as SQL finds on the raw columns, refused where the pool cannot tell."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import duckdb
import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pool_rows import write

from lookalike.dataset.vocabulary import build_schema
from lookalike.errors import DataCorrupted, InvalidInput
from lookalike.pool.bitmap import count, empty_bitmap, mark, marked, rows_of
from lookalike.pool.expression import canonical, parse
from lookalike.pool.filters import Filter
from lookalike.pool.ingest import ingest
from lookalike.pool.snapshot import Pool

COUNTRIES = ["DE", "AT", "it's", "B%", "b_x", "10", "é"]
EDGES = (10.0, 20.5, 30.0)
USERS = 300


def users(seed: int = 0) -> pa.Table:
    rng = np.random.default_rng(seed)

    def some(values: Sequence[object]) -> list[object]:
        return [None if rng.random() < 0.2 else values[int(rng.integers(len(values)))] for _ in range(USERS)]

    tags = [[f"t{n}" for n in rng.integers(0, 4, rng.integers(0, 4))] for _ in range(USERS)]
    return pa.table(
        {
            "user_id": np.arange(USERS),
            "country": some(COUNTRIES),
            "age": pa.array(some([-2, 1, 3, 10, 200]), pa.int64()),
            "Last Visit": pa.array(rng.choice([1.0, 10.0, 15.0, 20.5, 25.0, 30.0, 99.0, None], USERS), pa.float64()),  # type: ignore[arg-type]
            "tags": pa.array(tags, pa.list_(pa.string())),
        }
    )


@pytest.fixture(scope="module")
def table() -> pa.Table:
    return users()


@pytest.fixture(scope="module")
def pool(table: pa.Table, tmp_path_factory: pytest.TempPathFactory) -> Pool:
    """Several shards, whose ends are no multiples of eight. One country of the users is unknown to the schema."""
    folder = tmp_path_factory.mktemp("pool")
    known = build_schema(table.filter(pa.compute.fill_null(pa.compute.not_equal(table["country"], "é"), True)))
    fields = {field.name: field for field in known.fields}
    object.__setattr__(fields["Last Visit"], "boundaries", EDGES)
    return ingest(write(folder / "users.parquet", table), folder / "pool", schema=known, shard_rows=101)


def eligible(pool: Pool, text: str, threads: int = 1) -> list[int]:
    bitmap = Filter(text, pool.schema).ineligible(pool, threads)
    outside = np.concatenate([np.zeros(0, np.int64), *rows_of(bitmap)])
    return sorted(set(range(USERS)) - set(outside.tolist()))


def by_sql(table: pa.Table, text: str) -> list[int]:
    """What DuckDB finds. `é` is unknown: equal to nothing a filter may name, and of no order."""
    with duckdb.connect() as connection:
        connection.register("raw", table)
        found = connection.execute(
            "SELECT user_id FROM (SELECT * REPLACE (CASE WHEN len(tags) > 0 THEN tags END AS tags) FROM raw) "
            f"WHERE {text} ORDER BY user_id"
        ).fetchall()
    return [row[0] for row in found]


def quote(value: str) -> str:
    return "'" + value.replace("'", "''") + "'"


country = st.sampled_from([quote(value) for value in COUNTRIES[:-1]])
age = st.sampled_from(["-2", "1", "'3'", "10", "200"])
order = st.sampled_from(["<", "<=", ">", ">="])
leaves = st.one_of(
    st.builds(lambda o, v: f"country {o} {v}", st.sampled_from(["=", "!=", "<>"]), country),
    st.builds(
        lambda v, n: f"country {n} ({', '.join(v)})", st.lists(country, min_size=1), st.sampled_from(["in", "not in"])
    ),
    st.builds(lambda o, v: f"age {o} {v}", order | st.sampled_from(["=", "!="]), age),
    st.builds(lambda o, v: f"{v} {o} age", order, age),
    st.builds(lambda o, v: f"age {o} {v}", order, st.sampled_from(["0", "2.5", "-7", "9999999999999999"])),
    st.builds(lambda a, b, n: f"age {n} between {a} and {b}", age, age, st.sampled_from(["", "not"])),
    st.builds(lambda o, v: f'"Last Visit" {o} {v}', st.sampled_from(["<", ">="]), st.sampled_from(EDGES)),
    st.builds(lambda v: f"contains(tags, 't{v}')", st.integers(0, 3)),
    st.builds(
        lambda f, n: f"{f} is {n} null",
        st.sampled_from(["country", "age", '"Last Visit"', "tags"]),
        st.sampled_from(["", "not"]),
    ),
)
expressions = st.recursive(
    leaves,
    lambda part: st.one_of(
        st.builds(lambda a, b, o: f"({a}) {o} {b}", part, part, st.sampled_from(["and", "or", "AND", "Or"])),
        st.builds(lambda a, b, o: f"{a} {o} not ({b})", part, part, st.sampled_from(["and", "or"])),
        st.builds(lambda a: f"not ({a})", part),
    ),
    max_leaves=8,
)


@settings(max_examples=150)
@given(text=expressions)
def test_a_filter_finds_whom_sql_finds(pool: Pool, table: pa.Table, text: str) -> None:
    found = eligible(pool, text)
    assert found == by_sql(table, text)
    again = canonical(parse(text))
    assert canonical(parse(again)) == again
    assert eligible(pool, again, threads=3) == found


@pytest.mark.parametrize("pattern", ["D%", "%s", "_T", "%", "B\\%", "b\\_x", "''", "%é%"])
def test_like_is_sql_s(pool: Pool, table: pa.Table, pattern: str) -> None:
    known = "(CASE country WHEN 'é' THEN NULL ELSE country END)"
    like = pattern if pattern == "''" else f"'{pattern}'"
    escape = " ESCAPE '\\'"
    assert eligible(pool, f"country like {like}") == by_sql(table, f"{known} like {like}{escape}")
    assert eligible(pool, f"country not like {like}") == by_sql(table, f"{known} not like {like}{escape}")


def test_text_is_ordered_by_code_points_and_the_unknown_has_no_order(pool: Pool, table: pa.Table) -> None:
    known = "(CASE country WHEN 'é' THEN NULL ELSE country END)"
    for text in ("{} >= 'AT'", "{} < 'b_x'", "not ({} < 'DE')", "{} between '10' and 'DE'"):
        assert eligible(pool, text.format("country")) == by_sql(table, text.format(known))
    everyone = set(eligible(pool, "country != 'DE'"))
    strangers = [n for n, value in enumerate(table["country"].to_pylist()) if value == "é"]
    assert strangers
    assert everyone.issuperset(strangers)
    assert not set(strangers) & set(eligible(pool, "country < 'DE' or country >= 'DE' or country is null"))


def test_one_filter_however_it_is_written() -> None:
    texts = [
        "country in ('DE','AT') and age >= '3'",
        " ( country IN ('AT', 'DE', 'DE') )  AND '3' <= (\"age\") -- both",
        "not (country not in ('DE', 'AT')) and not not age >= 3",
    ]
    assert {canonical(parse(text)) for text in texts} == {"\"country\" IN ('AT', 'DE') AND \"age\" >= '3'"}
    assert canonical(parse("a = 1 or (b = 'x''y' and c = -1.5) or d = true")) == (
        "\"a\" = '1' OR (\"b\" = 'x''y' AND \"c\" = '-1.5') OR \"d\" = 'true'"
    )


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("", "cannot be read"),
        ("country", "no comparison"),
        ("country = 'DE' and", "cannot be read"),
        ("country = 'DE", "cannot be read"),
        ("country = 'DE'; drop table users", "column"),
        ("country = 'DE' country", "at 'country'"),
        ("select 1", "cannot be read"),
        ("country in (select 1)", "says more"),
        ("country in ()", "is empty"),
        ("country = age", "compare with a value"),
        ("country = NULL", "write IS NULL"),
        ("country is 'DE'", "NULL only"),
        ("country = 'DE' = 'AT'", "does not compare a field"),
        ("1 = 1", "does not compare a field"),
        ("u.country = 'DE'", "says more"),
        ("lower(country) = 'de'", "does not compare a field"),
        ("read_csv('/etc/passwd') = 'x'", "does not compare a field"),
        ("country = getenv('HOME')", "compare with a value"),
        ("exists (select * from read_text('/etc/passwd'))", "no comparison"),
        ("country::text = 'DE'", "does not compare a field"),
        ("country like any ('DE', 'AT')", "compare with a value"),
        ("country like 'D!%' escape '!'", "no comparison"),
        ("age between symmetric 3 and 1", "says more"),
        ("country = $1", "compare with a value"),
        ("contains(tags, 't1', 't2')", "says more"),
        ("(" * 5000 + "age = 1" + ")" * 5000, "nested too deeply"),
        ("age = 1 or " * 7000 + "age = 1", "65,536"),
        ("land = 'DE'", "no field 'land'"),
        ("countri = 'DE'", "it has country"),
        ("country = 'de'", "no known value of 'country'; there are 'DE'"),
        ("country not in ('DE', 'XX')", "no known value"),
        ("age = 7", "no known value"),
        ("age >= 'old'", "integers only"),
        ("age = 'NaN'", "integers only"),
        ("contains(country, 'DE')", "one value a user"),
        ("tags = 't1'", "write contains"),
        ("contains(tags, 't9')", "no known value"),
        ('"Last Visit" = 10', "in bins"),
        ('"Last Visit" >= 12', "nearest edges: 10.0, 20.5"),
        ('"Last Visit" < 1', "nearest edges: 10.0"),
        ('"Last Visit" < 1e9', "nearest edges: 30.0"),
        ('"Last Visit" > 10', "write >= or <"),
        ("\"Last Visit\" >= 'old'", "with a number"),
    ],
)
def test_what_no_filter_can_say(pool: Pool, text: str, says: str) -> None:
    with pytest.raises(InvalidInput) as caught:
        Filter(text, pool.schema)
    assert says in caught.value.message
    assert (caught.value.field, caught.value.reason) == ("filter", "INVALID_FILTER")
    assert len(caught.value.message) < 500


def test_an_id_beyond_the_vocabulary_is_no_user_of_ours(table: pa.Table, pool: Pool, tmp_path: Path) -> None:
    """A pool whose shards do not fit its schema: values were taken from the one the shards were written with."""
    smaller = build_schema(table.slice(0, 3))
    with pytest.raises(DataCorrupted, match="beyond its vocabulary"):
        Filter("country is null", smaller).ineligible(pool)


@given(rows=st.lists(st.integers(0, 99)), total=st.integers(100, 120))
def test_bitmaps_are_sets_of_rows(rows: list[int], total: int) -> None:
    bitmap = empty_bitmap(total)
    mark(bitmap, np.array(rows, np.int64))
    assert bitmap.tolist() == np.packbits(np.isin(np.arange(total), rows), bitorder="little").tolist()
    assert count(bitmap) == len(set(rows))
    assert np.concatenate([np.zeros(0, np.int64), *rows_of(bitmap)]).tolist() == sorted(set(rows))
    assert marked(bitmap, np.arange(total)).tolist() == np.isin(np.arange(total), rows).tolist()
