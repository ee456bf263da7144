"""The page of predictions on new images: tables, a sentence and a chart."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

from fge.config import FGE
from fge.metrics import entropy
from fge.report.charts import Bars, Chart, Panel
from fge.report.page import Table
from fge.report.pictures import least_certain

UNCERTAIN = 20
"""Images in the table of the least certain ones."""
_BINS = 20
Columns = Callable[[NDArray[np.int64]], Mapping[str, Sequence[str]]]


def predictions_verdict(probs: NDArray[np.float64], what: str, example: str = "image") -> list[str]:
    """Say how many images were predicted, by what, and how sure that is.

    Args:
        probs: (N, C), rows sum to 1.
        what: was applied.
        example: what was predicted: image or row.
    """
    sure = probs.max(axis=1)
    return [
        f"{len(probs)} {example}s, predicted by {what}: the mean largest probability is "
        f"{sure.mean():.3f}, the lowest {sure.min():.3f}.",
        f"The mean entropy is {entropy(probs).mean():.3f} nats. The true classes are unknown, so "
        "the error is unknown.",
    ]


def class_table(
    probs: NDArray[np.float64], classes: Sequence[str], example: str = "image"
) -> Table:
    """Return how many images each class was predicted for, and how surely.

    Args:
        probs: (N, C), rows sum to 1.
        classes: names of the C classes.
        example: what was predicted: image or row.
    """
    labels, sure, mixed = probs.argmax(axis=1), probs.max(axis=1), entropy(probs)
    rows = []
    for label, name in enumerate(classes):
        own = labels == label
        means = [f"{values[own].mean():.3f}" if own.any() else "-" for values in (sure, mixed)]
        rows.append([name, str(own.sum()), f"{100 * own.mean():.1f}", *means])
    return Table(
        "Predicted classes",
        ["class", f"{example}s", "% of all", "mean largest probability", "mean entropy"],
        rows,
        f"The class of {'an' if example == 'image' else 'a'} {example} is its most probable one; "
        "entropy in nats.",
    )


def uncertain_table(
    probs: NDArray[np.float64],
    names: Sequence[str],
    classes: Sequence[str],
    example: str = "image",
    more: Mapping[str, Callable[[int], str]] | None = None,
    columns: Columns | None = None,
) -> Table:
    """Return the images with the lowest largest probability, the least certain first.

    Args:
        probs: (N, C), rows sum to 1.
        names: of the N images.
        classes: names of the C classes.
        example: what was predicted: image or row.
        more: by heading, the cells of further columns.
        columns: returns, by heading, the values of some rows of a table.
    """
    mixed = entropy(probs)
    cells_of, order = dict(more or {}), least_certain(probs, UNCERTAIN)
    given = columns(order) if columns else {}
    rows = []
    for place, image in enumerate(order):
        first, *others = np.argsort(-probs[image], kind="stable")[:2]
        own = [values[place] for values in given.values()]
        cells = [names[image], *own, classes[first], f"{probs[image, first]:.3f}"]
        second = [classes[label] for label in others] or ["-"]
        found = [f"{probs[image, label]:.3f}" for label in others] or ["-"]
        rows.append([*cells, *second, *found, f"{mixed[image]:.3f}"])
        rows[-1] += [cell(int(image)) for cell in cells_of.values()]
    headings = [example, *given, "class", "probability", "next class", "its probability", "entropy"]
    return Table(f"The least certain {example}s", [*headings, *cells_of], rows)


def confidence_chart(probs: NDArray[np.float64], example: str = "image") -> Chart:
    """Return how many images have which largest probability.

    Args:
        probs: (N, C), rows sum to 1.
        example: what was predicted: image or row.
    """
    # Rounding may make a probability larger than 1, outside all bins.
    sure = np.minimum(probs.max(axis=1), 1)
    counts, edges = np.histogram(sure, bins=_BINS, range=(0, 1))
    bars = Bars(FGE, edges.tolist(), counts.tolist())
    return Chart(
        "largest probability", [Panel(f"{example}s", bars=bars)], limits=(0.0, 1.0), height=380
    )
