"""What experts and critics make of campaigns: the paper's Figure 3c and 3d. Knows what the study found."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
from matplotlib.axes import Axes
from matplotlib.colors import Normalize
from matplotlib.figure import Figure
from matplotlib.image import AxesImage

from lookalike.evaluation.categories import Categories, alike
from lookalike.evaluation.figures.style import COLOURS, MARKERS, REST
from lookalike.evaluation.observations import Mixtures, SeenBy


def representations(found: Mixtures, categories: Categories) -> Figure:
    """A map for each system: a point a campaign, its seeds' mean mixed expertise; near is alike, axes mean nothing."""
    figure = Figure(figsize=(3.1 * len(found.systems) + 0.6, 3.5), layout="constrained")
    panels = figure.subplots(1, len(found.systems), squeeze=False).ravel()
    of = np.array(categories.of)
    rest = ~np.isin(of, categories.shown)
    for panel, system in zip(panels, found.systems, strict=True):
        points = np.array(system.points)
        for value, colour, marker in zip(categories.shown, COLOURS, MARKERS, strict=False):
            panel.scatter(*points[of == value].T, s=13, color=colour, marker=marker, linewidths=0, label=value)
        if rest.any():
            panel.scatter(*points[rest].T, s=7, color=REST, marker=".", linewidths=0, label="others", zorder=0.5)
        near = alike(np.array(system.expertise), categories.of)
        note = f"nearest of the same {categories.field}: {near.share:.0%}, by chance {near.chance:.0%}"
        panel.set_title(f"{system.title}\n{note}", fontsize=7)
        panel.set_xticks([])
        panel.set_yticks([])
        for spine in panel.spines.values():
            spine.set_visible(True)
    handles, labels = panels[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=7, title=categories.field, fontsize=7)
    return figure


def gates(found: Mixtures, categories: Categories) -> Figure:
    """A heat map for each system: critics by campaigns, those of one category side by side.

    Colours show by how much a weight differs from the critic's mean, which is beside its name: the means differ more
    than the campaigns do, and would hide them.
    """
    of = np.array(categories.of)
    order = np.concatenate([np.flatnonzero(of == value) for value in categories.shown])
    sizes = [int((of == value).sum()) for value in categories.shown]
    heights = [len(system.critics[0]) for system in found.systems]
    figure = Figure(figsize=(6.8, 0.22 * sum(heights) + 0.75 * len(heights) + 0.6), layout="constrained")
    panels = figure.subplots(len(heights), 1, squeeze=False, height_ratios=heights).ravel()
    for panel, system in zip(panels, found.systems, strict=True):
        image = _heat(panel, system, order, sizes)
        figure.colorbar(image, ax=panel, label="weight - mean")
    middles = np.cumsum(sizes) - np.array(sizes) / 2 - 0.5
    panels[-1].set_xticks(middles, categories.shown, fontsize=7, rotation=30, ha="right", rotation_mode="anchor")
    panels[-1].set_xlabel(f"campaigns by {categories.field}")
    return figure


def _heat(panel: Axes, system: SeenBy, order: npt.NDArray[np.int64], sizes: list[int]) -> AxesImage:
    weights = np.array(system.critics)[order].T  # [m, campaigns]
    means = weights.mean(1, keepdims=True)
    most = float(np.abs(weights - means).max()) or 1.0
    # Orange to purple is told apart by all; white, the middle, is the lightest in print.
    image = panel.imshow(
        weights - means, aspect="auto", interpolation="nearest", cmap="PuOr", norm=Normalize(-most, most)
    )
    for edge in np.cumsum(sizes)[:-1]:
        panel.axvline(edge - 0.5, color="black", linewidth=0.8)
    panel.grid(visible=False)
    panel.set_title(system.title, fontsize=8, loc="left")
    panel.set_ylabel("critics (mean)")
    panel.set_xticks([])
    panel.set_yticks(range(len(weights)), [f"{i + 1} ({mean:.2f})" for i, mean in enumerate(means[:, 0])], fontsize=7)
    return image
