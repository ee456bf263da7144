"""The command ``predict``: class probabilities of new images, as files and on a page."""

from __future__ import annotations

import io
import itertools
from collections.abc import Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, NotRequired, TypedDict

import numpy as np
import torch
from msgspec import Meta
from numpy.typing import NDArray
from torch import Tensor

from fge.commands.averages import FILES as AVERAGE_FILES
from fge.commands.inputs import Inputs, read_inputs
from fge.commands.rows import outputs_tables, outputs_verdict, read_rows, write_outputs
from fge.config import (
    CLASSIFICATION,
    KEEP_SNAPSHOTS,
    CommandConfig,
    PredictConfig,
    TaskName,
    TrainConfig,
    as_stored,
    check_import,
    is_factory,
    read_run,
)
from fge.data import EvalBatches, Normaliser, Skipped, Split, TableFacts, default_workers
from fge.devices import choose_device, enough_memory, set_threads
from fge.ensemble import Ensemble, SnapshotStore
from fge.errors import UserError
from fge.files import RESTORE, checked, printable, write_bytes, write_text
from fge.networks import build_model, read_weights
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
    uncertain_table,
)
from fge.runs import RunFolder, check_pages, open_pages
from fge.schemas import Positive
from fge.tasks import Task, make_task
from fge.train import find_method

_FILES = ("predictions.csv", "predictions.npz")


class _Described(TypedDict):
    """The facts about the training data in a ``config.json``."""

    classes: Annotated[list[str], Meta(min_length=1)]
    channels: Positive
    image_size: tuple[Positive, Positive]
    mean: list[float]
    std: list[Annotated[float, Meta(gt=0)]]
    task: NotRequired[TaskName]
    target_mean: NotRequired[list[float]]
    target_std: NotRequired[list[Annotated[float, Meta(gt=0)]]]
    table: NotRequired[TableFacts]


@dataclass(frozen=True)
class _Facts:
    """The facts about the training data."""

    classes: tuple[str, ...]
    channels: int
    image_size: tuple[int, int]
    mean: tuple[float, ...]
    std: tuple[float, ...]
    task: Task
    table: TableFacts | None = None

    @property
    def example(self) -> str:
        """What is predicted: an image or a row."""
        return "image" if self.table is None else "row"


def predict(config: PredictConfig) -> Path:
    """Apply the ensemble of a finished run to images; return the folder of the predictions."""
    check_command("predict")
    device = torch.device(choose_device(config.device))
    threads = set_threads(config.threads)
    out = _folder(config)
    check_pages(out, "predict", overwrite=config.overwrite)
    run_config, content = _read_ensemble_run(config.run)
    facts = _data_facts(config.run, content)
    check_import(run_config.model, config.model, config.run / "config.json")
    observer, skipped = ConsoleObserver(), Skipped()
    inputs = _inputs(config, run_config, facts, skipped, observer)
    files = inputs.names
    store = SnapshotStore(config.run / "snapshots")
    if len(store) == 0:
        raise UserError(f"{config.run} holds no snapshots; finish the run with --resume first")
    averaged = _combines_weights(config.run, run_config, content) and len(store) > 1
    members = [read_weights(config.run / AVERAGE_FILES["swa"])] if averaged else store
    with enough_memory(device, "use a smaller --batch-size"):
        mean, spread = _apply(config, run_config.model, members, facts, inputs.split, device)
    what = f"{'the average of ' if averaged else ''}{len(store)} snapshots"
    environment = environment_facts(device, threads)
    names = [printable(file) for file in files]
    with closing(open_pages(out, "predict", overwrite=config.overwrite)) as folder:
        if spread is None:
            write_predictions(out, files, mean, facts.classes, facts.example)
        else:
            write_outputs(out, facts.example, files, mean.numpy(), spread, facts.task)
        predicted = mean, spread
        _report(config, folder, what, names, predicted, facts, environment, inputs.unreadable)
    if passed_over := skipped.note(config.images):
        observer.note(passed_over)
    for reason in inputs.unreadable.values():
        observer.note(f"left out: {reason}")
    observer.note(f"{len(files)} predictions by {what} are in {out}")
    observer.note(f"report: {out / 'report.html'}")
    return out


def _inputs(
    config: PredictConfig,
    run_config: CommandConfig,
    facts: _Facts,
    skipped: Skipped,
    observer: ConsoleObserver,
) -> Inputs:
    """Read the rows or the images that are predicted."""
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


def _read_ensemble_run(folder: Path) -> tuple[CommandConfig, dict[str, Any]]:
    """Return the options of an fge or train run, and the whole ``config.json``."""
    command, options, content = read_run(folder)
    if command not in KEEP_SNAPSHOTS:
        raise UserError(f"{folder} is a run of {command!r}; give a run of fge or train")
    return options, content


def _data_facts(folder: Path, content: dict[str, Any]) -> _Facts:
    given = content.get("dataset")
    if given is None:
        raise UserError(f"{folder} is not a run folder: its config.json does not describe the data")
    damaged = f"the description of the data in {folder / 'config.json'} is damaged"
    described = checked(given, _Described, damaged)
    height, width = described["image_size"]
    facts = _Facts(
        classes=tuple(described["classes"]),
        channels=described["channels"],
        image_size=(height, width),
        mean=tuple(described["mean"]),
        std=tuple(described["std"]),
        task=make_task(
            described.get("task", CLASSIFICATION),
            described["classes"],
            mean=described.get("target_mean", ()),
            std=described.get("target_std", ()),
        ),
        table=described.get("table"),
    )
    if not len(facts.mean) == len(facts.std) == facts.channels:
        raise UserError(f"{damaged}: mean and std are not of {facts.channels} channels; {RESTORE}")
    return facts


def _combines_weights(folder: Path, config: CommandConfig, content: dict[str, Any]) -> bool:
    """Return whether the run's method averages weights, according to its ``config.json``.

    The method is not imported for this, because it may be the user's own code.
    """
    if not isinstance(config, TrainConfig):
        return False
    if "combine" not in content and is_factory(config.method):
        raise UserError(
            f"{folder / 'config.json'} does not say whether {config.method} averages weights or "
            "probabilities; resume that run once with --resume, which adds it"
        )
    return bool((content.get("combine") or find_method(config.method).combine) == "weights")


def _apply(
    config: PredictConfig,
    name: str,
    members: Sequence[dict[str, Tensor]] | SnapshotStore,
    facts: _Facts,
    images: Split,
    device: torch.device,
) -> tuple[Tensor, NDArray[np.float64] | None]:
    """Return the mean prediction, and of labels and numbers their deviation over members."""
    model = build_model(
        name,
        in_channels=facts.channels,
        num_classes=facts.task.outputs,
        image_size=None if facts.table else facts.image_size,
        task=facts.task.name,
    )
    normaliser = Normaliser(facts.mean, facts.std, device)
    batches = EvalBatches(images.to(device), normaliser, config.batch_size)
    try:
        ensemble = Ensemble(model.to(device), members, output=facts.task.output)
    except UserError as error:
        file = config.run / "config.json"
        raise UserError(
            f"the weights of {config.run} are not those of {file}: {error}; restore the run from a "
            "copy"
        ) from None
    if facts.task.of_classes:
        return ensemble.predict(batches), None
    predictions = ensemble.predict_members(batches)
    return predictions.mean(dim=0), predictions.numpy().std(axis=0)


def _report(
    config: PredictConfig,
    folder: RunFolder,
    what: str,
    names: Sequence[str],
    predicted: tuple[Tensor, NDArray[np.float64] | None],
    facts: _Facts,
    environment: dict[str, Any],
    unreadable: Mapping[str, str],
) -> None:
    values, spread = predicted[0].cpu().numpy().astype(np.float64), predicted[1]
    report = ReportBuilder(folder, figure_format=config.figure_format, files=_FILES)
    source, example = f"{what} of the run {plain_name(config.run.resolve().name)}", facts.example
    if spread is not None:
        report.table(*outputs_tables(names, values, spread, facts.task, example))
        report.say(*outputs_verdict(values, spread, source, example))
    else:
        caption = f"How many {example}s have which largest probability"
        report.chart("confidence.png", confidence_chart(values, example), caption)
        report.table(class_table(values, facts.classes, example))
        report.table(uncertain_table(values, names, facts.classes, example))
        report.say(*predictions_verdict(values, source, example))
    content = {
        "command": "predict",
        "config": {name: as_stored(name, value) for name, value in vars(config).items()},
        "environment": environment,
        "methods": [],
        **({"unreadable": dict(unreadable)} if unreadable else {}),
    }
    report.write(f"Predictions of {config.images.absolute().name}", content)


def write_predictions(
    out: Path,
    names: Sequence[str],
    probs: Tensor,
    classes: Sequence[str],
    example: str = "image",
) -> None:
    """Write probs (N, C) to ``predictions.csv`` and ``predictions.npz``."""
    labels = probs.argmax(dim=1).numpy()
    rows: list[list[object]] = [[example, "label", "class", *(f"p({name})" for name in classes)]]
    for name, label, row in zip(names, labels, probs.tolist(), strict=True):
        rows.append([name, label, classes[label], *(f"{p:.6f}" for p in row)])
    write_text(out / "predictions.csv", csv_text(rows))
    buffer = io.BytesIO()
    found: dict[str, Any] = {f"{example}s": np.array(names)}
    np.savez(
        buffer,
        **found,
        labels=labels,
        probabilities=probs.numpy(),
        classes=np.array(classes),
    )
    write_bytes(out / "predictions.npz", buffer.getvalue())
