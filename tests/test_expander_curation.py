"""Reserve, opt-outs and refresh of real expansions: bytes, receipts, and what verify says of them."""

from __future__ import annotations

import dataclasses
import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from lookalike.errors import AlreadyExists, InvalidInput
from lookalike.expander import Expander
from lookalike.retrieval.audience import Audience, write_members
from lookalike.retrieval.request import Previous
from lookalike.retrieval.revise import remove_users, resize
from lookalike.retrieval.verify import verify

NAME = "audience.parquet"


@pytest.fixture(scope="module")
def plain(expander: Expander, order: dict[str, Any], tmp_path_factory: pytest.TempPathFactory) -> Audience:
    return expander.expand(**order, output=tmp_path_factory.mktemp("plain") / "a")


@pytest.fixture(scope="module")
def reserved(expander: Expander, order: dict[str, Any], tmp_path_factory: pytest.TempPathFactory) -> Audience:
    return expander.expand(**order, reserve=50, output=tmp_path_factory.mktemp("reserved") / "a")


def ids(audience: Audience) -> list[int]:
    return audience.members(0, audience.num_members)["user_id"].to_pylist()


def copied(audience: Audience, folder: Path) -> Path:
    return Path(shutil.copytree(audience.path, folder))


def failed(folder: Path, **options: Any) -> set[str]:
    return {check.name for check in verify(folder, threads=1, **options).checks if not check.passed}


def test_a_reserve_changes_no_members(plain: Audience, reserved: Audience) -> None:
    assert (reserved.path / NAME).read_bytes() == (plain.path / NAME).read_bytes()
    mine, other = reserved.receipt, plain.receipt
    assert (mine.ties_at_cutoff, mine.ties_selected) == (other.ties_at_cutoff, other.ties_selected)
    assert not (plain.path / "reserve.parquet").exists()
    assert failed(reserved.path) == set()


def test_the_reserve_is_who_comes_next(
    reserved: Audience, expander: Expander, order: dict[str, Any], tmp_path: Path
) -> None:
    wider = expander.expand(**{**order, "k": 350}, output=tmp_path / "wider")
    assert ids(reserved) + reserved.reserve()["user_id"].to_pylist() == ids(wider)
    folder = copied(reserved, tmp_path / "a")
    resize(folder, 350)
    assert (folder / NAME).read_bytes() == (wider.path / NAME).read_bytes()
    assert failed(folder) == set()


def test_another_reserve_is_another_request(reserved: Audience, expander: Expander, order: dict[str, Any]) -> None:
    with pytest.raises(AlreadyExists, match="reserve_requested"):
        expander.expand(**order, reserve=51, output=reserved.path)
    with pytest.raises(InvalidInput, match="reserve"):
        expander.expand(**order, reserve=-1)


def test_who_opted_out_before_or_after_or_was_excluded_leaves_the_same_members(
    reserved: Audience, expander: Expander, order: dict[str, Any], tmp_path: Path
) -> None:
    gone = [*ids(reserved)[::9], order["seeds"][0].as_py(), -7]
    before = expander.expand(**order, opted_out=pa.array(gone), reserve=50, output=tmp_path / "before")
    excluded = expander.expand(**order, exclude=gone, output=tmp_path / "excluded")
    after = copied(reserved, tmp_path / "after")
    receipt = remove_users(after, pa.array(gone))
    expected = (excluded.path / NAME).read_bytes()
    assert [(path / NAME).read_bytes() == expected for path in (before.path, after)] == [True, True]
    assert before.receipt.opted_out == len(gone) - 1
    assert (receipt.k, receipt.removed.listed, receipt.removed.seeds) == (300, len(gone) - 2, 1)
    for folder in (before.path, after):
        assert failed(folder) == set()
        assert failed(folder, opted_out=pa.array(gone)) == set()
        assert "no user who opted out is a member" in failed(folder, opted_out=pa.array(ids(excluded)[:3]))
    for path in (*after.glob("*.parquet"), *before.path.glob("*.parquet")):
        assert not set(pq.read_table(path)["user_id"].to_pylist()) & set(gone)
    both = expander.expand(**order, exclude=gone, opted_out=pa.array(gone), output=tmp_path / "both")
    assert (both.path / NAME).read_bytes() == expected
    assert pq.read_table(both.path / "exclusions.parquet").num_rows == 0
    assert failed(both.path) == set()


def test_a_refresh_keeps_to_its_budget(
    reserved: Audience, expander: Expander, order: dict[str, Any], tmp_path: Path
) -> None:
    other = {**order, "seeds": order["seeds"][::2], "random_seed": 3}
    free = expander.expand(**other, previous=_previous(reserved, 1.0), output=tmp_path / "free")
    assert free.receipt.refresh is not None
    new = free.receipt.refresh.joined
    assert new == len({*ids(free)} - {*ids(reserved)}) > 40
    assert free.receipt.refresh.mean_score == free.receipt.refresh.mean_score_unbounded
    bound = expander.expand(**other, previous=_previous(reserved, 0.1), reserve=20, output=tmp_path / "bound")
    told = bound.receipt.refresh
    assert told is not None
    assert len({*ids(bound)} - {*ids(reserved)}) == told.joined == 30
    assert told.mean_score < told.mean_score_unbounded == free.receipt.refresh.mean_score
    gone = pa.array(ids(bound)[::25])
    fresh = expander.expand(
        **other, previous=_previous(reserved, 0.1), opted_out=gone, reserve=20, output=tmp_path / "fresh"
    )
    revised = copied(bound, tmp_path / "revised")
    remove_users(revised, gone)
    assert (revised / NAME).read_bytes() == (fresh.path / NAME).read_bytes()
    for folder in (free.path, bound.path, fresh.path, revised):
        assert failed(folder) == set()


def _previous(audience: Audience, budget: float) -> Previous:
    members = audience.members(0, audience.num_members)["user_id"]
    return Previous(user_ids=members, name="audiences/a", audience_sha256="0" * 64, budget=budget)


def test_verify_finds_what_is_wrong_with_a_reserve(reserved: Audience, tmp_path: Path) -> None:
    folder = copied(reserved, tmp_path / "a")
    table = reserved.reserve().slice(1)  # the best of them is kept from whoever would follow
    _write_reserve(folder, table)
    found = failed(folder)
    assert {"checksum of reserve.parquet", "the reserve is of the pool, its ranks follow the members'"} <= found
    _rewrite(folder, reserve={"size": 49, "listed": 349})
    assert "nobody better was left out" in failed(folder)


def test_verify_finds_members_who_should_not_be(reserved: Audience, tmp_path: Path) -> None:
    folder = copied(reserved, tmp_path / "a")
    members, rest = reserved.members(0, 300), reserved.reserve()
    better, worse = members.slice(0, 299), rest.slice(0, 1)
    swapped = pa.concat_tables([better, worse])
    write_members(folder / NAME, swapped["user_id"].combine_chunks(), swapped["score"].to_numpy())
    left = pa.concat_tables([members.slice(299), rest.slice(1)])
    _write_reserve(folder, left)
    assert "the members are who is to be chosen of the list" in failed(folder)


def _write_reserve(folder: Path, table: pa.Table) -> None:
    ids, scores = table["user_id"].combine_chunks(), table["score"].to_numpy()
    write_members(folder / "reserve.parquet", ids, scores, first_rank=301)


def _rewrite(folder: Path, *, reserve: dict[str, Any]) -> None:
    path = folder / "manifest.json"
    data = json.loads(path.read_text())
    data["reserve"] |= reserve
    path.write_text(json.dumps(data))


def test_a_receipt_from_before_reserves_is_read(plain: Audience, tmp_path: Path) -> None:
    folder = copied(plain, tmp_path / "a")
    path = folder / "manifest.json"
    data = json.loads(path.read_text())
    for name in ("reserve", "reserve_requested", "opted_out", "opted_out_sha256", "previous_sha256", "churn_budget"):
        del data[name]
    for name in ("refresh", "revision", "revisions", "removed"):
        del data[name]
    path.write_text(json.dumps(data))
    assert Audience.open(folder).receipt == dataclasses.replace(plain.receipt)
    receipt = remove_users(folder, pa.array(ids(plain)[:2]))
    assert (receipt.k, receipt.k_requested, receipt.reserve) == (298, 300, None)
    assert failed(folder) == set()
    receipt = resize(folder, 100)
    assert receipt.reserve is not None
    assert (receipt.k, receipt.reserve.size) == (100, 198)
    assert failed(folder) == set()
    assert np.array_equal(ids(Audience.open(folder)), ids(plain)[2:102])
