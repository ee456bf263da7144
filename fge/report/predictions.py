"""Predictions on new images as their page shows them: tables, a sentence, how sure they are."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

import numpy as np
from matplotlib.figure import Figure
from numpy.typing import NDArray

from fge.metrics import entropy
from fge.report.interactive import COLOURS, Plot, layout, numbers
from fge.report.page import Table
from fge.report.plots import ENSEMBLE

UNCERTAIN = 20
"""Images in the table of the least certain ones."""
_BINS = 20
_AXES = ("largest probability", "images")


def predictions_verdict(probs: NDArray[np.float64], what: str) -> str:
    """Say how many images were predicted, by what, and how sure that is.

    Args:
        probs: (N, C), rows sum to 1.
        what: was applied.
    """
    sure = probs.max(axis=1)
    return (
        f"{len(probs)} images, predicted by {what}: largest probability {sure.mean():.3f} on "
        f"average, {sure.min():.3f} at least; entropy {entropy(probs).mean():.3f} nats on average. "
        "Their classes are not known, so nothing is said of errors."
    )


def class_table(probs: NDArray[np.float64], classes: Sequence[str]) -> Table:
    """Return how many images each class was predicted for, and how surely.

    Args:
        probs: (N, C), rows sum to 1.
        classes: names of the C classes.
    """
    labels, sure, mixed = probs.argmax(axis=1), probs.max(axis=1), entropy(probs)
    rows = []
    for label, name in enumerate(classes):
        own = labels == label
        means = [f"{values[own].mean():.3f}" if own.any() else "-" for values in (sure, mixed)]
        rows.append([name, str(own.sum()), f"{100 * own.mean():.1f}", *means])
    return Table(
        "Predicted classes",
        ["class", "images", "% of all", "mean largest probability", "mean entropy"],
        rows,
        "The class of an image is its most probable one; entropy in nats.",
    )


def uncertain_table(
    probs: NDArray[np.float64], names: Sequence[str], classes: Sequence[str]
) -> Table:
    """Return the images with the lowest largest probability, the least certain first.

    Args:
        probs: (N, C), rows sum to 1.
        names: of the N images.
        classes: names of the C classes.
    """
    mixed = entropy(probs)
    rows = []
    for image in np.argsort(probs.max(axis=1), kind="stable")[:UNCERTAIN]:
        first, *others = np.argsort(-probs[image], kind="stable")[:2]
        cells = [names[image], classes[first], f"{probs[image, first]:.3f}"]
        second = [classes[label] for label in others] or ["-"]
        found = [f"{probs[image, label]:.3f}" for label in others] or ["-"]
        rows.append([*cells, *second, *found, f"{mixed[image]:.3f}"])
    headings = ["image", "class", "probability", "next class", "its probability", "entropy"]
    return Table("The least certain images", headings, rows)


def confidence_figure(probs: NDArray[np.float64]) -> Figure:
    """Draw how many images have which largest probability.

    Args:
        probs: (N, C), rows sum to 1.
    """
    figure = Figure(figsize=(7.5, 3.5), layout="constrained")
    axes = figure.subplots()
    counts, edges = _histogram(probs)
    axes.stairs(counts, edges, fill=True, color=ENSEMBLE)
    axes.set(xlabel=_AXES[0], ylabel=_AXES[1], xlim=(0, 1))
    axes.spines[["top", "right"]].set_visible(False)
    return figure


def confidence_plot(probs: NDArray[np.float64]) -> Plot:
    """Return :func:`confidence_figure` as an interactive plot."""
    counts, edges = _histogram(probs)
    bars = {
        "type": "bar",
        "x": numbers((edges[:-1] + edges[1:]) / 2),
        "y": counts.tolist(),
        "width": numbers(np.diff(edges)),
        "marker": {"color": COLOURS[0]},
        "text": [f"{low:.2f} to {high:.2f}" for low, high in pairwise(edges)],
        "textposition": "none",
        "hovertemplate": "%{text}<br>%{y} images<extra></extra>",
    }
    found = layout(_AXES[0], [_AXES[1]], height=360)
    found["xaxis"] |= {"range": [0, 1]}
    return Plot([bars], found)


def _histogram(probs: NDArray[np.float64]) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
    # Rounding may carry a probability past 1, where no bin is.
    return np.histogram(np.minimum(probs.max(axis=1), 1), bins=_BINS, range=(0, 1))
