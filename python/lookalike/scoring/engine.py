"""The engines that score a pool, and which of them a configuration means."""

from __future__ import annotations

from dataclasses import asdict, replace
from pathlib import Path
from typing import Protocol

import numpy as np
import numpy.typing as npt

from lookalike import _core
from lookalike.config import ScoringConfig, available_threads, parse
from lookalike.errors import InternalError, InvalidInput
from lookalike.schema import EncodedColumns
from lookalike.scoring.bfloat16 import Bfloat16Engine
from lookalike.scoring.compiled import CPU_BATCH, LARGE_BATCH, TorchScriptEngine, choose_device
from lookalike.scoring.native import NativeEngine


class Engine(Protocol):
    """Scores encoded users with one customised model.

    Attributes:
        batch_size: users a call should have.
    """

    name: str
    batch_size: int

    def score(self, users: EncodedColumns) -> npt.NDArray[np.float32]:
        """Probability of each user `[rows]`."""
        ...

    def score_into(self, top: _core.TopK, users: EncodedColumns, first_row: int) -> None:
        """Score the users, who are rows `first_row`, ... of the selection, and push them.

        Raises:
            InvalidInput: a score is NaN (field "scores"), or an id beyond its vocabulary.
        """
        ...


def resolve(config: ScoringConfig) -> ScoringConfig:
    """The configuration with every "auto" and 0 replaced by what this machine makes of it.

    Raises:
        InvalidInput: a value is not allowed, no such device, or the engine cannot use it.
    """
    config = parse(ScoringConfig, asdict(config), field_prefix="scoring")
    device = choose_device(config.device)
    on_cpu = device.type == "cpu"
    if config.engine == "native" and not on_cpu:
        raise InvalidInput(
            f"the native engine runs on the CPU, not on {device}: set scoring.device=cpu, or scoring.engine=auto",
            field="scoring.engine",
        )
    engine = ("native" if on_cpu else "bfloat16") if config.engine == "auto" else config.engine
    return replace(
        config,
        engine=engine,
        device=str(device),
        batch_size=config.batch_size or (CPU_BATCH if engine != "native" and on_cpu else LARGE_BATCH),
        threads=config.threads or available_threads(),
    )


class Chosen(Protocol):
    """A resolved configuration, or a receipt that tells of one."""

    @property
    def engine(self) -> str: ...

    @property
    def device(self) -> str: ...


def is_exact(chosen: Chosen) -> bool:
    """Whether the engine is the reference itself; see `TorchScriptEngine`."""
    return chosen.engine == TorchScriptEngine.name and chosen.device == "cpu"


def open_engine(path: Path, config: ScoringConfig) -> Engine:
    """Load a customised model into the engine that a resolved configuration names.

    Raises:
        NotFound: no such file. DataCorrupted: not one of our archives. InternalError: the model has diverged, or is
            beyond the native engine.
    """
    if config.engine == "torchscript":
        return TorchScriptEngine(path, config)
    if config.engine == "bfloat16":
        return Bfloat16Engine(path, config)
    try:
        return NativeEngine(path, config)
    except InvalidInput as error:
        raise InternalError(f"the native engine cannot take the customised model: {error}") from error
