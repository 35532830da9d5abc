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
from lookalike.schema import EncodedColumns
from lookalike.scoring.compiled import TorchScriptEngine, compile_model
from lookalike.training.inner import OccurringRows, campaign_parameters, copied_rows, inner_step
from lookalike.training.inner import predict as model_predict

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


@pytest.mark.parametrize("missing", ["single", "multi", "everything"])
def test_a_schema_of_lists_or_without_a_value_can_be_trained_on(missing: str) -> None:
    """The inner step differentiates twice through lookups of nothing."""
    tags = [[]] if missing == "everything" else [["red", "blue"]]
    campaigns = pa.table({"kind": ["banner"]} if missing == "multi" else {"tags": tags})
    campaigns = campaigns.cast(
        pa.schema({"kind": pa.string()} if missing == "multi" else {"tags": pa.list_(pa.string())})
    )
    known = pa.table({"tags": [["red", "blue"]]}) if missing != "multi" else campaigns
    model = MetaHeac(build_schema(USERS, where="users"), build_schema(known, where="campaigns"), PUBLISHED)
    campaign = model.campaigns.batch(model.campaigns.schema.encode(campaigns, where="campaigns"))
    users = model.users.batch(encoded(model))
    rows = OccurringRows.of(model, [users], campaign)
    (users,), (campaign,) = (
        model.users.relative_to(rows.users, users),
        model.campaigns.relative_to(rows.campaign, campaign),
    )
    start = campaign_parameters(model, *copied_rows(model, rows))
    labels = torch.tensor([1.0, 0.0, 0.0, 1.0, 0.0])
    moved, _ = inner_step(model, start, 0.5, (users, labels), campaign, second_order=True)
    loss = binary_cross_entropy(model_predict(model, moved, users, campaign), labels)
    torch.autograd.backward(loss)
    gradients = [parameter.grad for parameter in start.values() if parameter.grad is not None]
    assert any(bool(gradient.any()) for gradient in gradients)
    assert all(bool(torch.isfinite(gradient).all()) for gradient in gradients)


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
