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
from fge.report import methods as results
from fge.report import report
from fge.report.drawn import Figures
from fge.report.dynamics import find_dynamics
from fge.report.ood_results import ood_tables, with_ood
from fge.report.reliability import add_reliability
from fge.report.training_results import add_training
from fge.runs.ledger import snapshot_costs
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
    found = results.ensemble_results(
        predictions.test,
        snapshot_costs(training, stage),
        weight_bytes=state_bytes(training.learner.model),
        budget=run.config.epochs,
        stage=stage,
        name=ensemble,
    )
    verdicts = [results.verdict(found, ensemble), *averages.sentences]
    found += [
        replace(line, name=method.name) if line.name == "swa" and averaged else line
        for line in averages.results
    ]
    found = with_ood(found, predictions)
    note = f"{report.splits_note(report.dataset_facts(run.dataset))} {report.UNITS}"
    main = report.Table("Results on the test set", *results.table_rows(found), note=note)
    tables = [main, *ood_tables(found, run.dataset), *averages.tables]
    drawn, content = Figures(run.folder.figures), {**averages.content}
    recipe = method.recipe(run.config)
    add_training(drawn, training, recipe)
    add_reliability(drawn, found, predictions.test)
    if dynamics := find_dynamics(training, recipe):
        dynamics.add_to(drawn, tables, verdicts, content)
    title = f"{method.name}: {run.config.model} on {run.dataset.name}, seed {run.config.seed}"
    files = (*report.FILES, "predictions/test.npz", *averages.files)
    page = report.Page(title, " ".join(verdicts), tables, drawn.captions, files, drawn.plots)
    run.finish(page, {"methods": results.as_methods(found), **content})
