"""The points of a curve as a matrix (B, P): straight, combined, their Gram matrix, on disk."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

import torch
from safetensors import safe_open
from safetensors.torch import save
from torch import Tensor

from fge.curves.families import Family, make_family
from fge.errors import UserError
from fge.files import write_bytes
from fge.networks.flat import Layout
from fge.networks.state import decode_weights

_KIND = "fge-curve"
_POINTS = "points"
_COLUMNS = 1 << 20
"""Columns per block of the Gram matrix, so that float64 copies stay small."""


def straight_points(start: Tensor, end: Tensor, num_points: int) -> Tensor:
    """Return points (num_points, P) evenly spaced from ``start`` to ``end`` (P,), both bitwise.

    Raises:
        UserError: ``num_points`` is below 2, or the ends have different shapes.
    """
    if num_points < 2:
        raise UserError(f"num_points counts both ends and must be >= 2, got {num_points}")
    if start.shape != end.shape or start.ndim != 1:
        raise UserError(
            f"start and end must be vectors of one length, got shapes {tuple(start.shape)} and "
            f"{tuple(end.shape)}"
        )
    last = num_points - 1
    points = start.detach().new_empty(num_points, len(start))
    points[0], points[last] = start.detach(), end.detach()
    for i in range(1, last):  # in place: a copy of a large network's weights would show
        torch.mul(points[0], 1 - i / last, out=points[i]).add_(points[last], alpha=i / last)
    return points


def gram_matrix(points: Tensor) -> Tensor:
    """Return G (B, B) float64 on the CPU with G_ij = <w_i - w_0, w_j - w_0> for points (B, P).

    With coefficients that sum to 0, as those of velocities and chords do, aᵀGa is
    |sum_i a_i w_i|²; taking differences first keeps its digits where the points lie close
    together and far from the origin.
    """
    gram = torch.zeros(len(points), len(points), dtype=torch.float64, device=points.device)
    for block in torch.split(points.detach(), _COLUMNS, dim=1):
        differences = block.double() - block[0].double()
        gram += differences @ differences.T
    return gram.cpu()


def combination(coefficients: Sequence[float], points: Tensor) -> Tensor:
    """Return sum_i c_i w_i (P,), a new tensor, for coefficients (B,) and points (B, P).

    Points with a coefficient of 0 have no part in it, so that 1 w_i is w_i bitwise.
    """
    total: Tensor | None = None
    for coefficient, point in zip(coefficients, points, strict=True):
        if coefficient == 0:
            continue
        total = point * coefficient if total is None else total.add_(point, alpha=coefficient)
    assert total is not None, "all coefficients are 0"
    return total


def write_points(path: Path, family: Family, points: Tensor, layout: Layout | None) -> None:
    """Write what a curve is made of to a ``.safetensors`` file, atomically.

    Each parameter is a tensor (B, ...) under its name; without a layout there is one tensor
    ``points`` (B, P). The family and the order of the parameters are in the metadata.
    """
    points = points.cpu()
    metadata = {"kind": _KIND, "family": family.name, "num_points": str(family.num_points)}
    tensors = {_POINTS: points.contiguous()}
    if layout is not None:
        metadata["layout"] = json.dumps(layout.names)
        columns = torch.split(points, layout.sizes, dim=1)
        shapes = [(len(points), *shape) for shape in layout.shapes]
        parts = [part.reshape(s).contiguous() for part, s in zip(columns, shapes, strict=True)]
        tensors = dict(zip(layout.names, parts, strict=True))
    write_bytes(path, _with_sorted_metadata(save(tensors, metadata=metadata)))


def _with_sorted_metadata(data: bytes) -> bytes:
    """Return safetensors bytes with the metadata in order: ``save`` writes it in any.

    The header is JSON behind its 8-byte length, padded to a multiple of 8 with spaces.
    """
    length = int.from_bytes(data[:8], "little")
    header = json.loads(data[8 : 8 + length])
    header["__metadata__"] = dict(sorted(header["__metadata__"].items()))
    text = json.dumps(header, separators=(",", ":"), ensure_ascii=False).encode()
    text += b" " * (-len(text) % 8)
    return len(text).to_bytes(8, "little") + text + data[8 + length :]


def read_points(path: Path) -> tuple[Family, Tensor, Layout | None]:
    """Return what :func:`write_points` wrote, bitwise, on the CPU.

    Raises:
        UserError: no such file, or it is damaged or holds no curve.
    """
    if not path.is_file():
        raise UserError(f"no curve file {path}")
    tensors = decode_weights(path.read_bytes(), path)
    with safe_open(path, framework="pt") as file:
        metadata = file.metadata() or {}
    if metadata.get("kind") != _KIND:
        raise UserError(f"{path} holds no curve; give a file that Curve.save wrote")
    try:
        return _decode(tensors, metadata)
    except (ValueError, KeyError, TypeError, IndexError, RuntimeError) as error:
        raise UserError(f"{path} is damaged and holds no curve any more: {error}") from None


def _decode(
    tensors: dict[str, Tensor], metadata: dict[str, str]
) -> tuple[Family, Tensor, Layout | None]:
    """Return what a curve is made of; any of several errors says that it is damaged."""
    family = make_family(metadata["family"], int(metadata["num_points"]))
    rows = family.num_points
    if "layout" not in metadata:
        points = tensors[_POINTS]
        if len(points) != rows:
            raise ValueError(f"{rows} points are announced, there are {len(points)}")
        return family, points, None
    names = tuple(json.loads(metadata["layout"]))
    if sorted(names) != sorted(tensors):
        raise KeyError("the tensors are not those of the layout")
    parts = [tensors[name] for name in names]
    layout = Layout(names, tuple(tuple(part.shape[1:]) for part in parts))
    columns = [part.reshape(rows, size) for part, size in zip(parts, layout.sizes, strict=True)]
    return family, torch.cat(columns, dim=1), layout
