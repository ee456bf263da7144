"""VGG-16 for small images, as in arXiv 1802.10026."""

from __future__ import annotations

from torch import nn

from fge.errors import UserError
from fge.networks.architectures.init import he_fan_out

_STAGES = ((64, 2), (128, 2), (256, 3), (512, 3), (512, 3))
_REDUCTION = 2 ** len(_STAGES)


def vgg16(
    in_channels: int, num_classes: int, image_size: tuple[int, int], *, batch_norm: bool = False
) -> nn.Module:
    """Build VGG-16 with two hidden layers of 512 units behind dropout.

    Raises:
        UserError: an image side below 32, which five poolings would reduce to nothing.
    """
    height, width = (side // _REDUCTION for side in image_size)
    if min(height, width) < 1:
        raise UserError(
            f"vgg16 needs images of at least {_REDUCTION} x {_REDUCTION}, "
            f"got {image_size[0]} x {image_size[1]}"
        )
    features = _features(in_channels, batch_norm)
    model = nn.Sequential(
        features,
        nn.Flatten(),
        nn.Dropout(),
        nn.Linear(512 * height * width, 512),
        nn.ReLU(inplace=True),
        nn.Dropout(),
        nn.Linear(512, 512),
        nn.ReLU(inplace=True),
        nn.Linear(512, num_classes),
    )
    he_fan_out(model)
    return model


def _features(in_channels: int, batch_norm: bool) -> nn.Sequential:
    layers: list[nn.Module] = []
    channels = in_channels
    for width, depth in _STAGES:
        for _ in range(depth):
            layers.append(nn.Conv2d(channels, width, 3, padding=1))
            if batch_norm:
                layers.append(nn.BatchNorm2d(width))
            layers.append(nn.ReLU(inplace=True))
            channels = width
        layers.append(nn.MaxPool2d(2))
    return nn.Sequential(*layers)
