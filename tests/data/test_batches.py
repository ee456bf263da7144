"""Shuffling, augmentation and normalisation of whole batches, against brute force."""

from __future__ import annotations

from collections import Counter

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats
from torch import Tensor

from fge.data import Crops, EvalBatches, Normaliser, Split, TrainBatches, ViewBatches

CPU = torch.device("cpu")
IDENTITY = Normaliser([0.0], [1.0], CPU)


def unique_split(count: int, height: int = 4, width: int = 5, channels: int = 1) -> Split:
    """Images of positive random pixels, laid out as the data module does; label = number."""
    rng = torch.Generator().manual_seed(0)
    images = torch.randint(1, 256, (count, height, width, channels), generator=rng)
    return Split(images.to(torch.uint8).permute(0, 3, 1, 2), torch.arange(count))


def train_batches(
    split: Split, batch_size: int, *, seed: int = 0, padding: int = 0, flip: bool = False
) -> TrainBatches:
    return TrainBatches(split, IDENTITY, batch_size, seed=seed, crop_padding=padding, flip=flip)


def epoch(batches: TrainBatches, number: int = 0) -> list[tuple[Tensor, Tensor]]:
    batches.set_epoch(number)
    return list(batches)


def by_image(parts: list[tuple[Tensor, Tensor]]) -> dict[int, Tensor]:
    return {int(y): x for inputs, targets in parts for x, y in zip(inputs, targets, strict=True)}


def decode(shown: np.ndarray, image: np.ndarray, padding: int) -> list[tuple[int, int, bool]]:
    """Return every (row offset, column offset, flipped) of the padded image that gives ``shown``.

    Arrays are (C, H, W).
    """
    height, width = image.shape[1:]
    padded = np.pad(image, ((0, 0), (padding, padding), (padding, padding)))
    return [
        (top, left, flipped)
        for top in range(2 * padding + 1)
        for left in range(2 * padding + 1)
        for flipped in (False, True)
        if np.array_equal(
            shown,
            padded[:, top : top + height, left : left + width][:, :, :: -1 if flipped else 1],
        )
    ]


def draws(split: Split, padding: int, *, seed: int = 0, flip: bool = True) -> np.ndarray:
    """Return (row offset, column offset, flipped) of each image of an epoch, in split order."""
    shown = by_image(epoch(train_batches(split, 500, seed=seed, padding=padding, flip=flip)))
    images = split.images.numpy()
    found = []
    for number in range(len(split)):
        matches = decode(shown[number].numpy(), images[number], padding)
        assert len(matches) == 1, f"image {number} shows {len(matches)} crops of itself"
        found.append(matches[0])
    return np.array(found)


# ---------------------------------------------------------------------------- normalisation


def test_normalisation_against_numpy() -> None:
    images = unique_split(10, channels=3).images
    mean, std = [10.0, 100.0, 200.0], [3.0, 50.0, 7.0]
    expected = (images.numpy() - np.reshape(mean, (3, 1, 1))) / np.reshape(std, (3, 1, 1))
    normalised = Normaliser(mean, std, CPU)(images)
    assert normalised.dtype == torch.float32
    # Terms x / std and mean / std are up to 85 in size; each is rounded at 2^-24 a few times.
    np.testing.assert_allclose(normalised.numpy(), expected, atol=85 * 4 * 2**-24)


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("channels_last", [False, True])
def test_memory_format_of_batches(channels: int, channels_last: bool) -> None:
    split = unique_split(6, 4, 5, channels)
    normaliser = Normaliser([0.0] * channels, [1.0] * channels, CPU, channels_last=channels_last)
    expected = (20 * channels, 1, 5 * channels, channels) if channels_last else None
    expected = expected or (20 * channels, 20, 5, 1)
    train = TrainBatches(split, normaliser, 6, seed=0, crop_padding=1, flip=True)
    evaluation = EvalBatches(split, normaliser, 6)
    for batches in (train, evaluation):
        inputs, _ = next(iter(batches))
        strides = [s for s, size in zip(inputs.stride(), inputs.shape, strict=True) if size > 1]
        wanted = [s for s, size in zip(expected, inputs.shape, strict=True) if size > 1]
        assert strides == wanted


def test_memory_format_does_not_change_the_values() -> None:
    images = unique_split(6, channels=3).images
    one, other = (
        Normaliser([9.0] * 3, [2.0] * 3, CPU, channels_last=last)(images) for last in (False, True)
    )
    assert torch.equal(one, other)


# ------------------------------------------------------------------------------- evaluation


@pytest.mark.parametrize("batch_size", [1, 3, 7, 10, 99])
def test_evaluation_covers_the_split_in_order(batch_size: int) -> None:
    split = unique_split(10)
    batches = EvalBatches(split, IDENTITY, batch_size)
    parts = list(batches)
    assert len(parts) == len(batches) == -(-10 // batch_size)
    assert torch.equal(torch.cat([x for x, _ in parts]), split.images.float())
    assert torch.equal(torch.cat([y for _, y in parts]), split.labels)


def test_evaluation_can_be_iterated_again() -> None:
    batches = EvalBatches(unique_split(5), IDENTITY, 2)
    assert all(torch.equal(a[0], b[0]) for a, b in zip(batches, batches, strict=True))


# ---------------------------------------------------------------------------------- batches


@settings(max_examples=30)
@given(count=st.integers(2, 60), batch_size=st.integers(2, 60), number=st.integers(0, 5))
def test_every_image_once_per_epoch_but_a_single_last_one(
    count: int, batch_size: int, number: int
) -> None:
    batches = train_batches(unique_split(count), batch_size)
    parts = epoch(batches, number)
    labels = [int(y) for _, targets in parts for y in targets]
    assert len(parts) == len(batches)
    assert len(set(labels)) == len(labels) == count - (count % batch_size == 1)
    assert all(len(targets) == batch_size for _, targets in parts[:-1])
    assert len(parts[-1][1]) > 1


def test_last_smaller_batch_is_used() -> None:
    assert [len(y) for _, y in epoch(train_batches(unique_split(10), 4))] == [4, 4, 2]


def test_last_batch_of_a_single_image_is_dropped() -> None:
    assert [len(y) for _, y in epoch(train_batches(unique_split(9), 4))] == [4, 4]


def test_dropped_image_changes_with_the_epoch() -> None:
    batches = train_batches(unique_split(9), 4)
    dropped = {
        (set(range(9)) - set(by_image(epoch(batches, number)))).pop() for number in range(20)
    }
    assert len(dropped) > 3  # 20 draws of 9: fewer than 4 different ones has probability < 1e-5


def test_without_augmentation_images_are_as_they_were() -> None:
    split = unique_split(12, channels=3)
    shown = by_image(epoch(TrainBatches(split, Normaliser([0.0] * 3, [1.0] * 3, CPU), 5, seed=0)))
    assert all(torch.equal(shown[n], split.images[n].float()) for n in range(12))


def test_order_is_a_uniform_shuffle() -> None:
    batches = train_batches(unique_split(4), 4)
    orders = Counter(tuple(epoch(batches, number)[0][1].tolist()) for number in range(2400))
    assert len(orders) == 24
    assert stats.chisquare(list(orders.values())).pvalue > 1e-3


def assert_same(one: list[tuple[Tensor, Tensor]], other: list[tuple[Tensor, Tensor]]) -> None:
    for (x, y), (other_x, other_y) in zip(one, other, strict=True):
        assert torch.equal(x, other_x)
        assert torch.equal(y, other_y)


def test_same_seed_and_epoch_give_the_same_batches() -> None:
    first = train_batches(unique_split(50), 8, seed=3, padding=1, flip=True)
    second = train_batches(unique_split(50), 8, seed=3, padding=1, flip=True)
    epoch(second, 0)
    torch.manual_seed(5)
    assert_same(epoch(first, 7), epoch(second, 7))
    assert_same(epoch(first, 7), epoch(first, 7))


@pytest.mark.parametrize(("seed", "number"), [(3, 8), (4, 7)])
def test_other_seed_or_epoch_gives_other_order_and_crops(seed: int, number: int) -> None:
    split = unique_split(60)
    one = epoch(train_batches(split, 60, seed=3, padding=1, flip=True), 7)
    other = epoch(train_batches(split, 60, seed=seed, padding=1, flip=True), number)
    assert not torch.equal(one[0][1], other[0][1])
    shown, other_shown = by_image(one), by_image(other)
    same = sum(torch.equal(shown[n], other_shown[n]) for n in range(60))
    assert same < 15  # each stays as it was with probability 1/18


def test_augmentation_belongs_to_the_image_whatever_the_batch_size() -> None:
    split = unique_split(40)
    shown = [
        by_image(epoch(train_batches(split, size, padding=2, flip=True), 3)) for size in (40, 8, 5)
    ]
    for number in range(40):
        assert torch.equal(shown[0][number], shown[1][number])
        assert torch.equal(shown[0][number], shown[2][number])


def test_batches_leave_the_global_random_state_alone() -> None:
    before = torch.get_rng_state()
    epoch(train_batches(unique_split(20), 8, padding=1, flip=True))
    assert torch.equal(before, torch.get_rng_state())


# ----------------------------------------------------------------------------- augmentation


@pytest.mark.parametrize(("height", "width"), [(6, 6), (4, 7), (7, 3)])
@pytest.mark.parametrize("padding", [1, 2])
def test_each_image_is_one_crop_of_its_zero_padded_self(
    height: int, width: int, padding: int
) -> None:
    found = draws(unique_split(80, height, width), padding)
    assert found[:, :2].min() == 0
    assert found[:, :2].max() == 2 * padding


def test_colour_channels_are_cropped_together() -> None:
    split = unique_split(30, 5, 5, channels=3)
    batches = TrainBatches(
        split, Normaliser([0.0] * 3, [1.0] * 3, CPU), 30, seed=0, crop_padding=1, flip=True
    )
    shown = by_image(epoch(batches))
    for number in range(30):
        assert len(decode(shown[number].numpy(), split.images[number].numpy(), 1)) == 1


def test_padding_beyond_the_image_still_gives_crops_of_it() -> None:
    split = Split(torch.full((50, 1, 2, 2), 200, dtype=torch.uint8), torch.arange(50))
    shown = by_image(epoch(train_batches(split, 50, padding=3)))
    assert all(decode(shown[n].numpy(), split.images[n].numpy(), 3) for n in range(50))


def test_labels_stay_with_their_images() -> None:
    draws(unique_split(100), 1)  # decodes each image as a crop of the one that its label names


DRAWN = 4000


@pytest.fixture(scope="module")
def drawn() -> np.ndarray:
    return draws(unique_split(DRAWN), 1, seed=0)


def test_offsets_are_uniform(drawn: np.ndarray) -> None:
    counts = np.bincount(3 * drawn[:, 0] + drawn[:, 1], minlength=9)
    assert stats.chisquare(counts).pvalue > 1e-3


def test_half_of_the_images_are_flipped(drawn: np.ndarray) -> None:
    assert stats.binomtest(int(drawn[:, 2].sum()), DRAWN).pvalue > 1e-3


def test_row_column_and_flip_are_independent(drawn: np.ndarray) -> None:
    for one, other in ((0, 1), (0, 2), (1, 2)):
        table = np.zeros((3, 3))
        np.add.at(table, (drawn[:, one], drawn[:, other]), 1)
        table = table[:, table.sum(axis=0) > 0]
        assert stats.chi2_contingency(table).pvalue > 1e-3


@pytest.mark.parametrize("column", [0, 1, 2])
def test_draws_of_neighbouring_images_are_independent(drawn: np.ndarray, column: int) -> None:
    values = drawn[:, column]
    table = np.zeros((values.max() + 1, values.max() + 1))
    np.add.at(table, (values[:-1], values[1:]), 1)
    assert stats.chi2_contingency(table).pvalue > 1e-3


def test_draws_of_one_batch_differ_between_images() -> None:
    found = draws(unique_split(64), 1)
    assert len({tuple(row) for row in found}) > 12  # 18 kinds, 64 images


def test_draws_are_independent_of_the_position_in_the_epoch(drawn: np.ndarray) -> None:
    parts = epoch(train_batches(unique_split(DRAWN), 500))
    order = np.concatenate([targets.numpy() for _, targets in parts])
    later = (np.argsort(order) >= DRAWN // 2).astype(int)
    table = np.zeros((2, 9))
    np.add.at(table, (later, 3 * drawn[:, 0] + drawn[:, 1]), 1)
    assert stats.chi2_contingency(table).pvalue > 1e-3


def test_flip_can_be_switched_off() -> None:
    assert not draws(unique_split(100), 1, flip=False)[:, 2].any()


def test_switching_flip_off_keeps_the_crops() -> None:
    with_flip, without = (draws(unique_split(100), 1, flip=flip) for flip in (True, False))
    assert np.array_equal(with_flip[:, :2], without[:, :2])


# ------------------------------------------------------------------- views of evaluated images


def view(split: Split, batch_size: int, number: int = 1, *, seed: int = 0) -> Tensor:
    """Return a view (N, C, H, W) of each image of a split, padded by 2."""
    crops = Crops(split.images, 2, flip=True)
    batches = ViewBatches(split, IDENTITY, batch_size, crops=crops, seed=seed, view=number)
    parts = list(batches)
    assert len(parts) == len(batches)
    assert torch.equal(torch.cat([y for _, y in parts]), split.labels)
    return torch.cat([x for x, _ in parts])


@pytest.mark.parametrize("batch_size", [1, 3, 7, 12, 99])
def test_a_view_is_the_same_whatever_the_batch_size(batch_size: int) -> None:
    split = unique_split(12)
    assert torch.equal(view(split, batch_size), view(split, 12))


def test_a_view_shows_one_crop_of_each_image_in_order() -> None:
    split = unique_split(200)
    shown, images = view(split, 64).numpy(), split.images.numpy()
    matches = [decode(one, image, 2) for one, image in zip(shown, images, strict=True)]
    assert {len(found) for found in matches} == {1}
    drawn = np.array([found[0] for found in matches])
    assert (set(drawn[:, 0]), set(drawn[:, 1])) == (set(range(5)), set(range(5)))
    assert 60 < drawn[:, 2].sum() < 140  # of 200 with probability 1/2: beyond 5.6 deviations


@pytest.mark.parametrize(("number", "seed"), [(2, 0), (1, 1)])
def test_another_view_or_seed_gives_other_crops(number: int, seed: int) -> None:
    split = unique_split(60)
    one, other = view(split, 60), view(split, 60, number, seed=seed)
    same = sum(torch.equal(a, b) for a, b in zip(one, other, strict=True))
    assert same < 15  # each stays as it was with probability 1/50
