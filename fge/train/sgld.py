"""Stochastic gradient Langevin dynamics: SGD with noise of a given temperature."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from torch import nn
from torch.optim import SGD

from fge.errors import check_at_least


class SGLD(SGD):
    """SGD with Gaussian noise in each step: SGLD without momentum, SGHMC with momentum.

    With g the gradient (decay included) of the mean loss over N examples, one step at learning
    rate l, momentum m and temperature T is::

        v <- m v - l g + sqrt(2 l (1 - m) T / N) e,    e standard normal
        w <- w + v

    which samples from exp(-N loss / T) as l goes to 0 (Zhang et al. 2020, arXiv 1902.03932,
    algorithm 1 and its reference implementation). The noise is added to the gradient, so the
    momentum buffer contains it too. Each parameter group has a ``temperature``, at first 0 (plain
    SGD). The noise comes from PyTorch's global generator of the parameter's device.

    Args:
        params: as for ``torch.optim.SGD``.
        lr: learning rate.
        examples: N, the number of training examples.
        momentum: m, in [0, 1).
        weight_decay: L2 penalty.

    Raises:
        UserError: ``examples`` is below 1.
    """

    def __init__(
        self,
        params: Iterable[nn.Parameter] | Iterable[dict[str, Any]],
        lr: float,
        *,
        examples: int,
        momentum: float = 0.0,
        weight_decay: float = 0.0,
    ) -> None:
        check_at_least(1, examples=examples)
        # Not fused: with a fused optimizer a gradient scaler leaves the gradients scaled.
        super().__init__(params, lr=lr, momentum=momentum, weight_decay=weight_decay)
        self.defaults |= {"examples": examples, "temperature": 0.0}
        for group in self.param_groups:
            group.setdefault("temperature", 0.0)

    @torch.no_grad()
    def step(self, closure: Any = None) -> Any:
        """Take one step, with noise if the temperature is above 0."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for group in self.param_groups:
            if group["temperature"] > 0 and group["lr"] > 0:
                self._add_noise(group)
        super().step()
        return loss

    def _add_noise(self, group: dict[str, Any]) -> None:
        scale = 2 * (1 - group["momentum"]) * group["temperature"] / group["lr"]
        deviation = float(scale / self.defaults["examples"]) ** 0.5
        for parameter in group["params"]:
            if parameter.grad is not None:
                parameter.grad.add_(torch.randn_like(parameter.grad), alpha=deviation)
