"""A customised model in the C++ scorer: the same probabilities as its TorchScript, but for rounding, many times faster.

Knows the compiled model and the core; knows nothing of pools or selection.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from lookalike import _core
from lookalike.config import ScoringConfig, available_threads
from lookalike.schema import EncodedColumns, FeatureSchema, FieldKind
from lookalike.scoring.compiled import LARGE_BATCH, load_compiled

# Tables of the first layer that stay within the last-level cache of most servers; see csrc/include/lookalike/scorer.h.
FOLD_BYTES = 24 << 20

_Columns = list[tuple[npt.NDArray[np.unsignedinteger[Any]], npt.NDArray[np.int64] | None]]


class NativeEngine:
    """Scores encoded users on the CPU with 16-bit integers; see csrc/include/lookalike/scorer.h for what that costs.

    Attributes:
        schema: what the users must be encoded by.
        provenance: what `compile_model` was given.
        batch_size: users a call should have, for all threads to have work; scores do not depend on it.
    """

    name = "native"

    def __init__(self, path: Path, config: ScoringConfig | None = None) -> None:
        """Load an archive and fold its first layer into tables.

        Raises:
            NotFound: no such file. DataCorrupted: not one of our archives. InvalidInput: a weight is not finite.
        """
        config = config or ScoringConfig()
        self.threads = config.threads or available_threads()
        self.batch_size = config.batch_size or LARGE_BATCH
        script, self.schema, self.provenance = load_compiled(path, torch.device("cpu"))
        self._single = [f.name for f in self.schema.single]
        self._multi = [f.name for f in self.schema.multi]
        self._scorer = _core.Scorer(**_model(script, self.schema), fold_bytes=FOLD_BYTES)

    def score(self, users: EncodedColumns) -> npt.NDArray[np.float32]:
        """Probability of each user `[rows]`.

        Raises:
            InvalidInput: an id beyond its field's vocabulary.
        """
        return self._scorer.score(users.length, self._columns(users), self.threads)

    def score_into(self, top: _core.TopK, users: EncodedColumns, first_row: int) -> None:
        """Score the users, who are rows `first_row`, ... of the selection, and push them while they are in the cache.

        Ctrl-C abandons the call. One that fails may have pushed some of the users.

        Raises:
            InvalidInput: an id beyond its field's vocabulary.
        """
        self._scorer.score_into(top, users.length, self._columns(users), first_row, self.threads)

    def _columns(self, users: EncodedColumns) -> _Columns:
        single: _Columns = [(users.ids[name], None) for name in self._single]
        return single + [(users.ids[name], users.offsets[name]) for name in self._multi]

    @property
    def tables(self) -> list[int]:
        """For each field, single-valued ones first, the number of its table, which fields may share; -1: pooled."""
        return self._scorer.tables

    @property
    def table_bytes(self) -> int:
        """Bytes of everything that is looked up in."""
        return self._scorer.table_bytes


def _model(script: torch.jit.ScriptModule, schema: FeatureSchema) -> dict[str, Any]:
    """The arguments of `_core.Scorer` that say what the model is; fields in the order of the first layer."""
    fields = [*schema.single, *schema.multi]
    starts = [*script.single_starts.tolist(), *script.multi_starts]  # of their ids in the table
    state = {name: _flat(tensor) for name, tensor in script.state_dict().items()}
    dim = script.table.shape[1]
    rows = np.concatenate([start + np.arange(field.size) for field, start in zip(fields, starts, strict=True)])
    layers = range(sum(name.startswith("deeper_weights.") for name in state))
    weights = {name: state[name] for name in ("first_weight", "first_bias")}
    n, m = script.num_experts, script.num_critics
    for part, count in (("expert_gate", n), ("critic_gate", m), ("critics", m)):  # without what they are padded by
        weights[f"{part}_weight"] = _flat(getattr(script, f"{part}_weight")[:, :count])
        weights[f"{part}_bias"] = _flat(getattr(script, f"{part}_bias")[:count])
    weights["table"] = np.ascontiguousarray(state["table"].reshape(-1, dim)[rows]).ravel()
    weights["wide"] = state["wide"][rows]
    deeper_weights = [state[f"deeper_weights.{i}"] for i in layers]
    deeper_biases = [state[f"deeper_biases.{i}"] for i in layers]
    hidden = [script.expert_width, *(len(bias) // n for bias in deeper_biases)]
    shape = {
        "dim": dim,
        "num_experts": n,
        "num_critics": m,
        "gate_hidden": script.gate_width,
        "hidden": hidden,
        "expert_scale": script.expert_scale,
        "critic_scale": script.critic_scale,
    }
    return {
        "fields": [(field.kind is FieldKind.MULTI, field.size) for field in fields],
        "shape": shape,
        "weights": weights,
        "deeper_weights": deeper_weights,
        "deeper_biases": deeper_biases,
    }


def _flat(tensor: torch.Tensor) -> npt.NDArray[np.float32]:
    array: npt.NDArray[np.float32] = tensor.detach().contiguous().numpy().ravel()
    return array
