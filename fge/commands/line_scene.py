"""What a line study measures: paths through weight space, and the networks on them."""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import nn

from fge.commands.plane_scene import check_keeps_snapshots, last_snapshot
from fge.commands.subjects import Subject, file_subjects, run_curve, snapshot_subjects
from fge.config.saved import KEEP_SNAPSHOTS, read_run
from fge.config.studies import PlaneConfig
from fge.curves.curve import Chain
from fge.curves.evaluate import AnyCurve
from fge.errors import UserError
from fge.landscape.plane import Line
from fge.networks.flat import Layout

SEGMENT = "segment"


@dataclass(frozen=True)
class LineScene:
    """Paths by name, the t at which they begin and end, and their points.

    Attributes:
        what: the paths in words.
        paths: on the CPU.
        networks: where they are passed, at even steps of t from the first bound to the last; none
            where a path goes through one network in a random direction.
        num_points: along each path, the networks among them.
        bounds: lowest and highest t.
    """

    what: str
    paths: Mapping[str, AnyCurve]
    networks: Sequence[str]
    num_points: int
    bounds: tuple[float, float] = (0.0, 1.0)


def make_line(config: PlaneConfig, model: nn.Module) -> LineScene:
    """Return the line that the options ask for.

    Args:
        config: of the command.
        model: the architecture, on the CPU; it has the buffers of the first network afterwards.

    Raises:
        UserError: there are too few networks, they do not fit the model, or two neighbours are the
            same.
    """
    if config.run is None:
        networks = file_subjects(config, model)
    elif read_run(config.run)[0] in KEEP_SNAPSHOTS:
        networks = _snapshots(config, config.run, model)
    else:
        check_keeps_snapshots(config, config.run)
        return _along_curve(config.run, model, config.line_points)
    return _random(config, networks[0], model) if config.random else _chain(config, networks, model)


def _snapshots(config: PlaneConfig, run: Path, model: nn.Module) -> list[Subject]:
    if config.random:
        return last_snapshot(run, model)
    found = snapshot_subjects(run, model, config.snapshots or None)
    if len(found) < 2:
        raise UserError(
            f"a line needs two snapshots, {run} has 1; with --random the last one will do"
        )
    return found


def _random(config: PlaneConfig, network: Subject, model: nn.Module) -> LineScene:
    """Return the line along the first axis of the random plane, as far as that is drawn."""
    path = Line.random(network.vector(model), Layout.of(model), config.seed)
    end = 1 + 2 * config.margin
    what = f"{network.name} and a random filter-normalised direction"
    # An odd number of points, so that the network is one of them.
    return LineScene(what, {"direction": path}, (), config.line_points | 1, (-end, end))


def _chain(config: PlaneConfig, networks: Sequence[Subject], model: nn.Module) -> LineScene:
    names, vectors = [n.name for n in networks], [n.vector(model) for n in networks]
    for (one, w), (other, v) in itertools.pairwise(zip(names, vectors, strict=True)):
        if torch.equal(w, v):
            raise UserError(f"{one} and {other} are the same weights; give networks that differ")
    pieces = len(names) - 1
    each = -(-(config.line_points - 1) // pieces)
    path = Chain.through(vectors, family="polychain", num_points=2)
    what = f"{', '.join(names[:-1])} and {names[-1]}, joined by segments"
    return LineScene(what, {"segments" if pieces > 1 else SEGMENT: path}, names, each * pieces + 1)


def _along_curve(run: Path, model: nn.Module, num_points: int) -> LineScene:
    found = run_curve(run, model)
    family, points = found.curve.family.name, found.curve.points
    segment = Chain.through([points[0], points[-1]], family="polychain", num_points=2)
    what = f"the {family} curve {found.name}, and the segment between its ends"
    return LineScene(what, {"curve": found.curve, SEGMENT: segment}, ("w(0)", "w(1)"), num_points)
