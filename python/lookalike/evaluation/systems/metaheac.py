"""MetaHeac as published, and without each of its three parts (paper section 4.4).

As published: no linear term, one alpha for everything, all parameters fine-tuned by Adam. Knows the trainer of the
general model and the online stage that all networks share.
"""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import torch

from lookalike.config import ModelConfig, TrainingConfig
from lookalike.errors import InvalidInput
from lookalike.evaluation.systems.networks import (
    PUBLISHED,
    NetworkSystem,
    Recipe,
    campaign_encoder,
    copies,
)
from lookalike.evaluation.systems.system import History, Mixture, Rates, SeededCampaign, Tick
from lookalike.model.metaheac import MetaHeac
from lookalike.model.metaheac_stack import StackedMetaHeac
from lookalike.model.stacked import Campaigns, UserFields, Users
from lookalike.training.general import General
from lookalike.training.meta import Trainer
from lookalike.training.pretraining import start_at_base_rate
from lookalike.training.tasks import Rows

# The paper's alpha of 0.001 is on the sum over a support set of 512; ours is on its mean.
ALPHA = 0.001 * 512
_SEEN_AT_ONCE = 2048  # users; what lies between the layers stays in the cache


class MetaHeacSystem(NetworkSystem):
    """Algorithm 1 offline, fine-tuning of all parameters online."""

    def __init__(self, key: str, title: str, config: ModelConfig) -> None:
        super().__init__(key, title, Recipe(StackedMetaHeac, copies), config)

    def learn(self, history: History, samples: int, rates: Rates, seed: int, tick: Tick) -> tuple[General, int]:
        """See `NetworkSystem`. Support and query samples both count, for the gradient of each is taken."""
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            model = MetaHeac(history.pool.schema, history.campaign_schema, self.config)
        start_at_base_rate(model, history.tasks)
        trainer = Trainer(model, meta_config(rates, seed), history.pool, list(history.tasks))
        seen = step = 0
        while seen < samples:
            tick(seen, samples)
            _, query_loss, count = trainer.step(step)
            if not math.isfinite(query_loss):
                raise InvalidInput(
                    f"meta-training diverged with a rate of {rates.offline}: lower it", field="rates.offline"
                )
            seen += count
            step += 1
        tick(samples, samples)
        network, broad = StackedMetaHeac.of(model)
        return General(self.config, network, broad, UserFields(history.pool.schema), campaign_encoder(history)), seen

    @torch.no_grad()
    def mixture(self, campaign: SeededCampaign, rows: Rows) -> Mixture:
        """See `Mixed`.

        Raises:
            FailedPrecondition: `pretrain` has not come first.
        """
        general, pool = self.trained()
        assert isinstance(general.network, StackedMetaHeac)
        features, broad = Campaigns(general.campaigns.encode([campaign.features])), general.broad.unsqueeze(0)
        seen = []
        for start in range(0, len(rows), _SEEN_AT_ONCE):
            users = Users(*general.users.encode(pool.take(rows[start : start + _SEEN_AT_ONCE])))
            seen.append(general.network.see(users, features, broad))
        return Mixture(
            np.concatenate([mixed[0].numpy() for mixed, _ in seen]),
            np.concatenate([log_weights[0].exp().numpy() for _, log_weights in seen]),
        )


def meta_config(rates: Rates, seed: int) -> TrainingConfig:
    """Algorithm 1 as published: the authors draw five tasks a step, larger ones more often."""
    return replace(
        TrainingConfig(),
        inner_lr=ALPHA,
        outer_lr=rates.offline,
        second_order=True,
        task_sampling="size",
        seed=seed,
    )


def metaheac_systems(config: ModelConfig = PUBLISHED) -> list[NetworkSystem]:
    """MetaHeac and its ablations, new, in the order of the paper's Table 4."""
    return [
        MetaHeacSystem("metaheac", "MetaHeac, as published", config),
        MetaHeacSystem("metaheac-no-hc", "MetaHeac w/o HC", replace(config, num_critics=1)),
        MetaHeacSystem("metaheac-no-he", "MetaHeac w/o HE", replace(config, num_experts=1)),
        NetworkSystem("metaheac-no-meta", "MetaHeac w/o Meta", Recipe(StackedMetaHeac, copies), config),
    ]
