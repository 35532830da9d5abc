"""The paper's networks with ordinary training (section 4.1): from scratch, or pre-trained in part or as a whole.

Knows how each is built, started for a campaign, and frozen; the two loops are in `training`.
"""

from __future__ import annotations

import time
import zlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial

import numpy as np
import numpy.typing as npt
import torch

from lookalike.config import ModelConfig, TrainingConfig
from lookalike.errors import FailedPrecondition
from lookalike.evaluation.systems.system import (
    LEARNING_RATES,
    History,
    Ranking,
    Rates,
    SeededCampaign,
    Spent,
    Tick,
    Underway,
)
from lookalike.model.baselines.mlp import Mlp
from lookalike.model.baselines.mmoe import Mmoe
from lookalike.model.baselines.shared_bottom import SharedBottom
from lookalike.model.stacked import Network, UserFields
from lookalike.pool.snapshot import Pool
from lookalike.schema import FeatureSchema
from lookalike.training.adapt_networks import NewCampaign, OnlineConfig, OwnNetwork, adapt_networks, follow
from lookalike.training.general import CampaignEncoder, General, new_table
from lookalike.training.mixed import MixedConfig, train_mixed
from lookalike.training.tasks import Rows, base_rate

# The published network: k = 16, 64, 64, 1, no linear term; n and m as in the authors' code.
PUBLISHED = ModelConfig(wide=False, num_experts=8, num_critics=5)

Generators = Sequence[np.random.Generator]
Floats = npt.NDArray[np.float64]
Build = Callable[[UserFields, FeatureSchema, ModelConfig], Network]
Begin = Callable[[General, Generators, Floats], Network]


@dataclass(frozen=True)
class Recipe:
    """What tells one of these systems from another.

    Attributes:
        build: the general network, not drawn yet.
        begin: the networks new campaigns start from, given the share of positives among the samples of each.
        frozen: beginnings of the names of parameters that the online stage leaves as they are.
        pretrained: whether there is an offline stage.
    """

    build: Build
    begin: Begin
    frozen: tuple[str, ...] = ()
    pretrained: bool = True


class NetworkSystem:
    """A row of the table: an offline stage on all training campaigns mixed, then fine-tuning for each new one."""

    def __init__(self, key: str, title: str, recipe: Recipe, config: ModelConfig) -> None:
        self.key = key
        self.title = title
        self.recipe = recipe
        self.config = config
        self.offline_rates: Sequence[float] = LEARNING_RATES if recipe.pretrained else (Rates().offline,)
        self.online_rates: Sequence[float] = LEARNING_RATES
        self._trained: tuple[General, Pool] | None = None

    def pretrain(self, history: History, samples: int, rates: Rates, *, seed: int, tick: Tick) -> Spent:
        """See `System`.

        Raises:
            InvalidInput: the loss is no longer finite.
        """
        began = time.perf_counter()
        general, seen = self.learn(history, samples, rates, seed, tick)
        self._trained = (general, history.pool)
        return Spent(time.perf_counter() - began, seen)

    def learn(self, history: History, samples: int, rates: Rates, seed: int, tick: Tick) -> tuple[General, int]:
        """The general network, and how many samples it has seen."""
        rng = np.random.default_rng(seed)
        users = UserFields(history.pool.schema)
        network = self.recipe.build(users, history.campaign_schema, self.config).draw([rng])
        start_at(network, np.array([base_rate(history.tasks)]))
        give_heads(network, len(history.tasks))
        table = new_table(users, self.config.embedding_dim, self.config.embedding_init_std, rng)
        general = General(self.config, network, table, users, campaign_encoder(history))
        if not self.recipe.pretrained:
            return general, 0
        # Ids are dropped as in meta-training, so that no system meets a new campaign with an untrained unknown id.
        dropout = TrainingConfig()
        config = MixedConfig(rates.offline, samples, dropout.campaign_id_dropout, dropout.user_id_dropout)
        train_mixed(general, history.pool, history.tasks, config, rng, tick)
        return general, samples

    def customise(
        self, campaigns: Sequence[SeededCampaign], rates: Rates, *, seed: int, tick: Tick
    ) -> Iterator[Ranking]:
        """See `System`.

        Raises:
            FailedPrecondition: `pretrain` has not come first. InvalidInput: as `adapt_networks`.
        """
        general, pool = self.trained()
        answers: dict[int, Ranking] = {}
        for position, own in adapt_networks(
            general,
            pool,
            [_new(campaign, seed) for campaign in campaigns],
            partial(self.recipe.begin, general),
            self.recipe.frozen,
            OnlineConfig(lr=rates.online),
            tick,
        ):
            scores = _scores(own, general, pool, campaigns[position].candidates)
            answers[position] = Ranking(scores, own.seconds, own.samples, own.losses)
        for position in range(len(campaigns)):
            yield answers[position]

    def follow(self, campaign: SeededCampaign, rates: Rates, *, seed: int) -> Iterator[Underway]:
        """See `Stepwise`.

        Raises:
            FailedPrecondition, InvalidInput: as `customise`.
        """
        general, pool = self.trained()
        train, networks = follow(
            general,
            pool,
            _new(campaign, seed),
            partial(self.recipe.begin, general),
            self.recipe.frozen,
            OnlineConfig(lr=rates.online),
        )
        for own in networks:
            yield Underway(campaign.seeds.take(train), partial(_scores, own, general, pool))

    def trained(self) -> tuple[General, Pool]:
        """The general network, and the pool of its users.

        Raises:
            FailedPrecondition: `pretrain` has not come first.
        """
        if self._trained is None:
            raise FailedPrecondition(f"'{self.key}' has no general network yet: call pretrain first")
        return self._trained


def _new(campaign: SeededCampaign, seed: int) -> NewCampaign:
    # By id, so that an answer does not depend on which campaigns are asked for together.
    return NewCampaign(campaign.features, campaign.seeds, (seed, zlib.crc32(repr(campaign.campaign_id).encode())))


def _scores(own: OwnNetwork, general: General, pool: Pool, rows: Rows) -> Floats:
    return own.score(general, pool.take(rows)).astype(np.float64)


def campaign_encoder(history: History) -> CampaignEncoder:
    """Encodes campaigns; ids that none of the training campaigns has are unknown."""
    return CampaignEncoder(history.campaign_schema, [task.features for task in history.tasks])


@torch.no_grad()
def start_at(network: Network, shares: Floats) -> Network:
    """Let each copy's log-odds start at its share of positives, else first steps go into learning that. Returns it."""
    offset = network.offset
    log_odds = torch.from_numpy(np.log(shares / (1 - shares)).astype(np.float32))
    offset.copy_(log_odds.view(-1, *[1] * (offset.dim() - 1)).expand_as(offset))
    return network


def give_heads(network: Network, campaigns: int) -> None:
    """As many heads and gates as campaigns. All start alike: only then does the mean of trained ones mean anything."""
    for name in ("heads", "gates"):
        if hasattr(network, name):
            setattr(network, name, getattr(network, name).take([0] * campaigns))


def copies(general: General, rngs: Generators, _shares: Floats) -> Network:
    """The general network; the heads and gates of a new campaign are the mean of the trained ones."""
    return general.network.averaged().take([0] * len(rngs))


def _fresh_mlp(general: General, rngs: Generators, shares: Floats) -> Network:
    """A new MLP of users alone, for a campaign's features are the same for all its users; embeddings are kept."""
    network = Mlp(general.users, general.campaigns.schema, general.config, reads_campaign=False)
    network.experts.draw(rngs)
    network.output.draw(rngs)
    network.embeddings = general.network.embeddings.take([0] * len(rngs))
    return start_at(network, shares)


def _fresh_heads(general: General, rngs: Generators, shares: Floats) -> Network:
    """The general network with a new head, and a new gate where there are gates."""
    network = copies(general, rngs, shares)
    for name in ("heads", "gates"):
        if hasattr(network, name):
            getattr(network, name).draw(rngs)
    return start_at(network, shares)


def _mlp(users: UserFields, campaigns: FeatureSchema, config: ModelConfig) -> Network:
    return Mlp(users, campaigns, config, reads_campaign=True)


def network_systems(config: ModelConfig = PUBLISHED) -> list[NetworkSystem]:
    """One of each, new, in the order of the paper's Table 2."""
    bottom = ("embeddings", "experts")
    recipes = [
        ("mlp", "MLP, one-stage", Recipe(_mlp, _fresh_mlp, pretrained=False)),
        ("mlp-emb-frozen", "MLP+emb, frozen", Recipe(_mlp, _fresh_mlp, ("embeddings",))),
        ("mlp-emb-tuned", "MLP+emb, tuned", Recipe(_mlp, _fresh_mlp)),
        ("mlp-pre", "MLP+pre-training", Recipe(_mlp, copies)),
        ("shared-bottom-frozen", "Shared-Bottom+pre-training, frozen", Recipe(SharedBottom, _fresh_heads, bottom)),
        ("shared-bottom-tuned", "Shared-Bottom+pre-training, tuned", Recipe(SharedBottom, _fresh_heads)),
        ("mmoe", "MMoE+pre-training", Recipe(Mmoe, copies)),
        ("mmoe-random", "MMoE+pre-training, random gate and head", Recipe(Mmoe, _fresh_heads)),
    ]
    return [NetworkSystem(key, title, recipe, config) for key, title, recipe in recipes]
