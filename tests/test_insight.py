"""`Expander.insight` and `lookalike insight` end to end: honest, repeatable, stopped and refused like an expansion."""

from __future__ import annotations

import dataclasses
import errno
import json
import os
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import torch

from lookalike.cli.app import run
from lookalike.config import Config
from lookalike.dataset.layout import Dataset
from lookalike.errors import Cancelled, DataCorrupted, EmptySeeds, InvalidInput, SchemaError
from lookalike.expander import Expander
from lookalike.pool.snapshot import Pool
from lookalike.retrieval import insight_page
from lookalike.retrieval.insight import Insight
from lookalike.retrieval.receipt import Progress, SeedMatch, Stage
from lookalike.training.adapt import adapt
from lookalike.training.adapted import Adapted
from lookalike.training.head_fit import CampaignSamples, with_own_weights


@pytest.fixture(scope="module")
def quick(sample_checkpoint: Path, sample_pool: Path, small_config: Config) -> Expander:
    """Adapts for a moment: what is tested is the way."""
    settings = dataclasses.replace(small_config.adaptation, max_epochs=2)
    return Expander.open(sample_checkpoint, sample_pool, dataclasses.replace(small_config, adaptation=settings))


@pytest.fixture(scope="module")
def request_(order: dict[str, Any], sample_dataset: Path) -> dict[str, Any]:
    """A test campaign's name, features, and all who were interested as its seeds: enough of them to judge by."""
    users, labels = Dataset.open(sample_dataset).samples(order["campaign"], "audience")
    seeds = pa.concat_arrays([order["seeds"], users.filter(pa.array(labels == 1))]).unique()
    return {"campaign": order["campaign"], "features": order["features"], "seeds": seeds}


@pytest.fixture(scope="module")
def insight(quick: Expander, request_: dict[str, Any]) -> Insight:
    return quick.insight(**request_, sizes=[100, 400])


def same(one: Insight, other: Insight) -> bool:
    plain = [{**each.to_json(), "created": "", "seconds": {}} for each in (one, other)]
    return plain[0] == plain[1]


# ------------------------------------------------------------------------------------------------------------- folds


@pytest.fixture(scope="module")
def adapted(quick: Expander, request_: dict[str, Any]) -> Adapted:
    rows = np.unique(quick.pool.find(request_["seeds"]))
    campaign = quick.checkpoint.campaign_schema.encode_features(request_["features"], where="features")
    return adapt(quick.checkpoint, quick.pool, campaign, rows, quick.config.adaptation, keep_folds=True)


def test_held_out_seeds_never_train_the_model_that_ranks_them(
    adapted: Adapted, quick: Expander, request_: dict[str, Any]
) -> None:
    seeds = set(quick.pool.find(request_["seeds"]).tolist())
    held = [row for fold in adapted.held_out for row in fold.seeds.tolist()]
    assert len(held) == len(set(held)) > 0
    assert set(held) <= seeds
    for fold in adapted.held_out:
        trained = set(fold.trained.tolist())
        assert trained.isdisjoint(fold.seeds.tolist())
        assert trained & seeds == seeds - set(fold.seeds.tolist())


def test_a_fold_s_model_is_that_of_the_other_seeds_alone(
    adapted: Adapted, quick: Expander, request_: dict[str, Any]
) -> None:
    """Fitted anew to what it was trained on, in another order, it is the same."""
    checkpoint, pool = quick.checkpoint, quick.pool
    seeds = np.unique(pool.find(request_["seeds"]))
    campaign = checkpoint.model.campaigns.batch(
        checkpoint.campaign_schema.encode_features(request_["features"], where="features")
    )
    assert checkpoint.prior is not None
    for fold in adapted.held_out:
        labels = np.isin(fold.trained, seeds).astype(np.float32)
        assert not np.isin(fold.seeds, fold.trained).any()
        assert labels.sum() == len(seeds) - len(fold.seeds)
        samples = CampaignSamples(checkpoint.model, checkpoint.prior, pool.take(fold.trained), campaign, labels)
        again = with_own_weights(checkpoint.model, checkpoint.prior, samples.fit(slice(None), lambda: None))
        for name, tensor in again.state_dict().items():
            torch.testing.assert_close(fold.model.state_dict()[name], tensor, rtol=1e-2, atol=1e-3)


def test_keeping_the_folds_changes_nothing_else(adapted: Adapted, quick: Expander, request_: dict[str, Any]) -> None:
    rows = np.unique(quick.pool.find(request_["seeds"]))
    campaign = quick.checkpoint.campaign_schema.encode_features(request_["features"], where="features")
    plain = adapt(quick.checkpoint, quick.pool, campaign, rows, quick.config.adaptation)
    assert plain.held_out == ()
    assert plain.history == adapted.history
    for name, tensor in plain.model.state_dict().items():
        assert torch.equal(adapted.model.state_dict()[name], tensor)


def test_the_folds_are_as_they_were_at_the_best_epoch(quick: Expander, request_: dict[str, Any]) -> None:
    """Kept while training goes on, against a training that stops there."""
    rows = np.unique(quick.pool.find(request_["seeds"]))
    campaign = quick.checkpoint.campaign_schema.encode_features(request_["features"], where="features")
    checkpoint, pool = quick.checkpoint, quick.pool
    for rate in (0.001, 0.5):  # the second one soon goes too far
        config = dataclasses.replace(
            quick.config.adaptation, optimizer="adam", max_epochs=4, lr=rate, embedding_lr=10 * rate, ridge=0
        )
        long = adapt(checkpoint, pool, campaign, rows, config, keep_folds=True)
        short = dataclasses.replace(config, max_epochs=long.best_epoch)
        again = adapt(checkpoint, pool, campaign, rows, short, keep_folds=True)
        for one, other in zip(long.held_out, again.held_out, strict=True):
            np.testing.assert_array_equal(one.seeds, other.seeds)
            for name, tensor in one.model.state_dict().items():
                assert torch.equal(other.model.state_dict()[name], tensor)
    assert long.best_epoch < len(long.history) - 1


# ----------------------------------------------------------------------------------------------------------- insights


def test_an_insight_tells_what_an_audience_would_find(
    insight: Insight, quick: Expander, request_: dict[str, Any]
) -> None:
    seeds = len(request_["seeds"])
    assert insight.seeds == SeedMatch(given=seeds, matched=seeds, duplicates=0, not_in_pool=0)
    assert insight.eligible_users == quick.pool.num_users - seeds == insight.described_users
    assert insight.compared_users < insight.eligible_users
    assert insight.held_out_seeds == seeds  # so few that every part is held out once
    assert [point.k for point in insight.asked] == [100, 400]
    assert insight.curve[-1].k == insight.eligible_users
    assert insight.curve[-1].recall.value == insight.curve[-1].lift.value == 1
    assert insight.fine_tuning.auc.low > 0.65
    assert insight.asked[0].lift.low > 1
    assert insight.seed_quality.verdict == "good"
    assert insight.headline.startswith("Good seeds.")
    assert set(insight.seconds) == {"matching", "adapting", "compiling", "scoring"}
    assert insight.checkpoint_sha256 == quick.checkpoint_sha256
    assert insight.pool_sha256 == quick.pool.fingerprint


def test_the_same_request_gives_the_same_insight_and_json_keeps_it(
    insight: Insight, quick: Expander, request_: dict[str, Any]
) -> None:
    assert same(insight, quick.insight(**request_, sizes=[100, 400]))
    read = Insight.from_json(json.loads(json.dumps(insight.to_json(), allow_nan=False)))
    assert read == insight


@pytest.mark.parametrize(
    ("change", "words"),
    [({"format_version": 2}, "format_version is 2"), ({"curve": 3}, "curve"), ({"seeds": {}}, "seeds")],
)
def test_foreign_json_is_refused(insight: Insight, change: dict[str, Any], words: str) -> None:
    with pytest.raises(DataCorrupted, match=words):
        Insight.from_json({**insight.to_json(), **change})
    with pytest.raises(DataCorrupted, match="format_version is None"):
        Insight.from_json([])


def test_it_does_not_touch_the_audience(
    quick: Expander, order: dict[str, Any], insight: Insight, tmp_path: Path
) -> None:
    before = quick.expand(**order, output=tmp_path / "before")
    quick.insight(**{name: value for name, value in order.items() if name != "k"})
    after = quick.expand(**order, output=tmp_path / "after")
    for name in ("audience.parquet", "model.pt"):
        assert (before.path / name).read_bytes() == (after.path / name).read_bytes()


def test_random_seeds_are_not_distinctive(quick: Expander, request_: dict[str, Any]) -> None:
    rows = np.random.default_rng(8).choice(quick.pool.num_users, 160, replace=False)
    found = quick.insight(**{**request_, "seeds": quick.pool.user_ids(np.sort(rows))})
    assert found.seed_quality.verdict == "poor"
    assert "NOT_DISTINCTIVE" in {reason.code for reason in found.seed_quality.reasons}
    assert found.seed_quality.random_share.high > 0.8
    assert all(point.lift_band.low <= 1.01 for point in found.curve)
    assert found.suggestions == ()
    assert found.headline == "Poor seeds. No size of audience is sure to do better than chance."


def test_strangers_among_the_seeds_raise_their_share(
    quick: Expander, request_: dict[str, Any], insight: Insight
) -> None:
    seeds = request_["seeds"]
    half = len(seeds) // 2
    rng = np.random.default_rng(4)
    strangers = quick.pool.user_ids(np.sort(rng.choice(quick.pool.num_users, half, replace=False)))
    mixed = pa.concat_arrays([seeds.take(pa.array(rng.permutation(len(seeds))[:half])), strangers])
    found = quick.insight(**{**request_, "seeds": mixed})
    assert found.seed_quality.random_share.low > insight.seed_quality.random_share.value
    assert found.fine_tuning.auc.high < insight.fine_tuning.auc.value
    assert found.seed_quality.verdict != "good"


def test_few_seeds_and_what_was_wrong_with_the_list_are_told(quick: Expander, request_: dict[str, Any]) -> None:
    few = request_["seeds"].to_pylist()[:20]
    found = quick.insight(**{**request_, "seeds": [*few, *few, *range(-200, 0)]})
    assert found.seeds == SeedMatch(given=240, matched=20, duplicates=20, not_in_pool=200)
    assert {"TOO_FEW_SEEDS", "NOT_IN_POOL", "DUPLICATES"} <= {reason.code for reason in found.seed_quality.reasons}
    assert found.seed_quality.verdict == "poor"


def test_a_filter_and_exclusions_choose_among_whom_seeds_rank(
    quick: Expander, request_: dict[str, Any], insight: Insight
) -> None:
    pool = quick.pool
    out = pool.user_ids(np.arange(100))
    found = quick.insight(**request_, filter="gender = 'gender_0'", exclude=out)
    field = next(field for field in pool.schema.fields if field.name == "gender")
    passes = pool.read(0, pool.num_users).ids["gender"] == 2 + field.values.index("gender_0")
    seeds = pool.find(request_["seeds"])
    assert found.held_out_seeds == np.count_nonzero(passes[seeds]) < insight.held_out_seeds
    eligible = np.setdiff1d(np.flatnonzero(passes), [*seeds, *range(100)])
    assert found.eligible_users == len(eligible)
    assert found.filter == "\"gender\" = 'gender_0'"
    assert found.exclusions.matched == 100
    assert any("Only hidden seeds that pass the filter" in text for text in found.caveats)
    among = np.count_nonzero(passes[seeds])
    assert any(f"told of the {among} of {len(seeds)} seeds that pass the filter" in text for text in found.caveats)
    assert found.telling
    assert "gender" not in {one.field for one in found.telling}  # all who are compared have the same
    assert all(one.seeds <= among and one.seed_share == one.seeds / among for one in found.telling)


def test_seeds_that_fail_the_filter_all_rank_among_those_who_pass(quick: Expander, request_: dict[str, Any]) -> None:
    pool = quick.pool
    field = next(field for field in pool.schema.fields if field.name == "gender")
    passes = pool.read(0, pool.num_users).ids["gender"] == 2 + field.values.index("gender_0")
    rows = pool.find(request_["seeds"])
    failing = pool.user_ids(rows[~passes[rows]])
    found = quick.insight(**{**request_, "seeds": failing}, filter="gender = 'gender_0'")
    assert found.held_out_seeds == len(failing)
    assert "FEW_SEEDS_PASS_THE_FILTER" in {reason.code for reason in found.seed_quality.reasons}
    assert not any("Only hidden seeds that pass" in text for text in found.caveats)
    assert any(f"not told: only 0 of {len(failing)} pass" in text for text in found.caveats)
    assert found.telling == ()


def test_a_sample_of_a_large_pool_is_told_and_near_the_whole(
    quick: Expander, request_: dict[str, Any], insight: Insight
) -> None:
    found = quick.insight(**request_, sizes=[100, 400], sample_users=1000)
    assert found.described_users <= 1000 < found.eligible_users
    assert any(f"a sample of {found.described_users:,} of the {found.eligible_users:,}" in one for one in found.caveats)
    for sampled, whole in zip(found.asked, insight.asked, strict=True):
        assert sampled.recall.low < whole.recall.value < sampled.recall.high
        assert sampled.recall.high - sampled.recall.low > whole.recall.high - whole.recall.low
    assert abs(found.fine_tuning.auc.value - insight.fine_tuning.auc.value) < 0.03


def test_where_nothing_is_customised_the_general_model_is_used(quick: Expander, request_: dict[str, Any]) -> None:
    nothing = dataclasses.replace(quick.config.adaptation, max_epochs=0, ridge=0.0)
    general = Expander(quick.checkpoint, quick.pool, dataclasses.replace(quick.config, adaptation=nothing))
    found = general.insight(**request_)
    assert found.fine_tuning.general_is_used
    assert found.fine_tuning.difference.value == 0
    assert "so the general model is used" in found.fine_tuning.text
    assert all(point.recall.value == point.general_recall for point in found.curve)


def test_progress_runs_through_its_stages(quick: Expander, request_: dict[str, Any]) -> None:
    seen: list[Progress] = []
    quick.insight(**request_, progress=seen.append)
    assert list(dict.fromkeys(p.stage for p in seen)) == [
        Stage.MATCHING,
        Stage.ADAPTING,
        Stage.COMPILING,
        Stage.SCORING,
    ]
    for stage in {p.stage for p in seen}:
        steps = [p for p in seen if p.stage is stage]
        assert steps[-1].done == steps[-1].total


@pytest.mark.parametrize("stage", [Stage.ADAPTING, Stage.SCORING])
def test_it_stops_when_asked(quick: Expander, request_: dict[str, Any], stage: Stage) -> None:
    reached: list[Progress] = []
    with pytest.raises(Cancelled):
        quick.insight(**request_, progress=reached.append, cancelled=lambda: reached[-1].stage is stage)
    assert reached[-1].stage is stage


@pytest.mark.parametrize(
    ("change", "error", "field"),
    [
        ({"campaign": ""}, InvalidInput, "campaign"),
        ({"sizes": [10, 0]}, InvalidInput, "sizes"),
        ({"sample_users": 10}, InvalidInput, "sample_users"),
        ({"random_seed": -1}, InvalidInput, "random_seed"),
        ({"seeds": []}, EmptySeeds, "seeds"),
        ({"seeds": [-1] * 20}, EmptySeeds, "seeds"),
        ({"features": {"colour": "red"}}, SchemaError, "features.colour"),
        ({"filter": "height > 3"}, InvalidInput, "filter"),
    ],
)
def test_a_wrong_request_names_the_field(
    quick: Expander, request_: dict[str, Any], change: dict[str, Any], error: type[InvalidInput], field: str
) -> None:
    with pytest.raises(error) as caught:
        quick.insight(**{**request_, **change})
    assert caught.value.field == field


# -------------------------------------------------------------------------------------------------------- command line


@pytest.fixture
def arguments(sample_checkpoint: Path, sample_pool: Path, sample_dataset: Path, order: dict[str, Any]) -> list[str]:
    quickly = ["--set", "adaptation.max_epochs=1", "--set", "adaptation.enough_held_out_seeds=1"]
    folders = ["--checkpoint", str(sample_checkpoint), "--pool", str(sample_pool), "--dataset", str(sample_dataset)]
    return ["insight", *folders, "--campaign", order["campaign"], "--set", "scoring.threads=1", *quickly]


def test_the_command_tells_writes_the_page_and_prints_json(
    arguments: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    page = tmp_path / "new" / "spring.html"
    assert run([*arguments, "-k", "150", "--html", str(page)]) == 0
    shown = capsys.readouterr().out
    assert "150 users find" in shown
    assert "fine-tuning" in shown
    assert page.read_text(encoding="utf-8").startswith("<!doctype html>")
    assert [path.name for path in page.parent.iterdir()] == ["spring.html"]
    assert run([*arguments, "-k", "150", "-k", "300", "--sample", "1000", "--json"]) == 0
    found = Insight.from_json(json.loads(capsys.readouterr().out))
    assert [point.k for point in found.asked] == [150, 300]
    assert run([*arguments, "-k", "1000000000"]) == 0
    assert "users, all there are, find 100.0%" in capsys.readouterr().out


def test_a_campaign_of_the_data_set_s_training_split_is_told_to_be_too_good(
    arguments: list[str], sample_dataset: Path, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    words = "The general model was, or may have been, trained on this very campaign"
    page = tmp_path / "page.html"
    assert run([*arguments, "--html", str(page)]) == 0
    assert words not in capsys.readouterr().out + page.read_text(encoding="utf-8")
    known = str(Dataset.open(sample_dataset).campaign_ids("train")[0])
    assert run([*arguments, "--campaign", known, "--html", str(page)]) == 0
    shown = capsys.readouterr().out
    assert words in shown
    assert "Good seeds." not in shown
    assert words in page.read_text(encoding="utf-8")
    assert run([*arguments, "--campaign", known, "--json"]) == 0
    told = Insight.from_json(json.loads(capsys.readouterr().out)).seed_quality.reasons
    assert "GENERAL_MODEL_KNOWS_THE_CAMPAIGN" in {reason.code for reason in told}


def test_the_command_s_mistakes(arguments: list[str], capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    assert run([*arguments, "-k", "0"]) == 2
    assert "sizes" in capsys.readouterr().err
    assert run([*arguments, "--seeds", str(tmp_path / "none.txt")]) == 3
    (tmp_path / "file").touch()
    os.mkfifo(tmp_path / "pipe")
    for place, words in (
        (tmp_path, "is a folder"),
        (tmp_path / "pipe", "or a device"),
        (tmp_path / "file" / "page.html", "cannot be written"),
        (Path("/proc/none/page.html"), "cannot be written"),  # also by root
        (tmp_path / ("x" * 300), "File name too long"),
    ):
        assert run([*arguments, "--html", str(place)]) == 2
        said = capsys.readouterr()
        assert words in said.err
        assert "field: html" in said.err
        assert said.out == ""  # nothing was done


def test_what_was_found_is_told_though_the_page_cannot_be_written(
    arguments: list[str], capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(found: Insight, path: Path) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(path))

    monkeypatch.setattr(insight_page, "write_page", full)
    assert run([*arguments, "-k", "150", "--html", str(tmp_path / "page.html")]) != 0
    said = capsys.readouterr()
    assert "150 users find" in said.out
    assert "No space left" in said.err


def test_expand_says_when_the_general_model_is_used(
    arguments: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    same_request = ["expand", *arguments[1:], "-k", "50"]
    nothing = ["--set", "adaptation.max_epochs=0"]
    assert run([*same_request, *nothing, "--output", str(tmp_path / "a")]) == 0
    assert "0: fine-tuning did not help on held-out seeds, so the network is the general one" in capsys.readouterr().out


def test_pools_are_only_read(sample_pool: Path, insight: Insight) -> None:
    Pool.open(sample_pool).verify()
