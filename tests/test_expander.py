"""The embedded library end to end: expand, the audience on disk, its receipt, and verify's eye for every lie."""

from __future__ import annotations

import dataclasses
import json
import shutil
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import pytest

from lookalike.config import Config
from lookalike.dataset.synthetic import simulate
from lookalike.errors import (
    AlreadyExists,
    Cancelled,
    DataCorrupted,
    EmptySeeds,
    FailedPrecondition,
    InvalidInput,
    NotFound,
    SchemaError,
)
from lookalike.expander import Expander
from lookalike.files import file_digest
from lookalike.pool.ingest import ingest
from lookalike.retrieval.audience import Audience, write_members
from lookalike.retrieval.receipt import Progress, Receipt, SeedMatch, Stage
from lookalike.retrieval.verify import Verification, require_passed, verify
from lookalike.schema import EncodedColumns
from lookalike.scoring.compiled import TorchScriptEngine
from lookalike.training.pretraining import train


@pytest.fixture(scope="module")
def audience(expander: Expander, order: dict[str, Any], tmp_path_factory: pytest.TempPathFactory) -> Audience:
    return expander.expand(**order, output=tmp_path_factory.mktemp("audiences") / "spring")


def test_the_audience_is_the_exact_top_k(audience: Audience, expander: Expander, order: dict[str, Any]) -> None:
    """Against every user scored at once and sorted by numpy."""
    engine = TorchScriptEngine(audience.path / "model.pt", expander.config.scoring)
    blocks = [engine.score(block) for _, block in expander.pool.blocks(engine.batch_size)]
    scores = np.concatenate(blocks)
    scores[expander.pool.find(order["seeds"])] = -1
    best = np.lexsort((np.arange(len(scores)), -scores))[:300]
    members = audience.members(0, 300)
    assert members["user_id"].combine_chunks().equals(expander.pool.user_ids(best))
    np.testing.assert_array_equal(members["score"].to_numpy(), scores[best])
    assert members["rank"].to_pylist() == list(range(1, 301))


def test_the_receipt_tells_what_was_done(audience: Audience, expander: Expander, order: dict[str, Any]) -> None:
    receipt = audience.receipt
    seeds = len(order["seeds"])
    assert receipt.seeds == SeedMatch(given=seeds, matched=seeds, duplicates=0, not_in_pool=0)
    assert receipt.users_scored + receipt.users_skipped == expander.pool.num_users == receipt.pool_users
    assert receipt.users_skipped == seeds
    assert receipt.k == 300
    assert receipt.cutoff_score == audience.members(299, 300)["score"][0].as_py()
    assert receipt.ties_at_cutoff >= receipt.ties_selected >= 1
    assert receipt.audience_sha256 == file_digest(audience.path / "audience.parquet")
    assert receipt.checkpoint_sha256 == expander.checkpoint_sha256
    assert receipt.pool_sha256 == expander.pool.fingerprint
    assert {"matching", "adapting", "compiling", "scoring", "rescoring", "writing"} == set(receipt.seconds)
    assert Receipt.from_json(json.loads((audience.path / "manifest.json").read_text())) == receipt


def test_the_same_request_gives_the_same_bytes(
    audience: Audience, sample_checkpoint: Path, expander: Expander, order: dict[str, Any], tmp_path: Path
) -> None:
    shuffled = pc.take(order["seeds"], pa.array(np.random.default_rng(0).permutation(len(order["seeds"]))))
    other = Expander.open(sample_checkpoint, expander.pool.path, expander.config)
    again = other.expand(**{**order, "seeds": shuffled}, output=tmp_path / "again")
    for name in ("audience.parquet", "model.pt", "seeds.parquet"):
        assert (again.path / name).read_bytes() == (audience.path / name).read_bytes()
    volatile: dict[str, Any] = {"created": "", "seconds": {}}
    assert dataclasses.replace(again.receipt, **volatile) == dataclasses.replace(audience.receipt, **volatile)


def test_an_output_that_is_there_is_returned_or_refused(
    audience: Audience, expander: Expander, order: dict[str, Any]
) -> None:
    before = (audience.path / "manifest.json").stat().st_mtime_ns
    assert expander.expand(**order, output=audience.path).receipt == audience.receipt
    assert (audience.path / "manifest.json").stat().st_mtime_ns == before
    with pytest.raises(AlreadyExists, match="another k_requested"):
        expander.expand(**{**order, "k": 301}, output=audience.path)


def test_seeds_are_counted_and_left_out_unless_asked_for(
    expander: Expander, order: dict[str, Any], tmp_path: Path
) -> None:
    seeds = order["seeds"].to_pylist()
    given = [*seeds, seeds[0], seeds[0], -1, -2, -3]
    whole = 10**9
    out = expander.expand(**{**order, "seeds": given, "k": whole}, output=tmp_path / "out")
    assert out.receipt.seeds == SeedMatch(given=len(given), matched=len(seeds), duplicates=2, not_in_pool=3)
    assert out.num_members == expander.pool.num_users - len(seeds)
    assert not set(out.members(0, whole)["user_id"].to_pylist()) & set(seeds)
    everyone = expander.expand(
        **{**order, "k": whole},
        include_seeds=True,
        output=tmp_path / "all",
    )
    assert everyone.num_members == expander.pool.num_users
    assert verify(everyone.path, threads=1).passed


def test_a_request_is_the_same_in_any_form_and_another_under_another_configuration(
    expander: Expander, audience: Audience, order: dict[str, Any], sample_checkpoint: Path
) -> None:
    features = {name: tuple(v) if isinstance(v, list) else v for name, v in reversed(order["features"].items())}
    assert expander.expand(**{**order, "features": features}, output=audience.path).receipt == audience.receipt
    shorter = dataclasses.replace(expander.config.adaptation, max_epochs=1)
    other = Expander.open(
        sample_checkpoint, expander.pool.path, dataclasses.replace(expander.config, adaptation=shorter)
    )
    with pytest.raises(AlreadyExists, match="another adaptation_config"):
        other.expand(**order, output=audience.path)


def test_expansions_on_several_threads_do_not_disturb_each_other(
    expander: Expander, audience: Audience, order: dict[str, Any], tmp_path: Path
) -> None:
    seeds = order["seeds"]
    orders = [order, {**order, "seeds": seeds[: len(seeds) // 2]}, order, {**order, "seeds": seeds[20:]}]
    with ThreadPoolExecutor(len(orders)) as pool:
        made = list(pool.map(lambda i: expander.expand(**orders[i], output=tmp_path / str(i)), range(len(orders))))
    expected = (audience.path / "audience.parquet").read_bytes()
    assert [(a.path / "audience.parquet").read_bytes() == expected for a in made] == [True, False, True, False]


def test_progress_runs_through_all_stages(expander: Expander, order: dict[str, Any], tmp_path: Path) -> None:
    seen: list[Progress] = []
    expander.expand(**order, output=tmp_path / "out", progress=seen.append)
    assert list(dict.fromkeys(p.stage for p in seen)) == list(Stage)
    for stage in Stage:
        steps = [p for p in seen if p.stage is stage]
        assert steps[-1].done == steps[-1].total
        assert [p.done for p in steps] == sorted(p.done for p in steps)


@pytest.mark.parametrize("stage", [Stage.ADAPTING, Stage.SCORING])
def test_cancelling_leaves_nothing_behind(
    expander: Expander, order: dict[str, Any], tmp_path: Path, stage: Stage
) -> None:
    reached: list[Progress] = []
    with pytest.raises(Cancelled):
        expander.expand(
            **order,
            output=tmp_path / "out",
            progress=reached.append,
            cancelled=lambda: reached[-1].stage is stage,
        )
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("change", "error", "field"),
    [
        ({"campaign": ""}, InvalidInput, "campaign"),
        ({"k": 0}, InvalidInput, "k"),
        ({"random_seed": -1}, InvalidInput, "random_seed"),
        ({"seeds": []}, EmptySeeds, "seeds"),
        ({"seeds": [-1] * 20}, EmptySeeds, "seeds"),
        ({"seeds": ["a", "b"]}, InvalidInput, "seeds"),
        ({"features": {"colour": "red"}}, SchemaError, "features.colour"),
        ({"features": {"category": {"red"}}}, SchemaError, "features.category"),
    ],
)
def test_a_wrong_request_names_the_field(
    expander: Expander,
    order: dict[str, Any],
    tmp_path: Path,
    change: dict[str, Any],
    error: type[InvalidInput],
    field: str,
) -> None:
    with pytest.raises(error) as caught:
        expander.expand(**{**order, **change}, output=tmp_path / "out")
    assert caught.value.field == field
    assert list(tmp_path.iterdir()) == []


def test_a_pool_of_another_schema_is_refused(sample_checkpoint: Path, tmp_path: Path) -> None:
    other = simulate(tmp_path / "other", users=500, campaigns=5, seed=99)
    ingest(other.users_path, tmp_path / "pool")
    with pytest.raises(FailedPrecondition, match=r"'\w+' has \d+ values, not \d+, or others.*--schema"):
        Expander.open(sample_checkpoint, tmp_path / "pool")


def test_string_ids_all_the_way(small_config: Config, tmp_path: Path) -> None:
    dataset = simulate(tmp_path / "data", users=1500, campaigns=10, seed=3, string_ids=True)
    pool = ingest(dataset.users_path, tmp_path / "pool")
    train(dataset, pool, tmp_path / "ck", small_config)
    campaign = dataset.campaign_ids("test")[0]
    users, labels = dataset.samples(campaign, "seed")
    audience = Expander.open(tmp_path / "ck", tmp_path / "pool", small_config).expand(
        campaign="c", seeds=users.filter(pa.array(labels == 1)), k=50, output=tmp_path / "audience"
    )
    assert pa.types.is_large_string(audience.id_type) or pa.types.is_string(audience.id_type)
    assert verify(audience.path, threads=1).passed


def test_pages_and_batches_are_the_whole(audience: Audience) -> None:
    whole = audience.members(0, 300)
    pages = pa.concat_tables([audience.members(start, start + 70) for start in range(0, 300, 70)])
    assert pages.equals(whole)
    assert pa.Table.from_batches(list(audience.batches(64, start=10))).equals(whole.slice(10).combine_chunks())
    assert audience.members(300, 400).num_rows == 0
    with pytest.raises(InvalidInput):
        audience.members(5, 4)


def test_an_audience_that_is_none_is_refused(audience: Audience, tmp_path: Path) -> None:
    with pytest.raises(NotFound, match="no audience"):
        Audience.open(tmp_path / "nowhere")
    copy = _copy(audience, tmp_path)
    pq.write_table(audience.members(0, 299), copy / "audience.parquet")
    with pytest.raises(DataCorrupted, match="299 members"):
        Audience.open(copy)
    (copy / "manifest.json").write_text("{}")
    with pytest.raises(DataCorrupted, match="not a receipt"):
        Audience.open(copy)


# verify ---------------------------------------------------------------------------------------------------------------


def _copy(audience: Audience, folder: Path) -> Path:
    return Path(shutil.copytree(audience.path, folder / "copy"))


def _failed(path: Path, expander: Expander) -> set[str]:
    found = verify(path, threads=1)
    return {check.name for check in found.checks if not check.passed}


def _rewrite(path: Path, ids: pa.Array, scores: np.ndarray) -> None:
    """A forger who knows the format: members replaced, receipt mended to match."""
    write_members(path / "audience.parquet", ids, scores.astype(np.float32))
    receipt = json.loads((path / "manifest.json").read_text())
    receipt["audience_sha256"] = file_digest(path / "audience.parquet")
    receipt["cutoff_score"] = float(np.float32(scores[-1]))
    (path / "manifest.json").write_text(json.dumps(receipt))


def test_verify_passes_a_true_audience_and_rescores_exactly(audience: Audience, expander: Expander) -> None:
    found = verify(audience.path, threads=1)
    require_passed(found)
    assert found.largest_difference == 0
    assert found.users_rescored == expander.pool.num_users
    assert verify(audience.path, sample_users=1, threads=1).users_rescored <= 512


def test_verify_finds_a_changed_byte(audience: Audience, expander: Expander, tmp_path: Path) -> None:
    copy = _copy(audience, tmp_path)
    _rewrite(copy, audience.members(0, 300)["user_id"].combine_chunks(), audience.members(0, 300)["score"].to_numpy())
    assert _failed(copy, expander) == set()
    receipt = json.loads((copy / "manifest.json").read_text())
    receipt["audience_sha256"] = "0" * 64
    (copy / "manifest.json").write_text(json.dumps(receipt))
    assert _failed(copy, expander) == {"checksum of audience.parquet"}


def test_verify_finds_a_member_left_out(audience: Audience, expander: Expander, tmp_path: Path) -> None:
    """The 5th member is dropped and everyone moves up; the 301st fills the place."""
    copy = _copy(audience, tmp_path)
    more = expander.expand(
        campaign=audience.receipt.campaign,
        features=audience.receipt.features,
        seeds=audience.seeds(),
        k=301,
        output=tmp_path / "more",
    ).members(0, 301)
    kept = pa.concat_tables([more.slice(0, 4), more.slice(5)])
    _rewrite(copy, kept["user_id"].combine_chunks(), kept["score"].to_numpy())
    assert _failed(copy, expander) == {"nobody better was left out"}


def test_verify_finds_a_wrong_score_and_a_wrong_order(audience: Audience, expander: Expander, tmp_path: Path) -> None:
    copy = _copy(audience, tmp_path)
    members = audience.members(0, 300)
    scores = members["score"].to_numpy().copy()
    scores[0] += 0.01
    _rewrite(copy, members["user_id"].combine_chunks(), scores)
    assert "members score what was recorded" in _failed(copy, expander)
    scores = members["score"].to_numpy().copy()
    scores[[3, 200]] = scores[[200, 3]]
    _rewrite(copy, members["user_id"].combine_chunks(), scores)
    assert "scores descend, ties by user id" in _failed(copy, expander)


def test_verify_finds_a_seed_and_a_stranger(audience: Audience, expander: Expander, tmp_path: Path) -> None:
    copy = _copy(audience, tmp_path)
    members = audience.members(0, 300)
    ids = members["user_id"].to_pylist()
    ids[7] = audience.seeds()[0].as_py()
    _rewrite(copy, pa.array(ids), members["score"].to_numpy())
    assert "no seed is a member" in _failed(copy, expander)
    ids[7] = -5
    _rewrite(copy, pa.array(ids), members["score"].to_numpy())
    assert "members are users of the pool" in _failed(copy, expander)


def test_verify_finds_strangers_excused_as_seeds(audience: Audience, expander: Expander, tmp_path: Path) -> None:
    copy = _copy(audience, tmp_path)
    more = pc.unique(pa.concat_arrays([audience.seeds(), expander.pool.user_ids(np.arange(50))]))
    pq.write_table(pa.table({"user_id": more.sort()}), copy / "seeds.parquet")
    assert "the seeds are those of the receipt" in _failed(copy, expander)


def test_verify_refuses_another_pool(audience: Audience, sample_dataset: Path, tmp_path: Path) -> None:
    users = pq.read_table(sample_dataset / "users.parquet")
    pq.write_table(users.slice(1), tmp_path / "users.parquet")
    ingest(tmp_path / "users.parquet", tmp_path / "pool")
    with pytest.raises(FailedPrecondition, match="another snapshot|not the snapshot"):
        verify(audience.path, pool=tmp_path / "pool")
    with pytest.raises(DataCorrupted):
        require_passed(_broken(audience, tmp_path))


def _broken(audience: Audience, folder: Path) -> Verification:
    copy = _copy(audience, folder)
    (copy / "model.pt").write_bytes((copy / "model.pt").read_bytes() + b"\0")
    return verify(copy)


def test_scores_do_not_depend_on_where_a_block_starts(audience: Audience, expander: Expander) -> None:
    engine = TorchScriptEngine(audience.path / "model.pt", expander.config.scoring)
    columns: EncodedColumns = expander.pool.read(100, 200)
    np.testing.assert_array_equal(engine.score(columns), engine.score(expander.pool.read(0, 300))[100:200])
