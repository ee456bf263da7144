"""The command ``predict``: predictions for new images or rows, as files and on a page."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from contextlib import closing
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from fge.arrays import write_npz
from fge.commands.coverage import fit_of_run
from fge.commands.finished import (
    DataFacts,
    combines_weights,
    data_facts,
    ensemble_of_run,
    noise_of_run,
    read_ensemble_run,
    snapshots_of_run,
)
from fge.commands.inputs import Inputs, read_inputs
from fge.commands.measured import Measured, figures_of
from fge.commands.members import members_of_run
from fge.commands.rows import (
    Predicted,
    outputs_pictures,
    outputs_tables,
    outputs_verdict,
    read_rows,
    write_outputs,
)
from fge.config import (
    CommandConfig,
    PredictConfig,
    as_stored,
    check_import,
)
from fge.data import EvalBatches, Normaliser, Skipped, Split, default_workers
from fge.devices import choose_device, enough_memory, set_threads
from fge.ensemble import Ensemble
from fge.errors import UserError
from fge.files import printable, write_text
from fge.metrics import Conformal
from fge.parallel import check_command
from fge.report import (
    ConsoleObserver,
    ReportBuilder,
    class_table,
    confidence_chart,
    csv_text,
    environment_facts,
    plain_name,
    predictions_verdict,
    row_cells,
    uncertain_table,
)
from fge.runs import RunFolder, check_pages, open_pages

_FILES = ("predictions.csv", "predictions.npz")


def predict(config: PredictConfig) -> Path:
    """Apply the ensemble of a finished run to images; return the folder of the predictions."""
    check_command("predict")
    device = torch.device(choose_device(config.device))
    threads = set_threads(config.threads)
    out = _folder(config)
    check_pages(out, "predict", overwrite=config.overwrite, files=_FILES)
    run_config, content = read_ensemble_run(config.run)
    facts = data_facts(config.run, content)
    check_import(run_config.model, config.model, config.run / "config.json")
    skipped, observer = Skipped(), ConsoleObserver()
    inputs = _inputs(config, run_config, facts, skipped, observer)
    files = inputs.names
    store = snapshots_of_run(config.run)
    averaged = combines_weights(config.run, run_config, content) and len(store) > 1
    members = members_of_run(config.run, run_config, store, averaged=averaged)
    fit, no_sets = fit_of_run(config.run, members.keys, facts, config.coverage)
    with enough_memory(device, "use a smaller --batch-size"):
        ensemble = ensemble_of_run(config.run, run_config.model, members.states, facts, device)
        noise = noise_of_run(config.run, members.keys, facts.task)
        found = _predicted(config, ensemble, facts, inputs.split, (fit, no_sets), noise)
    environment = environment_facts(device, threads)
    names = [printable(file) for file in files]
    with closing(open_pages(out, "predict", overwrite=config.overwrite, files=_FILES)) as folder:
        if isinstance(found, Measured):
            probs = torch.from_numpy(found.probs)
            write_predictions(out, files, probs, facts.classes, found, facts.example)
        else:
            write_outputs(out, facts.example, files, found, facts.task)
        _report(config, folder, members.what, names, found, facts, environment, inputs)
    if passed_over := skipped.note(config.images):
        observer.note(passed_over)
    for reason in inputs.unreadable.values():
        observer.note(f"left out: {reason}")
    if no_sets:
        observer.note(no_sets)
    observer.note(f"{len(files)} predictions by {members.what} are in {out}")
    observer.note(f"report: {out / 'report.html'}")
    return out


def _folder(config: PredictConfig) -> Path:
    """Return the folder of the predictions; by default the next free one beside the run's files."""
    if config.out is not None:
        return config.out
    if config.overwrite:
        raise UserError("--overwrite needs --out, the folder of the predictions")
    images = config.images.absolute()
    name = f"predict-{images.stem if images.is_file() else images.name}"
    names = itertools.chain([name], (f"{name}-{number}" for number in itertools.count(2)))
    return next(path for path in (config.run / name for name in names) if not path.exists())


def _inputs(
    config: PredictConfig,
    run_config: CommandConfig,
    facts: DataFacts,
    skipped: Skipped,
    observer: ConsoleObserver,
) -> Inputs:
    """Return the rows of a table, or images in the size that the run takes."""
    if facts.table:
        return read_rows(config, facts.table, observer)
    return read_inputs(
        config.images,
        facts.channels,
        facts.image_size,
        skipped,
        side=run_config.image_size if config.image_size is None else config.image_size,
        skip_unreadable=config.skip_unreadable,
        workers=default_workers() if config.workers is None else config.workers,
    )


def _predicted(
    config: PredictConfig,
    ensemble: Ensemble,
    facts: DataFacts,
    images: Split,
    sets: tuple[Conformal | None, str],
    noise: Sequence[float] | None,
) -> Measured | Predicted:
    """Return what the members predict: class probabilities, or labels and numbers."""
    device = next(ensemble.parameters()).device
    normaliser = Normaliser(facts.mean, facts.std, device)
    batches = EvalBatches(images.to(device), normaliser, config.batch_size)
    if not facts.task.of_classes:
        predictions = ensemble.predict_members(batches)
        if facts.task.name == "multilabel":
            own = Predicted.of_labels(predictions, sets[0], keep_members=config.keep_members)
        else:
            own = Predicted.of(predictions, noise, sets[0], keep_members=config.keep_members)
        return replace(own, no_sets=sets[1])
    figures = figures_of(ensemble, batches, keep_members=config.keep_members)
    return Measured.of(figures, len(ensemble), images, *sets, facts.example)


def _report(
    config: PredictConfig,
    folder: RunFolder,
    what: str,
    names: Sequence[str],
    found: Measured | Predicted,
    facts: DataFacts,
    environment: dict[str, Any],
    inputs: Inputs,
) -> None:
    report = ReportBuilder(folder, figure_format=config.figure_format, files=_FILES)
    columns = partial(row_cells, inputs.split, facts=facts.table) if facts.table else None
    source, example = f"{what} of the run {plain_name(config.run.resolve().name)}", facts.example
    if isinstance(found, Predicted):
        report.table(*outputs_tables(names, found, facts.task, example, columns))
        if facts.table is None:
            outputs_pictures(report, names, found, facts.task, inputs.split)
        report.say(*outputs_verdict(found, source, example))
        if own := found.facts():
            report.facts(uncertainty=own)
    else:
        values, more = found.probs, found.shown(facts.classes)
        caption = f"How many {example}s have which largest probability"
        report.chart("confidence.png", confidence_chart(values, example), caption)
        report.table(class_table(values, facts.classes, example))
        report.table(uncertain_table(values, names, facts.classes, example, more, columns))
        report.say(*predictions_verdict(values, source, example))
        found.add_to(report, names, facts.classes)
    content = {
        "command": "predict",
        "config": {name: as_stored(name, value) for name, value in vars(config).items()},
        "environment": environment,
        "methods": [],
        **({"unreadable": dict(inputs.unreadable)} if inputs.unreadable else {}),
    }
    report.write(f"Predictions of {config.images.absolute().name}", content)


def write_predictions(
    out: Path,
    names: Sequence[str],
    probs: Tensor,
    classes: Sequence[str],
    found: Measured | None = None,
    example: str = "image",
) -> None:
    """Write probs (N, C) to ``predictions.csv`` and ``predictions.npz``, and what else was found.

    Its columns come after all others.
    """
    labels = probs.argmax(dim=1).numpy()
    rows: list[list[object]] = [[example, "label", "class", *(f"p({name})" for name in classes)]]
    for name, label, row in zip(names, labels, probs.tolist(), strict=True):
        rows.append([name, label, classes[label], *(f"{p:.6f}" for p in row)])
    if found is not None:
        rows = [[*row, *cells] for row, cells in zip(rows, found.cells(classes), strict=True)]
    write_text(out / "predictions.csv", csv_text(rows))
    arrays: dict[str, Any] = {
        f"{example}s": np.array(names),
        "labels": labels,
        "probabilities": probs.numpy(),
        "classes": np.array(classes),
    }
    write_npz(out / "predictions.npz", arrays | (found.arrays() if found is not None else {}))
