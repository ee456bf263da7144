"""Small data, networks and comparisons that the tests of a GPU share.

What is computed on the device is held against closed forms, or against the same computation on
the CPU in float64. Data and initial weights are drawn on the CPU, so that they are the same.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.optim import SGD

from fge.data import Normaliser, Split, TrainBatches
from fge.train import Learner, Speed
from fge.train.graphed import Recording

CLASSES = 3
SINGLE, DOUBLE = 2.0**-24, 2.0**-53
"""What one operation in float32 and in float64 rounds by, relatively."""
SGD_OPTIONS: dict[str, Any] = {"lr": 0.01, "momentum": 0.9, "weight_decay": 1e-2}
"""Small steps: training multiplies rounding errors the less."""
MEAN, STD = [120.0, 130.0, 110.0], [70.0, 60.0, 80.0]

Batch = tuple[Tensor, Tensor]


def draw(*shape: int, seed: int = 0, dtype: torch.dtype = torch.float64) -> Tensor:
    """Return normal numbers, the same in each dtype up to its rounding."""
    rng = torch.Generator().manual_seed(seed)
    return torch.randn(*shape, generator=rng, dtype=torch.float64).to(dtype)


def image_batches(*sizes: int, seed: int = 0, dtype: torch.dtype = torch.float64) -> list[Batch]:
    """Return batches of images (n, 3, 8, 8) and labels (n,) on the CPU."""
    count = sum(sizes)
    images = draw(count, 3, 8, 8, seed=seed, dtype=dtype)
    labels = torch.randint(CLASSES, (count,), generator=torch.Generator().manual_seed(seed))
    return list(zip(images.split(sizes), labels.split(sizes), strict=True))


def vector_batches(*sizes: int, seed: int = 0, dtype: torch.dtype = torch.float64) -> list[Batch]:
    """Return batches of vectors (n, 6) and labels (n,) on the CPU."""
    count = sum(sizes)
    labels = torch.randint(CLASSES, (count,), generator=torch.Generator().manual_seed(seed))
    vectors = draw(count, 6, seed=seed, dtype=dtype)
    return list(zip(vectors.split(sizes), labels.split(sizes), strict=True))


def image_split(count: int, channels: int = 3) -> Split:
    """Return uint8 images (N, C, 8, 8), laid out as the data module does, on the CPU."""
    rng = torch.Generator().manual_seed(0)
    images = torch.randint(0, 256, (count, 8, 8, channels), generator=rng).to(torch.uint8)
    return Split(images.permute(0, 3, 1, 2), torch.arange(count) % CLASSES)


def convnet(
    seed: int = 0, dtype: torch.dtype = torch.float64, *, dropout: float = 0.0
) -> nn.Sequential:
    """Return a network of images (n, 3, 8, 8), of layers that have deterministic kernels."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = nn.Sequential(
            nn.Conv2d(3, 4, 3, padding=1, bias=False),
            nn.BatchNorm2d(4),
            nn.ReLU(),
            nn.Dropout(dropout),
            nn.Conv2d(4, 8, 3, stride=2),
            nn.ReLU(),
            nn.Flatten(),
            nn.Linear(8 * 9, CLASSES),
        )
    return model.to(dtype)


def perceptron(seed: int = 0, dtype: torch.dtype = torch.float64) -> nn.Sequential:
    """Return a smooth network of vectors (n, 6)."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = nn.Sequential(nn.Linear(6, 5), nn.BatchNorm1d(5), nn.Tanh(), nn.Linear(5, CLASSES))
    return model.to(dtype)


def moved(value: Any, device: torch.device, dtype: torch.dtype | None = None) -> Any:
    """Return nested values with their tensors on a device, and in a dtype unless they are whole."""
    if isinstance(value, Tensor):
        return value.to(device, dtype if value.is_floating_point() else None)
    if isinstance(value, dict):
        return {key: moved(part, device, dtype) for key, part in value.items()}
    if isinstance(value, list | tuple):
        return type(value)(moved(part, device, dtype) for part in value)
    return value


def assert_near(found: Any, expected: Any, *, rtol: float = 0.0, atol: float = 0.0) -> None:
    """Compare tensors on any device and in any dtype, in float64 on the CPU."""
    pair = [
        value.detach().to("cpu", torch.float64)
        if isinstance(value, Tensor)
        else torch.as_tensor(value, dtype=torch.float64)
        for value in (found, expected)
    ]
    torch.testing.assert_close(*pair, rtol=rtol, atol=atol)


def assert_bitwise(found: dict[str, Any], expected: dict[str, Any]) -> None:
    """Compare nested states, on any devices, value by value."""
    assert found.keys() == expected.keys()
    for name, value in expected.items():
        if isinstance(value, dict):
            assert_bitwise(found[name], value)
        elif isinstance(value, Tensor):
            assert torch.equal(found[name].cpu(), value.cpu()), name
        else:
            assert found[name] == value, name


def weights_of(model: nn.Module) -> Tensor:
    """Return all parameters as one vector (P,) float64 on the CPU."""
    return torch.cat([p.detach().to("cpu", torch.float64).reshape(-1) for p in model.parameters()])


def relative_distance(found: Tensor, expected: Tensor, start: Tensor | float = 0.0) -> float:
    """Return |found - expected| / |expected - start|."""
    return float((found - expected).norm() / (expected - start).norm())


def network_of_runs(in_channels: int, num_classes: int) -> nn.Module:
    """Build what runs on the tiny data train: ``--model cuda_tools:network_of_runs``."""
    return nn.Sequential(
        nn.Conv2d(in_channels, 4, 3, bias=False),
        nn.BatchNorm2d(4),
        nn.ReLU(),
        nn.Conv2d(4, 6, 3, stride=2),
        nn.ReLU(),
        nn.Flatten(),
        nn.Linear(24, num_classes),
    )


def record_on_the_cpu(work: Callable[[], Tensor], parameters: list[nn.Parameter]) -> Recording:
    """Stand in for a CUDA graph: recording computes nothing, a replay writes into fixed memory."""
    loss = torch.zeros(())
    gradients: list[Tensor | None] = [torch.zeros_like(parameter) for parameter in parameters]

    def replay() -> None:
        for parameter in parameters:
            parameter.grad = None
        loss.copy_(work())
        for parameter, gradient in zip(parameters, gradients, strict=True):
            assert gradient is not None
            assert parameter.grad is not None
            gradient.copy_(parameter.grad)

    return Recording(loss, gradients, replay)


def make_learner(
    device: torch.device,
    speed: Speed | None = None,
    dtype: torch.dtype = torch.float32,
    seed: int = 0,
    **options: Any,
) -> Learner:
    """Return a learner of the network of images, with the fused optimizer that runs use."""
    model = convnet(seed, dtype).to(device)
    optimizer = SGD(model.parameters(), **SGD_OPTIONS, fused=True)
    return Learner(model, optimizer, speed, batch_size=8, **options)


def by_hand(model: nn.Module, batches: list[Batch]) -> list[float]:
    """Train on the CPU as one would write it in PyTorch; return the losses."""
    optimizer, losses = SGD(model.parameters(), **SGD_OPTIONS), []
    for inputs, targets in batches:
        optimizer.zero_grad()
        loss = F.cross_entropy(model(inputs), targets)
        loss.backward()
        optimizer.step()
        losses.append(float(loss.detach()))
    return losses


def train_batches(device: torch.device, *, channels_last: bool = False) -> TrainBatches:
    """Return four shuffled, augmented batches an epoch of 60 images on the device."""
    split = image_split(60).to(device)
    normaliser = Normaliser(MEAN, STD, device, channels_last=channels_last)
    return TrainBatches(split, normaliser, 16, seed=3, crop_padding=2, flip=True)
