"""The general checkpoint (safetensors + JSON, never pickle) and the state of a run that is still going.

Knows `model` and the prior; knows nothing of how they were trained.
"""

from __future__ import annotations

import hashlib
import json
import math
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from pydantic import TypeAdapter
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from lookalike import __version__
from lookalike.config import AdaptationConfig, Config, JointConfig, ModelConfig, TrainingConfig, parse
from lookalike.errors import DataCorrupted, InvalidInput, NotFound
from lookalike.files import file_digest, staged_folder
from lookalike.model.metaheac import MetaHeac
from lookalike.schema import FeatureSchema
from lookalike.training.campaign_head import HeadPrior

WEIGHTS_NAME = "model.safetensors"
DESCRIPTION_NAME = "checkpoint.json"
FORMAT_VERSION = 3


@dataclass(frozen=True)
class Checkpoint:
    """The general model with all that is needed to adapt it.

    `config` holds the model and training sections it was made with, and the adaptation it was tuned for. `prior` is of
    campaigns' own weights, where it was trained jointly.
    """

    model: MetaHeac
    prior: HeadPrior | None
    user_schema: FeatureSchema
    campaign_schema: FeatureSchema
    config: Config
    metrics: Mapping[str, Any]
    fingerprint: str = ""


def save_checkpoint(checkpoint: Checkpoint, output: Path, *, overwrite: bool = False) -> str:
    """Write the folder `output` whole or not at all; returns its fingerprint.

    Raises:
        AlreadyExists: `output` exists and `overwrite` is false.
    """
    with staged_folder(output, overwrite=overwrite) as staged:
        weights = {f"model.{n}": t for n, t in checkpoint.model.state_dict().items()}
        if checkpoint.prior is not None:
            weights |= {f"prior.{n}": t for n, t in checkpoint.prior.state_dict().items()}
        save_file({n: t.detach().contiguous().cpu() for n, t in weights.items()}, staged / WEIGHTS_NAME)
        description = {
            "format_version": FORMAT_VERSION,
            "code_version": __version__,
            "weights_sha256": file_digest(staged / WEIGHTS_NAME),
            "model": to_plain(checkpoint.config.model),
            "training": to_plain(checkpoint.config.training),
            "joint": to_plain(checkpoint.config.joint),
            "adaptation": to_plain(checkpoint.config.adaptation),
            "user_schema": checkpoint.user_schema.to_json(),
            "campaign_schema": checkpoint.campaign_schema.to_json(),
            "metrics": dict(checkpoint.metrics),
        }
        (staged / DESCRIPTION_NAME).write_text(
            json.dumps(description, indent=1, ensure_ascii=False) + "\n", encoding="utf-8"
        )
    return fingerprint(output)


def load_checkpoint(path: Path) -> Checkpoint:
    """Inverse of `save_checkpoint`; the model is on the CPU.

    Raises:
        NotFound: no checkpoint there. DataCorrupted: a file is damaged, foreign or of another version.
    """
    description = read_description(path)
    if file_digest(path / WEIGHTS_NAME) != description["weights_sha256"]:
        raise DataCorrupted(f"{path / WEIGHTS_NAME} fails its checksum", field="checkpoint")
    config = Config(
        model=parse(ModelConfig, description["model"], field_prefix="checkpoint.model"),
        training=parse(TrainingConfig, description["training"], field_prefix="checkpoint.training"),
        joint=parse(JointConfig, description["joint"], field_prefix="checkpoint.joint"),
        adaptation=parse(AdaptationConfig, description["adaptation"], field_prefix="checkpoint.adaptation"),
    )
    users = FeatureSchema.from_json(description["user_schema"])
    campaigns = FeatureSchema.from_json(description["campaign_schema"])
    model = MetaHeac(users, campaigns, config.model)
    prior = new_prior(model, config) if config.training.method == "joint" else None
    try:
        weights = load_file(path / WEIGHTS_NAME)
        model.load_state_dict(_under("model.", weights))
        if prior is not None:
            prior.load_state_dict(_under("prior.", weights))
    except (SafetensorError, RuntimeError) as error:
        raise DataCorrupted(
            f"{path / WEIGHTS_NAME} does not fit its description: {error}", field="checkpoint"
        ) from error
    return Checkpoint(model, prior, users, campaigns, config, description["metrics"], fingerprint(path))


def new_prior(model: MetaHeac, config: Config) -> HeadPrior:
    """A prior of the right shape for `model`, as joint training starts with it."""
    return HeadPrior(model.users.table_rows, config.model.hidden[-1], config.joint.rank)


def read_description(path: Path) -> dict[str, Any]:
    """`checkpoint.json` of a checkpoint folder.

    Raises:
        NotFound: no checkpoint there. DataCorrupted: not JSON, a key is missing, or another format version.
    """
    for name in (DESCRIPTION_NAME, WEIGHTS_NAME):
        if not (path / name).is_file():
            raise NotFound(f"no checkpoint at {path}: {name} is missing", field="checkpoint")
    try:
        description: dict[str, Any] = json.loads((path / DESCRIPTION_NAME).read_text(encoding="utf-8"))
        version = description["format_version"]
        missing = [k for k in _REQUIRED if k not in description]
    except (json.JSONDecodeError, KeyError, TypeError, UnicodeDecodeError) as error:
        raise DataCorrupted(f"{path / DESCRIPTION_NAME} is no checkpoint description", field="checkpoint") from error
    if version != FORMAT_VERSION:
        raise DataCorrupted(
            f"{path} is a checkpoint of format {version}; this version reads {FORMAT_VERSION}: train again",
            field="checkpoint",
        )
    if missing:
        raise DataCorrupted(f"{path / DESCRIPTION_NAME} lacks {', '.join(missing)}", field="checkpoint")
    return description


_REQUIRED = ("weights_sha256", "model", "training", "joint", "adaptation", "user_schema", "campaign_schema", "metrics")


def fingerprint(path: Path) -> str:
    """SHA-256 that names what a checkpoint computes: weights, schemas and configuration; not when it was made.

    Raises:
        NotFound, DataCorrupted: as `read_description`.
    """
    description = read_description(path)
    named = {k: description[k] for k in _REQUIRED if k not in ("metrics", "training", "joint")}
    return hashlib.sha256(json.dumps(named, sort_keys=True).encode()).hexdigest()


class TrainingState:
    """A run in progress: step, parameters now and at best, optimisers. One file, replaced whole; saved only between
    steps, so that what is continued is what would have gone on.
    """

    def __init__(
        self,
        folder: Path,
        identity: str,
        modules: Mapping[str, nn.Module],
        optimizers: Mapping[str, torch.optim.Optimizer],
    ) -> None:
        self.folder = folder
        self.identity = identity
        self.modules = modules
        self.optimizers = optimizers
        self.step = 0
        self.samples = 0
        self.seconds = 0.0
        self.stale = 0
        self.best_auc = -math.inf
        self._best: dict[str, Tensor] = {}

    @classmethod
    def open(
        cls,
        folder: Path,
        modules: Mapping[str, nn.Module],
        optimizers: Mapping[str, torch.optim.Optimizer],
        *,
        identity: Sequence[object],
        resume: bool,
    ) -> TrainingState:
        """A fresh state, or with `resume` the one saved in `folder`; `identity` (plain data) is all that decides a run.

        Raises:
            InvalidInput: the saved state belongs to other data or another configuration.
            DataCorrupted: it is damaged.
        """
        name = hashlib.sha256(json.dumps(identity, sort_keys=True).encode()).hexdigest()
        state = cls(folder, name, modules, optimizers)
        if resume and state._file.is_file():
            state._load()
        return state

    @property
    def _file(self) -> Path:
        return self.folder / "state.safetensors"

    def record(self, validation_auc: float) -> None:
        """Keep the parameters if they are the best so far; `stale` counts the validations in a row that were not."""
        # Without a validation campaign the last parameters are the best there are.
        if not self.best_auc >= validation_auc:
            self.best_auc = validation_auc
            self._best = {n: t.detach().clone() for n, t in self._current().items()}
            self.stale = 0
        else:
            self.stale += 1

    def restore_best(self) -> None:
        """Put the best parameters into the modules."""
        for name, tensor in self._current().items():
            if name in self._best:
                tensor.data.copy_(self._best[name])

    def _current(self) -> dict[str, Tensor]:
        return {f"{kind}.{n}": t for kind, module in self.modules.items() for n, t in module.state_dict().items()}

    def save(self) -> None:
        """Write everything needed to continue."""
        tensors = {f"now.{n}": t for n, t in self._current().items()}
        tensors |= {f"best.{n}": t for n, t in self._best.items()}
        for name, optimizer in self.optimizers.items():
            for index, entries in optimizer.state_dict()["state"].items():
                for key, value in entries.items():
                    tensors[f"optimizer.{name}.{index}.{key}"] = torch.as_tensor(value)
        numbers = {k: getattr(self, k) for k in ("step", "samples", "seconds", "stale")}
        numbers["best_auc"] = self.best_auc if math.isfinite(self.best_auc) else None
        self.folder.mkdir(parents=True, exist_ok=True)
        partial = self._file.with_suffix(".tmp")
        contiguous = {n: t.detach().contiguous().cpu() for n, t in tensors.items()}
        save_file(contiguous, partial, {"identity": self.identity, "numbers": json.dumps(numbers)})
        partial.replace(self._file)

    def _load(self) -> None:
        try:
            with safe_open(self._file, framework="pt") as file:
                metadata = file.metadata() or {}
                tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        except SafetensorError as error:
            raise DataCorrupted(
                f"{self._file} is damaged; delete {self.folder} to start anew", field="resume"
            ) from error
        if metadata.get("identity") != self.identity:
            raise InvalidInput(
                f"{self.folder} belongs to other data or another configuration; delete it, or train with --no-resume",
                field="resume",
            )
        numbers = json.loads(metadata["numbers"])
        self.step, self.samples = numbers["step"], numbers["samples"]
        self.seconds, self.stale = numbers["seconds"], numbers["stale"]
        self.best_auc = -math.inf if numbers["best_auc"] is None else numbers["best_auc"]
        self._best = _under("best.", tensors)
        for name, tensor in self._current().items():
            tensor.data.copy_(tensors[f"now.{name}"])
        for name, optimizer in self.optimizers.items():
            saved = optimizer.state_dict()
            for key, tensor in _under(f"optimizer.{name}.", tensors).items():
                index, entry = key.split(".")
                saved["state"].setdefault(int(index), {})[entry] = tensor
            optimizer.load_state_dict(saved)

    def remove(self) -> None:
        """Forget the run: it has ended well."""
        shutil.rmtree(self.folder, ignore_errors=True)


def _under(prefix: str, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {name.removeprefix(prefix): t for name, t in tensors.items() if name.startswith(prefix)}


def to_plain(section: Any) -> dict[str, Any]:
    """A section of the configuration as JSON would have it."""
    data: dict[str, Any] = TypeAdapter(type(section)).dump_python(section, mode="json")
    return data
