"""What several test files ask of interactive plots."""

from __future__ import annotations

import json
from typing import Any

import plotly.graph_objects as go
from matplotlib.colors import to_rgb

from fge.report import Plot


def check_plot(plot: Plot) -> None:
    """Check that plotly knows each attribute, and that JSON holds every number."""
    go.Figure({"data": list(plot.data), "layout": dict(plot.layout)})
    json.dumps({"data": plot.data, "layout": plot.layout}, allow_nan=False)


def pairs(trace: Any) -> list[tuple[float, float]]:
    return list(zip(trace["x"], trace["y"], strict=True))


def luminance(colour: str) -> float:
    """Of WCAG 2.1."""
    parts = [c / 12.92 if c <= 0.03928 else ((c + 0.055) / 1.055) ** 2.4 for c in to_rgb(colour)]
    return 0.2126 * parts[0] + 0.7152 * parts[1] + 0.0722 * parts[2]
