"""Policies that vary training images by name, and images that are mixed in pairs."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from fge.errors import UserError, check_positive
from fge.seeds import derive_seed, generator

POLICIES = ("randaugment", "trivial")
"""RandAugment (arXiv 1909.13719) and TrivialAugment (arXiv 2103.10158), with torchvision's options.
"""
_COLOURS = (1, 3)


class Policy:
    """Applies a policy of ``torchvision.transforms.v2`` to each image by itself.

    What an image gets depends on its own seed alone, whichever batch it is in. PyTorch's global
    generators are left as they are.

    Args:
        name: one of ``POLICIES``.
        channels: of the images.

    Raises:
        UserError: the policy takes only images of 1 or 3 channels.
    """

    def __init__(self, name: str, channels: int) -> None:
        from torchvision.transforms import v2

        check_policy(name, channels)
        made: dict[str, Callable[[], Callable[[Tensor], Tensor]]] = {
            "randaugment": v2.RandAugment,
            "trivial": v2.TrivialAugmentWide,
        }
        self.transform = made[name]()

    def __call__(self, images: Tensor, seeds: Tensor) -> Tensor:
        """Return (n, C, H, W) uint8 for (n, C, H, W) uint8 and the seed of each image (n,)."""
        if not len(images):
            return images
        state = torch.get_rng_state()
        try:
            varied = [
                self._apply(image, seed) for image, seed in zip(images, seeds.tolist(), strict=True)
            ]
        finally:
            torch.set_rng_state(state)
        return torch.stack(varied)

    def _apply(self, image: Tensor, seed: int) -> Tensor:
        # Not torch.manual_seed, which seeds the generators of GPUs too.
        torch.default_generator.manual_seed(seed)
        return self.transform(image)


def check_policy(name: str, channels: int) -> None:
    """Check that a policy takes images of so many channels.

    Raises:
        UserError: it does not.
    """
    if name in POLICIES and channels not in _COLOURS:
        raise UserError(
            f"augment {name} takes grey images and those of 3 colours, these have {channels} "
            "channels; use --augment crop-flip"
        )


def image_seeds(seed: int, epoch: int, count: int) -> Tensor:
    """Return the seed of each of ``count`` images in an epoch (count,), for :class:`Policy`."""
    return torch.randint(2**62, (count,), generator=generator(seed, "policy", epoch))


class Mixup:
    """Mixes each image with another one of its batch (arXiv 1710.09412).

    The part of an image is drawn from Beta(alpha, alpha), for each image of each epoch.

    Args:
        alpha: above 0; 1 is the uniform distribution.
        classes: C, of the data.
        seed: of all random numbers.

    Raises:
        UserError: ``alpha`` is not above 0.
    """

    def __init__(self, alpha: float, classes: int, seed: int) -> None:
        check_positive(mixup=alpha)
        self.alpha = alpha
        self.classes = classes
        self.seed = seed

    def parts(self, epoch: int, count: int) -> Tensor:
        """Return the part of each of ``count`` images in an epoch (count,), in [0, 1]."""
        rng = np.random.default_rng(derive_seed(self.seed, "mixup", epoch))
        return torch.from_numpy(rng.beta(self.alpha, self.alpha, count)).float()

    def partners(self, epoch: int, batch: int, size: int) -> Tensor:
        """Return which image of a batch each of its images is mixed with (size,)."""
        return torch.randperm(size, generator=generator(self.seed, "mixup", epoch, batch))

    def targets(self, labels: Tensor, others: Tensor, parts: Tensor) -> Tensor:
        """Return the target probabilities (n, C) of images of these labels and parts (n,)."""
        own, other = (F.one_hot(each, self.classes).float() for each in (labels, others))
        return torch.lerp(other, own, parts[:, None])
