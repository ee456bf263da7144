"""Small networks with batch norm and dropout, and ensembles of them, to deploy."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from fge import Ensemble

COUNT = 3


def images_of(count: int, channels: int = 2, side: int = 8) -> Tensor:
    rng = torch.Generator().manual_seed(1)
    return torch.randint(0, 256, (count, channels, side, side), generator=rng, dtype=torch.uint8)


def small_net(seed: int, outputs: int = 3) -> nn.Module:
    """A network with batch norm whose statistics are its own, and dropout."""
    torch.manual_seed(seed)
    model = nn.Sequential(
        nn.Conv2d(2, 4, 3),
        nn.BatchNorm2d(4),
        nn.ReLU(),
        nn.AdaptiveAvgPool2d(2),
        nn.Flatten(),
        nn.Dropout(),
        nn.Linear(16, outputs),
    )
    return used(model, 2, 8)


def used(model: nn.Module, channels: int, side: int) -> nn.Module:
    """Return a network whose running statistics are those of some images."""
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.momentum = 1.0
    with torch.no_grad():
        model.train()(torch.randn(8, channels, side, side) * 2 + 1)
    return model.eval()


def ensemble_of(width: int = 3, **options: Any) -> Ensemble:
    members = [small_net(seed, width) for seed in range(COUNT)]
    return Ensemble(small_net(50, width), members, **options)
