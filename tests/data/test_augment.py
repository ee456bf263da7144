"""Augmentation by name and mixup: torchvision's own, per image, whatever the batch."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy import stats
from torch import Tensor
from torchvision.transforms import v2

from fge.data import Mixup, Normaliser, Policy, Split, TrainBatches
from fge.data.augment import image_seeds
from fge.errors import UserError

CPU = torch.device("cpu")
TRANSFORMS = {"randaugment": v2.RandAugment, "trivial": v2.TrivialAugmentWide}


def images(count: int = 20, channels: int = 3, side: int = 8) -> Tensor:
    rng = torch.Generator().manual_seed(0)
    shape = (count, channels, side, side)
    return torch.randint(0, 256, shape, generator=rng, dtype=torch.uint8)


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("name", TRANSFORMS)
def test_each_image_gets_what_torchvision_gives_for_its_seed(name: str, channels: int) -> None:
    given, seeds = images(channels=channels), image_seeds(3, 1, 20)
    state = torch.get_rng_state()
    varied = Policy(name, channels)(given, seeds)
    assert torch.equal(torch.get_rng_state(), state)  # dropout draws what it would have drawn
    assert varied.dtype == torch.uint8
    transform = TRANSFORMS[name]()
    for image, seed, result in zip(given, seeds.tolist(), varied, strict=True):
        torch.manual_seed(seed)
        assert torch.equal(transform(image), result)
    torch.set_rng_state(state)
    changed = (varied != given).flatten(1).any(1)
    assert 10 <= int(changed.sum()) < 20 or name == "randaugment"


def test_seeds_differ_by_image_epoch_and_run() -> None:
    seeds = torch.stack([image_seeds(run, epoch, 50) for run in (0, 1) for epoch in (0, 1)])
    assert len(seeds.unique()) == 200
    assert torch.equal(image_seeds(1, 0, 50), seeds[2])


@pytest.mark.parametrize("name", TRANSFORMS)
@pytest.mark.parametrize("channels", [2, 4])
def test_images_of_other_channels_are_refused(name: str, channels: int) -> None:
    message = rf"^augment {name} takes grey images and those of 3 colours, these have {channels} "
    with pytest.raises(UserError, match=message):
        Policy(name, channels)


def batches(size: int, *, mixup: float = 0.0, policy: str | None = "trivial") -> TrainBatches:
    given = images()
    return TrainBatches(
        Split(given, torch.arange(20) % 3),
        Normaliser([0.0] * 3, [1.0] * 3, CPU),
        size,
        seed=5,
        crop_padding=1,
        flip=True,
        policy=Policy(policy, 3) if policy else None,
        mixup=Mixup(mixup, 3, seed=5) if mixup else None,
    )


def epoch(made: TrainBatches, number: int) -> tuple[Tensor, Tensor]:
    made.set_epoch(number)
    inputs, targets = zip(*made, strict=True)
    return torch.cat(inputs), torch.cat(targets)


def test_what_an_image_gets_does_not_depend_on_its_batch() -> None:
    (one, labels), (other, same) = epoch(batches(4), 2), epoch(batches(20), 2)
    assert torch.equal(one, other)
    assert torch.equal(labels, same)
    assert not torch.equal(one, epoch(batches(4, policy=None), 2)[0])
    assert not torch.equal(one.sort(0).values, epoch(batches(4), 3)[0].sort(0).values)


def test_an_epoch_can_be_drawn_again_bitwise() -> None:
    made = batches(6, mixup=0.4)
    first = epoch(made, 7)
    epoch(made, 8)
    for ours, theirs in zip(epoch(made, 7), first, strict=True):
        assert torch.equal(ours, theirs)


def test_mixed_images_and_targets_are_the_same_mixture() -> None:
    plain, labels = epoch(batches(20, policy=None), 1)
    mixed, targets = epoch(batches(20, policy=None, mixup=0.7), 1)
    mixup = Mixup(0.7, 3, seed=5)
    assert targets.shape == (20, 3)
    assert torch.allclose(targets.sum(1), torch.ones(20))
    partners = mixup.partners(1, 0, 20)
    one_hot = torch.nn.functional.one_hot(labels, 3).float()
    # The part of each image, solved for from the pixels, gives the targets too.
    difference = (plain - plain[partners]).flatten(1)
    parts = ((mixed - plain[partners]).flatten(1) * difference).sum(1)
    parts = parts / difference.square().sum(1).clamp(min=1e-9)
    moved = partners != torch.arange(20)
    assert int(moved.sum()) >= 15
    expected = parts[:, None] * one_hot + (1 - parts[:, None]) * one_hot[partners]
    assert torch.allclose(targets[moved], expected[moved], atol=1e-4)
    assert torch.equal(targets[~moved], one_hot[~moved])


@pytest.mark.parametrize("alpha", [0.2, 1.0])
def test_parts_have_the_beta_distribution(alpha: float) -> None:
    parts = Mixup(alpha, 3, seed=0).parts(0, 4000).numpy()
    assert stats.kstest(parts.astype(np.float64), stats.beta(alpha, alpha).cdf).pvalue > 0.01


@pytest.mark.parametrize("alpha", [0.0, -1.0, float("nan")])
def test_an_alpha_without_a_distribution_is_refused(alpha: float) -> None:
    with pytest.raises(UserError, match=r"^mixup must be finite and above 0, got "):
        Mixup(alpha, 3, seed=0)
