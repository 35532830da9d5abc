"""All figures of one dataset: what each needs is measured, if it is not kept, and drawn; and what they say in numbers.

Knows the benchmark, the studies and the figures.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import TypeVar

import numpy as np
import numpy.typing as npt
from matplotlib.figure import Figure

from lookalike.errors import InvalidInput, NotFound
from lookalike.evaluation.bench import Bench, summary_of
from lookalike.evaluation.categories import Categories, alike, categories
from lookalike.evaluation.figures import calibration, convergence, mixtures
from lookalike.evaluation.figures.results import NAMES as OF_RESULTS
from lookalike.evaluation.figures.results import draw_named
from lookalike.evaluation.figures.style import save, styled
from lookalike.evaluation.observations import Calibration, Convergence, Mixtures, Observation, Observations
from lookalike.evaluation.studies.trained import Trained
from lookalike.evaluation.systems.registry import OURS, Factory

NAMES = (*OF_RESULTS, "convergence", "representations", "gates", "calibration")

# Of all figures of results, only that of losses needs what not every system has.
_NO_DATA = "no finished run is of a system that adapts by epochs, and so has losses of them"

Facts = Sequence[tuple[str, str]]
_Study = TypeVar("_Study", bound=Observation)


@dataclass(frozen=True)
class Illustrated:
    """Files that were written, and names and values for a person."""

    paths: tuple[Path, ...]
    facts: tuple[tuple[str, str], ...]


def illustrate(
    bench: Bench,
    systems: Mapping[str, Factory],
    *,
    only: Collection[str] | None = None,
    category: str | None = None,
    fresh: bool = False,
) -> Illustrated:
    """Draw into `figures/` of the benchmark's folder; what studies found is kept in `figures/data/`.

    Args:
        systems: the registry, or others by the same keys.
        only: figures by name; without it all, those of stored results if there are any.
        category: the field of campaigns that groups them.
        fresh: measure again what is kept.

    Raises:
        InvalidInput: an unknown figure or field; or a system diverges.
        NotFound: no results where they are asked for, or none that have what the figures asked for show.
        FailedPrecondition: something must be measured, and another benchmark measures into the folder.
        Cancelled: what is measured is kept.
    """
    names = _checked(only)
    if {"representations", "gates"} & set(names):
        # Before anything takes long.
        categories(bench.dataset.campaigns(), category, [])
    paths: list[Path] = []
    facts: list[tuple[str, str]] = []
    folder = bench.folder.path / "figures"
    of_results = [name for name in names if name in OF_RESULTS]
    if of_results and (bench.folder.runs or only is not None):
        paths += _of_results(bench, systems, folder, of_results)
        without = [name for name in of_results if not any(path.stem == name for path in paths)]
        if without == names:
            raise NotFound(f"nothing is drawn of {', '.join(without)}: {_NO_DATA}", field="only")
        facts += [(name, f"not drawn: {_NO_DATA}") for name in without]
    work = _Work(bench, systems, category, fresh=fresh)
    for name in names:
        if name in _STUDIED:
            with styled():
                figure, told = _STUDIED[name](work)
                paths += save(figure, folder, name)
            facts += told
    return Illustrated(tuple(paths), tuple(facts))


def _checked(only: Collection[str] | None) -> list[str]:
    if only is not None and not only:
        raise InvalidInput(f"no figure is named; there are {', '.join(NAMES)}", field="only")
    for name in only or ():
        if name not in NAMES:
            raise InvalidInput(f"no figure '{name}'; there are {', '.join(NAMES)}", field="only")
    return [name for name in NAMES if only is None or name in only]


def _of_results(bench: Bench, systems: Mapping[str, Factory], folder: Path, names: Collection[str]) -> list[Path]:
    runs, keys = bench.folder.runs, list(systems)
    summary = summary_of(bench.folder, keys, name=bench.dataset.path.resolve().name, runs=runs, command="")
    return draw_named(bench.folder.finished(keys, runs), summary, folder, names)


class _Work:
    """What the figures have in common: a study is made once, a system trained once, and only if it must be."""

    def __init__(self, bench: Bench, systems: Mapping[str, Factory], category: str | None, *, fresh: bool) -> None:
        self._bench = bench
        self._trained = Trained(bench, systems)
        self._category = category
        self._fresh = fresh
        self._observations = Observations(bench.folder.path / "figures" / "data", bench.folder.identity.digest)
        self._found: dict[str, Observation] = {}

    def study(self, name: str, kind: type[_Study]) -> _Study:
        """What the study of this name found; its module is loaded only where it is needed."""
        if name not in self._found:
            module = import_module(f"lookalike.evaluation.studies.{name}")
            kept = None if self._fresh else self._observations.kept(name, kind, module.SETTINGS)
            self._found[name] = kept or self._measured(name, module.measure)
        found = self._found[name]
        assert isinstance(found, kind)
        return found

    def _measured(self, name: str, measure: Callable[[Trained], Observation]) -> Observation:
        """In the folder's hold: what is tuned on the way is kept beside the benchmark's."""
        with self._bench.folder.held():
            return self._observations.keep(name, measure(self._trained))

    def categories(self, found: Mixtures) -> Categories:
        """Of the campaigns in a study."""
        return categories(self._bench.dataset.campaigns(), self._category, found.campaigns)


def _convergence(work: _Work) -> tuple[Figure, Facts]:
    found = work.study("convergence", Convergence)
    facts = []
    for system in found.systems:
        loss, auc = np.array(system.losses).mean(0), np.array(system.aucs).mean(0)
        best = int(auc.argmax())
        course = f"{auc[0]:.4f} to {auc[-1]:.4f}, at best {auc[best]:.4f} after {found.steps[best]} steps"
        facts += [
            (f"convergence, {system.title}, training loss", f"{loss[0]:.4f} to {loss[-1]:.4f}"),
            (f"convergence, {system.title}, AUC", f"{course}, {np.mean(system.stopped):.4f} where it is stopped"),
        ]
    return convergence.draw(found, OURS), facts


def _representations(work: _Work) -> tuple[Figure, Facts]:
    found = work.study("mixtures", Mixtures)
    chosen = work.categories(found)
    facts = [_neighbours("representations", s.title, np.array(s.expertise), chosen) for s in found.systems]
    return mixtures.representations(found, chosen), facts


def _gates(work: _Work) -> tuple[Figure, Facts]:
    found = work.study("mixtures", Mixtures)
    chosen = work.categories(found)
    facts = [_neighbours("gates", s.title, np.array(s.critics), chosen) for s in found.systems]
    return mixtures.gates(found, chosen), facts


def _neighbours(figure: str, title: str, vectors: npt.NDArray[np.float64], chosen: Categories) -> tuple[str, str]:
    near = alike(vectors, chosen.of)
    return (
        f"{figure}, {title}, nearest campaign of the same {chosen.field}",
        f"{near.share:.0%}, by chance {near.chance:.0%}",
    )


def _calibration(work: _Work) -> tuple[Figure, Facts]:
    found = work.study("calibration", Calibration)
    told = calibration.agreement(found)
    facts = [
        ("calibration, campaigns", f"{len(found.forecasts)}, {found.left_out} left out"),
        ("calibration, recall foretold", f"{np.mean([one.foretold.value for one in found.forecasts]):.3f}"),
        ("calibration, recall found", f"{np.mean([one.found.value for one in found.forecasts]):.3f}"),
        ("calibration, bias", told.bias_text),
        ("calibration, correlation", f"{told.correlation:.2f}"),
        ("calibration, may be equal", f"{told.within:.0%} of campaigns"),
    ]
    return calibration.draw(found), facts


_STUDIED: dict[str, Callable[[_Work], tuple[Figure, Facts]]] = {
    "convergence": _convergence,
    "representations": _representations,
    "gates": _gates,
    "calibration": _calibration,
}
