"""What the door lets in, and what it says of what it does not."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from lookalike import errors
from lookalike.pool.ingest import ingest
from lookalike.pool.snapshot import Pool
from lookalike.schema import FeatureSchema, Field, FieldKind
from lookalike.service.door import MAX_K, Door, request_hash
from lookalike.service.status import InvalidRequest
from lookalike.v1 import audience_pb2, campaign_pb2

SCHEMA = FeatureSchema(
    (
        Field("category", FieldKind.CATEGORICAL, values=("toys", "books")),
        Field("tags", FieldKind.MULTI, values=("1", "2")),
        Field("budget", FieldKind.NUMERIC, boundaries=(10.0,)),
    )
)


@pytest.fixture(scope="module")
def integers(sample_pool: Path) -> Pool:
    return Pool.open(sample_pool)


@pytest.fixture(scope="module")
def strings(tmp_path_factory: pytest.TempPathFactory) -> Pool:
    folder = tmp_path_factory.mktemp("strings")
    pq.write_table(
        pa.table({"user_id": [f"u{n}" for n in range(50)], "age": list(range(50))}), folder / "users.parquet"
    )
    return ingest(folder / "users.parquet", folder / "pool")


def request(**changes: object) -> audience_pb2.ExpandAudienceRequest:
    message = audience_pb2.ExpandAudienceRequest(**changes)
    message.campaign.name = message.campaign.name or "spring"
    if message.WhichOneof("size") is None:
        message.k = 10
    if message.WhichOneof("seeds") is None:
        message.seed_ids.integers.values.extend([5, 6])
    return message


def features(**values: campaign_pb2.FeatureValue) -> campaign_pb2.Campaign:
    return campaign_pb2.Campaign(name="c", features=values)


def text(value: str) -> campaign_pb2.FeatureValue:
    return campaign_pb2.FeatureValue(text=value)


def test_a_good_request_becomes_an_order(integers: Pool) -> None:
    items = [campaign_pb2.FeatureItem(text="1"), campaign_pb2.FeatureItem(integer=2), campaign_pb2.FeatureItem()]
    campaign = features(
        category=text("toys"),
        tags=campaign_pb2.FeatureValue(list=campaign_pb2.FeatureValues(items=items)),
        budget=campaign_pb2.FeatureValue(number=2.5),
    )
    order = Door(integers, SCHEMA, None).check(request(campaign=campaign, k=MAX_K, random_seed=3, include_seeds=True))
    assert order.features == {"category": "toys", "tags": ["1", 2], "budget": 2.5}
    assert order.seeds.to_pylist() == [5, 6]
    assert order.seeds.type == integers.id_type
    assert (order.k, order.random_seed, order.include_seeds) == (MAX_K, 3, True)


def test_a_feature_of_no_kind_is_missing(integers: Pool) -> None:
    order = Door(integers, SCHEMA, None).check(request(campaign=features(category=campaign_pb2.FeatureValue())))
    assert order.features == {"category": None}


@pytest.mark.parametrize(
    ("changes", "field", "says"),
    [
        ({"k": 0}, "k", "1 to 4,294,967,295"),
        ({"k": 2**32}, "k", "1 to 4,294,967,295"),
        ({"pool_share": 0.0}, "pool_share", "above 0"),
        ({"pool_share": 1.5}, "pool_share", "at most 1"),
        ({"pool_share": float("nan")}, "pool_share", "nan"),
        ({"campaign": campaign_pb2.Campaign(name=" ")}, "campaign.name", "name"),
        ({"campaign": campaign_pb2.Campaign(name="x" * 257)}, "campaign.name", "256"),
        ({"request_id": "x" * 129}, "request_id", "128"),
        ({"seed_ids": audience_pb2.UserIds()}, "seed_ids", "no seeds"),
        ({"seed_ids": audience_pb2.UserIds(integers=audience_pb2.IntegerIds())}, "seed_ids", "no seeds"),
        ({"seed_ids": audience_pb2.UserIds(strings=audience_pb2.StringIds(values=["a"]))}, "seed_ids", "are integers"),
        ({"campaign": features(colour=text("red"))}, "campaign.features.colour", "unknown feature 'colour'"),
        ({"campaign": features(budget=text("red"))}, "campaign.features.budget", "a number"),
        (
            {"campaign": features(budget=campaign_pb2.FeatureValue(number=float("inf")))},
            "campaign.features.budget",
            "inf",
        ),
    ],
)
def test_one_wrong_thing(changes: dict[str, object], field: str, says: str, integers: Pool) -> None:
    with pytest.raises(errors.InvalidInput, match=says) as caught:
        Door(integers, SCHEMA, None).check(request(**changes))
    assert caught.value.field == field
    assert not isinstance(caught.value, InvalidRequest)


def test_a_filter_and_exclusions(integers: Pool, tmp_path: Path) -> None:
    door = Door(integers, None, tmp_path)
    excluded = audience_pb2.UserIds(integers=audience_pb2.IntegerIds(values=[7, 8]))
    order = door.check(request(filter="gender = 'gender_0'", exclude_ids=excluded))
    assert (order.filter, order.exclusions.to_pylist()) == ("gender = 'gender_0'", [7, 8])
    pq.write_table(pa.table({"user_id": pa.array([9], pa.int16())}), tmp_path / "some.parquet")
    order = door.check(request(exclude_path="some.parquet"))
    assert (order.filter, order.exclusions.to_pylist()) == ("", [9])
    assert order.exclusions.type == pa.int64()
    assert len(door.check(request()).exclusions) == 0


@pytest.mark.parametrize(
    ("changes", "field"),
    [
        ({"filter": "land = 'DE'"}, "filter"),
        ({"filter": "gender = "}, "filter"),
        ({"exclude_ids": audience_pb2.UserIds(strings=audience_pb2.StringIds(values=["a"]))}, "exclude_ids"),
        ({"exclude_path": "none.parquet"}, "exclude_path"),
        ({"exclude_path": "../some.parquet"}, "exclude_path"),
    ],
)
def test_a_wrong_filter_or_exclusion(changes: dict[str, object], field: str, integers: Pool, tmp_path: Path) -> None:
    with pytest.raises(errors.LookalikeError) as caught:
        Door(integers, None, tmp_path).check(request(**changes))
    assert caught.value.field == field


def test_all_wrong_things_at_once(integers: Pool) -> None:
    wrong = request(k=0, request_id="x" * 200, campaign=features(colour=text("red"), shape=text("round")))
    with pytest.raises(InvalidRequest) as caught:
        Door(integers, SCHEMA, None).check(wrong)
    fields = [violation.field for violation in caught.value.violations]
    assert sorted(fields) == ["campaign.features.colour", "campaign.features.shape", "k", "request_id"]


def test_any_feature_where_the_schema_is_not_known(integers: Pool) -> None:
    order = Door(integers, None, None).check(request(campaign=features(colour=text("red"))))
    assert order.features == {"colour": "red"}


def test_string_ids(strings: Pool) -> None:
    door = Door(strings, None, None)
    ids = audience_pb2.UserIds(strings=audience_pb2.StringIds(values=["u1", "ü2"]))
    order = door.check(request(seed_ids=ids))
    assert order.seeds.to_pylist() == ["u1", "ü2"]
    assert order.seeds.type == pa.large_string()
    with pytest.raises(errors.InvalidInput, match="are strings"):
        door.check(request())


@pytest.mark.parametrize("share", [1e-12, 0.25, 0.333, 1.0])
def test_a_share_is_rounded_to_users(share: float, integers: Pool) -> None:
    order = Door(integers, None, None).check(request(pool_share=share))
    assert order.k == max(1, round(share * 2000))


def test_match_counts_every_seed_once(integers: Pool) -> None:
    known = integers.user_ids(np.array([0, 1, 2])).to_pylist()
    match = Door(integers, None, None).match(pa.array([*known, known[0], known[0], -1, -1, -2], pa.int64()))
    assert (match.given, match.matched, match.duplicates, match.not_in_pool) == (8, 3, 2, 3)


@pytest.mark.parametrize(
    ("column", "says"),
    [
        (pa.array([], pa.int64()), "no seeds"),
        (pa.array([1, None]), "1 null"),
        (pa.array(["a"]), "large_string"),
        (pa.array([1.5]), "integers or strings"),
        (pa.array([2**64 - 1], pa.uint64()), "must fit 64 bits"),
    ],
)
def test_a_seeds_file_that_does_not_do(column: pa.Array, says: str, integers: Pool, tmp_path: Path) -> None:
    pq.write_table(pa.table({"user_id": column}), tmp_path / "s.parquet")
    message = request()
    message.seeds_path = "s.parquet"
    with pytest.raises(errors.InvalidInput, match=says):
        Door(integers, None, tmp_path).check(message)


def test_a_seeds_file_without_the_column_or_not_parquet(integers: Pool, tmp_path: Path) -> None:
    pq.write_table(pa.table({"id": [1]}), tmp_path / "other.parquet")
    (tmp_path / "text.parquet").write_text("user_id\n1\n")
    message = request(seeds_path="other.parquet")
    with pytest.raises(errors.SchemaError, match="no column 'user_id'"):
        Door(integers, None, tmp_path).check(message)
    message.seeds_path = "text.parquet"
    with pytest.raises(errors.InvalidInput, match="Parquet"):
        Door(integers, None, tmp_path).check(message)


@pytest.mark.parametrize(
    ("column", "expected"),
    [
        (pa.array([7, 8], pa.int16()), [7, 8]),
        (pa.array([7, 8], pa.int64()).dictionary_encode(), [7, 8]),
    ],
)
def test_a_seeds_file_of_narrower_types(column: pa.Array, expected: list[int], integers: Pool, tmp_path: Path) -> None:
    pq.write_table(pa.table({"user_id": column}), tmp_path / "s.parquet")
    order = Door(integers, None, tmp_path).check(request(seeds_path="s.parquet"))
    assert order.seeds.to_pylist() == expected
    assert order.seeds.type == pa.int64()


def test_a_link_turned_at_the_last_moment_leads_nowhere(
    integers: Pool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("seeds/good.parquet", "outside.parquet"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        pq.write_table(pa.table({"user_id": [1, 2]}), tmp_path / name)
    link = tmp_path / "seeds" / "link.parquet"
    link.symlink_to("good.parquet")
    door = Door(integers, None, tmp_path / "seeds")
    assert len(door.check(request(seeds_path="link.parquet")).seeds) == 2
    opened = os.open

    def turned(path: Path, flags: int) -> int:
        link.unlink()
        link.symlink_to("../outside.parquet")
        return opened(path, flags)

    monkeypatch.setattr(os, "open", turned)
    with pytest.raises(errors.InvalidInput, match="outside the server's seeds folder"):
        door.check(request(seeds_path="link.parquet"))


def test_what_is_no_file_is_not_waited_for(integers: Pool, tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "folder").mkdir()
    (tmp_path / "loop").symlink_to("loop")
    door = Door(integers, None, tmp_path)
    for name in ("pipe", "folder", "folder/none", "none/none"):
        with pytest.raises(errors.NotFound):
            door.check(request(seeds_path=name))
    for name in ("loop", "x" * 5000, "null\0"):
        with pytest.raises(errors.InvalidInput, match="cannot open"):
            door.check(request(seeds_path=name))


def test_the_hash_is_of_the_content_alone() -> None:
    message = request(campaign=features(a=text("1"), b=text("2")), request_id="x")
    same = request(campaign=features(b=text("2"), a=text("1")), request_id="y")
    assert request_hash(message) == request_hash(same)
    same.priority = audience_pb2.PRIORITY_NORMAL
    assert request_hash(message) == request_hash(same)
    changes = ({"k": 11}, {"random_seed": 1}, {"include_seeds": True}, {"audience_id": "a"}, {"priority": 3})
    for change in changes:
        other = request(campaign=features(a=text("1"), b=text("2")), **change)
        assert request_hash(other) != request_hash(message)
