"""Coverage of conformal sets and rejection: what is stated, and what test images measure.

    python benchmarks/uncertainty.py run S A [--work runs/pays]
    python benchmarks/uncertainty.py reports diabetes attributes --work WORK
    python benchmarks/uncertainty.py table

The runs are finished ones in ``--work``; nothing is trained. Those of ``run`` are tasks of
``benchmarks/pays.py``: thresholds for a stated coverage of 90 % are from the validation images of
each run (S: 1,000, A: 100), by each score of ``SCORES``; coverage, mean size of the sets and AURC
are measured on all test images (S: 10,000, A: 5,000). Those of ``reports`` are tasks of
``benchmarks/tasks.py``, labels and numbers: what each run's own report says of its sets or
intervals. Results: ``benchmarks/results/uncertainty.json``.
"""

from __future__ import annotations

import argparse
import json
import re
from pathlib import Path
from typing import Any, get_args

import numpy as np

from fge import metrics
from fge.ensemble import PredictionFile
from fge.files import write_json
from fge.report import PREDICTIONS, VALIDATION, markdown_table

RESULTS = Path(__file__).parent / "results" / "uncertainty.json"
SCORES = get_args(metrics.Score)
COVERAGE = 0.9
NAMES = {"fge": ("fge-paper", "fge"), "fge-avg": ("fge", "fge")}
"""Of runs in whose folder's name the method has another name: that shown, and that of its line."""


def method_of(run: Path) -> tuple[str, str, int]:
    """Return a run's method, the name of its line, and the seed, from the name of its folder.

    >>> method_of(Path("fge-avg-e20-s1003"))
    ('fge', 'fge', 1003)
    """
    found = re.fullmatch(r"(.+)-e\d+-s(\d+)", run.name)
    assert found is not None, f"{run} is no run of a comparison"
    shown, line = NAMES.get(found[1], (found[1], found[1]))
    return shown, line, int(found[2])


def measured(run: Path, name: str, seed: int) -> dict[str, Any]:
    """Return the figures of the last line of a run with this name, from its kept predictions."""
    report = json.loads((run / "report.json").read_text(encoding="utf-8"))
    line = [line for line in report["methods"] if line["name"] == name][-1]
    test, val = (PredictionFile.stored(run / file) for file in (PREDICTIONS, VALIDATION))
    members = line["member_names"]
    probs, calibration = test.mean(members).numpy(), val.mean(members).numpy()
    found: dict[str, Any] = {
        "seed": seed,
        "members": line["members"],
        "error": line["error"],
        "aurc": metrics.aurc(probs, test.targets),
        "val": len(val.targets),
        "test": len(test.targets),
    }
    for score in SCORES:
        fit = metrics.fit_conformal(
            calibration, val.targets, coverage=COVERAGE, score=score, seed=seed
        )
        sets = metrics.conformal_sets(probs, fit, seed=seed)
        found[score] = metrics.set_coverage(sets, test.targets)._asdict()
    return found


def run_task(folder: Path) -> dict[str, list[dict[str, Any]]]:
    """Return the figures of each method and seed from the finished runs of a task."""
    methods: dict[str, list[dict[str, Any]]] = {}
    for run in sorted(folder.glob("*-e*-s*")):
        if (run / "report.json").is_file():
            method, line, seed = method_of(run)
            methods.setdefault(method, []).append(measured(run, line, seed))
    if not methods:
        raise SystemExit(f"{folder} has no finished runs; start benchmarks/pays.py first")
    return methods


def reports(folder: Path) -> list[dict[str, Any]]:
    """Return what the reports of finished runs say of their sets of labels or intervals.

    There is an entry for each run and target; labels have one set together.
    """
    found = []
    for run in sorted(folder.glob("*-e*-s*")):
        report = json.loads((run / "report.json").read_text(encoding="utf-8"))
        method, name, seed = method_of(run)
        lines = report.get("uncertainty", {}).get("methods", ())
        for own in (line for line in lines if line["name"] == name):
            conformal = own["conformal"]
            facts = {"method": method, "seed": seed, "members": own["members"]}
            facts |= {"val": conformal["examples"], "test": report["dataset"]["test"]}
            targets = conformal.get("targets", {"all labels": conformal})
            for target, one in targets.items():
                sizes = {key: one[key] for key in ("width", "size", "labels") if key in one}
                found.append({**facts, "target": target, "coverage": one["coverage"], **sizes})
    if not found:
        raise SystemExit(f"{folder} has no finished runs; start benchmarks/tasks.py first")
    return found


def report_table(found: list[dict[str, Any]]) -> str:
    """Return the table of runs whose reports were read: means and deviations over seeds."""
    size = "mean width" if "width" in found[0] else "mean size"
    rows = []
    for method, target in dict.fromkeys((own["method"], own["target"]) for own in found):
        own = [one for one in found if (one["method"], one["target"]) == (method, target)]
        sizes = [one["width" if "width" in one else "size"] for one in own]
        row = [method, str(len(own)), f"{np.mean([one['members'] for one in own]):.3g}", target]
        covered = spread([100 * one["coverage"] for one in own], 1)
        rows.append([*row, covered, f"{np.mean(sizes):.4g}"])
    return markdown_table(("method", "seeds", "passes", "target", "coverage %", size), rows)


def table(content: dict[str, Any]) -> str:
    """Return the tables for the docs: means and standard deviations over seeds."""
    parts = [f"Stated coverage: {100 * content['coverage']:g} %."]
    heads = ("method", "seeds", "passes", "error %", "AURC", *(f"{s}: %, size" for s in SCORES))
    for task, methods in content["tasks"].items():
        rows = []
        for method, found in methods.items():
            row = [method, str(len(found)), f"{np.mean([f['members'] for f in found]):.3g}"]
            row += [spread([f["error"] for f in found], 2), spread([f["aurc"] for f in found], 4)]
            for score in SCORES:
                covered = spread([100 * f[score]["coverage"] for f in found], 1)
                row.append(f"{covered}, {np.mean([f[score]['size'] for f in found]):.2f}")
            rows.append(row)
        first = next(iter(methods.values()))[0]
        low, high = metrics.coverage_range(content["coverage"], first["val"], first["test"])
        parts.append(
            f"## Task {task}\n\n{first['val']:,} validation images, {first['test']:,} test images: "
            f"by chance alone, one run in 20 is outside {100 * low:.1f} to {100 * high:.1f} %."
        )
        parts.append(markdown_table(heads, rows))
    for task, found in content.get("reports", {}).items():
        low, high = metrics.coverage_range(content["coverage"], found[0]["val"], found[0]["test"])
        parts.append(
            f"## {task}\n\n{found[0]['val']} validation and {found[0]['test']} test examples: by "
            f"chance alone, one run in 20 is outside {100 * low:.1f} to {100 * high:.1f} %."
        )
        parts.append(report_table(found))
    return "\n\n".join(parts)


def spread(values: list[float], digits: int) -> str:
    """Return mean and standard deviation as text."""
    mean = f"{np.mean(values):.{digits}f}"
    return f"{mean} ± {np.std(values, ddof=1):.{digits}f}" if len(values) > 1 else mean


def main() -> None:
    """Run what the command line asks for."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("part", choices=("run", "reports", "table"))
    parser.add_argument("tasks", nargs="*")
    parser.add_argument("--work", type=Path, default=Path("runs/pays"))
    parser.add_argument("--results", type=Path, default=RESULTS)
    asked = parser.parse_args()
    content: dict[str, Any] = {"coverage": COVERAGE, "tasks": {}}
    if asked.results.is_file():
        content = json.loads(asked.results.read_text(encoding="utf-8"))
    runs = {task: asked.work / task / "runs" for task in asked.tasks}
    if asked.part == "run":
        content["tasks"] |= {task: run_task(folder) for task, folder in runs.items()}
    if asked.part == "reports":
        read = {task: reports(folder) for task, folder in runs.items()}
        content["reports"] = {**content.get("reports", {}), **read}
    if asked.part != "table":
        write_json(asked.results, content)
    print(table(content))


if __name__ == "__main__":
    main()
