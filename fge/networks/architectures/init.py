"""Initialisation shared by the papers' networks."""

from __future__ import annotations

import math

from torch import nn


def he_fan_out(model: nn.Module) -> None:
    """Draw convolutions from N(0, 2 / (k^2 * out_channels)); batch norm 1 and 0; biases 0.

    He et al. 2015 (arXiv 1502.01852), the fan-out form that the papers' networks use.
    """
    for module in model.modules():
        if isinstance(module, nn.Conv2d):
            fan_out = math.prod(module.kernel_size) * module.out_channels
            nn.init.normal_(module.weight, 0.0, math.sqrt(2.0 / fan_out))
            if module.bias is not None:
                nn.init.zeros_(module.bias)
        elif isinstance(module, nn.BatchNorm2d):
            nn.init.ones_(module.weight)
            nn.init.zeros_(module.bias)
