"""Batch norm gets its statistics from images that are varied as in training."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from conftest import write_tiny_npz
from curve_runs import done, job
from safetensors.torch import load_file
from torch import nn

from fge.commands.build import Setup, settle_options
from fge.commands.loading import load_data
from fge.config import FGEConfig, PlaneConfig
from fge.data import EvalBatches, TrainBatches
from fge.errors import UserError
from fge.networks import build_model, refresh_batch_norm

SIDE, PADDING = 8, 2


def setup_of(data: Path, **options: Any) -> Setup:
    config = FGEConfig(data=str(data), batch_size=16, val_fraction=0.0, device="cpu", **options)
    dataset = load_data(config)
    return Setup.of(settle_options(config, dataset), dataset)


@pytest.fixture(scope="module")
def white(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return data whose images are white but for a few, so that they can be normalised."""
    path = tmp_path_factory.mktemp("white") / "white.npz"
    arrays: dict[str, Any] = {}
    for part, count in (("train", 900), ("test", 30)):
        images = np.full((count, SIDE, SIDE), 255, np.uint8)
        images[-3:] = 0
        arrays |= {f"{part}_images": images, f"{part}_labels": np.arange(count) % 3}
    np.savez(path, **arrays)
    return path


def estimated_mean(setup: Setup, batches: EvalBatches | TrainBatches) -> float:
    """Return the mean of the pixels, from 0 to 1, that batch norm sees."""
    layer = nn.BatchNorm2d(1)
    refresh_batch_norm(layer, batches, num_images=None)
    found = layer.running_mean
    assert found is not None
    return float(found * setup.dataset.std[0] + setup.dataset.mean[0]) / 255


def test_statistics_are_those_of_padded_crops(white: Path) -> None:
    setup = setup_of(white, crop_padding=PADDING)
    seen = np.mean([SIDE - abs(PADDING - k) for k in range(2 * PADDING + 1)]) / SIDE
    whites = 897 / 900
    found = estimated_mean(setup, setup.refresh_batches())
    assert found == pytest.approx(whites * seen**2, abs=0.01)
    assert whites - found > 0.2
    plain = estimated_mean(setup, setup.eval_batches(setup.dataset.train))
    assert plain == pytest.approx(whites, abs=1e-3)


@pytest.mark.parametrize("options", [{"augment": "none"}, {"crop_padding": 0, "flip": False}])
def test_without_augmentation_they_are_those_of_the_images(
    white: Path, options: dict[str, Any]
) -> None:
    setup = setup_of(white, **options)
    batches = setup.refresh_batches()
    assert type(batches) is EvalBatches
    assert batches.split is setup.dataset.train


def test_a_recipe_without_augmentation_has_none_here(white: Path) -> None:
    setup = setup_of(white, crop_padding=PADDING)
    assert type(setup.refresh_batches(augment=False)) is EvalBatches


def test_the_images_are_the_same_every_time_and_depend_on_the_seed(data: Path) -> None:
    setup = setup_of(data, seed=3)
    batches = setup.refresh_batches()
    first = [inputs.clone() for inputs, _ in batches]
    torch.manual_seed(99)
    for other in (batches, setup_of(data, seed=3).refresh_batches()):
        assert all(map(torch.equal, first, (inputs for inputs, _ in other)))
    different = [inputs for inputs, _ in setup_of(data, seed=4).refresh_batches()]
    assert not torch.equal(first[0], different[0])
    training = [inputs for inputs, _ in setup.shuffled(len(first[0]))]
    assert not torch.equal(first[0], training[0])


def test_given_images_are_all_used_once(data: Path) -> None:
    setup = setup_of(data, crop_padding=0)  # mirrored alone
    images = setup.dataset.train.first(20)
    inputs = torch.cat([inputs for inputs, _ in setup.refresh_batches(images)])
    wanted = torch.cat([inputs for inputs, _ in setup.eval_batches(images)])

    def rows(x: torch.Tensor) -> list[list[float]]:
        return sorted(torch.maximum(x, x.flip(3)).flatten(1).tolist())

    assert rows(inputs) == rows(wanted)


def test_operations_and_mixtures_of_training_are_in_them(data: Path) -> None:
    usual = next(iter(setup_of(data).refresh_batches()))
    varied = next(iter(setup_of(data, augment="trivial").refresh_batches()))
    assert not torch.equal(usual[0], varied[0])
    mixed = next(iter(setup_of(data).refresh_batches(mixup=0.4)))
    assert mixed[1].shape == (len(usual[1]), 3)


@pytest.mark.parametrize("padding", [0, 2])
def test_a_kept_average_has_them(tmp_path: Path, data: Path, padding: int) -> None:
    more: dict[str, Any] = {"method": "average", "epochs": 3, "crop_padding": padding}
    folder = done("train", job(data, tmp_path / "run", **more))
    state = load_file(folder / "snapshots" / "0001.safetensors")
    model = build_model("convnet", in_channels=1, num_classes=3, image_size=(SIDE, SIDE))
    model.load_state_dict(state)
    config = FGEConfig(data=str(data), batch_size=32, crop_padding=padding, device="cpu")
    setup = Setup.of(config, load_data(config))
    refresh_batch_norm(model, setup.refresh_batches())
    for name, tensor in model.state_dict().items():
        torch.testing.assert_close(tensor, state[name], rtol=1e-5, atol=1e-6)


def test_a_study_varies_them_as_its_options_say(tmp_path: Path) -> None:
    data = tmp_path / "d.npz"
    write_tiny_npz(data)
    weights = tuple(tmp_path / f"{name}.pt" for name in "abc")
    config = PlaneConfig(data=str(data), weights=weights, device="cpu")
    dataset = load_data(config)
    setup = Setup.of(settle_options(config, dataset), dataset)
    assert (setup.crop_padding, setup.flip, setup.augment) == (2, True, "crop-flip")
    assert type(setup.refresh_batches(dataset.train)) is TrainBatches


def test_a_study_refuses_crops_that_training_refuses(tmp_path: Path) -> None:
    data = tmp_path / "d.npz"
    write_tiny_npz(data)
    weights = tuple(tmp_path / f"{name}.pt" for name in "abc")
    config = PlaneConfig(data=str(data), weights=weights, device="cpu", crop_padding=9)
    with pytest.raises(UserError, match=r"^crop_padding 9 is more than the images' side, 8$"):
        load_data(config)


@pytest.mark.parametrize(("eval_images", "padded"), [(5120, 86), (0, 86), (40, 40)])
def test_the_padded_copy_of_a_study_must_fit(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, eval_images: int, padded: int
) -> None:
    data = tmp_path / "d.npz"
    write_tiny_npz(data)
    copy = padded * (SIDE + 2 * 3) ** 2
    monkeypatch.setattr("fge.commands.loading.REFRESH_IMAGES", 50)
    given = {"crop_padding": 3, "eval_images": eval_images}
    config = PlaneConfig(data=str(data), weights=(data,) * 3, device="cpu", **given)
    monkeypatch.setattr("fge.commands.loading.free_memory", lambda _: copy)
    assert len(load_data(config).train) == 86
    monkeypatch.setattr("fge.commands.loading.free_memory", lambda _: copy - 1)
    with pytest.raises(UserError, match=r"^on cpu, a padded copy of the training images needs"):
        load_data(config)
