"""Ranks of held-out seeds, samples of the eligible and counts of values, each against brute force."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from lookalike import _core
from lookalike.errors import Cancelled, InternalError
from lookalike.pool.bitmap import empty_bitmap, mark
from lookalike.pool.snapshot import Pool
from lookalike.retrieval.heldout import RUN, Fold, Ranks, eligible_rows, rank
from lookalike.retrieval.telling import LEAST_SEEDS, MOST, Telling, ValueCounts, telling
from lookalike.schema import EncodedColumns, FeatureSchema, Field, FieldKind

Rows = npt.NDArray[np.int64]


class ByCity:
    """An engine whose score is a table's entry for the user's city: many ties."""

    name = "by city"
    batch_size = 100

    def __init__(self, table: npt.ArrayLike) -> None:
        self.table = np.array(table, np.float32)

    def score(self, users: EncodedColumns) -> npt.NDArray[np.float32]:
        scores: npt.NDArray[np.float32] = self.table[users.ids["city"] % len(self.table)]
        return scores

    def score_into(self, top: _core.TopK, users: EncodedColumns, first_row: int) -> None:
        raise NotImplementedError


def ranked(pool: Pool, folds: Sequence[Fold], general: ByCity, rows: Rows, population: int | None = None) -> Ranks:
    return rank(pool, folds, general, rows, population or len(rows), visit=lambda users: None)


def test_a_rank_is_the_share_of_unseen_users_before_a_seed_and_half_of_those_beside(pool: Pool) -> None:
    rng = np.random.default_rng(3)
    chosen = rng.permutation(pool.num_users)
    groups = np.split(np.sort(chosen[:60]), 3)
    rows = np.sort(chosen[60:1500])
    general = ByCity(rng.random(7))
    folds = [
        Fold(ByCity(rng.random(5 + i)), group, np.sort(rng.choice(chosen, 400, replace=False)))
        for i, group in enumerate(groups)
    ]
    found = ranked(pool, folds, general, rows)
    expected: dict[str, list[float]] = {"customised": [], "general": []}
    for fold in folds:
        unseen = np.setdiff1d(rows, fold.trained)
        for name, engine in (("customised", fold.engine), ("general", general)):
            others = engine.score(pool.take(unseen))
            for score in engine.score(pool.take(fold.seeds)):
                expected[name].append(float(np.mean(others > score) + np.mean(others == score) / 2))
    np.testing.assert_allclose(found.customised, expected["customised"])
    np.testing.assert_allclose(found.general, expected["general"])
    assert found.users == min(len(np.setdiff1d(rows, fold.trained)) for fold in folds)
    assert len(set(found.customised)) > 5


def test_where_everybody_was_trained_on_everybody_is_compared_with(pool: Pool) -> None:
    rows = np.arange(100, 200)
    fold = Fold(ByCity([0.1, 0.2, 0.3]), np.array([5]), rows)
    assert ranked(pool, [fold], ByCity([0.5]), rows).users == 100


def test_the_users_variance_is_delong_s_and_less_where_they_are_a_good_part_of_all(pool: Pool) -> None:
    rng = np.random.default_rng(5)
    chosen = rng.permutation(pool.num_users)
    seeds, rows = np.sort(chosen[:50]), np.sort(chosen[50:450])
    engines = {"customised": ByCity(rng.random(5)), "general": ByCity(rng.random(7))}
    fold = Fold(engines["customised"], seeds, rows[:0])
    placed = {}
    for name, engine in engines.items():
        ours, theirs = engine.score(pool.take(seeds)), engine.score(pool.take(rows))
        placed[name] = np.array([np.mean(ours > one) + np.mean(ours == one) / 2 for one in theirs])
    placed["difference"] = placed["customised"] - placed["general"]
    for population in (400, 1000, 10**9):
        found = ranked(pool, [fold], engines["general"], rows, population).variance
        assert found.users == 400
        for name, values in placed.items():
            expected = values.var(ddof=1) / 400 * (1 - 400 / population)
            assert getattr(found, name) == pytest.approx(expected, abs=1e-15)


def test_all_users_pass_by_once(pool: Pool) -> None:
    seen = ValueCounts(pool.schema)
    done: list[tuple[int, int]] = []
    rows = np.arange(10, 1200)
    fold = Fold(ByCity([0.5]), np.array([5]), rows[:0])
    rank(pool, [fold], ByCity([0.5]), rows, len(rows), visit=seen.add, progress=lambda *step: done.append(step))
    assert seen.users == 1190
    assert done[-1] == (1190, 1190)


def test_a_model_that_has_diverged_and_a_wish_to_stop_are_heeded(pool: Pool) -> None:
    rows = np.arange(100)
    fold = Fold(ByCity([float("nan")]), np.array([500]), rows[:0])
    with pytest.raises(InternalError, match="diverged"):
        ranked(pool, [fold], ByCity([0.5]), rows)
    with pytest.raises(Cancelled, match="insight"):
        rank(pool, [fold], ByCity([0.5]), rows, 100, visit=lambda users: None, cancelled=lambda: True)


# ------------------------------------------------------------------------------------------------------------- samples


@given(st.integers(1, 5000), st.integers(0, 10**6), st.integers(64, 6000))
def test_eligible_rows_are_all_or_a_sample_of_them(num_users: int, seed: int, most: int) -> None:
    rng = np.random.default_rng(seed)
    skipped = np.flatnonzero(rng.random(num_users) < rng.random())
    bitmap = empty_bitmap(num_users)
    mark(bitmap, skipped)
    eligible = np.setdiff1d(np.arange(num_users), skipped)
    rows, total = eligible_rows(bitmap, num_users, most, np.random.default_rng(seed))
    assert total == len(eligible)
    assert np.all(np.diff(rows) > 0)
    assert np.isin(rows, eligible).all()
    assert len(rows) == total if total <= most else most - RUN < len(rows) <= most
    np.testing.assert_array_equal(rows, eligible_rows(bitmap, num_users, most, np.random.default_rng(seed))[0])


def test_everybody_is_equally_likely_to_be_sampled() -> None:
    """1,000 samples of 256 among 1,001: each user is drawn 256 times, give or take."""
    bitmap = empty_bitmap(1001)
    drawn = np.zeros(1001)
    for seed in range(1000):
        drawn[eligible_rows(bitmap, 1001, 256, np.random.default_rng(seed))[0]] += 1
    assert drawn.mean() == pytest.approx(255.7, abs=0.1)
    assert np.all(np.abs(drawn - drawn.mean()) < 5 * np.sqrt(1000 * 0.256 * 0.744))


# -------------------------------------------------------------------------------------------------------------- values

SCHEMA = FeatureSchema(
    (
        Field("city", FieldKind.CATEGORICAL, ("Bonn", "<b>Köln</b>")),
        Field("tags", FieldKind.MULTI, ("a", "b", "c")),
        Field("age", FieldKind.NUMERIC, (), (18.0, 30.5)),
    )
)


def encoded(rows: Sequence[tuple[str | None, list[str], float | None]]) -> EncodedColumns:
    cities, tags, ages = zip(*rows, strict=True)
    table = pa.table(
        {
            "city": pa.array(cities, pa.large_string()),
            "tags": pa.array(tags, pa.list_(pa.large_string())),
            "age": pa.array(ages, pa.float64()),
        }
    )
    return SCHEMA.encode(table, where="users")


users_of_a_pool = st.lists(
    st.tuples(
        st.sampled_from([None, "Bonn", "<b>Köln</b>", "Ulm"]),
        st.lists(st.sampled_from(["a", "b", "c", "z", "y"]), max_size=5),
        st.sampled_from([None, 3.0, 18.0, 30.0, 99.0]),
    ),
    min_size=1,
    max_size=40,
)


@given(users_of_a_pool, st.integers(0, 40), st.integers(1, 40))
def test_a_user_counts_once_for_each_value(
    users: list[tuple[str | None, list[str], float | None]], start: int, size: int
) -> None:
    counts = ValueCounts(SCHEMA)
    columns = encoded(users).slice(min(start, len(users)), len(users))  # offsets that do not begin at 0
    for first in range(0, columns.length, size):
        counts.add(columns.slice(first, min(first + size, columns.length)))
    kept = users[min(start, len(users)) :]
    assert counts.users == len(kept)
    place = {None: 0, "Bonn": 2, "<b>Köln</b>": 3}
    cities = Counter(place.get(city, 1) for city, _, _ in kept)
    assert counts.by_field["city"].tolist() == [cities[i] for i in range(4)]
    lists = Counter(i for _, tags, _ in kept for i in ({2 + "abc".index(t) if t in "abc" else 1 for t in tags} or {0}))
    assert counts.by_field["tags"].tolist() == [lists[i] for i in range(5)]
    ages = Counter(0 if age is None else 2 + (age >= 18) + (age >= 30.5) for _, _, age in kept)
    assert counts.by_field["age"].tolist() == [ages[i] for i in range(5)]


def told(seeds: EncodedColumns, others: EncodedColumns) -> tuple[Telling, ...]:
    counts = ValueCounts(SCHEMA), ValueCounts(SCHEMA)
    counts[0].add(seeds)
    counts[1].add(others)
    return telling(SCHEMA, *counts)


def test_what_seeds_have_in_common_is_told_in_words() -> None:
    seeds = encoded([("<b>Köln</b>", ["a"], 20.0)] * 90 + [(None, [], 99.0)] * 10)
    others = encoded(
        [("Bonn", ["b", "c"], 20.0)] * 900 + [("<b>Köln</b>", ["c"], None)] * 90 + [("Ulm", ["a"], 3.0)] * 10
    )
    found = {one.name: one for one in told(seeds, others)}
    cologne = found["city is <b>Köln</b>"]
    assert (cologne.seeds, cologne.seed_share, cologne.pool_share) == (90, 0.9, 0.09)
    assert cologne.ratio == pytest.approx(10)
    assert cologne.text == "city is <b>Köln</b>: 90.0% of the seeds, 9.0% of the others; 10 times"
    assert found["tags is missing"].ratio is None
    assert found["tags is missing"].text.endswith("0.0% of the others; nobody else")
    assert found["age is 30.5 or more"].seeds == 10
    assert found["city is missing"].value is None
    assert found["city is Bonn"].z < 0 < found["tags has a"].z
    assert "age is 18 to 30.5" not in found  # 90% of both
    positive = [one.z for one in told(seeds, others) if one.z > 0]
    assert positive == sorted(positive, reverse=True)


@pytest.mark.parametrize(("few", "tells"), [(LEAST_SEEDS - 1, False), (LEAST_SEEDS, True)])
def test_what_a_handful_of_seeds_have_is_their_own_affair(few: int, tells: bool) -> None:
    seeds = encoded([("<b>Köln</b>", [], 20.0)] * few + [("Bonn", [], 20.0)] * 100)
    others = encoded([("Bonn", [], 20.0)] * 10_000)
    assert ("city is <b>Köln</b>" in {one.name for one in told(seeds, others)}) == tells


def test_of_nothing_nothing_is_told() -> None:
    nobody = encoded([("Bonn", [], 1.0)]).slice(0, 0)
    assert told(nobody, encoded([("Bonn", [], 1.0)])) == ()


def test_seeds_drawn_at_random_tell_nothing_and_real_ones_are_found() -> None:
    """300 fields of noise and one that matters."""
    fields = [Field(f"noise{i}", FieldKind.CATEGORICAL, tuple("abcdef")) for i in range(300)]
    schema = FeatureSchema((*fields, Field("sport", FieldKind.CATEGORICAL, ("yes", "no"))))
    rng = np.random.default_rng(0)

    def people(count: int, sport: float) -> EncodedColumns:
        columns = {field.name: rng.integers(2, 8, count).astype(np.uint8) for field in fields}
        columns["sport"] = np.where(rng.random(count) < sport, 2, 3).astype(np.uint8)
        return EncodedColumns(count, columns, {})

    pool = ValueCounts(schema)
    pool.add(people(20_000, 0.3))
    false = 0
    for _ in range(20):
        seeds = ValueCounts(schema)
        seeds.add(people(150, 0.3))
        false += bool(telling(schema, seeds, pool))
    assert false <= 2
    seeds = ValueCounts(schema)
    seeds.add(people(150, 0.7))
    assert [one.name for one in telling(schema, seeds, pool)][:1] == ["sport is yes"]
    assert len(telling(schema, seeds, pool)) <= 2 * MOST
