"""A finished run of ``fge`` or ``train``, as commands that use its networks read it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, NotRequired, TypedDict

import torch
from msgspec import Meta
from torch import Tensor

from fge.config import (
    CLASSIFICATION,
    KEEP_SNAPSHOTS,
    CommandConfig,
    TaskName,
    TrainConfig,
    is_factory,
    read_run,
)
from fge.data import TableFacts
from fge.ensemble import Ensemble, PredictionFile, SnapshotStore
from fge.errors import UserError
from fge.files import AGAIN, RESTORE, checked, is_there
from fge.networks import build_model
from fge.schemas import Positive
from fge.tasks import Task, make_task
from fge.train import find_method


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
class DataFacts:
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


def read_ensemble_run(folder: Path) -> tuple[CommandConfig, dict[str, Any]]:
    """Return the options of an fge or train run, and the whole ``config.json``."""
    command, options, content = read_run(folder)
    if command not in KEEP_SNAPSHOTS:
        raise UserError(f"{folder} is a run of {command!r}; give a run of fge or train")
    return options, content


def data_facts(folder: Path, content: dict[str, Any]) -> DataFacts:
    """Return the facts about the training data in a run's ``config.json``.

    Raises:
        UserError: they are damaged, or there are none.
    """
    given = content.get("dataset")
    if given is None:
        raise UserError(f"{folder} is not a run folder: its config.json does not describe the data")
    damaged = f"the description of the data in {folder / 'config.json'} is damaged"
    described = checked(given, _Described, damaged)
    height, width = described["image_size"]
    facts = DataFacts(
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


def combines_weights(folder: Path, config: CommandConfig, content: dict[str, Any]) -> bool:
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


def snapshots_of_run(run: Path) -> SnapshotStore:
    """Return the snapshots of a run, of which there is at least one.

    Raises:
        UserError: there is none.
    """
    store = SnapshotStore(run / "snapshots")
    if len(store) == 0:
        raise UserError(f"{run} holds no snapshots; finish the run with --resume first")
    return store


def ensemble_of_run(
    run: Path,
    model: str,
    states: Sequence[dict[str, Tensor]] | SnapshotStore,
    facts: DataFacts,
    device: torch.device,
) -> Ensemble:
    """Return the ensemble of some weights of a run on a device.

    Raises:
        UserError: they are not weights of the run's model.
    """
    network = build_model(
        model,
        in_channels=facts.channels,
        num_classes=facts.task.outputs,
        image_size=None if facts.table else facts.image_size,
        task=facts.task.name,
    )
    try:
        return Ensemble(network.to(device), states, output=facts.task.output)
    except UserError as error:
        raise UserError(
            f"the weights of {run} are not those of {run / 'config.json'}: {error}; restore the "
            "run from a copy"
        ) from None


def noise_of_run(run: Path, keys: Sequence[str], task: Task) -> tuple[float, ...] | None:
    """Return the noise variance (K,) of a regression, or None for other tasks and without data.

    It is what some members, by the SHA-256 of their weights, leave unexplained of the validation
    data, or of training data if the run has none; of all members if their predictions are missing.

    Raises:
        UserError: the file of predictions is damaged.
    """
    if not task.uses_noise:
        return None
    paths = [run / "predictions" / name for name in ("val.npz", "train.npz")]
    path = next((path for path in paths if is_there(path)), None)
    if path is None:
        return None
    file = PredictionFile.stored(path, task)
    names = [file.by_weights[key] for key in keys if key in file.by_weights]
    try:
        noise = file.own_noise(names or file.members)
    except UserError as error:
        raise UserError(f"{path} is damaged: {error}; {AGAIN}") from None
    return None if noise is None else tuple(noise.tolist())
