"""Who may be in an audience: filters and exclusions in an expansion, in its receipt, and under verify's eye."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import pytest

from lookalike.dataset.layout import Dataset
from lookalike.errors import AlreadyExists, DataCorrupted, InvalidInput
from lookalike.expander import Expander
from lookalike.files import file_digest
from lookalike.retrieval.audience import Audience, write_exclusions, write_members
from lookalike.retrieval.receipt import SeedMatch
from lookalike.retrieval.verify import verify
from lookalike.scoring.compiled import TorchScriptEngine

FILTER = "device in ('device_0', 'device_10') and not contains(topics, 'topics_6')"
WHOLE = 10**9


@pytest.fixture(scope="module")
def excluded(expander: Expander, order: dict[str, Any]) -> list[int]:
    """Every seventh user, some of them seeds and some who fail the filter, one of them twice, and two strangers."""
    ids: list[int] = expander.pool.user_ids(np.arange(0, 2000, 7)).to_pylist()
    assert set(ids) & set(order["seeds"].to_pylist())
    return [*ids, ids[0], -1, -2]


@pytest.fixture(scope="module")
def audience(
    expander: Expander, order: dict[str, Any], excluded: list[int], tmp_path_factory: pytest.TempPathFactory
) -> Audience:
    output = tmp_path_factory.mktemp("audiences") / "spring"
    return expander.expand(**{**order, "k": 40}, filter=FILTER, exclude=excluded, output=output)


@pytest.fixture(scope="module")
def passing(sample_dataset: Path) -> set[int]:
    """Who passes the filter, by the raw columns. A user without topics neither contains one nor does not."""
    table = pq.read_table(Dataset.open(sample_dataset).users_path)
    return {
        row["user_id"]
        for row in table.select(["user_id", "device", "topics"]).to_pylist()
        if row["device"] in {"device_0", "device_10"} and row["topics"] and "topics_6" not in row["topics"]
    }


def test_the_audience_is_the_exact_top_k_of_the_eligible(
    audience: Audience, expander: Expander, order: dict[str, Any], excluded: list[int], passing: set[int]
) -> None:
    engine = TorchScriptEngine(audience.path / "model.pt", expander.config.scoring)
    scores = np.concatenate([engine.score(block) for _, block in expander.pool.blocks(engine.batch_size)])
    ids = expander.pool.user_ids(np.arange(2000)).to_pylist()
    eligible = np.isin(ids, list(passing - set(excluded) - set(order["seeds"].to_pylist())))
    scores[~eligible] = -1
    best = np.lexsort((np.arange(len(scores)), -scores))[:40]
    assert audience.members(0, 40)["user_id"].to_pylist() == [ids[row] for row in best]
    receipt = audience.receipt
    assert receipt.users_scored == np.count_nonzero(eligible)
    assert receipt.users_scored + receipt.users_skipped == receipt.pool_users == 2000
    assert receipt.users_filtered == 2000 - len(passing)
    matched = len(set(excluded)) - 2
    assert receipt.exclusions == SeedMatch(given=len(excluded), matched=matched, duplicates=1, not_in_pool=2)
    assert receipt.seeds.matched == len(order["seeds"])
    assert verify(audience.path, threads=1).passed


def test_a_model_does_not_depend_on_who_is_eligible(
    audience: Audience, expander: Expander, order: dict[str, Any], tmp_path: Path
) -> None:
    everyone = expander.expand(**order, output=tmp_path / "all")
    assert everyone.receipt.adaptation == audience.receipt.adaptation
    assert (everyone.receipt.filter, everyone.receipt.exclusions_sha256) == ("", "")
    assert not (everyone.path / "exclusions.parquet").exists()


def test_a_request_is_the_same_in_any_form(
    audience: Audience, expander: Expander, order: dict[str, Any], excluded: list[int], tmp_path: Path
) -> None:
    (tmp_path / "some.txt").write_text("\n".join(map(str, reversed(excluded[:100]))))
    pq.write_table(pa.table({"user_id": excluded[100:]}), tmp_path / "more.parquet")
    files = [tmp_path / "some.txt", tmp_path / "more.parquet"]
    text = " NOT (contains(topics, 'topics_6')) AND device IN ('device_10', 'device_0', 'device_0')"
    before = (audience.path / "manifest.json").stat().st_mtime_ns
    again = {**order, "k": 40, "output": audience.path}
    with pytest.raises(AlreadyExists, match="another filter"):
        expander.expand(**again, exclude=files, filter=text)  # the order of operands is not looked through
    same = "(device IN ('device_10', 'device_0', 'device_0') AND (NOT (contains(\"topics\", 'topics_6')))) -- again"
    expander.expand(**again, exclude=files, filter=same)
    assert (audience.path / "manifest.json").stat().st_mtime_ns == before
    with pytest.raises(AlreadyExists, match="another filter"):
        expander.expand(**again, exclude=files)
    with pytest.raises(AlreadyExists, match="another exclusions_sha256"):
        expander.expand(**again, exclude=files[:1], filter=FILTER)


def test_seeds_let_in_must_be_eligible_too(
    expander: Expander, order: dict[str, Any], excluded: list[int], passing: set[int], tmp_path: Path
) -> None:
    everyone = expander.expand(
        **{**order, "k": WHOLE}, filter=FILTER, exclude=excluded, include_seeds=True, output=tmp_path / "all"
    )
    assert set(everyone.members(0, 2000)["user_id"].to_pylist()) == passing - set(excluded)
    assert verify(everyone.path, threads=1).passed


@pytest.mark.parametrize(
    ("change", "field", "says"),
    [
        ({"filter": "land = 'DE'"}, "filter", "no field 'land'"),
        ({"filter": "activity >= 0.5"}, "filter", "nearest edges: 0.842"),
        ({"filter": "device = 'device_0' and device = 'device_1'"}, "filter", "0 users pass"),
        ({"filter": "gender is null or gender is not null", "exclude": "all"}, "filter", "all of them seeds or excl"),
        ({"exclude": "all"}, "exclude", "every user of the pool"),
        ({"exclude": ["a"]}, "exclude", "user ids of this pool are integers"),
    ],
)
def test_a_wrong_request_names_the_field(
    expander: Expander, order: dict[str, Any], tmp_path: Path, change: dict[str, Any], field: str, says: str
) -> None:
    if change.get("exclude") == "all":
        change = {**change, "exclude": expander.pool.user_ids(np.arange(2000))}
    with pytest.raises(InvalidInput, match=says) as caught:
        expander.expand(**order, **change, output=tmp_path / "out")
    assert caught.value.field == field
    assert list(tmp_path.iterdir()) == []


# verify ---------------------------------------------------------------------------------------------------------------


@pytest.fixture
def copy(audience: Audience, tmp_path: Path) -> Path:
    return Path(shutil.copytree(audience.path, tmp_path / "copy"))


def failed(path: Path, expander: Expander) -> set[str]:
    return {check.name for check in verify(path, threads=1).checks if not check.passed}


def forge(path: Path, **changes: object) -> None:
    receipt = json.loads((path / "manifest.json").read_text())
    receipt.update(changes)
    (path / "manifest.json").write_text(json.dumps(receipt))


def put(copy: Path, audience: Audience, user_id: int) -> None:
    members = audience.members(0, 40)
    ids = [*members["user_id"].to_pylist()[:-1], user_id]
    write_members(copy / "audience.parquet", pa.array(ids), members["score"].to_numpy())
    forge(copy, audience_sha256=file_digest(copy / "audience.parquet"))


def test_verify_finds_a_member_who_is_excluded_or_filtered(
    audience: Audience, expander: Expander, excluded: list[int], passing: set[int], copy: Path
) -> None:
    seeds = set(audience.seeds().to_pylist())
    put(copy, audience, next(user for user in excluded if user in passing - seeds))
    assert {"no excluded user is a member", "no user that was to be skipped is a member"} <= failed(copy, expander)
    ids = set(expander.pool.user_ids(np.arange(2000)).to_pylist())
    put(copy, audience, min(ids - passing - set(excluded) - seeds))
    found = failed(copy, expander)
    assert "no user that was to be skipped is a member" in found
    assert "no excluded user is a member" not in found


def test_verify_finds_a_filter_or_exclusions_that_were_others(
    audience: Audience, expander: Expander, copy: Path
) -> None:
    forge(copy, filter="\"device\" = 'device_0'")
    found = failed(copy, expander)
    assert {"the filter leaves out as many as recorded", "users skipped are those recorded"} <= found
    forge(copy, filter=audience.receipt.filter)
    assert failed(copy, expander) == set()
    ids = pq.read_table(copy / "exclusions.parquet")["user_id"].combine_chunks()
    assert pc.all(pc.equal(ids, ids.sort())).as_py()
    write_exclusions(copy / "exclusions.parquet", pa.int64(), [ids.slice(1)])
    assert "the exclusions are those of the receipt" in failed(copy, expander)
    (copy / "exclusions.parquet").write_bytes(b"")
    with pytest.raises(DataCorrupted):
        verify(copy)
