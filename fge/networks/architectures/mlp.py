"""A multilayer perceptron for the rows of a table."""

from __future__ import annotations

import math

from torch import nn

WIDTH = 128
"""Units of each hidden layer."""


def mlp(in_channels: int, num_classes: int, image_size: tuple[int, int] | None) -> nn.Module:
    """Build the network: two hidden layers with batch norm, for rows (N, features).

    About 20,000 parameters for 20 features. Images are flattened.
    """
    features = in_channels * math.prod(image_size or ())
    return nn.Sequential(
        nn.Flatten(),
        *_layer(features, WIDTH),
        *_layer(WIDTH, WIDTH),
        nn.Linear(WIDTH, num_classes),
    )


def _layer(inputs: int, outputs: int) -> list[nn.Module]:
    return [nn.Linear(inputs, outputs, bias=False), nn.BatchNorm1d(outputs), nn.ReLU()]
