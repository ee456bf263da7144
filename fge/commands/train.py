"""The commands ``fge`` and ``train``: train one network by a method, average, and report."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Protocol

from fge.commands.averages import average_snapshots
from fge.commands.baseline import Beside, check_own_baseline, read_baseline, train_baseline
from fge.commands.distill import distill
from fge.commands.refit import refit
from fge.commands.resumed import run_whole
from fge.commands.run import Run, check_kept, open_run, prepare
from fge.commands.start import GivenWeights, Start, starting_model
from fge.commands.training import make_training
from fge.config import CycleConfig, FGEConfig, PretrainedConfig, TrainConfig, to_options
from fge.ensemble import TTA_FILE, MemberPredictions
from fge.errors import DivergenceError, UserError
from fge.networks import state_bytes
from fge.observer import counted
from fge.report import (
    PREDICTIONS,
    ClassCounts,
    MethodResult,
    Published,
    ReportBuilder,
    Table,
    add_classes,
    add_reliability,
    add_training,
    add_uncertainty,
    as_methods,
    dataset_facts,
    ensemble_results,
    find_dynamics,
    ood_tables,
    plan_section,
    published_for,
    regime_section,
    splits_note,
    table_rows,
    units_note,
    verdict,
    views_note,
    with_balanced_error,
    with_ood,
    with_views,
)
from fge.runs import StagedTraining
from fge.train import (
    Method,
    Planner,
    Recipe,
    Stage,
    Unused,
    auto_plan,
    endpoint_recipe,
    fge_stages,
    find_method,
    unused_epochs,
)


class Section(Protocol):
    """A part of a report in addition to its method, with lines of the method table."""

    @property
    def results(self) -> Sequence[MethodResult]:
        """Its lines of the method table."""

    def add_to(self, report: ReportBuilder) -> None:
        """Add tables, charts, sentences and facts."""


@dataclass(frozen=True)
class UnusedEpochs:
    """The section of a run that uses a part of its budget."""

    unused: Unused
    results: Sequence[MethodResult] = ()

    def add_to(self, report: ReportBuilder) -> None:
        """Say which part, and what would use all."""
        report.facts(unused_epochs=[self.unused.facts()])
        report.say(self.unused.sentence())


@dataclass(frozen=True)
class Trained:
    """A finished training by a method, its predictions, its lines of the method table, and more."""

    training: StagedTraining
    recipe: Recipe
    predictions: MemberPredictions
    sections: list[Section]
    results: list[MethodResult]


def fge(config: FGEConfig) -> Path:
    """Train with a cyclic learning rate, ensemble the snapshots, report; return the run folder.

    With ``plan`` auto, a planner decides how the budget is spent.
    """
    check_own_baseline(config)
    folder = config.baseline if isinstance(config.baseline, Path) else None
    check_kept(config, (config.pretrained, folder))
    config, setup = prepare(config, "fge")
    start = starting_model(config, setup, endpoint_recipe(config))
    method = find_method("auto") if config.plan == "auto" else None
    make_stages = auto_plan if method else fge_stages
    baseline = read_baseline(folder, setup.dataset, config.model) if folder else None
    with open_run(config, "fge", setup, start.model, epochs=_epochs(make_stages(config))) as run:
        recipe = endpoint_recipe(run.config)
        name = method.name if method else "fge"
        unused = _say_unused(run, method or find_method("fge"))
        trained = _train(run, start, name, recipe, make_stages(run.config), method)
        if trained is None:
            return run.folder.path
        sections = [*_given(run.config), *unused]
        sections += _regime(run, trained.training, method)
        ensembles = trained.results[-1:]
        if run.config.refit:
            refitted = refit(run, trained.training, trained.predictions.plain)
            sections.append(refitted)
            ensembles.append(refitted.results[-1])
        own = run.config.baseline == "auto"
        if own:
            baseline = train_baseline(run, start)
        if baseline:
            test, example = trained.predictions.test, run.dataset.example
            sections.append(Beside(ensembles, test, baseline, example, own=own))
        published = None
        if baseline is None:
            published = published_for(to_options(run.config), run.dataset.fingerprint)
        _report(run, "fge", trained, sections, published)
    return run.folder.path


def train(config: TrainConfig) -> Path:
    """Train one network by a method and report; return the run folder."""
    method = find_method(config.method)
    check_kept(config, (config.pretrained,))
    config, setup = prepare(config, "train")
    if config.tta and not method.recipe(config).augment:
        raise UserError(
            f"tta {config.tta} needs the augmentation of training, and {method.name} has none; "
            "leave out --tta"
        )
    start = starting_model(config, setup, method.recipe(config))
    epochs, facts = _epochs(method.stages(config)), {"combine": method.combine}
    with open_run(config, "train", setup, start.model, epochs=epochs, facts=facts) as run:
        unused = _say_unused(run, method)
        trained = _train(
            run,
            start,
            method.name,
            method.recipe(run.config),
            method.stages(run.config),
            method,
            method.ema_decay(run.config) if method.ema_decay else None,
        )
        if trained is not None:
            sections = [*_given(run.config), *unused]
            sections += _regime(run, trained.training, method)
            _report(run, method.name, trained, sections)
    return run.folder.path


def _regime(
    run: Run[PretrainedConfig], training: StagedTraining, method: Method | None = None
) -> list[Section]:
    """Return the section that says whether one network would gain from more epochs.

    It is that of a plan, or of FGE with averages: the command ``fge`` has no ``method``.
    """
    config = run.config
    if training.planner and method:
        wider = replace(config, epochs=2 * config.epochs)
        longer = method.stages(wider) if isinstance(wider, TrainConfig) else auto_plan(wider)
        assert not isinstance(longer, Sequence)
        return [plan_section(training, longer, run.dataset.example)]
    found = None
    if config.average_part > 0 and (method is None or method.name == "fge"):
        found = regime_section(training, "fge")
    return [found] if found else []


def _say_unused(run: Run[PretrainedConfig], method: Method) -> list[Section]:
    """Say before the training which part of the budget is not used, if any."""
    unused = unused_epochs(run.config, method)
    if unused is None:
        return []
    run.observer.note(unused.sentence())
    return [UnusedEpochs(unused)]


def _given(config: PretrainedConfig) -> list[Section]:
    return [GivenWeights()] if config.pretrained is not None else []


def _epochs(stages: Sequence[Stage] | Planner) -> int:
    if not isinstance(stages, Sequence):
        return stages.epochs
    return sum(stage.last_epoch - stage.first_epoch for stage in stages)


def _train(
    run: Run[PretrainedConfig],
    start: Start,
    name: str,
    recipe: Recipe,
    stages: Sequence[Stage] | Planner,
    method: Method | None = None,
    ema_decay: float | None = None,
) -> Trained | None:
    """Train, predict with the members and average their weights; only the first process returns it.

    Args:
        run: the current run.
        start: the model with its initial weights.
        name: of the method.
        recipe: of its training.
        stages: of its training.
        method: whose last stage has the members; without one, the stage ``fge`` has them.
        ema_decay: of the exponential average that snapshots keep.
    """
    training = make_training(
        run.setup,
        start.model,
        run.folder,
        run.observer,
        recipe=recipe,
        stages=stages,
        ranks=run.ranks,
        ema_decay=ema_decay,
        given=start.given,
    )
    predictions = run.setup.predictions(run.folder)
    stage = list(training.stores)[-1] if method else "fge"
    try:
        if not run_whole(training):
            return None
        training.predict_members(predictions)
    except DivergenceError as error:
        kept = len(training.stores[stage])
        what = f"{counted(kept, 'snapshot')} saved in {run.folder.path}"
        raise DivergenceError(f"{name}: {error}; {what}") from None
    return _assess(run, training, stage, name, recipe, method, predictions)


def _assess(
    run: Run[PretrainedConfig],
    training: StagedTraining,
    stage: str,
    name: str,
    recipe: Recipe,
    method: Method | None,
    predictions: MemberPredictions,
) -> Trained:
    """Make the lines of a finished training: its networks and ensembles, and one network of them.

    The arguments are those of :func:`_train`, and the kind of the members (``stage``).
    """
    one_path = not method or method.one_path
    # The weights of one snapshot are their own average.
    averaged = len(training.stores[stage]) > 1 and method and method.combine == "weights"
    ensemble = "ensemble" if averaged else name
    results = ensemble_results(
        predictions.test,
        training.snapshot_costs(stage),
        weight_bytes=state_bytes(training.learner.model),
        budget=run.config.epochs,
        stage=stage,
        name=ensemble if method else None,
        kept=(kept := training.trusted(stage)),
    )
    distilled = distill(run, training, stage, kept, recipe, predictions, results[-1])
    averages = average_snapshots(
        run,
        training,
        stage,
        recipe,
        predictions,
        all_of_them=one_path,
        distilled=distilled,
        kept=kept,
    )
    run.report.say(*verdict(results, ensemble))
    if averaged:
        lines = [replace(r, name=name) if r.name == "swa" else r for r in averages.results]
        averages = replace(averages, results=lines)
    sections: list[Section] = [distilled] if distilled else []
    return Trained(training, recipe, predictions, [*sections, averages], results)


def _report(
    run: Run[CycleConfig],
    name: str,
    trained: Trained,
    more: Sequence[Section] = (),
    published: Published | None = None,
) -> None:
    """Write the report of a method, with more sections between its averages and its dynamics.

    A ``published`` baseline is shown, but is no method of the run.
    """
    report, test = run.report, trained.predictions.test
    sections: list[Section] = [*trained.sections, *more]
    lines = [*trained.results, *(line for section in sections for line in section.results)]
    lines = with_ood(lines, trained.predictions)
    viewed = with_views(with_balanced_error(lines, test), trained.predictions)
    balanced = run.setup.task.name == "binary" or ClassCounts.of(run.dataset).imbalanced
    headings, rows = table_rows(viewed, balanced=balanced)
    note = _note(run, lines)
    if published:
        rows, note = [*rows, published.row], f"{note} {published.note}"
    report.table(Table("Results on the test set", headings, rows, note=note))
    report.table(*ood_tables(lines, run.dataset))
    add_classes(report, lines, test, run.dataset)
    report.facts(methods=as_methods(viewed))
    report.files.append(PREDICTIONS)
    if run.setup.views > 1:
        report.files.append(f"predictions/{TTA_FILE}")
    add_training(report, trained.training, trained.recipe)
    for section in sections:
        section.add_to(report)
    if published:
        report.say(published.sentence)
        report.facts(published_baseline=published.facts)
    if dynamics := find_dynamics(trained.training, trained.recipe, run.dataset.example):
        dynamics.add_to(report)
    add_reliability(report, lines, test)
    val, data = trained.training.val_predictions, run.dataset
    if val is not None and test.task.uses_noise and test.noise_from is not None:
        val = test.noise_from()  # the same file, with the points on curves that came later
    add_uncertainty(report, lines, test, val, data.test, data.classes, data.example, data.table)
    run.finish(f"{name}: {run.config.model} on {run.dataset.name}, seed {run.config.seed}")


def _note(run: Run[CycleConfig], lines: Sequence[MethodResult]) -> str:
    chosen = [line.chosen for line in lines if line.chosen]
    notes = [
        splits_note(dataset_facts(run.dataset)),
        units_note(run.setup.task, run.dataset),
        views_note(run.setup.views),
    ]
    if chosen:
        notes.append(f"`best-snapshot` is {chosen[0]}, which has the lowest validation NLL.")
    elif any(line.name == "last-snapshot" for line in lines):
        notes.append("Without validation data there is no `best-snapshot`.")
    return " ".join(filter(None, notes))
