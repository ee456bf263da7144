"""Batch-norm statistics from data, and a model that is otherwise left as it was."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

from fge.errors import UserError
from fge.networks import nothing_yielded, refresh_batch_norm


def data(count: int, *shape: int, seed: int = 0) -> Tensor:
    rng = torch.Generator().manual_seed(seed)
    return torch.randn(count, *shape, generator=rng, dtype=torch.float64) * 2 + 3


def layer_of(features: int = 1, **options: Any) -> nn.BatchNorm1d:
    return nn.BatchNorm1d(features, dtype=torch.float64, **options)


def column(*values: float) -> Tensor:
    return torch.tensor(values, dtype=torch.float64)[:, None]


def cnn() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(2, 3, 3), nn.BatchNorm2d(3), nn.ReLU(), nn.Dropout(0.5), nn.Flatten(),
        nn.Linear(27, 4), nn.BatchNorm1d(4, momentum=None),
    ).double()  # fmt: skip


def everything(model: nn.Module) -> list[Any]:
    """Return modes, momenta and state of a model, comparable with ``==``."""
    modules = list(model.modules())
    state = {name: tensor.tolist() for name, tensor in model.state_dict().items()}
    return [[m.training for m in modules], [getattr(m, "momentum", 0) for m in modules], state]


def statistics(layer: nn.Module) -> tuple[Tensor, Tensor]:
    mean, variance = layer.running_mean, layer.running_var
    assert isinstance(mean, Tensor)
    assert isinstance(variance, Tensor)
    return mean, variance


# What the statistics are


@pytest.mark.parametrize("momentum", [0.1, 0.9, None])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_batches_weigh_by_their_images(dtype: torch.dtype, momentum: float | None) -> None:
    layer = nn.BatchNorm1d(1, momentum=momentum, dtype=dtype)
    batches = [column(0, 2, 4, 6).to(dtype), column(10, 20).to(dtype)]
    assert refresh_batch_norm(layer, batches) == 6
    mean, variance = statistics(layer)
    assert mean.item() == pytest.approx(7, abs=1e-5)
    # The published reference implementation gives 21.1111107, in float32.
    assert variance.item() == pytest.approx((4 * 20 / 3 + 2 * 50) / 6, abs=1e-5)
    assert mean.dtype == dtype
    assert layer.num_batches_tracked == 2


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("size", [8, 50])
@pytest.mark.parametrize(
    "made",
    [
        lambda: nn.BatchNorm1d(4),
        lambda: nn.LazyBatchNorm1d(),
        lambda: nn.InstanceNorm1d(4, track_running_stats=True),
    ],
    ids=["batch", "lazy", "instance"],
)
def test_statistics_in_fewer_bits_are_those_of_float32(
    made: Callable[[], nn.Module], size: int, dtype: torch.dtype
) -> None:
    """Most of the batches change the averages by less than these dtypes can resolve."""
    rng = torch.Generator().manual_seed(0)
    scale, offset = torch.tensor([[1.0], [2], [3], [4]]), torch.tensor([[0.0], [5], [10], [20]])
    x = (torch.randn(5000, 4, 5, generator=rng) * scale + offset).to(dtype)
    narrow, exact = made().to(dtype), made()
    assert refresh_batch_norm(narrow, list(x.split(size))) == 5000
    refresh_batch_norm(exact, list(x.float().split(size)))
    for found, expected in zip(statistics(narrow), statistics(exact), strict=True):
        assert found.dtype == dtype
        torch.testing.assert_close(found.float(), expected, rtol=2**-8, atol=2e-3)
    assert narrow.momentum == exact.momentum == 0.1
    assert len(narrow._forward_hooks) == 0


def test_later_calls_of_a_pass_weigh_more_in_fewer_bits_too() -> None:
    """In a batch of weight 1/2, the second call gets 1/2, and what was before it 1/2."""
    layer = nn.BatchNorm1d(1, affine=False).bfloat16()

    def twice(model: nn.Module, x: Tensor) -> Tensor:
        model(x)
        outputs: Tensor = model(x + 8)
        return outputs

    refresh_batch_norm(layer, [column(0, 4).bfloat16()] * 2, forward_fn=twice)
    # 10 after the first batch; then (10 + 2) / 2 = 6 and (6 + 10) / 2 = 8.
    assert statistics(layer)[0].tolist() == [8]
    assert statistics(layer)[1].tolist() == [8]


def test_one_batch_gives_its_own_mean_and_unbiased_variance() -> None:
    x = data(50, 3)
    layer = layer_of(3)
    refresh_batch_norm(layer, [x])
    mean, variance = statistics(layer)
    torch.testing.assert_close(mean, x.mean(0), rtol=1e-14, atol=0)
    torch.testing.assert_close(variance, x.var(0), rtol=1e-14, atol=0)


@given(sizes=st.lists(st.integers(2, 9), min_size=1, max_size=6))
def test_statistics_are_weighted_means_and_means_do_not_depend_on_the_cut(sizes: list[int]) -> None:
    x = data(sum(sizes), 3)
    parts = list(torch.split(x, sizes))
    layer = layer_of(3)
    assert refresh_batch_norm(layer, parts) == len(x)
    mean, variance = statistics(layer)
    torch.testing.assert_close(mean, x.mean(0), rtol=1e-12, atol=0)
    expected = sum(len(part) * part.var(0) for part in parts) / len(x)
    torch.testing.assert_close(variance, expected, rtol=1e-12, atol=0)


def test_nothing_of_the_old_statistics_remains() -> None:
    layer, fresh = layer_of(3), layer_of(3)
    statistics(layer)[0].fill_(math.nan)
    statistics(layer)[1].fill_(math.inf)
    for each in (layer, fresh):
        refresh_batch_norm(each, [data(5, 3), data(7, 3)])
    assert everything(layer) == everything(fresh)


def test_deeper_layers_see_batch_statistics_and_evaluation_matches_the_batch() -> None:
    model, x = cnn(), data(20, 2, 5, 5)
    assert refresh_batch_norm(model, [x]) == 20
    hidden = model[0](x)
    torch.testing.assert_close(statistics(model[1])[0], hidden.mean((0, 2, 3)))
    # With one batch only the unbiased variance sets evaluation apart: (n - 1) / n undoes that.
    for layer, count in ((model[1], 20 * 9), (model[6], 20)):
        statistics(layer)[1].mul_((count - 1) / count)
    model.eval()
    evaluated = model(x)
    for position in (1, 6):
        model[position].train()
    torch.testing.assert_close(evaluated, model(x), rtol=0, atol=1e-10)


@pytest.mark.parametrize(
    ("layer", "shape"),
    [
        (nn.BatchNorm1d(4), (4,)),
        (nn.BatchNorm1d(4), (4, 5)),
        (nn.BatchNorm2d(4), (4, 5, 5)),
        (nn.BatchNorm3d(4), (4, 3, 3, 3)),
        (nn.SyncBatchNorm(4), (4, 5, 5)),
        (nn.BatchNorm2d(4, affine=False), (4, 5, 5)),
        (nn.LazyBatchNorm1d(), (4,)),
        (nn.LazyBatchNorm2d(), (4, 5, 5)),
    ],
    ids=lambda value: type(value).__name__ if isinstance(value, nn.Module) else str(value),
)
def test_every_kind_of_batch_norm(layer: nn.Module, shape: tuple[int, ...]) -> None:
    model, x = nn.Sequential(nn.Identity(), layer), data(8, *shape)
    assert refresh_batch_norm(model, [x.float()]) == 8
    values = x.transpose(0, 1).flatten(1)
    mean, variance = statistics(model[1])
    torch.testing.assert_close(mean.double(), values.mean(1), rtol=1e-5, atol=0)
    torch.testing.assert_close(variance.double(), values.var(1), rtol=1e-5, atol=0)


def test_layers_without_running_statistics_are_let_be() -> None:
    idle = layer_of(2, track_running_stats=False)
    assert refresh_batch_norm(idle, [data(4, 2)]) == 0
    frozen = layer_of(2)
    frozen.track_running_stats = False
    model = nn.Sequential(idle, layer_of(2), frozen)
    assert refresh_batch_norm(model, [data(4, 2)]) == 4
    assert statistics(frozen)[0].tolist() == [0, 0]
    assert statistics(model[1])[1].tolist() != [1, 1]


@pytest.mark.parametrize("training", [True, False])
def test_dropout_is_off_and_batch_norm_on(training: bool) -> None:
    x = data(6, 3)
    model = nn.Sequential(nn.Dropout(0.9), layer_of(3)).train(training)
    refresh_batch_norm(model, [x])
    torch.testing.assert_close(statistics(model[1])[0], x.mean(0), rtol=1e-14, atol=0)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_autocast_of_the_caller_is_off(dtype: torch.dtype) -> None:
    x = data(40, 5).float()
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(5, 3), nn.BatchNorm1d(3))
    refresh_batch_norm(model, [x])
    expected = everything(model)
    with torch.autocast("cpu", dtype):
        refresh_batch_norm(model, [x])
        assert torch.is_autocast_enabled("cpu")
        assert model[0](x).dtype == dtype
    assert everything(model) == expected


def test_wrappers_are_seen_through() -> None:
    x = data(9, 2, 5, 5)
    models = [cnn(), cnn(), cnn()]
    wrapped = [
        models[0],
        nn.DataParallel(models[1]),
        torch.compile(models[2], backend="eager"),
    ]
    for model in wrapped:
        assert refresh_batch_norm(model, [x[:5], x[5:]]) == 9  # type: ignore[arg-type]
    assert everything(models[0]) == everything(models[1]) == everything(models[2])


# Batches


@pytest.mark.parametrize(
    "wrap",
    [
        lambda x: x,
        lambda x: (x, torch.zeros(len(x))),
        lambda x: [x, torch.zeros(len(x)), torch.ones(len(x), 2)],
        lambda x: (x, "a note"),
    ],
)
def test_batches_may_hold_more_than_inputs(wrap: Callable[[Tensor], Any]) -> None:
    layer = layer_of(3)
    assert refresh_batch_norm(layer, [wrap(data(5, 3))]) == 5
    torch.testing.assert_close(statistics(layer)[0], data(5, 3).mean(0), rtol=1e-14, atol=0)


def test_forward_fn_calls_models_of_any_signature() -> None:
    class Keywords(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.bn = layer_of(3)

        def forward(self, *, ids: Tensor) -> Tensor:
            outputs: Tensor = self.bn(ids)
            return outputs

    model = Keywords()
    batches = [{"mask": None, "inner": [{"ids": part}]} for part in data(9, 3).split(5)]

    def forward(module: nn.Module, batch: Any) -> Tensor:
        outputs: Tensor = module(ids=batch["inner"][0]["ids"])
        return outputs

    assert refresh_batch_norm(model, batches, forward_fn=forward) == 9
    torch.testing.assert_close(statistics(model.bn)[0], data(9, 3).mean(0), rtol=1e-13, atol=0)


class Counted:
    """A re-iterable that counts the batches taken from it."""

    def __init__(self, batches: list[Any]) -> None:
        self.batches = batches
        self.taken = 0

    def __iter__(self) -> Iterator[Any]:
        for batch in self.batches:
            self.taken += 1
            yield batch


@pytest.mark.parametrize(
    ("num_images", "used", "taken"),
    [(None, 12, 3), (100, 12, 3), (12, 12, 3), (10, 10, 3), (8, 8, 2), (6, 6, 2), (2, 2, 1)],
)
@pytest.mark.parametrize("wrap", [lambda x: x, lambda x: (x, torch.zeros(len(x)))])
def test_it_stops_after_so_many_images(
    wrap: Callable[[Tensor], Any], num_images: int | None, used: int, taken: int
) -> None:
    x, layer = data(12, 3), layer_of(3)
    batches = Counted([wrap(part) for part in x.split(4)])
    assert refresh_batch_norm(layer, batches, num_images=num_images) == used
    torch.testing.assert_close(statistics(layer)[0], x[:used].mean(0), rtol=1e-13, atol=0)
    assert batches.taken == taken


def test_by_default_5120_images_are_used() -> None:
    batches = Counted([data(1000, 1)] * 9)
    assert refresh_batch_norm(layer_of(1), batches) == 5120
    assert batches.taken == 6


@pytest.mark.parametrize(
    "batch", [{"x": data(4, 3)}, (data(4, 3), "a note"), (data(4, 3), torch.zeros(7))]
)
def test_other_batches_are_used_whole(batch: Any) -> None:
    def forward(model: nn.Module, batch: Any) -> Tensor:
        outputs: Tensor = model(batch["x"] if isinstance(batch, dict) else batch[0])
        return outputs

    batches = Counted([batch] * 3)
    assert refresh_batch_norm(layer_of(3), batches, num_images=6, forward_fn=forward) == 8
    assert batches.taken == 2


@pytest.mark.parametrize("sizes", [[4, 1], [1, 4], [1, 2, 1, 2, 1]])
def test_a_batch_of_one_image_is_skipped(sizes: list[int]) -> None:
    parts, layer = data(sum(sizes), 3).split(sizes), layer_of(3)
    assert refresh_batch_norm(layer, list(parts)) == sum(sizes) - sizes.count(1)
    kept = torch.cat([part for part in parts if len(part) > 1])
    torch.testing.assert_close(statistics(layer)[0], kept.mean(0), rtol=1e-13, atol=0)


def test_one_image_left_to_take_is_not_taken() -> None:
    batches = Counted(list(data(12, 3).split(4)))
    layer = layer_of(3)
    assert refresh_batch_norm(layer, batches, num_images=5) == 4
    assert batches.taken == 1
    torch.testing.assert_close(statistics(layer)[0], data(12, 3)[:4].mean(0), rtol=1e-13, atol=0)


@pytest.mark.parametrize("count", [1, 3])
def test_batches_of_one_image_are_used_when_there_is_nothing_else(count: int) -> None:
    x, layer = data(count, 3, 5, 5), nn.BatchNorm2d(3, dtype=torch.float64)
    assert refresh_batch_norm(layer, x.split(1)) == count
    torch.testing.assert_close(statistics(layer)[0], x.mean((0, 2, 3)), rtol=1e-13, atol=0)


# What is left as it was


@pytest.mark.parametrize("training", [True, False])
def test_modes_momenta_gradients_and_parameters_are_left_alone(training: bool) -> None:
    model = cnn().train(training)
    model[3].train(not training)
    model[1].momentum = 0.3
    before = everything(model)
    refresh_batch_norm(model, [data(6, 2, 5, 5)])
    after = everything(model)
    assert after[:2] == before[:2]
    changed = {name for name in before[2] if before[2][name] != after[2][name]}
    names = ("running_mean", "running_var", "num_batches_tracked")
    assert changed == {f"{layer}.{name}" for layer in (1, 6) for name in names}
    assert all(parameter.grad is None for parameter in model.parameters())


def test_buffers_stay_the_same_tensors() -> None:
    model = cnn()
    before = [id(buffer) for buffer in model.buffers()]
    refresh_batch_norm(model, [data(6, 2, 5, 5)])
    assert [id(buffer) for buffer in model.buffers()] == before


def test_no_graph_is_recorded() -> None:
    recorded = []

    def forward(model: nn.Module, batch: Any) -> Tensor:
        outputs: Tensor = model(batch)
        recorded.append(outputs.requires_grad)
        return outputs

    refresh_batch_norm(cnn(), [data(6, 2, 5, 5)], forward_fn=forward)
    assert recorded == [False]


class Stop(BaseException):
    """What no handler of ordinary exceptions sees."""


@pytest.mark.parametrize("error", [RuntimeError, KeyboardInterrupt, Stop])
@pytest.mark.parametrize("where", ["batches", "forward"])
def test_all_is_as_it_was_when_the_loop_raises(error: type[BaseException], where: str) -> None:
    model, x = cnn(), data(6, 2, 5, 5)
    refresh_batch_norm(model, [x])
    model[6].train()
    before = everything(model)
    calls = []

    class Breaking:
        def __iter__(self) -> Iterator[Tensor]:
            yield x * 2
            if where == "batches":
                raise error
            yield x

    def forward(module: nn.Module, batch: Any) -> Tensor:
        calls.append(1)
        outputs: Tensor = module(batch)
        if where == "forward" and len(calls) == 2:
            raise error
        return outputs

    with pytest.raises(error):
        refresh_batch_norm(model, Breaking(), forward_fn=forward)
    assert everything(model) == before


@pytest.mark.parametrize("good", [0, 1])
def test_a_lazy_layer_survives_an_error(good: int) -> None:
    model = nn.Sequential(nn.LazyBatchNorm1d())
    batches = [data(4, 3).float()] * good + [torch.zeros(4, 3, 2, 2, 2)]
    with pytest.raises(ValueError, match="expected 2D or 3D input"):
        refresh_batch_norm(model, batches)
    assert refresh_batch_norm(model, [data(4, 3).float()]) == 4
    torch.testing.assert_close(statistics(model[0])[0].double(), data(4, 3).mean(0))


def test_a_model_without_batch_norm_is_not_run() -> None:
    model = nn.Sequential(nn.Linear(3, 3), nn.LayerNorm(3), nn.InstanceNorm1d(3)).double()
    batches = Counted([data(4, 3)])
    assert refresh_batch_norm(model, batches) == 0
    assert batches.taken == 0


# What is refused


@pytest.mark.parametrize("model", [nn.Linear(3, 3), layer_of(3)])
def test_a_generator_is_refused(model: nn.Module) -> None:
    with pytest.raises(UserError, match="more than once, got a generator"):
        refresh_batch_norm(model, (x for x in [data(4, 3)]))


@pytest.mark.parametrize("batches", [[], [torch.zeros(0, 3)]])
def test_no_data_is_refused_and_changes_nothing(batches: list[Tensor]) -> None:
    layer = layer_of(3)
    refresh_batch_norm(layer, [data(4, 3)])
    before = everything(layer)
    with pytest.raises(UserError, match=f"^{nothing_yielded()}$"):
        refresh_batch_norm(layer, batches)
    assert everything(layer) == before


@pytest.mark.parametrize("batch", ["text", {"a": [1, 2]}, [torch.tensor(1.0)]])
def test_batches_without_countable_images_are_refused(batch: Any) -> None:
    with pytest.raises(UserError, match="cannot count the images of a batch that is a"):
        refresh_batch_norm(layer_of(3), [batch])


@pytest.mark.parametrize("num_images", [1, 0, -5])
def test_too_few_images_are_refused(num_images: int) -> None:
    with pytest.raises(UserError, match=f"num_images must be >= 2, .* got {num_images}"):
        refresh_batch_norm(layer_of(3), [data(4, 3)], num_images=num_images)


def test_instance_norm_gets_the_mean_statistics_of_all_images_or_keeps_its_own() -> None:
    layer = nn.InstanceNorm1d(2, track_running_stats=True).double()
    x = data(10, 2, 5)
    assert refresh_batch_norm(layer, list(x.split(4))) == 10
    torch.testing.assert_close(layer.running_mean, x.mean((0, 2)), rtol=1e-12, atol=1e-14)
    torch.testing.assert_close(layer.running_var, x.var(2).mean(0), rtol=1e-12, atol=1e-14)
    assert refresh_batch_norm(layer, [data(3, 2, 5)], instance_norm=False) == 0
    torch.testing.assert_close(layer.running_mean, x.mean((0, 2)), rtol=1e-12, atol=1e-14)


class Auxiliary(nn.Module):
    """A network whose second head runs in training only."""

    def __init__(self) -> None:
        super().__init__()
        self.head, self.auxiliary = layer_of(), layer_of()

    def forward(self, x: Tensor) -> Tensor:
        return self.head(x) + (self.auxiliary(x) if self.training else 0)


def test_a_layer_that_is_never_called_keeps_its_statistics() -> None:
    model = Auxiliary()
    model(data(8, 1))
    before = {n: t.clone() for n, t in model.auxiliary.state_dict().items()}
    assert refresh_batch_norm(model, [data(16, 1, seed=1)]) == 16
    assert all(torch.equal(t, before[n]) for n, t in model.auxiliary.state_dict().items())
    torch.testing.assert_close(statistics(model.head)[0], data(16, 1, seed=1).mean(0))


def test_a_forward_pass_that_calls_no_layer_is_refused() -> None:
    layer = layer_of()
    layer(data(8, 1))
    before = everything(layer)
    with pytest.raises(UserError, match="calls none of the model's batch-norm layers"):
        refresh_batch_norm(layer, [data(8, 1)], forward_fn=lambda _, x: x)
    assert everything(layer) == before


def test_a_forward_pass_that_trains_is_refused() -> None:
    model = cnn()

    def train(model: nn.Module, x: Tensor) -> Tensor:
        with torch.no_grad():
            model[0].weight.mul_(0.5)
        return model(x)

    with pytest.raises(UserError, match=r"changed the parameter '0.weight'; give a forward_fn"):
        refresh_batch_norm(model, [data(8, 2, 5, 5)], forward_fn=train)


@pytest.mark.skipif(not hasattr(torch.compiler, "set_stance"), reason="PyTorch 2.5 has no stance")
def test_a_model_compiled_in_place_is_not_compiled_for_every_batch() -> None:
    compiled: list[Any] = []

    def backend(graph: Any, _example: Any) -> Any:
        compiled.append(graph)
        return graph.forward

    model = nn.Sequential(nn.Linear(2, 3), nn.BatchNorm1d(3))
    plain = copy.deepcopy(model)
    model.compile(backend=backend)
    batches = [data(4, 2).float() for _ in range(12)]
    model(batches[0])
    refresh_batch_norm(model, batches)
    assert len(compiled) == 1
    model.eval()(batches[0])
    assert len(compiled) == 2
    refresh_batch_norm(plain, batches)
    assert torch.equal(model[1].running_var, plain[1].running_var)
