"""Architectures against parameter counts worked out by hand; the user's own models; errors."""

from __future__ import annotations

import itertools
import math
import sys
import textwrap
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import nn

from fge.errors import UserError
from fge.networks import build_model
from fge.networks.architectures.preresnet import PreActivationBlock
from fge.networks.build import MODELS

Size = tuple[int, int]


def on_meta(name: str, in_channels: int, num_classes: int, image_size: Size) -> nn.Module:
    """Build a network without memory or time for its weights."""
    with torch.device("meta"):
        return MODELS[name](in_channels, num_classes, image_size)


def parameters(model: nn.Module) -> int:
    return sum(parameter.numel() for parameter in model.parameters())


# ------------------------------------------------------------------------ parameter counts


def basic_count(per_stage: int, widths: list[int], channels: int, classes: int) -> int:
    """Two 3 x 3 convolutions a block, each behind a batch norm (2 parameters a channel)."""
    total, inputs = 9 * channels * 16, 16
    for width in widths:
        total += (2 * inputs + 9 * inputs * width) + (2 * width + 9 * width**2)
        total += inputs * width if inputs != width else 0  # 1 x 1 shortcut
        total += (per_stage - 1) * 2 * (2 * width + 9 * width**2)
        inputs = width
    return total + 2 * inputs + (inputs + 1) * classes


def bottleneck_count(depth: int, channels: int, classes: int) -> int:
    """1 x 1, 3 x 3, 1 x 1 convolutions a block, with a quarter of the channels inside."""
    total, inputs = 9 * channels * 16, 16
    for inner in (16, 32, 64):
        outputs = 4 * inner
        inside = 2 * inner + 9 * inner**2 + 2 * inner + inner * outputs
        total += 2 * inputs + inputs * inner + inside + inputs * outputs
        total += ((depth - 2) // 9 - 1) * (2 * outputs + outputs * inner + inside)
        inputs = outputs
    return total + 2 * inputs + (inputs + 1) * classes


def vgg_count(channels: int, classes: int, cells: int, *, batch_norm: bool) -> int:
    widths = [64] * 2 + [128] * 2 + [256] * 3 + [512] * 6
    convolutions = sum(9 * a * b + b for a, b in itertools.pairwise([channels, *widths]))
    norms = 2 * sum(widths) if batch_norm else 0
    return convolutions + norms + (512 * cells + 1) * 512 + 513 * 512 + 513 * classes


COUNTS: dict[str, Callable[[int, int], int]] = {
    "vgg16": lambda c, k: vgg_count(c, k, 1, batch_norm=False),
    "vgg16-bn": lambda c, k: vgg_count(c, k, 1, batch_norm=True),
    "preresnet20": lambda c, k: basic_count(3, [16, 32, 64], c, k),
    "preresnet56": lambda c, k: bottleneck_count(56, c, k),
    "preresnet110": lambda c, k: bottleneck_count(110, c, k),
    "preresnet164": lambda c, k: bottleneck_count(164, c, k),
    "wrn28-10": lambda c, k: basic_count(4, [160, 320, 640], c, k),
}


@pytest.mark.parametrize("name", COUNTS)
@pytest.mark.parametrize(("channels", "classes"), [(1, 10), (3, 100)])
def test_parameter_count_is_the_closed_form(name: str, channels: int, classes: int) -> None:
    model = on_meta(name, channels, classes, (32, 32))
    assert parameters(model) == COUNTS[name](channels, classes)


@pytest.mark.parametrize(
    ("name", "count"),
    [
        ("vgg16", 15_245_130),
        ("vgg16-bn", 15_253_578),
        ("preresnet20", 272_282),
        ("preresnet164", 1_703_258),
        ("wrn28-10", 36_479_194),
    ],
)
def test_parameter_count_on_cifar10_is_the_published_one(name: str, count: int) -> None:
    assert parameters(on_meta(name, 3, 10, (32, 32))) == count


def test_every_registered_model_is_counted() -> None:
    assert {*COUNTS, "convnet"} == set(MODELS)


@pytest.mark.parametrize(("channels", "classes"), [(1, 10), (3, 10)])
def test_convnet_is_as_small_as_it_says(channels: int, classes: int) -> None:
    assert 50_000 <= parameters(on_meta("convnet", channels, classes, (28, 28))) <= 100_000


@pytest.mark.parametrize("depth", [20, 56, 110, 164])
def test_depth_counts_the_layers_of_the_longest_path(depth: int) -> None:
    model = on_meta(f"preresnet{depth}", 3, 10, (32, 32))
    layers = [(n, m) for n, m in model.named_modules() if isinstance(m, nn.Conv2d | nn.Linear)]
    assert sum("shortcut" not in name for name, _ in layers) == depth


# ---------------------------------------------------------------------------------- shapes

SIZES = [(28, 28), (32, 32), (33, 47), (8, 8), (5, 3)]


@pytest.mark.slow
@pytest.mark.parametrize("name", ["convnet", "preresnet20", "wrn28-10"])
@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("channels", [1, 3])
def test_any_image_size_gives_logits(name: str, size: Size, channels: int) -> None:
    model = on_meta(name, channels, 7, size)
    assert model(torch.zeros(2, channels, *size, device="meta")).shape == (2, 7)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["preresnet56", "preresnet110", "preresnet164"])
def test_deep_networks_take_odd_image_sizes(name: str) -> None:
    size, channels = (33, 47), 1
    model = on_meta(name, channels, 7, size)
    assert model(torch.zeros(2, channels, *size, device="meta")).shape == (2, 7)


@pytest.mark.parametrize("name", ["vgg16", "vgg16-bn"])
@pytest.mark.parametrize("size", [(32, 32), (64, 33), (40, 100)])
@pytest.mark.parametrize("channels", [1, 3])
def test_vgg_takes_images_from_32_pixels_on(name: str, size: Size, channels: int) -> None:
    model = on_meta(name, channels, 7, size)
    assert model(torch.zeros(2, channels, *size, device="meta")).shape == (2, 7)


@pytest.mark.parametrize("name", ["vgg16", "vgg16-bn"])
@pytest.mark.parametrize("size", [(28, 28), (32, 31), (8, 64)])
def test_vgg_refuses_smaller_images(name: str, size: Size) -> None:
    expected = f"vgg16 needs images of at least 32 x 32, got {size[0]} x {size[1]}"
    with pytest.raises(UserError, match=f"^{expected}$"):
        build_model(name, in_channels=1, num_classes=10, image_size=size)


@pytest.mark.parametrize("name", ["convnet", "preresnet20"])
def test_built_model_trains(name: str) -> None:
    model = build_model(name, in_channels=3, num_classes=4, image_size=(9, 8))
    assert all(module.training for module in model.modules())
    loss = nn.functional.cross_entropy(model(torch.randn(6, 3, 9, 8)), torch.arange(6) % 4)
    loss.backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in model.parameters())


def test_trying_out_leaves_batch_norm_statistics_alone() -> None:
    model = build_model("convnet", in_channels=1, num_classes=4, image_size=(9, 8))
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            assert module.num_batches_tracked == 0
            assert module.running_mean is not None
            assert not module.running_mean.any()


def test_initialisation_follows_the_global_seed() -> None:
    states = []
    for seed in (1, 1, 2):
        torch.manual_seed(seed)
        model = build_model("preresnet20", in_channels=1, num_classes=4, image_size=(8, 8))
        states.append(torch.cat([p.flatten() for p in model.parameters()]))
    assert torch.equal(states[0], states[1])
    assert not torch.equal(states[0], states[2])


def test_convolutions_are_drawn_with_the_fan_out_deviation() -> None:
    torch.manual_seed(0)
    model = build_model("preresnet20", in_channels=3, num_classes=10, image_size=(8, 8))
    large = [m for m in model.modules() if isinstance(m, nn.Conv2d) and m.weight.numel() > 9000]
    assert len(large) >= 5
    for conv in large:
        expected = math.sqrt(2 / (9 * conv.out_channels))
        # The deviation of n draws scatters by 1 / sqrt(2n) < 0.75 %.
        assert conv.weight.std().item() == pytest.approx(expected, rel=0.03)
        assert abs(conv.weight.mean().item()) < 5 * expected / math.sqrt(conv.weight.numel())


def test_identity_block_adds_its_input() -> None:
    block = PreActivationBlock(4, 4, 1, bottleneck=False).eval()
    x = torch.randn(2, 4, 5, 5)
    conv = block.body[5]
    assert isinstance(conv, nn.Conv2d)
    nn.init.zeros_(conv.weight)
    assert torch.equal(block(x.clone()), x)


def test_block_activates_before_it_convolves() -> None:
    block = PreActivationBlock(4, 8, 2, bottleneck=True)
    kinds = [type(module).__name__ for module in block.body]
    assert kinds == ["BatchNorm2d", "ReLU", "Conv2d"] * 3
    assert block(torch.randn(2, 4, 5, 6)).shape == (2, 8, 3, 3)


def test_block_does_not_change_its_input() -> None:
    block = PreActivationBlock(4, 4, 1, bottleneck=False)
    x = torch.randn(2, 4, 5, 5)
    before = x.clone()
    block(x)
    assert torch.equal(x, before)


# ----------------------------------------------------------------------------------- names


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("convnett", "unknown model 'convnett'; did you mean 'convnet'?"),
        ("preresnet-20", "unknown model 'preresnet-20'; did you mean 'preresnet20'?"),
        ("wrn2810", "unknown model 'wrn2810'; did you mean 'wrn28-10'?"),
        ("torchvision:resnet19", "unknown torchvision model 'resnet19'; did you mean 'resnet1"),
    ],
)
def test_unknown_name_is_answered_with_the_nearest(name: str, message: str) -> None:
    with pytest.raises(UserError) as caught:
        build_model(name, in_channels=1, num_classes=10, image_size=(28, 28))
    assert str(caught.value).startswith(message)


@pytest.mark.parametrize("name", ["convnet", "torchvision:resnet18"])
def test_a_single_class_makes_no_classifier(name: str) -> None:
    with pytest.raises(UserError, match=r"needs two classes or more, the data have 1;"):
        build_model(name, in_channels=1, num_classes=1, image_size=(28, 28))


def test_unknown_name_far_from_all_is_answered_with_all() -> None:
    with pytest.raises(UserError) as caught:
        build_model("zzz", in_channels=1, num_classes=10, image_size=(28, 28))
    for known in (*MODELS, "torchvision:NAME", "package.module:factory"):
        assert known in str(caught.value)


def test_torchvision_s_models_of_other_tasks_are_unknown() -> None:
    with pytest.raises(UserError, match="unknown torchvision model 'fcn_resnet50'"):
        build_model("torchvision:fcn_resnet50", in_channels=3, num_classes=5, image_size=(32, 32))


@pytest.mark.parametrize("channels", [1, 3, 4])
def test_torchvision_model_takes_any_channel_count(channels: int) -> None:
    model = build_model(
        "torchvision:resnet18", in_channels=channels, num_classes=5, image_size=(32, 32)
    )
    stem = model.get_submodule("conv1")
    assert isinstance(stem, nn.Conv2d)
    assert stem.in_channels == channels
    assert (stem.kernel_size, stem.stride, stem.padding, stem.bias) == (
        (7, 7),
        (2, 2),
        (3, 3),
        None,
    )
    assert model(torch.zeros(2, channels, 32, 32)).shape == (2, 5)


def test_torchvision_model_that_cannot_take_the_size_is_named() -> None:
    with pytest.raises(
        UserError, match="model 'torchvision:squeezenet1_1' cannot process images of 1 x 4 x 4: "
    ):
        build_model("torchvision:squeezenet1_1", in_channels=1, num_classes=5, image_size=(4, 4))


# ------------------------------------------------------------------------------- factories


WriteModule = Callable[[str], str]


@pytest.fixture
def write_module(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> WriteModule:
    """Return a function that makes a module of source text importable and returns its name."""
    monkeypatch.setattr(sys, "path", list(sys.path))
    monkeypatch.syspath_prepend(tmp_path)
    names = []

    def write(source: str) -> str:
        name = f"own_{tmp_path.name}_{len(names)}"
        names.append(name)
        heading = "import torch\nfrom torch import nn\n"
        (tmp_path / f"{name}.py").write_text(heading + textwrap.dedent(source))
        return name

    return write


def build(model: str) -> nn.Module:
    return build_model(model, in_channels=3, num_classes=4, image_size=(6, 8))


LINEAR = "return nn.Sequential(nn.Flatten(), nn.Linear(3 * 6 * 8, 4))"


@pytest.mark.parametrize(
    ("signature", "expected"),
    [
        ("", {}),
        ("num_classes", {"num_classes": 4}),
        ("image_size, *, in_channels=1", {"in_channels": 3, "image_size": (6, 8)}),
        ("in_channels, width=5", {"in_channels": 3, "width": 5}),
        ("**options", {"in_channels": 3, "num_classes": 4, "image_size": (6, 8)}),
    ],
)
def test_factory_is_called_with_the_keywords_that_it_takes(
    write_module: WriteModule, signature: str, expected: dict[str, object]
) -> None:
    name = write_module(f"""
        seen = {{}}

        def net({signature}):
            seen.update(locals().get("options", locals()))
            {LINEAR}
    """)
    assert parameters(build(f"{name}:net")) == 3 * 6 * 8 * 4 + 4
    assert sys.modules[name].seen == expected


def test_factory_may_be_a_class(write_module: WriteModule) -> None:
    name = write_module("""
        class Net(nn.Module):
            def __init__(self, num_classes):
                super().__init__()
                self.head = nn.Linear(3 * 6 * 8, num_classes)

            def forward(self, x):
                return self.head(x.flatten(1))
    """)
    assert type(build(f"{name}:Net")).__name__ == "Net"


def test_factory_is_found_in_the_working_directory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "path", list(sys.path))
    monkeypatch.chdir(tmp_path)
    (tmp_path / "own_in_cwd.py").write_text(f"from torch import nn\ndef net():\n    {LINEAR}\n")
    assert isinstance(build("own_in_cwd:net"), nn.Sequential)


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ("def net(): raise RuntimeError('no\\nluck')", "failed: RuntimeError: no$"),
        ("def net(width): pass", "failed: TypeError: .*'width'"),
        ("def net(): return 5", "returned a int, not a Module$"),
        ("def net(): pass", "returned a NoneType, not a Module$"),
        ("other = 1", "cannot be imported: AttributeError: .*'net'"),
        ("raise ImportError('no such library')", "cannot be imported: ImportError: no such lib"),
        ("def net(:", "cannot be imported: SyntaxError: "),
        ("net = 3", "failed: TypeError: 3 is not a callable object"),
    ],
)
def test_factory_that_fails(write_module: WriteModule, source: str, message: str) -> None:
    with pytest.raises(UserError, match=message) as caught:
        build(f"{write_module(source)}:net")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("name", ["no_such_package:net", "no_such_package.module:net", ":net"])
def test_module_that_does_not_exist(name: str) -> None:
    with pytest.raises(UserError, match=f"model '{name}' cannot be imported: "):
        build(name)


@pytest.mark.parametrize(
    ("body", "got"),
    [
        ("nn.Sequential(nn.Flatten(), nn.Linear(144, 5))", r"\(2, 5\)"),
        ("nn.Conv2d(3, 4, 3)", r"\(2, 4, 4, 6\)"),
        ("nn.Sequential(nn.Flatten(0), nn.Linear(288, 4))", r"\(4,\)"),
    ],
)
def test_wrong_output_width_names_both(write_module: WriteModule, body: str, got: str) -> None:
    name = write_module(f"def net(): return {body}")
    with pytest.raises(
        UserError,
        match=rf"must return logits of shape \(N, 4\) for the 4 classes of the data, got {got}",
    ):
        build(f"{name}:net")


def test_output_that_is_no_tensor_is_named(write_module: WriteModule) -> None:
    name = write_module("""
        class net(nn.Linear):
            def __init__(self): super().__init__(1, 1)
            def forward(self, x): return {"logits": x}
    """)
    with pytest.raises(UserError, match=r"must return logits of shape .* got dict"):
        build(f"{name}:net")


def test_output_of_another_kind_in_training_is_named(write_module: WriteModule) -> None:
    """As torchvision's inception_v3 and googlenet do, which add auxiliary logits."""
    name = write_module("""
        class net(nn.Linear):
            def __init__(self): super().__init__(144, 4)
            def forward(self, x):
                logits = super().forward(x.flatten(1))
                return (logits, logits) if self.training else logits
    """)
    with pytest.raises(UserError, match=r"must return logits of shape .* got tuple"):
        build(f"{name}:net")


def test_model_that_cannot_take_the_images_is_named(write_module: WriteModule) -> None:
    name = write_module("def net(): return nn.Sequential(nn.Flatten(), nn.Linear(7, 4))")
    with pytest.raises(
        UserError, match="cannot process images of 3 x 6 x 8: RuntimeError: "
    ) as caught:
        build(f"{name}:net")
    assert "\n" not in str(caught.value)


def test_trying_out_does_not_draw_random_numbers(write_module: WriteModule) -> None:
    name = write_module(f"def net():\n    {LINEAR[:-1]}, nn.Dropout())")
    torch.manual_seed(0)
    build(f"{name}:net")
    after = torch.rand(3)
    torch.manual_seed(0)
    nn.Linear(3 * 6 * 8, 4)
    assert torch.equal(after, torch.rand(3))
