"""How well uncertainty tells foreign images: from predictions to results and a table."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from fge.data.splits import Dataset
from fge.ensemble.predictions import MemberPredictions
from fge.metrics.detection import ood_auroc
from fge.report.methods import MethodResult
from fge.report.report import Table

_SCORES = {"max_probability": "max probability", "entropy": "entropy"}


def with_ood(results: Sequence[MethodResult], predictions: MemberPredictions) -> list[MethodResult]:
    """Return the results with the AUROCs of each kind of foreign images, where there are any.

    Each is that of the averaged prediction of the result's members on the foreign images against
    theirs on the test set; see :func:`fge.metrics.ood_auroc`.

    Args:
        results: whose members are predicted on all images.
        predictions: of the run.
    """
    if not predictions.foreign:
        return list(results)
    return [replace(result, ood=_aurocs(result, predictions)) for result in results]


def _aurocs(result: MethodResult, predictions: MemberPredictions) -> dict[str, dict[str, float]]:
    inside = predictions.test.mean(result.member_names)
    return {
        name: ood_auroc(inside, file.mean(result.member_names))
        for name, file in predictions.foreign.items()
    }


def ood_tables(results: Sequence[MethodResult], dataset: Dataset) -> list[Table]:
    """Return the table of how well each result tells foreign images; none where there are none.

    Args:
        results: of :func:`with_ood`.
        dataset: of the run, with its foreign images.
    """
    if not dataset.foreign:
        return []
    headings = ["method", "members"]
    for name in dataset.foreign:
        first, *others = _SCORES.values()
        headings += [f"{name}: {first}", *others]
    rows = []
    for result in results:
        found = result.ood or {}
        cells = [f"{found[name][score]:.4f}" for name in dataset.foreign for score in _SCORES]
        rows.append([result.name, str(result.members), *cells])
    kinds = [f"{name}, {len(other.split)} images" for name, other in dataset.foreign.items()]
    note = (
        f"Foreign images ({'; '.join(kinds)}; in the size and channels of the data) against the "
        f"{len(dataset.test)} test images: AUROC, the chance that a foreign image is the less "
        "certain one, by the largest probability and by the entropy of the averaged prediction; "
        "0.5 tells nothing, 1 tells all. Nothing was trained on them or chosen by them, and the "
        "passes over them are in none of the costs above."
    )
    return [Table("Telling foreign images", headings, rows, note)]
