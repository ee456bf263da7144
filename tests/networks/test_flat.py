"""Flat vectors of parameters: order, exact inverses, and training through them."""

from __future__ import annotations

import copy
import math
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

from fge.ensemble import SnapshotStore
from fge.errors import UserError
from fge.networks import (
    FlatParameters,
    Layout,
    check_distinct,
    flatten,
    unflatten,
    write_parameters,
)


class Net(nn.Module):
    """Convolution, batch norm, tied weights, a frozen weight, a scalar and an empty parameter."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(2, 4, 3, padding=1)
        self.bn = nn.BatchNorm2d(4)
        self.encoder = nn.Linear(4, 4, bias=False)
        self.frozen = nn.Linear(4, 4).requires_grad_(False)
        self.decoder = nn.Linear(4, 4, bias=True)
        self.decoder.weight = self.encoder.weight
        self.scale = nn.Parameter(torch.tensor(1.5))
        self.nothing = nn.Parameter(torch.zeros(0, 3))
        self.register_buffer("mask", torch.full((2,), -math.inf), persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        x = self.bn(self.conv(x)).relu().mean((2, 3))
        outputs: Tensor = self.decoder(self.frozen(self.encoder(x)).tanh()) * self.scale
        return outputs


NAMES = [
    *("scale", "nothing", "conv.weight", "conv.bias", "bn.weight", "bn.bias", "encoder.weight"),
    *("frozen.weight", "frozen.bias", "decoder.bias"),
]
SIZES = [1, 0, 72, 4, 4, 4, 16, 16, 4, 4]
NUMEL = 125


def net(seed: int = 0, dtype: torch.dtype = torch.float64) -> Net:
    torch.manual_seed(seed)
    model = Net()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.normal_()
    return model.to(dtype)


def canonical(model: nn.Module) -> Tensor:
    return torch.cat([p.detach().contiguous().view(-1) for p in model.parameters()])


def inputs(count: int = 6) -> Tensor:
    rng = torch.Generator().manual_seed(7)
    return torch.randn(count, 2, 5, 5, generator=rng, dtype=torch.float64)


def loss_of(model: nn.Module, x: Tensor) -> Tensor:
    return F.cross_entropy(model(x), torch.arange(len(x)) % 4)


def bits(tensor: Tensor) -> Tensor:
    return tensor.view({2: torch.int16, 4: torch.int32, 8: torch.int64}[tensor.element_size()])


def compiled(model: nn.Module) -> Any:
    return torch.compile(model, backend="eager")


WRAPPERS = [lambda m: m, nn.DataParallel, compiled, lambda m: compiled(nn.DataParallel(m))]


# Layout


@pytest.mark.parametrize("wrap", WRAPPERS)
def test_a_layout_names_distinct_parameters_in_order(wrap: Callable[[nn.Module], Any]) -> None:
    layout = Layout.of(wrap(net()))
    assert list(layout.names) == NAMES
    assert layout.shapes[:3] == ((), (0, 3), (4, 2, 3, 3))
    assert layout.sizes == SIZES
    assert layout.numel == NUMEL
    assert layout == Layout.of(net(1))


def test_split_gives_views_by_name() -> None:
    vector = torch.arange(float(NUMEL))
    parts = Layout.of(net()).split(vector)
    assert list(parts) == NAMES
    assert parts["conv.weight"].shape == (4, 2, 3, 3)
    assert torch.cat([part.reshape(-1) for part in parts.values()]).tolist() == vector.tolist()
    parts["conv.bias"].fill_(-1)
    assert (vector == -1).nonzero().flatten().tolist() == [73, 74, 75, 76]


@pytest.mark.parametrize("shape", [(NUMEL - 1,), (NUMEL + 1,), (1, NUMEL), ()])
def test_vectors_of_another_shape_are_refused(shape: tuple[int, ...]) -> None:
    model, vector = net(), torch.zeros(shape, dtype=torch.float64)
    flat = FlatParameters(net())
    for use in (
        Layout.of(model).split,
        flat.pack,
        flat.unpack,
        lambda v: unflatten(v, model),
        lambda v: write_parameters(model, v),
    ):
        with pytest.raises(UserError, match=re.escape(f"has shape ({NUMEL},), got {shape}")):
            use(vector)


def mixed_dtypes() -> nn.Module:
    return nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2).double())


def mixed_devices() -> nn.Module:
    return nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2, device="meta"))


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (mixed_dtypes, r"'1\.weight' is torch\.float64 on cpu, '0\.weight' is torch\.float32"),
        (mixed_devices, r"'1\.weight' is torch\.float32 on meta, '0\.weight' is .* on cpu"),
        (nn.Flatten, r"a Flatten, has no parameters"),
        (lambda: nn.LazyLinear(2), r"'weight' has no shape yet; call the model"),
    ],
)
def test_unfit_models_are_named(make: Callable[[], nn.Module], message: str) -> None:
    for use in (
        Layout.of,
        FlatParameters,
        lambda m: flatten({}, m),
        lambda m: write_parameters(m, torch.zeros(1)),
    ):
        with pytest.raises(UserError, match=message):
            use(make())


# flatten and unflatten


@pytest.mark.parametrize("memory_format", [torch.contiguous_format, torch.channels_last])
def test_flatten_puts_the_parameters_in_c_order(memory_format: torch.memory_format) -> None:
    model = net()
    expected = canonical(model)
    other = net(1).to(memory_format=memory_format)
    assert torch.equal(flatten(model.to(memory_format=memory_format), other), expected)


def test_weights_may_come_in_every_form(tmp_path: Path) -> None:
    source, model = net(1, torch.float32), net(0, torch.float32)
    expected = canonical(source)
    store = SnapshotStore(tmp_path / "store")
    file = store.append(source)
    torch.save(source.state_dict(), tmp_path / "w.pt")
    forms: list[Any] = [source, source.state_dict(), store[0], file, str(file), tmp_path / "w.pt"]
    forms += [wrap(source) for wrap in WRAPPERS]
    for weights in forms:
        for wrap in WRAPPERS:
            assert torch.equal(flatten(weights, wrap(model)), expected)


def test_flatten_copies() -> None:
    model = net()
    vector = flatten(model, model)
    assert not vector.requires_grad
    vector.zero_()
    assert canonical(model).abs().min() > 0


def test_flatten_takes_the_models_dtype() -> None:
    weights = net(1)
    vector = flatten(weights, net(0, torch.float32))
    assert vector.dtype == torch.float32
    assert torch.equal(vector, canonical(weights).float())


def test_buffers_are_left_aside_missing_or_not() -> None:
    model = net()
    buffers = {name for name, _ in model.named_buffers()}
    state = model.state_dict()
    assert buffers - set(state) == {"mask"}
    bare = {name: tensor for name, tensor in state.items() if name not in buffers}
    full = {**state, "mask": model.mask}
    for given_state in (bare, state, full):
        assert torch.equal(flatten(given_state, model), canonical(model))


@pytest.mark.parametrize("name", ["encoder.weight", "decoder.weight"])
def test_either_name_of_a_tied_parameter_will_do(name: str) -> None:
    model = net()
    state = dict(model.state_dict())
    del state[name]
    assert torch.equal(flatten(state, model), canonical(model))


def without(name: str) -> Callable[[dict[str, Any]], object]:
    return lambda state: state.pop(name)


def changed(name: str, value: Any) -> Callable[[dict[str, Any]], object]:
    return lambda state: state.update({name: value})


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (without("conv.bias"), "the state dict has no tensor 'conv.bias', but the model needs it"),
        (
            changed("conv.scale", torch.ones(1)),
            "has a tensor 'conv.scale', but the model has none of that name",
        ),
        (changed("conv.bias", torch.ones(3)), r"'conv.bias' has shape \(3,\), the model needs"),
        (changed("conv.bias", torch.full((4,), math.nan)), "'conv.bias' holds values that are"),
        (changed("bn.bias", torch.tensor([0, 0, math.inf, 0])), "'bn.bias' holds values that are"),
        (
            changed("decoder.weight", torch.zeros(4, 4)),
            "'encoder.weight' and 'decoder.weight' differ, but are one parameter in the model",
        ),
        (changed("decoder.weight", torch.zeros(4)), r"'decoder.weight' has shape \(4,\)"),
        (changed("conv.bias", [0.0] * 4), "'conv.bias' is a list, not a tensor"),
    ],
)
def test_state_dicts_that_do_not_fit_are_refused(
    damage: Callable[[dict[str, Any]], object], message: str
) -> None:
    state = dict(net().state_dict())
    damage(state)
    with pytest.raises(UserError, match=message):
        flatten(state, net(1))


def test_values_too_large_for_the_models_dtype_are_not_finite() -> None:
    state = net().state_dict()
    state["conv.bias"][2] = 1e300
    with pytest.raises(UserError, match=r"'conv\.bias' holds values that are not finite"):
        flatten(state, net(0, torch.float32))


def test_errors_name_where_the_weights_come_from(tmp_path: Path) -> None:
    model = net()
    with pytest.raises(UserError, match=r"the given Linear has no tensor 'scale'"):
        flatten(nn.Linear(2, 2), model)
    file = SnapshotStore(tmp_path).append(nn.Linear(2, 2))
    with pytest.raises(UserError, match=r"0001\.safetensors has no tensor 'scale'"):
        flatten(file, model)
    with pytest.raises(UserError, match=r"no weights file .*nowhere"):
        flatten(tmp_path / "nowhere", model)
    with pytest.raises(UserError, match="a module, a state dict or a path, got a SnapshotStore"):
        flatten(SnapshotStore(tmp_path), model)  # type: ignore[arg-type]


def test_unflatten_is_the_inverse_of_flatten() -> None:
    vector = torch.randn(NUMEL, dtype=torch.float64)
    state = unflatten(vector, net())
    assert list(state) == NAMES
    assert torch.equal(flatten(state, net()), vector)
    for tensor in state.values():
        assert tensor.is_contiguous()
        tensor.zero_()
    assert vector.abs().min() > 0, "copies"


@pytest.mark.parametrize("memory_format", [torch.contiguous_format, torch.channels_last])
@pytest.mark.parametrize("wrap", WRAPPERS)
def test_writing_leaves_the_parameters_where_they_are(
    memory_format: torch.memory_format, wrap: Callable[[nn.Module], Any]
) -> None:
    model = net().to(memory_format=memory_format)
    places = [(p.data_ptr(), p.stride()) for p in model.parameters()]
    write_parameters(wrap(model), canonical(net(1)))
    assert torch.equal(canonical(model), canonical(net(1)))
    assert [(p.data_ptr(), p.stride()) for p in model.parameters()] == places
    assert model.decoder.weight is model.encoder.weight


def test_identical_ends_are_refused() -> None:
    start = torch.zeros(3)
    check_distinct(start, torch.tensor([0.0, 0.0, 1e-30]))
    with pytest.raises(UserError, match="start and end are the same weights"):
        check_distinct(start, start.clone())


# FlatParameters


def odd_strides() -> nn.Module:
    """Return a model with transposed, gapped, expanded and offset parameters, and 1x1 kernels."""
    torch.manual_seed(0)
    model = nn.Module()
    model.transposed = nn.Parameter(torch.randn(5, 3).t())
    model.gapped = nn.Parameter(torch.randn(4, 6)[:, ::2])
    model.expanded = nn.Parameter(torch.randn(1).expand(3))
    model.offset = nn.Parameter(torch.randn(10)[3:])
    model.permuted = nn.Parameter(torch.randn(2, 3, 4, 5).permute(2, 0, 3, 1))
    model.pointwise = nn.Conv2d(3, 5, 1).to(memory_format=torch.channels_last)
    model.depthwise = nn.Conv2d(4, 4, 3, groups=4).to(memory_format=torch.channels_last)
    return model


def channels_last() -> nn.Module:
    return net().to(memory_format=torch.channels_last)


@pytest.mark.parametrize("make", [net, channels_last, odd_strides])
def test_seating_keeps_values_and_strides(make: Callable[[], nn.Module]) -> None:
    model = make()
    before = [p.detach().clone(memory_format=torch.preserve_format) for p in model.parameters()]
    dense = [name for name, _ in model.named_parameters() if name not in ("gapped", "expanded")]
    strides = {name: parameter.stride() for name, parameter in model.named_parameters()}
    flat = FlatParameters(model)
    for parameter, value in zip(model.parameters(), before, strict=True):
        assert torch.equal(parameter, value)
    after = dict(model.named_parameters())
    assert {name: after[name].stride() for name in dense} == {n: strides[n] for n in dense}
    storage = flat.vector.untyped_storage().data_ptr()
    assert {p.untyped_storage().data_ptr() for p in model.parameters() if p.numel()} == {storage}
    assert flat.vector.shape == flat.gradient.shape == (flat.layout.numel,)


@pytest.mark.parametrize("make", [net, channels_last, odd_strides])
def test_pack_and_unpack_are_exact_inverses(make: Callable[[], nn.Module]) -> None:
    model = make()
    flat = FlatParameters(model)
    assert torch.equal(flat.unpack(flat.vector), canonical(model))
    assert torch.equal(flat.pack(canonical(model)), flat.vector)
    numel = flat.layout.numel
    for values in (torch.randn(numel), torch.arange(float(numel)), torch.full((numel,), -0.0)):
        for one, other in ((flat.pack, flat.unpack), (flat.unpack, flat.pack)):
            assert torch.equal(bits(other(one(values))), bits(values))
    assert torch.equal(flat.pack(torch.arange(numel)).sort().values, torch.arange(numel))


@given(shapes=st.lists(st.lists(st.integers(0, 5), max_size=4), min_size=1, max_size=6))
def test_any_shapes_can_be_packed(shapes: list[list[int]]) -> None:
    model = nn.ParameterList([torch.randn(shape) for shape in shapes])
    expected = canonical(model)
    flat = FlatParameters(model)
    assert torch.equal(canonical(model), expected)
    assert torch.equal(flat.pack(expected), flat.vector)
    assert torch.equal(flat.unpack(flat.vector), expected)


def test_channels_last_kernels_lie_in_their_memory_order() -> None:
    model = nn.Conv2d(2, 3, 2, bias=False).to(memory_format=torch.channels_last)
    flat = FlatParameters(model)
    expected = model.weight.detach().permute(0, 2, 3, 1).reshape(-1)
    assert torch.equal(flat.vector, expected)
    assert not torch.equal(flat.vector, canonical(model))


def test_kernels_begin_at_aligned_addresses() -> None:
    model = nn.Sequential(nn.Linear(5, 3), nn.Linear(16, 7), nn.Conv2d(3, 32, 3), nn.Linear(7, 8))
    FlatParameters(model)
    for parameter in model.parameters():
        power = parameter.numel() & -parameter.numel()
        assert parameter.storage_offset() % power == 0


def test_writing_the_vector_changes_the_model() -> None:
    model, other = net().eval(), net(1).eval()
    flat = FlatParameters(model)
    flat.vector.copy_(flat.pack(canonical(other)))
    assert torch.equal(model(inputs()), other(inputs()))
    write_parameters(model, torch.zeros(NUMEL))
    assert not flat.vector.any()


@pytest.mark.parametrize("make", [net, channels_last])
def test_backward_adds_to_the_gradient_in_place(make: Callable[[], nn.Module]) -> None:
    model, twin = make(), make()
    flat = FlatParameters(model)
    loss_of(twin, inputs()).backward()
    expected = torch.cat(
        [(torch.zeros_like(p) if p.grad is None else p.grad).reshape(-1) for p in twin.parameters()]
    )
    assert expected.abs().max() > 0.01
    for times in (1, 2):
        loss_of(model, inputs()).backward()
        torch.testing.assert_close(
            flat.unpack(flat.gradient), times * expected, rtol=1e-12, atol=1e-14
        )
    frozen = flat.layout.split(flat.unpack(flat.gradient))["frozen.weight"]
    assert not frozen.any()
    flat.zero_grad()
    assert not flat.gradient.any()
    assert all(not p.grad.any() for p in model.parameters() if p.grad is not None)


def test_gradients_from_before_do_not_remain() -> None:
    model = net()
    loss_of(model, inputs()).backward()
    assert not FlatParameters(model).gradient.any()
    assert model.conv.weight.grad is not None
    assert not model.conv.weight.grad.any()


def test_zero_grad_seats_again_what_set_to_none_detached() -> None:
    model = net()
    flat = FlatParameters(model)
    loss_of(model, inputs()).backward()
    expected = flat.gradient.clone()
    model.zero_grad(set_to_none=True)
    flat.zero_grad()
    assert not flat.gradient.any()
    loss_of(model, inputs()).backward()
    torch.testing.assert_close(flat.gradient, expected, rtol=1e-12, atol=0)


def test_a_parameter_that_is_thawed_gets_its_gradient_after_zero_grad() -> None:
    model = net()
    flat = FlatParameters(model)
    model.frozen.requires_grad_(True)
    flat.zero_grad()
    loss_of(model, inputs()).backward()
    (expected,) = torch.autograd.grad(loss_of(model, inputs()), [model.frozen.weight])
    found = flat.layout.split(flat.unpack(flat.gradient))["frozen.weight"]
    torch.testing.assert_close(found, expected, rtol=1e-12, atol=0)


def test_tied_and_frozen_parameters_stay_so() -> None:
    model = net()
    parameters = list(model.parameters())
    FlatParameters(model)
    assert all(a is b for a, b in zip(model.parameters(), parameters, strict=True))
    assert model.decoder.weight is model.encoder.weight
    assert not model.frozen.weight.requires_grad
    assert model.frozen.weight.grad is None


@pytest.mark.parametrize("make", [net, channels_last])
def test_steps_on_the_vector_are_steps_of_an_optimizer(make: Callable[[], nn.Module]) -> None:
    model, twin = make(), make()
    flat = FlatParameters(model)
    optimizer = torch.optim.SGD([p for p in twin.parameters() if p.requires_grad], lr=0.3)
    for _ in range(4):
        flat.zero_grad()
        loss_of(model, inputs()).backward()
        flat.vector.sub_(flat.gradient, alpha=0.3)
        optimizer.zero_grad()
        loss_of(twin, inputs()).backward()
        optimizer.step()
    torch.testing.assert_close(canonical(model), canonical(twin), rtol=1e-10, atol=1e-12)
    assert (canonical(model) - canonical(net())).abs().max() > 0.01


def test_an_optimizer_of_the_model_moves_the_vector() -> None:
    model = net()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.5)
    flat = FlatParameters(model)
    before = flat.vector.clone()
    loss_of(model, inputs()).backward()
    optimizer.step()
    assert torch.equal(flat.vector, before - 0.5 * flat.gradient)


def test_loading_a_state_dict_fills_the_vector() -> None:
    model = net()
    flat = FlatParameters(model)
    model.load_state_dict(net(1).state_dict())
    assert torch.equal(flat.unpack(flat.vector), canonical(net(1)))


def test_a_model_can_be_seated_again() -> None:
    model = net()
    old = FlatParameters(model)
    new = FlatParameters(model)
    old.vector.zero_()
    assert torch.equal(canonical(model), canonical(net()))
    loss_of(model, inputs()).backward()
    assert new.gradient.any()
    assert not old.gradient.any()


def test_a_copy_of_a_seated_model_is_independent() -> None:
    model = net()
    flat = FlatParameters(model)
    twin = copy.deepcopy(model)
    flat.vector.zero_()
    assert torch.equal(canonical(twin), canonical(net()))


def test_parameters_that_secretly_share_memory_are_refused() -> None:
    model = nn.Sequential(nn.Linear(3, 3), nn.Linear(3, 3))
    model[1].weight = nn.Parameter(model[0].weight.data)
    with pytest.raises(UserError, match=r"'0\.weight' and '1\.weight' share memory but are two"):
        FlatParameters(model)


@pytest.mark.slow
@pytest.mark.parametrize("compile_first", [True, False])
@pytest.mark.parametrize("backend", ["eager", "aot_eager"])
def test_compiled_models_see_the_vector(backend: str, compile_first: bool) -> None:
    model, twin = channels_last().eval(), net(1).eval()
    if compile_first:
        faster = torch.compile(model, backend=backend)
        faster(inputs())
        flat = FlatParameters(faster)
    else:
        flat = FlatParameters(model)
        faster = torch.compile(model, backend=backend)
        faster(inputs())
    flat.vector.copy_(flat.pack(canonical(twin)))
    torch.testing.assert_close(faster(inputs()), twin(inputs()), rtol=1e-12, atol=1e-12)
    for times in (1, 2):
        loss_of(faster, inputs()).backward()
        gradients = torch.autograd.grad(loss_of(twin, inputs()), [twin.conv.weight])
        found = flat.layout.split(flat.unpack(flat.gradient))["conv.weight"]
        torch.testing.assert_close(found, times * gradients[0], rtol=1e-10, atol=1e-12)
    torch._dynamo.reset()
