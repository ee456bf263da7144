"""The command that looks at planes through networks: wiring, and nothing else."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from torch import nn

from fge.commands.build import new_model, speed_of
from fge.commands.line_scene import LineScene, make_line
from fge.commands.lines import study_line
from fge.commands.plane_scene import Scene, make_scene
from fge.commands.run import Run, check_kept, open_run, prepare
from fge.commands.study_data import measured_batches, recorded
from fge.config.saved import check_same_images
from fge.config.studies import PlaneConfig
from fge.curves.evaluate import WeightsEvaluator
from fge.errors import DivergenceError
from fge.landscape.grid import PlaneGrid, evaluate_plane
from fge.landscape.plane import Bounds, Plane
from fge.networks.state import preserved
from fge.report.interactive_plane import plane_plot, surface_plot
from fge.report.page import (
    FILES,
    FigureSet,
    Page,
)
from fge.report.planes import plane_figure, plane_table, plane_verdict, surface_figure

_MOST_LABELS = 8


def plane(config: PlaneConfig) -> Path:
    """Measure and draw loss and error on a plane or along lines; return the run folder.

    Raises:
        UserError: something the user can mend; no file was lost.
        DivergenceError: the loss of a network is not finite.
        KeyboardInterrupt: after saying how to resume.
    """
    check_kept(config, (config.run, *config.weights))
    config, dataset = prepare(config, "plane")
    check_same_images(config, dataset.fingerprint)
    model = new_model(config, dataset)
    scene = make_line(config, model) if config.line else make_scene(config, model)
    with open_run(config, "plane", dataset, model, epochs=1) as run:
        run.observer.note(f"{'line' if config.line else 'plane'} through {scene.what}")
        if isinstance(scene, LineScene):
            study_line(run, model, scene)
        else:
            _study_plane(run, model, scene)
    return run.folder.path


def _study_plane(run: Run[PlaneConfig], model: nn.Module, scene: Scene) -> None:
    networks = _measure_networks(run, model, scene)
    grid = _measure_plane(run, model, scene)
    grid.save(run.folder.path / "plane.npz")
    _report_plane(run, scene, grid, networks)


def _measure_networks(
    run: Run[PlaneConfig], model: nn.Module, scene: Scene
) -> list[dict[str, Any]]:
    """Return place and figures of each network of the scene, measured as points of the plane."""
    evaluate = WeightsEvaluator(
        model,
        measured_batches(run),
        num_images=None,
        weight_decay=run.config.loss_decay,
        speed=speed_of(run.config),
    )
    known = recorded(run, "network")
    for subject in scene.networks:
        if subject.name in known:
            continue
        vector = subject.vector(model)
        own = vector.to(scene.plane.origin.device)
        x, y = scene.plane.coordinates(own)
        with preserved(model):
            record = evaluate(vector)[0]
        if not all(math.isfinite(value) for value in record.values()):
            raise DivergenceError(f"the loss of {subject.name} is not finite; try --amp off")
        known[subject.name] = {"event": "network", "name": subject.name, "x": x, "y": y}
        known[subject.name] |= {"off_plane": scene.plane.residual(own), **subject.facts, **record}
        run.folder.log(known[subject.name])
    return [known[subject.name] for subject in scene.networks]


def _measure_plane(run: Run[PlaneConfig], model: nn.Module, scene: Scene) -> PlaneGrid:
    """Return the grid, going on from the points in the folder's state."""
    origin, axes = (vectors.to(run.device) for vectors in (scene.plane.origin, scene.plane.axes))
    return evaluate_plane(
        model,
        replace(scene.plane, origin=origin, axes=axes),
        measured_batches(run),
        resolution=run.config.resolution,
        bounds=_bounds(scene.plane, run.config.margin),
        num_images=None,
        weight_decay=run.config.loss_decay,
        speed=speed_of(run.config),
        store=run.folder.path / "state" / "grid.jsonl",
        on_point=lambda done, total: run.observer.point("plane", done, total),
    )


def _bounds(surface: Plane, margin: float) -> Bounds:
    """Return the extent with the same margin all around, so that flat triangles get a view."""
    left, right, bottom, top = surface.extent
    added = margin * max(right - left, top - bottom)
    return left - added, right + added, bottom - added, top + added


def _report_plane(
    run: Run[PlaneConfig], scene: Scene, grid: PlaneGrid, networks: Sequence[dict[str, Any]]
) -> None:
    flat, raised = (plane_figure, plane_plot), (surface_figure, surface_plot)
    shown = {
        "plane-train-loss.png": (flat, "train_loss", "Training loss on the plane"),
        "plane-test-error.png": (flat, "test_error", "Test error on the plane"),
        "plane-surface.png": (raised, "train_loss", "Training loss as a surface"),
    }
    drawn = FigureSet(run.folder.figures)
    labelled = networks if len(networks) <= _MOST_LABELS else (networks[0], networks[-1])
    points = {network["name"]: (network["x"], network["y"]) for network in labelled}
    for name, ((draw, plot), key, caption) in shown.items():
        marks: dict[str, Any] = {"points": points, "lines": scene.lines}
        drawn.add(name, draw(grid, key, **marks), caption, plot(grid, key, **marks))
    images = {name: len(batches.split) for name, batches in measured_batches(run).items()}
    decay = run.config.loss_decay
    note = (
        f"The plane goes through {scene.what}; x and y are "
        f"{'multiples of the directions' if run.config.random else 'distances in weight space'}. "
        f"Each of its {grid.xs.size * grid.ys.size} points, and each network, has batch-norm "
        f"statistics estimated on {images['train']} training images without augmentation, on which "
        f"the training loss is measured too{f' (with weight decay {decay:g})' if decay else ''}; "
        f"test figures are over {images['test']} images. Data: `plane.npz`."
    )
    title = f"Plane of {run.config.model} on {run.dataset.name}"
    page = Page(
        title,
        plane_verdict(grid, networks),
        [plane_table(networks, note)],
        drawn.captions,
        (*FILES, "plane.npz"),
        drawn.plots,
    )
    found = {"through": scene.what, "networks": networks, "gram": grid.gram.tolist()}
    found |= {"xs": grid.xs.tolist(), "ys": grid.ys.tolist(), "images_per_point": images}
    run.finish(page, {"methods": [], "plane": {**found, "data": "plane.npz"}})
