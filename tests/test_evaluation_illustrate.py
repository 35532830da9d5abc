"""The figures from looks inside: what is measured is right, kept and drawn the same; and the command line."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from xml.etree import ElementTree as ET

import numpy as np
import pytest
import torch

from lookalike.cli.app import run
from lookalike.config import Config
from lookalike.errors import Cancelled, DataCorrupted, FailedPrecondition, InvalidInput, NotFound
from lookalike.evaluation.bench import Bench
from lookalike.evaluation.illustrate import NAMES, Illustrated, illustrate
from lookalike.evaluation.observations import Calibration, Convergence, Mixtures, Observations
from lookalike.evaluation.results import Tuned, held
from lookalike.evaluation.studies import calibration, convergence
from lookalike.evaluation.systems.fit_heads import HeadSettings
from lookalike.evaluation.systems.hubble import Hubble, HubbleSettings
from lookalike.evaluation.systems.lookalike import Lookalike
from lookalike.evaluation.systems.metaheac import metaheac_systems
from lookalike.evaluation.systems.networks import network_systems
from lookalike.evaluation.systems.registry import OURS, Factory
from lookalike.evaluation.systems.system import Mixed, Rates, Stepwise, System
from lookalike.evaluation.watch import Watch
from lookalike.scoring.compiled import compute_threads
from lookalike.training.adapt import adapt

SAMPLES = 20_000
STEPS, LOOKED_AT = 20, (0, 1, 2, 5, 10, 20)
INSIDE = ("convergence", "representations", "gates", "calibration")


def smaller(config: Config) -> dict[str, Factory]:
    """The systems of the figures, small, and with nothing to be tuned."""
    published = replace(config.model, wide=False)

    def one(make: Callable[[], list[System]], key: str) -> Factory:
        return lambda: next(system for system in make() if system.key == key)

    return {
        "mlp": one(lambda: [*network_systems(published)], "mlp"),
        "hubble": lambda: Hubble(HubbleSettings(k=8, width=16, batch=128, heads=HeadSettings(hidden=(16,), batch=128))),
        "mmoe": one(lambda: [*network_systems(published)], "mmoe"),
        "metaheac": one(lambda: [*metaheac_systems(published)], "metaheac"),
        OURS: lambda: Lookalike(OURS, "Ours", config, own_budget=False),
    }


def unwanted() -> System:
    raise AssertionError("nothing is to be trained")


NONE: Mapping[str, Factory] = dict.fromkeys(("mlp", "hubble", "mmoe", "metaheac", OURS), unwanted)


def opened(dataset: Path, folder: Path, watch: Watch | None = None, limit: int | None = None) -> Bench:
    bench = Bench.open(dataset, folder, samples=SAMPLES, watch=watch or Watch(), limit=limit)
    for key in NONE:
        bench.folder.put_rates(Tuned(key, Rates(0.01, 0.01), (), 0, bench.origin()))
    return bench


@dataclass(frozen=True)
class Case:
    dataset: Path
    folder: Path
    bench: Bench
    drawn: Illustrated

    @property
    def figures(self) -> Path:
        return self.folder / "figures"


@pytest.fixture(scope="module")
def quick() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(convergence, "STEPS", STEPS)
        patch.setattr(convergence, "LOOKED_AT", LOOKED_AT)
        patch.setattr(convergence, "CAMPAIGNS", 4)
        patch.setattr(calibration, "CAMPAIGNS", 5)
        with compute_threads(1):  # with more, sums are in no fixed order
            yield


@pytest.fixture(scope="module")
def case(sample_dataset: Path, small_config: Config, quick: None, tmp_path_factory: pytest.TempPathFactory) -> Case:
    folder = tmp_path_factory.mktemp("illustrate") / "bench"
    bench = opened(sample_dataset, folder)
    return Case(sample_dataset, folder, bench, illustrate(bench, smaller(small_config)))


def contents(paths: tuple[Path, ...]) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in paths}


# ------------------------------------------------------------------------------------------------------------ drawing


def test_every_figure_there_is_data_for_as_png_and_svg(case: Case) -> None:
    drawn = contents(case.drawn.paths)
    # No run is finished, so there is nothing to be drawn from results.
    assert sorted(drawn) == sorted(f"{name}.{kind}" for name in INSIDE for kind in ("png", "svg"))
    for name, content in drawn.items():
        if name.endswith("png"):
            assert content.startswith(b"\x89PNG\r\n\x1a\n")
        else:
            assert ET.fromstring(content).tag.endswith("svg")
            assert b"<dc:date>" not in content
    assert sorted(path.name for path in (case.figures / "data").iterdir()) == [
        "calibration.json",
        "convergence.json",
        "mixtures.json",
    ]


def test_what_is_kept_is_drawn_again_without_training_to_the_same_bytes(case: Case) -> None:
    before = contents(case.drawn.paths)
    for path in case.drawn.paths:
        path.unlink()
    again = illustrate(opened(case.dataset, case.folder), NONE)
    assert contents(again.paths) == before
    assert again.facts == case.drawn.facts


def test_another_category_is_another_figure_of_the_same_data(case: Case, tmp_path: Path) -> None:
    before = contents(case.drawn.paths)
    other = illustrate(
        opened(case.dataset, case.folder), NONE, only=["gates", "representations"], category="advertiser"
    )
    assert {path.name for path in other.paths} == {
        f"{n}.{k}" for n in ("gates", "representations") for k in ("png", "svg")
    }
    assert all(path.read_bytes() != before[path.name] for path in other.paths)
    illustrate(opened(case.dataset, case.folder), NONE)  # as it was, for the other tests
    assert contents(case.drawn.paths) == before


def test_measuring_twice_finds_the_same(case: Case, small_config: Config, tmp_path: Path) -> None:
    again = illustrate(opened(case.dataset, tmp_path / "bench"), smaller(small_config), only=["representations"])
    assert [path.name for path in again.paths] == ["representations.png", "representations.svg"]
    for name in ("figures/data/mixtures.json", "figures/representations.svg"):
        assert (tmp_path / "bench" / name).read_bytes() == (case.folder / name).read_bytes()
    with pytest.raises(AssertionError, match="nothing is to be trained"):
        illustrate(opened(case.dataset, tmp_path / "bench"), NONE, only=["representations"], fresh=True)


# ---------------------------------------------------------------------------------------------------------- the studies


def test_systems_are_followed_through_the_same_campaigns(case: Case) -> None:
    observations = Observations(case.figures / "data", case.bench.folder.identity.digest)
    found = observations.kept("convergence", Convergence, convergence.SETTINGS)
    assert found is not None
    assert found.steps == LOOKED_AT
    assert len(found.campaigns) == 4
    assert {*found.campaigns} <= {*case.bench.dataset.campaign_ids("test")}
    assert [system.key for system in found.systems] == list(convergence.SYSTEMS)
    for system in found.systems:
        losses, aucs = np.array(system.losses), np.array(system.aucs)
        assert losses.shape == aucs.shape == (4, len(LOOKED_AT))
        assert (losses[:, -1] < losses[:, 0]).all()
        assert ((aucs > 0) & (aucs < 1)).all()
        assert len(system.stopped) == 4
        if system.key == OURS:
            # Fitted in one go: what was followed to its end is what the table has.
            assert all(end is not None and 0 < end < STEPS for end in system.ended)
            np.testing.assert_allclose(aucs[:, -1], system.stopped, atol=1e-6)
        else:
            assert system.ended == (None,) * 4
    from_scratch = found.systems[0]
    assert np.array(from_scratch.aucs)[:, -1].mean() > np.array(from_scratch.aucs)[:, 0].mean() + 0.05


def test_campaigns_as_experts_and_critics_see_them(case: Case, small_config: Config) -> None:
    observations = Observations(case.figures / "data", case.bench.folder.identity.digest)
    found = observations.kept("mixtures", Mixtures, {"perplexity": 30.0})
    assert found is not None
    assert list(found.campaigns) == case.bench.dataset.campaign_ids("test")
    for system in found.systems:
        critics = np.array(system.critics)
        assert critics.shape == (len(found.campaigns), small_config.model.num_critics)
        np.testing.assert_allclose(critics.sum(1), 1, atol=1e-5)
        assert np.array(system.expertise).shape == (len(found.campaigns), small_config.model.hidden[-1])
        points = np.array(system.points)
        assert points.shape == (len(found.campaigns), 2)
        assert np.isfinite(points).all()
        assert len(np.unique(points, axis=0)) == len(points)


def test_a_forecast_is_held_against_the_audience_that_is_made(case: Case, small_config: Config) -> None:
    """One campaign by hand: the customised model over the whole pool, its best 5% but for the seeds."""
    observations = Observations(case.figures / "data", case.bench.folder.identity.digest)
    found = observations.kept("calibration", Calibration, calibration.SETTINGS)
    assert found is not None
    assert len(found.forecasts) + found.left_out == 5
    exam = case.bench.protocol.exam(0)
    pool = exam.history.pool
    ours = Lookalike(OURS, "Ours", small_config, own_budget=False)
    ours.pretrain(exam.history, SAMPLES, Rates(0.01, 0.01), seed=0, tick=lambda done, total: None)
    position = {campaign.campaign_id: number for number, campaign in enumerate(exam.campaigns)}
    for forecast in found.forecasts[:2]:
        number = position[forecast.campaign_id]
        campaign, answers = exam.campaigns[number], exam.answers[number]
        seeds = np.sort(campaign.seeds.rows[campaign.seeds.labels > 0])
        assert forecast.eligible == pool.num_users - len(seeds)
        assert forecast.k == int(0.05 * forecast.eligible)
        assert forecast.held_out == len(seeds)  # so few that every fold is needed
        adapted = adapt(ours.checkpoint, pool, campaign.features, seeds, small_config.adaptation)
        users = adapted.model.users.batch(pool.take(np.arange(pool.num_users)))
        with torch.no_grad():
            log_p, log_not_p = adapted.model(users, adapted.model.campaigns.batch(campaign.features))
        scores = (log_p - log_not_p).double().numpy()
        scores[seeds] = -np.inf
        best = np.argsort(-scores, kind="stable")[: forecast.k]
        later = np.setdiff1d(campaign.candidates[answers.labels > 0], seeds)
        assert forecast.later == len(later)
        assert forecast.found.value == pytest.approx(
            np.isin(later, best).mean(), abs=2 / len(later)
        )  # rounding of ties
        for estimate in (forecast.foretold, forecast.found):
            assert estimate.low <= estimate.value <= estimate.high


def test_ours_can_be_followed_with_own_weights_only(case: Case, small_config: Config) -> None:
    exam = case.bench.protocol.exam(0)
    config = replace(
        small_config,
        training=replace(small_config.training, method="meta", max_samples=2000),
        adaptation=replace(small_config.adaptation, optimizer="adam"),
    )
    system = Lookalike(OURS, "Ours", config, own_budget=False)
    system.pretrain(exam.history, 2000, Rates(), seed=0, tick=lambda done, total: None)
    assert isinstance(system, Stepwise)
    assert isinstance(system, Mixed)
    with pytest.raises(FailedPrecondition, match=r"set adaptation\.optimizer to head"):
        next(system.follow(exam.campaigns[0], Rates(), seed=0))


# ------------------------------------------------------------------------------------------------ what is kept, refused


def test_only_what_was_found_under_the_same_protocol_and_settings_is_kept(case: Case, tmp_path: Path) -> None:
    here = Observations(case.figures / "data", case.bench.folder.identity.digest)
    found = here.kept("convergence", Convergence, convergence.SETTINGS)
    assert found is not None
    there = Observations(tmp_path / "data", case.bench.folder.identity.digest)
    assert there.kept("convergence", Convergence, convergence.SETTINGS) is None
    assert there.keep("convergence", found) == there.kept("convergence", Convergence, convergence.SETTINGS) == found
    assert there.kept("convergence", Convergence, {**convergence.SETTINGS, "campaigns": 3}) is None
    assert Observations(tmp_path / "data", "other").kept("convergence", Convergence, convergence.SETTINGS) is None
    file = tmp_path / "data" / "convergence.json"
    file.write_bytes(file.read_bytes()[:-9])
    with pytest.raises(DataCorrupted, match=r"convergence\.json is damaged"):
        there.kept("convergence", Convergence, convergence.SETTINGS)


def test_what_is_kept_is_drawn_while_a_benchmark_measures_and_nothing_else(case: Case) -> None:
    with held(case.folder):
        again = illustrate(opened(case.dataset, case.folder), NONE, only=["gates"])
        with pytest.raises(FailedPrecondition, match="another benchmark measures"):
            illustrate(opened(case.dataset, case.folder), NONE, only=["gates"], fresh=True)
    assert [path.name for path in again.paths] == ["gates.png", "gates.svg"]


def test_stopping_keeps_what_is_finished(case: Case, small_config: Config, tmp_path: Path) -> None:
    reached: list[str] = []

    def report(what: str, done: int, total: int, note: str) -> None:
        if note == "calibration":
            reached.append(note)

    bench = opened(case.dataset, tmp_path, Watch(report, lambda: bool(reached)))
    order = ["representations", "calibration"]
    with pytest.raises(Cancelled, match="goes on"):
        illustrate(bench, smaller(small_config), only=order)
    assert [path.name for path in (tmp_path / "figures" / "data").iterdir()] == ["mixtures.json"]
    assert {path.suffix for path in (tmp_path / "figures").glob("representations.*")} == {".png", ".svg"}
    assert not list((tmp_path / "figures").glob("calibration.*"))


@pytest.mark.parametrize("figure", ["convergence", "calibration"])
def test_stopping_is_prompt(case: Case, small_config: Config, tmp_path: Path, figure: str) -> None:
    """Before the second campaign, wherever the first one was."""
    seen: list[int] = []

    def report(what: str, done: int, total: int, note: str) -> None:
        if figure in note:
            seen.append(done)

    bench = opened(case.dataset, tmp_path, Watch(report, lambda: len(seen) > 1))
    with pytest.raises(Cancelled):
        illustrate(bench, smaller(small_config), only=[figure])
    assert max(seen) <= 1


def test_wrong_names_are_refused_before_anything_is_trained(case: Case, tmp_path: Path) -> None:
    bench = opened(case.dataset, tmp_path)
    with pytest.raises(InvalidInput, match="campaigns have no field 'genre'; they have category, ") as raised:
        illustrate(bench, NONE, category="genre")
    assert raised.value.field == "category"
    for only in (["gate"], []):
        with pytest.raises(InvalidInput, match="there are auc_by_seeds, .*, gates, calibration") as raised:
            illustrate(bench, NONE, only=only)
        assert raised.value.field == "only"
    with pytest.raises(NotFound, match="no finished run"):
        illustrate(bench, NONE, only=["auc_by_group"])


def test_a_map_of_hardly_any_campaigns_is_refused(case: Case, small_config: Config, tmp_path: Path) -> None:
    with pytest.raises(InvalidInput, match="3 test campaigns are too few") as raised:
        illustrate(opened(case.dataset, tmp_path, limit=3), smaller(small_config), only=["representations"])
    assert raised.value.field == "limit"


# ------------------------------------------------------------------------------------------------------- command line


def test_from_a_benchmark_to_its_figures(case: Case, capsys: pytest.CaptureFixture[str]) -> None:
    order = ["figures", str(case.dataset), "--output", str(case.folder), "--samples", str(SAMPLES)]
    assert run([*order, "--only", "gates, calibration"]) == 0
    shown = capsys.readouterr()
    facts = [(name, value) for name, value in case.drawn.facts if name.startswith(("gates", "calibration"))]
    assert [(line.split("  ")[0], line.split("  ")[-1].strip()) for line in shown.out.splitlines()] == facts
    assert shown.err.splitlines()[-1] == str(case.figures / "calibration.svg")


def test_figures_of_results_come_from_the_table_s_folder(
    sample_dataset: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    options = [str(sample_dataset), "--limit", "4", "--threads", "1"]
    assert run(["bench", *options, "--systems", "lr", "--runs", "2"]) == 0
    folder = tmp_path / ".bench" / "dataset-limit-4"
    with held(folder):  # what is only read can be drawn while a benchmark measures
        assert run(["figures", *options, "--only", "auc_by_seeds,auc_by_group,adaptation_loss"]) == 0
    assert "adaptation_loss  not drawn: no finished run" in capsys.readouterr().out
    # Of losses by epoch a regression has none.
    assert {path.stem for path in (folder / "figures").iterdir()} == {"auc_by_seeds", "auc_by_group"}
    protocol = json.loads((folder / "protocol.json").read_text())
    assert protocol["limit"] == 4
    assert run(["figures", *options, "--only", "adaptation_loss"]) == 3
    assert "nothing is drawn of adaptation_loss" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "code", "words"),
    [
        (["--only", "gate"], 2, "no figure 'gate'"),
        (["--category", "genre"], 2, "no field 'genre'"),
        (["--samples", "0"], 2, "samples must be 1 or more"),
        (["--only", "auc_by_group"], 3, "no finished run"),
        (["--threads", "0"], 2, "field: threads"),
    ],
)
def test_what_is_wrong_is_said(
    sample_dataset: Path,
    tmp_path: Path,
    arguments: list[str],
    code: int,
    words: str,
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert run(["figures", str(sample_dataset), "--output", str(tmp_path / "bench"), *arguments]) == code
    assert words in capsys.readouterr().err


def test_the_help_names_every_figure(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["figures", "--help"]) == 0
    shown = capsys.readouterr().out
    assert all(name in shown for name in NAMES)
