"""The lines of the method table, with costs, from predictions."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields, replace
from typing import Annotated, Any, NotRequired, TypedDict

import numpy as np
from msgspec import Meta

from fge import metrics
from fge.config import CLASSIFICATION, VIEWS_SUFFIX
from fge.data import Dataset
from fge.ensemble import MemberPredictions, PredictionFile
from fge.report.escaping import plain_name
from fge.report.page import Table
from fge.schemas import Count, Loss, NotNegative, Percent, Positive, Share
from fge.tasks import MANY_CLASSES, Averaged, Task

COLUMNS = (
    *(("name", "method", "{}"), ("members", "members", "{}")),
    *MANY_CLASSES.columns,
    *(("train_epochs", "epochs", "{}"), ("forward_passes", "passes", "{}")),
)
"""Columns of the method table: key of a result, heading and format of the cells."""
OTHER_COLUMNS = (
    *(("rmse", "RMSE", "{:.4g}"), ("mae", "MAE", "{:.4g}"), ("r2", "R²", "{:.4f}")),
    *(("coverage", "90 % interval", "{:.1f}"), ("exact_match", "exact match", "{:.2f}")),
    *(("auroc", "AUROC", "{:.4f}"), ("average_precision", "AP", "{:.4f}")),
)
"""Columns of tasks that are not of several classes, for tables of several runs."""
_BALANCED = ("balanced_error", "balanced", "{:.2f}")
ONE_RUN = "This is one run: other seeds give other numbers."
OOD_SCORES = {
    "max_probability": ("max probability", "the largest probability"),
    "entropy": ("entropy", "the entropy of the averaged prediction"),
    "variance": ("variance over members", "the variance over the members"),
}
"""Of OOD images: the heading of an AUROC, and the doubt in words."""
OOD_TITLE = "OOD detection"
_WITHOUT_VIEWS = ("best-snapshot", "fge+refit")
"""Lines that have none with test-time augmentation, so that the table stays short."""


@dataclass(frozen=True)
class MethodResult:
    """One line of the table: a method, its cost and its results on the test set.

    ``error`` is in percent, ``nll`` in nats per example, ``brier`` summed over classes, ``ece`` a
    fraction (15 bins). ``train_epochs`` counts every epoch with backward passes that the method
    needs; ``forward_passes`` are those of one prediction, with all views. ``refresh_images`` were
    passed forward to estimate the batch-norm statistics of members other than snapshots;
    ``validation_images`` to validate the snapshots up to the last member, and the averages that
    were tried. ``member_names`` are the names in ``predictions/test.npz`` (with views in
    ``predictions/test-tta.npz``). ``ood`` has for each kind of OOD images the result
    of :meth:`fge.tasks.Task.detection`. ``balanced_error`` is the mean of the errors of the
    classes, in percent.

    Of another ``task`` than one of several classes ``figures`` has all figures by key.
    """

    name: str
    members: int
    train_epochs: int
    forward_passes: int
    weight_bytes: int
    error: float | None
    nll: float
    brier: float | None
    ece: float | None
    member_names: tuple[str, ...]
    refresh_images: int = 0
    validation_images: int = 0
    chosen: str | None = None
    ood: dict[str, dict[str, float]] | None = None
    balanced_error: float | None = None
    figures: dict[str, float] | None = None
    task: Task = MANY_CLASSES

    def value(self, key: str) -> Any:
        """Return a figure or another field by its key."""
        known = self.figures or {}
        return known[key] if key in known else getattr(self, key, None)

    def with_figures(self, figures: dict[str, float]) -> MethodResult:
        """Return the line with the figures of its task."""
        common = {key: figures.get(key) for key in _COMMON}
        more = None if self.task.name == CLASSIFICATION else figures
        return replace(self, **common, figures=more)  # type: ignore[arg-type]


_COMMON = ("error", "nll", "brier", "ece")


class _Line(TypedDict):
    """What a :class:`MethodResult` of any task has in a ``report.json``."""

    name: str
    members: Positive
    train_epochs: Count
    forward_passes: Positive
    weight_bytes: Count
    member_names: Annotated[list[str], Meta(min_length=1)]
    refresh_images: NotRequired[Count]
    validation_images: NotRequired[Count]
    chosen: NotRequired[str | None]
    ood: NotRequired[dict[str, dict[str, float]] | None]
    balanced_error: NotRequired[Percent | None]


class MethodLine(_Line):
    """A :class:`MethodResult` of classes in a ``report.json``."""

    error: Percent
    nll: Loss
    brier: NotNegative
    ece: Share


class OtherLine(_Line):
    """One of labels or numbers, whose NLL may be that of a density."""

    nll: float
    error: NotRequired[Percent]
    brier: NotRequired[NotNegative]
    ece: NotRequired[Share]


def result_of(line: MethodLine | OtherLine) -> MethodResult:
    """Return what :func:`as_methods` wrote."""
    names = {field.name for field in fields(MethodResult)}
    known: dict[str, Any] = {name: value for name, value in line.items() if name in names}
    missing = dict.fromkeys(_COMMON)
    return MethodResult(**{**missing, **known, "member_names": tuple(line["member_names"])})


def method_result(
    name: str,
    test: PredictionFile,
    members: Sequence[str],
    *,
    train_epochs: int,
    weight_bytes: int,
    refresh_images: int = 0,
    validation_images: int = 0,
    chosen: str | None = None,
) -> MethodResult:
    """Return the line of the ensemble that averages the probabilities of ``members``.

    Args:
        name: of the method.
        test: test predictions, which hold the members.
        members: their names there.
        train_epochs: that the method needs, fits included.
        weight_bytes: of one network.
        refresh_images: passed forward for batch-norm statistics.
        validation_images: passed forward for validation.
        chosen: the member that a rule selected, if any.
    """
    size = len(members)
    line = MethodResult(
        name,
        size,
        train_epochs,
        size,
        size * weight_bytes,
        *(0.0, 0.0, 0.0, 0.0),
        member_names=tuple(members),
        refresh_images=refresh_images,
        validation_images=validation_images,
        chosen=chosen,
        task=test.task,
    )
    return line.with_figures(test.figures(members))


def ensemble_results(
    test: PredictionFile,
    snapshots: Sequence[dict[str, Any]],
    *,
    weight_bytes: int,
    budget: int,
    stage: str = "fge",
    name: str | None = None,
    kept: Sequence[int] | None = None,
    networks: Sequence[str] = ("single", "average"),
) -> list[MethodResult]:
    """Return the table of a run that keeps snapshots.

    Args:
        test: test predictions of members ``STAGE-0001``, ... and, where trained beside them,
            ``single-0001`` and ``average-0001``.
        snapshots: their facts and costs in the order of the cycles, as
            :meth:`fge.runs.StagedTraining.snapshot_costs` gives them.
        weight_bytes: of one network.
        budget: epochs of the single network.
        stage: that kept the snapshots.
        name: of the method, whose one snapshot is one line; by default the ensembles are called
            ``fge``, and one snapshot makes none.
        kept: the positions of the members among the snapshots; by default all are. What validation
            left out was trained as well: all members together cost all snapshots.
        networks: methods of one network that may be trained beside the snapshots.
    """
    positions = range(len(snapshots)) if kept is None else kept
    names = [f"{stage}-{position + 1:04d}" for position in positions]
    count = len(names)

    def result(
        name: str, part: slice, trained: int = count, chosen: str | None = None
    ) -> MethodResult:
        """Return the line of some members, at the cost of the first ``trained`` ones."""
        paid = snapshots[: positions[trained - 1] + 1] if trained < count else snapshots
        return method_result(
            name,
            test,
            names[part],
            train_epochs=paid[-1]["train_epochs"],
            weight_bytes=weight_bytes,
            refresh_images=sum(snapshots[k]["refresh_images"] for k in positions[part]),
            validation_images=sum(facts["validation_images"] for facts in paid),
            chosen=chosen,
        )

    results = []
    if len(names) == 1 and name is not None:
        return [result(name, slice(1))]
    for network in networks:
        if f"{network}-0001" in test and network != stage:
            validated = snapshots[0]["validation_images"]
            results.append(_network(network, test, weight_bytes, budget, validated))
    results.append(result("last-snapshot", slice(count - 1, count)))
    if all("val_nll" in facts for facts in snapshots):
        best = int(np.argmin([snapshots[k]["val_nll"] for k in positions]))
        results.append(result("best-snapshot", slice(best, best + 1), chosen=names[best]))
    sizes = range(2, count + 1)
    return results + [result(name or "fge", slice(size), trained=size) for size in sizes]


def _network(
    name: str, test: PredictionFile, weight_bytes: int, epochs: int, validated: int
) -> MethodResult:
    """Return the line of a single network that was trained beside the snapshots."""
    return method_result(
        name,
        test,
        [f"{name}-0001"],
        train_epochs=epochs,
        weight_bytes=weight_bytes,
        validation_images=validated,
    )


def verdict(results: Sequence[MethodResult], name: str = "fge") -> list[str]:
    """Return sentences on the ensemble's figures, its cost and its gain over the other lines.

    They are about this one run on these test images, not about the method.
    """
    ensembles = [r for r in results if r.name == name]
    if len(ensembles) == len(results) == 1 and ensembles[0].members == 1:
        return [f"The network of {name} has {_scores_and_cost(ensembles[0])}."]
    if not ensembles:
        only = results[-1]
        return [
            f"The run has one snapshot and no ensemble; the snapshot has {_scores_and_cost(only)}.",
            "For an ensemble, train longer or use shorter cycles.",
        ]
    ensemble = ensembles[-1]
    others = [r for r in results if r.name in ("last-snapshot", "single")]
    return [
        f"The ensemble of {ensemble.members} snapshots has {_scores_and_cost(ensemble)}.",
        *(f"It has {comparison(ensemble, r)} {_described(r)}." for r in others),
        ONE_RUN,
    ]


def _scores_and_cost(result: MethodResult) -> str:
    return (
        f"{scores_text(result)}, for "
        f"{cost_text(result.train_epochs, result.forward_passes)} (one run, one test set)"
    )


def scores_text(result: MethodResult) -> str:
    """Return the first figure of a line's task and its NLL in words."""
    measure = result.task.measure
    value = measure.value.format(result.value(measure.key))
    first = f"{value} {measure.word}" if measure.unit else f"{measure.word} {value}"
    return f"{first} and NLL {result.nll:.4f}"


def cost_text(epochs: float, passes: float) -> str:
    """Return the cost of a method in words.

    >>> cost_text(24, 1)
    '24 epochs of training and 1 pass per prediction'
    """
    return (
        f"{epochs:g} {'epoch' if epochs == 1 else 'epochs'} of training and "
        f"{passes:g} {'pass' if passes == 1 else 'passes'} per prediction"
    )


_SAME = "the same"


def comparison(ours: MethodResult, theirs: MethodResult) -> str:
    """Say by how much error and NLL of one result differ: "... than" or "the same ... as"."""
    measure = ours.task.measure
    difference = ours.value(measure.key) - theirs.value(measure.key)
    first = _change(difference, measure.word, measure.difference)
    nll = _change(ours.nll - theirs.nll, "NLL", "{:.4f}")
    if first.startswith(_SAME) and nll.startswith(_SAME):
        return f"{_SAME} {measure.word} and NLL as"
    return f"{first} and {nll} than"


def _described(result: MethodResult) -> str:
    if result.name == "single":
        return f"the single network of {result.train_epochs} epochs"
    return "its last snapshot"


def _change(difference: float, name: str, form: str) -> str:
    if form.format(abs(difference)) == form.format(0):
        return f"{_SAME} {name}"
    word = "lower" if difference < 0 else "higher"
    return f"{form.format(abs(difference))} {word} {name}"


def table_rows(
    results: Sequence[MethodResult], *, balanced: bool = False
) -> tuple[list[str], list[list[str]]]:
    """Return the headings and the cells of the method table as text.

    Args:
        results: the lines.
        balanced: whether their balanced errors are a column too, after the errors.
    """
    own = results[0].task.columns if results else MANY_CLASSES.columns
    columns = [*COLUMNS[:2], *own, *COLUMNS[-2:]]
    columns[3:3] = [_BALANCED] if balanced else []
    rows = [[_cell(r, key, form) for key, _, form in columns] for r in results]
    return [heading for _, heading, _ in columns], rows


def _cell(result: MethodResult, key: str, form: str) -> str:
    """Return a figure as text, or a dash for one that does not exist here."""
    value = result.value(key)
    return "-" if value is None else form.format(value)


def as_methods(results: Sequence[MethodResult]) -> list[dict[str, Any]]:
    """Return the results as JSON values for ``report.json``."""
    names = [f.name for f in fields(MethodResult) if f.name not in ("task", "figures")]
    lines = []
    for result in results:
        facts = {name: getattr(result, name) for name in names}
        known = {key: value for key, value in facts.items() if value is not None}
        lines.append({**known, **(result.figures or {})})
    return lines


def with_ood(results: Sequence[MethodResult], predictions: MemberPredictions) -> list[MethodResult]:
    """Return the results with the AUROCs of each kind of OOD images; unchanged without any.

    Each AUROC compares the members' predictions on the OOD images with those on the test set; see
    :meth:`fge.tasks.Task.detection`.

    Args:
        results: whose members are predicted on all images.
        predictions: of the run.
    """
    if not predictions.ood:
        return list(results)
    return [replace(result, ood=_aurocs(result, predictions)) for result in results]


def _aurocs(result: MethodResult, predictions: MemberPredictions) -> dict[str, dict[str, float]]:
    names, task = result.member_names, predictions.test.task

    def averaged(file: PredictionFile) -> Averaged:
        return Averaged(file.mean(names), file.spread(names) if task.uses_noise else None)

    inside = averaged(predictions.test)
    return {name: task.detection(inside, averaged(file)) for name, file in predictions.ood.items()}


def with_views(
    results: Sequence[MethodResult], predictions: MemberPredictions
) -> list[MethodResult]:
    """Return the results with lines ``NAME+tta`` of test-time augmentation, where there are views.

    Such a line has the members and the training of the line before it, a forward pass for each
    member and view, and no figures of OOD images, which are predicted without views. Each name has
    one, of its largest ensemble; those in ``_WITHOUT_VIEWS`` have none.

    Args:
        results: of the run.
        predictions: of the run.
    """
    tta = predictions.tta
    if tta is None:
        return list(results)
    largest = {result.name: result for result in results if result.name not in _WITHOUT_VIEWS}
    found = []
    for line in results:
        found.append(line)
        if line is largest.get(line.name) and all(name in tta for name in line.member_names):
            passes = line.members * (1 + len(predictions.views))
            probs = tta.mean(line.member_names)
            viewed = line.with_figures(tta.figures(line.member_names))
            changes: dict[str, Any] = {}
            if line.balanced_error is not None:
                counts = metrics.confusion(probs, tta.targets)
                changes["balanced_error"] = metrics.balanced_error(counts)
            changes |= {"name": f"{line.name}{VIEWS_SUFFIX}", "forward_passes": passes, "ood": None}
            found.append(replace(viewed, **changes))
    return found


def views_note(views: int) -> str:
    """Return a sentence about lines with test-time augmentation; nothing for one view."""
    if views == 1:
        return ""
    return (
        f"`{VIEWS_SUFFIX}` averages each member over {views} views of an image: the image itself, "
        f"and {views - 1} that {'varies' if views == 2 else 'vary'} as training images do."
    )


def ood_tables(results: Sequence[MethodResult], dataset: Dataset) -> list[Table]:
    """Return the table of how well each result detects OOD images; [] without OOD images.

    Args:
        results: of :func:`with_ood`.
        dataset: of the run, with its OOD images.
    """
    if not dataset.ood:
        return []
    found = [result.ood or {} for result in results]
    known = {score for aurocs in found for own in aurocs.values() for score in own}
    scores = {score: words for score, words in OOD_SCORES.items() if score in known}
    if not scores:
        return []
    headings = ["method", "members"]
    for name in dataset.ood:
        first, *others = (heading for heading, _ in scores.values())
        headings += [f"{name}: {first}", *others]
    rows = []
    for result, aurocs in zip(results, found, strict=True):
        own = [aurocs.get(name, {}).get(score) for name in dataset.ood for score in scores]
        cells = ["-" if value is None else f"{value:.4f}" for value in own]
        rows.append([result.name, str(result.members), *cells])
    kinds = [
        f"{plain_name(name)}, {len(other.split)} images" for name, other in dataset.ood.items()
    ]
    note = (
        f"OOD images ({'; '.join(kinds)}; in the size and channels of the data) against the "
        f"{len(dataset.test)} test images. AUROC is the probability that the OOD image is the less "
        f"certain one, by {' or '.join(doubt for _, doubt in scores.values())}: 0.5 is chance, 1 "
        "is perfect. OOD images are not used in training or selection, and the costs above do not "
        "count them."
    )
    return [Table(OOD_TITLE, headings, rows, note)]
