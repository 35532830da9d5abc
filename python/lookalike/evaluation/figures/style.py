"""What all figures have in common: colours, and files that are the same bytes each time.

Knows matplotlib only.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from io import BytesIO
from pathlib import Path
from typing import Any

import matplotlib as mpl
from matplotlib.figure import Figure

from lookalike.files import write_whole

# Okabe and Ito's, told apart by people who are colour-blind; black is kept for ours. Dashes and markers tell them apart
# in print.
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9")
DASHES: tuple[str | tuple[int, tuple[int, ...]], ...] = ("-", "--", "-.", ":", (0, (3, 1, 1, 1, 1, 1)))
MARKERS = ("o", "s", "^", "D", "v", "P")
OURS = "black"
REST = "#BBBBBB"  # what is there but not told apart
_STYLE: dict[Any, Any] = {
    "axes.axisbelow": True,
    "axes.grid": True,
    "axes.spines.right": False,
    "axes.spines.top": False,
    "font.size": 8,
    "grid.alpha": 0.3,
    "legend.frameon": False,
    "svg.hashsalt": "lookalike",  # ids in the file are random without it
}


@contextmanager
def styled() -> Iterator[None]:
    """The style of all figures, whatever the user's own is."""
    with mpl.rc_context():
        mpl.rcdefaults()
        mpl.rcParams.update(_STYLE)
        yield


def save(figure: Figure, folder: Path, name: str) -> list[Path]:
    """`NAME.png` and `NAME.svg`, without a date or a version: same figure, same bytes. Returns their paths."""
    folder.mkdir(parents=True, exist_ok=True)
    paths = [folder / f"{name}.{kind}" for kind in ("png", "svg")]
    for path, metadata in zip(paths, ({"Software": None}, {"Date": None, "Creator": None}), strict=True):
        content = BytesIO()
        figure.savefig(content, format=path.suffix[1:], dpi=200, metadata=metadata)
        write_whole(path, content.getvalue())
    return paths
