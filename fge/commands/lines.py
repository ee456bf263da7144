"""Lines through networks in the command ``plane``: choosing, measuring and reporting them."""

from __future__ import annotations

import itertools
import math
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypedDict

import numpy as np
import torch
from torch import nn

from fge.arrays import write_npz
from fge.commands.figures import with_figures
from fge.commands.run import Run
from fge.commands.studied import (
    StudiedNetwork,
    check_keeps_snapshots,
    last_snapshot,
    measured_batches,
    networks_in_files,
    refresh_batches,
    run_curve,
    snapshot_networks,
)
from fge.config import KEEP_SNAPSHOTS, PlaneConfig, read_run
from fge.curves import (
    Chain,
    Curve,
    InterpolatedWarning,
    Networks,
    Record,
    Statistics,
    make_family,
    statistics_of,
    straight_curve,
    straight_points,
)
from fge.errors import UserError
from fge.files import checked
from fge.landscape import Line, evaluate_line
from fge.networks import Layout, preserved
from fge.observer import listed
from fge.report import line_chart, line_table, line_verdict
from fge.schemas import Infinite, NotNegative
from fge.tasks import Task

SEGMENT = "segment"
_DATA = "line.npz"


class _Point(TypedDict):
    """Where a point on a line is, in the log; its other keys are figures."""

    line: str
    t: float
    distance: NotNegative | Infinite
    arc: NotNegative | Infinite


@dataclass(frozen=True)
class LineSetup:
    """The paths to measure.

    Attributes:
        what: the paths in words.
        paths: by name, on the CPU.
        networks: the names of the networks on the paths, at even steps of t from the lowest to the
            highest; empty for a random direction through one network.
        num_points: number of points along each path, the networks included.
        bounds: lowest and highest t.
    """

    what: str
    paths: Mapping[str, Networks]
    networks: Sequence[str]
    num_points: int
    bounds: tuple[float, float] = (0.0, 1.0)


def make_line_setup(config: PlaneConfig, model: nn.Module) -> LineSetup:
    """Return the line of the options; the model (on the CPU) gets the first network's buffers."""
    if config.run is None:
        networks = networks_in_files(config, model)
    elif read_run(config.run)[0] in KEEP_SNAPSHOTS:
        networks = _snapshots(config, config.run, model)
    else:
        check_keeps_snapshots(config, config.run)
        return _along_curve(config.run, model, config.line_points)
    return _random(config, networks[0], model) if config.random else _chain(config, networks, model)


def _snapshots(config: PlaneConfig, run: Path, model: nn.Module) -> list[StudiedNetwork]:
    if config.random:
        return last_snapshot(run, model)
    networks = snapshot_networks(run, model, config.snapshots or None)
    if len(networks) < 2:
        raise UserError(f"a line needs two snapshots, {run} has 1; with --random one is enough")
    return networks


def _random(config: PlaneConfig, network: StudiedNetwork, model: nn.Module) -> LineSetup:
    """Return the line along the first axis of the random plane, with the plane's bounds."""
    path = Line.random(network.vector(model), Layout.of(model), config.seed)
    end = 1 + 2 * config.margin
    what = f"{network.name} and a random filter-normalised direction"
    # An odd number of points includes the network.
    return LineSetup(what, {"direction": path}, (), config.line_points | 1, (-end, end))


def _chain(config: PlaneConfig, networks: Sequence[StudiedNetwork], model: nn.Module) -> LineSetup:
    names, vectors = [n.name for n in networks], [n.vector(model) for n in networks]
    for (one, w), (other, v) in itertools.pairwise(zip(names, vectors, strict=True)):
        if torch.equal(w, v):
            raise UserError(f"{one} and {other} have the same weights; give networks that differ")
    pieces = len(names) - 1
    each = -(-(config.line_points - 1) // pieces)
    path = Chain([straight_curve(model, a.state, b.state) for a, b in itertools.pairwise(networks)])
    what = f"{listed(names)}, joined by segments"
    return LineSetup(what, {"segments" if pieces > 1 else SEGMENT: path}, names, each * pieces + 1)


def _along_curve(run: Path, model: nn.Module, num_points: int) -> LineSetup:
    studied = run_curve(run, model)
    family, points = studied.curve.family.name, studied.curve.points
    straight = straight_points(points[0], points[-1], 2)
    curve = studied.curve
    segment = Curve(make_family("polychain", 2), straight, curve.layout, curve.buffers)
    what = f"the {family} curve {studied.name}, and the segment between its ends"
    return LineSetup(what, {"curve": curve, SEGMENT: segment}, ("w(0)", "w(1)"), num_points)


def study_line(run: Run[PlaneConfig], model: nn.Module, setup: LineSetup) -> None:
    """Measure, draw and report loss and error along lines; points in the run's log are reused."""
    lines = {name: _measured(run, model, setup, name) for name in setup.paths}
    keys = [key for key in next(iter(lines.values()))[0] if key != "t"]
    arrays: dict[str, Any] = {
        key: np.array([[record[key] for record in line] for line in lines.values()]) for key in keys
    }
    ts = [record["t"] for record in next(iter(lines.values()))]
    names = {"lines": np.array(list(lines)), "networks": np.array(setup.networks, dtype=np.str_)}
    write_npz(run.folder.path / _DATA, {**names, "t": np.array(ts), **arrays})
    every = [ends for path in setup.paths.values() for ends in path.all_ends()]
    statistics = statistics_of(model, every)
    _report(run, setup, lines, statistics)


def _measured(run: Run[PlaneConfig], model: nn.Module, setup: LineSetup, name: str) -> list[Record]:
    """Return the records along a path; points in the run's log are not measured again."""
    done = _logged(run, name)
    count = len(done)

    def log(record: Record) -> None:
        nonlocal count
        count += 1
        # JSON has no infinity, which losses far away can reach.
        figures = {k: v if math.isfinite(v) else str(v) for k, v in record.items()}
        run.folder.log({"event": "point", "line": name, **figures})
        run.observer.point(name, count, setup.num_points)

    ignored: Any = {"action": "ignore", "category": InterpolatedWarning}  # the report says it
    with preserved(model), warnings.catch_warnings(**ignored):
        return evaluate_line(
            model,
            setup.paths[name],
            measured_batches(run),
            refresh=refresh_batches(run, run.config.eval_images),
            bounds=setup.bounds,
            num_points=setup.num_points,
            num_images=None,
            weight_decay=run.config.loss_decay,
            speed=run.setup.speed,
            task=run.setup.task,
            on_record=log,
            done=done,
        )


def _logged(run: Run[PlaneConfig], name: str) -> list[Record]:
    """Return the records along a path in the run's log."""
    damaged = f"{run.folder.log_file} is damaged: a point of the line {name!r}"
    logged = [r for r in run.folder.records() if r["event"] == "point" and r["line"] == name]
    kind = with_figures(_Point, run.setup.task, ("train", "test"), infinite=True)
    figures = kind.__annotations__.keys() - {"line"}
    points: list[dict[str, Any]] = [dict(checked(record, kind, damaged)) for record in logged]
    return [{key: float(point[key]) for key in point if key in figures} for point in points]


def _report(
    run: Run[PlaneConfig],
    setup: LineSetup,
    lines: Mapping[str, list[Record]],
    statistics: Statistics,
) -> None:
    x, task = "arc" if len(setup.networks) > 2 else "t", run.setup.task
    for name, (key, caption) in _shown(task).items():
        run.report.chart(name, line_chart(lines, key=key, x=x, task=task), caption)
    images = {name: len(batches.split) for name, batches in measured_batches(run).items()}
    parts, joined = _parts(setup, lines), bool(setup.networks)
    note = f"{_note(run, setup, images)} On the line, {statistics}."
    run.report.table(line_table(parts, note, barriers=joined, task=task))
    run.report.say(*line_verdict(parts, setup.what, barriers=joined, task=task))
    run.report.files.append(_DATA)
    facts: dict[str, Any] = {
        "along": setup.what,
        "networks": list(setup.networks),
        "bounds": setup.bounds,
    }
    facts |= {"statistics": statistics.facts()}
    facts |= {"points": setup.num_points, "images_per_point": images, "data": _DATA}
    run.report.facts(methods=[], line=facts)
    run.finish(f"Line of {run.config.model} on {run.dataset.name}")


def _shown(task: Task) -> dict[str, tuple[str, str]]:
    """Return the figures: key of the records and caption, by file."""
    key, word = task.measure.key, task.measure.word
    return {
        "line-train-loss.png": ("train_loss", "Training loss along the line"),
        f"line-test-{key}.png": (f"test_{key}", f"Test {word} along the line"),
    }


def _parts(setup: LineSetup, lines: Mapping[str, list[Record]]) -> dict[str, list[Record]]:
    """Return the records by line; a chain is divided into its segments."""
    if len(setup.networks) <= 2:
        return dict(lines)
    (records,) = lines.values()
    each = (setup.num_points - 1) // (len(setup.networks) - 1)
    return {
        f"{one} to {other}": records[k * each : (k + 1) * each + 1]
        for k, (one, other) in enumerate(itertools.pairwise(setup.networks))
    }


def _note(run: Run[PlaneConfig], setup: LineSetup, images: Mapping[str, int]) -> str:
    decay, example = run.config.loss_decay, run.dataset.example
    t = (
        "t is 0 at the first network and 1 at the last, with even steps between networks"
        if setup.networks
        else "t counts multiples of the direction; 0 is the network"
    )
    return (
        f"The line is {setup.what}; {t}. Lengths are distances in weight space. Each of "
        f"{setup.num_points} points per line is measured by itself. The training loss"
        f"{f' (with weight decay {decay:g})' if decay else ''} is over {images['train']} training "
        f"{example}s without augmentation; statistics are estimated on the same, varied as in "
        f"training. Test numbers are over {images['test']} {example}s. Data: `{_DATA}`."
    )
