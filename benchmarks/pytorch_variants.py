"""A customised model as a user of PyTorch might run it instead, all from its TorchScript archive.

TorchScript and torch.compile, in float32 and bfloat16; and what the native engine does, said in PyTorch: the first
layer of single-valued fields folded into tables. Knows the archive; knows nothing of measuring.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any, Final, cast

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from lookalike.config import ScoringConfig
from lookalike.schema import EncodedColumns, FeatureSchema
from lookalike.scoring.bfloat16 import Bfloat16Engine
from lookalike.scoring.compiled import CompiledMetaHeac, TorchScriptEngine, load_compiled

Scores = npt.NDArray[np.float32]
Score = Callable[[EncodedColumns], Scores]
Forward = Callable[[Tensor, list[Tensor], list[Tensor]], Tensor]

_SCALARS: Final = (
    *("num_experts", "num_critics", "expert_width", "gate_width"),
    *("expert_scale", "critic_scale", "multi_starts"),
)
# Engines cut users by their own batch size: here the caller does.
_ANY_BATCH: Final = 1 << 30


def variants(path: Path, threads: int) -> dict[str, Callable[[], Score]]:
    """What loads each variant of the archive, by name; those of TorchScript are engines of this library.

    The scoring function takes one batch. Torch's threads are the caller's to set, for all but the engines.
    """
    config = ScoringConfig(device="cpu", threads=threads, batch_size=_ANY_BATCH)
    return {
        "torchscript float32": lambda: TorchScriptEngine(path, config).score,
        "torchscript bfloat16": lambda: Bfloat16Engine(path, config).score,
        "compile float32": lambda: _compiled(path, eager, torch.float32),
        "compile bfloat16": lambda: _compiled(path, eager, torch.bfloat16),
        "compile folded float32": lambda: _compiled(path, _fold, torch.float32),
        "compile folded bfloat16": lambda: _compiled(path, _fold, torch.bfloat16),
    }


def _compiled(path: Path, build: Callable[[torch.jit.ScriptModule], nn.Module], dtype: torch.dtype) -> Score:
    """By the inductor, once for all batch sizes: on this model within 5% of compiling for one."""
    script, schema, _ = load_compiled(path, torch.device("cpu"))
    module = build(script)
    for name, tensor in [*module.named_parameters(), *module.named_buffers()]:
        if tensor.is_floating_point() and not name.endswith("wide"):  # sums of single ids, as in Bfloat16Engine
            tensor.data = tensor.data.to(dtype)
    forward: Forward = torch.compile(module, dynamic=True)
    return _scoring(forward, schema)


def eager(script: torch.jit.ScriptModule) -> CompiledMetaHeac:
    """The module that was scripted, with the weights of its archive."""
    module = CompiledMetaHeac.__new__(CompiledMetaHeac)
    nn.Module.__init__(module)
    for name in _SCALARS:
        setattr(module, name, getattr(script, name))
    state = script.state_dict()
    for name, tensor in state.items():
        if "." not in name:
            module.register_buffer(name, tensor)
    for name in ("deeper_weights", "deeper_biases"):
        layers = range(sum(key.startswith(f"{name}.") for key in state))
        parameters = (nn.Parameter(state[f"{name}.{layer}"], requires_grad=False) for layer in layers)
        setattr(module, name, nn.ParameterList(parameters))
    return module.eval()


def _fold(script: torch.jit.ScriptModule) -> Folded:
    return Folded(eager(script)).eval()


class Folded(nn.Module):
    """The same network, whose single-valued fields are looked up in tables of the first layer's sums.

    `[ids, width]` each, so that a user costs as many rows as there are fields and no multiplications: 448 columns for 5
    experts. Multi-valued fields are averaged as embeddings and multiplied.
    """

    def __init__(self, model: CompiledMetaHeac) -> None:
        super().__init__()
        self.model = model
        fields, dim = len(model.single_starts), model.table.shape[1]
        # Where each single-valued field's ids end in the table: fields of both kinds may lie between.
        ends = [*sorted([*model.single_starts.tolist(), *model.multi_starts]), len(model.table)]
        tables, wides, starts = [], [], [0]
        for field, start in enumerate(model.single_starts.tolist()):
            rows = slice(start, ends[ends.index(start) + 1])
            tables.append(model.table[rows] @ model.first_weight[field * dim : (field + 1) * dim])
            wides.append(model.wide[rows])
            starts.append(starts[-1] + len(tables[-1]))
        self.register_buffer("folded", torch.cat(tables))  # [ids, width]
        self.register_buffer("folded_wide", torch.cat(wides))  # [ids, 1]
        self.register_buffer("starts", torch.tensor(starts[:-1]))
        self.register_buffer("rest", model.first_weight[fields * dim :].clone())  # [multi-valued fields * dim, width]

    def forward(self, single: Tensor, values: list[Tensor], offsets: list[Tensor]) -> Tensor:
        """As `CompiledMetaHeac.forward`."""
        model, bag = self.model, nn.functional.embedding_bag
        single = single + cast(Tensor, self.starts)
        x = bag(single, cast(Tensor, self.folded), mode="sum") + model.first_bias  # [rows, width]
        wide = bag(single, cast(Tensor, self.folded_wide), mode="sum")  # [rows, 1]
        pooled = []
        for start, ids, ends in zip(model.multi_starts, values, offsets, strict=True):
            pooled.append(bag(ids + start, model.table, ends, mode="mean", include_last_offset=True))
            wide = wide + bag(ids + start, model.wide, ends, mode="sum", include_last_offset=True)
        if pooled:
            x = torch.addmm(x, torch.cat(pooled, 1), cast(Tensor, self.rest))
        x = x.relu()
        split = model.num_experts * model.expert_width
        hidden = x[:, :split].view(-1, model.num_experts, model.expert_width).transpose(0, 1)
        for weight, bias in zip(model.deeper_weights, model.deeper_biases, strict=True):
            hidden = torch.baddbmm(bias, hidden, weight).relu()
        gates = x[:, split : split + model.gate_width], x[:, split + model.gate_width :]
        n, m = model.num_experts, model.num_critics  # without what is padded
        expert_gate = torch.addmm(model.expert_gate_bias, gates[0], model.expert_gate_weight)[:, :n].softmax(1)
        critic_gate = torch.addmm(model.critic_gate_bias, gates[1], model.critic_gate_weight)[:, :m].softmax(1)
        mixed = (hidden * expert_gate.t().unsqueeze(2)).sum(0) * model.expert_scale
        opinions = torch.addmm(model.critics_bias, mixed, model.critics_weight)[:, :m] + wide
        return (opinions.sigmoid() * critic_gate).sum(1) * model.critic_scale


def _scoring(forward: Forward, schema: FeatureSchema) -> Score:
    """Columns as the model reads them, as `TorchScriptEngine.score` lays them out."""
    single_names = [field.name for field in schema.single]
    multi_names = [field.name for field in schema.multi]

    def score(users: EncodedColumns) -> Scores:
        single = np.empty((users.length, len(single_names)), np.int64)
        for position, name in enumerate(single_names):
            single[:, position] = users.ids[name]
        values, offsets = [], []
        for name in multi_names:
            starts = users.offsets[name]
            values.append(torch.from_numpy(users.ids[name][starts[0] : starts[-1]].astype(np.int64)))
            offsets.append(torch.from_numpy(starts - starts[0]))
        with torch.inference_mode():
            scores = forward(torch.from_numpy(single), values, offsets).float()
        result: Any = scores.numpy()
        return cast(Scores, result)

    return score
