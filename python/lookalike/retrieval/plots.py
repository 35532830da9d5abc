"""Small charts as inline SVG: two axes, lines, bands, labels. Colours are the page's, by class.

Knows numbers and words only, not what they are of.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from lookalike.retrieval.markup import Markup, element, join

WIDTH, HEIGHT = 720, 320
LEFT, RIGHT, TOP, BOTTOM = 62, 18, 26, 46

Values = Sequence[float]


@dataclass(frozen=True)
class Axis:
    """From `low` to `high`; `write` makes a tick's label."""

    label: str
    low: float
    high: float
    write: Callable[[float], str]
    log: bool = False

    def place(self, value: float) -> float:
        """Where a value is, 0 to 1; what is beyond the ends is at them."""
        value = min(max(value, self.low), self.high)
        if self.log:
            return math.log(value / self.low) / math.log(self.high / self.low)
        return (value - self.low) / (self.high - self.low)

    def ticks(self) -> list[float]:
        """Round numbers within the axis, no more than a reader wants."""
        if not self.log:
            return [self.low + (self.high - self.low) * i / 4 for i in range(5)]
        first, last = math.floor(math.log10(self.low)), math.ceil(math.log10(self.high))
        multiples = (1,) if last - first > 3 else (1, 2, 5)
        every = [m * 10.0**e for e in range(first, last + 1) for m in multiples]
        return [tick for tick in every if self.low <= tick <= self.high]


@dataclass(frozen=True)
class Line:
    """Through `ys` at the chart's xs; `kind` is its class."""

    ys: Values
    kind: str
    name: str


@dataclass(frozen=True)
class Band:
    """Between `lows` and `highs` at the chart's xs."""

    lows: Values
    highs: Values
    kind: str


@dataclass(frozen=True)
class Mark:
    """An upright line at `x` with a name above."""

    x: float
    name: str


def chart(
    title: str,
    x: Axis,
    y: Axis,
    xs: Values,
    *,
    lines: Sequence[Line] = (),
    bands: Sequence[Band] = (),
    marks: Sequence[Mark] = (),
) -> Markup:
    """The chart, with a key of its lines below; `title` is what a screen reader says."""
    right, down = WIDTH - LEFT - RIGHT, HEIGHT - TOP - BOTTOM

    def across(value: float) -> float:
        return LEFT + x.place(value) * right

    def up(value: float) -> float:
        return TOP + (1 - y.place(value)) * down

    def path(values: Values, places: Values = xs) -> str:
        return " ".join(f"{across(a):.1f},{up(b):.1f}" for a, b in zip(places, values, strict=True))

    parts = [element("title", title), *_grid(x, y, across, up)]
    for band in bands:
        outline = f"{path(band.highs)} {path(list(reversed(band.lows)), list(reversed(xs)))}"
        parts.append(element("polygon", points=outline, class_=band.kind))
    parts += _marks(marks, across)
    parts += [element("polyline", points=path(line.ys), class_=f"line {line.kind}") for line in lines]
    drawing = element("svg", *parts, viewBox=f"0 0 {WIDTH} {HEIGHT}", role="img", aria_label=title)
    return join(drawing, _key(lines))


def _grid(x: Axis, y: Axis, across: Callable[[float], float], up: Callable[[float], float]) -> list[Markup]:
    parts = []
    for tick in y.ticks():
        parts.append(element("line", x1=LEFT, x2=WIDTH - RIGHT, y1=up(tick), y2=up(tick), class_="grid"))
        parts.append(element("text", y.write(tick), x=LEFT - 8, y=up(tick) + 4, class_="tick end"))
    floor = HEIGHT - BOTTOM
    for tick in x.ticks():
        parts.append(element("line", x1=across(tick), x2=across(tick), y1=floor, y2=floor + 5, class_="axis"))
        parts.append(element("text", x.write(tick), x=across(tick), y=floor + 18, class_="tick middle"))
    parts.append(element("line", x1=LEFT, x2=WIDTH - RIGHT, y1=floor, y2=floor, class_="axis"))
    parts.append(element("text", x.label, x=WIDTH - RIGHT, y=HEIGHT - 8, class_="label end"))
    parts.append(element("text", y.label, x=4, y=13, class_="label"))
    return parts


def _marks(marks: Sequence[Mark], across: Callable[[float], float]) -> list[Markup]:
    """Names that would touch the one before are left to the line alone."""
    parts, free = [], -math.inf
    for mark in sorted(marks, key=lambda mark: mark.x):
        place, half = across(mark.x), 3.6 * len(mark.name)
        parts.append(element("line", x1=place, x2=place, y1=TOP, y2=HEIGHT - BOTTOM, class_="mark"))
        if place - half >= free and place - half > 150:  # there is the label of the y axis
            middle = min(place, WIDTH - half)
            parts.append(element("text", mark.name, x=middle, y=TOP - 8, class_="tick middle"))
            free = middle + half + 6
    return parts


def _key(lines: Sequence[Line]) -> Markup:
    entries = []
    for line in lines:
        sample = element("line", x1=0, x2=26, y1=5, y2=5, class_=f"line {line.kind}")
        drawing = element("svg", sample, viewBox="0 0 26 10", class_="sample", aria_hidden="true")
        entries.append(element("span", drawing, line.name))
    return element("p", *entries, class_="key")


def pair_of_bars(first: float, second: float, most: float) -> Markup:
    """Two shares as bars of one scale, the first above."""
    bars = [
        element("rect", x=0, y=y, width=max(100 * share / most, 0.5), height=5, class_=kind)
        for y, share, kind in ((0, first, "bar ours"), (7, second, "bar theirs"))
    ]
    return element("svg", *bars, viewBox="0 0 100 12", preserveAspectRatio="none", class_="bars", aria_hidden="true")
