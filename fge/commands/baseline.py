"""Comparing a run with a curve-ensemble run on the same test set, a finished one or its own."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, TypedDict

from fge.commands.curves import train_curve_ensemble
from fge.commands.run import Run, open_part
from fge.commands.start import Start
from fge.config import (
    CLASSIFICATION,
    CURVE_END_SHARE,
    CURVE_POINTS,
    CurveEnsembleConfig,
    FGEConfig,
    options_for,
    read_report,
)
from fge.data import Dataset
from fge.ensemble import PredictionFile, predictions_of_run
from fge.errors import DivergenceError, UserError
from fge.files import RESTORE, checked
from fge.metrics import Interval, paired_difference, paired_difference_of_values
from fge.observer import counted
from fge.parallel import started_processes
from fge.report import (
    MethodLine,
    MethodResult,
    OtherLine,
    ReportBuilder,
    Table,
    as_methods,
    plain_name,
    result_of,
    table_rows,
)
from fge.tasks import Measure, task_of

_METHODS = ("ends", "curve")
_NLL = Measure("nll", "NLL", "{:.4f}", "{:.4f}")
FOLDER = "baseline"
"""Where a run keeps the baseline that it trains itself."""


class _Images(TypedDict):
    sha256: str


class _Report(TypedDict):
    command: str
    model: str
    dataset: _Images
    methods: list[dict[str, Any]]


@dataclass(frozen=True)
class BaselineRun:
    """The rows ``ends`` and ``curve`` of a curve-ensemble run, with their test predictions."""

    path: Path
    ends: MethodResult
    curve: MethodResult
    predictions: PredictionFile


def read_baseline(path: Path, dataset: Dataset, model: str) -> BaselineRun:
    """Read a finished curve-ensemble run with the same data and model, and its test predictions."""
    file = path / "report.json"
    if not file.exists():
        raise UserError(f"--baseline {path} has no report.json; give a finished run")
    damaged = "is not a report of a curve-ensemble run"
    content = read_report(file, _Report, damaged=damaged)
    for key, known, value in (
        ("command", content["command"], "curve-ensemble"),
        ("model", content["model"], model),
    ):
        if known != value:
            raise UserError(f"--baseline {path} has {key} {known!r}; give a run with {value!r}")
    task = task_of(dataset)
    kind: Any = list[MethodLine] if task.of_classes else list[OtherLine]
    lines: list[Any] = checked(content["methods"], kind, f"{file} {damaged}")
    if content["dataset"]["sha256"] != dataset.fingerprint:
        raise UserError(
            f"--baseline {path} used other {dataset.example}s than --data {dataset.name}; give a "
            f"run on the same {dataset.example}s"
        )
    methods = {line["name"]: result_of(line) for line in lines}
    for name in _METHODS:
        if name not in methods:
            raise UserError(f"{file} {damaged}: it has no method {name!r}; {RESTORE}")
    ends, curve = (methods[name] for name in _METHODS)
    predictions = predictions_of_run(path / "predictions", dataset, task)
    for stored in (predictions, *([predictions.noise_from()] if predictions.noise_from else [])):
        for member in (*ends.member_names, *curve.member_names):
            stored.check(member)
    if task.name != CLASSIFICATION:  # of the others a line has more figures than are checked
        ends, curve = (
            replace(line, task=task).with_figures(predictions.figures(line.member_names))
            for line in (ends, curve)
        )
    return BaselineRun(path, ends, curve, predictions)


@dataclass(frozen=True)
class Beside:
    """The section of a report that compares its ensembles with a baseline run."""

    ensembles: Sequence[MethodResult]
    test: PredictionFile
    baseline: BaselineRun
    example: str = "image"
    own: bool = False
    results: Sequence[MethodResult] = ()

    def add_to(self, report: ReportBuilder) -> None:
        """Add the section to a report."""
        table, sentence = beside_baseline(self.ensembles, self.test, self.baseline, self.example)
        report.table(table)
        report.say(sentence)
        if self.own:
            lines = [self.baseline.ends, self.baseline.curve]
            report.facts(baseline={"folder": FOLDER, "methods": as_methods(lines)})
            report.files.append(f"{FOLDER}/report.html")
            report.say(
                f"--baseline auto trained that ensemble here, in {FOLDER}: "
                f"{counted(self.baseline.curve.train_epochs, 'epoch')} beside those of this run."
            )


def check_own_baseline(config: FGEConfig) -> None:
    """Refuse to train a baseline in several processes.

    Raises:
        UserError: naming what to do instead.
    """
    size = started_processes()
    if config.baseline == "auto" and size > 1:
        raise UserError(
            f"--baseline auto trains in one process, got {size}; run curve-ensemble by itself and "
            "give --baseline its folder"
        )


def train_baseline(run: Run[FGEConfig], start: Start) -> BaselineRun:
    """Train the curve ensemble that has the budget of a run, or continue it; return what it found.

    It is a run of its own in the run's folder ``baseline``, with the networks, shares of the budget
    and points that ``compare`` takes. Its networks start where the run did, at ``start``.

    Raises:
        DivergenceError: saying that it was the baseline; the run itself is trained.
    """
    config = baseline_config(run.config)
    epochs, fit = counted(config.epochs, "epoch"), counted(config.fit_epochs, "epoch")
    run.observer.note(f"baseline: two networks of {epochs} each and a fit of {fit}, in {FOLDER}")
    start = replace(start, model=start.another(run.setup, run.setup.seed))
    try:
        with open_part(run, FOLDER, config, "curve-ensemble", start.model) as part:
            train_curve_ensemble(part, start, {})
    except DivergenceError as error:
        raise DivergenceError(
            f"baseline: {error}; --resume --baseline None reports the run without it"
        ) from None
    return read_baseline(part.folder.path, run.dataset, run.config.model)


def baseline_config(config: FGEConfig) -> CurveEnsembleConfig:
    """Return the options of the curve ensemble with the budget of a run, as ``compare`` has it."""
    end = max(1, int(CURVE_END_SHARE * config.epochs))
    recipe: Any = "average" if config.average_part > 0 else "endpoint"
    return options_for(
        CurveEnsembleConfig,
        config,
        epochs=end,
        curve_epochs=config.epochs - 2 * end,
        first=recipe,
        second=recipe,
        eval_points=CURVE_POINTS,
        ensemble_points=CURVE_POINTS,
    )


def beside_baseline(
    ours: Sequence[MethodResult],
    test: PredictionFile,
    baseline: BaselineRun,
    example: str = "image",
) -> tuple[Table, str]:
    """Return a table of both runs and the verdict in words.

    Each of this run's ensembles is compared with the baseline's ``curve``: differences of error
    and NLL, or of what the task compares, with their paired bootstrap intervals over test examples.
    """
    curve = baseline.curve
    headings, rows = table_rows([*ours, baseline.ends, curve])
    note = f"`ends` and `curve` are from {plain_name(baseline.path.name)}; costs as above."
    table = Table("Comparison with the two-network curve ensemble", headings, rows, note)
    sentences = []
    for line in ours:
        measured = _differences(line, test, curve, baseline.predictions)
        parts = [_in_words(measure, paired) for measure, paired in measured]
        sentences.append(f"{line.name} ({_cost(line)}) has {' and '.join(parts)}")
    scope = (
        f"Below 0, the difference favours this run. The 95 % intervals resample test {example}s: "
        "they are about these two runs, not about the methods."
    )
    against = f"Compared with the two-network curve ensemble ({_cost(curve)})"
    return table, f"{against}: {'; '.join(sentences)}. {scope}"


def _cost(line: MethodResult) -> str:
    return f"{line.train_epochs} epochs, passes: {line.forward_passes}"


def _differences(
    ours: MethodResult, test: PredictionFile, theirs: MethodResult, other: PredictionFile
) -> list[tuple[Measure, Interval]]:
    """Return by how much one line differs from one of another run, with intervals."""
    task, sides = test.task, ((test, ours.member_names), (other, theirs.member_names))
    if task.of_classes:
        a, b = (file.mean(members) for file, members in sides)
        return [
            (task.compared, paired_difference(a, b, test.targets, "error")),
            (_NLL, paired_difference(a, b, test.targets, "nll")),
        ]
    one, two = (
        task.per_example(file.mean(members), file.targets, *file.variances(members))
        for file, members in sides
    )
    return [
        (task.compared, paired_difference_of_values(one.compared, two.compared)),
        (_NLL, paired_difference_of_values(one.nll, two.nll)),
    ]


def _in_words(measure: Measure, paired: Interval) -> str:
    full = measure.difference.replace("{:", "{:+")
    plain = full.split(" ")[0]
    verdict = "significant" if paired.low > 0 or paired.high < 0 else "not significant"
    interval = f"[{plain.format(paired.low)}, {plain.format(paired.high)}]"
    return f"{measure.word} {full.format(paired.difference)} {interval} ({verdict})"
