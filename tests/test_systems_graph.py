"""Pinterest's row and Hubble's: hashes by hand, hidden edges, and the contract of a system."""

from __future__ import annotations

import copy
import dataclasses
import math
from itertools import islice

import numpy as np
import numpy.typing as npt
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from lookalike.dataset.synthetic import simulate
from lookalike.errors import Cancelled, EmptySeeds, InvalidInput
from lookalike.evaluation.metrics import auc
from lookalike.evaluation.systems.edges import Edges, draws
from lookalike.evaluation.systems.fit_heads import HeadSettings, Lesson
from lookalike.evaluation.systems.hubble import Hubble, HubbleSettings, balanced
from lookalike.evaluation.systems.pinterest import Pinterest, PinterestSettings, beside_others
from lookalike.evaluation.systems.system import History, Ranking, Rates, SeededCampaign, Stepwise, System
from lookalike.model.bags import Entries
from lookalike.model.baselines.graph import FanOut, LikeGraph, Neighbours, Sight
from lookalike.model.baselines.hubble import Attention, Frozen, GraphModel
from lookalike.model.baselines.pinterest import Densities, Hashes
from lookalike.model.baselines.pooled_fields import PooledFields
from lookalike.model.features import FeatureEncoder
from lookalike.pool.ingest import ingest
from lookalike.pool.snapshot import Pool
from lookalike.schema import EncodedColumns
from lookalike.training.tasks import Samples, Task, load_tasks

RATES = Rates(offline=0.005, online=0.02)
HUBBLE = HubbleSettings(k=8, width=16, batch=64, heads=HeadSettings(hidden=(16,), batch=128, patience=4))
PINTEREST = PinterestSettings(k=8, hidden=16, width=16, batch=64, hashes=16, bits=5)


def make(key: str) -> System:
    return Pinterest(PINTEREST) if key == Pinterest.key else Hubble(HUBBLE)


def no_tick(done: int, total: int) -> None:
    assert 0 <= done <= total


@dataclasses.dataclass(frozen=True)
class Case:
    """36 training campaigns to learn from, and 24 others as a system meets them, beside what it must not see."""

    history: History
    tests: list[Task]

    @property
    def campaigns(self) -> list[SeededCampaign]:
        return [SeededCampaign(t.campaign_id, t.features, t.seeds, t.audience.rows) for t in self.tests]

    def mean_auc(self, rankings: list[Ranking]) -> float:
        pairs = zip(self.tests, rankings, strict=True)
        return float(np.mean([auc(t.audience.labels.astype(np.int8), r.scores) for t, r in pairs]))


@pytest.fixture(scope="module")
def case(tmp_path_factory: pytest.TempPathFactory) -> Case:
    folder = tmp_path_factory.mktemp("graph")
    dataset = simulate(folder / "dataset", users=2000, campaigns=60, seed=7)
    ingest(dataset.users_path, folder / "pool")
    pool, campaigns = Pool.open(folder / "pool"), dataset.campaign_schema()
    tasks = load_tasks(dataset, pool, campaigns, "train")
    return Case(History(pool, campaigns, tasks), load_tasks(dataset, pool, campaigns, "test"))


def trained(key: str, case: Case) -> System:
    made = make(key)
    assert made.pretrain(case.history, 40_000, RATES, seed=1, tick=no_tick).samples == 40_000
    return made


@pytest.fixture(scope="module")
def pinterest(case: Case) -> System:
    return trained(Pinterest.key, case)


@pytest.fixture(scope="module")
def hubble(case: Case) -> System:
    return trained(Hubble.key, case)


@pytest.fixture(scope="module", params=[Pinterest.key, Hubble.key])
def system(request: pytest.FixtureRequest) -> System:
    """Trained once: `customise` leaves it so."""
    made: System = request.getfixturevalue(request.param)
    return made


@pytest.fixture(scope="module")
def rankings(system: System, case: Case) -> list[Ranking]:
    return list(system.customise(case.campaigns, RATES, seed=2, tick=no_tick))


def test_it_learns_who_is_interested(case: Case, rankings: list[Ranking]) -> None:
    """A regression on each campaign's seeds reaches 0.75 here."""
    assert case.mean_auc(rankings) > 0.62


def test_customising_leaves_the_system_as_it_was(case: Case, system: System, rankings: list[Ranking]) -> None:
    """Whatever rates and campaigns came in between, whatever else is asked for along with a campaign."""
    few = case.campaigns[5:8]
    list(system.customise(few, Rates(offline=0.005, online=0.1), seed=9, tick=no_tick))
    again = list(system.customise(few, RATES, seed=2, tick=no_tick))
    for before, after in zip(rankings[5:8], again, strict=True):
        np.testing.assert_allclose(before.scores, after.scores, rtol=1e-3, atol=1e-3)
        assert before.samples == after.samples


@pytest.mark.parametrize("key", [Pinterest.key, Hubble.key])
def test_the_same_seed_gives_the_same_scores_and_another_gives_others(case: Case, key: str) -> None:
    def scores(seed: int) -> npt.NDArray[np.float64]:
        made = make(key)
        made.pretrain(case.history, 1000, RATES, seed=seed, tick=no_tick)
        ranked = made.customise(case.campaigns[:2], RATES, seed=seed, tick=no_tick)
        return np.concatenate([ranking.scores for ranking in ranked])

    np.testing.assert_array_equal(scores(3), scores(3))
    assert not np.array_equal(scores(3), scores(4))


@pytest.mark.parametrize("key", [Pinterest.key, Hubble.key])
def test_pretraining_counts_its_samples_and_stops_when_told_to(case: Case, key: str) -> None:
    seen: list[tuple[int, int]] = []

    def tick(done: int, total: int) -> None:
        seen.append((done, total))
        if done >= 500:
            raise Cancelled("enough")

    with pytest.raises(Cancelled):
        make(key).pretrain(case.history, 1000, RATES, seed=1, tick=tick)
    assert seen == [(done, 1000) for done in range(64, 513, 64)]
    assert make(key).pretrain(case.history, 333, RATES, seed=1, tick=no_tick).samples == 333


def test_customising_stops_when_told_to(case: Case, system: System) -> None:
    def tick(done: int, total: int) -> None:
        if done >= total / 4:
            raise Cancelled("enough")

    with pytest.raises(Cancelled):
        list(system.customise(case.campaigns, RATES, seed=2, tick=tick))


def test_only_gradients_count_as_samples(case: Case, system: System, rankings: list[Ranking]) -> None:
    for task, ranking in zip(case.tests, rankings, strict=True):
        learnt = len(Lesson.of(task.seeds, 0.2, np.random.default_rng(0)).train)
        epochs = len(ranking.losses)
        assert ranking.samples == (learnt * epochs if system.key == Hubble.key else 0)
        assert (epochs > 0) == (system.key == Hubble.key)


@pytest.mark.parametrize("key", [Pinterest.key, Hubble.key])
def test_an_offline_rate_that_diverges_is_named(case: Case, key: str) -> None:
    with pytest.raises(InvalidInput, match="lower offline rate"):
        make(key).pretrain(case.history, 1000, Rates(offline=1e30), seed=1, tick=no_tick)


@pytest.mark.parametrize("key", [Pinterest.key, Hubble.key])
def test_a_history_without_both_labels_teaches_nothing(case: Case, key: str) -> None:
    def disliked(samples: Samples) -> Samples:
        return Samples(samples.rows, np.zeros_like(samples.labels))

    tasks = [dataclasses.replace(t, seeds=disliked(t.seeds), audience=disliked(t.audience)) for t in case.history.tasks]
    history = dataclasses.replace(case.history, tasks=tasks)
    with pytest.raises(InvalidInput, match="both labels"):
        make(key).pretrain(history, 1000, RATES, seed=1, tick=no_tick)


# Pooled fields


def test_fields_are_pooled_as_feature_batches_are(case: Case) -> None:
    """They number the ids otherwise: single-valued fields first."""
    pool = case.history.pool
    torch.manual_seed(0)
    fields = PooledFields(pool.schema, 3, 1.0)
    assert [field.name for field in fields.fields] != [field.name for field in pool.schema.fields]
    sizes = [field.size for field in fields.fields]
    by_name = dict(zip([field.name for field in fields.fields], torch.split(fields.table, sizes), strict=True))
    table = torch.cat([by_name[field.name] for field in pool.schema.fields])
    every = fields.encode(pool.read(0, 300))
    rows = np.array([7, 299, 0, 7, 12, 13])
    expected = FeatureEncoder(pool.schema).batch(pool.take(rows)).embed(table).flatten(1)
    torch.testing.assert_close(fields(every.take(rows)), expected)
    torch.testing.assert_close(fields(fields.encode(pool.take(rows))), expected)
    assert (len(every), len(every.take(np.zeros(0, np.int64)))) == (300, 0)


# Edges


@given(st.integers(1, 20), st.integers(0, 90), st.integers(1, 25))
def test_draws_see_everything_before_they_see_anything_again(count: int, samples: int, size: int) -> None:
    batches = list(draws(count, samples, size, np.random.default_rng(0)))
    assert [len(batch) for batch in batches[:-1]] == [size] * (len(batches) - 1)
    seen = np.concatenate([np.zeros(0, np.int64), *batches])
    assert len(seen) == samples
    for first in range(0, samples, count):
        in_pass = seen[first : first + count].tolist()
        assert len(set(in_pass)) == len(in_pass)
        assert set(in_pass) <= set(range(count))


@given(st.integers(0, 60), st.integers(1, 16))
def test_every_other_sample_is_of_somebody_not_interested(samples: int, size: int) -> None:
    edges = Edges(np.arange(9), np.arange(9), np.zeros(9, np.int64), np.arange(9) < 2)
    batches = list(balanced(edges, samples, size, np.random.default_rng(0)))
    assert sum(map(len, batches)) == samples
    for batch in batches:
        assert np.count_nonzero(edges.liked[batch]) == math.ceil(len(batch) / 2)


def test_the_other_campaign_is_never_one_that_the_user_likes() -> None:
    """User 0 likes campaign 0 of 3, user 1 likes 0 and 2, user 2 likes all."""
    likes = [(0, 0), (1, 0), (1, 2), (2, 0), (2, 1), (2, 2)]
    users, campaigns = np.array(likes).T
    edges = Edges(np.array([5, 6, 8]), users, campaigns, np.ones(len(likes), bool))
    picked = np.tile(np.arange(len(likes)), 50)
    user, liked, other = beside_others(edges, picked, 3, np.random.default_rng(0))
    beside: dict[tuple[int, int], set[int]] = {}
    for u, t, o in zip(user.tolist(), liked.tolist(), other.tolist(), strict=True):
        beside.setdefault((u, t), set()).add(o)
    assert beside == {(0, 0): {1, 2}, (1, 0): {1}, (1, 2): {1}}
    assert edges.find(np.array([4, 5, 6, 7, 8, 9])).tolist() == [3, 0, 1, 3, 2, 3]


# Pinterest's densities

# Two hashes of one hyperplane each: the sign of x, and that of y.
SIGNS = Hashes(np.eye(2, dtype=np.float32), bits=1)


def test_regions_are_the_sides_of_the_hyperplanes() -> None:
    corners = np.array([[1, 1], [1, -1], [-1, 1], [-1, -1]], np.float32)
    assert SIGNS.regions(corners).tolist() == [[1, 3], [1, 2], [0, 3], [0, 2]]
    both = Hashes(np.eye(2, dtype=np.float32), bits=2)
    assert both.regions(corners).tolist() == [[3], [1], [2], [0]]


def test_scores_by_hand() -> None:
    """Ten users: 4 left and 6 right, 1 below and 9 above; two seeds, both right, one of them the one below."""
    everyone = np.array([4, 6, 1, 9])
    seeds = np.array([[1, 2], [1, 3]], np.int32)
    users = np.array([[0, 2], [0, 3], [1, 2], [1, 3]], np.int32)

    def ratio(s: int, n: int) -> float:
        return math.log((s + 0.5) / 2) - math.log((n + 0.5) / 10)

    left, right, below, above = ratio(0, 4), ratio(2, 6), ratio(1, 1), ratio(1, 9)
    every = Densities(everyone, 10, smoothing=0.5, fewest=1)
    expected = [(left + below) / 2, (left + above) / 2, (right + below) / 2, (right + above) / 2]
    np.testing.assert_allclose(every.scores(every.of_seeds(seeds), users), expected)

    # The region below has too few: it is as if users there had the other hash alone.
    most = Densities(everyone, 10, smoothing=0.5, fewest=2)
    expected = [left, (left + above) / 2, right, (right + above) / 2]
    np.testing.assert_allclose(most.scores(most.of_seeds(seeds), users), expected)

    # A user with no region left is as any.
    none = Densities(everyone, 10, smoothing=0.5, fewest=5)
    np.testing.assert_allclose(none.scores(none.of_seeds(seeds), users), [0, above, right, (right + above) / 2])


def test_without_a_seed_there_is_no_density(case: Case, pinterest: System) -> None:
    campaign = case.campaigns[0]
    others = campaign.seeds.take(np.flatnonzero(campaign.seeds.labels == 0))
    with pytest.raises(EmptySeeds):
        list(pinterest.customise([dataclasses.replace(campaign, seeds=others)], RATES, seed=1, tick=no_tick))


# Hubble's graph


@given(st.lists(st.tuples(st.integers(0, 4), st.integers(0, 6)), min_size=1, unique=True), st.integers(1, 9))
def test_neighbours_are_drawn_once_each_and_all_where_they_are_few(edges: list[tuple[int, int]], fan_out: int) -> None:
    nodes, others = torch.tensor(edges).T
    generator = torch.Generator().manual_seed(0)
    graph = Neighbours.of(nodes, others, 6, generator)
    for drawn in (graph.draw(torch.arange(6), fan_out, generator), graph.first(torch.arange(6), fan_out)):
        for node in range(6):
            real = {other for one, other in edges if one == node}
            got = drawn.others[node][drawn.present[node]].tolist()
            assert len(got) == min(fan_out, len(real))
            assert len(set(got)) == len(got)
            assert set(got) <= real


def test_neighbours_are_drawn_evenly() -> None:
    generator = torch.Generator().manual_seed(0)
    graph = Neighbours.of(torch.zeros(5, dtype=torch.int64), torch.arange(5), 1, generator)
    drawn = graph.draw(torch.zeros(4000, dtype=torch.int64), 2, generator)
    counts = torch.bincount(drawn.others.reshape(-1), minlength=5)
    assert bool(((counts - 1600).abs() < 160).all())


LIKES = [(0, 0), (0, 1), (1, 0), (2, 1), (2, 2), (3, 0), (3, 2), (4, 1)]  # users 0 to 4, campaigns 0 to 2; 5 has none
EVERYONE = FanOut(campaigns=5, users=7)


@dataclasses.dataclass(frozen=True)
class Small:
    """An untrained model whose neighbours matter, and features of six users and three campaigns."""

    model: GraphModel
    users: Entries
    campaigns: Entries

    def graph(self, likes: list[tuple[int, int]]) -> LikeGraph:
        users, campaigns = torch.tensor(likes).T
        return LikeGraph.of(self.users, self.campaigns, (users, campaigns), torch.Generator().manual_seed(0))

    def asked(self, likes: list[tuple[int, int]], pairs: list[tuple[int, int]]) -> torch.Tensor:
        users, campaigns = torch.tensor(pairs).T
        sight = Sight(self.graph(likes), users, campaigns, EVERYONE, torch.Generator().manual_seed(1))
        log_odds: torch.Tensor = self.model(sight, torch.ones(3, 1))
        return log_odds.detach()


@pytest.fixture(scope="module")
def small(case: Case) -> Small:
    torch.manual_seed(0)
    model = GraphModel(case.history.pool.schema, case.history.campaign_schema, 3, k=4, width=8, init_std=1.0)
    users = model.user_fields.encode(case.history.pool.read(0, 6))
    features = EncodedColumns.concat([task.features for task in case.history.tasks[:3]])
    return Small(model, users, model.campaign_fields.encode(features))


@pytest.mark.parametrize("edge", LIKES)
def test_an_edge_asked_about_is_hidden(small: Small, edge: tuple[int, int]) -> None:
    """The answer is that of a graph without it, and not what the graph with it would say."""
    without = [other for other in LIKES if other != edge]
    torch.testing.assert_close(small.asked(LIKES, [edge]), small.asked(without, [edge]))
    with_it = small.asked([*without, (5, edge[1])], [edge])  # some edge of the same campaign in its place
    assert not torch.allclose(small.asked(LIKES, [edge]), with_it, rtol=1e-3)


def test_all_edges_of_a_batch_are_hidden_from_each_other(small: Small) -> None:
    pairs = [(0, 1), (2, 1), (1, 2)]  # the last is no edge
    without = [other for other in LIKES if other not in pairs]
    torch.testing.assert_close(small.asked(LIKES, pairs), small.asked(without, pairs))
    assert not torch.allclose(small.asked(LIKES, [(0, 1)]), small.asked(LIKES, pairs)[:1], rtol=1e-3)


def test_what_is_frozen_is_what_was_trained(small: Small) -> None:
    """Where nothing is hidden and everybody drawn, both are the same network, for strangers and new campaigns too."""
    model, graph = small.model, small.graph(LIKES)
    with torch.no_grad():
        known = model.known.clone()
        model.known.zero_()  # a new campaign has none
    frozen = Frozen(model, graph, EVERYONE)
    vectors = frozen.users(small.users, torch.arange(6))
    for campaign in range(3):
        fans = torch.tensor([user for user, liked in LIKES if liked == campaign])
        vector = frozen.campaign(small.campaigns.take(np.array([campaign])), small.users.take(fans.numpy()), fans)
        for user in range(6):
            if (user, campaign) not in LIKES:
                expected = small.asked(LIKES, [(user, campaign)])
                torch.testing.assert_close(model.like(vectors[user], vector).unsqueeze(0), expected)
    stranger = frozen.users(small.users.take(np.array([0])), torch.tensor([len(small.users)]))
    torch.testing.assert_close(stranger, small_self_part(model, small.users.take(np.array([0]))))
    assert not torch.allclose(stranger, vectors[:1])
    with torch.no_grad():
        model.known.copy_(known)


def small_self_part(model: GraphModel, users: Entries) -> torch.Tensor:
    first, second = (layer.self_part for layer in model.user_layers if isinstance(layer, Attention))
    with torch.no_grad():
        vectors: torch.Tensor = second(first(model.start_users(users)).relu())
    return vectors


def test_hubble_distils_where_it_is_asked_to(case: Case, hubble: System) -> None:
    """Its teacher is the graph model with the seeds to learn from as the campaign's edges, over users of the pool."""
    assert isinstance(hubble, Hubble)
    distilling = copy.copy(hubble)
    distilling.settings = dataclasses.replace(HUBBLE, distillation=0.3, teaching_users=10**9)
    aucs = []
    for campaign, task in zip(case.campaigns, case.tests, strict=True):
        plain, taught = (each.lesson(campaign, seed=2) for each in (hubble, distilling))
        assert plain.teacher is None
        np.testing.assert_array_equal(plain.train.rows, taught.train.rows)
        assert taught.teacher is not None
        assert taught.teacher.weight == 0.3
        probabilities = np.full(case.history.pool.num_users, np.nan)
        probabilities[taught.teacher.rows] = taught.teacher.probabilities
        aucs.append(auc(task.audience.labels.astype(np.int8), probabilities[campaign.candidates]))
    assert np.mean(aucs) > 0.6
    scores = [list(each.customise(case.campaigns[:1], RATES, seed=2, tick=no_tick)) for each in (hubble, distilling)]
    assert not np.allclose(scores[0][0].scores, scores[1][0].scores)


def test_hubble_can_be_followed(hubble: System, case: Case) -> None:
    assert isinstance(hubble, Stepwise)
    campaign, task = case.campaigns[0], case.tests[0]
    states = list(islice(hubble.follow(campaign, RATES, seed=2), 30))
    labels = task.audience.labels.astype(np.int8)
    aucs = [auc(labels, state.score(campaign.candidates)) for state in (states[0], states[-1])]
    assert aucs[1] > max(0.6, aucs[0])
    assert set(states[0].train.rows) < set(campaign.seeds.rows)
