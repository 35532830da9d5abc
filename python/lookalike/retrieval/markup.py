"""HTML and SVG out of elements: text is escaped because it is text, not because somebody thought of it.

Knows nothing of what is shown.
"""

from __future__ import annotations

import html
from typing import TypeAlias

from lookalike.errors import visible


class Markup(str):
    """Markup that `element` made; any other `str` is text."""

    __slots__ = ()


Part: TypeAlias = "Markup | str | None"

_VOID = frozenset({"meta", "br", "hr"})


def element(tag: str, *parts: Part, **attributes: str | float | None) -> Markup:
    """`<tag attributes>parts</tag>`.

    `class_` is class, and a `_` in a name is a `-`; what is None is left out; numbers have two decimals at most.
    """
    shown = "".join(
        f' {name.rstrip("_").replace("_", "-")}="{html.escape(visible(_text(value)))}"'
        for name, value in attributes.items()
        if value is not None
    )
    if tag in _VOID:
        return Markup(f"<{tag}{shown}>")
    return Markup(f"<{tag}{shown}>{join(*parts)}</{tag}>")


def join(*parts: Part) -> Markup:
    """The parts one after the other."""
    return Markup(
        "".join(part if isinstance(part, Markup) else html.escape(visible(part)) for part in parts if part is not None)
    )


def _text(value: str | float) -> str:
    return value if isinstance(value, str) else f"{value:.2f}".rstrip("0").rstrip(".")
