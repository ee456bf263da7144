"""The page of ``peers.py``: means, spreads, and differences with intervals."""

from __future__ import annotations

import math
import statistics
from collections.abc import Iterable, Sequence
from typing import Any

from peer_methods import NOTES, PAIRS
from scipy import stats

Runs = Sequence[dict[str, Any]]

COLUMNS = (
    ("members", "members", 0),
    ("train_epochs", "epochs", 1),
    ("error", "error %", 2),
    ("nll", "NLL", 4),
    ("train_seconds", "training s", 1),
    ("test_seconds", "test s", 2),
    ("validation_passes", "validation passes", 0),
    ("test_passes", "test passes", 0),
    ("refresh_images", "refresh images", 0),
    ("peak_mib", "peak MiB", 0),
    ("more_mib", "above start MiB", 0),
)
"""The keys of a run's record, with headings and digits."""
COMPARED = (("error", "error", 2), ("nll", "NLL", 4))
RULE = "| :-- |"


def values_of(runs: Runs, method: str, key: str) -> list[float]:
    """Return the known values of ``key`` in a method's runs, in the order of seeds."""
    chosen = sorted((r for r in runs if r["method"] == method), key=lambda r: int(r["seed"]))
    return [float(run[key]) for run in chosen if run[key] is not None]


def spread(values: Sequence[float], digits: int) -> str:
    """Return mean ± standard deviation (n - 1), or just the value if all are equal."""
    if not values:
        return "-"
    mean = f"{statistics.mean(values):.{digits}f}"
    if len(values) < 2 or len(set(values)) == 1:
        return mean
    return f"{mean} ± {statistics.stdev(values):.{digits}f}"


def interval(differences: Sequence[float], level: float = 0.95) -> tuple[float, float]:
    """Return the mean of paired differences and the half-width of its interval (Student's t).

    The half-width is infinite for one pair, which has no spread.
    """
    mean = statistics.mean(differences)
    if len(differences) < 2:
        return mean, float("inf")
    error = statistics.stdev(differences) / len(differences) ** 0.5
    return mean, float(stats.t.ppf((1 + level) / 2, len(differences) - 1)) * error


def ratio(ratios: Sequence[float]) -> tuple[float, float, float]:
    """Return the geometric mean of paired ratios, and the ends of its interval.

    The interval is that of :func:`interval` for the logarithms; it is all of (0, inf) for one pair.
    """
    mean, half = interval([math.log(one) for one in ratios])
    return math.exp(mean), math.exp(mean - half), _exp(mean + half)


def _exp(value: float) -> float:
    return math.exp(value) if value < 700 else math.inf


def method_rows(runs: Runs) -> list[str]:
    """Return the table of methods, one row each, as Markdown."""
    headings = ["method", "seeds", *(heading for _, heading, _ in COLUMNS)]
    lines = [_row(headings), RULE + " --: |" * (len(headings) - 1)]
    for method in dict.fromkeys(run["method"] for run in runs):
        cells = [spread(values_of(runs, method, key), digits) for key, _, digits in COLUMNS]
        lines.append(_row([method, str(len(values_of(runs, method, "seed"))), *cells]))
    return lines


def pair_rows(runs: Runs) -> list[str]:
    """Return the differences between each method and its peer over their common seeds."""
    lines = [_row(["difference", "seeds", "error, points", "NLL", "training time"])]
    lines.append(RULE + " --: |" * 4)
    for ours, theirs in PAIRS:
        by_key = {(run["method"], run["seed"]): run for run in runs}
        seeds = sorted(s for m, s in by_key if m == ours and (theirs, s) in by_key)
        pairs = [(by_key[ours, seed], by_key[theirs, seed]) for seed in seeds]
        if pairs:
            lines.append(_row([f"{ours} - {theirs}", str(len(pairs)), *_differences(pairs)]))
    return lines


def _differences(pairs: Sequence[tuple[dict[str, Any], dict[str, Any]]]) -> list[str]:
    cells = []
    for key, _, digits in COMPARED:
        mean, half = interval([float(a[key]) - float(b[key]) for a, b in pairs])
        known = half < float("inf")
        cells.append(f"{mean:+.{digits}f}" + (f" ± {half:.{digits}f}" if known else ""))
    mean, low, high = ratio([a["train_seconds"] / b["train_seconds"] for a, b in pairs])
    ends = f" [{low:.2f}, {high:.2f}]" if len(pairs) > 1 else ""
    return [*cells, f"{mean:.2f} x{ends}"]


def fault_rows(found: dict[str, Any]) -> list[str]:
    """Return the faults of TorchEnsemble as a Markdown table."""
    lines = [_row(["behaviour", "seen", "evidence"]), RULE + " :-- | :-- |"]
    for fault in found["faults"]:
        seen = "yes" if fault["seen"] else "no"
        lines.append(_row([fault["claim"], seen, fault["evidence"]]))
    return lines


def page(results: dict[str, Any]) -> str:
    """Return the whole page as Markdown.

    Args:
        results: ``settings``, ``runs`` with an ``environment`` each, and ``faults`` of
            TorchEnsemble or None.
    """
    runs, settings = results["runs"], results["settings"]
    lines = [f"# {settings['model']} on {settings['data']}: this package and its peers", ""]
    given = ", ".join(f"{k} {v}" for k, v in settings.items() if v is not None)
    lines += [f"Runs: {len(runs)} ({given}), {_processes(runs)}. {_hardware(runs)}", ""]
    lines += [*method_rows(runs), "", _UNITS, ""]
    if len(pair_rows(runs)) > 2:
        lines += [*pair_rows(runs), "", _PAIRED, ""]
    lines += ["Settings:", "", *(f"- {note}" for note in NOTES), ""]
    if results["faults"]:
        name = f"TorchEnsemble {results['faults']['torchensemble']}"
        lines += [f"## What was seen in {name}", "", *fault_rows(results["faults"]), ""]
    return "\n".join(lines)


_UNITS = (
    "Mean ± standard deviation over seeds. Error in percent and NLL in nats per image, of the test "
    "set; passes are those of one network over all validation images while training, and over all "
    "test images for the prediction; refresh images went through a network for batch-norm "
    "statistics alone; memory is the peak of the process while it trained and tested (on CUDA of "
    "what PyTorch allocated), and how much of it came on top of what was there before."
)
_PAIRED = (
    "Mean difference over seeds (below 0: this package's is lower), with its 95 % interval "
    "(Student's t over seeds, which were paired); geometric mean of the ratios of training times, "
    "with the same interval of their logarithms."
)


def _processes(runs: Runs) -> str:
    """Describe the processes of the runs; in old results each run had its own."""
    count = len({run.get("process") for run in runs})
    if any("process" not in run for run in runs):
        return "each in a process of its own"
    if count == 1:
        return "one after the other in one process"
    return f"one after the other in {count} processes, since some were added later"


def _hardware(runs: Runs) -> str:
    """Describe the machines of the runs; times of several machines are not comparable."""
    facts = list(dict.fromkeys(_machine(run["environment"]) for run in runs))
    if len(facts) == 1:
        return f"Hardware and versions: {facts[0]}."
    return f"Hardware and versions differ, so times are not comparable: {'; '.join(facts)}."


def _machine(facts: dict[str, Any]) -> str:
    return (
        f"{facts['hardware']} ({facts['device']}, {facts['threads']} threads), Python "
        f"{facts['python']}, torch {facts['torch']}, torchvision {facts['torchvision']}, "
        f"torchensemble {facts['torchensemble']}"
    )


def _row(cells: Iterable[str]) -> str:
    return f"| {' | '.join(cell.replace('|', '/') for cell in cells)} |"
