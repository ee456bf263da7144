"""The three objectives of a curve fit at equal budget, between real networks.

    python benchmarks/objectives.py [--seeds 0 1 2] [--epochs 40] [--fit-epochs 20]

For each seed two networks are trained on ``fashion-mnist-mini`` by recipe G, and connected three
times, with ``--objective uniform``, ``arclength`` and ``minmax`` and the same number of epochs.
The table shows the training loss (images without augmentation, batch-norm statistics estimated at
each of 31 points): mean over t, mean over the curve's length, maximum; the curve's length as a
multiple of the distance between the networks; the largest test error. Values are means over seeds,
with the mean difference from ``uniform`` and its 95 % interval, seeds paired. Finished runs are not
run again; raw results are in ``benchmarks/results/objectives.json``.
"""

from __future__ import annotations

import argparse
import json
import statistics
from pathlib import Path
from typing import Any

from scipy import stats

from fge.commands.curves import connect, curve_ensemble
from fge.config import ConnectConfig, CurveEnsembleConfig
from fge.files import write_json

RESULTS = Path(__file__).parent / "results" / "objectives.json"
OBJECTIVES = ("uniform", "arclength", "minmax")
FIGURES = ("mean over t", "mean over length", "maximum", "length / distance", "max test error")


def networks(seed: int, epochs: int, out: Path, speed: dict[str, Any]) -> tuple[Path, ...]:
    """Train the two networks of a seed, unless they exist; return their files."""
    folder = out / f"networks-{seed}"
    if not (folder / "report.json").exists():
        curve_ensemble(
            CurveEnsembleConfig(
                out=folder,
                epochs=epochs,
                curve_epochs=1,
                eval_points=3,
                first="G",
                second="G",
                seed=seed,
                resume=(folder / "config.json").exists(),
                **speed,
            )
        )
    return tuple(folder / "networks" / name / "network/0001.safetensors" for name in ("G-1", "G-2"))


def fit(
    seed: int, objective: str, weights: tuple[Path, ...], options: argparse.Namespace
) -> dict[str, Any]:
    """Connect the networks of a seed, unless that is done; return the results."""
    folder = options.out / f"{objective}-{seed}"
    if not (folder / "report.json").exists():
        connect(
            ConnectConfig(
                out=folder,
                weights=weights,
                objective=objective,  # type: ignore[arg-type]
                epochs=options.fit_epochs,
                eval_points=31,
                seed=seed,
                resume=(folder / "config.json").exists(),
                **speed_options(options),
            )
        )
    report = json.loads((folder / "report.json").read_text())
    pair = report["pairs"][0]
    loss = pair["summaries"]["curve"]["train_loss"]
    values = (
        loss["mean"],
        loss["arc_mean"],
        loss["max"],
        pair["length"] / pair["distance"],
        pair["summaries"]["curve"]["test_error"]["max"],
    )
    return {
        "seed": seed,
        "objective": objective,
        "epochs": options.epochs,
        "fit_epochs": options.fit_epochs,
        "figures": dict(zip(FIGURES, values, strict=True)),
        "environment": report["environment"],
    }


def speed_options(options: argparse.Namespace) -> dict[str, Any]:
    """Return fixed options that keep runs comparable."""
    return {"threads": options.threads, "channels_last": "on", "compile": "off", "amp": "bf16"}


def print_table(results: list[dict[str, Any]]) -> None:
    """Print means over seeds and paired differences from ``uniform``, as Markdown."""
    seeds = sorted({r["seed"] for r in results})
    print(f"{len(seeds)} seeds\n\n| objective | {' | '.join(FIGURES)} |")
    print(f"| :-- |{' --: |' * len(FIGURES)}")
    values = {(r["objective"], r["seed"]): r["figures"] for r in results}
    for objective in OBJECTIVES:
        cells = []
        for name in FIGURES:
            column = [values[objective, seed][name] for seed in seeds]
            cell = f"{statistics.mean(column):.4f}"
            if objective != "uniform" and len(seeds) > 1:
                gaps = [values[objective, s][name] - values["uniform", s][name] for s in seeds]
                half = stats.t.ppf(0.975, len(gaps) - 1) * stats.sem(gaps)
                cell += f" ({statistics.mean(gaps):+.4f} ± {half:.4f})"
            cells.append(cell)
        print(f"| {objective} | {' | '.join(cells)} |")


def main() -> None:
    """Run the missing parts, write and print the results."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seeds", type=int, nargs="+", default=list(range(3)))
    parser.add_argument("--epochs", type=int, default=40)
    parser.add_argument("--fit-epochs", type=int, default=20)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--out", type=Path, default=Path("runs/objectives"))
    options = parser.parse_args()
    results: list[dict[str, Any]] = json.loads(RESULTS.read_text()) if RESULTS.exists() else []
    known = {(r["seed"], r["objective"]) for r in results}
    for seed in options.seeds:
        for objective in OBJECTIVES:
            if (seed, objective) not in known:
                weights = networks(seed, options.epochs, options.out, speed_options(options))
                results.append(fit(seed, objective, weights, options))
                write_json(RESULTS, results)
    print_table(results)


if __name__ == "__main__":
    main()
