"""The command ``train``, which runs any method of one network: wiring, and nothing else."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from torch import nn

from fge.commands.averages import Averages, average_snapshots
from fge.commands.build import make_training, member_predictions, new_model
from fge.commands.run import Run, open_run, prepare
from fge.config.training import TrainConfig
from fge.ensemble.predictions import MemberPredictions
from fge.errors import DivergenceError
from fge.networks.state import state_bytes
from fge.report.methods import (
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
from fge.train.methods import Method, find_method


def train(config: TrainConfig) -> Path:
    """Train one network by a method and report; return the run folder.

    Raises:
        UserError: something the user can mend; no file was lost.
        DivergenceError: the loss stopped being finite; earlier snapshots are usable.
        KeyboardInterrupt: after saying how to resume.
    """
    method = find_method(config.method)
    config, dataset = prepare(config, "train")
    model = new_model(config, dataset)
    epochs = sum(stage.last_epoch - stage.first_epoch for stage in method.stages(config))
    facts = {"combine": method.combine}
    with open_run(config, "train", dataset, model, epochs=epochs, facts=facts) as run:
        _train_and_report(run, method, model)
    return run.folder.path


def _train_and_report(run: Run[TrainConfig], method: Method, model: nn.Module) -> None:
    training = make_training(
        run.config,
        run.dataset,
        model,
        run.folder,
        run.observer,
        recipe=method.recipe(run.config),
        stages=method.stages(run.config),
        ema_decay=method.ema_decay(run.config) if method.ema_decay else None,
    )
    predictions = member_predictions(run.config, run.dataset, run.folder)
    try:
        training.run()
        training.predict_members(predictions)
    except DivergenceError as error:
        raise DivergenceError(f"{method.name}: {error}; see {run.folder.path}") from None
    stage = list(training.stores)[-1]
    averages = average_snapshots(run, training, stage, predictions)
    _report(run, method, training, predictions, averages)


def _report(
    run: Run[TrainConfig],
    method: Method,
    training: StagedTraining,
    predictions: MemberPredictions,
    averages: Averages,
) -> None:
    stage, store = list(training.stores.items())[-1]
    # The weights of one snapshot are their own average.
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
