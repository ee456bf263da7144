"""The networks that a study looks at: snapshots of a run, points on its curve, or files."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from fge.commands.endpoints import read_networks
from fge.commands.run import Run
from fge.config import (
    KEEP_SNAPSHOTS,
    CommandConfig,
    ConnectConfig,
    CurveEnsembleConfig,
    FGEConfig,
    PlaneConfig,
    SharpnessConfig,
    StudyConfig,
    TrainConfig,
    is_factory,
    read_report,
    read_run,
)
from fge.curves import Curve
from fge.data import EvalBatches, Split
from fge.ensemble import SnapshotStore
from fge.errors import UserError
from fge.networks import Layout, canonical_state, flatten, load_weights
from fge.train import Recipe, endpoint_recipe, find_method


@dataclass(frozen=True)
class StudiedNetwork:
    """A network to look at.

    Attributes:
        name: of the network.
        state: its state dict.
        facts: what is known of it: ``epoch`` and ``lr`` of a snapshot, ``t`` on a curve.
        measured: whether its batch-norm statistics are its own; else they have to be estimated.
    """

    name: str
    state: Mapping[str, Tensor]
    facts: Mapping[str, float] = field(default_factory=dict)
    measured: bool = True

    def vector(self, model: nn.Module) -> Tensor:
        """Return the weights (P,), canonical, on the model's device."""
        return flatten(self.state, model)


@dataclass(frozen=True)
class RunCurve:
    """The first curve of a run; ``state`` is that of the network at its start."""

    name: str
    curve: Curve
    state: Mapping[str, Tensor]

    def network(
        self, name: str, vector: Tensor, model: nn.Module, **facts: float
    ) -> StudiedNetwork:
        """Return the network at weights (P,), its buffers those of the start."""
        parts = Layout.of(model).split(vector)
        return StudiedNetwork(name, {**self.state, **parts}, facts, measured=False)


def networks_in_files(config: StudyConfig, model: nn.Module) -> list[StudiedNetwork]:
    """Return the networks in files, by number and stem; the model has the first one's buffers.

    Raises:
        UserError: no such file, or tensors that do not fit the model, named.
    """
    files = [(path, f"{i}-{path.stem}") for i, path in enumerate(config.weights, start=1)]
    return _loaded(
        [StudiedNetwork(n.name, n.state) for n in read_networks(files, model, ())], model
    )


def snapshot_networks(
    run: Path, model: nn.Module, numbers: Sequence[int] | None = None
) -> list[StudiedNetwork]:
    """Return snapshots of an fge or train run, all or those with the given numbers, counted from 1.

    The model has the buffers of the first.

    Raises:
        UserError: there are none, no such one, or they do not fit the model.
    """
    store = SnapshotStore(run / "snapshots")
    if len(store) == 0:
        raise UserError(f"{run} holds no snapshots; finish the run with --resume first")
    found = []
    for number in range(1, len(store) + 1) if numbers is None else numbers:
        if number > len(store):
            raise UserError(f"{run} has no snapshot {number}; it has {len(store)}")
        state, facts = store[number - 1], store.facts(number - 1)
        load_weights(model, state, store.path / facts["file"])
        known: dict[str, float] = {
            key: float(facts[key]) for key in ("epoch", "lr") if key in facts
        }
        found.append(StudiedNetwork(f"snapshot {number}", state, known))
    return _loaded(found, model)


def last_snapshot(run: Path, model: nn.Module) -> list[StudiedNetwork]:
    """Return the last snapshot of a run, alone in a list.

    Raises:
        UserError: there is none, or it does not fit the model.
    """
    return snapshot_networks(run, model, [max(len(SnapshotStore(run / "snapshots")), 1)])


def check_keeps_snapshots(config: PlaneConfig, run: Path) -> None:
    """Refuse options that speak of snapshots for a run which keeps a curve.

    Raises:
        UserError: naming the first of them.
    """
    for option in ("random", "trajectory", "snapshots"):
        if getattr(config, option):
            command = read_run(run)[0]
            raise UserError(f"--{option} needs an fge or train run, {run} is one of {command}")


def snapshot_recipe(run: Path) -> tuple[Recipe | None, str]:
    """Return the recipe that a run's snapshots were trained by, and the name of its method.

    There is no recipe of a run that keeps networks otherwise, and none of a user's own method: a
    ``package.module:method`` that a file names is not imported.

    Raises:
        UserError: the folder is no run.
    """
    command, options, _ = read_run(run)
    if isinstance(options, TrainConfig):
        known = not is_factory(options.method)
        return find_method(options.method).recipe(options) if known else None, options.method
    return endpoint_recipe(options) if isinstance(options, FGEConfig) else None, command


def run_curve(run: Path, model: nn.Module) -> RunCurve:
    """Return the first curve of a curve-ensemble or connect run.

    The model has the buffers of the network at its start, where they are at hand.

    Raises:
        UserError: the run is not finished, or its curve does not fit the model.
    """
    command, options, _ = read_run(run)
    file = run / "report.json"
    if not file.is_file():
        raise UserError(f"{run} has no report.json yet; finish the {command} run with --resume")
    content = read_report(file, damaged="names no curve")
    try:
        name = str(content["pairs"][0]["name"])
    except (ValueError, KeyError, TypeError, IndexError) as error:
        raise UserError(f"{file} names no curve: {type(error).__name__} {error}") from None
    path = run / "curves" / name / "curve.safetensors"
    curve = Curve.load(path)
    if curve.layout != Layout.of(model):
        raise UserError(f"{path} is a curve of another architecture than {options.model}")
    _load_start(run, options, name, model)
    return RunCurve(name, curve, canonical_state(model))


def sharpness_networks(config: SharpnessConfig, model: nn.Module) -> list[StudiedNetwork]:
    """Return the networks whose sharpness is measured: snapshots, points on a curve, or files.

    Raises:
        UserError: there are none, or they do not fit the model.
    """
    if config.run is None:
        return networks_in_files(config, model)
    if read_run(config.run)[0] in KEEP_SNAPSHOTS:
        return snapshot_networks(config.run, model)
    along, last = run_curve(config.run, model), config.curve_points - 1
    return [
        along.network(f"t = {k / last:.4g}", along.curve.at(k / last), model, t=k / last)
        for k in range(config.curve_points)
    ]


def training_part(run: Run[StudyConfig], count: int) -> Split:
    """Return the first ``count`` training images, or all for 0; any number is balanced."""
    return run.dataset.train.first(count)


def measured_batches(run: Run[PlaneConfig]) -> dict[str, EvalBatches]:
    """Return what losses and errors of a plane or a line are measured on, by split."""
    splits = {"train": training_part(run, run.config.eval_images), "test": run.dataset.test}
    return {name: run.setup.eval_batches(split) for name, split in splits.items()}


def recorded(run: Run[StudyConfig], event: str) -> dict[str, dict[str, Any]]:
    """Return what was logged of networks before an interruption, by their names."""
    return {r["name"]: r for r in run.folder.records() if r["event"] == event}


def _loaded(networks: list[StudiedNetwork], model: nn.Module) -> list[StudiedNetwork]:
    """Return the networks, the model's weights and buffers being those of the first."""
    load_weights(model, networks[0].state, networks[0].name)
    return networks


def _load_start(run: Path, options: CommandConfig, name: str, model: nn.Module) -> None:
    """Load the network at the start of a curve, for buffers that are no batch-norm statistics."""
    given = None
    if isinstance(options, ConnectConfig):
        given = options.weights[0]
    elif isinstance(options, CurveEnsembleConfig):
        given = options.first_weights
    if given is not None:
        if given.is_file():
            read_networks([(given, given.stem)], model, ())
        return
    store = SnapshotStore(run / "networks" / name.partition("--")[0] / "network")
    if len(store) > 0:
        load_weights(model, store[0], store.path)
