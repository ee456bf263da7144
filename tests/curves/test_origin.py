"""The trivial path: logits shrink by one power of t; what is not homogeneous is named."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable
from typing import Any, cast

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils.parametrizations import weight_norm

from fge.curves import OriginPath, TrivialPath
from fge.errors import UserError
from fge.networks import build_model

TS = (0.9, 0.5, 0.1)


def randomised(model: nn.Module, seed: int = 0) -> nn.Module:
    """Give every parameter and running statistic of a model a value of its own, in float64."""
    rng = torch.Generator().manual_seed(seed)
    model = model.double().eval()
    with torch.no_grad():
        for module in model.modules():
            if isinstance(module, nn.modules.batchnorm._BatchNorm):
                module.eps = 0.03  # large enough to be missed
                for tensor in (module.weight, module.running_var):
                    if tensor is not None:
                        tensor.uniform_(0.5, 1.5, generator=rng)
                for tensor in (module.bias, module.running_mean):
                    if tensor is not None:
                        tensor.normal_(0, 0.3, generator=rng)
            elif isinstance(getattr(module, "bias", None), nn.Parameter):
                module.bias.normal_(0, 0.3, generator=rng)
    return model


def images_of(channels: int, side: int, count: int = 2) -> Tensor:
    rng = torch.Generator().manual_seed(9)
    return torch.randn(count, channels, side, side, generator=rng, dtype=torch.float64)


@torch.no_grad()
def assert_homogeneous(model: nn.Module, inputs: Tensor) -> OriginPath:
    """Check that the logits at t, over t^degree, are those of the network; return the path."""
    path = OriginPath(model)
    expected = model(inputs)
    scale = float(expected.abs().max())
    assert scale > 1e-3, "the outputs say something"
    for t in TS:
        logits = path.model_at(t)(inputs) / t**path.output_degree
        torch.testing.assert_close(logits, expected, rtol=1e-9, atol=1e-9 * scale)
    assert set(path.exponents) == {name for name, _ in model.named_parameters()}
    assert min(path.exponents.values()) >= 1
    if path.output_degree:
        assert bool((path.model_at(0.0)(inputs) == 0).all())
    return path


class Residual(nn.Module):
    def __init__(self, body: nn.Module, shortcut: nn.Module | None = None) -> None:
        super().__init__()
        self.body = body
        self.shortcut = shortcut or nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        return self.body(x) + self.shortcut(x)


class DenseBlock(nn.Module):
    """Batch norm first, the new channels beside those that came in."""

    def __init__(self, inputs: int) -> None:
        super().__init__()
        self.norm = nn.BatchNorm2d(inputs)
        self.conv = nn.Conv2d(inputs, 3, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        return torch.cat([x, self.conv(F.relu(self.norm(x)))], dim=1)


class Calls(nn.Module):
    """A network whose own operation stands between two linear layers."""

    def __init__(self, operation: Callable[[nn.Module, Tensor], Tensor]) -> None:
        super().__init__()
        self.first = nn.Linear(6, 8)
        self.second = nn.Linear(8, 3)
        self.scale = nn.Parameter(torch.linspace(0.5, 1.5, 8))
        self.shift = nn.Parameter(torch.linspace(-0.5, 0.5, 8))
        self.register_buffer("mask", torch.linspace(0.1, 0.9, 8))
        self.operation = operation

    def forward(self, x: Tensor) -> Tensor:
        return self.second(self.operation(self, self.first(x)))


def vector_inputs() -> Tensor:
    return images_of(1, 6)[:, 0].flatten(0, 1)


@pytest.mark.parametrize(
    ("name", "channels", "side", "degree"),
    [
        ("convnet", 1, 12, 2),
        ("preresnet20", 3, 8, 2),
        pytest.param("vgg16", 3, 32, 16, marks=pytest.mark.slow),
        pytest.param("vgg16-bn", 3, 32, 4, marks=pytest.mark.slow),
        pytest.param("preresnet164", 3, 8, 2, marks=pytest.mark.slow),
        pytest.param("torchvision:resnet18", 3, 32, 2, marks=pytest.mark.slow),
        pytest.param("torchvision:squeezenet1_0", 3, 32, 18, marks=pytest.mark.slow),
    ],
)
def test_the_logits_of_known_networks_scale_with_one_power(
    name: str, channels: int, side: int, degree: int
) -> None:
    torch.manual_seed(0)  # with some initial weights the last ReLU of a SqueezeNet gives only zeros
    model = build_model(name, in_channels=channels, num_classes=10, image_size=(side, side))
    path = assert_homogeneous(randomised(model), images_of(channels, side))
    assert path.output_degree == degree


def test_a_dense_network_needs_a_second_power_in_its_stem() -> None:
    model = nn.Sequential(
        nn.Conv2d(2, 4, 3, padding=1), DenseBlock(4), DenseBlock(7), nn.AvgPool2d(2), nn.Flatten()
    )
    path = assert_homogeneous(randomised(model), images_of(2, 4))
    assert path.output_degree == 2
    assert path.exponents["0.weight"] == 2
    assert path.exponents["0.bias"] == 2
    assert path.exponents["1.norm.weight"] == path.exponents["1.norm.bias"] == 1
    assert path.exponents["1.conv.weight"] == 1
    assert path.exponents["1.conv.bias"] == 2
    assert path.buffer_exponents == {
        "1.norm.running_mean": 2,
        "1.norm.running_var": 4,
        "2.norm.running_mean": 2,
        "2.norm.running_var": 4,
    }
    assert path.eps_exponents == {"1.norm": 4, "2.norm": 4}


def test_a_plain_network_has_first_powers_and_biases_by_depth() -> None:
    model = nn.Sequential(nn.Linear(6, 5), nn.ReLU(), nn.Linear(5, 4), nn.LeakyReLU(0.2))
    path = assert_homogeneous(randomised(model), vector_inputs())
    assert path.exponents == {"0.weight": 1, "0.bias": 1, "2.weight": 1, "2.bias": 2}
    assert path.output_degree == 2


def test_a_pre_activation_block_takes_what_its_trunk_lacks() -> None:
    body = nn.Sequential(nn.BatchNorm1d(5), nn.ReLU(), nn.Linear(5, 5))
    deep = nn.Sequential(nn.Linear(5, 5), nn.Linear(5, 5), nn.Linear(5, 5))
    path = assert_homogeneous(
        randomised(nn.Sequential(nn.Linear(6, 5), deep, Residual(body))), vector_inputs()
    )
    assert path.output_degree == 4
    norm, linear = path.exponents["2.body.0.weight"], path.exponents["2.body.2.weight"]
    assert norm + linear == 4
    assert path.exponents["2.body.2.bias"] == 4
    assert path.buffer_exponents["2.body.0.running_mean"] == 4
    assert path.buffer_exponents["2.body.0.running_var"] == path.eps_exponents["2.body.0"] == 8


@pytest.mark.parametrize(
    "layer",
    [
        nn.Conv1d(1, 2, 3),
        nn.ConvTranspose1d(1, 2, 3),
        nn.Conv1d(1, 2, 3, padding=1, padding_mode="circular"),
        nn.BatchNorm1d(1),
        nn.BatchNorm1d(1, affine=False),
        nn.BatchNorm1d(1, track_running_stats=False),
    ],
    ids=lambda layer: str(layer)[:60],
)
def test_layers_of_weights_and_statistics(layer: nn.Module) -> None:
    model = nn.Sequential(nn.Unflatten(1, (1, 8)), nn.Linear(8, 8), layer, nn.ReLU(), nn.Flatten())
    outputs = assert_homogeneous(
        randomised(nn.Sequential(nn.Linear(6, 8), model)), vector_inputs()
    ).output_degree
    affine = getattr(layer, "affine", None)
    assert outputs == {None: 3, True: 1, False: 0}[affine]


@pytest.mark.parametrize("dimensions", [2, 3])
def test_convolutions_and_pools_of_images_and_volumes(dimensions: int) -> None:
    n = dimensions
    kinds = {k: getattr(nn, f"{k}{n}d") for k in ("Conv", "ConvTranspose", "BatchNorm", "MaxPool")}
    pools = [getattr(nn, f"{k}{n}d") for k in ("AvgPool", "AdaptiveMaxPool", "AdaptiveAvgPool")]
    model = nn.Sequential(
        kinds["Conv"](2, 3, 2),
        kinds["BatchNorm"](3),
        nn.ReLU(inplace=True),
        kinds["ConvTranspose"](3, 2, 2),
        getattr(nn, f"ReplicationPad{n}d")(1),
        kinds["MaxPool"](2, stride=1),
        pools[0](2, stride=1),
        nn.Upsample(scale_factor=2),
        pools[1](3),
        pools[2](1),
        nn.Flatten(),
        nn.Dropout(),
    )
    rng = torch.Generator().manual_seed(1)
    inputs = torch.randn(2, 2, *[5] * n, generator=rng, dtype=torch.float64)
    assert assert_homogeneous(randomised(model), inputs).output_degree == 2


OPERATIONS: dict[str, tuple[Callable[[Any, Tensor], Tensor], int]] = {
    "relu": (lambda _, x: F.relu(x, inplace=True), 2),
    "method relu": (lambda _, x: x.relu_(), 2),
    "leaky relu": (lambda _, x: F.leaky_relu(x, 0.1), 2),
    "dropout": (lambda m, x: F.dropout(x, 0.5, m.training), 2),
    "reshape": (lambda _, x: x.view(x.size(0), -1).reshape(x.shape[0], 8), 2),
    "transposed": (lambda _, x: x.T.permute(1, 0), 2),
    "mean": (lambda _, x: x - x.mean(dim=1, keepdim=True) + x.sum(1, keepdim=True), 2),
    "pooled": (lambda _, x: F.max_pool1d(F.avg_pool1d(x, 3, 1, 1), 3, 1, 1), 2),
    "adaptive": (lambda _, x: F.adaptive_max_pool1d(F.adaptive_avg_pool1d(x, 8), 8), 2),
    "padded": (lambda _, x: F.pad(x[:, ::2], (2, 2)), 2),
    "chunked": (lambda _, x: torch.cat([-x.chunk(2, 1)[1], x[:, :4]], 1), 2),
    "summed": (lambda _, x: sum([x, x, x]), 2),
    "times a number": (lambda _, x: 0.5 * x / 3, 2),
    "times a buffer": (lambda m, x: x * m.mask / m.mask.sum(), 2),
    "times a weight": (lambda m, x: x * m.scale.view(1, -1), 3),
    "plus a weight": (lambda m, x: x + m.shift, 2),
    "linear": (lambda m, x: F.linear(x, m.scale * torch.ones(8, 1), bias=m.shift), 3),
    "linear of a layer": (lambda m, x: F.linear(x, weight=m.first.weight @ m.first.weight.T), 4),
    "maximum": (lambda _, x: torch.maximum(x, -2 * x), 2),
    "absolute": (lambda _, x: abs(x), 2),
    "product by name": (lambda m, x: torch.mul(input=x, other=m.scale.view(1, -1)), 3),
    "matrix by name": (
        lambda m, x: torch.matmul(input=x, other=m.first.weight @ m.first.weight.T),
        4,
    ),
    "quotient by name": (lambda _, x: torch.div(input=x, other=3), 2),
    "sum by name": (lambda m, x: torch.add(input=x * m.scale, other=m.shift), 3),
}


@pytest.mark.parametrize("name", OPERATIONS)
def test_operations_between_layers(name: str) -> None:
    operation, degree = OPERATIONS[name]
    inputs = vector_inputs()
    path = assert_homogeneous(randomised(Calls(operation)), inputs)
    assert path.output_degree == degree


def test_inputs_may_be_normalised_by_constants() -> None:
    class Normalised(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.register_buffer("mean", torch.tensor(0.3))
            self.linear = nn.Linear(6, 3)

        def forward(self, x: Tensor, flip: bool = False, mask: Tensor | None = None) -> Tensor:
            x = (x - self.mean) / 0.25 + 1.0
            if flip:
                x = -x
            return self.linear(x if mask is None else x * mask)

    path = assert_homogeneous(randomised(Normalised()), vector_inputs())
    assert path.output_degree == 1
    assert path.buffer_exponents == {}


def test_tied_weights_and_shared_layers_have_one_power() -> None:
    class Shared(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first = nn.Linear(6, 6, bias=False)
            self.tied = nn.Linear(6, 6, bias=False)
            self.tied.weight = self.first.weight
            self.norm = nn.BatchNorm1d(6)
            self.relu = nn.ReLU(inplace=True)

        def forward(self, x: Tensor) -> Tensor:
            x = self.norm(self.relu(self.first(x)))
            return self.norm(self.relu(self.tied(self.tied(x) - self.first(x))))

    with pytest.raises(
        UserError, match=r"layer 'norm' \(BatchNorm1d\) joins terms with unequal powers of t"
    ):
        OriginPath(Shared())

    class Loop(Shared):
        def forward(self, x: Tensor) -> Tensor:
            x = self.norm(self.first(x))
            return self.relu(self.norm(self.relu(x)))

    path = assert_homogeneous(randomised(Loop()), vector_inputs())
    assert "tied.weight" not in path.exponents
    assert path.exponents == {"first.weight": 1, "norm.weight": 1, "norm.bias": 1}
    assert path.eps_exponents == {"norm": 2}


def test_a_tied_bias_decides_over_other_powers() -> None:
    model = nn.Sequential(nn.Linear(6, 6), nn.ReLU(), nn.BatchNorm1d(6), nn.Linear(6, 6))
    model[3].bias = model[0].bias
    path = assert_homogeneous(randomised(model), vector_inputs())
    assert path.exponents["0.bias"] == path.exponents["0.weight"] == path.output_degree == 2


def test_parameters_that_play_no_part_go_to_the_origin_too() -> None:
    path = OriginPath(Calls(lambda _, x: x))
    assert path.exponents["scale"] == path.exponents["shift"] == 1
    assert bool((path.model_at(0.0).get_parameter("scale") == 0).all())


def test_users_own_layers_are_recognised_only_with_an_unchanged_forward() -> None:
    class Plain(nn.Linear):
        pass

    class Gated(nn.Linear):
        def forward(self, input: Tensor) -> Tensor:  # noqa: A002
            return super().forward(input).sigmoid()

    class PlainNorm(nn.BatchNorm1d):
        pass

    model = nn.Sequential(Plain(6, 3), PlainNorm(3), Plain(3, 3))
    assert assert_homogeneous(randomised(model), vector_inputs()).output_degree == 2
    with pytest.raises(UserError, match=r"'sigmoid' in '0' \(Gated\) is not known"):
        OriginPath(nn.Sequential(Gated(6, 3)))


def test_the_error_is_constant_and_the_cross_entropy_tends_to_log_classes() -> None:
    model = build_model("preresnet20", in_channels=3, num_classes=5, image_size=(8, 8))
    path = OriginPath(randomised(model))
    inputs, targets = images_of(3, 8, 20), torch.arange(20) % 5
    with torch.no_grad():
        expected = model.double().eval()(inputs).argmax(1)
        for t in (1.0, 0.3, 1e-2, 1e-4):
            logits = path.model_at(t)(inputs)
            assert torch.equal(logits.argmax(1), expected)
        loss = float(F.cross_entropy(logits, targets))
        assert loss == pytest.approx(math.log(5), abs=1e-6)
        origin = path.model_at(0.0)
        assert float(F.cross_entropy(origin(inputs), targets)) == pytest.approx(math.log(5))
    assert all(bool((p == 0).all()) for p in origin.parameters())


def test_at_1_it_is_the_network_and_the_network_is_not_changed() -> None:
    model = randomised(nn.Sequential(nn.Linear(6, 4), nn.BatchNorm1d(4), nn.Dropout())).train()
    before = copy.deepcopy(model.state_dict())
    path = OriginPath(nn.DataParallel(model))
    at_one = path.model_at(1.0)
    path.model_at(0.5)
    for state in (at_one.state_dict(), path.model_at(1.0).state_dict(), model.state_dict()):
        assert list(state) == list(before)
        assert all(torch.equal(state[name], before[name]) for name in before)
    assert model.training
    assert model[1].eps == at_one[1].eps == 0.03  # type: ignore[index]
    assert not any(module.training for module in at_one.modules())


def test_the_path_between_two_networks_passes_the_origin_half_way() -> None:
    def make(seed: int) -> nn.Module:
        torch.manual_seed(seed)
        layers = nn.Sequential(nn.Linear(6, 4), nn.BatchNorm1d(4), nn.ReLU(), nn.Linear(4, 3))
        return randomised(layers, seed)

    first, second = make(1), make(2)
    path = TrivialPath(OriginPath(first), OriginPath(second))
    inputs = vector_inputs()
    with torch.no_grad():
        for t, model, factor in ((0, first, 1), (0.25, first, 0.5), (0.9, second, 0.8)):
            expected = model(inputs) * factor**2
            actual = path.model_at(t)(inputs)
            torch.testing.assert_close(actual, expected, rtol=1e-9, atol=1e-12)
        assert torch.equal(path.model_at(1.0)(inputs), second(inputs))
        assert float(path.model_at(0.5)(inputs).abs().max()) == 0
    middle = path.model_at(0.5).state_dict()
    assert all(bool((t == 0).all()) for n, t in middle.items() if "num_batches" not in n)


def test_networks_of_two_architectures_have_no_common_path() -> None:
    plain = nn.Sequential(nn.Linear(4, 4))
    for other in (nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 4)), nn.Sequential(nn.Linear(4, 5))):
        with pytest.raises(UserError, match=r"must have the same architecture"):
            TrivialPath(OriginPath(plain), OriginPath(other))


@pytest.mark.parametrize("t", [-0.1, 1.5, math.nan])
def test_points_outside_the_path_are_refused(t: float) -> None:
    path = OriginPath(nn.Sequential(nn.Linear(2, 2)))
    for trivial in (path, TrivialPath(path, path)):
        with pytest.raises(UserError, match=rf"t must be from 0 .* got {t}"):
            trivial.model_at(t)


def test_powers_that_underflow_are_refused() -> None:
    deep = nn.Sequential(*[nn.Linear(4, 4) for _ in range(30)])
    path = OriginPath(deep)
    with pytest.raises(UserError, match=r"t = 0\.01 .* underflow; give 0, or at least 0\.0544"):
        path.model_at(0.01)
    bias = path.model_at(path.smallest_t * 1.0001).get_parameter("29.bias")
    assert bool((bias != 0).all())
    assert OriginPath(deep.double()).smallest_t < 1e-10


def test_the_smallest_t_keeps_eps_above_underflow() -> None:
    model = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 4), nn.BatchNorm1d(4), nn.Linear(4, 2))
    with torch.no_grad():
        model[0].weight.zero_()  # what comes in is 0 and so is the variance: eps alone is left
        model[2].running_var.zero_()
    path = OriginPath(model)
    outputs = path.model_at(path.smallest_t * 1.01)(torch.ones(2, 4))
    assert bool(torch.isfinite(outputs).all())


REFUSED: dict[str, tuple[nn.Module, str]] = {
    "gelu": (nn.GELU(), r"layer '1\.0' \(GELU\) is not known to be homogeneous"),
    "layer norm": (nn.LayerNorm(6), r"layer '1\.0' \(LayerNorm\)"),
    "softmax": (nn.Softmax(1), r"layer '1\.0' \(Softmax\)"),
    "sigmoid": (nn.Sigmoid(), r"layer '1\.0' \(Sigmoid\)"),
    "tanh": (nn.Tanh(), r"layer '1\.0' \(Tanh\)"),
    "prelu": (nn.PReLU(), r"layer '1\.0' \(PReLU\)"),
    "relu6": (nn.ReLU6(), r"layer '1\.0' \(ReLU6\)"),
    "attention": (nn.TransformerEncoderLayer(6, 2), r"layer '1\.0' \(TransformerEncoderLayer\)"),
    "weight norm": (weight_norm(nn.Linear(6, 6)), r"layer '1\.0' .*\(a parametrization\)"),
    "identity shortcut": (
        Residual(nn.Linear(6, 6)),
        r"'add' in '1\.0' \(Residual\) joins terms with unequal powers of t",
    ),
}


class Reads(nn.Module):
    """Returns an attribute of its input, which may be more than a constant."""

    def __init__(self, name: str) -> None:
        super().__init__()
        self.name = name

    def forward(self, x: Tensor) -> Tensor:
        return cast("Tensor", getattr(x, self.name))


@pytest.mark.parametrize("name", ["data", "real", "mT"])
def test_a_part_of_a_tensor_scales_as_it_does(name: str) -> None:
    model = nn.Sequential(nn.Linear(6, 6), nn.ReLU(), Reads(name), nn.Linear(6, 6)).double().eval()
    path, x = OriginPath(model), torch.randn(6, 6, dtype=torch.float64)
    assert path.output_degree == 2
    torch.testing.assert_close(path.model_at(0.5)(x) / 0.5**2, model(x))


def test_an_attribute_that_is_not_known_is_named() -> None:
    model = nn.Sequential(nn.Linear(6, 6), Reads("grad"), nn.Linear(6, 2))
    with pytest.raises(UserError, match=r"the network reads 'grad' of a tensor, which is not kn"):
        OriginPath(model)


@pytest.mark.parametrize("name", REFUSED)
def test_layers_that_are_not_homogeneous_are_named(name: str) -> None:
    layer, message = REFUSED[name]
    model = nn.Sequential(nn.Linear(6, 6), nn.Sequential(layer), nn.Linear(6, 2))
    with pytest.raises(UserError, match=rf"no path through the origin: {message}"):
        OriginPath(model)


@pytest.mark.parametrize(
    ("operation", "message"),
    [
        (lambda _, x: F.gelu(x), "'gelu' in the network's forward is not known"),
        (lambda _, x: x.softmax(1), "'softmax' in .* is not known"),
        (lambda _, x: F.layer_norm(x, (8,)), "'layer_norm' in .* is not known"),
        (lambda _, x: F.batch_norm(x, None, None, training=True), "'batch_norm' in .* not known"),
        (lambda _, x: x * x, "'mul' in .* combines two activations, which is not supp"),
        (
            lambda _, x: torch.matmul(x, x.T) @ x,
            "'matmul' in .* combines two activations, which is not supp",
        ),
        (lambda m, x: x / m.scale, "'truediv' in .* divides by something that scales"),
        (lambda _, x: 1 / x, "'truediv' in .* divides by something that scales"),
        (lambda _, x: x // 2, "'floordiv' in .* is not known"),
        (lambda _, x: torch.div(x, 2, rounding_mode="floor"), "'div' in .* rounds"),
        (lambda _, x: x + 1, "'add' in the network's forward joins terms with unequal"),
        (lambda m, x: x - m.mask, "'sub' in the network's forward joins terms with unequal"),
        (lambda _, x: F.dropout(x), "'dropout' in .* is active in evaluation mode too"),
        (lambda _, x: F.pad(x, (0, 0), value=1.0), "'pad' in .* value other than 0"),
        (lambda _, x: F.linear(x, x), "'linear' in .* weights from activations"),
    ],
)
def test_operations_that_are_not_homogeneous_are_named(
    operation: Callable[[Any, Tensor], Tensor], message: str
) -> None:
    with pytest.raises(UserError, match=rf"no path through the origin: .*{message}"):
        OriginPath(Calls(operation))


def test_writing_into_activations_is_not_overlooked() -> None:
    def overwrite(_: nn.Module, x: Tensor) -> Tensor:
        x.clamp_(max=1.0)
        return x

    def assign(_: nn.Module, x: Tensor) -> Tensor:
        x[:, 0] = 1.0
        return x

    for operation, message in ((overwrite, "'clamp_' in .* not known"), (assign, "cannot trace")):
        with pytest.raises(UserError, match=message):
            OriginPath(Calls(operation))


def test_a_model_that_cannot_be_traced_is_named_with_the_reason() -> None:
    with pytest.raises(UserError, match=r"torch\.fx cannot trace Calls.*TraceError") as raised:
        OriginPath(Calls(lambda _, x: x if x.sum() > 0 else -x))
    assert "\n" not in str(raised.value)


def test_hooks_are_refused() -> None:
    model = nn.Sequential(nn.Linear(2, 2))
    model[0].register_forward_hook(lambda *call: call[-1] + 1)
    with pytest.raises(
        UserError, match=r"layer '0' \(Linear\) has hooks, which may change its output; remove"
    ):
        OriginPath(model)
    outer = nn.Sequential(nn.Linear(2, 2))
    outer.register_forward_hook(lambda *call: call[-1] + 1)
    with pytest.raises(UserError, match=r"the network has hooks"):
        OriginPath(outer)
