"""Batches of a split in memory: shuffled, augmented and normalised on the device."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from fge.data.augment import Mixup, Policy, image_seeds
from fge.data.crops import AnyCrops, crops_of
from fge.data.split import Split
from fge.parallel import Ranks
from fge.seeds import generator

EVAL_BATCH_SIZES = {"cpu": 250, "cuda": 2000}
"""The defaults: 250 is faster than 2000 on CPUs; a GPU needs larger batches."""


def default_padding(image_size: tuple[int, int]) -> int:
    """Return the default padding of random crops, in pixels.

    An eighth of the side from 32 pixels on, which gives the papers' 4 for 32 x 32; otherwise 2,
    the best on the validation images of ``fashion-mnist-mini``.
    """
    side = min(image_size)
    return side // 8 if side >= 32 else 2


class Normaliser:
    """Converts uint8 images to float32: (x - mean) / std per channel.

    Args:
        mean: per channel, in grey levels from 0 to 255.
        std: per channel, in grey levels from 0 to 255.
        device: of the images.
        channels_last: memory format of the output.
    """

    def __init__(
        self,
        mean: Sequence[float],
        std: Sequence[float],
        device: torch.device,
        *,
        channels_last: bool = False,
    ) -> None:
        means, stds = (
            torch.tensor(values, dtype=torch.float32, device=device).view(1, -1, 1, 1)
            for values in (mean, std)
        )
        self.scale = 1 / stds
        self.shift = -means / stds
        self.memory_format = torch.channels_last if channels_last else torch.contiguous_format

    def __call__(self, images: Tensor) -> Tensor:
        """Return (N, C, H, W) float32 for (N, C, H, W) uint8; rows (N, F) likewise."""
        if images.ndim == 2:
            return images.float() * self.scale.view(1, -1) + self.shift.view(1, -1)
        floats = images.to(torch.float32, memory_format=self.memory_format)
        return floats.mul_(self.scale).add_(self.shift)


class EvalBatches:
    """Yields a split in order, normalised: ``(inputs (n, C, H, W), targets (n,))``."""

    def __init__(self, split: Split, normaliser: Normaliser, batch_size: int) -> None:
        self.split = split
        self.normaliser = normaliser
        self.batch_size = batch_size

    def __len__(self) -> int:
        """Return the number of batches."""
        return -(-len(self.split) // self.batch_size)

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        """Iterate once over the split."""
        for images, labels in self.split.batches(self.batch_size):
            yield self.normaliser(images), labels


class ViewBatches(EvalBatches):
    """Yields one view of each image of a split in order: a random crop, perhaps mirrored.

    The crop of an image depends on the seed and the view alone, whichever batch it is in.

    Args:
        split: of the images.
        normaliser: applied to the crops.
        batch_size: images per batch.
        crops: of the split's images.
        seed: of all random numbers.
        view: number of the view.
    """

    def __init__(
        self,
        split: Split,
        normaliser: Normaliser,
        batch_size: int,
        *,
        crops: AnyCrops,
        seed: int,
        view: int,
    ) -> None:
        super().__init__(split, normaliser, batch_size)
        self.crops = crops
        self.seed = seed
        self.view = view

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        """Iterate once over the split."""
        batches = torch.split(torch.arange(len(self.split)), self.batch_size)
        crops = self.crops.batches(batches, self.seed, "view", self.view)
        for index, images in zip(batches, crops, strict=True):
            labels = self.split.labels[int(index[0]) : int(index[-1]) + 1]
            yield self.normaliser(images), labels


class TrainBatches:
    """Yields a split shuffled and augmented, differently in each epoch.

    Order, crop offsets and flips of an epoch depend only on the seed and the epoch; offsets and
    flips are drawn per image, whichever batch it is in. Call :meth:`set_epoch` before iterating.
    The last, smaller batch is used unless it has a single image.

    Args:
        split: images and labels on the training device.
        normaliser: applied after augmentation.
        batch_size: images per batch.
        seed: of all random numbers.
        crop_padding: random crops are taken from images padded by this many black pixels.
        flip: mirror images left to right with probability 1/2.
        resized: take random resized crops of the split's whole photographs instead.
        ranks: the processes that share each batch; all together get the same images for any number
            of processes.
        policy: varies the crops further.
        mixup: mixes images in pairs; targets are then probabilities (n, classes).

    Raises:
        UserError: ``batch_size`` is not divisible by the number of processes.
    """

    def __init__(
        self,
        split: Split,
        normaliser: Normaliser,
        batch_size: int,
        *,
        seed: int,
        crop_padding: int = 0,
        flip: bool = False,
        resized: bool = False,
        ranks: Ranks | None = None,
        policy: Policy | None = None,
        mixup: Mixup | None = None,
    ) -> None:
        self.ranks = ranks or Ranks()
        self.policy = policy
        self.mixup = mixup
        self.ranks.check_batch_size(batch_size)
        self.labels = split.labels
        self.crops = crops_of(split, crop_padding, flip=flip, resized=resized)
        self.normaliser = normaliser
        self.batch_size = batch_size
        self.seed = seed
        self.epoch = 0

    def set_epoch(self, epoch: int) -> None:
        """Set the epoch, counted from 0, of the next iteration."""
        self.epoch = epoch

    @property
    def share_size(self) -> int:
        """This process's number of images in a full batch."""
        return self.batch_size // self.ranks.size

    def __len__(self) -> int:
        """Return the number of batches per epoch."""
        full, rest = divmod(len(self.labels), self.batch_size)
        return full + (rest > 1)

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        """Iterate over the current epoch; this process's part of a batch may be empty."""
        device, count = self.labels.device, len(self.labels)
        order = torch.randperm(count, generator=generator(self.seed, "shuffle", self.epoch))
        seeds = image_seeds(self.seed, self.epoch, count) if self.policy else None
        parts = self.mixup.parts(self.epoch, count).to(device) if self.mixup else None
        steps = list(self._steps(order))
        crops = self.crops.batches(
            [index for step in steps for index in step.taken], self.seed, "augment", self.epoch
        )

        def inputs_of(index: Tensor) -> Tensor:
            images = next(crops)
            if self.policy is not None and seeds is not None:
                images = self.policy(images, seeds[index.cpu()])
            return self.normaliser(images)

        for step in steps:
            inputs, index = inputs_of(step.index), step.index.to(device)
            labels = self.labels[index]
            if self.mixup is None or parts is None or step.others is None:
                yield inputs, labels
                continue
            if step.partners is None:
                second = inputs_of(step.others)
            else:
                second = inputs[step.partners.to(device)]
            part = parts[index]
            mixed = torch.lerp(second, inputs, part.view(-1, *[1] * (inputs.ndim - 1)))
            yield mixed, self.mixup.targets(labels, self.labels[step.others.to(device)], part)

    def _steps(self, order: Tensor) -> Iterator[_Step]:
        """Yield which images this process has in each batch, and with which they are mixed."""
        for batch in range(len(self)):
            whole = order[batch * self.batch_size : (batch + 1) * self.batch_size]
            share = self.ranks.share(len(whole))
            if self.mixup is None:
                yield _Step(whole[share])
                continue
            partners = self.mixup.partners(self.epoch, batch, len(whole))[share]
            # Without other processes the partners are in this share.
            within = partners if self.ranks.size == 1 else None
            yield _Step(whole[share], whole[partners], within)


@dataclass(frozen=True)
class _Step:
    """The images of a step by number: ``others`` are mixed with those of ``index``.

    ``partners``: the places of ``others`` in ``index``, if they are there.
    """

    index: Tensor
    others: Tensor | None = None
    partners: Tensor | None = None

    @property
    def taken(self) -> list[Tensor]:
        """The images to take, in this order."""
        if self.others is None or self.partners is not None:
            return [self.index]
        return [self.index, self.others]
