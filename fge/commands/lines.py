"""Lines through networks in the command that looks at planes: wiring, and nothing else."""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping
from typing import Any

import numpy as np
from torch import nn

from fge.commands.build import speed_of
from fge.commands.line_scene import LineScene
from fge.commands.run import Run
from fge.commands.study_data import measured_batches
from fge.config.studies import PlaneConfig
from fge.curves.evaluate import Record
from fge.files import write_npz
from fge.landscape.grid import evaluate_line
from fge.networks.state import preserved
from fge.report.interactive import Series, lines_plot
from fge.report.page import (
    FILES,
    FigureSet,
    Page,
)
from fge.report.planes import LINE_AXES, line_figure, line_table, line_verdict, text_of

_DATA = "line.npz"
_SHOWN = {
    "line-train-loss.png": ("train_loss", "Training loss along the line"),
    "line-test-error.png": ("test_error", "Test error along the line"),
}


def study_line(run: Run[PlaneConfig], model: nn.Module, scene: LineScene) -> None:
    """Measure, draw and report loss and error along lines.

    Args:
        run: under way; it goes on from the points in its log.
        model: the architecture, on the run's device; left as it is.
        scene: what to measure.
    """
    lines = {name: _measured(run, model, scene, name) for name in scene.paths}
    keys = [key for key in next(iter(lines.values()))[0] if key != "t"]
    arrays: dict[str, Any] = {
        key: np.array([[record[key] for record in line] for line in lines.values()]) for key in keys
    }
    ts = [record["t"] for record in next(iter(lines.values()))]
    names = {"lines": np.array(list(lines)), "networks": np.array(scene.networks, dtype=np.str_)}
    write_npz(run.folder.path / _DATA, {**names, "t": np.array(ts), **arrays})
    _report(run, scene, lines)


def _measured(run: Run[PlaneConfig], model: nn.Module, scene: LineScene, name: str) -> list[Record]:
    """Return the records along a path, those in the run's log not measured again."""
    known = [r for r in run.folder.records() if r["event"] == "point" and r["line"] == name]
    done: list[Record] = [
        {key: float(value) for key, value in r.items() if key not in ("event", "line")}
        for r in known
    ]
    count = len(done)

    def log(record: Record) -> None:
        nonlocal count
        count += 1
        # JSON has no infinity, which losses far away do reach.
        figures = {k: v if math.isfinite(v) else str(v) for k, v in record.items()}
        run.folder.log({"event": "point", "line": name, **figures})
        run.observer.point(name, count, scene.num_points)

    with preserved(model):
        return evaluate_line(
            model,
            scene.paths[name],
            measured_batches(run),
            bounds=scene.bounds,
            num_points=scene.num_points,
            num_images=None,
            weight_decay=run.config.loss_decay,
            speed=speed_of(run.config),
            on_record=log,
            done=done,
        )


def _report(run: Run[PlaneConfig], scene: LineScene, lines: Mapping[str, list[Record]]) -> None:
    drawn = FigureSet(run.folder.figures)
    x = "arc" if len(scene.networks) > 2 else "t"
    for name, (key, caption) in _SHOWN.items():
        series = [
            Series(line, [r[x] for r in records], [r[key] for r in records])
            for line, records in lines.items()
        ]
        plot = lines_plot(series, x=LINE_AXES[x], y=text_of(key), dashes=True)
        drawn.add(name, line_figure(lines, key=key, x=x), caption, plot)
    images = {name: len(batches.split) for name, batches in measured_batches(run).items()}
    parts, joined = _parts(scene, lines), bool(scene.networks)
    table = line_table(parts, _note(run, scene, images), barriers=joined)
    page = Page(
        f"Line of {run.config.model} on {run.dataset.name}",
        line_verdict(parts, scene.what, barriers=joined),
        [table],
        drawn.captions,
        (*FILES, _DATA),
        drawn.plots,
    )
    found: dict[str, Any] = {
        "along": scene.what,
        "networks": list(scene.networks),
        "bounds": scene.bounds,
    }
    found |= {"points": scene.num_points, "images_per_point": images, "data": _DATA}
    run.finish(page, {"methods": [], "line": found})


def _parts(scene: LineScene, lines: Mapping[str, list[Record]]) -> dict[str, list[Record]]:
    """Return the records of each line by its name, of a chain from network to network."""
    if len(scene.networks) <= 2:
        return dict(lines)
    (records,) = lines.values()
    each = (scene.num_points - 1) // (len(scene.networks) - 1)
    return {
        f"{one} to {other}": records[k * each : (k + 1) * each + 1]
        for k, (one, other) in enumerate(itertools.pairwise(scene.networks))
    }


def _note(run: Run[PlaneConfig], scene: LineScene, images: Mapping[str, int]) -> str:
    decay = run.config.loss_decay
    t = (
        "t runs from the first network (0) to the last (1), in even steps from one to the next"
        if scene.networks
        else "t counts multiples of the direction, 0 is the network"
    )
    return (
        f"The line: {scene.what}; {t}; lengths are distances in weight space. Each of "
        f"{scene.num_points} points per line has batch-norm statistics estimated on "
        f"{images['train']} training images without augmentation, on which the training loss is "
        f"measured too{f' (with weight decay {decay:g})' if decay else ''}; test figures are over "
        f"{images['test']} images. Data: `{_DATA}`."
    )
