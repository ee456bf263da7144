"""Two hand-written eager training and evaluation loops."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.data import DataLoader
from torch.utils.data import Dataset as TorchDataset
from torchvision import transforms

from fge.data import Dataset
from fge.networks import build_model

BATCH, EVAL_BATCH, PADDING = 128, 250, 3
TRAIN_STEPS = 12

Contender = Callable[[], int]
"""One round of work; returns the number of images."""


def new_model(name: str, dataset: Dataset) -> nn.Module:
    """Build the same initial model for every contender."""
    torch.manual_seed(0)
    return build_model(
        name,
        in_channels=dataset.in_channels,
        num_classes=len(dataset.classes),
        image_size=dataset.image_size,
    )


def synchronise(device: torch.device) -> None:
    """Wait until a GPU has finished its work."""
    if device.type == "cuda":
        torch.cuda.synchronize()


def new_optimizer(model: nn.Module) -> torch.optim.SGD:
    """Return PyTorch's SGD with the options of a plain loop."""
    return torch.optim.SGD(model.parameters(), lr=0.01, momentum=0.9, weight_decay=5e-4)


class PILImages(TorchDataset[tuple[Tensor, int]]):
    """A map-style data set of PIL images and a transform."""

    def __init__(self, images: Tensor, labels: Tensor, transform: Any) -> None:
        to_pil = transforms.ToPILImage()
        self.images = [to_pil(image) for image in images]
        self.labels = labels.tolist()
        self.transform = transform

    def __len__(self) -> int:
        """Return the number of images."""
        return len(self.images)

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        """Return a transformed image and its label."""
        return self.transform(self.images[index]), self.labels[index]


def endless(loader: DataLoader[Any]) -> Iterator[Any]:
    """Repeat the loader forever."""
    while True:
        yield from loader


def dataloader_train(
    model: nn.Module, dataset: Dataset, workers: int, steps: int = TRAIN_STEPS
) -> Contender:
    """(a) in training."""
    normalise = transforms.Normalize(
        [m / 255 for m in dataset.mean], [s / 255 for s in dataset.std]
    )
    augment = [
        transforms.RandomCrop(dataset.image_size, padding=PADDING),
        transforms.RandomHorizontalFlip(),
        transforms.ToTensor(),
        normalise,
    ]
    device = next(model.parameters()).device
    images = PILImages(dataset.train.images, dataset.train.labels, transforms.Compose(augment))
    loader = DataLoader(
        images,
        BATCH,
        shuffle=True,
        drop_last=True,
        num_workers=workers,
        persistent_workers=workers > 0,
        pin_memory=device.type == "cuda",
    )
    stream = endless(loader)
    optimizer = new_optimizer(model.train())

    def work() -> int:
        for _ in range(steps):
            inputs, targets = (part.to(device, non_blocking=True) for part in next(stream))
            optimizer.zero_grad()
            F.cross_entropy(model(inputs), targets).backward()  # type: ignore[no-untyped-call]
            optimizer.step()
        synchronise(device)
        return steps * BATCH

    return work


def dataloader_eval(model: nn.Module, dataset: Dataset, workers: int) -> Contender:
    """(a) in evaluation."""
    normalise = transforms.Normalize(
        [m / 255 for m in dataset.mean], [s / 255 for s in dataset.std]
    )
    transform = transforms.Compose([transforms.ToTensor(), normalise])
    images = PILImages(dataset.val.images, dataset.val.labels, transform)
    device = next(model.parameters()).device
    loader = DataLoader(images, EVAL_BATCH, num_workers=workers, persistent_workers=workers > 0)
    model.eval()

    def work() -> int:
        with torch.no_grad():
            torch.cat([model(inputs.to(device)).softmax(1) for inputs, _ in loader])
        synchronise(device)
        return len(images)

    return work


def in_memory_train(model: nn.Module, dataset: Dataset, steps: int = TRAIN_STEPS) -> Contender:
    """(b) in training: crop and flip of whole batches by indexing."""
    height, width = dataset.image_size
    device = dataset.train.labels.device
    padded = F.pad(dataset.train.images.contiguous(), [PADDING] * 4)
    labels = dataset.train.labels
    mean, std = channel_statistics(dataset)
    optimizer = new_optimizer(model.train())

    def augmented(index: Tensor) -> Tensor:
        offsets = torch.randint(0, 2 * PADDING + 1, (len(index), 2), device=device)
        rows = offsets[:, :1] + torch.arange(height, device=device)
        columns = offsets[:, 1:] + torch.arange(width, device=device)
        images = padded[index[:, None, None], :, rows[:, :, None], columns[:, None, :]]
        images = images.permute(0, 3, 1, 2)
        mirrored = torch.rand(len(index), 1, 1, 1, device=device) < 0.5
        return (torch.where(mirrored, images.flip(3), images).float() - mean) / std

    def work() -> int:
        for _ in range(steps):
            index = torch.randint(0, len(labels), (BATCH,), device=device)
            optimizer.zero_grad()
            loss = F.cross_entropy(model(augmented(index)), labels[index])
            loss.backward()  # type: ignore[no-untyped-call]
            optimizer.step()
        synchronise(device)
        return steps * BATCH

    return work


def channel_statistics(dataset: Dataset) -> tuple[Tensor, Tensor]:
    """Return mean and standard deviation per channel (C, 1, 1) on the data's device."""
    device = dataset.train.labels.device
    mean, std = (
        torch.tensor(values, device=device).view(-1, 1, 1) for values in (dataset.mean, dataset.std)
    )
    return mean, std


def in_memory_eval(model: nn.Module, dataset: Dataset, batch_size: int = EVAL_BATCH) -> Contender:
    """(b) in evaluation."""
    images = dataset.val.images.contiguous()
    mean, std = channel_statistics(dataset)
    model.eval()

    def work() -> int:
        with torch.no_grad():
            parts = [
                model((batch.float() - mean) / std).softmax(1)
                for batch in torch.split(images, batch_size)
            ]
        count = len(torch.cat(parts))
        synchronise(images.device)
        return count

    return work
