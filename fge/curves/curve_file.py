"""The files of curves."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NotRequired, TypedDict

import torch
from torch import Tensor

from fge.curves.buffers import Ends
from fge.curves.families import Family, make_family
from fge.errors import UserError
from fge.files import RESTORE, checked, parse_json, read_bytes, write_bytes
from fge.networks import Layout, decode_weights, encode_weights, read_metadata

_KIND = "fge-curve"
_POINTS = "points"
_ENDS = (0, 1)


class _Metadata(TypedDict):
    """The metadata of a curve's file; all but ``family`` are JSON."""

    family: str
    num_points: str
    layout: NotRequired[str]
    tied: NotRequired[str]
    buffers: NotRequired[str]


def write_points(
    path: Path, family: Family, points: Tensor, layout: Layout | None, buffers: Ends | None = None
) -> None:
    """Write a curve to a ``.safetensors`` file; see :meth:`Curve.save`."""
    points = points.cpu()
    metadata = {"kind": _KIND, "family": family.name, "num_points": str(family.num_points)}
    tensors = {_POINTS: points.contiguous()}
    if layout is not None:
        metadata["layout"] = json.dumps(layout.names)
        if layout.other_names:
            metadata["tied"] = json.dumps(dict(layout.other_names))
        columns = torch.split(points, layout.sizes, dim=1)
        shapes = [(len(points), *shape) for shape in layout.shapes]
        parts = [part.reshape(s).contiguous() for part, s in zip(columns, shapes, strict=True)]
        tensors = dict(zip(layout.names, parts, strict=True))
    if buffers is not None:
        first, second = buffers
        metadata["buffers"] = json.dumps(list(first))
        tensors |= {name: torch.stack([v, second[name]]).cpu() for name, v in first.items()}
    write_bytes(path, encode_weights(tensors, metadata))


def read_points(path: Path) -> tuple[Family, Tensor, Layout | None, Ends | None]:
    """Return what :func:`write_points` wrote, bitwise, on the CPU."""
    data = read_bytes(path, "curve file")
    tensors, metadata = decode_weights(data, path), read_metadata(data, path)
    if metadata.get("kind") != _KIND:
        raise UserError(f"{path} holds no curve; give a file that Curve.save wrote")
    damaged = f"{path} is damaged and is not a curve any more"
    facts = checked(metadata, _Metadata, damaged)
    count = parse_json(facts["num_points"].encode(), int, damaged)
    names = parse_json(facts.get("layout", "[]").encode(), list[str], damaged)
    tied = parse_json(facts.get("tied", "{}").encode(), dict[str, str], damaged)
    others = parse_json(facts.get("buffers", "[]").encode(), list[str], damaged)
    try:
        family = make_family(facts["family"], count)
        if "layout" in facts:
            return _decode(tensors, family, (names, tied), others)
        points = tensors[_POINTS]
        if points.ndim != 2 or len(points) != count:
            raise ValueError(f"the metadata name {count} points, not {tuple(points.shape)}")
        return family, _not_empty(points), None, None
    except (ValueError, KeyError, IndexError, TypeError, RuntimeError) as error:
        raise UserError(f"{damaged}: {error}; {RESTORE}") from None


def _decode(
    tensors: dict[str, Tensor],
    family: Family,
    names_tied: tuple[Sequence[str], Mapping[str, str]],
    others: Sequence[str],
) -> tuple[Family, Tensor, Layout, Ends | None]:
    """Return family, points, layout and buffers; damaged data raise one of several errors."""
    names, tied = names_tied
    if sorted([*names, *others]) != sorted(tensors):
        raise ValueError("the tensors are not those of the layout")
    if not {*tied.values()} <= {*names} or {*tied} & {*names}:
        raise ValueError("the tied parameters are not those of the layout")
    parts, rows = [tensors[name] for name in names], family.num_points
    layout = Layout(tuple(names), tuple(tuple(part.shape[1:]) for part in parts), tied)
    columns = [part.reshape(rows, size) for part, size in zip(parts, layout.sizes, strict=True)]
    if any(len(tensors[name]) != len(_ENDS) for name in others):
        raise ValueError("a buffer is not that of two ends")
    first, second = ({name: tensors[name][end] for name in others} for end in _ENDS)
    points = _not_empty(torch.cat(columns, dim=1))
    return family, points, layout, (first, second) if others else None


def _not_empty(points: Tensor) -> Tensor:
    if points.numel() == 0:
        raise ValueError("it has no weights")
    return points
