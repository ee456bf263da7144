"""The networks of ``plane`` and ``sharpness``: snapshots, points on a run's curve, or files."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any, NotRequired, TypedDict

from msgspec import Meta
from torch import Tensor, nn

from fge.commands.endpoints import named_files, read_networks
from fge.commands.finished import snapshots_of_run
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
from fge.files import checked
from fge.networks import Layout, canonical_state, flatten, load_weights
from fge.schemas import Count, NotNegative
from fge.train import Recipe, endpoint_recipe, find_method


class _Facts(TypedDict):
    """What the index of a store says of a snapshot."""

    epoch: NotRequired[Count]
    lr: NotRequired[NotNegative]


class _Pair(TypedDict):
    name: Annotated[str, Meta(pattern=r"^[^/\x00]+$")]


class _Report(TypedDict):
    """The curves in a ``report.json``; their names are those of folders."""

    pairs: Annotated[list[_Pair], Meta(min_length=1)]


@dataclass(frozen=True)
class StudiedNetwork:
    """A network to measure.

    ``facts``: ``epoch`` and ``lr`` of a snapshot, ``t`` on a curve; ``measured``: whether the state
    has the batch-norm statistics of this network; otherwise they must be estimated. ``own``:
    whether its other buffers are this network's, those of instance norm too.
    """

    name: str
    state: Mapping[str, Tensor]
    facts: Mapping[str, float] = field(default_factory=dict)
    measured: bool = True
    own: bool = True

    def vector(self, model: nn.Module) -> Tensor:
        """Return the weights (P,), canonical, on the model's device."""
        return flatten(self.state, model)


@dataclass(frozen=True)
class RunCurve:
    """The first curve of a run; ``state`` is the state dict of the network at its start."""

    name: str
    curve: Curve
    state: Mapping[str, Tensor]

    def network(
        self, name: str, vector: Tensor, model: nn.Module, **facts: float
    ) -> StudiedNetwork:
        """Return the network with weights (P,), at t if it is given.

        Buffers are those of the curve there, or those of the start where it has none.
        """
        layout = Layout.of(model)
        parts = layout.split(vector)
        tied = {name: parts[first] for name, first in layout.other_names.items()}
        own = self.curve.buffers_at(facts["t"]) if "t" in facts else {}
        known = "t" in facts and self.curve.knows(facts["t"])
        state = {**self.state, **own, **parts, **tied}
        return StudiedNetwork(name, state, facts, measured=False, own=known)


def networks_in_files(config: StudyConfig, model: nn.Module) -> list[StudiedNetwork]:
    """Return the networks in files, named by number and stem; the model gets the first one."""
    networks = read_networks(named_files(config.weights), model, ())
    return _loaded([StudiedNetwork(n.name, n.state) for n in networks], model)


def snapshot_networks(
    run: Path, model: nn.Module, numbers: Sequence[int] | None = None
) -> list[StudiedNetwork]:
    """Return all snapshots of an fge or train run, or those with these numbers, counted from 1.

    The model gets the first one.
    """
    store = snapshots_of_run(run)
    networks = []
    for number in range(1, len(store) + 1) if numbers is None else numbers:
        if number > len(store):
            raise UserError(f"{run} has no snapshot {number}; it has {len(store)}")
        state, facts = store[number - 1], store.facts(number - 1)
        load_weights(model, state, store.path / facts["file"])
        damaged = f"{store.path / 'index.json'} is damaged: snapshot {number}"
        told: Mapping[str, Any] = checked(facts, _Facts, damaged)
        known: dict[str, float] = {k: float(told[k]) for k in ("epoch", "lr") if k in told}
        networks.append(StudiedNetwork(f"snapshot {number}", state, known))
    return _loaded(networks, model)


def last_snapshot(run: Path, model: nn.Module) -> list[StudiedNetwork]:
    """Return the last snapshot of a run, in a list."""
    return snapshot_networks(run, model, [max(len(SnapshotStore(run / "snapshots")), 1)])


def check_keeps_snapshots(config: PlaneConfig, run: Path) -> None:
    """Raise a UserError for an option about snapshots, which a run with a curve does not have."""
    for option in ("random", "trajectory", "snapshots"):
        if getattr(config, option):
            command = read_run(run)[0]
            raise UserError(
                f"--{option} needs a run of fge or train, but {run} is a run of {command}"
            )


def snapshot_recipe(run: Path) -> tuple[Recipe | None, str]:
    """Return the recipe of a run's snapshots, and the name of its method.

    The recipe is None for a run without snapshots and for a user's own method, because code that
    only a file names is not imported.
    """
    command, options, _ = read_run(run)
    if isinstance(options, TrainConfig):
        known = not is_factory(options.method)
        return find_method(options.method).recipe(options) if known else None, options.method
    return endpoint_recipe(options) if isinstance(options, FGEConfig) else None, command


def run_curve(run: Path, model: nn.Module) -> RunCurve:
    """Return the first curve of a curve-ensemble or connect run.

    The model gets the buffers of the network at its start, if that is available.
    """
    command, options, _ = read_run(run)
    file = run / "report.json"
    if not file.exists():
        raise UserError(f"{run} has no report.json yet; finish the {command} run with --resume")
    name = read_report(file, _Report, damaged="names no curve")["pairs"][0]["name"]
    path = run / "curves" / name / "curve.safetensors"
    curve = Curve.load(path)
    if curve.layout != Layout.of(model):
        raise UserError(f"{path} is not a curve of the architecture {options.model}")
    _load_start(run, options, name, model)
    return RunCurve(name, curve, canonical_state(model))


def sharpness_networks(config: SharpnessConfig, model: nn.Module) -> list[StudiedNetwork]:
    """Return the networks whose sharpness is measured: snapshots, points on a curve, or files."""
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
    """Return the first ``count`` training images, balanced over classes, or all for 0."""
    return run.dataset.train.first(count)


def measured_batches(run: Run[PlaneConfig]) -> dict[str, EvalBatches]:
    """Return the batches for losses and errors of a plane or a line, by split."""
    splits = {"train": training_part(run, run.config.eval_images), "test": run.dataset.test}
    return {name: run.setup.eval_batches(split) for name, split in splits.items()}


def refresh_batches(run: Run[StudyConfig], count: int) -> Iterable[Any]:
    """Return what batch-norm statistics are estimated from: ``count`` images, or all for 0.

    They are varied as the recipe of a run's snapshots varied them.
    """
    source = run.config.run
    recipe = None if source is None else snapshot_recipe(source)[0]
    augment, mixup = (True, 0.0) if recipe is None else (recipe.augment, recipe.mixup)
    return run.setup.refresh_batches(training_part(run, count), augment=augment, mixup=mixup)


def recorded(run: Run[StudyConfig], event: str, kind: type[Any]) -> dict[str, dict[str, Any]]:
    """Return the logged records of one event, by the networks' names.

    Raises:
        UserError: one is not of the ``kind``.
    """
    found = [record for record in run.folder.records() if record["event"] == event]
    damaged = f"{run.folder.log_file} is damaged: the record of"
    return {r["name"]: checked(r, kind, f"{damaged} {r['name']!r}") for r in found}


def _loaded(networks: list[StudiedNetwork], model: nn.Module) -> list[StudiedNetwork]:
    """Load the first network into the model; return the networks."""
    load_weights(model, networks[0].state, networks[0].name)
    return networks


def _load_start(run: Path, options: CommandConfig, name: str, model: nn.Module) -> None:
    """Load the network at the start of a curve, for buffers other than batch-norm statistics."""
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
