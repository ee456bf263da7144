"""Networks on a GPU: batch norm, flat parameters, architectures, the path through the origin."""

from __future__ import annotations

import copy

import pytest
import torch
import torch.nn.functional as F
from cuda_tools import (
    SINGLE,
    assert_bitwise,
    assert_near,
    convnet,
    draw,
    image_batches,
    moved,
    weights_of,
)
from torch import Tensor, nn

from fge.curves import OriginPath
from fge.networks import (
    FlatParameters,
    build_model,
    flatten,
    preserved,
    refresh_batch_norm,
    unflatten,
    write_parameters,
)

pytestmark = pytest.mark.cuda


# ------------------------------------------------------------------------------------- batch norm


def column(*values: float) -> Tensor:
    return torch.tensor(values)[:, None]


@pytest.mark.parametrize("momentum", [0.1, None])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_refreshed_statistics_have_the_reference_values(
    accelerator: torch.device, dtype: torch.dtype, momentum: float | None
) -> None:
    layer = nn.BatchNorm1d(1, momentum=momentum).to(accelerator, dtype)
    batches = [column(0, 2, 4, 6).to(dtype), column(10, 20).to(dtype)]
    assert refresh_batch_norm(layer, batches) == 6
    assert layer.running_mean is not None
    assert layer.running_var is not None
    assert layer.running_mean.device == accelerator
    # The published reference implementation gives 21.1111107, in float32.
    assert layer.running_mean.item() == pytest.approx(7, abs=1e-5)
    assert layer.running_var.item() == pytest.approx((4 * 20 / 3 + 2 * 50) / 6, abs=1e-5)
    assert layer.num_batches_tracked == 2
    assert layer.momentum == momentum


def cnn() -> nn.Sequential:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return nn.Sequential(
            nn.Conv2d(2, 3, 3), nn.BatchNorm2d(3), nn.ReLU(), nn.Dropout(0.5), nn.Flatten(),
            nn.Linear(27, 4), nn.BatchNorm1d(4, momentum=None),
        ).double()  # fmt: skip


def test_batches_are_moved_to_the_models_device(accelerator: torch.device) -> None:
    model, twin, x = cnn().to(accelerator), cnn(), draw(6, 2, 5, 5) * 2 + 3
    assert refresh_batch_norm(model, [(x, torch.zeros(6))]) == refresh_batch_norm(twin, [x])
    for name, expected in twin.state_dict().items():
        # Means of 54 numbers in float64, behind a sum of 18 terms.
        assert_near(model.state_dict()[name], expected, rtol=1e-12, atol=1e-12)


def test_statistics_of_several_batches_are_weighted_means(accelerator: torch.device) -> None:
    x = draw(16, 3) * 2 + 3
    parts = list(torch.split(x, [5, 2, 9]))
    layer = nn.BatchNorm1d(3, dtype=torch.float64, device=accelerator)
    assert refresh_batch_norm(layer, parts) == 16
    assert_near(layer.running_mean, x.mean(0), rtol=1e-12)
    expected = sum(len(part) * part.var(0) for part in parts) / len(x)
    assert_near(layer.running_var, expected, rtol=1e-12)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_autocast_of_the_caller_is_off_while_statistics_are_estimated(
    accelerator: torch.device, dtype: torch.dtype
) -> None:
    x = moved(draw(40, 6, dtype=torch.float32), accelerator)
    model = nn.Sequential(nn.Linear(6, 3), nn.BatchNorm1d(3)).to(accelerator)
    refresh_batch_norm(model, [x])
    expected = copy.deepcopy(model.state_dict())
    with torch.autocast(accelerator.type, dtype):
        refresh_batch_norm(model, [x])
        assert model[0](x).dtype == dtype
    for name, value in expected.items():
        # The same kernels on the same numbers; half precision would differ by 2^-12 at least.
        assert_near(model.state_dict()[name], value, rtol=10 * SINGLE, atol=10 * SINGLE)


# ----------------------------------------------------------------------------- flat parameters


class Net(nn.Module):
    """Convolution, batch norm, tied weights and a frozen weight."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(2, 4, 3, padding=1)
        self.bn = nn.BatchNorm2d(4)
        self.encoder = nn.Linear(4, 4, bias=False)
        self.frozen = nn.Linear(4, 4).requires_grad_(False)
        self.decoder = nn.Linear(4, 4, bias=True)
        self.decoder.weight = self.encoder.weight
        self.scale = nn.Parameter(torch.tensor(1.5))

    def forward(self, x: Tensor) -> Tensor:
        x = self.bn(self.conv(x)).relu().mean((2, 3))
        outputs: Tensor = self.decoder(self.frozen(self.encoder(x)).tanh()) * self.scale
        return outputs


def net(seed: int = 0) -> Net:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return Net().double()


INPUTS, TARGETS = draw(6, 2, 5, 5, seed=7), torch.arange(6) % 4


def test_models_on_the_device_are_seated_there(accelerator: torch.device) -> None:
    model = net().to(accelerator).to(memory_format=torch.channels_last)
    twin = net()
    flat = FlatParameters(model)
    assert flat.vector.device == flat.gradient.device == accelerator
    assert torch.equal(flat.unpack(flat.vector).cpu(), weights_of(twin))
    assert torch.equal(flat.pack(flat.unpack(flat.vector)), flat.vector)
    F.cross_entropy(model(INPUTS.to(accelerator)), TARGETS.to(accelerator)).backward()
    F.cross_entropy(twin(INPUTS), TARGETS).backward()
    for name, gradient in flat.layout.split(flat.unpack(flat.gradient)).items():
        expected = twin.get_parameter(name).grad
        if expected is None:  # frozen
            assert not gradient.any()
        else:  # float64 in sums of at most 150 terms
            assert_near(gradient, expected, rtol=1e-9, atol=1e-12)


def test_weights_go_to_a_vector_and_back_from_any_device(accelerator: torch.device) -> None:
    model, other = net().to(accelerator), net(1)
    for weights in (other, other.state_dict(), copy.deepcopy(other).to(accelerator)):
        vector = flatten(weights, model)
        assert vector.device == accelerator
        assert torch.equal(vector.cpu(), weights_of(other))
    before = copy.deepcopy(model.state_dict())
    with preserved(model):
        write_parameters(model, weights_of(other))  # from the CPU
        assert torch.equal(weights_of(model), weights_of(other))
        model(INPUTS.to(accelerator))
    assert_bitwise(dict(model.state_dict()), dict(before))
    parts = unflatten(flatten(model, model), model)
    assert_bitwise(parts, {name: p.detach() for name, p in model.named_parameters()})


# ---------------------------------------------------------------------------------- architectures


@pytest.mark.parametrize("channels_last", [False, True])
@pytest.mark.parametrize("name", ["convnet", "preresnet20"])
def test_architectures_compute_what_they_do_on_the_cpu_in_float64(
    accelerator: torch.device, name: str, channels_last: bool
) -> None:
    torch.manual_seed(0)
    plain = build_model(name, in_channels=3, num_classes=3, image_size=(8, 8)).double()
    model = copy.deepcopy(plain).to(accelerator, torch.float32)
    if channels_last:
        model.to(memory_format=torch.channels_last)
    ((inputs, targets),) = image_batches(8)
    expected = F.cross_entropy(plain(inputs), targets)
    expected.backward()
    images = inputs.to(accelerator, torch.float32)
    if channels_last:
        images = images.contiguous(memory_format=torch.channels_last)
    loss = F.cross_entropy(model(images), targets.to(accelerator))
    loss.backward()
    # Twenty layers of float32 sums of up to 600 terms, each rounded at 6e-8, batch norm between.
    assert_near(loss, expected, rtol=1e-4)
    for name_of, parameter in plain.named_parameters():
        scale = float(parameter.grad.abs().max())  # type: ignore[union-attr]
        assert_near(model.get_parameter(name_of).grad, parameter.grad, atol=1e-3 * scale + 1e-6)


@torch.no_grad()
def test_logits_shrink_by_one_power_on_the_path_through_the_origin(
    accelerator: torch.device,
) -> None:
    model = convnet().eval().to(accelerator)
    for tensor in (model[1].running_mean, model[1].bias, model[4].bias, model[7].bias):
        tensor.copy_(0.3 * draw(*tensor.shape))  # type: ignore[union-attr,operator]
    inputs = moved(image_batches(4)[0][0], accelerator)
    path, expected = OriginPath(model), model(inputs)
    for t in (0.9, 0.5, 0.1):
        logits = path.model_at(t)(inputs) / t**path.output_degree
        assert_near(logits, expected, rtol=1e-9, atol=1e-9)  # float64, divided by t^degree
    assert not path.model_at(0.0)(inputs).any()
    assert torch.equal(path.model_at(1.0)(inputs), expected)
