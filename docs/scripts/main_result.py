"""Draw the picture of the main result: ``docs/main-result.png``.

    python docs/scripts/main_result.py

The learning rate of the default job with ``--average 0``, and what each of its seeds came to on the
test set, from ``benchmarks/results/default_job_paper.json``.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import matplotlib
import torch

import fge

matplotlib.use("agg")
from matplotlib import pyplot as plt
from matplotlib.axes import Axes

DOCS = Path(__file__).resolve().parent.parent
RESULTS = DOCS.parent / "benchmarks" / "results" / "default_job_paper.json"
EPOCHS, START, CYCLE_EPOCHS, STEPS = 100, 75, 10, 20
"""The default job; ``STEPS`` per epoch are enough for the picture."""
BASE_LR, MAX_LR, MIN_LR = 0.2, 0.05, 0.001
INK, MUTED, BLUE, ORANGE = "#1a1a2e", "#6b7280", "#1f4fd8", "#d97706"


def learning_rates() -> tuple[list[float], list[float]]:
    """Return epochs and learning rates of the default job, step by step."""
    parameter = [torch.nn.Parameter(torch.zeros(1))]
    optimizer = torch.optim.SGD(parameter, lr=BASE_LR)
    start = fge.EndpointLR(optimizer, epochs=EPOCHS, steps_per_epoch=STEPS)
    rates = []
    for _ in range(START * STEPS):
        rates.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        start.step()
    cycles = fge.TriangularLR(
        optimizer, max_lr=MAX_LR, min_lr=MIN_LR, cycle_steps=CYCLE_EPOCHS * STEPS
    )
    for _ in range(START * STEPS, EPOCHS * STEPS + 1):
        rates.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        cycles.step()
    return [step / STEPS for step in range(len(rates))], rates


def figures_of(runs: list[dict[str, Any]], name: str, key: str) -> list[float]:
    """Return one figure of a method, with as many members as it has, for every seed."""
    found = []
    for run in runs:
        lines = [method for method in run["methods"] if method["name"] == name]
        found.append(max(lines, key=lambda line: line["members"])[key])
    return found


def draw_schedule(axes: Axes) -> None:
    """Draw the learning rate, with the moments at which a snapshot is kept."""
    epochs, rates = learning_rates()
    axes.plot(epochs, rates, color=INK)
    kept = range(START + CYCLE_EPOCHS // 2, EPOCHS + 1, CYCLE_EPOCHS)
    axes.plot(kept, [MIN_LR] * len(kept), "o", color=BLUE, label="snapshot", clip_on=False)
    axes.axvline(START, color=MUTED, linewidth=0.8, linestyle=":")
    axes.set(xlabel="epoch", ylabel="learning rate", xlim=(0, EPOCHS), ylim=(0, 0.21))
    axes.set_title("One run: the last quarter cycles")
    axes.legend(frameon=False, loc="lower left")


def draw_pairs(axes: Axes, runs: list[dict[str, Any]], key: str, label: str, title: str) -> None:
    """Draw a line per seed, from the single network to the ensemble."""
    single, ensemble = figures_of(runs, "single", key), figures_of(runs, "fge", key)
    for left, right in zip(single, ensemble, strict=True):
        axes.plot([0, 1], [left, right], "o-", color=BLUE if right < left else ORANGE)
    axes.set(xticks=[0, 1], xlim=(-0.35, 1.35), ylabel=label)
    axes.set_xticklabels(["single network\n1 pass", "FGE, 3 members\n3 passes"])
    better = sum(b < a for a, b in zip(single, ensemble, strict=True))
    axes.set_title(f"{title}: lower for {better} of {len(runs)} seeds")


def main() -> None:
    """Draw the picture."""
    runs = json.loads(RESULTS.read_text(encoding="utf-8"))
    plt.rcParams |= {"font.size": 10, "axes.titlesize": 10.5, "axes.titlelocation": "left"}
    figure, axes = plt.subplot_mosaic(
        [["schedule", "schedule"], ["nll", "error"]],
        figsize=(6.6, 5),
        layout="constrained",
        height_ratios=[0.7, 1],
    )
    draw_schedule(axes["schedule"])
    draw_pairs(axes["nll"], runs, "nll", "test NLL (nats per image)", "NLL")
    draw_pairs(axes["error"], runs, "error", "test error (%)", "Error")
    for one in axes.values():
        one.spines[["top", "right"]].set_visible(False)
    figure.savefig(DOCS / "main-result.png", dpi=130)


if __name__ == "__main__":
    main()
