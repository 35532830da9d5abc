"""A customised model as a TorchScript archive with its provenance inside, and the engine that scores with it.

Knows `model` and `schema`; knows nothing of pools, campaigns or selection.
"""

from __future__ import annotations

import json
import os
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from lookalike.config import ScoringConfig
from lookalike.errors import DataCorrupted, InvalidInput, NotFound
from lookalike.model.metaheac import MetaHeac
from lookalike.schema import EncodedColumns, FeatureSchema

PROVENANCE_NAME = "provenance.json"
# 8,192 users keep the widest activation (n * 64 floats a user) within a few L2 caches; a GPU wants work for all its
# multiprocessors.
CPU_BATCH = 8_192
CUDA_BATCH = 262_144


class CompiledMetaHeac(nn.Module):
    """MetaHeac for one campaign, rewritten without change of result beyond rounding.

    The campaign's embeddings are constants, so their part of both gates' first layer is a bias; the experts' first
    layers are one matrix, to which the gates' user part (a mean, hence linear) adds its columns.
    """

    if TYPE_CHECKING:  # TorchScript would read these, and cannot: annotations are strings here
        single_starts: Tensor
        table: Tensor
        wide: Tensor
        first_weight: Tensor
        first_bias: Tensor
        expert_gate_weight: Tensor
        expert_gate_bias: Tensor
        critic_gate_weight: Tensor
        critic_gate_bias: Tensor
        critics_weight: Tensor
        critics_bias: Tensor

    def __init__(self, model: MetaHeac, campaign: EncodedColumns) -> None:
        super().__init__()
        config = model.config
        with torch.no_grad():
            embedded = model.campaigns.batch(campaign).embed(model.campaign_embedding).flatten(1)  # [1, Fc * k]
            gate_biases = [g.from_campaign(embedded)[0] for g in (model.expert_gate, model.critic_gate)]
            mean = [
                g.from_user.weight.T.repeat(model.users.num_fields, 1) / model.users.num_fields
                for g in (model.expert_gate, model.critic_gate)
            ]  # [Fu * k, gate] each
            weights = list(model.experts.weights)
            inputs, width = weights[0].shape[1:]
            experts = weights[0].permute(1, 0, 2).reshape(inputs, config.num_experts * width)
            first = torch.cat([experts, *mean], dim=1)
            bias = torch.cat([model.experts.biases[0].reshape(-1), *gate_biases])
        self.num_experts = config.num_experts
        self.expert_width = int(width)
        self.gate_width = config.gate_hidden
        self.expert_scale = 1.0 / config.num_experts if config.literal_average else 1.0
        self.critic_scale = 1.0 / config.num_critics if config.literal_average else 1.0
        starts = model.users.starts
        # Typed, because there may be none, and TorchScript cannot tell what an empty list holds.
        self.multi_starts = torch.jit.Attribute([starts[name] for name in model.users.multi_names], list[int])
        single_starts = torch.tensor([starts[name] for name in model.users.single_names], dtype=torch.int64)
        self.register_buffer("single_starts", single_starts)
        table = model.user_embedding.detach()
        k = config.embedding_dim
        self.register_buffer("table", table[:, :k].clone())
        self.register_buffer("wide", table[:, k:].clone() if config.wide else torch.zeros(len(table), 1))
        self.register_buffer("first_weight", first.contiguous())
        self.register_buffer("first_bias", bias)
        self.deeper_weights = nn.ParameterList(_constant(w) for w in weights[1:])
        self.deeper_biases = nn.ParameterList(_constant(b) for b in list(model.experts.biases)[1:])
        self.register_buffer("expert_gate_weight", model.expert_gate.output.weight.detach().T.contiguous())
        self.register_buffer("expert_gate_bias", model.expert_gate.output.bias.detach().clone())
        self.register_buffer("critic_gate_weight", model.critic_gate.output.weight.detach().T.contiguous())
        self.register_buffer("critic_gate_bias", model.critic_gate.output.bias.detach().clone())
        self.register_buffer("critics_weight", model.critics.weight.detach().T.contiguous())
        self.register_buffer("critics_bias", model.critics.bias.detach().clone())

    def forward(self, single: Tensor, values: list[Tensor], offsets: list[Tensor]) -> Tensor:
        """Probabilities `[rows]` float32.

        `single` `[rows, S]` int64 and, for each multi-valued field, `values` `[nnz]` int64 and `offsets` `[rows + 1]`
        int64, which start at 0; ids within the field, as the schema encodes them.
        """
        rows = single.shape[0]
        single = single + self.single_starts
        parts = [nn.functional.embedding(single, self.table).flatten(1)]  # [rows, S * k]
        wide = nn.functional.embedding(single, self.wide).sum(1)  # [rows, 1]
        for field in range(len(self.multi_starts)):
            ids, starts = values[field] + self.multi_starts[field], offsets[field]
            parts.append(nn.functional.embedding_bag(ids, self.table, starts, mode="mean", include_last_offset=True))
            wide = wide + nn.functional.embedding_bag(ids, self.wide, starts, mode="sum", include_last_offset=True)
        x = torch.addmm(self.first_bias, torch.cat(parts, 1), self.first_weight).relu()
        split = self.num_experts * self.expert_width
        hidden = x[:, :split].view(rows, self.num_experts, self.expert_width).transpose(0, 1)  # [n, rows, h]
        for weight, bias in zip(self.deeper_weights, self.deeper_biases):  # noqa: B905  TorchScript knows no strict
            hidden = torch.baddbmm(bias, hidden, weight).relu()
        expert_gate = torch.addmm(
            self.expert_gate_bias, x[:, split : split + self.gate_width], self.expert_gate_weight
        ).softmax(1)  # [rows, n]
        critic_gate = torch.addmm(
            self.critic_gate_bias, x[:, split + self.gate_width :], self.critic_gate_weight
        ).softmax(1)  # [rows, m]
        mixed = (hidden * expert_gate.t().unsqueeze(2)).sum(0) * self.expert_scale  # [rows, h]
        opinions = torch.addmm(self.critics_bias, mixed, self.critics_weight) + wide  # [rows, m]
        return (opinions.sigmoid() * critic_gate).sum(1) * self.critic_scale


def _constant(tensor: Tensor) -> nn.Parameter:
    return nn.Parameter(tensor.detach().clone(), requires_grad=False)


def compile_model(model: MetaHeac, campaign: EncodedColumns, output: Path, provenance: Mapping[str, Any]) -> None:
    """Write the customised model as a TorchScript archive; `provenance` (plain data) goes inside, with the schema.

    Not frozen: freezing is the loader's, for the device it loads to, and the same model gives the same bytes.
    """
    with _quiet():
        script = torch.jit.script(CompiledMetaHeac(model, campaign).eval())
        facts = {**provenance, "user_schema": model.users.schema.to_json()}
        torch.jit.save(script, output, {PROVENANCE_NAME: json.dumps(facts, ensure_ascii=False)})


def load_compiled(path: Path, device: torch.device) -> tuple[torch.jit.ScriptModule, FeatureSchema, dict[str, Any]]:
    """A customised model's archive, not frozen: the module, the user schema, and what `compile_model` was given.

    Raises:
        NotFound: no such file. DataCorrupted: not one of our archives.
    """
    if not path.is_file():
        raise NotFound(f"no customised model at {path}", field="model")
    extra = {PROVENANCE_NAME: ""}
    try:
        with _quiet():
            script = torch.jit.load(path, map_location=device, _extra_files=extra)  # type: ignore[no-untyped-call]
        text: Any = extra[PROVENANCE_NAME]
        provenance: dict[str, Any] = json.loads(text)
        schema = FeatureSchema.from_json(provenance.pop("user_schema"))
    except (RuntimeError, ValueError, KeyError) as error:
        raise DataCorrupted(f"{path} is no customised model of ours: {error}", field="model") from error
    module: torch.jit.ScriptModule = script.eval()
    return module, schema, provenance


class TorchScriptEngine:
    """Scores encoded users with a compiled customised model, on a CPU or a GPU.

    Attributes:
        provenance: what `compile_model` was given.
        batch_size: users a batch; scores depend on it by rounding only, and not at all for equal batches.
    """

    name = "torchscript"

    def __init__(self, path: Path, config: ScoringConfig | None = None) -> None:
        """Load and freeze an archive.

        Raises:
            NotFound: no such file. DataCorrupted: not one of our archives. InvalidInput: no such device.
        """
        config = resolve(config or ScoringConfig())
        self.device = torch.device(config.device)
        self.threads = config.threads
        self.batch_size = config.batch_size
        script, self.schema, self.provenance = load_compiled(path, self.device)
        with _quiet():
            self._script = torch.jit.freeze(script)
        self._single = [f.name for f in self.schema.single]
        self._multi = [f.name for f in self.schema.multi]

    def score(self, users: EncodedColumns) -> npt.NDArray[np.float32]:
        """Probability of each user `[rows]`; one batch, however long: the caller cuts."""
        single = np.empty((users.length, len(self._single)), np.int64)
        for position, name in enumerate(self._single):
            single[:, position] = users.ids[name]
        values, offsets = [], []
        for name in self._multi:
            starts = users.offsets[name]
            values.append(self._tensor(users.ids[name][starts[0] : starts[-1]].astype(np.int64)))
            offsets.append(self._tensor(starts - starts[0]))
        with torch.inference_mode(), compute_threads(self.threads):
            scores: Tensor = self._script(self._tensor(single), values, offsets)
        result: npt.NDArray[np.float32] = scores.cpu().numpy()
        return result

    def _tensor(self, array: npt.NDArray[np.int64]) -> Tensor:
        return torch.from_numpy(array).to(self.device, non_blocking=True)


def resolve(config: ScoringConfig) -> ScoringConfig:
    """The configuration with every "auto" and 0 replaced by what this machine makes of it.

    Raises:
        InvalidInput: no such device.
    """
    device = choose_device(config.device)
    return ScoringConfig(
        device=str(device),
        batch_size=config.batch_size or (CUDA_BATCH if device.type == "cuda" else CPU_BATCH),
        threads=config.threads or available_threads(),
    )


def choose_device(name: str) -> torch.device:
    """The device a configuration names; "auto" is the first GPU, or the CPU without one.

    Raises:
        InvalidInput: not a device, or not there.
    """
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError) as error:
        raise InvalidInput(f"no device '{name}' here; use auto, cpu or cuda", field="scoring.device") from error
    return device


def available_threads() -> int:
    """Cores this process may run on. A container's quota of time does not show here: set `scoring.threads` there."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


@contextmanager
def compute_threads(count: int) -> Iterator[None]:
    """Torch's intra-op threads within the block. A fixed number keeps sums, and so results, the same everywhere.

    The number is the calling thread's own where torch uses OpenMP, as its Linux builds do, so that blocks on several
    threads do not disturb each other.
    """
    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)


@contextmanager
def _quiet() -> Iterator[None]:
    """TorchScript is deprecated in favour of torch.export, and says so at every call."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", category=DeprecationWarning, message=r".*torch\.jit")
        warnings.filterwarnings("ignore", category=FutureWarning, message=r".*torch\.jit")
        yield
