"""Training loss and AUC while campaigns are adapted to: the paper's Figure 3a and 3b. Knows what the study found."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from lookalike.evaluation.figures.style import COLOURS, DASHES, OURS
from lookalike.evaluation.observations import Convergence, Followed

Floats = npt.NDArray[np.float64]
Look = tuple[str, str | tuple[int, tuple[int, ...]]]


def draw(found: Convergence, ours: str) -> Figure:
    """Means over campaigns. A fit that ends by itself is drawn up to its end, a marker a step, and dotted from there.

    At the right edge of the AUC: what a system comes to where it is stopped, as in the table.

    Args:
        ours: the key of the system that is drawn in black.
    """
    figure = Figure(figsize=(6.8, 3.2), layout="constrained")
    loss, auc = figure.subplots(1, 2)
    looks = iter(zip(COLOURS, DASHES, strict=False))
    for system in found.systems:
        look = (OURS, "-") if system.key == ours else next(looks)
        _curve(loss, found, system, np.array(system.losses).mean(0), look)
        _curve(auc, found, system, np.array(system.aucs).mean(0), look)
        end = (found.steps[-1], float(np.mean(system.stopped)))
        auc.plot(*end, marker="<", markersize=5, color=look[0], clip_on=False, zorder=3)
    loss.set_ylabel("training loss")
    auc.set_ylabel("AUC of the later audience")
    for axes, letter in ((loss, "a"), (auc, "b")):
        axes.set_title(letter, loc="left", fontweight="bold", fontsize=9)
        axes.set_xlabel("iterations")
        axes.set_xlim(0, found.steps[-1])
    handles, labels = loss.get_legend_handles_labels()
    handles.append(Line2D([], [], marker="<", markersize=5, color="grey", linestyle=""))
    figure.legend(handles, [*labels, "where held-out seeds stop it"], loc="outside lower center", ncols=3, fontsize=7)
    return figure


def _curve(axes: Axes, found: Convergence, system: Followed, mean: Floats, look: Look) -> None:
    colour, dashes = look
    steps = np.array(found.steps)
    ends = [end for end in system.ended if end is not None]
    if len(ends) < len(system.ended):
        axes.plot(steps, mean, color=colour, linestyle=dashes, linewidth=1.3, label=system.title)
        return
    until = int(np.searchsorted(steps, max(ends))) + 1
    label = f"{system.title}: Newton steps"
    axes.plot(steps[:until], mean[:until], color=colour, marker="o", markersize=2.5, linewidth=1.3, label=label)
    axes.plot(steps[until - 1 :], mean[until - 1 :], color=colour, linestyle=":", linewidth=1.0)
