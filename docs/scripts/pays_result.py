"""Draw the picture of what pays: ``docs/pays-result.png``.

    python docs/scripts/pays_result.py

What ``--plan auto`` (``auto``) changes against one conventional network of the same budget, on each
task of ``benchmarks/pays.py`` that is measured, from ``benchmarks/results/pays``.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("agg")
from matplotlib import pyplot as plt
from matplotlib.axes import Axes

DOCS = Path(__file__).resolve().parent.parent
RESULTS = DOCS.parent / "benchmarks" / "results" / "pays"
TASKS = {
    "S": "100 epochs, no augmentation",
    "L": "300 epochs, augmented",
    "U": "100 epochs, augmented",
    "C": "CIFAR-10, 60 epochs",
    "A": "fine-tuning, AdamW",
    "F": "fine-tuning, SGD",
    "R": "digits, perceptron",
}
PANELS = {"error": "test error: change in points", "calibrated_nll": "calibrated NLL: change"}
INK, MUTED, BLUE, ORANGE = "#1a1a2e", "#6b7280", "#1f4fd8", "#d97706"


def read(task: str) -> tuple[dict[str, Any], dict[str, dict[str, float]]]:
    """Return the row of ``auto``, and its interval against ``single`` by metric."""
    content = json.loads((RESULTS / task / "compare.json").read_text(encoding="utf-8"))
    row = next(method for method in content["methods"] if method["name"] == "auto")
    intervals = {
        found["metric"]: found["interval"]
        for found in content["differences"]
        if (found["method"], found["baseline"], found["budget"]) == ("auto", "single", 1)
    }
    return row, intervals


def label(task: str, row: dict[str, Any]) -> str:
    """Return what a line of the picture is about."""
    passes = f"{row['forward_passes']:.1f}".removesuffix(".0")
    plural = "" if passes == "1" else "es"
    return f"{task}: {TASKS[task]}\n{len(row['seeds'])} seeds, {passes} pass{plural}"


def draw(axes: Axes, intervals: list[dict[str, float]], title: str) -> None:
    """Draw the intervals of one metric, a line for each task."""
    for place, found in enumerate(intervals):
        low, high = found["low"], found["high"]
        color = BLUE if high < 0 else ORANGE if low > 0 else MUTED
        axes.plot([low, high], [place, place], color=color, linewidth=2.2)
        axes.plot(found["difference"], place, "o", color=color)
    axes.axvline(0, color=INK, linewidth=0.8, linestyle=":")
    axes.set_title(title)
    axes.spines[["top", "right", "left"]].set_visible(False)
    axes.tick_params(axis="y", length=0)


def main() -> None:
    """Draw the picture."""
    read_tasks = {task: read(task) for task in TASKS}
    plt.rcParams |= {"font.size": 10, "axes.titlesize": 10.5, "axes.titlelocation": "left"}
    figure, panels = plt.subplots(1, 2, figsize=(7.6, 4.4), sharey=True, layout="constrained")
    for axes, (metric, title) in zip(panels, PANELS.items(), strict=True):
        draw(axes, [intervals[metric] for _, intervals in read_tasks.values()], title)
    panels[0].set_yticks(range(len(TASKS)), [label(t, row) for t, (row, _) in read_tasks.items()])
    panels[0].invert_yaxis()  # the other panel shares it
    figure.supxlabel(
        "against one conventional network of the same budget, with 95 % intervals; "
        "left of 0 is better",
        fontsize=10,
    )
    figure.savefig(DOCS / "pays-result.png", dpi=130)


if __name__ == "__main__":
    main()
