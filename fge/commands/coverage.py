"""Conformal sets and intervals for new data, from what the same members predicted of validation."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from fge.commands.finished import DataFacts
from fge.ensemble import PredictionFile
from fge.errors import UserError
from fge.files import AGAIN, is_there
from fge.metrics import Conformal, fit_conformal
from fge.observer import counted
from fge.report import COVERAGE, VALIDATION, fit_intervals, fit_label_sets


def fit_of_run(
    run: Path, keys: Sequence[str], facts: DataFacts, coverage: float | None
) -> tuple[Conformal | None, str]:
    """Return the threshold of conformal sets or intervals, or None and why there is none.

    Args:
        run: its folder.
        keys: SHA-256 of the weights of each member.
        facts: about its data.
        coverage: that was asked for; None for ``COVERAGE``, if that can be had.

    Raises:
        UserError: a coverage was asked for, and there is no threshold for it; or the validation
            predictions are damaged.
    """
    found = _fitted(run / VALIDATION, keys, facts, coverage or COVERAGE)
    if isinstance(found, Conformal):
        return found, ""
    if coverage is not None:
        raise UserError(f"--coverage {coverage:g}: {found}")
    return None, f"no conformal {'intervals' if facts.task.uses_noise else 'sets'}: {found}"


def _fitted(path: Path, keys: Sequence[str], facts: DataFacts, coverage: float) -> Conformal | str:
    """Return the threshold, or in words why there is none."""
    if not is_there(path):
        return f"the run has no validation predictions ({path}); they need --val-fraction above 0"
    file = PredictionFile.stored(path, facts.task)
    names = file.by_weights
    if lacking := [key for key in keys if key not in names]:
        return (
            f"{path} lacks the predictions of {len(lacking)} of {counted(len(keys), 'member')}; "
            "resume that run with --resume"
        )
    members, numbers = [names[key] for key in keys], facts.task.uses_noise
    classes, known = file.mean(members).shape[-1], len(facts.classes)
    if not numbers and classes != known:
        kind = "classes" if facts.task.of_classes else "labels"
        raise UserError(f"{path} has {classes} {kind} and the run {known}; {AGAIN}")
    try:
        if numbers:
            fit, what = fit_intervals(file, members, coverage), "intervals that hold the value"
        elif facts.task.of_classes:
            fit = fit_conformal(file.mean(members), file.targets, coverage=coverage)
            what = "sets that hold the class"
        else:
            fit = fit_label_sets(file, members, coverage)
            what = "sets that hold all labels"
    except UserError as error:
        raise UserError(f"{path} is damaged: {error}; {AGAIN}") from None
    if fit.enough:
        return fit
    return (
        f"{what} of {100 * coverage:g} % of {facts.example}s need {fit.least} validation "
        f"{facts.example}s, and the run has {fit.examples}"
    )
