"""What a plane study shows: the plane, the networks marked on it, and paths between them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from torch import Tensor, nn

from fge.commands.subjects import Subject, file_subjects, run_curve, snapshot_subjects
from fge.config.saved import KEEP_SNAPSHOTS, read_run
from fge.config.studies import PlaneConfig
from fge.curves.curve import Curve, straight_points
from fge.curves.families import make_family
from fge.ensemble.snapshots import SnapshotStore
from fge.errors import UserError
from fge.landscape.plane import Plane
from fge.networks.flat import Layout


@dataclass(frozen=True)
class Scene:
    """A plane, what it goes through in words, the networks on it, and paths (T, 2) by name."""

    plane: Plane
    what: str
    networks: Sequence[Subject]
    lines: dict[str, Tensor] = field(default_factory=dict)


def make_scene(config: PlaneConfig, model: nn.Module) -> Scene:
    """Return the plane that the options ask for.

    Args:
        config: of the command.
        model: the architecture, on the CPU; it has the buffers of the first network afterwards.

    Raises:
        UserError: there are too few networks, they do not fit the model, or span no plane.
    """
    if config.run is None:
        return _of_networks(config, file_subjects(config, model), model)
    if read_run(config.run)[0] in KEEP_SNAPSHOTS:
        return _of_snapshots(config, config.run, model)
    check_keeps_snapshots(config, config.run)
    return _of_curve(config.run, model)


def check_keeps_snapshots(config: PlaneConfig, run: Path) -> None:
    """Refuse options that speak of snapshots for a run which keeps a curve.

    Raises:
        UserError: naming the first of them.
    """
    for option in ("random", "trajectory", "snapshots"):
        if getattr(config, option):
            command = read_run(run)[0]
            raise UserError(f"--{option} needs an fge or train run, {run} is one of {command}")


def last_snapshot(run: Path, model: nn.Module) -> list[Subject]:
    """Return the last snapshot of a run, alone in a list.

    Raises:
        UserError: there is none, or it does not fit the model.
    """
    return snapshot_subjects(run, model, [max(len(SnapshotStore(run / "snapshots")), 1)])


def _of_snapshots(config: PlaneConfig, run: Path, model: nn.Module) -> Scene:
    count = len(SnapshotStore(run / "snapshots"))
    if config.random:
        return _of_networks(config, last_snapshot(run, model), model)
    if 0 < count < 3:
        raise UserError(
            f"a plane needs three snapshots, {run} has {count}; with --random the last one will do"
        )
    every = snapshot_subjects(run, model)
    numbers = config.snapshots or (1, (count + 1) // 2, count)
    if max(numbers) > count:
        raise UserError(f"{run} has no snapshot {max(numbers)}; it has {count}")
    chosen = every if config.trajectory else [every[number - 1] for number in numbers]
    scene = _of_networks(config, chosen, model)
    path = scene.plane.anchors.new_tensor(
        [scene.plane.coordinates(subject.vector(model)) for subject in every]
    )
    return Scene(scene.plane, scene.what, scene.networks, {"all snapshots, projected": path})


def _of_networks(config: PlaneConfig, networks: list[Subject], model: nn.Module) -> Scene:
    vectors = [subject.vector(model) for subject in networks]
    names = [subject.name for subject in networks]
    if config.random:
        plane = Plane.random(vectors[0], Layout.of(model), config.seed)
        what = f"{names[0]} and two random filter-normalised directions"
        return Scene(plane, what, networks)
    if config.trajectory:
        plane = Plane.principal(vectors)
        return Scene(plane, f"the principal components of {len(networks)} networks", networks)
    return Scene(_through(names, vectors), _listed(names), networks)


def _of_curve(run: Path, model: nn.Module) -> Scene:
    """Return the plane of arXiv 1802.10026 (figure 1): the ends of a curve, and its bend."""
    found = run_curve(run, model)
    points = found.curve.points
    bend = len(points) // 2
    chosen = {"w(0)": points[0], "bend": points[bend], "w(1)": points[-1]}
    plane = _through(list(chosen), list(chosen.values()))
    segment = Curve(make_family("polychain", 2), straight_points(points[0], points[-1], 2))
    return Scene(
        plane,
        f"the ends and {'the' if len(points) == 3 else 'the middle'} bend of the "
        f"{found.curve.family.name} curve {found.name}",
        [found.subject(name, vector, model) for name, vector in chosen.items()],
        {
            "curve" if len(points) == 3 else "curve, projected": plane.project(found.curve),
            "segment": plane.project(segment),
        },
    )


def _through(names: Sequence[str], vectors: Sequence[Tensor]) -> Plane:
    try:
        return Plane.through(*vectors)
    except UserError as error:
        called = ", ".join(f"w{k} = {name}" for k, name in enumerate(names))
        raise UserError(f"{error} ({called})") from None


def _listed(names: Sequence[str]) -> str:
    return f"{', '.join(names[:-1])} and {names[-1]}"
