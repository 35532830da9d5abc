"""Pre-training on mixed campaigns, and adapting many campaigns at once to what each would get alone."""

from __future__ import annotations

import copy
import dataclasses
from collections.abc import Sequence
from itertools import islice

import numpy as np
import numpy.typing as npt
import pytest
import torch

from lookalike.config import ModelConfig
from lookalike.dataset.layout import Dataset
from lookalike.errors import Cancelled, InvalidInput
from lookalike.evaluation.metrics import auc
from lookalike.model.baselines.mlp import Mlp
from lookalike.model.baselines.mmoe import Mmoe
from lookalike.model.stacked import Campaigns, Network, UserFields, Users
from lookalike.pool.snapshot import Pool
from lookalike.training.adapt_networks import (
    Customised,
    NewCampaign,
    OnlineConfig,
    adapt_networks,
    follow,
)
from lookalike.training.general import CampaignEncoder, EncodedUsers, General, new_table
from lookalike.training.mixed import MixedConfig, train_mixed
from lookalike.training.row_adam import RowAdam
from lookalike.training.tasks import Samples, Task

CONFIG = ModelConfig(embedding_dim=4, num_experts=2, hidden=(8, 8), gate_hidden=8, wide=False)
NOBODY = np.zeros(0, np.int64)
ONLINE = OnlineConfig(lr=0.01, batch_size=64, max_epochs=4)


def general_mlp(dataset: Dataset, pool: Pool, tasks: Sequence[Task]) -> General:
    """Not trained yet."""
    users, rng = UserFields(pool.schema), np.random.default_rng(0)
    network = Mlp(users, dataset.campaign_schema(), CONFIG, reads_campaign=True).draw([rng])
    campaigns = CampaignEncoder(dataset.campaign_schema(), [task.features for task in tasks])
    return General(CONFIG, network, new_table(users, CONFIG.embedding_dim, 0.3, rng), users, campaigns)


@pytest.fixture(scope="module")
def general(dataset: Dataset, pool: Pool, tasks: list[Task]) -> General:
    """Trained on all campaigns but the last four."""
    general = general_mlp(dataset, pool, tasks[:-4])
    config = MixedConfig(lr=0.01, samples=30_000, campaign_id_dropout=0.2, user_id_dropout=0.01)
    train_mixed(general, pool, tasks[:-4], config, np.random.default_rng(0), lambda done, total: None)
    return general


def new_campaigns(tasks: Sequence[Task]) -> list[NewCampaign]:
    return [NewCampaign(task.features, task.seeds, (0, int(str(task.campaign_id)))) for task in tasks]


def adapted(
    general: General,
    pool: Pool,
    campaigns: Sequence[NewCampaign],
    frozen: Sequence[str] = (),
    config: OnlineConfig = ONLINE,
) -> list[Customised]:
    def start(rngs: Sequence[np.random.Generator], shares: npt.NDArray[np.float64]) -> Network:
        return general.network.take([0] * len(rngs))

    done = dict(adapt_networks(general, pool, campaigns, start, frozen, config, lambda done, total: None))
    return [done[position] for position in range(len(campaigns))]


def test_together_is_alone(general: General, pool: Pool, tasks: list[Task]) -> None:
    """Campaigns of many sizes: some stop early and leave the stack, and batches are padded."""
    campaigns = new_campaigns(tasks)
    together = adapted(general, pool, campaigns)
    assert len({own.best_epoch for own in together}) > 1
    assert len({len(own.losses) for own in together}) > 1
    for campaign, own in zip(campaigns, together, strict=True):
        (alone,) = adapted(general, pool, [campaign])
        assert alone.best_epoch == own.best_epoch
        assert alone.samples == own.samples
        np.testing.assert_allclose(alone.losses, own.losses, rtol=1e-4)
        assert alone.held_out_auc == pytest.approx(own.held_out_auc, abs=1e-3)
        for ours, theirs in zip(own.network.parameters(), alone.network.parameters(), strict=True):
            torch.testing.assert_close(ours, theirs, rtol=1e-2, atol=1e-4)
        torch.testing.assert_close(own.broad, alone.broad, rtol=1e-2, atol=1e-4)


def test_what_is_followed_is_what_is_adapted(general: General, pool: Pool, tasks: list[Task]) -> None:
    """After as many steps as an epoch has, the network that a first epoch leaves; and it goes on after that."""
    (campaign,) = new_campaigns(tasks[-1:])
    config = dataclasses.replace(ONLINE, max_epochs=1)
    (own,) = adapted(general, pool, [campaign], config=config)
    assert own.best_epoch == 1
    train, networks = follow(general, pool, campaign, lambda rngs, shares: general.network.take([0]), (), config)
    count = round(len(train) / config.batch_size)
    followed = list(islice(networks, 2 * count + 1))
    assert count > 1
    assert own.samples == len(train) < len(campaign.seeds)
    assert len(followed) == 2 * count + 1
    users = pool.take(campaign.seeds.rows)
    np.testing.assert_array_equal(followed[count].score(general, users), own.score(general, users))
    beginning = followed[0].score(general, users)
    assert (beginning != own.score(general, users)).any()
    assert (followed[-1].score(general, users) != own.score(general, users)).any()


def test_it_is_adam_on_the_mean_loss(general: General, pool: Pool, tasks: list[Task]) -> None:
    """Against a plain loop, on a campaign of one seed and one other user, many times each, ranked wrongly at first."""
    users = pool.take(np.arange(100))
    (untouched,) = adapted(general, pool, new_campaigns(tasks[-1:]), config=dataclasses.replace(ONLINE, max_epochs=0))
    scores = untouched.score(general, users)
    rows, labels = np.repeat([int(scores.argmin()), int(scores.argmax())], [10, 20]), np.repeat([1, 0], [10, 20])
    seeds = Samples(rows.astype(np.int64), labels.astype(np.float32))
    config = OnlineConfig(lr=0.05, max_epochs=20, patience=20)
    (own,) = adapted(general, pool, [NewCampaign(tasks[-1].features, seeds, (0,))], config=config)
    assert own.best_epoch > 1
    assert own.held_out_auc == 1

    network, broad = copy.deepcopy(general.network), general.broad.clone().unsqueeze(0).requires_grad_()
    optimizer = torch.optim.Adam([*network.parameters(), broad], lr=0.05, fused=False)
    training = Users(*general.users.encode(pool.take(rows[[*range(8), *range(10, 26)]])))
    targets = torch.tensor([1.0] * 8 + [0.0] * 16)
    for epoch in range(own.best_epoch):
        log_odds = network(training, Campaigns(general.campaigns.encode([tasks[-1].features])), broad)[0]
        loss = torch.nn.functional.binary_cross_entropy_with_logits(log_odds, targets)
        assert own.losses[epoch] == pytest.approx(loss.item(), rel=1e-4)
        optimizer.zero_grad()
        torch.autograd.backward(loss)
        optimizer.step()
    for name, parameter in network.named_parameters():
        torch.testing.assert_close(own.network.get_parameter(name), parameter, rtol=1e-3, atol=1e-5)
    torch.testing.assert_close(own.broad, broad.detach()[0, torch.from_numpy(own.rows)], rtol=1e-3, atol=1e-5)


def test_it_learns_from_the_seeds(general: General, pool: Pool, tasks: list[Task]) -> None:
    """On campaigns the general network has not seen: better than that network, and far better than chance."""
    before, after = [], []
    for task, own in zip(tasks[-4:], adapted(general, pool, new_campaigns(tasks[-4:])), strict=True):
        users, labels = pool.take(task.audience.rows), task.audience.labels.astype(np.int8)
        untouched = dataclasses.replace(own, network=general.network, broad=general.broad[torch.from_numpy(own.rows)])
        before.append(auc(labels, untouched.score(general, users)))
        after.append(auc(labels, own.score(general, users)))
        assert own.samples == len(own.losses) * (len(task.seeds) - held_out(task))
    assert np.mean(after) > max(0.62, float(np.mean(before)))


def held_out(task: Task) -> int:
    return sum(int((task.seeds.labels == label).sum()) // ONLINE.parts for label in (0, 1))


def test_the_general_network_stays_as_it_is(general: General, pool: Pool, tasks: list[Task]) -> None:
    before = copy.deepcopy(general)
    first = adapted(general, pool, new_campaigns(tasks[-2:]))
    for ours, theirs in zip(general.network.parameters(), before.network.parameters(), strict=True):
        assert torch.equal(ours, theirs)
    assert torch.equal(general.broad, before.broad)
    for a, b in zip(first, adapted(general, pool, new_campaigns(tasks[-2:])), strict=True):
        for ours, theirs in zip(a.network.parameters(), b.network.parameters(), strict=True):
            assert torch.equal(ours, theirs)


def test_what_is_frozen_does_not_move_and_the_rest_does(general: General, pool: Pool, tasks: list[Task]) -> None:
    trained = adapted(general, pool, new_campaigns(tasks[-4:]), ("embeddings", "experts.first"))
    trained = [own for own in trained if own.best_epoch > 0]
    assert trained
    for own in trained:
        assert torch.equal(own.broad, general.broad[torch.from_numpy(own.rows)])
        for name, parameter in own.network.named_parameters():
            same = torch.equal(parameter, general.network.get_parameter(name))
            assert same == name.startswith(("embeddings", "experts.first")), name


def test_only_what_the_samples_touch_moves(general: General, pool: Pool, tasks: list[Task]) -> None:
    """Narrow fields' rows too, though each campaign has a copy of them all."""
    (own,) = adapted(general, pool, new_campaigns(tasks[-1:]))
    assert own.best_epoch > 0
    narrow, broad = general.users.encode(pool.take(tasks[-1].seeds.rows))
    touched = np.zeros(own.network.embeddings.narrow.shape[1], np.bool_)
    touched[narrow.ids] = True
    moved = (own.network.embeddings.narrow != general.network.embeddings.narrow)[0].any(1).numpy()
    assert not (moved & ~touched).any()
    assert moved.any()
    assert own.rows.tolist() == np.unique(broad.ids).tolist()


def test_a_user_with_ids_no_seed_had_is_scored_by_their_general_embedding(
    general: General, pool: Pool, tasks: list[Task]
) -> None:
    (own,) = adapted(general, pool, new_campaigns(tasks[-1:]))
    everyone = pool.take(np.arange(pool.num_users))
    scores = own.score(general, everyone)
    _, broad = general.users.encode(everyone)
    foreign = np.setdiff1d(broad.ids, own.rows)
    assert len(foreign)
    shifted = general.broad.clone()
    shifted[torch.from_numpy(foreign.astype(np.int64))] += 1.0
    changed = own.score(dataclasses.replace(general, broad=shifted), everyone) != scores
    has_foreign = np.bincount(
        np.repeat(np.arange(len(broad.totals)), broad.totals), np.isin(broad.ids, foreign), len(broad.totals)
    )
    assert (changed == (has_foreign > 0)).all()


def test_a_campaign_with_one_seed_is_refused(general: General, pool: Pool, tasks: list[Task]) -> None:
    seeds = tasks[0].seeds
    one = np.concatenate([np.flatnonzero(seeds.labels == 1)[:1], np.flatnonzero(seeds.labels == 0)])
    with pytest.raises(InvalidInput, match="at least two seeds"):
        adapted(general, pool, [NewCampaign(tasks[0].features, seeds.take(one), (0,))])


def test_it_stops_when_asked(general: General, pool: Pool, tasks: list[Task]) -> None:
    calls: list[tuple[int, int]] = []

    def tick(done: int, total: int) -> None:
        calls.append((done, total))
        if len(calls) == 5:
            raise Cancelled("enough")

    with pytest.raises(Cancelled):
        for _ in adapt_networks(
            general,
            pool,
            new_campaigns(tasks),
            lambda rngs, shares: general.network.take([0] * len(rngs)),
            (),
            ONLINE,
            tick,
        ):
            pass
    assert calls == [(0, len(tasks))] * 5


def test_one_that_diverges_keeps_an_earlier_epoch(general: General, pool: Pool, tasks: list[Task]) -> None:
    for own in adapted(general, pool, new_campaigns(tasks[-3:]), config=dataclasses.replace(ONLINE, lr=1e30)):
        assert own.best_epoch == 0
        assert np.isfinite(own.score(general, pool.take(np.arange(50)))).all()


class Ticks:
    def __init__(self) -> None:
        self.seen: list[tuple[int, int]] = []

    def __call__(self, done: int, total: int) -> None:
        self.seen.append((done, total))


def test_pre_training_lowers_the_loss_and_can_be_repeated(dataset: Dataset, pool: Pool, tasks: list[Task]) -> None:
    losses, tables, ticks = [], [], Ticks()
    for _ in range(2):
        general = general_mlp(dataset, pool, tasks)
        config = MixedConfig(lr=0.01, samples=20_100, campaign_id_dropout=0.2, user_id_dropout=0.01)
        losses.append(train_mixed(general, pool, tasks, config, np.random.default_rng(1), ticks))
        tables.append(general.broad)
    assert ticks.seen[: len(ticks.seen) // 2] == [(done, 20_100) for done in [*range(0, 20_100, 512), 20_100]]
    assert losses[0] == losses[1]
    assert torch.equal(tables[0], tables[1])
    assert np.mean(losses[0][-10:]) < np.mean(losses[0][:3]) - 0.05


def test_pre_training_trains_every_unknown_id(dataset: Dataset, pool: Pool, tasks: list[Task]) -> None:
    general = general_mlp(dataset, pool, tasks)
    before = general.network.embeddings.campaign.detach().clone()
    config = MixedConfig(lr=0.01, samples=5_000, campaign_id_dropout=0.2, user_id_dropout=0.01)
    train_mixed(general, pool, tasks, config, np.random.default_rng(1), lambda done, total: None)
    moved = (general.network.embeddings.campaign != before)[0].all(1).numpy()
    assert moved[np.unique(general.campaigns.unknown_of)].all()


def test_pre_training_says_when_it_diverges(dataset: Dataset, pool: Pool, tasks: list[Task]) -> None:
    config = MixedConfig(lr=1e30, samples=5_000, campaign_id_dropout=0.2, user_id_dropout=0.01)
    with pytest.raises(InvalidInput, match="lower it"):
        train_mixed(
            general_mlp(dataset, pool, tasks), pool, tasks, config, np.random.default_rng(1), lambda done, total: None
        )


def test_heads_of_campaigns_learn_from_their_own_samples(dataset: Dataset, pool: Pool, tasks: list[Task]) -> None:
    users, rng = UserFields(pool.schema), np.random.default_rng(0)
    network = Mmoe(users, dataset.campaign_schema(), CONFIG).draw([rng])
    network.heads, network.gates = network.heads.take([0] * len(tasks)), network.gates.take([0] * len(tasks))
    encoder = CampaignEncoder(dataset.campaign_schema(), [task.features for task in tasks])
    general = General(CONFIG, network, new_table(users, CONFIG.embedding_dim, 0.3, rng), users, encoder)
    config = MixedConfig(lr=0.01, samples=2_000, campaign_id_dropout=0, user_id_dropout=0)
    before = copy.deepcopy(network)
    seeds = tasks[1].seeds
    turned = dataclasses.replace(tasks[1], seeds=Samples(seeds.rows, 1 - seeds.labels), audience=seeds.take(NOBODY))
    changed = [tasks[0], turned, *tasks[2:]]
    train_mixed(general, pool, changed, config, np.random.default_rng(1), lambda done, total: None)
    bias = general.network.get_parameter("heads.bias") - before.heads.bias
    assert bias[1] > 0  # nearly all of whose samples are positive now
    assert (bias[[0, *range(2, len(tasks))]] < 0).all()


def test_row_adam_is_sparse_adam() -> None:
    generator = torch.Generator().manual_seed(0)
    table = torch.randn(9, 3, generator=generator)
    reference = torch.nn.Parameter(table.clone())
    library, ours = torch.optim.SparseAdam([reference], lr=0.1), RowAdam([table], 0.1)
    for _ in range(5):
        rows = torch.randperm(9, generator=generator)[:4].sort().values
        gradient = torch.randn(4, 3, generator=generator)
        leaf = table[rows].requires_grad_()
        leaf.grad = gradient
        ours.update(table, rows, leaf)
        reference.grad = torch.sparse_coo_tensor(
            rows.unsqueeze(0), gradient, (9, 3), is_coalesced=True, check_invariants=False
        )
        library.step()  # type: ignore[no-untyped-call]
        torch.testing.assert_close(table, reference.detach())


def test_users_are_encoded_once_and_found(pool: Pool) -> None:
    fields = UserFields(pool.schema)
    rows = np.array([7, 3, 7, 1000])
    users = EncodedUsers.of(pool, rows, fields)
    assert users.rows.tolist() == [3, 7, 1000]
    narrow, broad = fields.encode(pool.take(rows))
    assert users.narrow.take(users.find(rows)).ids.tolist() == narrow.ids.tolist()
    assert users.broad.take(users.find(rows)).ids.tolist() == broad.ids.tolist()


def test_what_no_training_campaign_has_is_unknown(dataset: Dataset, tasks: list[Task]) -> None:
    encoder = CampaignEncoder(dataset.campaign_schema(), [tasks[0].features])
    own, foreign = encoder.encode([tasks[0].features]), encoder.encode([task.features for task in tasks[1:]])
    assert not np.isin(own.ids, encoder.unknown_of).any()
    assert np.isin(foreign.ids, np.union1d(own.ids, encoder.unknown_of)).all()
    assert np.isin(foreign.ids, encoder.unknown_of).any()
