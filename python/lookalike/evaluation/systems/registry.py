"""Every row of the results table by its key, in the table's order. Knows where the systems are.

What a system needs (torch, scikit-learn) is loaded when it is made. Factories can be pickled, to go to other processes.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from importlib import import_module
from typing import Any

from lookalike.errors import InvalidInput
from lookalike.evaluation.systems.system import System

Factory = Callable[[], System]


def _made_of(module: str, name: str, **arguments: Any) -> Factory:
    return partial(_make, module, name, arguments)


def _make(module: str, name: str, arguments: Mapping[str, Any]) -> System:
    system: System = getattr(import_module(f"lookalike.evaluation.systems.{module}"), name)(**arguments)
    return system


def _one_of(module: str, name: str, key: str) -> Factory:
    return partial(_pick, module, name, key)


def _pick(module: str, name: str, key: str) -> System:
    systems: list[System] = getattr(import_module(f"lookalike.evaluation.systems.{module}"), name)()
    return next(system for system in systems if system.key == key)


def _ours(key: str, title: str, **arguments: Any) -> Factory:
    return _made_of("lookalike", "Lookalike", key=key, title=title, **arguments)


OURS = "lookalike"
"""The key of the row that every other is compared with."""

_NETWORKS = ("mlp", "mlp-emb-frozen", "mlp-emb-tuned")
_PRETRAINED = ("mlp-pre", "shared-bottom-frozen", "shared-bottom-tuned", "mmoe", "mmoe-random")
_METAHEAC = ("metaheac", "metaheac-no-hc", "metaheac-no-he", "metaheac-no-meta")

SYSTEMS: dict[str, Factory] = {
    "lr": _made_of("logistic_regression", "OneStageRegression"),
    **{key: _one_of("networks", "network_systems", key) for key in _NETWORKS},
    "pinterest": _made_of("pinterest", "Pinterest"),
    "hubble": _made_of("hubble", "Hubble"),
    **{key: _one_of("networks", "network_systems", key) for key in _PRETRAINED},
    **{key: _one_of("metaheac", "metaheac_systems", key) for key in _METAHEAC},
    "lookalike-one-budget": _ours("lookalike-one-budget", "Lookalike, as few samples as the others", own_budget=False),
    OURS: _ours(OURS, "Lookalike, default recipe"),
}


def chosen(keys: Sequence[str] | None) -> dict[str, Factory]:
    """The systems named, in the table's order; None: all.

    Raises:
        InvalidInput: a key is unknown, or there is none.
    """
    if keys is None:
        return dict(SYSTEMS)
    for key in keys:
        if key not in SYSTEMS:
            raise InvalidInput(f"no system '{key}'; there are {', '.join(SYSTEMS)}", field="systems")
    if not keys:
        raise InvalidInput(f"no system is named; there are {', '.join(SYSTEMS)}", field="systems")
    return {key: make for key, make in SYSTEMS.items() if key in keys}
