"""The network systems of the results table, each against the contract, on a small history with shared structure."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from itertools import islice

import numpy as np
import pytest
import torch

from lookalike.config import ModelConfig
from lookalike.errors import Cancelled, FailedPrecondition
from lookalike.evaluation.metrics import auc
from lookalike.evaluation.systems.metaheac import metaheac_systems
from lookalike.evaluation.systems.networks import NetworkSystem, base_rate, network_systems
from lookalike.evaluation.systems.system import History, Mixed, Ranking, Rates, SeededCampaign, Stepwise, System
from lookalike.model.baselines.mlp import Mlp
from lookalike.model.baselines.mmoe import Mmoe
from lookalike.model.baselines.shared_bottom import SharedBottom
from lookalike.model.features import FeatureEncoder
from lookalike.model.metaheac_stack import StackedMetaHeac
from lookalike.pool.snapshot import Pool
from lookalike.schema import FeatureSchema, Field, FieldKind
from lookalike.training.tasks import Samples, Task

CONFIG = ModelConfig(embedding_dim=8, num_experts=3, num_critics=2, hidden=(16, 8), gate_hidden=8, wide=False)
SAMPLES = 40_000
RATES = Rates(offline=0.01, online=0.01)
FEW = 12  # seeds


def make(key: str, config: ModelConfig = CONFIG) -> NetworkSystem:
    (system,) = [s for s in [*network_systems(config), *metaheac_systems(config)] if s.key == key]
    return system


KEYS = [system.key for system in [*network_systems(), *metaheac_systems()]]
SCRATCH = "mlp"


def nothing(done: int, total: int) -> None:
    pass


SCHEMA = FeatureSchema((Field("taste", FieldKind.CATEGORICAL, values=tuple("abc")),))


def plant(pool: Pool, count: int, first: int) -> list[Task]:
    """Campaigns of three tastes, told by their one feature: who wants them is a matter of a user's ids."""
    encoder = FeatureEncoder(pool.schema)
    liking = np.random.default_rng(0).standard_normal((encoder.table_rows, 3)).astype(np.float32)
    fields = encoder.batch(pool.take(np.arange(pool.num_users))).embed(torch.from_numpy(liking))
    appeal = fields.sum(1).numpy()  # [users, 3]
    tasks = []
    for number in range(first, first + count):
        rng, taste = np.random.default_rng([1, number]), number % 3
        order = np.argsort(-appeal[:, taste] - rng.standard_normal(pool.num_users))
        interested, others = rng.permutation(order[:150]), rng.permutation(order[150:])
        parts = []
        for start, stop in ((0, 60), (60, 150)):
            rows = np.concatenate([interested[start:stop], others[10 * start : 10 * stop]])
            labels = np.repeat(np.array([1, 0], np.float32), [stop - start, 10 * (stop - start)])
            parts.append(Samples(rows, labels))
        tasks.append(Task(number, SCHEMA.encode_features({"taste": "abc"[taste]}, where="features"), *parts))
    return tasks


@pytest.fixture(scope="module")
def history(pool: Pool) -> History:
    return History(pool, SCHEMA, plant(pool, 18, 0))


@pytest.fixture(scope="module")
def later(pool: Pool) -> list[Task]:
    return plant(pool, 6, 18)


def as_seeded(task: Task) -> SeededCampaign:
    return SeededCampaign(task.campaign_id, task.features, task.seeds, task.audience.rows)


def with_few_seeds(task: Task) -> Task:
    """12 seeds and 10 negatives each; the campaign's audience is the same."""
    labels = task.seeds.labels
    index = [np.flatnonzero(labels == label)[:count] for label, count in ((1, FEW), (0, 10 * FEW))]
    return dataclasses.replace(task, seeds=task.seeds.take(np.concatenate(index)))


@pytest.fixture(scope="module")
def trained(history: History) -> dict[str, NetworkSystem]:
    systems = {key: make(key) for key in KEYS}
    for key, system in systems.items():
        spent = system.pretrain(history, SAMPLES, RATES, seed=0, tick=nothing)
        assert spent.seconds > 0
        # A meta step is never cut, and a scratch network sees nothing.
        assert spent.samples == 0 if key == SCRATCH else SAMPLES <= spent.samples < SAMPLES + 5 * 1024
    return systems


def rankings(system: System, tasks: Sequence[Task], rates: Rates = RATES, seed: int = 0) -> list[Ranking]:
    return list(system.customise([as_seeded(task) for task in tasks], rates, seed=seed, tick=nothing))


def mean_auc(tasks: Sequence[Task], answers: Sequence[Ranking]) -> float:
    pairs = zip(tasks, answers, strict=True)
    return float(np.mean([auc(task.audience.labels.astype(np.int8), answer.scores) for task, answer in pairs]))


def test_the_rows_of_the_table_have_distinct_names() -> None:
    systems: list[System] = [*network_systems(), *metaheac_systems()]
    assert len({system.key for system in systems}) == len({system.title for system in systems}) == 12
    for system in systems:
        assert len(system.offline_rates) == (1 if system.key == SCRATCH else 5)
        assert len(system.online_rates) == 5


@pytest.mark.parametrize("key", KEYS)
def test_it_learns_what_the_seeds_have_in_common(
    key: str, trained: dict[str, NetworkSystem], later: list[Task]
) -> None:
    answers = rankings(trained[key], later)
    assert mean_auc(later, answers) > 0.72
    for task, answer in zip(later, answers, strict=True):
        assert answer.scores.shape == task.audience.rows.shape
        assert answer.scores.dtype == np.float64
        assert np.isfinite(answer.scores).all()
        held_out = sum(int((task.seeds.labels == label).sum()) // 5 for label in (0, 1))
        assert answer.samples == len(answer.losses) * (len(task.seeds) - held_out)
        assert answer.seconds > 0


@pytest.mark.parametrize("key", [key for key in KEYS if key != SCRATCH])
def test_with_few_seeds_pre_training_pays(key: str, trained: dict[str, NetworkSystem], later: list[Task]) -> None:
    few = [with_few_seeds(task) for task in later]
    assert mean_auc(few, rankings(trained[key], few)) > mean_auc(few, rankings(trained[SCRATCH], few)) + 0.03


@pytest.mark.parametrize("key", KEYS)
def test_asking_twice_or_for_fewer_gives_the_same_answer(
    key: str, trained: dict[str, NetworkSystem], later: list[Task]
) -> None:
    """Also after other rates, and in another order: only the rounding of a sum may depend on who is adapted beside."""
    few = [with_few_seeds(task) for task in later]
    first = rankings(trained[key], few)
    rankings(trained[key], few, Rates(online=0.1))
    for ours, theirs in zip(first, rankings(trained[key], few), strict=True):
        np.testing.assert_array_equal(ours.scores, theirs.scores)
    for ours, theirs in zip(first[-3:][::-1], rankings(trained[key], few[-3:][::-1]), strict=True):
        np.testing.assert_allclose(ours.scores, theirs.scores, rtol=1e-2, atol=1e-3)
    assert any((a.scores != b.scores).any() for a, b in zip(first, rankings(trained[key], few, seed=1), strict=True))


@pytest.mark.parametrize("key", KEYS)
def test_it_can_be_followed(key: str, trained: dict[str, NetworkSystem], later: list[Task]) -> None:
    """Loss on what it learns from falls; following leaves the system as it was."""
    system, campaign = trained[key], as_seeded(later[0])
    before = rankings(system, later[:1])
    assert isinstance(system, Stepwise)
    states = list(islice(system.follow(campaign, RATES, seed=0), 25))
    train = states[0].train
    losses = [
        float((np.logaddexp(0, log_odds) - train.labels * log_odds).mean())
        for log_odds in (state.score(train.rows) for state in (states[0], states[-1]))
    ]
    assert losses[1] < losses[0]
    assert set(train.rows) < set(campaign.seeds.rows)
    np.testing.assert_array_equal(before[0].scores, rankings(system, later[:1])[0].scores)
    with pytest.raises(FailedPrecondition, match="pretrain first"):
        next(make(key).follow(campaign, RATES, seed=0))


@pytest.mark.parametrize("key", ["metaheac", "metaheac-no-hc", "metaheac-no-he"])
def test_the_mixture_is_what_the_scores_are_made_of(
    key: str, trained: dict[str, NetworkSystem], later: list[Task]
) -> None:
    """Eq. 8 by hand, from expertise and weights, is what a new campaign starts from."""
    system, campaign = trained[key], as_seeded(later[0])
    assert isinstance(system, Mixed)
    general, _ = system.trained()
    assert isinstance(general.network, StackedMetaHeac)
    mixture = system.mixture(campaign, campaign.candidates)
    assert mixture.critics.shape == (len(campaign.candidates), system.config.num_critics)
    np.testing.assert_allclose(mixture.critics.sum(1), 1.0, atol=1e-5)
    critics = general.network.critics
    opinions = mixture.expertise @ critics.get_parameter("weight")[0].detach().numpy()
    opinions = opinions + critics.get_parameter("bias")[0].detach().numpy()
    p = (mixture.critics / (1 + np.exp(-opinions))).sum(1)
    start = next(system.follow(campaign, RATES, seed=0)).score(campaign.candidates)
    np.testing.assert_allclose(np.log(p / (1 - p)), start, rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("key", ["mlp-emb-tuned", "mmoe", "metaheac", "metaheac-no-meta"])
def test_a_run_is_repeated_by_its_seed(key: str, history: History, later: list[Task]) -> None:
    def scores(seed: int) -> list[float]:
        system = make(key)
        system.pretrain(history, 3_000, RATES, seed=seed, tick=nothing)
        (answer,) = rankings(system, later[:1])
        values: list[float] = answer.scores.tolist()
        return values

    state = torch.random.get_rng_state()
    assert scores(3) == scores(3)
    assert scores(3) != scores(4)
    assert torch.equal(torch.random.get_rng_state(), state)


@pytest.mark.parametrize("key", KEYS)
def test_it_stops_when_asked(key: str, history: History, later: list[Task], trained: dict[str, NetworkSystem]) -> None:
    def stop(done: int, total: int) -> None:
        raise Cancelled("enough")

    if key != SCRATCH:
        with pytest.raises(Cancelled):
            make(key).pretrain(history, 3_000, RATES, seed=0, tick=stop)
    with pytest.raises(Cancelled):
        list(trained[key].customise([as_seeded(later[0])], RATES, seed=0, tick=stop))


def test_pre_training_comes_first(later: list[Task]) -> None:
    with pytest.raises(FailedPrecondition, match="pretrain first"):
        rankings(make("mlp"), later)


def begun(system: NetworkSystem, history: History) -> tuple[torch.nn.Module, torch.nn.Module]:
    """The general network, and what two new campaigns start from."""
    general, _ = system.learn(history, 2_000, RATES, 0, nothing)
    rngs = [np.random.default_rng(seed) for seed in (1, 2)]
    return general.network, system.recipe.begin(general, rngs, np.array([0.1, 0.2]))


def same(one: torch.nn.Module, other: torch.nn.Module, part: str) -> bool:
    """Whether the first copies agree in every parameter of a part."""
    whole = dict(other.named_parameters())
    pairs = [(p, whole[name]) for name, p in one.named_parameters() if name.startswith(part)]
    assert pairs
    return all(a[0].shape == b[0].shape and torch.equal(a[0], b[0]) for a, b in pairs)


@pytest.mark.parametrize("key", ["mlp", "mlp-emb-frozen", "mlp-emb-tuned"])
def test_a_new_campaign_gets_a_fresh_mlp_on_the_general_embeddings(key: str, history: History) -> None:
    general, start = begun(make(key), history)
    assert isinstance(start, Mlp)
    assert same(general, start, "embeddings")
    assert not start.experts.first.reads_campaign
    weights = start.get_parameter("output.weight")
    assert not torch.equal(weights[0], weights[1])
    assert not same(general, start, "output.weight")
    torch.testing.assert_close(start.offset.sigmoid().flatten(), torch.tensor([0.1, 0.2]))


@pytest.mark.parametrize("key", ["shared-bottom-frozen", "shared-bottom-tuned", "mmoe-random"])
def test_a_new_campaign_gets_a_fresh_head_on_the_general_network(key: str, history: History) -> None:
    general, start = begun(make(key), history)
    assert isinstance(start, Mmoe if key == "mmoe-random" else SharedBottom)
    assert same(general, start, "embeddings")
    assert same(general, start, "experts")
    for part in ["heads.weight", *(["gates.weight_in"] if key == "mmoe-random" else [])]:
        drawn, trained = start.get_parameter(part), general.get_parameter(part)
        assert len(drawn) == 2
        assert len(trained) == len(history.tasks)
        assert not torch.equal(drawn[0], drawn[1])
        assert not any(torch.allclose(drawn[0], one) for one in trained)
        assert not torch.allclose(drawn[0], trained.mean(0))
    torch.testing.assert_close(start.offset.sigmoid().flatten(), torch.tensor([0.1, 0.2]))


def test_mmoe_starts_a_new_campaign_at_the_mean_of_all_gates_and_heads(history: History) -> None:
    general, start = begun(make("mmoe"), history)
    assert same(general, start, "embeddings")
    assert same(general, start, "experts")
    for name, parameter in start.named_parameters():
        if name.startswith(("heads", "gates")):
            torch.testing.assert_close(parameter[1], general.get_parameter(name).mean(0))
    assert general.get_parameter("heads.weight").std(0).max() > 0


@pytest.mark.parametrize("key", ["mlp-pre", "metaheac", "metaheac-no-hc", "metaheac-no-he", "metaheac-no-meta"])
def test_a_new_campaign_starts_from_the_whole_general_network(key: str, history: History) -> None:
    general, start = begun(make(key), history)
    assert same(general, start, "")


def test_frozen_is_frozen_and_tuned_is_not() -> None:
    """What `frozen` does is tested with the online stage; here, who freezes what."""
    frozen = {key: make(key).recipe.frozen for key in KEYS if make(key).recipe.frozen}
    assert frozen == {"mlp-emb-frozen": ("embeddings",), "shared-bottom-frozen": ("embeddings", "experts")}


def test_the_ablations_lack_what_they_say(history: History) -> None:
    def shape(key: str) -> tuple[int, int]:
        general, _ = make(key).learn(history, 600, RATES, 0, nothing)
        assert isinstance(general.network, StackedMetaHeac)
        return general.network.experts.n, general.network.critics.bias.shape[2]

    assert shape("metaheac") == shape("metaheac-no-meta") == (3, 2)
    assert shape("metaheac-no-hc") == (3, 1)
    assert shape("metaheac-no-he") == (1, 2)


def test_every_general_network_starts_at_the_base_rate(history: History) -> None:
    share = base_rate(history.tasks)
    assert 0.02 < share < 0.1
    for key in KEYS:
        general, _ = make(key).learn(history, 1, Rates(offline=1e-12), 0, nothing)
        torch.testing.assert_close(
            general.network.offset.sigmoid(), torch.full_like(general.network.offset, share), rtol=1e-4, atol=0
        )


def test_labels_of_training_campaigns_matter_and_candidates_have_none(
    history: History, later: list[Task], trained: dict[str, NetworkSystem]
) -> None:
    """A campaign's answer for a candidate does not depend on which others are to be ranked."""
    campaign = as_seeded(later[0])
    (whole,) = trained["mlp-pre"].customise([campaign], RATES, seed=0, tick=nothing)
    some = dataclasses.replace(campaign, candidates=campaign.candidates[10:20])
    (part,) = trained["mlp-pre"].customise([some], RATES, seed=0, tick=nothing)
    np.testing.assert_allclose(part.scores, whole.scores[10:20], rtol=1e-5, atol=1e-6)
    turned = [
        dataclasses.replace(task, seeds=Samples(task.seeds.rows, 1 - task.seeds.labels)) for task in history.tasks
    ]
    other = make("mlp-pre")
    other.pretrain(dataclasses.replace(history, tasks=turned), SAMPLES, RATES, seed=0, tick=nothing)
    (misled,) = rankings(other, later[:1], Rates(online=1e-9))
    (led,) = rankings(trained["mlp-pre"], later[:1], Rates(online=1e-9))
    assert np.corrcoef(misled.scores, led.scores)[0, 1] < 0.5
