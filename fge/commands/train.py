"""The commands ``fge`` and ``train``: train one network by a method, average, and report."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from torch import nn

from fge.commands.averages import Averages, average_snapshots
from fge.commands.baseline import BaselineRun, beside_baseline, read_baseline
from fge.commands.build import initial_model, make_training
from fge.commands.refit import Refit, check_refit, refit
from fge.commands.run import Run, check_kept, open_run, prepare
from fge.config import FGEConfig, TrainConfig
from fge.ensemble import MemberPredictions
from fge.errors import DivergenceError
from fge.networks import state_bytes
from fge.observer import counted
from fge.report import (
    FILES,
    UNITS,
    FigureSet,
    MethodResult,
    Page,
    Table,
    add_reliability,
    add_training,
    as_methods,
    curve_figure,
    curve_plot,
    dataset_facts,
    ensemble_results,
    find_dynamics,
    ood_tables,
    pairs_table,
    splits_note,
    table_rows,
    verdict,
    with_ood,
)
from fge.runs import StagedTraining
from fge.train import Method, endpoint_recipe, fge_stages, find_method

_UNKNOWN_COST = (
    "The run started from given weights (--pretrained); the epochs of their training are unknown "
    "and not counted."
)


def fge(config: FGEConfig) -> Path:
    """Train with a cyclic learning rate, ensemble the snapshots, report; return the run folder."""
    check_refit(config)
    check_kept(config, (config.pretrained, config.baseline))
    config, setup = prepare(config, "fge")
    model = initial_model(config, setup)
    epochs = sum(stage.last_epoch - stage.first_epoch for stage in fge_stages(config))
    baseline = None
    if config.baseline:
        baseline = read_baseline(config.baseline, setup.dataset, config.model)
    with open_run(config, "fge", setup, model, epochs=epochs) as run:
        _train_fge(run, model, baseline)
    return run.folder.path


def train(config: TrainConfig) -> Path:
    """Train one network by a method and report; return the run folder."""
    method = find_method(config.method)
    config, setup = prepare(config, "train")
    model = setup.new_model()
    epochs = sum(stage.last_epoch - stage.first_epoch for stage in method.stages(config))
    facts = {"combine": method.combine}
    with open_run(config, "train", setup, model, epochs=epochs, facts=facts) as run:
        _train_method(run, method, model)
    return run.folder.path


def _train_fge(run: Run[FGEConfig], model: nn.Module, baseline: BaselineRun | None) -> None:
    training = make_training(
        run.setup,
        model,
        run.folder,
        run.observer,
        recipe=endpoint_recipe(run.config),
        stages=fge_stages(run.config),
        ranks=run.ranks,
    )
    predictions = run.setup.predictions(run.folder)
    try:
        if not training.run():
            return
        training.predict_members(predictions)
    except DivergenceError as error:
        kept = len(training.stores["fge"])
        raise DivergenceError(
            f"{error}; {counted(kept, 'snapshot')} saved in {run.folder.path}"
        ) from None
    averages = average_snapshots(run, training, "fge", predictions)
    refitted = refit(run, training, predictions) if run.config.refit else None
    _report_fge(run, training, predictions, averages, refitted, baseline)


def _report_fge(
    run: Run[FGEConfig],
    training: StagedTraining,
    predictions: MemberPredictions,
    averages: Averages,
    refitted: Refit | None,
    baseline: BaselineRun | None,
) -> None:
    """Draw the figures and write the report."""
    drawn = FigureSet(run.folder.figures)
    found = ensemble_results(
        predictions.test,
        training.snapshot_costs("fge"),
        weight_bytes=state_bytes(training.learner.model),
        budget=run.config.epochs,
    )
    verdicts, ensembles = [verdict(found), *averages.sentences], found[-1:]
    found += averages.results
    recipe = endpoint_recipe(run.config)
    add_training(drawn, training, recipe)
    content, tables = {**_cost_note(run.config), **averages.content}, [*averages.tables]
    if refitted:
        found += refitted.results
        ensembles.append(refitted.results[-1])
        _add_refit(refitted, drawn, tables, content)
    if baseline:
        table, sentence = beside_baseline(ensembles, predictions.test, baseline)
        tables.append(table)
        verdicts.append(sentence)
    if dynamics := find_dynamics(training, recipe):
        dynamics.add_to(drawn, tables, verdicts, content)
    add_reliability(drawn, found, predictions.test)
    found = with_ood(found, predictions)
    title = f"{run.config.model} on {run.dataset.name}, seed {run.config.seed}"
    tables = [*_method_tables(run, found), *tables]
    files = (*FILES, "predictions/test.npz", *averages.files)
    page = Page(title, " ".join(verdicts), tables, drawn.captions, files, drawn.plots)
    run.finish(page, {"methods": as_methods(found), **content})


def _add_refit(
    refitted: Refit, drawn: FigureSet, tables: list[Table], content: dict[str, Any]
) -> None:
    tables.append(pairs_table(refitted.pairs, "Between consecutive snapshots"))
    content["pairs"] = [pair.as_json() for pair in refitted.pairs]
    content["turning_angles"] = refitted.turns
    paths, place = [refitted.joined(name) for name in ("curve", "segment")], "snapshots passed"
    caption = "Loss and error along curves and segments, snapshot to snapshot"
    figure, plot = curve_figure(*paths, place=place), curve_plot(*paths, place=place)
    drawn.add("refit.png", figure, caption, plot)


def _method_tables(run: Run[FGEConfig], found: Sequence[MethodResult]) -> list[Table]:
    rows, note = table_rows(found), _notes(run, found)
    main = Table("Results on the test set", *rows, note=note)
    return [main, *ood_tables(found, run.dataset)]


def _notes(run: Run[FGEConfig], found: Sequence[MethodResult]) -> str:
    chosen = [result.chosen for result in found if result.chosen]
    best = (
        f"`best-snapshot` is {chosen[0]}, which has the lowest validation NLL."
        if chosen
        else "Without validation data there is no `best-snapshot`."
    )
    splits = splits_note(dataset_facts(run.dataset))
    return " ".join([splits, UNITS, best, *_cost_note(run.config).values()])


def _cost_note(config: FGEConfig) -> dict[str, str]:
    """Return the note in ``report.json`` about a cost that is not counted, if there is one."""
    return {"cost_note": _UNKNOWN_COST} if config.pretrained is not None else {}


def _train_method(run: Run[TrainConfig], method: Method, model: nn.Module) -> None:
    training = make_training(
        run.setup,
        model,
        run.folder,
        run.observer,
        recipe=method.recipe(run.config),
        stages=method.stages(run.config),
        ranks=run.ranks,
        ema_decay=method.ema_decay(run.config) if method.ema_decay else None,
    )
    predictions = run.setup.predictions(run.folder)
    try:
        if not training.run():
            return
        training.predict_members(predictions)
    except DivergenceError as error:
        raise DivergenceError(f"{method.name}: {error}; see {run.folder.path}") from None
    stage = list(training.stores)[-1]
    averages = average_snapshots(run, training, stage, predictions)
    _report_method(run, method, training, predictions, averages)


def _report_method(
    run: Run[TrainConfig],
    method: Method,
    training: StagedTraining,
    predictions: MemberPredictions,
    averages: Averages,
) -> None:
    stage, store = list(training.stores.items())[-1]
    # With one snapshot there is nothing to average.
    averaged = method.combine == "weights" and len(store) > 1
    ensemble = "ensemble" if averaged else method.name
    found = ensemble_results(
        predictions.test,
        training.snapshot_costs(stage),
        weight_bytes=state_bytes(training.learner.model),
        budget=run.config.epochs,
        stage=stage,
        name=ensemble,
    )
    verdicts = [verdict(found, ensemble), *averages.sentences]
    found += [
        replace(line, name=method.name) if line.name == "swa" and averaged else line
        for line in averages.results
    ]
    found = with_ood(found, predictions)
    note = f"{splits_note(dataset_facts(run.dataset))} {UNITS}"
    main = Table("Results on the test set", *table_rows(found), note=note)
    tables = [main, *ood_tables(found, run.dataset), *averages.tables]
    drawn, content = FigureSet(run.folder.figures), {**averages.content}
    recipe = method.recipe(run.config)
    add_training(drawn, training, recipe)
    add_reliability(drawn, found, predictions.test)
    if dynamics := find_dynamics(training, recipe):
        dynamics.add_to(drawn, tables, verdicts, content)
    title = f"{method.name}: {run.config.model} on {run.dataset.name}, seed {run.config.seed}"
    files = (*FILES, "predictions/test.npz", *averages.files)
    page = Page(title, " ".join(verdicts), tables, drawn.captions, files, drawn.plots)
    run.finish(page, {"methods": as_methods(found), **content})
