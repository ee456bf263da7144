"""Schedules for task R of ``benchmarks/pays.py``, judged without its test rows.

    python benchmarks/search_rows.py

The 1,200 rows that are no test rows are divided into six parts; each in turn judges networks that
are trained on the others, with three seeds that ``pays.py`` does not use. Schedules of 100 epochs
are compared with the conventional one, paired over parts and seeds. The results are printed as
Markdown and kept in ``benchmarks/results/search_rows.json``.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch
from pays_rows import EPOCHS, FINAL, TAIL, Data, Loop, read_data
from torch import Tensor

from fge import metrics
from fge.files import write_json
from fge.train import ClosedFormLR, EndpointLR, LinearTailLR

RESULTS = Path(__file__).parent / "results" / "search_rows.json"
PARTS, SEEDS = 6, (100, 101, 102)
FIRST = 25
SCHEDULES: dict[str, tuple[tuple[int, float, float], ...]] = {
    "conventional": (),
    "linear": ((EPOCHS, FINAL, 0.0),),
    "linear, half held": ((EPOCHS, FINAL, 0.5),),
    "linear, three quarters held": ((EPOCHS, FINAL, 0.75),),
    "constant": ((EPOCHS, 1.0, 0.0),),
    "linear after 25": ((FIRST, FINAL, 0.0), (EPOCHS - FIRST, FINAL, 0.0)),
    "half held after 25": ((FIRST, FINAL, 0.0), (EPOCHS - FIRST, FINAL, 0.5)),
    "three quarters held after 25": ((FIRST, FINAL, 0.0), (EPOCHS - FIRST, FINAL, 0.75)),
}
"""Descents, one after the other: epochs, the last rate as a part of the first, and what is held."""


def parts() -> Iterator[Data]:
    """Return the data with each part in turn to judge."""
    data = read_data()
    inputs, targets = (torch.cat(both) for both in zip(data.train, data.val, strict=True))
    part = torch.arange(len(targets)) * PARTS // len(targets)
    for number in range(PARTS):
        judged, trained = part == number, part != number
        rows = (inputs[judged], targets[judged])
        yield Data((inputs[trained], targets[trained]), rows, rows)


def judged(data: Data, seed: int, name: str) -> Tensor:
    """Train a network; return its probabilities for the rows that judge."""
    loop, probs = Loop(data, seed), torch.empty(0)
    steps = loop.steps_per_epoch
    if not SCHEDULES[name]:
        usual = EndpointLR(loop.optimizer, epochs=EPOCHS, steps_per_epoch=steps)
        return next(loop.train(usual, EPOCHS))
    for epochs, final, hold in SCHEDULES[name]:
        schedule: ClosedFormLR = LinearTailLR(
            loop.optimizer, steps=epochs * steps, final=final, hold=hold
        )
        probs = next(loop.train(schedule, epochs, TAIL))
    return probs


def main() -> None:
    """Measure all schedules, print and keep the results."""
    torch.set_num_threads(1)
    losses: dict[str, list[float]] = {name: [] for name in SCHEDULES}
    errors: dict[str, list[float]] = {name: [] for name in SCHEDULES}
    for data in parts():
        for seed in SEEDS:
            for name in SCHEDULES:
                probs, targets = judged(data, seed, name), data.test[1]
                calibrated = metrics.tempered_nll_per_example(probs, targets)
                losses[name].append(float(calibrated.mean()))
                errors[name].append(metrics.error(probs, targets))
    print("| schedule | error % | cal. NLL | cal. NLL - conventional |")
    print("| :-- | --: | --: | --: |")
    content = {}
    for name, values in losses.items():
        change = np.array(values) - losses["conventional"]
        spread = float(change.std(ddof=1) / math.sqrt(len(change)))
        error, nll = float(np.mean(errors[name])), float(np.mean(values))
        print(f"| {name} | {error:.2f} | {nll:.4f} | {change.mean():+.4f} ± {spread:.4f} |")
        content[name] = {
            "error": error,
            "calibrated_nll": nll,
            "difference": float(change.mean()),
            "standard_error": spread,
        }
    write_json(RESULTS, {"parts": PARTS, "seeds": SEEDS, "schedules": content})


if __name__ == "__main__":
    main()
