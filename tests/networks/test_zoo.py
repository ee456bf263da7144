"""Models of torchvision and timm: found by name, named with their prefix, built for the data."""

from __future__ import annotations

import sys
from types import ModuleType
from typing import Any

import pytest
import torch
from torchvision import models

from fge.errors import UserError, missing_package, nearest
from fge.networks import build_model, fitting_backbone, input_statistics, library_weights


def build(name: str, channels: int = 1, classes: int = 5, side: int = 32) -> Any:
    size = (side, side)
    return build_model(name, in_channels=channels, num_classes=classes, image_size=size)


@pytest.mark.parametrize(
    ("name", "meant"),
    [
        ("resnet18", "torchvision:resnet18"),
        ("ResNet18", "torchvision:resnet18"),
        ("resnet_50", "torchvision:resnet50"),
        ("efficientnet-b0", "torchvision:efficientnet_b0"),
        ("convnext", "torchvision:convnext_base"),
        ("resnet", "torchvision:resnet18"),
        ("vgg16_bn", "vgg16-bn"),
        ("vgg16b", "vgg16-bn"),
        ("WRN-28-10", "wrn28-10"),
        ("preresnet-164", "preresnet164"),
    ],
)
def test_a_name_without_its_prefix_is_answered_with_it(name: str, meant: str) -> None:
    with pytest.raises(UserError) as caught:
        build(name)
    assert str(caught.value) == f"unknown model {name!r}; did you mean {meant!r}?"


@pytest.mark.parametrize("name", ["transformer", "x", "mymodel", "net"])
def test_what_resembles_nothing_is_answered_with_what_there_is(name: str) -> None:
    with pytest.raises(UserError, match=f"^unknown model '{name}'; known: convnet, vgg16, .*") as e:
        build(name)
    assert str(e.value).endswith("torchvision:NAME, timm:NAME, package.module:factory")


def test_only_close_names_are_proposed_whatever_their_capitals() -> None:
    assert nearest("resnet18", ["preresnet164"]) is None
    assert nearest("CIFAR-10", ["cifar100", "cifar10"]) == "cifar10"
    assert nearest("--max_LR", ["--min-lr", "--max-lr"]) == "--max-lr"
    assert nearest("same", ["same", "Same"]) == "same"
    assert nearest("", ["a"]) is None


def test_long_lists_of_known_names_are_cut() -> None:
    with pytest.raises(UserError, match=r", \.\.\.$") as caught:
        build("torchvision:qqqqqqqqqqq")
    assert str(caught.value).count(",") == 5
    with pytest.raises(UserError, match=r"^unknown torchvision model 'resnet999'; nearest of \d+:"):
        build("torchvision:resnet999")


# ------------------------------------------------------------------------- weights of torchvision


def test_weights_for_three_channels_see_a_grey_image_as_three_equal_ones(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    name = "squeezenet1_1"
    torch.manual_seed(4)
    known = build(f"torchvision:{name}", channels=3, classes=1000).eval()
    kind = models.get_model_weights(name)
    state = {key: tensor.clone() for key, tensor in known.state_dict().items()}
    monkeypatch.setattr(kind, "get_state_dict", lambda *_, **__: state)
    grey = torch.randn(2, 1, 32, 32)
    for channels in (1, 2, 3, 4, 6):
        given = library_weights(f"torchvision:{name}", in_channels=channels, image_size=(32, 32))
        model = build(f"torchvision:{name}", channels=channels, classes=1000).eval()
        fitted, left_out = fitting_backbone(model, given, name)
        model.load_state_dict(fitted)
        assert left_out == ()
        if channels in (1, 3, 6):  # each of the three as often
            wanted = known(grey.expand(-1, 3, -1, -1))
            torch.testing.assert_close(
                model(grey.expand(-1, channels, -1, -1)), wanted, rtol=1e-4, atol=1e-5
            )
        changed = [key for key in state if not torch.equal(state[key], fitted[key])]
        assert len(changed) == (channels != 3)
    first = next(tensor for tensor in state.values())
    four = library_weights(f"torchvision:{name}", in_channels=4, image_size=(32, 32))
    found = next(iter(four.values()))
    torch.testing.assert_close(found[:, :3], 0.75 * first)
    torch.testing.assert_close(found[:, 3], 0.75 * first[:, 0])


@pytest.mark.slow
def test_googlenet_sees_with_pretrained_weights_what_it_was_trained_on(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Its auxiliary heads go, and its inputs are changed as torchvision changes them."""
    name = "torchvision:googlenet"
    torch.manual_seed(4)
    options = {"aux_logits": True, "init_weights": True, "transform_input": True}
    known = models.googlenet(num_classes=1000, **options).eval()  # as with weights=...
    kind = models.get_model_weights("googlenet")
    monkeypatch.setattr(kind, "get_state_dict", lambda *_, **__: known.state_dict())
    model = build(name, channels=3, classes=1000).eval()
    given = library_weights(name, in_channels=3, image_size=(32, 32))
    fitted, left_out = fitting_backbone(model, given, name)
    model.load_state_dict(fitted)
    assert left_out == ()
    inputs = torch.randn(2, 3, 32, 32)
    torch.testing.assert_close(model(inputs), known(inputs), rtol=0, atol=0)
    with pytest.raises(UserError, match="googlenet are for images of 3 channels, and these have 1"):
        library_weights(name, in_channels=1, image_size=(32, 32))
    assert build(name, channels=1).train()(inputs[:, :1]).shape == (2, 5)


# ------------------------------------------------------------------------------------------- timm


def test_without_timm_its_install_command_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "timm", None)  # as if it were not installed
    with pytest.raises(UserError) as caught:
        build("timm:resnet10t")
    assert str(caught.value) == (
        "--model timm:resnet10t needs the package timm, which is not installed: pip install timm, "
        "or in the checkout: pip install -e '.[timm]'"
    )


def test_a_package_that_is_installed_but_broken_is_said_to_be_so() -> None:
    error = missing_package("--x", "timm", ImportError("undefined symbol\nmore"), extra="")
    assert str(error) == (
        "--x needs the package timm, which cannot be imported (undefined symbol): pip install timm"
    )
    missing = ModuleNotFoundError("No module named 'httpx'", name="httpx")
    assert "cannot be imported (No module named 'httpx')" in str(missing_package("x", "a", missing))
    inner = ModuleNotFoundError("No module named 'a.b'", name="a.b")
    assert "a, which is not installed" in str(missing_package("x", "a", inner))


@pytest.fixture
def timm() -> ModuleType:
    return pytest.importorskip("timm")


@pytest.mark.parametrize("channels", [1, 3, 4])
def test_a_timm_model_has_the_channels_and_classes_of_the_data(
    timm: ModuleType, channels: int
) -> None:
    torch.manual_seed(0)
    model = build("timm:resnet10t", channels).eval()
    assert model(torch.zeros(2, channels, 32, 32)).shape == (2, 5)
    torch.manual_seed(0)  # the same initial weights
    theirs = timm.create_model("resnet10t", num_classes=5, in_chans=channels)
    assert model.state_dict().keys() == theirs.state_dict().keys()
    x = torch.randn(2, channels, 32, 32, generator=torch.Generator().manual_seed(1))
    assert torch.equal(model(x), theirs.eval()(x))


def test_a_timm_model_of_one_image_size_gets_that_of_the_data(timm: ModuleType) -> None:
    assert timm.is_model("vit_tiny_patch16_224")
    model = build("timm:vit_tiny_patch16_224", side=48)
    assert model.patch_embed.img_size == (48, 48)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("timm:resnet10tt", "unknown timm model 'resnet10tt'; did you mean 'resnet10t'?"),
        ("timm:resnet999", "unknown timm model 'resnet999'; nearest of "),
        ("timm:hf-hub:someone/model", "unknown timm model 'hf-hub:someone/model'; known: "),
        ("resnet10t", "unknown model 'resnet10t'; did you mean 'timm:resnet10t'?"),
    ],
)
@pytest.mark.usefixtures("timm")
def test_timm_names_are_checked(name: str, message: str) -> None:
    with pytest.raises(UserError) as caught:
        build(name)
    assert str(caught.value).startswith(message)


@pytest.mark.usefixtures("timm")
def test_a_timm_model_that_cannot_be_built_so_is_one_line() -> None:
    with pytest.raises(
        UserError, match=r"^timm:nest_tiny cannot be built for images of 1 x 8 x 8: Asser"
    ) as e:
        build("timm:nest_tiny", side=8)
    assert "\n" not in str(e.value)


# ----------------------------------------------------- what pretrained weights were trained on

HALF = ((0.5, 0.5, 0.5), (0.5, 0.5, 0.5))
IMAGENET = ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("timm:resnet18", IMAGENET),
        ("timm:tf_efficientnet_lite0", HALF),
        ("timm:vit_tiny_patch16_224", HALF),
        ("torchvision:resnet18", IMAGENET),
        ("torchvision:inception_v3", IMAGENET),  # its own first step makes 0.5 of them
    ],
)
@pytest.mark.usefixtures("timm")
def test_the_statistics_are_those_that_the_library_normalises_with(
    name: str, expected: tuple[tuple[float, ...], tuple[float, ...]]
) -> None:
    assert input_statistics(name) == expected


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("convnet", "--normalize model is for models of a library, .*got convnet; use --normalize"),
        ("torchvision:resnet19", "unknown torchvision model 'resnet19'; did you mean 'resnet1"),
        ("timm:resnet10tt", "unknown timm model 'resnet10tt'; did you mean 'resnet10t'"),
    ],
)
@pytest.mark.usefixtures("timm")
def test_other_names_have_no_known_statistics(name: str, message: str) -> None:
    with pytest.raises(UserError, match=f"^{message}"):
        input_statistics(name)
