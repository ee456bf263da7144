"""The bends of a curve as what a training step moves."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fge.curves.draws import Draw, Shape, stratified_uniform
from fge.curves.families import Family
from fge.curves.objectives import Objective
from fge.networks.apply import ForwardFn, LossFn, count_examples, to_device
from fge.networks.flat import FlatParameters
from fge.networks.state import unwrap
from fge.train.learner import Learner, Speed

_CPU_COLUMNS, _GPU_COLUMNS = 1 << 15, 1 << 22
"""Columns per block of the Gram matrix: what fits in a cache; what makes few calls."""


def quick_gram(points: Tensor) -> Tensor:
    """Return G_ij = <w_i - w_0, w_j - w_0> (B, B) float64 on the CPU, for points (B, P).

    As :func:`fge.curves.gram_matrix`, but multiplied in the points' own precision (float32 at
    least) and summed over blocks in float64: a tenth of the time, and good to about 1e-5 for
    float32, which is enough to draw t.
    """
    columns = _GPU_COLUMNS if points.is_cuda else _CPU_COLUMNS
    dtype = torch.promote_types(points.dtype, torch.float32)
    gram = torch.zeros(len(points), len(points), dtype=torch.float64, device=points.device)
    for block in torch.split(points.detach(), columns, dim=1):
        differences = block.to(dtype) - block[0].to(dtype)
        gram += differences @ differences.T
    return gram.cpu()


class CurveLearner(Learner):
    """The bends of a curve and their optimizer; a step moves them by the loss at one w(t).

    A step draws t, writes w(t) into the model's flat parameters, runs one ordinary backward pass
    and turns the flat gradient into that of each bend: c_j(t) * (g + weight_decay * w(t)), and
    what the objective adds (arXiv 1802.10026, section 3.2; here in closed form). The ends stay.
    Parameters that do not require gradients stay as the given points have them.

    Args:
        model: any module; its parameters become views of one vector.
        family: of the curve, at least 3 points.
        points: (B, P) canonical, in dtype and on the device of the model's parameters; taken
            over, changed by the fit, and brought into the model's memory order meanwhile.
        objective: chooses t and the gradient's terms.
        lr: base learning rate of SGD on the bends.
        momentum: of SGD on the bends.
        weight_decay: L2 penalty on w(t), not on the bends.
        seed: of the draws of t.
        speed: how to run the model.
        loss_fn: of outputs and targets, averaged over the batch.
        forward_fn: ``forward_fn(model, batch) -> outputs`` where the model is not called as
            ``model(x)``.
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
        fused = points.device.type in ("cpu", "cuda")
        optimizer = torch.optim.SGD(self.bends, lr=lr, momentum=momentum, fused=fused)
        super().__init__(model, optimizer, speed, loss_fn=loss_fn, forward_fn=forward_fn)

    def step(self, *batch: Any) -> Tensor:
        """Move the bends by one batch; return the loss at w(t) before, without the decay.

        Args:
            batch: ``inputs, targets, ...``, or one object; on any device.

        Raises:
            UserError: there are no targets for the cross-entropy.
        """
        u = stratified_uniform(self.seed, self.steps, self.objective.strata)
        gram = quick_gram(self.points) if self.objective.uses_gram else None
        draw = self.objective.draw(u, Shape(self.family, gram))
        self.move_to(draw.t)
        if self.batch_size is None:  # the first batch says what a compiled model is made for
            self.batch_size = count_examples(batch)
        loss = self._backward(to_device(batch[0] if len(batch) == 1 else batch, self.device))
        self._set_gradients(draw, loss)
        self._update()
        self.flat.zero_grad()
        self.steps += 1
        return loss

    @torch.no_grad()
    def move_to(self, t: float) -> None:
        """Write w(t) into the model."""
        first, *others = self.family.coefficients(t).tolist()
        torch.mul(self.points[0], first, out=self.flat.vector)
        for coefficient, point in zip(others, self.points[1:], strict=True):
            if coefficient:
                self.flat.vector.add_(point, alpha=coefficient)

    @torch.no_grad()
    def _set_gradients(self, draw: Draw, loss: Tensor) -> None:
        """Set the gradients of the bends; that of the last one takes over the model's memory."""
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
        """Tell the objective of L_t; return (L_t - baseline) * pull (B, B) on the device."""
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
        """Return the points (B, P), ends included, in canonical order again; the learner is done.

        They are brought into order in place: a copy of a large network's would show.
        """
        for point in self.points:
            point.copy_(self.flat.unpack(point))
        return self.points

    def state_dict(self) -> dict[str, Any]:
        """Return bends, what optimizer and objective remember, the model's buffers, the position.

        Vectors are in the memory order of the model as it is run.
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
        """Go back to a saved state; the optimizer's options stay as they were given."""
        buffers = dict(unwrap(self.model).named_buffers())
        with torch.no_grad():
            for bend, saved in zip(self.bends, state["bends"], strict=True):
                bend.copy_(saved)
            for name, saved in state["buffers"].items():
                buffers[name].copy_(saved)
        groups = self.optimizer.state_dict()["param_groups"]
        self.optimizer.load_state_dict({"state": state["optimizer"], "param_groups": groups})
        if self.scaler.is_enabled() and state["scaler"]:
            self.scaler.load_state_dict(state["scaler"])
        self.objective.load_state_dict(state["objective"])
        self.steps = state["steps"]
