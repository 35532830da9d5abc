"""Stacked networks and the sparse products under them, against plain formulas on the same embeddings."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from lookalike.config import ModelConfig
from lookalike.dataset.layout import Dataset
from lookalike.model.bags import Bags, Entries, unknown_ids
from lookalike.model.baselines.mlp import Mlp
from lookalike.model.baselines.mmoe import Mmoe
from lookalike.model.baselines.shared_bottom import SharedBottom
from lookalike.model.features import FeatureBatch, FeatureEncoder
from lookalike.model.metaheac import MetaHeac
from lookalike.model.metaheac_stack import StackedMetaHeac
from lookalike.model.stacked import Campaigns, Network, UserFields, Users, ids_of, in_order
from lookalike.pool.snapshot import Pool
from lookalike.schema import EncodedColumns, FeatureSchema, Field, FieldKind

CONFIG = ModelConfig(embedding_dim=4, num_experts=3, num_critics=2, hidden=(8, 6), gate_hidden=5, wide=False)
ROWS = 40


@pytest.fixture(scope="module")
def campaigns(sample_dataset: Path) -> FeatureSchema:
    return Dataset.open(sample_dataset).campaign_schema()


@pytest.fixture(scope="module")
def columns(pool: Pool) -> EncodedColumns:
    return pool.take(np.random.default_rng(0).integers(pool.num_users, size=ROWS))


@pytest.fixture(scope="module")
def features(sample_dataset: Path, campaigns: FeatureSchema) -> EncodedColumns:
    """Of three campaigns."""
    dataset = Dataset.open(sample_dataset)
    rows = [dataset.campaign_features(name) for name in dataset.campaign_ids()[:3]]
    return EncodedColumns.concat([campaigns.encode_features(row, where="features") for row in rows])


def tables(network: Network, users: UserFields, broad: Tensor, schema: FeatureSchema) -> tuple[Tensor, Tensor]:
    """The first copy's tables of users and of campaigns as `FeatureEncoder` numbers their rows."""
    encoder, campaign_encoder = FeatureEncoder(_joined(users)), FeatureEncoder(schema)
    user_table = torch.zeros(encoder.table_rows, CONFIG.embedding_dim)
    for fields, part in ((users.narrow, network.embeddings.narrow[0]), (users.broad, broad[0])):
        for field, values in zip(fields, torch.split(part, [field.size for field in fields]), strict=True):
            start = encoder.starts[field.name]
            user_table[start : start + field.size] = values
    campaign_table = torch.zeros(campaign_encoder.table_rows, CONFIG.embedding_dim)
    fields = in_order(schema)
    parts = torch.split(network.embeddings.campaign[0], [field.size for field in fields])
    for field, values in zip(fields, parts, strict=True):
        start = campaign_encoder.starts[field.name]
        campaign_table[start : start + field.size] = values
    return user_table, campaign_table


def _joined(users: UserFields) -> FeatureSchema:
    return FeatureSchema((*users.narrow, *users.broad))


@dataclasses.dataclass
class Case:
    """A network of three copies, all different, and users of each."""

    network: Any  # attributes differ by kind
    users: UserFields
    batch: Users
    campaigns: Campaigns
    broad: Tensor
    fields: Tensor  # [ROWS, user fields * k] of the first copy, narrow fields first
    campaign: Tensor  # [campaign fields * k] of the first copy


def case(
    kind: type[Network], pool: Pool, schema: FeatureSchema, columns: EncodedColumns, features: EncodedColumns
) -> Case:
    users = UserFields(pool.schema)
    rngs = [np.random.default_rng(seed) for seed in range(3)]
    network: Any = (
        Mlp(users, schema, CONFIG, reads_campaign=True) if kind is Mlp else kind(users, schema, CONFIG)  # type: ignore[call-arg]
    ).draw(rngs)
    with torch.no_grad():
        network.embeddings.narrow.mul_(100)  # embeddings of 0.01 would hide mistakes
        network.embeddings.campaign.mul_(100)
    broad = torch.randn(3, ids_of(users.broad), CONFIG.embedding_dim, generator=torch.Generator().manual_seed(0))
    narrow_entries, broad_entries = users.encode(columns)
    position = np.repeat(np.arange(3), ROWS)
    every = np.tile(np.arange(ROWS), 3)
    batch = Users(
        narrow_entries.take(every).moved(position * ids_of(users.narrow)),
        broad_entries.take(every).moved(position * ids_of(users.broad)),
    )
    entries = Entries.of(features, in_order(schema)).moved(np.arange(3) * ids_of(in_order(schema)))
    user_table, campaign_table = tables(network, users, broad, schema)
    plain: FeatureBatch = FeatureEncoder(_joined(users)).batch(columns)
    by_name = dict(zip([f.name for f in in_order(_joined(users))], plain.embed(user_table).unbind(1), strict=True))
    fields = torch.cat([by_name[field.name] for field in (*users.narrow, *users.broad)], dim=1)
    campaign = FeatureEncoder(schema).batch(features).embed(campaign_table)[0].flatten()
    return Case(network, users, batch, Campaigns(entries), broad, fields.detach(), campaign.detach())


def plain_experts(case: Case, experts: Any) -> Tensor:
    """`[n, ROWS, h]` of the first copy, layer by layer on concatenated embeddings."""
    first = experts.first
    weight = torch.cat([first.narrow[0].flatten(0, 1), first.broad[0]])
    x = case.fields @ weight + first.bias[0]
    if first.reads_campaign:
        x = x + case.campaign @ first.campaign[0]
    x = x.relu().view(ROWS, experts.n, -1).transpose(0, 1)
    hidden: Tensor = (x @ experts.weight0[0] + experts.bias0[0]).relu()
    return hidden


def user_mean(case: Case) -> Tensor:
    return case.fields.view(ROWS, -1, CONFIG.embedding_dim).mean(1)


def test_the_mlp_is_an_mlp(
    pool: Pool, campaigns: FeatureSchema, columns: EncodedColumns, features: EncodedColumns
) -> None:
    c = case(Mlp, pool, campaigns, columns, features)
    expected = plain_experts(c, c.network.experts)[0] @ c.network.output.weight[0] + c.network.output.bias[0]
    torch.testing.assert_close(c.network(c.batch, c.campaigns, c.broad)[0], expected[:, 0])


def test_the_shared_bottom_has_a_linear_head(
    pool: Pool, campaigns: FeatureSchema, columns: EncodedColumns, features: EncodedColumns
) -> None:
    c = case(SharedBottom, pool, campaigns, columns, features)
    expected = plain_experts(c, c.network.experts)[0] @ c.network.heads.weight[0] + c.network.heads.bias[0]
    torch.testing.assert_close(c.network(c.batch, c.campaigns, c.broad)[0], expected)


def test_mmoe_mixes_experts_by_the_campaigns_gate(
    pool: Pool, campaigns: FeatureSchema, columns: EncodedColumns, features: EncodedColumns
) -> None:
    c = case(Mmoe, pool, campaigns, columns, features)
    gates = c.network.gates
    hidden = (user_mean(c) @ gates.weight_in[0] + gates.bias_in[0]).relu()
    weights = (hidden @ gates.weight_out[0] + gates.bias_out[0]).softmax(1)
    mixed = torch.einsum("nrh,rn->rh", plain_experts(c, c.network.experts), weights)
    expected = mixed @ c.network.heads.weight[0] + c.network.heads.bias[0]
    torch.testing.assert_close(c.network(c.batch, c.campaigns, c.broad)[0], expected)


@pytest.mark.parametrize("kind", [SharedBottom, Mmoe])
def test_a_row_is_judged_by_its_owners_head_and_gate(
    kind: type[Network], pool: Pool, campaigns: FeatureSchema, columns: EncodedColumns, features: EncodedColumns
) -> None:
    """A mixed batch of a general network gives what each owner's copy gives."""
    c = case(kind, pool, campaigns, columns, features)
    general = c.network.take([0])
    general.heads = c.network.heads
    if kind is Mmoe:
        general.gates = c.network.gates
    owners = np.random.default_rng(1).integers(3, size=ROWS)
    entries = Entries.of(features, in_order(campaigns))
    mixed = general(
        Users(*c.users.encode(columns)), Campaigns(entries.take(owners), torch.from_numpy(owners)), c.broad[:1]
    )[0]
    for owner in range(3):
        own = c.network.take([0])
        own.heads = c.network.heads.take([owner])
        if kind is Mmoe:
            own.gates = c.network.gates.take([owner])
        expected = own(Users(*c.users.encode(columns)), Campaigns(entries.take(np.array([owner]))), c.broad[:1])[0]
        torch.testing.assert_close(mixed[owners == owner], expected[owners == owner])


def test_stacked_metaheac_is_metaheac(
    pool: Pool, campaigns: FeatureSchema, columns: EncodedColumns, features: EncodedColumns
) -> None:
    torch.manual_seed(0)
    model = MetaHeac(pool.schema, campaigns, dataclasses.replace(CONFIG, embedding_init_std=1.0))
    network, broad = StackedMetaHeac.of(model)
    users = UserFields(pool.schema)
    entries = Entries.of(features, in_order(campaigns)).take(np.array([1]))
    log_odds = network(Users(*users.encode(columns)), Campaigns(entries), broad.unsqueeze(0))[0]
    log_p, log_not_p = model(model.users.batch(columns), model.campaigns.batch(features.slice(1, 2)))
    torch.testing.assert_close(log_odds, log_p - log_not_p, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("kind", [Mlp, SharedBottom, Mmoe, StackedMetaHeac])
def test_copies_know_nothing_of_each_other(
    kind: type[Network], pool: Pool, campaigns: FeatureSchema, columns: EncodedColumns, features: EncodedColumns
) -> None:
    """A copy taken out of its stack answers the same, and the stack's gradient is each copy's own."""
    c = case(kind, pool, campaigns, columns, features)
    broad = c.broad.clone().requires_grad_()
    together = c.network(c.batch, c.campaigns, broad)
    torch.autograd.backward(together.square().mean(1).sum())
    entries = Entries.of(features, in_order(campaigns))
    for copy in range(3):
        own, own_broad = c.network.take([copy]), c.broad[copy : copy + 1].clone().requires_grad_()
        alone = own(Users(*c.users.encode(columns)), Campaigns(entries.take(np.array([copy]))), own_broad)
        torch.testing.assert_close(alone[0], together[copy])
        torch.autograd.backward(alone.square().mean())
        assert own_broad.grad is not None
        assert broad.grad is not None
        torch.testing.assert_close(own_broad.grad[0], broad.grad[copy])
        whole = dict(c.network.named_parameters())
        for name, parameter in own.named_parameters():
            of_stack = whole[name].grad
            assert parameter.grad is not None, name
            assert of_stack is not None, name
            assert parameter.grad.abs().sum() > 0, name
            torch.testing.assert_close(parameter.grad[0], of_stack[copy], rtol=1e-4, atol=1e-6)


def test_the_products_by_hand_have_the_right_gradients(
    pool: Pool, campaigns: FeatureSchema, columns: EncodedColumns, features: EncodedColumns
) -> None:
    """Against the graph of the plain formula, for all that a first layer multiplies."""
    c = case(Mmoe, pool, campaigns, columns, features)
    embedded = c.network.embeddings(c.batch, c.campaigns, c.broad)
    mixed = c.network(c.batch, c.campaigns, c.broad)[0]
    torch.autograd.backward(mixed.square().sum())
    first = c.network.experts.first
    by_hand = [first.narrow.grad[0].flatten(0, 1), first.broad.grad[0]]
    c.network.zero_grad()
    gates = c.network.gates
    hidden = (embedded.mean(c.users.count)[0] @ gates.weight_in[0] + gates.bias_in[0]).relu()
    weights = (hidden @ gates.weight_out[0] + gates.bias_out[0]).softmax(1)
    plain = torch.einsum("nrh,rn->rh", plain_experts(c, c.network.experts), weights)
    torch.autograd.backward((plain @ c.network.heads.weight[0] + c.network.heads.bias[0]).square().sum())
    torch.testing.assert_close(torch.cat(by_hand), torch.cat([first.narrow.grad[0].flatten(0, 1), first.broad.grad[0]]))


@given(st.data())
def test_bags_are_a_sparse_matrix(data: st.DataObject) -> None:
    """The product and its gradient, against the dense matrix; tables beyond 16 bits sort in two passes."""
    table_rows = data.draw(st.sampled_from([1, 7, 1 << 16, (1 << 16) + 5]))
    counts = np.array(data.draw(st.lists(st.integers(0, 4), min_size=1, max_size=6)), np.int32)
    rng = np.random.default_rng(data.draw(st.integers(0, 100)))
    ids = rng.integers(table_rows, size=counts.sum()).astype(np.int32)
    ids[: len(ids) // 2] %= 3  # repeated
    bags = Bags(ids, rng.random(len(ids)).astype(np.float32), counts)
    used, local = np.unique(ids, return_inverse=True)
    dense = torch.zeros(len(counts), max(1, len(used)))
    dense.index_put_(
        (torch.from_numpy(np.repeat(np.arange(len(counts)), counts)), torch.from_numpy(local)),
        torch.from_numpy(bags.weights),
        accumulate=True,
    )
    table = torch.from_numpy(rng.standard_normal((table_rows, 2)).astype(np.float32)).requires_grad_()
    product = bags.of(table)
    rows = table.detach()[torch.from_numpy(used if len(used) else np.zeros(1, np.int64))]
    torch.testing.assert_close(product, dense @ rows)
    gradient = torch.from_numpy(rng.standard_normal(tuple(product.shape)).astype(np.float32))
    torch.autograd.backward(product, gradient)
    assert table.grad is not None
    expected = torch.zeros(table_rows, 2)
    expected[torch.from_numpy(used)] = (dense.t() @ gradient)[: len(used)]
    torch.testing.assert_close(table.grad, expected)


FIELDS = (
    Field("city", FieldKind.CATEGORICAL, values=("paris", "rome")),
    Field("tags", FieldKind.MULTI, values=("a", "b")),
)


def test_entries_take_rows_and_number_fields_through() -> None:
    schema = FeatureSchema(FIELDS)
    columns = schema.encode(pa.table({"city": ["rome", None, "oslo"], "tags": [["a", "b"], [], ["b"]]}), where="users")
    entries = Entries.of(columns, FIELDS)
    assert entries.ids.tolist() == [3, 6, 7, 0, 1, 7]
    assert entries.weights.tolist() == [1, 0.5, 0.5, 1, 1, 1]
    assert entries.lengths.tolist() == [[1, 2], [1, 0], [1, 1]]
    taken = entries.take(np.array([2, -1, 0]))
    assert taken.ids.tolist() == [1, 7, 3, 6, 7]
    assert taken.lengths.tolist() == [[1, 1], [0, 0], [1, 2]]
    assert taken.moved(np.array([100, 200, 300])).ids.tolist() == [101, 107, 303, 306, 307]
    assert Entries.of(columns.slice(1, 3), FIELDS).ids.tolist() == [0, 1, 7]
    assert entries.take(np.zeros(0, np.int64)).ids.tolist() == []


def test_dropped_ids_become_their_fields_unknown_id() -> None:
    entries = Entries(np.arange(8, dtype=np.int32), np.ones(8, np.float32), np.full((4, 2), 1, np.int32))
    unknown = unknown_ids(FIELDS)
    assert unknown.tolist() == [1, 1, 1, 1, 5, 5, 5, 5]
    dropped = entries.with_unknown(0.9, unknown, np.random.default_rng(0)).ids
    changed = dropped != entries.ids
    assert changed.any()
    assert (dropped[changed] == unknown[entries.ids[changed]]).all()
    assert entries.with_unknown(0.0, unknown, np.random.default_rng(0)).ids.tolist() == entries.ids.tolist()


def test_draws_depend_on_their_generator_alone(pool: Pool, campaigns: FeatureSchema) -> None:
    users = UserFields(pool.schema)
    network = Mlp(users, campaigns, CONFIG, reads_campaign=False)
    pair = network.draw([np.random.default_rng(5), np.random.default_rng(6)]).take([0, 1])
    alone = network.draw([np.random.default_rng(6)])
    for (name, ours), theirs in zip(pair.named_parameters(), alone.parameters(), strict=True):
        torch.testing.assert_close(ours[1], theirs[0])
        assert not torch.equal(ours[0], ours[1]), name
    assert float(alone.embeddings.narrow.detach().std()) == pytest.approx(CONFIG.embedding_init_std, rel=0.2)


@pytest.mark.parametrize("sizes", [(3, 5), (200, 300), (3, 200)], ids=["narrow only", "broad only", "both"])
@pytest.mark.parametrize("kind", [FieldKind.CATEGORICAL, FieldKind.MULTI])
def test_a_schema_may_lack_either_width_and_users_any_id(sizes: tuple[int, int], kind: FieldKind) -> None:
    schema = FeatureSchema(
        tuple(Field(f"f{n}", kind, values=tuple(map(str, range(size)))) for n, size in enumerate(sizes))
    )
    column = [["1"], [], []] if kind is FieldKind.MULTI else ["1", None, "0"]
    columns = schema.encode(pa.table({"f0": column, "f1": column[::-1]}), where="users")
    users = UserFields(schema)
    network = StackedMetaHeac(users, schema, CONFIG).draw([np.random.default_rng(0)])
    broad = torch.randn(1, ids_of(users.broad), CONFIG.embedding_dim).requires_grad_()
    campaign = Campaigns(Entries.of(columns.slice(0, 1), in_order(schema)))
    log_odds = network(Users(*users.encode(columns)), campaign, broad)
    assert log_odds.shape == (1, 3)
    torch.autograd.backward(log_odds.sum())
    for name, parameter in network.named_parameters():
        if parameter.numel() == 0:
            continue
        assert parameter.grad is not None, name
        assert torch.isfinite(parameter.grad).all(), name
