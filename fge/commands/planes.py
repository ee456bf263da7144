"""The command ``plane``: choosing a plane through networks, measuring and reporting it."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, TypedDict

from torch import Tensor, nn

from fge.commands.figures import with_figures
from fge.commands.lines import LineSetup, make_line_setup, study_line
from fge.commands.run import Run, check_kept, open_run, prepare
from fge.commands.studied import (
    StudiedNetwork,
    check_keeps_snapshots,
    last_snapshot,
    measured_batches,
    networks_in_files,
    recorded,
    refresh_batches,
    run_curve,
    snapshot_networks,
)
from fge.config import KEEP_SNAPSHOTS, PlaneConfig, check_same_images, read_run
from fge.curves import Curve, Statistics, WeightsEvaluator, make_family, straight_points
from fge.ensemble import SnapshotStore
from fge.errors import DivergenceError, UserError
from fge.landscape import Bounds, Plane, PlaneGrid, evaluate_plane
from fge.networks import Layout, preserved
from fge.observer import listed
from fge.report import plane_chart, plane_table, plane_verdict
from fge.schemas import NotNegative
from fge.tasks import Measure

_MOST_LABELS = 8
_BEST_NOISE = "The NLL is with the noise variance that suits each network best. "


class _Placed(TypedDict):
    """Where a network on the plane is, in the log; its other keys are scores."""

    name: str
    x: float
    y: float
    off_plane: NotNegative


@dataclass(frozen=True)
class PlaneSetup:
    """A plane, a description of it, the networks on it, and paths (T, 2) by name."""

    plane: Plane
    what: str
    networks: Sequence[StudiedNetwork]
    lines: dict[str, Tensor] = field(default_factory=dict)


def make_plane_setup(config: PlaneConfig, model: nn.Module) -> PlaneSetup:
    """Return the plane of the options; the model (on the CPU) gets the first network's buffers."""
    if config.run is None:
        return _of_networks(config, networks_in_files(config, model), model)
    if read_run(config.run)[0] in KEEP_SNAPSHOTS:
        return _of_snapshots(config, config.run, model)
    check_keeps_snapshots(config, config.run)
    return _of_curve(config.run, model)


def _of_snapshots(config: PlaneConfig, run: Path, model: nn.Module) -> PlaneSetup:
    count = len(SnapshotStore(run / "snapshots"))
    if config.random:
        return _of_networks(config, last_snapshot(run, model), model)
    if 0 < count < 3:
        raise UserError(
            f"a plane needs three snapshots, {run} has {count}; with --random one is enough"
        )
    every = snapshot_networks(run, model)
    numbers = config.snapshots or (1, (count + 1) // 2, count)
    if max(numbers) > count:
        raise UserError(f"{run} has no snapshot {max(numbers)}; it has {count}")
    chosen = every if config.trajectory else [every[number - 1] for number in numbers]
    setup = _of_networks(config, chosen, model)
    path = setup.plane.anchors.new_tensor(
        [setup.plane.coordinates(network.vector(model)) for network in every]
    )
    return PlaneSetup(setup.plane, setup.what, setup.networks, {"all snapshots, projected": path})


def _of_networks(
    config: PlaneConfig, networks: list[StudiedNetwork], model: nn.Module
) -> PlaneSetup:
    vectors = [network.vector(model) for network in networks]
    names = [network.name for network in networks]
    if config.random:
        plane = Plane.random(vectors[0], Layout.of(model), config.seed)
        what = f"{names[0]} and two random filter-normalised directions"
        return PlaneSetup(plane, what, networks)
    if config.trajectory:
        plane = Plane.principal(vectors)
        return PlaneSetup(plane, f"the principal components of {len(networks)} networks", networks)
    return PlaneSetup(_through(networks, model), listed(names), networks)


def _of_curve(run: Path, model: nn.Module) -> PlaneSetup:
    """Return the plane of arXiv 1802.10026 (figure 1): the ends of a curve, and its bend."""
    studied = run_curve(run, model)
    points = studied.curve.points
    bend = len(points) // 2
    # Buffers are those of the ends, and for the bend those in the middle of the curve.
    chosen = (("w(0)", 0, 0.0), ("bend", bend, 0.5), ("w(1)", -1, 1.0))
    networks = [
        replace(studied.network(name, points[k], model, t=t), facts={}) for name, k, t in chosen
    ]
    plane = _through(networks, model)
    segment = Curve(make_family("polychain", 2), straight_points(points[0], points[-1], 2))
    return PlaneSetup(
        plane,
        f"the ends and {'the' if len(points) == 3 else 'the middle'} bend of the "
        f"{studied.curve.family.name} curve {studied.name}",
        networks,
        {
            "curve" if len(points) == 3 else "curve, projected": plane.project(studied.curve),
            "segment": plane.project(segment),
        },
    )


def _through(networks: Sequence[StudiedNetwork], model: nn.Module) -> Plane:
    first, second, third = (network.state for network in networks)
    try:
        return Plane.through(first, second, third, model=model)
    except UserError as error:
        called = ", ".join(f"w{k} = {network.name}" for k, network in enumerate(networks))
        raise UserError(f"{error} ({called})") from None


def plane(config: PlaneConfig) -> Path:
    """Measure and draw loss and error on a plane or along lines; return the run folder."""
    check_kept(config, (config.run, *config.weights))
    config, setup = prepare(config, "plane")
    check_same_images(config, setup.dataset.fingerprint)
    model = setup.new_model()
    shown = make_line_setup(config, model) if config.line else make_plane_setup(config, model)
    with open_run(config, "plane", setup, model, epochs=1) as run:
        run.observer.note(f"{'line' if config.line else 'plane'} through {shown.what}")
        if isinstance(shown, LineSetup):
            study_line(run, model, shown)
        else:
            _study_plane(run, model, shown)
    return run.folder.path


def _study_plane(run: Run[PlaneConfig], model: nn.Module, setup: PlaneSetup) -> None:
    networks = _measure_networks(run, model, setup)
    grid = _measure_plane(run, model, setup)
    grid.save(run.folder.path / "plane.npz")
    _report_plane(run, setup, grid, networks, setup.plane.statistics(model))


def _measure_networks(
    run: Run[PlaneConfig], model: nn.Module, setup: PlaneSetup
) -> list[dict[str, Any]]:
    """Return coordinates and scores of each network, measured like the points of the plane."""
    evaluate = WeightsEvaluator(
        model,
        measured_batches(run),
        refresh=refresh_batches(run, run.config.eval_images),
        num_images=None,
        weight_decay=run.config.loss_decay,
        speed=run.setup.speed,
        task=run.setup.task,
    )
    known = recorded(run, "network", with_figures(_Placed, run.setup.task, ("train", "test")))
    for network in setup.networks:
        if network.name in known:
            continue
        vector = network.vector(model)
        weights = vector.to(setup.plane.origin.device)
        x, y = setup.plane.coordinates(weights)
        with preserved(model):
            record = evaluate(vector, setup.plane.buffers_at(x, y))[0]
        if not all(math.isfinite(value) for value in record.values()):
            raise DivergenceError(f"the loss of {network.name} is not finite; try --amp off")
        known[network.name] = {"event": "network", "name": network.name, "x": x, "y": y}
        known[network.name] |= {
            "off_plane": setup.plane.residual(weights),
            **network.facts,
            **record,
        }
        run.folder.log(known[network.name])
    return [{**known[network.name], **network.facts} for network in setup.networks]


def _measure_plane(run: Run[PlaneConfig], model: nn.Module, setup: PlaneSetup) -> PlaneGrid:
    """Return the grid; points in the folder's state are not measured again."""
    origin, axes = (vectors.to(run.device) for vectors in (setup.plane.origin, setup.plane.axes))
    return evaluate_plane(
        model,
        replace(setup.plane, origin=origin, axes=axes),
        measured_batches(run),
        refresh=refresh_batches(run, run.config.eval_images),
        resolution=run.config.resolution,
        bounds=_bounds(setup.plane, run.config.margin),
        num_images=None,
        weight_decay=run.config.loss_decay,
        speed=run.setup.speed,
        task=run.setup.task,
        store=run.folder.path / "state" / "grid.jsonl",
        on_point=lambda done, total: run.observer.point("plane", done, total),
    )


def _bounds(surface: Plane, margin: float) -> Bounds:
    """Return the extent with the same margin on all sides, so that flat triangles are visible."""
    left, right, bottom, top = surface.extent
    added = margin * max(right - left, top - bottom)
    return left - added, right + added, bottom - added, top + added


def _shown(measure: Measure) -> dict[str, tuple[str, bool, str]]:
    """Return the figures: key of the values, whether it is a surface, and caption, by file."""
    key, word = f"test_{measure.key}", measure.word
    return {
        "plane-train-loss.png": ("train_loss", False, "Training loss on the plane"),
        f"plane-test-{measure.key}.png": (key, False, f"Test {word} on the plane"),
        "plane-surface.png": ("train_loss", True, "Training loss as a surface"),
    }


def _report_plane(
    run: Run[PlaneConfig],
    setup: PlaneSetup,
    grid: PlaneGrid,
    networks: Sequence[dict[str, Any]],
    statistics: Statistics,
) -> None:
    labelled = networks if len(networks) <= _MOST_LABELS else (networks[0], networks[-1])
    points = {network["name"]: (network["x"], network["y"]) for network in labelled}
    task, example = run.setup.task, run.dataset.example
    for name, (key, raised, caption) in _shown(task.measure).items():
        chart = plane_chart(grid, key, points=points, lines=setup.lines, raised=raised, task=task)
        run.report.chart(name, chart, caption)
    images = {name: len(batches.split) for name, batches in measured_batches(run).items()}
    decay = run.config.loss_decay
    note = (
        f"The plane goes through {setup.what}; x and y are "
        f"{'multiples of the directions' if run.config.random else 'distances in weight space'}. "
        f"Each of its {grid.xs.size * grid.ys.size} points, and each network, is measured by "
        f"itself: {statistics}. The training loss"
        f"{f' (with weight decay {decay:g})' if decay else ''} is over {images['train']} training "
        f"{example}s without augmentation; statistics are estimated on the same, varied as in "
        f"training. Test numbers are over {images['test']} {example}s. "
        f"{_BEST_NOISE if task.uses_noise else ''}Data: `plane.npz`."
    )
    run.report.table(plane_table(networks, note, task=task))
    run.report.say(*plane_verdict(grid, networks, task=task))
    run.report.files.append("plane.npz")
    facts = {"through": setup.what, "networks": networks, "gram": grid.gram.tolist()}
    facts |= {"xs": grid.xs.tolist(), "ys": grid.ys.tolist(), "images_per_point": images}
    facts |= {"statistics": statistics.facts()}
    run.report.facts(methods=[], plane={**facts, "data": "plane.npz"})
    run.finish(f"Plane of {run.config.model} on {run.dataset.name}")
