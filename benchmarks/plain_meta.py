"""A meta-training step written plainly, as the authors of the paper wrote theirs: what ours is compared with.

Every task copies every parameter, whole embedding tables included, experts are modules in a loop, gradients are dense,
and so is Adam. Knows the feature batches of the library, so that both see the same samples; nothing of its network.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor, nn

from lookalike.config import TrainingConfig
from lookalike.model.features import FeatureBatch
from lookalike.model.metaheac import Gate, MetaHeac
from lookalike.training.meta import Trainer
from lookalike.training.tasks import Samples, Task


class PlainMetaHeac(nn.Module):
    """The published network, with the weights of `model`."""

    def __init__(self, model: MetaHeac) -> None:
        super().__init__()
        self.users = nn.Parameter(model.user_embedding.detach().clone())
        self.campaigns = nn.Parameter(model.campaign_embedding.detach().clone())
        self.experts = nn.ModuleList(_expert(model, index) for index in range(model.config.num_experts))
        self.gates = nn.ModuleList(_gate(gate) for gate in (model.expert_gate, model.critic_gate))
        self.critics = nn.ModuleList(_critic(model, index) for index in range(model.config.num_critics))

    def forward(self, users: FeatureBatch, campaign: FeatureBatch) -> Tensor:
        """Probabilities `[rows]`."""
        fields = users.embed(self.users)  # [rows, Fu, k]
        about = campaign.embed(self.campaigns).flatten(1).expand(len(fields), -1)
        task = torch.cat([fields.mean(1), about], dim=1)
        of_experts, of_critics = (gate(task).softmax(1) for gate in self.gates)
        hidden = torch.stack([expert(fields.flatten(1)) for expert in self.experts], dim=1)  # [rows, n, h]
        mixed = (of_experts.unsqueeze(2) * hidden).sum(1)
        opinions = torch.cat([critic(mixed).sigmoid() for critic in self.critics], dim=1)
        chances: Tensor = (of_critics * opinions).sum(1)
        return chances


class PlainTrainer:
    """Algorithm 1 over the tasks and samples that a `Trainer` of the same seed draws."""

    def __init__(self, trainer: Trainer) -> None:
        self.trainer = trainer
        self.model = PlainMetaHeac(trainer.model)
        self.optimizer = torch.optim.Adam(self.model.parameters(), lr=trainer.config.outer_lr)

    def gradient(self, number: int) -> float:
        """Leaves the gradient of step `number` in the parameters; returns the mean query loss."""
        settings, trainer = self.trainer.config, self.trainer
        rng = np.random.default_rng([settings.seed, number])
        self.optimizer.zero_grad()
        drawn = rng.choice(len(trainer.tasks), settings.tasks_per_step, replace=False, p=trainer.weights)
        total = torch.zeros(())
        tasks = [trainer.tasks[index] for index in drawn]
        sets = [task.support_and_query(settings.support_size, settings.query_size, rng) for task in tasks]
        for task, (support, query) in zip(tasks, sets, strict=True):
            total = total + self._query_loss(task, support, query, settings, rng) / len(drawn)
        torch.autograd.backward(total)
        return total.item()

    def _query_loss(
        self, task: Task, support: Samples, query: Samples, settings: TrainingConfig, rng: np.random.Generator
    ) -> Tensor:
        encoders = self.trainer.model
        campaign = encoders.campaigns.with_unknown(
            encoders.campaigns.batch(task.features), settings.campaign_id_dropout, rng
        )
        users = [encoders.users.batch(self.trainer.pool.take(samples.rows)) for samples in (support, query)]
        users = [encoders.users.with_unknown(batch, settings.user_id_dropout, rng) for batch in users]
        labels = [torch.from_numpy(samples.labels) for samples in (support, query)]
        parameters = dict(self.model.named_parameters())
        loss = nn.functional.binary_cross_entropy(self.model(users[0], campaign), labels[0])
        gradients = torch.autograd.grad(loss, list(parameters.values()), create_graph=settings.second_order)
        moved = {name: p - settings.inner_lr * g for (name, p), g in zip(parameters.items(), gradients, strict=True)}
        answer = torch.func.functional_call(self.model, moved, (users[1], campaign))
        return nn.functional.binary_cross_entropy(answer, labels[1])


def _expert(model: MetaHeac, index: int) -> nn.Sequential:
    layers: list[nn.Module] = []
    for weight, bias in zip(model.experts.weights, model.experts.biases, strict=True):
        layers += [_linear(weight[index].T, bias[index, 0]), nn.ReLU()]
    return nn.Sequential(*layers)


def _gate(gate: Gate) -> nn.Sequential:
    first = torch.cat([gate.from_user.weight, gate.from_campaign.weight], dim=1)
    return nn.Sequential(
        _linear(first, gate.from_campaign.bias), nn.ReLU(), _linear(gate.output.weight, gate.output.bias)
    )


def _critic(model: MetaHeac, index: int) -> nn.Linear:
    return _linear(model.critics.weight[index : index + 1], model.critics.bias[index : index + 1])


def _linear(weight: Tensor, bias: Tensor) -> nn.Linear:
    layer = nn.Linear(weight.shape[1], weight.shape[0])
    with torch.no_grad():
        layer.weight.copy_(weight)
        layer.bias.copy_(bias)
    return layer


def same_gradients(plain: PlainTrainer, ours: Trainer, number: int) -> bool:
    """Whether both make the same of step `number`, up to rounding: tables and critics stand for the rest."""
    plain.gradient(number)
    tables = ours.gradient(number)[0]
    pairs: list[tuple[Tensor | None, Tensor | None]] = []
    for parameter, (rows, leaf) in zip((plain.model.users, plain.model.campaigns), tables, strict=True):
        assert leaf.grad is not None
        pairs.append((parameter.grad, torch.zeros_like(parameter).index_copy(0, rows, leaf.grad)))
    critics = [critic.weight.grad for critic in plain.model.critics if isinstance(critic, nn.Linear)]
    found = torch.cat([gradient for gradient in critics if gradient is not None])
    pairs.append((found, ours.model.critics.weight.grad))
    return all(
        theirs is not None and mine is not None and torch.allclose(theirs, mine, rtol=1e-2, atol=1e-6)
        for theirs, mine in pairs
    )
