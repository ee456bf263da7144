"""The README's single runs on the default data: their reports, and the README's figures.

    python benchmarks/readme_runs.py [--out RUNS_FOLDER]

Runs, one after the other, the default job with its sharpness during training, the pair of networks
with its curve, the plane through them, and the default job again with the curves between its
snapshots, compared with that pair (seed 0, about ten minutes on two cores). The report of each goes
to ``benchmarks/results/readme/``, with the log of the first, and the figures to ``docs/``. Finished
runs are not run again; interrupted runs are resumed.
"""

from __future__ import annotations

import argparse
import json
import shutil
import subprocess
import sys
from pathlib import Path

from fge.files import write_bytes, write_text

ROOT = Path(__file__).parent.parent
RESULTS = Path(__file__).parent / "results" / "readme"
FIGURES = {
    ("default", "training"): "training",
    ("default", "sharpness"): "sharpness",
    ("pair", "curve-G-1--G-2"): "curve",
    ("pair", "ensemble-G-1--G-2"): "curve-ensemble",
    ("plane", "plane-train-loss"): "plane",
}
"""The name in ``docs/`` of a run's figure."""


def commands(out: Path) -> dict[str, list[str]]:
    """Return the arguments of each run, by its name."""
    pair = str(out / "pair")
    return {
        "default": ["fge", "--sharpness-every", "5", "--average", "0"],
        "pair": ["curve-ensemble", "--first", "G", "--second", "G"],
        "plane": ["plane", "--run", pair, "--resolution", "13"],
        "refit": ["fge", "--refit", "bezier", "--baseline", pair, "--average", "0"],
    }


def run(arguments: list[str], folder: Path) -> None:
    """Run a command into its folder unless its report is there."""
    if not (folder / "report.json").is_file():
        resume = ["--resume"] if (folder / "config.json").is_file() else []
        command = [sys.executable, str(ROOT / "cli.py"), *arguments, "--out", str(folder), *resume]
        subprocess.run(command, check=True)


def keep_report(name: str, folder: Path) -> None:
    """Keep the report of a run, without the folders it was run in."""
    report = json.loads((folder / "report.json").read_text(encoding="utf-8"))
    for option in ("out", "run", "baseline"):
        report.get("config", {}).pop(option, None)
    write_text(RESULTS / f"{name}.json", json.dumps(report, indent=1) + "\n")


def main() -> None:
    """Run what is missing; keep reports and figures."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, default=Path("runs/readme"))
    out = parser.parse_args().out
    RESULTS.mkdir(parents=True, exist_ok=True)
    for name, arguments in commands(out).items():
        run(arguments, out / name)
        keep_report(name, out / name)
    shutil.copyfile(out / "default" / "log.jsonl", RESULTS / "default-log.jsonl")
    for (name, figure), ours in FIGURES.items():
        image = (out / name / "figures" / f"{figure}.png").read_bytes()
        write_bytes(ROOT / "docs" / f"{ours}.png", image)


if __name__ == "__main__":
    main()
