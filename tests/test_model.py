"""MetaHeac against the paper's equations written out slowly, and the compiled model against it."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
import torch

from lookalike.config import ModelConfig, ScoringConfig
from lookalike.dataset.vocabulary import build_schema
from lookalike.errors import DataCorrupted, InvalidInput, NotFound
from lookalike.model.features import FeatureEncoder
from lookalike.model.metaheac import CAMPAIGN_TABLE, USER_TABLE, MetaHeac, binary_cross_entropy
from lookalike.model.metaheac_twice import Passes
from lookalike.model.metaheac_weights import Shape, Weights
from lookalike.schema import EncodedColumns
from lookalike.scoring.compiled import TorchScriptEngine, compile_model
from lookalike.training.draws import Drawer
from lookalike.training.general import CampaignEncoder

USERS = pa.table(
    {
        "age": ["young", "old", None, "old", "young"],
        "height": [1.6, 1.7, float("nan"), 1.9, 1.8],
        "likes": [["a", "b", "c"], [], None, ["c"], ["a", "z"]],
        "owns": [["x"], ["x", "y"], ["y"], None, []],
    }
)
CAMPAIGNS = pa.table({"tag": [["red", "blue"]], "kind": ["banner"]})
PUBLISHED = ModelConfig(num_experts=3, num_critics=2, hidden=(7, 5), gate_hidden=6, embedding_dim=4, wide=False)


def make(config: ModelConfig) -> MetaHeac:
    torch.manual_seed(1)
    model = MetaHeac(build_schema(USERS, where="users"), build_schema(CAMPAIGNS, where="campaigns"), config)
    with torch.no_grad():  # large enough for every part to matter
        model.user_embedding.normal_()
        model.campaign_embedding.normal_()
    return model


def encoded(model: MetaHeac) -> EncodedColumns:
    return model.users.schema.encode(USERS, where="users")


def slow(model: MetaHeac, literal: bool) -> np.ndarray:
    """Eq. 5 to 9, one user, expert and critic at a time, in double precision."""
    table = model.user_embedding.detach().double()
    k = model.config.embedding_dim
    columns = encoded(model)
    campaign = model.campaigns.schema.encode(CAMPAIGNS, where="campaigns")
    c = torch.cat(_embed(campaign, 0, model.campaigns, model.campaign_embedding.detach().double()))
    n, m = model.config.num_experts, model.config.num_critics
    out = []
    for row in range(columns.length):
        fields = _embed(columns, row, model.users, table)
        weights = _linear(columns, row, model.users, table[:, k:])
        linear = sum(weights, torch.zeros(1).double()) if table.shape[1] > k else 0
        u = [f[:k] for f in fields]
        mean = torch.stack(u).mean(0)
        gates = []
        for gate in (model.expert_gate, model.critic_gate):
            h = torch.cat([gate.from_user.weight, gate.from_campaign.weight], 1).double() @ torch.cat([mean, c])
            h = (h + gate.from_campaign.bias.double()).relu()
            gates.append((gate.output.weight.double() @ h + gate.output.bias.double()).softmax(0))
        r = torch.zeros(model.config.hidden[-1]).double()
        for i in range(n):
            h = torch.cat(u)
            for weight, bias in zip(model.experts.weights, model.experts.biases, strict=True):
                h = (h @ weight[i].double() + bias[i, 0].double()).relu()
            r = r + gates[0][i] * h / (n if literal else 1)
        p = torch.zeros(()).double()
        for j in range(m):
            t = model.critics.weight[j].double() @ r + model.critics.bias[j].double() + linear
            p = p + gates[1][j] * torch.sigmoid(t).squeeze() / (m if literal else 1)
        out.append(p.item())
    return np.array(out)


def _ids(columns: EncodedColumns, row: int, encoder: FeatureEncoder) -> Iterator[list[int]]:
    for name in encoder.single_names:
        yield [int(columns.ids[name][row]) + encoder.starts[name]]
    for name in encoder.multi_names:
        low, high = columns.offsets[name][row : row + 2]
        yield [int(v) + encoder.starts[name] for v in columns.ids[name][low:high]]


def _embed(columns: EncodedColumns, row: int, encoder: FeatureEncoder, table: torch.Tensor) -> list[torch.Tensor]:
    return [table[ids].mean(0) if ids else torch.zeros(table.shape[1]).double() for ids in _ids(columns, row, encoder)]


def _linear(columns: EncodedColumns, row: int, encoder: FeatureEncoder, weights: torch.Tensor) -> list[torch.Tensor]:
    return [weights[ids].sum(0) for ids in _ids(columns, row, encoder) if ids]


def predict(model: MetaHeac) -> tuple[torch.Tensor, torch.Tensor]:
    campaign = model.campaigns.batch(model.campaigns.schema.encode(CAMPAIGNS, where="campaigns"))
    result: tuple[torch.Tensor, torch.Tensor] = model(model.users.batch(encoded(model)), campaign)
    return result


CONFIGS = [PUBLISHED, dataclasses.replace(PUBLISHED, literal_average=True), dataclasses.replace(PUBLISHED, wide=True)]


@pytest.mark.parametrize("config", CONFIGS, ids=["published", "literal", "wide"])
def test_the_network_is_the_papers(config: ModelConfig) -> None:
    model = make(config)
    log_p, log_not_p = predict(model)
    expected = slow(model, config.literal_average)
    np.testing.assert_allclose(log_p.detach().exp(), expected, rtol=1e-5)
    np.testing.assert_allclose(log_not_p.detach().exp(), 1 - expected, rtol=1e-5)


def test_gates_weigh_experts_and_critics_by_campaign() -> None:
    """The very same users score otherwise for another campaign, through the gates alone."""
    model = make(PUBLISHED)
    before = predict(model)[0]
    with torch.no_grad():
        model.campaign_embedding.add_(1.0)
    assert not torch.allclose(before, predict(model)[0])


def test_loss_is_the_mean_cross_entropy() -> None:
    model = make(PUBLISHED)
    labels = torch.tensor([1.0, 0.0, 0.0, 1.0, 0.0])
    p = predict(model)[0].exp()
    expected = torch.nn.functional.binary_cross_entropy(p, labels)
    torch.testing.assert_close(binary_cross_entropy(predict(model), labels), expected)


def test_second_derivatives_reach_the_embeddings() -> None:
    """What the meta gradient needs: gradcheck's numerical second derivative against autograd's."""
    config = dataclasses.replace(PUBLISHED, wide=True)
    model = make(config).double()
    users = model.users.batch(encoded(model))
    users = dataclasses.replace(users, weights=users.weights.double())
    campaign = model.campaigns.batch(model.campaigns.schema.encode(CAMPAIGNS, where="campaigns"))
    campaign = dataclasses.replace(campaign, weights=campaign.weights.double())

    def loss(table: torch.Tensor) -> torch.Tensor:
        parameters = {USER_TABLE: table, CAMPAIGN_TABLE: model.campaign_embedding}
        log_p, _ = torch.func.functional_call(model, parameters, (users, campaign))
        total: torch.Tensor = log_p.sum()
        return total

    table = model.user_embedding.detach().clone().requires_grad_()
    assert torch.autograd.gradgradcheck(loss, (table,), eps=1e-6, atol=1e-4)


def adapted_gradient(
    model: MetaHeac, users: EncodedColumns, campaign: EncodedColumns, labels: torch.Tensor
) -> tuple[list[torch.Tensor], list[torch.Tensor]]:
    """The loss's gradient after a step of 0.5 on the same users, with respect to what the model was before: by autograd
    and by hand, of the dense parameters and of both tables.
    """
    parameters = dict(model.named_parameters())
    batches = model.users.batch(users), model.campaigns.batch(campaign)
    loss = binary_cross_entropy(model(*batches), labels)
    of = torch.autograd.grad(loss, list(parameters.values()), create_graph=True, materialize_grads=True)
    moved = {name: p - 0.5 * g for (name, p), g in zip(parameters.items(), of, strict=True)}
    after = binary_cross_entropy(torch.func.functional_call(model, moved, batches), labels)
    expected = dict(
        zip(parameters, torch.autograd.grad(after, list(parameters.values()), materialize_grads=True), strict=True)
    )

    shape = Shape(model)
    drawer = Drawer(model, shape, CampaignEncoder(model.campaigns.schema, [campaign]))
    drawn = drawer.draw([(users, [labels.numpy()])] * 2, [campaign])
    (one,) = drawn.campaigns
    flat = shape.dense(model)
    with torch.no_grad():
        start = drawn.start_of(one, drawn.start(Weights(flat.detach(), shape.sizes), shape.k), shape.k)
        support = Passes(shape, one.support, start)
        assert support.loss() == pytest.approx(loss.item(), abs=1e-5)
        query = Passes(shape, one.query, start.moved(support.gradient(), 0.5))
        assert query.loss() == pytest.approx(after.item(), abs=1e-5)
        gradient = query.gradient()
        gradient = gradient.moved(support.gradient_along(gradient), 0.5)
        drawn.add(one, gradient, 1.0)
    torch.autograd.backward(flat, gradient.flat)
    names = [name for name in parameters if name not in (USER_TABLE, CAMPAIGN_TABLE)]
    tables = [expected[name][rows] for name, rows in zip((USER_TABLE, CAMPAIGN_TABLE), drawn.rows, strict=True)]
    by_hand = [parameters[name].grad for name in names] + [table.grad for table in drawn.tables]
    return [expected[name] for name in names] + tables, [g for g in by_hand if g is not None]


ONE_OF_EACH = dataclasses.replace(PUBLISHED, num_experts=1, num_critics=1, hidden=(3,))


@pytest.mark.parametrize("config", [*CONFIGS, ONE_OF_EACH], ids=["published", "literal", "wide", "one of each"])
@pytest.mark.parametrize("missing", ["nothing", "single", "multi", "everything"])
def test_derivatives_by_hand_are_those_of_autograd(config: ModelConfig, missing: str) -> None:
    """Of a schema of lists or without a value too."""
    campaigns = CAMPAIGNS
    if missing != "nothing":
        tags = [[]] if missing == "everything" else [["red", "blue"]]
        campaigns = pa.table({"kind": ["banner"]} if missing == "multi" else {"tags": tags})
        campaigns = campaigns.cast(
            pa.schema({"kind": pa.string()} if missing == "multi" else {"tags": pa.list_(pa.string())})
        )
    known = pa.table({"tags": [["red", "blue"]]}) if missing in ("single", "everything") else campaigns
    torch.manual_seed(2)
    model = MetaHeac(build_schema(USERS, where="users"), build_schema(known, where="campaigns"), config)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.normal_(std=0.5)
    campaign = model.campaigns.schema.encode(campaigns, where="campaigns")
    labels = torch.tensor([1.0, 0.0, 0.0, 1.0, 0.0])
    expected, by_hand = adapted_gradient(model, encoded(model), campaign, labels)
    for of_autograd, of_hand in zip(expected, by_hand, strict=True):
        torch.testing.assert_close(of_hand, of_autograd, rtol=1e-3, atol=1e-5)


NUMBERED = [f"v{number}" for number in range(300)]
FIELDS = {
    "one broad field": {"a": NUMBERED},
    "a broad list": {"l": [[NUMBERED[n], NUMBERED[7 * n % 300]] if n % 2 else [] for n in range(300)]},
    "broad and narrow": {"a": NUMBERED, "n": [f"n{n % 5}" for n in range(300)]},
    "empty lists": {"l": [[], [], [], [], [], ["x", "y"]]},
}


@pytest.mark.parametrize("config", CONFIGS, ids=["published", "literal", "wide"])
@pytest.mark.parametrize("fields", FIELDS)
def test_derivatives_by_hand_are_those_of_autograd_whatever_fields_users_have(config: ModelConfig, fields: str) -> None:
    table = pa.table(FIELDS[fields])
    torch.manual_seed(2)
    model = MetaHeac(build_schema(table, where="users"), build_schema(CAMPAIGNS, where="campaigns"), config)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.normal_(std=0.5)
    users = model.users.schema.encode(table.slice(0, 5), where="users")
    campaign = model.campaigns.schema.encode(CAMPAIGNS, where="campaigns")
    expected, by_hand = adapted_gradient(model, users, campaign, torch.tensor([1.0, 0.0, 0.0, 1.0, 0.0]))
    for of_autograd, of_hand in zip(expected, by_hand, strict=True):
        torch.testing.assert_close(of_hand, of_autograd, rtol=1e-3, atol=1e-5)


@pytest.mark.parametrize("config", CONFIGS, ids=["published", "literal", "wide"])
@pytest.mark.parametrize("opinion", [-200.0, 200.0])
def test_a_loss_by_hand_is_finite_however_sure_the_critics_are(config: ModelConfig, opinion: float) -> None:
    """Training ends as diverged when it is not."""
    model = make(config)
    labels = torch.tensor([1.0, 0.0, 0.0, 1.0, 0.0])
    with torch.no_grad():
        model.critics.bias.fill_(opinion)
        expected = binary_cross_entropy(predict(model), labels).item()
        campaign = model.campaigns.schema.encode(CAMPAIGNS, where="campaigns")
        shape = Shape(model)
        drawer = Drawer(model, shape, CampaignEncoder(model.campaigns.schema, [campaign]))
        drawn = drawer.draw([(encoded(model), [labels.numpy()])] * 2, [campaign])
        (one,) = drawn.campaigns
        weights = drawn.start_of(one, drawn.start(Weights(shape.dense(model), shape.sizes), shape.k), shape.k)
        passes = Passes(shape, one.support, weights)
        assert passes.loss() == pytest.approx(expected, rel=1e-5)
        assert bool(torch.isfinite(passes.gradient().flat).all())


def test_a_batch_relative_to_its_rows_is_the_same_batch() -> None:
    model = make(PUBLISHED)
    batch = model.users.batch(encoded(model))
    rows = model.users.occurring(batch)
    assert len(rows) < model.users.table_rows
    whole = batch.embed(model.user_embedding)
    torch.testing.assert_close(model.users.relative_to(rows, batch)[0].embed(model.user_embedding[rows]), whole)


def test_id_dropout_replaces_ids_by_their_fields_unknown() -> None:
    model = make(PUBLISHED)
    batch = model.users.batch(encoded(model))
    dropped = model.users.with_unknown(batch, 1.0, np.random.default_rng(0))
    unknown = torch.tensor([model.users.starts[name] + 1 for name in model.users.single_names])
    assert torch.equal(dropped.single, unknown.expand_as(dropped.single))
    assert torch.equal(model.users.with_unknown(batch, 0.0, np.random.default_rng(0)).single, batch.single)


@pytest.mark.parametrize("config", CONFIGS, ids=["published", "literal", "wide"])
def test_the_compiled_model_agrees(config: ModelConfig, tmp_path: Path) -> None:
    model = make(config)
    campaign = model.campaigns.schema.encode(CAMPAIGNS, where="campaigns")
    compile_model(model, campaign, tmp_path / "model.pt", {"campaign": "c"})
    engine = TorchScriptEngine(tmp_path / "model.pt", ScoringConfig(device="cpu", threads=1))
    columns = encoded(model)
    expected = predict(model)[0].detach().exp().numpy()
    np.testing.assert_allclose(engine.score(columns), expected, rtol=1e-5)
    np.testing.assert_allclose(engine.score(columns.slice(1, 4)), expected[1:4], rtol=1e-5)
    assert engine.provenance == {"campaign": "c"}
    assert engine.schema.fingerprint == model.users.schema.fingerprint


def test_the_same_model_compiles_to_the_same_bytes(tmp_path: Path) -> None:
    model = make(PUBLISHED)
    campaign = model.campaigns.schema.encode(CAMPAIGNS, where="campaigns")
    for folder in ("one", "two"):
        (tmp_path / folder).mkdir()
        compile_model(model, campaign, tmp_path / folder / "model.pt", {})
    assert (tmp_path / "one/model.pt").read_bytes() == (tmp_path / "two/model.pt").read_bytes()


def test_a_foreign_archive_is_refused(tmp_path: Path) -> None:
    with pytest.raises(NotFound):
        TorchScriptEngine(tmp_path / "model.pt")
    (tmp_path / "model.pt").write_bytes(b"not a zip")
    with pytest.raises(DataCorrupted, match="no customised model"):
        TorchScriptEngine(tmp_path / "model.pt", ScoringConfig(device="cpu"))
    with pytest.raises(InvalidInput, match="no device"):
        TorchScriptEngine(_archive(tmp_path), ScoringConfig(device="abacus"))


def _archive(folder: Path) -> Path:
    model = make(PUBLISHED)
    path = folder / "good.pt"
    compile_model(model, model.campaigns.schema.encode(CAMPAIGNS, where="campaigns"), path, {})
    return path
