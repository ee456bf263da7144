"""The command ``fge``: wiring, and nothing else."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from torch import nn

from fge.commands.averages import Averages, average_snapshots
from fge.commands.baseline import BaselineRun, beside_baseline, read_baseline
from fge.commands.build import initial_model, make_training, member_predictions
from fge.commands.refit import Refit, check_refit, refit
from fge.commands.run import Run, check_kept, open_run, prepare
from fge.config.training import FGEConfig
from fge.ensemble.predictions import MemberPredictions
from fge.errors import DivergenceError
from fge.networks.state import state_bytes
from fge.report.curves import curve_figure, pairs_table
from fge.report.interactive_runs import curve_plot
from fge.report.methods import (
    MethodResult,
    add_reliability,
    as_methods,
    ensemble_results,
    ood_tables,
    table_rows,
    verdict,
    with_ood,
)
from fge.report.page import (
    FILES,
    UNITS,
    FigureSet,
    Page,
    Table,
    dataset_facts,
    splits_note,
)
from fge.report.training import add_training, find_dynamics
from fge.runs.staged import StagedTraining
from fge.train.methods import fge_stages
from fge.train.recipes import endpoint_recipe

_UNKNOWN_COST = (
    "The run began with given weights (--pretrained): the epochs of their training are not known "
    "and counted nowhere."
)


def fge(config: FGEConfig) -> Path:
    """Train with a cyclic learning rate, ensemble the snapshots, report; return the run folder.

    Raises:
        UserError: something the user can mend; no file was lost.
        DivergenceError: the loss stopped being finite; earlier snapshots are usable.
        KeyboardInterrupt: after saying how to resume.
    """
    check_refit(config)
    check_kept(config, (config.pretrained, config.baseline))
    config, dataset = prepare(config, "fge")
    model = initial_model(config, dataset)
    epochs = sum(stage.last_epoch - stage.first_epoch for stage in fge_stages(config))
    baseline = read_baseline(config.baseline, dataset, config.model) if config.baseline else None
    with open_run(config, "fge", dataset, model, epochs=epochs) as run:
        _train_and_report(run, model, baseline)
    return run.folder.path


def _train_and_report(run: Run[FGEConfig], model: nn.Module, baseline: BaselineRun | None) -> None:
    training = make_training(
        run.config,
        run.dataset,
        model,
        run.folder,
        run.observer,
        recipe=endpoint_recipe(run.config),
        stages=fge_stages(run.config),
    )
    predictions = member_predictions(run.config, run.dataset, run.folder)
    try:
        training.run()
        training.predict_members(predictions)
    except DivergenceError as error:
        kept = len(training.stores["fge"])
        raise DivergenceError(f"{error}; {kept} snapshots are kept in {run.folder.path}") from None
    averages = average_snapshots(run, training, "fge", predictions)
    refitted = refit(run, training, predictions) if run.config.refit else None
    _report(run, training, predictions, averages, refitted, baseline)


def _report(
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
        f"`best-snapshot` is {chosen[0]}, the one with the lowest validation NLL."
        if chosen
        else "Without validation data there is no `best-snapshot`."
    )
    splits = splits_note(dataset_facts(run.dataset))
    return " ".join([splits, UNITS, best, *_cost_note(run.config).values()])


def _cost_note(config: FGEConfig) -> dict[str, str]:
    """Return what ``report.json`` says of a cost that the ledger cannot hold, if there is one."""
    return {"cost_note": _UNKNOWN_COST} if config.pretrained is not None else {}
