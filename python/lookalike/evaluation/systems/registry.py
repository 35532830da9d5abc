"""Every row of the results table by its key, in the table's order. Knows where the systems are.

What a system needs (torch, scikit-learn) is loaded when it is made.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from importlib import import_module
from typing import Any

from lookalike.errors import InvalidInput
from lookalike.evaluation.systems.system import System

Factory = Callable[[], System]


def _made_of(module: str, name: str, **arguments: Any) -> Factory:
    def make() -> System:
        system: System = getattr(import_module(f"lookalike.evaluation.systems.{module}"), name)(**arguments)
        return system

    return make


OURS = "lookalike"
"""The key of the row that every other is compared with."""

SYSTEMS: dict[str, Factory] = {
    "lr": _made_of("logistic_regression", "OneStageRegression"),
    "lookalike-one-budget": _made_of(
        "lookalike", "Lookalike", key="lookalike-one-budget", title="Lookalike, the others' samples", own_budget=False
    ),
    OURS: _made_of("lookalike", "Lookalike"),
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
