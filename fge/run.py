"""The commands ``fge`` and ``predict``, one function each: wiring, and nothing else."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import nn

from fge import plots, report, results
from fge.baseline_run import BaselineRun, beside_baseline, read_baseline
from fge.batches import EvalBatches, Normaliser
from fge.config import PredictConfig, check_import
from fge.configfile import read_config
from fge.console import ConsoleObserver
from fge.curve_plots import curve_figure
from fge.curve_results import pairs_table
from fge.cycle_config import FGEConfig
from fge.data import Dataset, Split
from fge.devices import choose_device, set_threads
from fge.ensemble import Ensemble
from fge.errors import DivergenceError, UserError
from fge.figures import training_curves
from fge.methods import fge_stages
from fge.models import build_model
from fge.open_run import Run, check_kept, open_run, prepare
from fge.predict import read_inputs, write_predictions
from fge.predictions import PredictionFile
from fge.recipes import endpoint_recipe
from fge.refit import Refit, check_refit, refit
from fge.setup import eval_batches, initial_model, make_training
from fge.snapshots import SnapshotStore
from fge.staged import StagedTraining
from fge.tensors import state_bytes


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


def predict(config: PredictConfig) -> Path:
    """Apply the ensemble of a finished run to images; return the folder of the predictions.

    Raises:
        UserError: no run there, no snapshots, or images that do not fit.
    """
    device = torch.device(choose_device(config.device))
    set_threads(config.threads)
    run_config, content = read_config(config.run / "config.json", "fge", FGEConfig)
    facts = content.get("dataset")
    if not isinstance(facts, dict):
        raise UserError(f"{config.run} is no run folder: its config.json says nothing of the data")
    check_import(run_config.model, config.model, config.run / "config.json")
    files, images = read_inputs(config.images, facts["channels"], tuple(facts["image_size"]))
    model = build_model(
        run_config.model,
        in_channels=facts["channels"],
        num_classes=len(facts["classes"]),
        image_size=tuple(facts["image_size"]),
    )
    store = SnapshotStore(config.run / "snapshots")
    if len(store) == 0:
        raise UserError(f"{config.run} holds no snapshots; finish the run with --resume first")
    normaliser = Normaliser(facts["mean"], facts["std"], device)
    unlabelled = Split(images.to(device), torch.zeros(len(images), dtype=torch.int64))
    batches = EvalBatches(unlabelled, normaliser, config.batch_size)
    probs = Ensemble(model.to(device), store).predict_proba(batches)
    out = config.out or config.run / f"predict-{config.images.stem}"
    write_predictions(out, files, probs, facts["classes"])
    ConsoleObserver().note(f"{len(files)} predictions by {len(store)} snapshots are in {out}")
    return out


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
    test_batches = eval_batches(run.config, run.dataset, run.dataset.test)
    try:
        training.run()
        test = training.predict_members(run.folder.predictions / "test.npz", test_batches)
    except DivergenceError as error:
        kept = len(training.stores["fge"])
        raise DivergenceError(f"{error}; {kept} snapshots are kept in {run.folder.path}") from None
    refitted = refit(run, training, test) if run.config.refit else None
    _report(run, training, test, refitted, baseline)


def _report(
    run: Run[FGEConfig],
    training: StagedTraining,
    test: PredictionFile,
    refitted: Refit | None,
    baseline: BaselineRun | None,
) -> None:
    """Draw the figures and write the report."""
    store, figures = training.stores["fge"], run.folder.figures
    found = results.fge_results(
        test,
        [store.facts(position) for position in range(len(store))],
        weight_bytes=state_bytes(training.learner.model),
        budget=run.config.epochs,
    )
    verdicts, ensembles = [results.verdict(found)], found[-1:]
    curves = training_curves(run.config, run.folder.records())
    plots.save_figure(plots.training_figure(curves), figures / "training.png")
    captions = {"training.png": "Learning rate, validation error and distance over epochs"}
    content: dict[str, Any] = {}
    tables = []
    if refitted:
        found.append(refitted.result)
        ensembles.append(refitted.result)
        tables.append(pairs_table(refitted.pairs, "Between consecutive snapshots"))
        _draw_refit(refitted, figures / "refit.png")
        captions["refit.png"] = "Loss and error along curves and segments, snapshot to snapshot"
        content["pairs"] = [pair.as_json() for pair in refitted.pairs]
        content["turning_angles"] = refitted.turns
    if baseline:
        table, sentence = beside_baseline(ensembles, test, baseline)
        tables.append(table)
        verdicts.append(sentence)
    main = report.Table(
        "Results on the test set", *results.table_rows(found), note=_notes(run.dataset, found)
    )
    title = f"{run.config.model} on {run.dataset.name}, seed {run.config.seed}"
    page = report.Page(title, " ".join(verdicts), [main, *tables], captions)
    run.finish(page, {"methods": results.as_methods(found), **content})


def _draw_refit(refitted: Refit, path: Path) -> None:
    curve, segment = (refitted.joined(name) for name in ("curve", "segment"))
    plots.save_figure(curve_figure(curve, segment, place="snapshots passed"), path)


def _notes(dataset: Dataset, found: Sequence[results.MethodResult]) -> str:
    chosen = [result.chosen for result in found if result.chosen]
    best = (
        f"`best-snapshot` is {chosen[0]}, the one with the lowest validation NLL."
        if chosen
        else "Without validation data there is no `best-snapshot`."
    )
    return f"{report.splits_note(report.dataset_facts(dataset))} {report.UNITS} {best}"
