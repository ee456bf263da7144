"""A whole ensemble as one ``.safetensors`` file: the tensors of all members, and their options."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, Literal, TypedDict

from torch import Tensor

from fge.ensemble.outputs import Combine, Outputs
from fge.errors import UserError
from fge.files import parse_json, read_bytes, write_bytes
from fge.networks import (
    ENSEMBLE,
    Output,
    canonical_state,
    decode_weights,
    encode_weights,
    read_metadata,
)
from fge.schemas import Dimension, Positive

SCHEMA_VERSION = 1
_OPTIONS = ("output", "output_dim", "combine")


class _Facts(TypedDict):
    """The options of an ensemble in the metadata of its file."""

    schema_version: Positive
    output: Literal["softmax", "sigmoid", "identity"] | None
    output_dim: Dimension
    combine: Combine


def member_names(
    position: int, state: Mapping[str, Tensor], prefix: str = ""
) -> Iterator[tuple[str, Tensor]]:
    """Yield the tensors of a member under the names that they have in an ensemble."""
    return ((f"{prefix}members.{position}.{name}", tensor) for name, tensor in state.items())


def members_of(tensors: Mapping[str, Tensor], source: object) -> list[dict[str, Tensor]]:
    """Return the states of the members from tensors in any order; ``source`` names them in errors.

    Raises:
        UserError: a tensor is of no member, or a member is missing.
    """
    states: dict[int, dict[str, Tensor]] = {}
    for name, tensor in tensors.items():
        first, _, rest = name.partition(".")
        position, _, inner = rest.partition(".")
        if first != "members" or not re.fullmatch("0|[1-9][0-9]{0,8}", position):
            raise UserError(f"{source} has a tensor {name!r}, which is of no member of an ensemble")
        states.setdefault(int(position), {})[inner] = tensor
    if absent := set(range(len(states))) - states.keys():
        raise UserError(f"{source} has no member {min(absent)}, but later ones")
    return [states[position] for position in range(len(states))]


def write_ensemble(path: Path, members: Iterable[Mapping[str, Tensor]], outputs: Outputs) -> None:
    """Write all members and what their outputs are, atomically.

    Raises:
        UserError: the path does not end in ``.safetensors``.
    """
    if path.suffix != ".safetensors":
        raise UserError(f"an ensemble is saved as .safetensors, got {str(path)!r}")
    tensors: dict[str, Tensor] = {}
    for position, state in enumerate(members):
        tensors.update(member_names(position, canonical_state(state)))
    facts = {
        "schema_version": SCHEMA_VERSION,
        "output": outputs.name,
        "output_dim": outputs.dim,
        "combine": outputs.combine,
    }
    write_bytes(path, encode_weights(tensors, {ENSEMBLE: json.dumps(facts)}))


def read_ensemble(
    path: Path, output: Output | None
) -> tuple[list[dict[str, Tensor]], dict[str, Any]]:
    """Return the members in a file, and the options of their ensemble.

    Raises:
        UserError: there is no such file, it holds no whole ensemble, or neither it nor the caller
            says what the outputs are.
    """
    data = read_bytes(path, "ensemble file")
    tensors, metadata = decode_weights(data, path), read_metadata(data, path)
    if ENSEMBLE not in metadata:
        raise UserError(
            f"{path} holds no ensemble; if it holds the weights of one network, use "
            "fge.Ensemble(model, [path])"
        )
    damaged = f"{path} is damaged and is not an ensemble any more"
    facts = parse_json(metadata[ENSEMBLE].encode(), _Facts, damaged)
    if facts["schema_version"] > SCHEMA_VERSION:
        raise UserError(f"{path} was saved by a later version of fge; install that version")
    kind = facts["output"] if output is None else output
    if kind is None:
        raise UserError(f"{path} was saved with a function as output; give it: load(..., output=f)")
    return members_of(tensors, path), {
        "output": kind,
        "output_dim": facts["output_dim"],
        "combine": facts["combine"],
    }
