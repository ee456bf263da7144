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
from torch.nn.modules.batchnorm import _BatchNorm
from torch.optim import Optimizer

from fge.curves.buffers import end_buffers
from fge.curves.checkpoint import FitCheckpoint, current
from fge.curves.curve import Curve, straight_points
from fge.curves.families import Family, make_family
from fge.curves.objectives import Draw, Objective, Shape, make_objective, stratified_uniform
from fge.errors import UserError, check_at_least, check_not_negative
from fge.files import RESTORE, checked, sha256
from fge.networks import (
    FlatParameters,
    ForwardFn,
    Layout,
    LossFn,
    TargetFn,
    Weights,
    check_distinct,
    check_reiterable,
    flatten,
    named_parameters,
    nothing_yielded,
    preserved,
    single_refused,
    to_device,
    unwrap,
)
from fge.schemas import Count
from fge.seeds import same_random_state
from fge.train import (
    DAMAGED,
    Batches,
    ClosedFormLR,
    EndpointLR,
    EpochEnd,
    Learner,
    MakeSchedule,
    Memory,
    Speed,
    diverged,
    restore_memory,
    train,
)

_CPU_COLUMNS, _GPU_COLUMNS = 1 << 15, 1 << 22
"""Columns per block of the Gram matrix: small enough for a CPU cache; few calls on a GPU."""


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
    target_fn: TargetFn | None = None,
    seed: int = 0,
    schedule: MakeSchedule | None = None,
    speed: Speed | None = None,
    initial: Curve | None = None,
    on_epoch: Callable[[EpochEnd], None] | None = None,
    checkpoint: str | Path | None = None,
) -> Curve:
    """Fit the bends of a curve between two networks, whose weights stay fixed.

    SGD on the bends, with one t and one batch per step (arXiv 1802.10026, section 3.2). The
    reference implementation trains curves with learning rate 0.015 for VGG and 0.03 for residual
    networks, weight decay 5e-4 and 3e-4, and 600 and 200 epochs. The model runs in training mode
    and is unchanged afterwards, batch-norm statistics included: evaluation estimates those of the
    curve. The state of PyTorch's generators does not change either.

    Args:
        model: the architecture, on the device to use; any module.
        start: weights at t = 0.
        end: weights at t = 1.
        batches: re-iterable of ``(x, y)``; its ``set_epoch(epoch)``, if any, is called.
        family: ``"bezier"`` or ``"polychain"``.
        num_points: points of the curve, both ends included; at least 3.
        objective: ``"uniform"``, ``"arclength"``, ``"minmax"`` or an ``Objective``.
        epochs: passes over ``batches``.
        lr: base learning rate.
        momentum: of SGD.
        weight_decay: L2 penalty on w(t), as on the weights of a network, not on the bends.
        loss_fn: of outputs and targets, averaged over the batch.
        forward_fn: ``forward_fn(model, batch) -> outputs`` for models that are not called as
            ``model(x)``.
        target_fn: ``target_fn(batch) -> targets`` where they are not the second of two parts.
        seed: of the draws of t and of random numbers in the model (dropout).
        schedule: ``schedule(optimizer, steps_per_epoch)``; by default :class:`EndpointLR` over
            ``epochs``.
        speed: precision, memory format and compilation; plain by default.
        initial: the curve to start from; it replaces ``family`` and ``num_points``, and its ends
            must be ``start`` and ``end``. A straight line by default.
        on_epoch: called after each epoch.
        checkpoint: a file written after each epoch. If it exists, the fit resumes from it; on the
            CPU the result is bitwise that of an uninterrupted fit. It is not removed at the end.

    Returns:
        The curve, with the model's layout and the buffers of the ends; first and last points are
        the ends, bitwise.

    Raises:
        UserError: there are fewer than 3 points, the weights do not fit the model, are not finite
            or are equal, the family or objective is unknown, batches or options are invalid, no
            parameter requires a gradient, or the checkpoint is of another fit.
        DivergenceError: the loss or the bends are not finite.
    """
    numbers = {"lr": lr, "momentum": momentum, "weight_decay": weight_decay}
    check_at_least(1, epochs=epochs)
    check_not_negative(**numbers)
    check_reiterable(batches)
    sized = _Sized(batches)
    shape = make_family(family, num_points) if initial is None else initial.family
    options: dict[str, Any] = {"objective": make_objective(objective), "seed": seed, **numbers}
    options |= {"speed": speed, "loss_fn": loss_fn, "forward_fn": forward_fn}
    options["target_fn"] = target_fn
    points = _first_points(model, start, end, shape, initial)
    if not any(parameter.requires_grad for parameter in named_parameters(model).values()):
        raise UserError("no parameter of the model requires a gradient; set requires_grad")
    buffers = end_buffers(model, start, end)  # before the fit changes those of the model
    with preserved(model), _own_randomness(points.device):
        learner = CurveLearner(model, shape, points, **options)
        rates = (schedule or partial(_endpoint, epochs=epochs))(learner.optimizer, len(sized))
        _run(learner, rates, sized, epochs, checkpoint, on_epoch)
        return Curve(shape, learner.release_points(), Layout.of(model), buffers)


class _State(Memory):
    """The state of a fit."""

    bends: list[Tensor]
    buffers: dict[str, Tensor]
    objective: dict[str, Any]
    steps: Count


class CurveLearner(Learner):
    """The bends of a curve and their optimizer; a step moves them by the loss at one w(t).

    A step draws t, writes w(t) into the model's flat parameters, runs one ordinary backward pass
    and turns the flat gradient g into that of each bend: c_j(t) * (g + weight_decay * w(t)) plus
    the objective's term (arXiv 1802.10026, section 3.2; here in closed form). The ends are fixed,
    and so are parameters that do not require gradients: where they are the same at both ends,
    they are so at every t, bitwise. With batch norm a batch of a single image
    among larger ones moves nothing. The model's parameters become views of one
    vector; the learner takes ``points`` (B, P, canonical, dtype and device of the model) over,
    changes them and keeps them in the model's memory order.
    """

    def __init__(
        self,
        model: nn.Module,
        family: Family,
        points: Tensor,
        *,
        objective: Objective,
        lr: float = 0.015,
        momentum: float = 0.9,
        weight_decay: float = 5e-4,
        seed: int = 0,
        speed: Speed | None = None,
        loss_fn: LossFn = F.cross_entropy,
        forward_fn: ForwardFn | None = None,
        target_fn: TargetFn | None = None,
    ) -> None:
        if speed is not None and speed.channels_last:
            model.to(memory_format=torch.channels_last)
        self.flat = FlatParameters(model)
        self.family = family
        self.points = points
        for point in points:
            point.copy_(self.flat.pack(point))
        self.bends = [nn.Parameter(row) for row in self.points[1:-1]]
        self.objective = objective
        self.weight_decay = weight_decay
        self.seed = seed
        self.steps = 0
        self._frozen = [
            slice(p.storage_offset(), p.storage_offset() + p.numel())
            for p in self.flat.parameters
            if not p.requires_grad
        ]
        # A sum of products would round what is the same at all points.
        self._held = [
            part
            for part in self._frozen
            if all(torch.equal(points[0, part], row[part]) for row in points[1:])
        ]
        fused = points.device.type in ("cpu", "cuda")
        optimizer = torch.optim.SGD(self.bends, lr=lr, momentum=momentum, fused=fused)
        calls: dict[str, Any] = {"forward_fn": forward_fn, "target_fn": target_fn}
        super().__init__(model, optimizer, speed, loss_fn=loss_fn, **calls)
        self._normalises = any(isinstance(module, _BatchNorm) for module in model.modules())

    def step(self, *batch: Any) -> Tensor:
        """Move the bends by one batch; return the loss at w(t) before the step, without decay.

        Raises:
            UserError: as :meth:`Learner.step`, or batch norm cannot normalise a single image.
        """
        if not self.batch_size:  # the batch size that the model is compiled for
            self.batch_size = self._count(batch)
        if self._leaves_out(batch):
            return torch.zeros((), device=self.device)
        u = stratified_uniform(self.seed, self.steps, self.objective.strata)
        gram = quick_gram(self.points) if self.objective.uses_gram else None
        draw = self.objective.draw(u, Shape(self.family, gram))
        self.move_to(draw.t)
        with single_refused():
            loss = self._backward(to_device(batch[0] if len(batch) == 1 else batch, self.device))
        self._set_gradients(draw, loss)
        self._update()
        self.flat.zero_grad()
        self.steps += 1
        return loss

    def joint_images(self, batch: Any) -> int:
        """Return the images of a batch that moved the bends."""
        return 0 if self._leaves_out(batch) else self._count(batch)

    def _leaves_out(self, batch: Any) -> bool:
        """Return whether a batch is empty, or a single image among larger ones for batch norm."""
        count = self._count(batch)
        return count == 0 or (self._normalises and self.batch_size != 1 and count == 1)

    @torch.no_grad()
    def move_to(self, t: float) -> None:
        """Write w(t) into the model."""
        first, *others = self.family.coefficients(t).tolist()
        torch.mul(self.points[0], first, out=self.flat.vector)
        for coefficient, point in zip(others, self.points[1:], strict=True):
            if coefficient:
                self.flat.vector.add_(point, alpha=coefficient)
        for part in self._held:
            self.flat.vector[part] = self.points[0, part]

    @torch.no_grad()
    def _set_gradients(self, draw: Draw, loss: Tensor) -> None:
        """Set the gradients of the bends; the last one reuses the model's gradient memory."""
        scales = draw.scale.tolist()
        *others, last = zip(self.bends, scales[1:-1], strict=True)
        for bend, scale in others:
            bend.grad = self.flat.gradient * scale
        last[0].grad = self.flat.gradient.mul_(last[1])
        if self.scaler.is_enabled():
            self.scaler.unscale_(self.optimizer)
        pull = self._pull(draw, loss)
        for row, bend in enumerate(self.bends, start=1):
            assert bend.grad is not None
            if self.weight_decay:
                bend.grad.add_(self.flat.vector, alpha=self.weight_decay * scales[row])
            if pull is not None:
                bend.grad.addmv_(self.points.T, pull[row])
            for frozen in self._frozen:
                bend.grad[frozen] = 0

    def _pull(self, draw: Draw, loss: Tensor) -> Tensor | None:
        """Pass L_t to the objective; return (L_t - baseline) * pull (B, B) on the device."""
        if not self.objective.uses_loss:
            return None
        total = loss.double()
        if self.weight_decay:
            total = total + self.weight_decay / 2 * self.flat.vector.dot(self.flat.vector).double()
        baseline = self.objective.baseline()
        self.objective.observe(draw, total)
        if draw.pull is None or baseline is None:
            return None
        factor = (total - baseline).to(self.points.dtype)
        return draw.pull.to(self.points.device, self.points.dtype) * factor

    def release_points(self) -> Tensor:
        """Return the points (B, P), ends included, in canonical order; ends the learner's use.

        They are reordered in place, to avoid a copy of a large network's weights.
        """
        for point in self.points:
            point.copy_(self.flat.unpack(point))
        return self.points

    def identity(self) -> dict[str, Any]:
        """Return what distinguishes this fit from others, as plain values."""
        options = self.optimizer.param_groups[0]
        points = [sha256(p.cpu().view(torch.uint8).numpy().tobytes())[:16] for p in self.points]
        return {
            "family": self.family.name,
            "num_points": self.family.num_points,
            "objective": self.objective.options(),
            "lr": options["initial_lr"],
            "momentum": options["momentum"],
            "weight_decay": self.weight_decay,
            "seed": self.seed,
            "speed": asdict(self.speed),
            "start": points[0],
            "end": points[-1],
            "initial": points[1:-1],
        }

    def state_dict(self) -> dict[str, Any]:
        """Return bends, states of optimizer and objective, the model's buffers, and the step.

        Vectors are in the model's memory order.
        """
        return {
            "bends": [bend.detach() for bend in self.bends],
            "optimizer": self.optimizer.state_dict()["state"],
            "scaler": self.scaler.state_dict(),
            "objective": self.objective.state_dict(),
            "buffers": dict(unwrap(self.model).named_buffers()),
            "steps": self.steps,
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore a saved state; the optimizer's options stay the constructor's.

        Raises:
            UserError: it is damaged, or of another fit.
        """
        saved = checked(state, _State, DAMAGED)
        buffers = dict(unwrap(self.model).named_buffers())
        own = [bend.shape for bend in self.bends], {n: b.shape for n, b in buffers.items()}
        theirs = (
            [b.shape for b in saved["bends"]],
            {n: b.shape for n, b in saved["buffers"].items()},
        )
        if own != theirs:
            raise UserError(
                f"{DAMAGED}: its bends or buffers are not those of the model; {RESTORE}"
            )
        with torch.no_grad():
            for bend, value in zip(self.bends, saved["bends"], strict=True):
                bend.copy_(value)
            for name, value in saved["buffers"].items():
                buffers[name].copy_(value)
        restore_memory(self.optimizer, self.scaler, saved)
        self.objective.load_state_dict(saved["objective"])
        self.steps = saved["steps"]


def quick_gram(points: Tensor) -> Tensor:
    """Return G_ij = <w_i - w_0, w_j - w_0> (B, B) float64 on the CPU, for points (B, P).

    Like :func:`fge.curves.gram_matrix`, but products are in the points' own precision (at least
    float32) and only sums over blocks in float64: a tenth of the time, and exact to about 1e-5 for
    float32, which is enough to draw t.
    """
    columns = _GPU_COLUMNS if points.is_cuda else _CPU_COLUMNS
    dtype = torch.promote_types(points.dtype, torch.float32)
    gram = torch.zeros(len(points), len(points), dtype=torch.float64, device=points.device)
    for block in torch.split(points.detach(), columns, dim=1):
        differences = block.to(dtype) - block[0].to(dtype)
        gram += differences @ differences.T
    return gram.cpu()


def _run(
    learner: CurveLearner,
    rates: ClosedFormLR,
    batches: Batches,
    epochs: int,
    checkpoint: str | Path | None,
    on_epoch: Callable[[EpochEnd], None] | None,
) -> None:
    """Train the remaining epochs, with a checkpoint after each."""
    facts = learner.identity() | {"epochs": epochs, "steps_per_epoch": len(batches)}
    file = None if checkpoint is None else FitCheckpoint(Path(checkpoint), learner, facts)

    def end_epoch(end: EpochEnd) -> None:
        if end.images == 0:
            raise nothing_yielded()
        largest = [
            float(torch.linalg.vector_norm(bend.detach(), math.inf)) for bend in learner.bends
        ]
        if not all(map(math.isfinite, largest)):  # isfinite() of the tensors would copy them
            raise diverged("the bends are not finite", learner.steps - 1, current(rates)[0])
        if on_epoch:  # before the checkpoint: after an interruption an epoch may be reported twice
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
    """Return the initial points (B, P) of the fit."""
    if family.num_points < 3:
        raise UserError(
            f"num_points counts both ends and must be >= 3 for a fit, got {family.num_points}"
        )
    first, last = flatten(start, model), flatten(end, model)
    check_distinct(first, last)
    if initial is None:
        return straight_points(first, last, family.num_points, Layout.of(model))
    points = initial.points.to(first).clone()
    for name, point, given in (("start", points[:1], first), ("end", points[-1:], last)):
        if not torch.equal(point, given[None]):
            raise UserError(
                f"the initial curve does not {name} at {name!r}; give the ends of the curve"
            )
    if not bool(torch.isfinite(points).all()):
        raise UserError("the initial curve has points that are not finite; give another curve")
    return points


class _Sized:
    """Batches with a length; it is counted if they have none."""

    def __init__(self, batches: Iterable[Any]) -> None:
        self.batches = batches
        try:
            self.length = len(batches)  # type: ignore[arg-type]
        except TypeError:
            with same_random_state():  # a loader may draw its order from the global generator
                self.length = sum(1 for _ in batches)
        if self.length == 0:
            raise nothing_yielded()

    def __len__(self) -> int:
        return self.length

    def __iter__(self) -> Iterator[Any]:
        return iter(self.batches)

    def set_epoch(self, epoch: int) -> None:
        if hasattr(self.batches, "set_epoch"):
            self.batches.set_epoch(epoch)


def _own_randomness(device: torch.device) -> Any:
    """Restore the state of PyTorch's generators at the end of a ``with`` block."""
    return torch.random.fork_rng([device] if device.type == "cuda" else [])


def _endpoint(optimizer: Optimizer, steps_per_epoch: int, *, epochs: int) -> ClosedFormLR:
    return EndpointLR(optimizer, epochs=epochs, steps_per_epoch=steps_per_epoch)
