"""Fitting a curve of low loss between two networks of one architecture."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.optim import Optimizer

from fge.curves.curve import Curve
from fge.curves.curve_learner import CurveLearner
from fge.curves.families import Family, make_family
from fge.curves.objectives import Objective, make_objective
from fge.curves.points import straight_points
from fge.errors import UserError
from fge.files import sha256
from fge.networks.apply import ForwardFn, LossFn, check_reiterable
from fge.networks.flat import Layout, check_distinct, flatten
from fge.networks.state import Weights, preserved, read_state, write_state
from fge.train.learner import Speed
from fge.train.loop import Batches, EpochEnd, diverged, train
from fge.train.schedules import ClosedFormLR, EndpointLR

MakeSchedule = Callable[[Optimizer, int], ClosedFormLR]


def fit_curve(
    model: nn.Module,
    start: Weights,
    end: Weights,
    batches: Iterable[Any],
    *,
    family: str = "bezier",
    num_points: int = 3,
    objective: str | Objective = "uniform",
    epochs: int = 200,
    lr: float = 0.015,
    momentum: float = 0.9,
    weight_decay: float = 5e-4,
    loss_fn: LossFn = F.cross_entropy,
    forward_fn: ForwardFn | None = None,
    seed: int = 0,
    schedule: MakeSchedule | None = None,
    speed: Speed | None = None,
    initial: Curve | None = None,
    on_epoch: Callable[[EpochEnd], None] | None = None,
    checkpoint: str | Path | None = None,
) -> Curve:
    """Fit the bends of a curve between two networks, whose weights stay as they are.

    SGD on the bends, one t and one batch a step (arXiv 1802.10026, section 3.2; defaults as the
    reference implementation trains curves: 0.015 for VGG, 0.03 for residual networks, weight
    decay 5e-4 or 3e-4, 200 epochs for residual networks and 600 for VGG). The model is run in
    training mode and is afterwards as it was before, batch-norm statistics included: those of the
    curve are estimated where it is evaluated. Neither is the state of PyTorch's generators
    changed.

    Args:
        model: the architecture, on the device to use; any module.
        start: weights at t = 0.
        end: weights at t = 1.
        batches: can be iterated more than once, yields ``(x, y, ...)``; ``set_epoch(epoch)`` is
            called where there is one.
        family: ``"bezier"`` or ``"polychain"``.
        num_points: points of the curve, both ends counted; at least 3.
        objective: ``"uniform"``, ``"arclength"``, ``"minmax"`` or an ``Objective``.
        epochs: passes over ``batches``.
        lr: base learning rate.
        momentum: of SGD.
        weight_decay: L2 penalty on w(t), as on the weights of a network, not on the bends.
        loss_fn: of outputs and targets, averaged over the batch.
        forward_fn: ``forward_fn(model, batch) -> outputs`` where the model is not called as
            ``model(x)``.
        seed: of the draws of t and of what the model draws (dropout).
        schedule: ``schedule(optimizer, steps_per_epoch)``; :class:`EndpointLR` over ``epochs`` by
            default.
        speed: precision, memory format and compilation; plain by default.
        initial: the curve to start from, whose family and number of points then count and whose
            ends must be ``start`` and ``end``; straight by default.
        on_epoch: called at the end of each epoch.
        checkpoint: a file that is written after each epoch, and from which the fit goes on where it
            exists; on the CPU the end is bitwise that of an uninterrupted fit. It stays when the
            fit is done.

    Returns:
        The curve, with the model's layout; first and last points are the ends, bitwise.

    Raises:
        UserError: fewer than 3 points, weights that do not fit the model, are not finite or are
            the same, an unknown family or objective, unfit batches or options, or a checkpoint of
            another fit.
        DivergenceError: the loss or the bends are not finite.
    """
    numbers = {"lr": lr, "momentum": momentum, "weight_decay": weight_decay}
    _check_options(epochs, numbers)
    check_reiterable(batches)
    sized = _Sized(batches)
    shape = make_family(family, num_points) if initial is None else initial.family
    options: dict[str, Any] = {"objective": make_objective(objective), "seed": seed, **numbers}
    options |= {"speed": speed, "loss_fn": loss_fn, "forward_fn": forward_fn}
    points = _first_points(model, start, end, shape, initial)
    with preserved(model), _own_randomness(points.device):
        learner = CurveLearner(model, shape, points, **options)
        rates = (schedule or partial(_endpoint, epochs=epochs))(learner.optimizer, len(sized))
        _run(learner, rates, sized, epochs, checkpoint, on_epoch)
        return Curve(shape, learner.release_points(), Layout.of(model))


def _run(
    learner: CurveLearner,
    rates: ClosedFormLR,
    batches: Batches,
    epochs: int,
    checkpoint: str | Path | None,
    on_epoch: Callable[[EpochEnd], None] | None,
) -> None:
    """Train what is left of the epochs, from checkpoint to checkpoint."""
    facts = {"epochs": epochs, "steps_per_epoch": len(batches)}
    file = None if checkpoint is None else _Checkpoint(Path(checkpoint), learner, facts)

    def end_epoch(end: EpochEnd) -> None:
        if end.images == 0:
            raise UserError(
                "batches yielded nothing: give data that can be iterated more than once"
            )
        largest = [
            float(torch.linalg.vector_norm(bend.detach(), math.inf)) for bend in learner.bends
        ]
        if not all(map(math.isfinite, largest)):  # isfinite() of the tensors would copy them
            raise diverged("the bends are not finite", learner.steps - 1, _current(rates)[0])
        if on_epoch:  # before the checkpoint: an interrupted epoch is reported again, none is lost
            on_epoch(end)
        if file is not None:
            file.write(end.epoch + 1, rates)

    train(
        learner,
        rates,
        batches,
        first_epoch=0 if file is None else file.restore(rates),
        last_epoch=epochs,
        seed=learner.seed,
        on_epoch=end_epoch,
    )


def _first_points(
    model: nn.Module, start: Weights, end: Weights, family: Family, initial: Curve | None
) -> Tensor:
    """Return the points (B, P) that the fit begins with."""
    if family.num_points < 3:
        raise UserError(
            f"num_points counts both ends; a fit needs at least 3, got {family.num_points}"
        )
    first, last = flatten(start, model), flatten(end, model)
    check_distinct(first, last)
    if initial is None:
        return straight_points(first, last, family.num_points)
    points = initial.points.to(first).clone()
    for name, point, given in (("start", points[:1], first), ("end", points[-1:], last)):
        if not torch.equal(point, given[None]):
            raise UserError(f"the {name} of the initial curve is not {name}; give its own ends")
    if not bool(torch.isfinite(points).all()):
        raise UserError("the initial curve has points that are not finite")
    return points


class _Checkpoint:
    """A file that holds the fit as it was at the end of an epoch, and what fit it is of."""

    def __init__(self, path: Path, learner: CurveLearner, facts: dict[str, Any]) -> None:
        self.path = path
        self.learner = learner
        options = learner.optimizer.param_groups[0]
        points = [sha256(p.cpu().view(torch.uint8).numpy().tobytes())[:16] for p in learner.points]
        self.facts = {
            "family": learner.family.name,
            "num_points": learner.family.num_points,
            "objective": learner.objective.options(),
            "lr": options["initial_lr"],
            "momentum": options["momentum"],
            "weight_decay": learner.weight_decay,
            "seed": learner.seed,
            "speed": asdict(learner.speed),
            **facts,
            "start": points[0],
            "end": points[-1],
            "initial": points[1:-1],
        }

    def write(self, epoch: int, rates: ClosedFormLR) -> None:
        state = {"fit": self.facts, "epoch": epoch, "rates": _current(rates)}
        state |= {"learner": self.learner.state_dict(), "schedule": rates.state_dict()}
        write_state(self.path, state)

    def restore(self, rates: ClosedFormLR) -> int:
        """Go on from the file where there is one; return the number of finished epochs."""
        if not self.path.exists():
            return 0
        state = read_state(self.path)
        if "fit" not in state:
            raise UserError(f"{self.path} is no checkpoint of a curve fit; give another file")
        for name, value in self.facts.items():
            self._compare(name, state["fit"].get(name), value)
        rates.load_state_dict(state["schedule"])
        self._compare("the schedule's lr", state["rates"], _current(rates))
        self.learner.load_state_dict(state["learner"])
        return int(state["epoch"])

    def _compare(self, name: str, saved: Any, value: Any) -> None:
        if saved != value:
            raise UserError(
                f"{self.path} is of another fit: {name} was {saved!r}, is now {value!r}; "
                "give the same options or another checkpoint file"
            )


class _Sized:
    """Batches with a length, which is counted where they do not know it."""

    def __init__(self, batches: Iterable[Any]) -> None:
        self.batches = batches
        try:
            self.length = len(batches)  # type: ignore[arg-type]
        except TypeError:
            self.length = sum(1 for _ in batches)
        if self.length == 0:
            raise UserError("batches yielded nothing: give data to fit the curve to")

    def __len__(self) -> int:
        return self.length

    def __iter__(self) -> Iterator[Any]:
        return iter(self.batches)

    def set_epoch(self, epoch: int) -> None:
        if hasattr(self.batches, "set_epoch"):
            self.batches.set_epoch(epoch)


def _current(rates: ClosedFormLR) -> list[float]:
    return [float(rate) for rate in rates.get_last_lr()]


def _own_randomness(device: torch.device) -> Any:
    """Keep the state of PyTorch's generators from what happens within."""
    return torch.random.fork_rng([device] if device.type == "cuda" else [])


def _endpoint(optimizer: Optimizer, steps_per_epoch: int, *, epochs: int) -> ClosedFormLR:
    return EndpointLR(optimizer, epochs=epochs, steps_per_epoch=steps_per_epoch)


def _check_options(epochs: int, numbers: dict[str, float]) -> None:
    if epochs < 1:
        raise UserError(f"epochs must be >= 1, got {epochs}")
    for name, value in numbers.items():
        if not (math.isfinite(value) and value >= 0):
            raise UserError(f"{name} must be finite and >= 0, got {value}")
