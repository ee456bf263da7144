"""Methods at the same budget: the README's table, and the papers' tables with published results.

    python benchmarks/comparison.py [--seeds 5] [--jobs 1] [--out benchmarks/results/comparison]
    python benchmarks/comparison.py --preset vgg16 --data cifar100 --data-dir DIR [--scale 0.02]
    python benchmarks/comparison.py --data DATA --model MODEL --epochs 60 --out DIR

The first runs ``python cli.py compare`` on the default data; finished cells (``cells/`` in the
folder) are not measured again. A preset has the settings of the reference implementation of arXiv
1802.10026 on CIFAR-100, all training images, and prints its published test accuracy next to ours:
independent networks and FGE at 1, 2 and 3 budgets. At k budgets the runs of k seeds are pooled: the
preset's 3 seeds give one value at 3 budgets, without a standard deviation; a fourth seed (``--seeds
4``) gives one, for a third more training. ``--scale`` uses that fraction of the epochs and of the
training images, to try the code on a small machine; the results are then not comparable with the
published ones, and the table says so. The published results are always for CIFAR-100; the table
names other data.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

from fge.commands.compare import compare
from fge.compare.comparison import ONE_VALUE
from fge.config import CompareConfig
from fge.files import write_text
from fge.report import markdown_table

HERE = Path(__file__).parent
RESULTS = HERE / "results"
PUBLISHED: dict[str, Any] = json.loads((HERE / "published.json").read_text(encoding="utf-8"))
PRESETS = tuple(PUBLISHED["settings"])
CIFAR_TRAIN = 50_000
METHODS = (
    *("single", "fge", "fge+refit", "swa", "fold", "ema", "sse", "csgld"),
    *("deep-ensemble", "curve-ensemble", "curve-ensemble-2B"),
)
"""Of the README's table."""
_PAPER_SEEDS = 3


def preset_options(name: str, scale: float) -> dict[str, Any]:
    """Return the options of a paper's table, ``scale`` times as many epochs and images."""
    settings = dict(PUBLISHED["settings"][name])
    epochs, start = settings.pop("epochs"), settings.pop("start_epoch")
    cycle = settings["cycle_epochs"]
    # Even a short run needs two snapshots.
    scaled = max(round(scale * epochs), 2 * cycle)
    begin = min(round(scaled * start / epochs), scaled - 3 * cycle // 2)
    return {
        "model": name,
        "methods": ("fge",),
        "budgets": (1, 2, 3),
        "seeds": _PAPER_SEEDS,
        "average": 0.0,
        "val_fraction": 0.0,
        "epochs": scaled,
        "start_epoch": begin,
        "train_size": None if scale == 1 else round(scale * CIFAR_TRAIN),
        **settings,
    }


def published_rows(name: str, content: dict[str, Any]) -> list[list[str]]:
    """Return a row per method and budget: our mean accuracy and spread, and the published one.

    Args:
        name: of the preset.
        content: of ``compare.json``.
    """
    rows = []
    for method, ours in (("independent", ("single", "deep-ensemble")), ("fge", ("fge",))):
        for budget, accuracy in enumerate(PUBLISHED[method][name], start=1):
            found = [
                row
                for row in content["methods"]
                if row["budget"] == budget and row["name"] == ours[budget > 1 and len(ours) > 1]
            ]
            mean = f"{100 - found[0]['error']:.2f}" if found else "not measured"
            spread = found[0]["deviation"].get("error") if found else None
            seeds = len(found[0]["seeds"]) if found else 0
            pooled = " (1 value)" if found and found[0]["values"] < seeds else ""
            rows.append(
                [
                    method,
                    f"{budget} B",
                    mean,
                    "" if spread is None else f"{spread:.2f}",
                    f"{seeds}{pooled}",
                    f"{accuracy:.1f}",
                ]
            )
    return rows


def write_published(name: str, folder: Path, scale: float, data: str) -> str:
    """Write and return the table of our and the published results."""
    content = json.loads((folder / "compare.json").read_text(encoding="utf-8"))
    headings = ["method", "budget", "our accuracy %", "± sd", "seeds", "published (CIFAR-100) %"]
    text = f"# {name} on {data}, with the published results\n\n"
    text += markdown_table(headings, published_rows(name, content)) + "\n\n"
    text += f"Published: {PUBLISHED['source']}.\n"
    pooled = [row for row in content["methods"] if row["values"] < len(row["seeds"])]
    if pooled:
        budgets = ", ".join(sorted({f"{row['budget']} B" for row in pooled}))
        text += f"\nAt {budgets} {ONE_VALUE}; more seeds than budgets (--seeds) give one.\n"
    if scale != 1 or data != "cifar100":
        why = [f"{scale:g} of the epochs and training images"] if scale != 1 else []
        why += [f"other data ({data})"] if data != "cifar100" else []
        text += f"\nNot comparable with the published results: {' and '.join(why)}.\n"
    write_text(folder / "published.md", text)
    return text


def read_arguments() -> argparse.Namespace:
    """Return the command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--preset", choices=PRESETS)
    parser.add_argument("--scale", type=float, default=1.0)
    parser.add_argument("--out", type=Path)
    parser.add_argument("--data")
    parser.add_argument("--data-dir", type=Path)
    parser.add_argument("--model")
    parser.add_argument("--epochs", type=int)
    parser.add_argument("--train-size", type=int)
    parser.add_argument("--test-size", type=int)
    parser.add_argument("--batch-size", type=int)
    parser.add_argument("--seeds", type=int)
    parser.add_argument("--methods", nargs="+")
    parser.add_argument("--budgets", type=int, nargs="+")
    parser.add_argument("--jobs", type=int, default=1)
    return parser.parse_args()


def main() -> None:
    """Compare, and print the results."""
    given = {name: value for name, value in vars(read_arguments()).items() if value is not None}
    preset, scale = given.pop("preset", None), given.pop("scale")
    out = given.pop("out", None) or RESULTS / f"comparison{f'-{preset}' if preset else ''}"
    for name in ("methods", "budgets"):
        if name in given:
            given[name] = tuple(given[name])
    if not preset and "methods" not in given:
        given["methods"] = METHODS
    if preset:
        given = {"data": "cifar100", **preset_options(preset, scale), **given}
    folder = compare(CompareConfig(out=out, **given))
    print((folder / "compare.md").read_text(encoding="utf-8"))
    if preset:
        print(write_published(preset, folder, scale, given["data"]))


if __name__ == "__main__":
    main()
