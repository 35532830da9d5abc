"""A customised model as a TorchScript archive with its provenance inside, and the engine that scores with it.

Knows `model` and `schema`; knows nothing of pools, campaigns or selection.
"""

from __future__ import annotations

import json
import threading
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from lookalike import _core
from lookalike.config import ScoringConfig, available_threads
from lookalike.errors import DataCorrupted, InvalidInput, NotFound
from lookalike.model.metaheac import MetaHeac
from lookalike.schema import EncodedColumns, FeatureSchema

PROVENANCE_NAME = "provenance.json"
FORMAT_VERSION = 2
# Keeps the widest activation (n * 64 floats a user) within a few L2 caches.
CPU_BATCH = 8_192
# For what holds no activations of so many users: work for all threads, or all multiprocessors of a GPU, and a tenth of
# a second or so until it can be stopped.
LARGE_BATCH = 524_288
# Of fewer users a thread may get so few that matrices go through other kernels; see COLUMNS.
LEAST_BATCH = 256
# Outputs of a matrix are padded to multiples of this. Other widths go through kernels that sum in another order for
# the last few users of a batch: here a user's score depends on the user alone, not on the place in the batch.
COLUMNS = 16


# Scripting parses source code, and Python 3.11 loses count of its depth when two threads do so at once.
_SCRIPTING = threading.Lock()


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
        width = _padded(config.hidden[0])
        with torch.no_grad():
            weights = [_widened(w, inputs=layer > 0) for layer, w in enumerate(model.experts.weights)]
            biases = [_widened(b) for b in model.experts.biases]
            embedded = model.campaigns.batch(campaign).embed(model.campaign_embedding).flatten(1)  # [1, Fc * k]
            gates = (model.expert_gate, model.critic_gate)
            gate_biases = [_widened(g.from_campaign(embedded))[0] for g in gates]
            fields = model.users.num_fields
            mean = [_widened(g.from_user.weight.T).repeat(fields, 1) / fields for g in gates]  # [Fu * k, gate] each
            experts = weights[0].permute(1, 0, 2).flatten(1)  # [Fu * k, n * h]
            first = torch.cat([experts, *mean], dim=1)
            bias = torch.cat([biases[0].flatten(), *gate_biases])
            outputs = [
                (_widened(layer.weight.T, inputs=True), _widened(layer.bias[None])[0])
                for layer in (model.expert_gate.output, model.critic_gate.output, model.critics)
            ]
        self.num_experts = config.num_experts
        self.num_critics = config.num_critics
        self.expert_width = width
        self.gate_width = _padded(config.gate_hidden)
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
        self.deeper_biases = nn.ParameterList(_constant(b) for b in biases[1:])
        for name, (weight, bias) in zip(("expert_gate", "critic_gate", "critics"), outputs, strict=True):
            self.register_buffer(f"{name}_weight", weight)
            self.register_buffer(f"{name}_bias", bias)

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
        gates = x[:, split : split + self.gate_width], x[:, split + self.gate_width :]
        expert_gate = torch.addmm(self.expert_gate_bias, gates[0], self.expert_gate_weight)[:, : self.num_experts]
        critic_gate = torch.addmm(self.critic_gate_bias, gates[1], self.critic_gate_weight)[:, : self.num_critics]
        # In float32 whatever the model's type: weights that do not sum to 1 would be far off where p is near 1.
        expert_gate = expert_gate.float().softmax(1).to(hidden.dtype)  # [rows, n]
        critic_gate = critic_gate.float().softmax(1)  # [rows, m]
        mixed = (hidden * expert_gate.t().unsqueeze(2)).sum(0) * self.expert_scale  # [rows, h]
        opinions = torch.addmm(self.critics_bias, mixed, self.critics_weight)[:, : self.num_critics] + wide  # [rows, m]
        # In double precision, where the last digits differ between vectors and what is left of them, and are cut off.
        p = (opinions.double().sigmoid().float() * critic_gate).sum(1) * self.critic_scale
        return p.clamp_max(1.0)  # a sum of rounded weights may be a digit above


def _padded(width: int) -> int:
    return -(-width // COLUMNS) * COLUMNS


def _widened(tensor: Tensor, *, inputs: bool = False) -> Tensor:
    """The same with columns of zeros behind, and with rows of zeros if `inputs`, to multiples of `COLUMNS`."""
    *_, rows, columns = tensor.shape
    return nn.functional.pad(tensor, (0, _padded(columns) - columns, 0, _padded(rows) - rows if inputs else 0))


def _constant(tensor: Tensor) -> nn.Parameter:
    return nn.Parameter(tensor.detach().clone(), requires_grad=False)


def compile_model(model: MetaHeac, campaign: EncodedColumns, output: Path, provenance: Mapping[str, Any]) -> None:
    """Write the customised model as a TorchScript archive; `provenance` (plain data) goes inside, with the schema.

    Not frozen: freezing is the loader's, for the device it loads to, and the same model gives the same bytes.
    """
    with quiet(), _SCRIPTING:
        script = torch.jit.script(CompiledMetaHeac(model, campaign).eval())
        facts = {**provenance, "format_version": FORMAT_VERSION, "user_schema": model.users.schema.to_json()}
        with output.open("wb") as file:
            # To a file of ours: torch's own ends the whole process where the disk is full.
            torch.jit.save(script, file, {PROVENANCE_NAME: json.dumps(facts, ensure_ascii=False)})


def load_compiled(path: Path, device: torch.device) -> tuple[torch.jit.ScriptModule, FeatureSchema, dict[str, Any]]:
    """A customised model's archive, not frozen: the module, the user schema, and what `compile_model` was given.

    Raises:
        NotFound: no such file. DataCorrupted: not one of our archives.
    """
    if not path.is_file():
        raise NotFound(f"no customised model at {path}", field="model")
    extra = {PROVENANCE_NAME: ""}
    try:
        with quiet():
            script = torch.jit.load(path, map_location=device, _extra_files=extra)  # type: ignore[no-untyped-call]
        text: Any = extra[PROVENANCE_NAME]
        provenance: dict[str, Any] = json.loads(text)
        schema = FeatureSchema.from_json(provenance.pop("user_schema"))
        version = provenance.pop("format_version", 1)
    except (RuntimeError, ValueError, KeyError) as error:
        raise DataCorrupted(f"{path} is no customised model of ours: {error}", field="model") from error
    if version != FORMAT_VERSION:
        raise DataCorrupted(
            f"{path} is of format {version}; this version reads {FORMAT_VERSION}: expand again", field="model"
        )
    module: torch.jit.ScriptModule = script.eval()
    return module, schema, provenance


class TorchScriptEngine:
    """Scores encoded users with a compiled customised model in float32, on a CPU or a GPU.

    On the CPU this is the reference: a user's score depends on the user and the model alone, to the bit, not on who
    else is in the batch, how large it is, or the number of threads. Other engines are held to it.

    Attributes:
        provenance: what `compile_model` was given.
        batch_size: users a batch.
    """

    name = "torchscript"

    def __init__(self, path: Path, config: ScoringConfig | None = None) -> None:
        """Load and freeze an archive.

        Raises:
            NotFound: no such file. DataCorrupted: not one of our archives. InvalidInput: no such device.
        """
        config = config or ScoringConfig()
        self.device = choose_device(config.device)
        self.threads = config.threads or available_threads()
        self.batch_size = config.batch_size or CPU_BATCH
        script, self.schema, self.provenance = load_compiled(path, self.device)
        with quiet():
            self._script = torch.jit.freeze(script)
        self._single = [f.name for f in self.schema.single]
        self._multi = [f.name for f in self.schema.multi]

    def score(self, users: EncodedColumns) -> npt.NDArray[np.float32]:
        """Probability of each user `[rows]`."""
        scores = np.empty(users.length, np.float32)
        for start in range(0, users.length, self.batch_size):
            stop = min(start + self.batch_size, users.length)
            scores[start:stop] = self._batch(users.slice(start, stop))
        return scores

    def score_into(self, top: _core.TopK, users: EncodedColumns, first_row: int) -> None:
        """Score the users, who are rows `first_row`, ... of the selection, and push them.

        Raises:
            InvalidInput: a score is NaN.
        """
        top.push(self.score(users), first_row, self.threads)

    def _batch(self, users: EncodedColumns) -> npt.NDArray[np.float32]:
        rows = max(users.length, LEAST_BATCH)  # who is not there has id 0, and empty lists
        single = np.zeros((rows, len(self._single)), np.int64)
        for position, name in enumerate(self._single):
            single[: users.length, position] = users.ids[name]
        values, offsets = [], []
        for name in self._multi:
            starts = users.offsets[name]
            values.append(self._tensor(users.ids[name][starts[0] : starts[-1]].astype(np.int64)))
            ends = np.full(rows + 1, starts[-1] - starts[0])
            ends[: users.length + 1] = starts - starts[0]
            offsets.append(self._tensor(ends))
        with torch.inference_mode(), compute_threads(self.threads):
            scores: Tensor = self._script(self._tensor(single), values, offsets)
        result: npt.NDArray[np.float32] = scores[: users.length].cpu().numpy()
        return result

    def _tensor(self, array: npt.NDArray[np.int64]) -> Tensor:
        return torch.from_numpy(array).to(self.device, non_blocking=True)


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
    if device.type not in ("cpu", "cuda"):
        raise InvalidInput(f"nothing is scored on '{name}'; use auto, cpu or cuda", field="scoring.device")
    return torch.device("cpu") if device.type == "cpu" else device


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
def quiet() -> Iterator[None]:
    """TorchScript is deprecated in favour of torch.export, and says so at every call."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", category=DeprecationWarning, message=r".*torch\.jit")
        warnings.filterwarnings("ignore", category=FutureWarning, message=r".*torch\.jit")
        yield
