"""Colours and markers by name: one palette for all charts, on light and on dark pages."""

from __future__ import annotations

import zlib

from fge.config import ORDER

INK, LINE = "ink", "line"
"""Names of the colours of text and of faint lines."""
PAGE = {
    INK: ("#1c2024", "#e8eaed"),
    LINE: ("#d5d9de", "#3a4048"),
    "paper": ("#ffffff", "#16191d"),
    "soft": ("#f3f5f7", "#20252b"),
    "quiet": ("#555d66", "#a9b1ba"),
    "link": ("#1d4ed8", "#8ab4ff"),
    "shadow": ("#9aa3ad", "#6b7480"),
}
"""Colours of a page that are no series', on light and on dark."""
_METHODS = {
    "single": ("#6b7280", "#9ca3af"),
    "average": ("#115e59", "#5fd0c5"),
    "ema": ("#9333ea", "#c4b5fd"),
    "swa": ("#15803d", "#4ade80"),
    "fge-paper": ("#3b82f6", "#a5c8ff"),
    "fge": ("#1d4ed8", "#7aa2ff"),
    "fge+refit": ("#0e7490", "#22d3ee"),
    "fold": ("#65a30d", "#bef264"),
    "sse": ("#d97706", "#fbbf24"),
    "csgld": ("#854d0e", "#d6a46a"),
    "star": ("#c026d3", "#e879f9"),
    "split": ("#ea580c", "#fb923c"),
    "auto": ("#4f46e5", "#818cf8"),
    "deep-ensemble": ("#dc2626", "#f87171"),
    "deep-ensemble-averaged": ("#7f1d1d", "#fecaca"),
    "curve-ensemble": ("#db2777", "#f472b6"),
    "curve-ensemble-2B": ("#111827", "#f3f4f6"),
}
"""Of the methods of :data:`fge.config.ORDER`: a method keeps its colour when others are added."""
assert tuple(_METHODS) == ORDER
_OTHERS = (
    ("#b45309", "#fdba74"),
    ("#4338ca", "#a5b4fc"),
    ("#0f766e", "#5eead4"),
    ("#be123c", "#fda4af"),
    ("#0369a1", "#7dd3fc"),
    ("#a16207", "#fde047"),
    ("#7e22ce", "#d8b4fe"),
    ("#166534", "#86efac"),
)
SERIES = {f"series-{k}": pair for k, pair in enumerate((*_METHODS.values(), *_OTHERS), start=1)}
_ORANGE, _INDIGO, _TEAL, _ROSE = range(4)
_CIRCLE, _SQUARE = 1, 2
_FIXED = {
    "last-snapshot": (_ORANGE, _SQUARE),
    "snapshot": (_ORANGE, _SQUARE),
    "segment": (_INDIGO, _CIRCLE),
    "top eigenvalue": (_INDIGO, _CIRCLE),
    "random-direction": (_TEAL, _CIRCLE),
    "random-at-angle": (_ROSE, _CIRCLE),
    "same-gram-arc": (_ORANGE, _CIRCLE),
}
"""Colour among the others, and marker, of names that are no methods."""
_MARKERS = (
    ("D", "diamond"),
    ("o", "circle"),
    ("s", "square"),
    ("^", "triangle-up"),
    ("v", "triangle-down"),
    ("P", "cross"),
    ("X", "x"),
    ("<", "triangle-left"),
    ("*", "star"),
    ("p", "pentagon"),
    (">", "triangle-right"),
    ("d", "diamond-tall"),
    ("h", "hexagon2"),
    ("H", "hexagon"),
    ("8", "octagon"),
    ("$\\bowtie$", "bowtie"),
    ("$\\star$", "hexagram"),
)
"""As matplotlib and as plotly call them."""
_MARKER_OF = {
    name: place
    for place, name in enumerate(
        (
            *("single", "fge", "fge+refit", "swa", "fold", "sse", "csgld", "ema", "deep-ensemble"),
            *("curve-ensemble", "curve-ensemble-2B", "average", "fge-paper", "star", "split"),
            *("auto", "deep-ensemble-averaged"),
        )
    )
}


def colour_of(name: str) -> str:
    """Return the key of a name's colour: a method's own, or one that depends only on the name.

    >>> colour_of("fge"), colour_of("ink")
    ('series-6', 'ink')
    """
    if name in PAGE:
        return name
    if name in ORDER:
        return f"series-{ORDER.index(name) + 1}"
    return f"series-{len(_METHODS) + _own_style(name)[0] + 1}"


def light(name: str) -> str:
    """Return the colour of a name on white, for static figures.

    >>> light("fge")
    '#1d4ed8'
    """
    return (PAGE | SERIES)[colour_of(name)][0]


def variable(name: str) -> str:
    """Return the colour of a name on a page, as a CSS variable with values for light and dark.

    >>> variable("fge")
    'var(--series-6)'
    """
    return f"var(--{colour_of(name)})"


def marker_of(name: str) -> tuple[str, str]:
    """Return the marker of a name, as matplotlib and as plotly call it."""
    return _MARKERS[_MARKER_OF[name] if name in _MARKER_OF else _own_style(name)[1]]


def _own_style(name: str) -> tuple[int, int]:
    """Return the positions of colour and marker for a name that is not a method."""
    marker, colour = divmod(zlib.crc32(name.encode()), len(_OTHERS))
    return _FIXED.get(name, (colour, marker % len(_MARKERS)))


def variables(*, dark: bool) -> str:
    """Return the colours as declarations of CSS."""
    return " ".join(f"--{key}: {pair[dark]};" for key, pair in (PAGE | SERIES).items())
