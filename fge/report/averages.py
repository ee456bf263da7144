"""The results of averaging weights: a table and sentences."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np

from fge.ensemble import Fold, Scores
from fge.observer import counted
from fge.report.methods import MethodResult, comparison
from fge.report.page import Table
from fge.tasks import MANY_CLASSES, Task

_HEADINGS = ("network", "snapshots", "averaged")


@dataclass(frozen=True)
class Swa:
    """The average of all snapshots' weights, and the snapshots themselves, on validation data.

    ``figures`` are those of the average, ``members`` those of each snapshot, ``ensemble`` those of
    their averaged probabilities.
    """

    figures: Scores
    members: tuple[Scores, ...]
    ensemble: Scores

    @property
    def barrier(self) -> float:
        """NLL of the average minus the mean NLL of the snapshots, in nats; below 0 is a gain."""
        return self.figures.nll - float(np.mean([figures.nll for figures in self.members]))

    @property
    def worst(self) -> Scores:
        """The figures of the snapshot with the highest NLL."""
        return max(self.members, key=lambda figures: figures.nll)

    @property
    def harmful(self) -> bool:
        """Whether the average has a higher NLL than every snapshot."""
        return not self.figures.nll <= self.worst.nll


def average_sentences(
    swa: Swa | None,
    fold: Fold | None,
    names: Sequence[str],
    results: Sequence[MethodResult],
    ensemble: MethodResult,
    *,
    all_of_them: bool = True,
) -> list[str]:
    """Say where averaging weights was harmful, and what the folded network lost.

    Args:
        swa: the average of all snapshots, None without validation data.
        fold: None without validation data.
        names: of the snapshots.
        results: on the test set, of ``swa`` and ``fold`` where their predictions are finite.
        ensemble: the result of the ensemble of the same snapshots.
        all_of_them: whether the average of all snapshots was made.
    """
    by_name = {result.name: result for result in results}
    sentences = []
    if all_of_them and "swa" not in by_name:
        sentences.append(
            "The average of all snapshots' weights (swa) gives predictions that are not finite; "
            "the tables leave it out."
        )
    elif swa and swa.harmful:
        sentences.append(
            "Averaging the weights of all snapshots (swa) is harmful here: its validation NLL is "
            f"{swa.figures.nll:.4f}, and that of the worst snapshot is {swa.worst.nll:.4f}."
        )
    if fold and "fold" in by_name:
        sentences.append(_fold_sentence(fold, names, by_name["fold"], ensemble))
    return sentences


def _fold_sentence(
    fold: Fold, names: Sequence[str], line: MethodResult, ensemble: MethodResult
) -> str:
    passes = counted(ensemble.forward_passes, "pass", "passes")
    than = f"{comparison(line, ensemble)} the ensemble, which needs {passes} per prediction"
    if len(fold.folded) == 1:
        return (
            "No average of weights was safe: every other snapshot raised the validation NLL. "
            f"`fold` is {names[fold.best]} alone; it has {than}."
        )
    return (
        f"`fold`, one network, averages the weights of {len(fold.folded)} of {len(names)} "
        f"snapshots; it has {than}."
    )


def average_table(
    swa: Swa | None,
    fold: Fold,
    names: Sequence[str],
    snapshots: int,
    task: Task = MANY_CLASSES,
    example: str = "image",
) -> Table:
    """Return the table of averaged weights and their snapshots on the validation images.

    Args:
        swa: the average of all snapshots, where it was made.
        fold: the snapshots folded.
        names: of the snapshots, and of a distilled network that the fold may use.
        snapshots: the number of members of the ensemble.
        task: what is predicted.
        example: what an example is called: image or row.
    """
    form = task.measure.form
    worst = max(range(len(fold.members)), key=lambda position: fold.members[position].nll)
    rows = [
        _row(f"best snapshot ({names[fold.best]})", 1, "", fold.before, form),
        _row(f"worst snapshot ({names[worst]})", 1, "", fold.members[worst], form),
        _row("ensemble", snapshots, task.array, fold.ensemble, form),
        *([_row("swa", len(names), "weights", swa.figures, form)] if swa else []),
        _row("fold", len(fold.folded), "weights" if len(fold.folded) > 1 else "", fold.after, form),
    ]
    note = (
        f"{_swa_note(swa) if swa else ''}`fold` starts with the best snapshot and tries the others "
        "from good to bad; it keeps a snapshot if the average does not raise the NLL: "
        f"{_trials(fold, names)}. These {example}s chose `fold`, so its numbers here are "
        "optimistic. Each average has batch-norm statistics of its own, from training "
        f"{example}s that are varied as in training."
    )
    headings = (*_HEADINGS, f"validation {task.measure.word}", "validation NLL")
    return Table(f"Averaged weights on the validation {example}s", headings, rows, note=note)


def _swa_note(swa: Swa) -> str:
    harmful = (
        "; its NLL is above that of the worst snapshot, so averaging all weights is harmful here"
    )
    return (
        "`swa` averages the weights of all snapshots. Its barrier, its NLL minus the snapshots' "
        f"mean NLL, is {swa.barrier:+.4f} nats{harmful if swa.harmful else ''}. "
    )


def averages_json(
    swa: Swa | None,
    fold: Fold | None,
    names: Sequence[str],
    *,
    all_of_them: bool = True,
    task: Task = MANY_CLASSES,
) -> dict[str, Any]:
    """Return what ``report.json`` holds of averaged weights; figures are those on validation."""
    figures = partial(_figures, key=task.measure.key)
    content: dict[str, Any] = {"swa": {"snapshots": list(names)}} if all_of_them else {}
    if swa:
        content["swa"] |= {
            **figures(swa.figures),
            "barrier": _finite(swa.barrier),
            "worst_snapshot_nll": swa.worst.nll,
            "harmful": swa.harmful,
        }
    if fold:
        content["fold"] = {
            "snapshots": [names[position] for position in fold.folded],
            **figures(fold.after),
            "best_snapshot": {"name": names[fold.best], **figures(fold.before)},
            "ensemble": figures(fold.ensemble),
            "lost": figures(fold.lost),
            "trials": [
                {"snapshot": names[t.member], **figures(t.figures), "kept": t.kept}
                for t in fold.trials
            ],
        }
    return content


def _trials(fold: Fold, names: Sequence[str]) -> str:
    return ", ".join(
        f"{names[trial.member]} {'kept' if trial.kept else 'refused'} ({trial.figures.nll:.4f})"
        for trial in fold.trials
    )


def _row(name: str, snapshots: int, averaged: str, figures: Scores, form: str) -> list[str]:
    return [name, str(snapshots), averaged, form.format(figures.error), f"{figures.nll:.4f}"]


def _figures(figures: Scores, key: str) -> dict[str, float | None]:
    return {key: _finite(figures.error), "nll": _finite(figures.nll)}


def _finite(value: float) -> float | None:
    return value if math.isfinite(value) else None
