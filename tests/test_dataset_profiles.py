"""Profiles: users who are the same whoever asks, within their vocabularies, and with tastes that show."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from functools import cache

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lookalike.dataset.profiles import BLOCK_USERS, PROFILES, Population, find_profile
from lookalike.errors import InvalidInput
from lookalike.schema import FIRST_VALUE_ID, MISSING_ID, EncodedColumns, FeatureSchema, FieldKind


@cache
def population(name: str, seed: int = 0) -> Population:
    return Population(find_profile(name), seed)


def same(one: EncodedColumns, other: EncodedColumns) -> bool:
    return (
        one.length == other.length
        and all(np.array_equal(one.ids[name], other.ids[name]) for name in one.ids)
        and all(np.array_equal(one.offsets[name], other.offsets[name]) for name in one.offsets)
    )


@pytest.mark.parametrize("name", PROFILES)
def test_a_block_is_a_function_of_profile_seed_and_number(name: str) -> None:
    fresh = Population(find_profile(name), 0)
    backwards = [fresh.block(number) for number in (2, 1, 0)][::-1]
    with ThreadPoolExecutor(3) as threads:
        together = list(threads.map(population(name).block, range(3)))
    for (ids, columns), (again, columns_again) in zip(backwards, together, strict=True):
        assert np.array_equal(ids, again)
        assert same(columns, columns_again)


@pytest.mark.parametrize("name", PROFILES)
def test_other_seeds_and_other_blocks_are_other_users(name: str) -> None:
    first = population(name).block(0)[1]
    for other in (population(name).block(1)[1], population(name, 1).block(0)[1]):
        field = population(name).schema.single[0].name
        assert 0.2 < np.mean(first.ids[field] != other.ids[field]) < 0.95


@settings(max_examples=25)
@given(start=st.integers(0, 2 * BLOCK_USERS), rows=st.integers(0, 2 * BLOCK_USERS))
def test_any_range_is_cut_from_the_same_users(start: int, rows: int) -> None:
    stop = min(start + rows, 3 * BLOCK_USERS)
    whole = [population("lean").block(number) for number in range(3)]
    parts = list(population("lean").blocks(start, stop))
    ids = np.concatenate([np.zeros(0, np.int64), *(ids for ids, _ in parts)])
    assert np.array_equal(ids, np.concatenate([ids for ids, _ in whole])[start:stop])
    if parts:
        columns = EncodedColumns.concat([columns for _, columns in parts])
        assert same(columns, EncodedColumns.concat([columns for _, columns in whole]).slice(start, stop))


@pytest.mark.parametrize("name", PROFILES)
def test_ids_ascend_with_gaps_and_are_no_rows(name: str) -> None:
    ids = np.concatenate([ids for ids, _ in population(name).blocks(0, BLOCK_USERS + 1000)])
    gaps = np.diff(ids)
    assert gaps.min() == 1
    assert gaps.max() > 4
    assert ids[0] > 10**11


@pytest.mark.parametrize("name", PROFILES)
def test_values_are_the_vocabulary_s_and_some_are_missing(name: str) -> None:
    _, columns = population(name).block(0)
    for field in find_profile(name).fields:
        ids = columns.ids[field.name]
        assert ids.dtype == field.field.dtype
        assert int(ids.max()) < field.field.size
        if field.most == 1:
            assert 0.03 < np.mean(ids == MISSING_ID) < 0.07
            continue
        offsets = columns.offsets[field.name]
        lengths = np.diff(offsets)
        assert (lengths.min(), lengths.max(), offsets[0], offsets[-1]) == (0, field.most, 0, len(ids))
        assert 0.12 < np.mean(lengths == 0) < 0.18
        assert ids.min() >= FIRST_VALUE_ID
        inside = np.ones(len(ids), np.bool_)
        inside[offsets[:-1][lengths > 0]] = False
        steps = np.diff(ids.astype(np.int64), prepend=0)[inside]
        assert steps.min() > 0  # within a user ids ascend, so none is there twice


def test_the_profiles_have_the_shapes_they_are_named_for() -> None:
    lean, tencent = PROFILES["lean"], PROFILES["tencent"]
    assert (len(lean.schema.single), len(lean.schema.multi)) == (14, 0)
    assert {field.values for field in lean.fields} >= {2, 400}
    assert 20 <= 8 + sum(field.dtype.itemsize for field in lean.schema.fields) <= 30
    assert (len(tencent.schema.single), len(tencent.schema.multi)) == (7, 7)
    assert sum(field.most for field in tencent.fields) == 45
    for profile in PROFILES.values():
        assert FeatureSchema.from_json(profile.schema.to_json()).fingerprint == profile.schema.fingerprint
        assert {field.kind for field in profile.schema.fields} <= {FieldKind.CATEGORICAL, FieldKind.MULTI}


@pytest.mark.parametrize("name", PROFILES)
def test_popular_values_come_first(name: str) -> None:
    """As in a vocabulary made from users, so that the pool's reads are as local."""
    _, columns = population(name).block(0)
    for field in find_profile(name).fields:
        if field.values > 50:
            ids = columns.ids[field.name]
            ids = ids[ids >= FIRST_VALUE_ID]
            assert np.mean(ids < FIRST_VALUE_ID + field.values // 10) > 0.3


@pytest.mark.parametrize("name", PROFILES)
def test_tastes_are_the_sum_of_what_values_say(name: str) -> None:
    people = population(name)
    _, columns = people.block(0)
    columns = columns.slice(1000, 1200)
    tastes = people.tastes(columns)
    for row in range(0, 200, 17):
        expected = np.zeros(tastes.shape[1])
        for field in people.schema.fields:
            one = columns.take(np.array([row]))
            leaning = people._values[field.name].leaning[one.ids[field.name]]
            if field.kind is FieldKind.CATEGORICAL:
                expected += leaning[0]
            elif len(leaning):
                expected += 2 * leaning.mean(0)
        np.testing.assert_allclose(tastes[row], expected, rtol=1e-4, atol=1e-4)


def test_fields_tell_of_each_other() -> None:
    """Users come in clusters: knowing one value changes what the others are likely to be."""
    _, columns = population("lean").block(0)
    city, brand = columns.ids["city"], columns.ids["brand"]
    together = np.zeros((brand.max() + 1, city.max() + 1))
    np.add.at(together, (brand, city), 1)
    alone = np.outer(together.sum(1), together.sum(0)) / together.sum()
    often = alone > 50
    assert np.mean(np.abs(together[often] - alone[often]) / np.sqrt(alone[often])) > 1.6  # by chance 0.8


def test_nonsense_is_refused() -> None:
    with pytest.raises(InvalidInput, match="lean or tencent") as caught:
        find_profile("fat")
    assert caught.value.field == "profile"
    with pytest.raises(InvalidInput, match="seed"):
        Population(PROFILES["lean"], -1)
