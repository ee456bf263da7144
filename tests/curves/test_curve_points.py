"""Points of curves: straight ones, their Gram matrix, and files that come back bitwise."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from fge.curves import Bezier, Curve, PolyChain, gram_matrix, straight_points
from fge.curves.curve import combination
from fge.errors import UserError
from fge.networks import Layout, read_weights


def random_points(count: int = 4, size: int = 11, dtype: torch.dtype = torch.float64) -> Tensor:
    rng = torch.Generator().manual_seed(count * 100 + size)
    return torch.randn(count, size, generator=rng, dtype=torch.float64).to(dtype)


def model() -> nn.Module:
    """Return a model with a convolution, a tied weight, buffers, a scalar and an empty one."""
    net = nn.Module()
    net.conv = nn.Conv2d(2, 3, 2)
    net.bn = nn.BatchNorm2d(3)
    net.tied = nn.Linear(3, 3)
    net.other = nn.Linear(3, 3)
    net.other.weight = net.tied.weight
    net.scale = nn.Parameter(torch.tensor(1.0))
    net.nothing = nn.Parameter(torch.zeros(0, 2))
    return net


# Straight points


def test_the_reference_bends() -> None:
    start, end = torch.tensor([0.0, 0, 1]), torch.tensor([4.0, 8, -1])
    points = straight_points(start, end, 5)
    assert points.tolist() == [[0, 0, 1], [1, 2, 0.5], [2, 4, 0], [3, 6, -0.5], [4, 8, -1]]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
@pytest.mark.parametrize("count", [2, 3, 4, 8])
def test_straight_points_keep_the_ends_bitwise(count: int, dtype: torch.dtype) -> None:
    start, end = random_points(2, 1000, dtype)
    start[0], end[0] = -0.0, 0.0
    points = straight_points(start, end, count)
    assert points.shape == (count, 1000)
    assert points.dtype == dtype
    assert torch.equal(points[0].view(torch.uint8), start.view(torch.uint8))
    assert torch.equal(points[-1].view(torch.uint8), end.view(torch.uint8))
    steps = points.double().diff(dim=0)
    expected = (end.double() - start.double()) / (count - 1)
    assert float((steps - expected).abs().max()) <= 16 * torch.finfo(dtype).eps


def test_straight_points_are_copies() -> None:
    start, end = nn.Parameter(torch.zeros(2)), nn.Parameter(torch.ones(2))
    points = straight_points(start, end, 3)
    assert not points.requires_grad
    points.fill_(7)
    assert start.tolist() == [0, 0]


@pytest.mark.parametrize(
    ("start", "end", "count", "message"),
    [
        (torch.zeros(2), torch.ones(2), 1, "num_points counts both ends and must be >= 2, got 1"),
        (torch.zeros(2), torch.ones(3), 3, r"vectors of one length, got shapes \(2,\) and \(3,\)"),
        (torch.zeros(2, 2), torch.ones(2, 2), 3, r"got shapes \(2, 2\) and \(2, 2\)"),
    ],
)
def test_bad_ends_are_refused(start: Tensor, end: Tensor, count: int, message: str) -> None:
    with pytest.raises(UserError, match=message):
        straight_points(start, end, count)


# Sums and products


@given(coefficients=st.lists(st.floats(-3, 3), min_size=1, max_size=6).filter(any))
def test_combinations_are_sums(coefficients: list[float]) -> None:
    points = random_points(len(coefficients))
    expected = torch.tensor(coefficients, dtype=torch.float64) @ points
    torch.testing.assert_close(combination(coefficients, points), expected, rtol=1e-13, atol=1e-13)


def test_points_with_coefficient_zero_have_no_part() -> None:
    points = torch.tensor([[-0.0, 1.0], [math.nan, math.inf], [5.0, 5.0]])
    total = combination([1.0, 0.0, 0.0], points)
    assert torch.equal(total.view(torch.int32), points[0].view(torch.int32))
    total.fill_(3)
    assert points[0].tolist() == [0, 1], "a copy"


@given(count=st.integers(1, 5), size=st.integers(1, 20))
def test_the_gram_matrix_is_that_of_differences(count: int, size: int) -> None:
    points = random_points(count, size)
    differences = points - points[0]
    gram = gram_matrix(points)
    assert gram.dtype == torch.float64
    torch.testing.assert_close(gram, differences @ differences.T, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("columns", [1, 7, 100, 101])
def test_the_gram_matrix_adds_up_over_blocks(columns: int, monkeypatch: pytest.MonkeyPatch) -> None:
    points = random_points(3, 100, torch.float32)
    expected = gram_matrix(points)
    monkeypatch.setattr("fge.curves.curve._COLUMNS", columns)
    torch.testing.assert_close(gram_matrix(points), expected, rtol=1e-13, atol=1e-13)


def test_close_points_far_from_the_origin_keep_their_digits() -> None:
    base = random_points(3, 50)
    shifted = base * 2.0**-10 + 2.0**30
    exact = shifted - shifted[0]  # small integers times 2^-22: exact
    slopes = torch.tensor([1.0, -3.0, 2.0], dtype=torch.float64)
    expected = float((slopes @ exact).square().sum())
    gram = gram_matrix(shifted)
    assert float(slopes @ gram @ slopes) == pytest.approx(expected, rel=1e-12)
    naive = shifted @ shifted.T
    assert float(slopes @ naive @ slopes) != pytest.approx(expected, rel=1e-2)


# Files


def bits(tensor: Tensor) -> Tensor:
    return tensor.contiguous().view(torch.uint8)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
@pytest.mark.parametrize("family", [Bezier(4), PolyChain(2)])
@pytest.mark.parametrize("named", [True, False])
def test_curves_come_back_bitwise(
    tmp_path: Path, family: Bezier | PolyChain, dtype: torch.dtype, named: bool
) -> None:
    layout = Layout.of(model())
    points = random_points(family.num_points, layout.numel, dtype)
    points[0, :3] = torch.tensor([-0.0, math.nan, math.inf])
    path = tmp_path / "folder" / "curve.safetensors"
    Curve(family, points, layout if named else None).save(path)
    curve = Curve.load(str(path))
    assert curve.family == family
    assert curve.layout == (layout if named else None)
    assert curve.points.dtype == dtype
    assert torch.equal(bits(curve.points), bits(points))
    assert [file.name for file in path.parent.iterdir()] == [path.name]


def test_a_file_holds_each_parameter_at_every_point(tmp_path: Path) -> None:
    layout = Layout.of(model())
    points = random_points(3, layout.numel)
    curve = Curve(Bezier(3), points, layout)
    curve.save(tmp_path / "c.safetensors")
    tensors = read_weights(tmp_path / "c.safetensors")
    assert list(tensors) != list(layout.names), "the order is in the metadata"
    assert set(tensors) == set(layout.names)
    assert tensors["conv.weight"].shape == (3, 3, 2, 2, 2)
    for name, tensor in curve.parameters(1).items():
        assert torch.equal(tensors[name][-1], tensor)
    with safe_open(tmp_path / "c.safetensors", framework="pt") as file:
        metadata = file.metadata()
    assert (metadata["family"], metadata["num_points"]) == ("bezier", "3")
    assert tuple(json.loads(metadata["layout"])) == layout.names


def test_points_of_any_strides_can_be_saved(tmp_path: Path) -> None:
    points = random_points(12, 3).t()
    for layout in (None, Layout(("a", "b"), ((2, 5), (2,)))):
        Curve(Bezier(3), points, layout).save(tmp_path / "c.safetensors")
        assert torch.equal(Curve.load(tmp_path / "c.safetensors").points, points)


def test_missing_and_foreign_files_are_named(tmp_path: Path) -> None:
    path = tmp_path / "c.safetensors"
    with pytest.raises(UserError, match=r"no curve file .*c\.safetensors"):
        Curve.load(path)
    with pytest.raises(UserError, match=r"no curve file"):
        Curve.load(tmp_path)
    path.write_bytes(b"not what it says")
    with pytest.raises(UserError, match=r"c\.safetensors is not a complete safetensors file"):
        Curve.load(path)
    save_file({"points": torch.zeros(3, 2)}, path)
    with pytest.raises(UserError, match=r"c\.safetensors holds no curve"):
        Curve.load(path)


METADATA = {"kind": "fge-curve", "family": "bezier", "num_points": "3", "layout": '["a", "b"]'}
TENSORS = {"a": torch.zeros(3, 2), "b": torch.zeros(3)}


def without(key: str) -> Callable[[dict[str, Any]], dict[str, Any]]:
    return lambda d: {k: v for k, v in d.items() if k != key}


def changed(key: str, value: Any) -> Callable[[dict[str, Any]], dict[str, Any]]:
    return lambda d: {**d, key: value}


def same(d: dict[str, Any]) -> dict[str, Any]:
    return d


@pytest.mark.parametrize(
    ("tensors", "metadata"),
    [
        (same, without("family")),
        (same, without("num_points")),
        (same, without("layout")),
        (same, changed("family", "spline")),
        (same, changed("num_points", "many")),
        (same, changed("num_points", "2")),
        (same, changed("num_points", "1")),
        (same, changed("layout", "nothing")),
        (same, changed("layout", "[]")),
        (same, changed("layout", "7")),
        (same, changed("layout", '[["a"]]')),
        (same, changed("layout", '["a"]')),
        (same, changed("layout", '["a", "b", "b"]')),
        (without("a"), same),
        (changed("a", torch.zeros(2, 2)), same),
        (changed("a", torch.tensor(0.0)), same),
    ],
)
def test_damaged_curves_are_refused(
    tmp_path: Path,
    tensors: Callable[[dict[str, Any]], dict[str, Any]],
    metadata: Callable[[dict[str, Any]], dict[str, Any]],
) -> None:
    path = tmp_path / "c.safetensors"
    save_file(TENSORS, path, METADATA)
    assert Curve.load(path).points.shape == (3, 3)
    save_file(tensors(TENSORS), path, metadata(METADATA))
    with pytest.raises(UserError, match=r"c\.safetensors is damaged and is not a curve any more"):
        Curve.load(path)


@pytest.mark.parametrize("points", [torch.zeros(2, 6), torch.zeros(12), torch.tensor(0.0)])
def test_damaged_curves_without_names_are_refused(tmp_path: Path, points: Tensor) -> None:
    path = tmp_path / "c.safetensors"
    save_file({"points": points}, path, without("layout")(METADATA))
    with pytest.raises(UserError, match=r"c\.safetensors is damaged and is not a curve any more"):
        Curve.load(path)


def test_truncated_and_flipped_files_never_raise_anything_else(tmp_path: Path) -> None:
    path = tmp_path / "c.safetensors"
    Curve(Bezier(3), torch.zeros(3, 3), Layout(("a", "b"), ((2,), ()))).save(path)
    data = path.read_bytes()
    other = []
    header = 8 + int.from_bytes(data[:8], "little")
    damaged = [data[:length] for length in range(len(data))]
    damaged += [data[:k] + bytes([data[k] ^ 1]) + data[k + 1 :] for k in range(header)]
    for bad in damaged:
        path.write_bytes(bad)
        try:
            Curve.load(path)
        except UserError:
            pass
        except Exception as error:
            other.append(repr(error))
    assert other == []
    assert len(damaged) > 400
