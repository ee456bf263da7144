"""Pre-activation residual networks (He et al. 2016, arXiv 1603.05027), and wide ones.

Wide: Zagoruyko and Komodakis 2016 (arXiv 1605.07146).
"""

from __future__ import annotations

from torch import Tensor, nn

from fge.networks.architectures.init import he_fan_out

_STAGE_STRIDES = (1, 2, 2)
_BOTTLENECK_FROM_DEPTH = 44


class PreActivationBlock(nn.Module):
    """Batch norm and ReLU before each convolution, around an identity or a 1 x 1 shortcut.

    Args:
        inputs: channels that come in.
        outputs: channels that go out.
        stride: of the block's one strided convolution, and of the shortcut.
        bottleneck: 1 x 1, 3 x 3, 1 x 1 with a quarter of the channels inside, or 3 x 3 twice.
    """

    def __init__(self, inputs: int, outputs: int, stride: int, *, bottleneck: bool) -> None:
        super().__init__()
        if bottleneck:
            inner = outputs // 4
            shapes = [(inputs, inner, 1, 1), (inner, inner, 3, stride), (inner, outputs, 1, 1)]
        else:
            shapes = [(inputs, outputs, 3, stride), (outputs, outputs, 3, 1)]
        self.body = nn.Sequential(*(m for shape in shapes for m in _pre_activated(*shape)))
        self.shortcut = (
            nn.Identity()
            if stride == 1 and inputs == outputs
            else nn.Conv2d(inputs, outputs, 1, stride, bias=False)
        )

    def forward(self, x: Tensor) -> Tensor:
        """Return shortcut plus body: (N, C_in, H, W) to (N, C_out, H / stride, W / stride)."""
        total: Tensor = self.body(x) + self.shortcut(x)
        return total


def preresnet(
    in_channels: int, num_classes: int, image_size: tuple[int, int], *, depth: int
) -> nn.Module:
    """Build PreResNet-``depth``: bottleneck blocks from depth 44 on, basic blocks below."""
    del image_size  # any size works: the last pooling is global
    bottleneck = depth >= _BOTTLENECK_FROM_DEPTH
    blocks = (depth - 2) // (9 if bottleneck else 6)
    expansion = 4 if bottleneck else 1
    widths = [width * expansion for width in (16, 32, 64)]
    return _residual(in_channels, num_classes, widths, blocks, bottleneck=bottleneck)


def wide_resnet(
    in_channels: int, num_classes: int, image_size: tuple[int, int], *, depth: int, factor: int
) -> nn.Module:
    """Build WRN-``depth``-``factor`` without dropout."""
    del image_size  # any size works: the last pooling is global
    widths = [width * factor for width in (16, 32, 64)]
    return _residual(in_channels, num_classes, widths, (depth - 4) // 6, bottleneck=False)


def _residual(
    in_channels: int, num_classes: int, widths: list[int], blocks: int, *, bottleneck: bool
) -> nn.Module:
    layers: list[nn.Module] = [nn.Conv2d(in_channels, 16, 3, padding=1, bias=False)]
    channels = 16
    for width, first_stride in zip(widths, _STAGE_STRIDES, strict=True):
        for position in range(blocks):
            stride = first_stride if position == 0 else 1
            layers.append(PreActivationBlock(channels, width, stride, bottleneck=bottleneck))
            channels = width
    model = nn.Sequential(
        *layers,
        nn.BatchNorm2d(channels),
        nn.ReLU(inplace=True),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(channels, num_classes),
    )
    he_fan_out(model)
    return model


def _pre_activated(inputs: int, outputs: int, kernel: int, stride: int) -> list[nn.Module]:
    conv = nn.Conv2d(inputs, outputs, kernel, stride, padding=kernel // 2, bias=False)
    return [nn.BatchNorm2d(inputs), nn.ReLU(inplace=True), conv]
