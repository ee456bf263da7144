"""Conformal sets for new images, from what the same members predicted of a run's validation."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from fge.ensemble import PredictionFile
from fge.errors import UserError
from fge.files import AGAIN
from fge.metrics import Conformal, fit_conformal
from fge.observer import counted
from fge.report import COVERAGE, VALIDATION


def fit_of_run(
    run: Path, keys: Sequence[str], classes: int, coverage: float | None
) -> tuple[Conformal | None, str]:
    """Return the threshold of conformal sets, or None and why there is none.

    Args:
        run: its folder.
        keys: SHA-256 of the weights of each member.
        classes: their number.
        coverage: that was asked for; None for ``COVERAGE``, if that can be had.

    Raises:
        UserError: a coverage was asked for, and there is no threshold for it.
    """
    try:
        return _fitted(run / VALIDATION, keys, classes, coverage or COVERAGE), ""
    except UserError as error:
        if coverage is not None:
            raise UserError(f"--coverage {coverage:g}: {error}") from None
        return None, f"no conformal sets: {error}"


def _fitted(path: Path, keys: Sequence[str], classes: int, coverage: float) -> Conformal:
    if not path.exists():
        raise UserError(
            f"the run has no validation predictions ({path}); they need --val-fraction above 0"
        )
    file = PredictionFile.stored(path)
    names = file.by_weights
    lacking = [key for key in keys if key not in names]
    if lacking:
        raise UserError(
            f"{path} lacks the predictions of {len(lacking)} of {counted(len(keys), 'member')}; "
            "resume that run with --resume"
        )
    probs = file.mean(names[key] for key in keys)
    if probs.shape[1] != classes:
        raise UserError(f"{path} has {probs.shape[1]} classes and the run {classes}; {AGAIN}")
    try:
        fit = fit_conformal(probs, file.targets, coverage=coverage)
    except UserError as error:
        raise UserError(f"{path} is damaged: {error}; {AGAIN}") from None
    if not fit.enough:
        raise UserError(
            f"sets that hold the class of {100 * coverage:g} % of images need {fit.least} "
            f"validation images, and the run has {fit.examples}"
        )
    return fit
