"""Hessians of a model on a GPU, against dense ones of torch.func on the CPU in float64."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from cuda_tools import (
    assert_bitwise,
    assert_near,
    convnet,
    draw,
    image_batches,
    image_split,
    moved,
)
from torch import Tensor, nn

from fge.data import EvalBatches, Normaliser
from fge.landscape import HessianOperator, SharpnessProbe, spectral_density, top_eigenvalues, trace
from fge.landscape.lanczos import largest_eigenpairs
from fge.landscape.sharpness import random_signs, start_vectors
from fge.seeds import generator
from fge.train import Learner

pytestmark = pytest.mark.cuda

CLASSES = 5


def labels(count: int, classes: int = 3) -> Tensor:
    return torch.arange(count) % classes


def initialised(model: nn.Module, seed: int = 1) -> nn.Module:
    """Return the model in float64, with parameters and statistics that are nothing special."""
    model.double()
    with torch.no_grad():
        for index, parameter in enumerate(model.parameters()):
            parameter.copy_(0.5 * draw(*parameter.shape, seed=seed + index))
        for module in model.modules():
            if isinstance(module, nn.BatchNorm1d | nn.BatchNorm2d):
                module.running_mean.copy_(draw(module.num_features, seed=seed + 50))
                module.running_var.copy_(draw(module.num_features, seed=seed + 51).square() + 0.5)
    return model


def mlp(classes: int = 3) -> nn.Module:
    return initialised(nn.Sequential(nn.Linear(4, 5), nn.Tanh(), nn.Linear(5, classes)))


def small_convnet() -> nn.Module:
    return initialised(
        nn.Sequential(
            nn.Conv2d(1, 3, 3, bias=False), nn.BatchNorm2d(3), nn.ReLU(inplace=True),
            nn.Conv2d(3, 2, 2), nn.MaxPool2d(2), nn.Flatten(), nn.Linear(2, 3),
        )
    )  # fmt: skip


class Attention(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.inner = nn.MultiheadAttention(4, 2, batch_first=True)

    def forward(self, x: Tensor) -> Tensor:
        return self.inner(x, x, x, need_weights=False)[0].mean(1)[:, :3]


CASES: dict[str, tuple[Callable[[], nn.Module], tuple[int, ...]]] = {
    "mlp": (mlp, (4,)),
    "convnet": (small_convnet, (1, 5, 5)),
    "attention": (lambda: initialised(Attention()), (3, 4)),
}


def model_hessian(model: nn.Module, inputs: Tensor, targets: Tensor) -> Tensor:
    """Return the dense Hessian (P, P) of the mean cross-entropy in evaluation mode."""
    parameters = dict(model.eval().named_parameters())
    sizes = [p.numel() for p in parameters.values()]

    def flat_loss(vector: Tensor) -> Tensor:
        parts = zip(parameters.items(), torch.split(vector, sizes), strict=True)
        named = {name: part.view(p.shape) for (name, p), part in parts}
        with torch.nn.attention.sdpa_kernel(torch.nn.attention.SDPBackend.MATH):
            outputs = torch.func.functional_call(model, named, (inputs,))
        return F.cross_entropy(outputs, targets)

    flat = torch.cat([p.detach().reshape(-1) for p in parameters.values()])
    return torch.func.hessian(flat_loss)(flat).detach()  # type: ignore[no-any-return]


def operator(model: nn.Module, data: Any, **options: Any) -> HessianOperator:
    return HessianOperator(model, F.cross_entropy, data, **options)


# --------------------------------------------------------------------------------------- products


@pytest.mark.parametrize("memory", [0, 2**30], ids=["recomputed", "kept"])
@pytest.mark.parametrize("name", CASES)
def test_products_in_uneven_chunks_are_those_of_the_dense_hessian(
    accelerator: torch.device, name: str, memory: int
) -> None:
    make, shape = CASES[name]
    inputs, targets = draw(11, *shape), labels(11)
    expected = model_hessian(make(), inputs, targets)
    batches = list(zip(inputs.split((7, 4)), targets.split((7, 4)), strict=True))
    hessian = operator(make().to(accelerator), batches, chunk=3, graph_memory=memory)
    vector = draw(hessian.size, seed=7)
    for _ in range(2):
        found = hessian.matvec(vector.to(accelerator))
        assert found.device == accelerator
        # float64 in sums of at most 300 terms, twice differentiated.
        assert_near(found, expected @ vector, rtol=0, atol=1e-11)
    assert_near(hessian.matvec(vector), expected @ vector, atol=1e-11)  # a vector from the CPU
    assert hessian.keeps_all_graphs == (memory > 0)


def test_products_on_cuda_are_those_of_the_cpu(accelerator: torch.device) -> None:
    data = [(draw(12, 1, 5, 5), labels(12))]
    expected = operator(small_convnet(), data, chunk=5).dense()
    found = operator(small_convnet().to(accelerator), data, chunk=5).dense()
    assert found.device == accelerator
    assert_near(found, expected, atol=1e-9)
    decayed = operator(small_convnet().to(accelerator), data, weight_decay=0.25).dense()
    assert_near(decayed, expected + 0.25 * torch.eye(len(expected)), atol=1e-9)


class Recurrent(nn.Module):
    """A network whose recurrent layer cuDNN computes, without second derivatives."""

    def __init__(self, layer: type[nn.RNNBase]) -> None:
        super().__init__()
        self.layer = layer(4, 3, batch_first=True)
        self.head = nn.Linear(3, 3)

    def forward(self, x: Tensor) -> Tensor:
        outputs: Tensor = self.head(self.layer(x)[0][:, -1])
        return outputs


@pytest.mark.parametrize("layer", [nn.RNN, nn.LSTM, nn.GRU])
def test_recurrent_layers_have_the_hessian_of_the_cpu(
    accelerator: torch.device, layer: type[nn.RNNBase]
) -> None:
    data = [(draw(6, 5, 4), labels(6))]
    expected = operator(initialised(Recurrent(layer)), data).dense()
    hessian = operator(initialised(Recurrent(layer)).to(accelerator), data)
    assert_near(hessian.dense(), expected, atol=1e-9)
    assert hessian.agreement is not None
    assert hessian.agreement.difference < 1e-4


def test_batch_statistics_take_part_where_they_are_asked_for(accelerator: torch.device) -> None:
    data = [(draw(9, 1, 5, 5), labels(9))]
    options = {"batch_statistics": True, "chunk": 9}
    expected = operator(small_convnet(), data, **options).dense()
    model = small_convnet().to(accelerator)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    assert_near(operator(model, data, **options).dense(), expected, atol=1e-9)
    assert_bitwise(dict(model.state_dict()), before)
    assert (expected - operator(small_convnet(), data).dense()).abs().max() > 1e-3


def test_the_gradient_is_that_of_the_mean_loss(accelerator: torch.device) -> None:
    batches, model = image_batches(7, 4), convnet().eval()
    found = operator(convnet().to(accelerator), batches, chunk=5).gradient()
    inputs, targets = (torch.cat(parts) for parts in zip(*batches, strict=True))
    F.cross_entropy(model(inputs), targets).backward()
    gradients = [p.grad.reshape(-1) for p in model.parameters()]  # type: ignore[union-attr]
    assert_near(found, torch.cat(gradients), atol=1e-12)


# ------------------------------------------------------------------------------------ eigenvalues


def with_spectrum(values: Tensor) -> Tensor:
    basis, _ = torch.linalg.qr(draw(len(values), len(values), seed=9))
    return (basis * values) @ basis.T


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("count", [1, 3])
def test_lanczos_finds_the_largest_eigenvalues_through_restarts(
    accelerator: torch.device, count: int, dtype: torch.dtype
) -> None:
    matrix = with_spectrum(torch.linspace(-3, 5, 60, dtype=torch.float64)).to(accelerator, dtype)
    start = draw(count, 60, dtype=dtype).to(accelerator)
    found = largest_eigenpairs(
        lambda vector: matrix @ vector, start, tolerance=1e-9, max_products=5000, capacity=16
    )
    expected = torch.linalg.eigvalsh(matrix.cpu().double()).flip(0)[:count]
    assert found.vectors.device == accelerator
    assert found.values.device.type == "cpu"
    # Products of 60 terms of size up to 5 carry 60 * 5 * 2^-24 in float32.
    tolerance = 2e-5 if dtype == torch.float32 else 1e-9
    assert_near(found.values, expected, atol=tolerance)
    assert_near(found.vectors @ found.vectors.T, torch.eye(count), atol=tolerance)
    assert found.converged


def regression() -> nn.Module:
    model = nn.Linear(4, CLASSES, bias=False).double()
    nn.init.zeros_(model.weight)
    return model


def regression_data() -> list[tuple[Tensor, Tensor]]:
    inputs, targets = draw(23, 4), labels(23, CLASSES)
    return list(zip(inputs.split(9), targets.split(9), strict=True))


@pytest.mark.parametrize("k", [1, CLASSES - 1, CLASSES + 1])
def test_softmax_regression_at_zero_has_its_eigenvalue_as_often_as_classes_less_one(
    accelerator: torch.device, k: int
) -> None:
    data = regression_data()
    inputs = torch.cat([x for x, _ in data])
    moments = torch.linalg.eigvalsh(inputs.T @ inputs / len(inputs)).flip(0) / CLASSES
    model = regression().to(accelerator)
    found = top_eigenvalues(model, F.cross_entropy, data, k, tolerance=1e-10)
    assert_near(found.values, moments.repeat_interleave(CLASSES - 1)[:k], rtol=1e-9)
    assert found.converged


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_top_eigenvalues_are_those_of_the_dense_hessian(
    accelerator: torch.device, dtype: torch.dtype
) -> None:
    data = regression_data()
    inputs, targets = (torch.cat(parts) for parts in zip(*data, strict=True))
    expected = torch.linalg.eigvalsh(model_hessian(mlp(CLASSES), inputs, targets)).flip(0)[:3]
    model = mlp(CLASSES).to(accelerator, dtype)
    tolerance = 1e-9 if dtype == torch.float64 else 1e-3
    found = top_eigenvalues(
        model, F.cross_entropy, moved(data, torch.device("cpu"), dtype), 3,
        tolerance=tolerance, vectors=True, weight_decay=0.25, chunk=4,
    )  # fmt: skip
    assert found.vectors is not None
    assert (found.vectors.device, found.vectors.dtype) == (accelerator, dtype)
    # In float32 a value is good to its residual squared, and to sums of some 100 terms.
    assert_near(found.values, expected + 0.25, rtol=1e-9 if dtype == torch.float64 else 1e-5)


def signs_used(hessian: HessianOperator, stream: str, count: int) -> list[Tensor]:
    rng = generator(0, stream)
    return [random_signs(hessian, rng).cpu() for _ in range(count)]


def test_random_vectors_are_the_same_on_every_device(accelerator: torch.device) -> None:
    data = regression_data()
    ours, theirs = (operator(mlp(CLASSES).to(d), data) for d in (accelerator, "cpu"))
    for one, other in zip(
        signs_used(ours, "trace", 3), signs_used(theirs, "trace", 3), strict=True
    ):
        assert torch.equal(one, other)
    assert_near(start_vectors(ours, 2, 0), start_vectors(theirs, 2, 0), atol=1e-12)


def test_the_traces_samples_are_quadratic_forms_of_signs(accelerator: torch.device) -> None:
    data = regression_data()
    hessian = operator(mlp(CLASSES), data)
    matrix = hessian.dense()
    found = trace(mlp(CLASSES).to(accelerator), F.cross_entropy, data, num_samples=4)
    expected = [float(z @ matrix @ z) for z in signs_used(hessian, "trace", 4)]
    assert found.samples.device.type == "cpu"
    assert found.samples.tolist() == pytest.approx(expected, rel=1e-10)


def test_moments_of_the_spectral_density_are_exact(accelerator: torch.device) -> None:
    data = regression_data()
    hessian = operator(mlp(CLASSES), data)
    matrix, steps = hessian.dense(), 4
    found = spectral_density(
        mlp(CLASSES).to(accelerator), F.cross_entropy, data, num_vectors=2, num_steps=steps
    )
    signs = signs_used(hessian, "spectrum", 2)
    for power in range(2 * steps):  # Gauss quadrature is exact below twice the steps
        matrix_power = torch.linalg.matrix_power(matrix, power)
        exact = sum(float(z @ matrix_power @ z) for z in signs) / (2 * len(matrix))
        assert found.moment(power) == pytest.approx(exact, rel=1e-9)
    assert float(torch.trapezoid(found.density, found.grid)) == pytest.approx(1, abs=1e-2)


def test_the_sharpness_of_a_training_is_measured_and_the_training_left_alone(
    accelerator: torch.device,
) -> None:
    batches, losses = [], []
    for device in (accelerator, torch.device("cpu")):
        normaliser = Normaliser([128.0] * 3, [64.0] * 3, device)
        batches.append(EvalBatches(image_split(20).to(device), normaliser, 8))
    model = convnet(0, torch.float32).to(accelerator)
    learner = Learner(model, torch.optim.SGD(model.parameters(), lr=0.1))
    before = {name: value.clone() for name, value in model.state_dict().items()}
    torch.manual_seed(3)
    losses.append(torch.rand(2, device=accelerator))
    torch.manual_seed(3)
    (record,) = SharpnessProbe(batches[0], 1).measure(learner, "fge", 1, 0.1, False)
    losses.append(torch.rand(2, device=accelerator))
    assert torch.equal(*losses), "generators are left alone"
    assert_bitwise(dict(model.state_dict()), before)
    assert all(p.grad is None for p in model.parameters())
    inputs, targets = (torch.cat(parts) for parts in zip(*batches[1], strict=True))
    twin = convnet()
    twin.load_state_dict({name: value.cpu() for name, value in before.items()})
    exact = top_eigenvalues(
        twin, F.cross_entropy, [(inputs.double(), targets)], tolerance=1e-6
    ).values[0]
    # The residual is 1 % of the value, whose own error is of the order of that squared.
    assert record["eigenvalue"] == pytest.approx(float(exact), rel=2e-3)
    assert record["converged"]
