"""State of a module: tensors by name, saving them without pickle, and restoring it."""

from __future__ import annotations

import json
import re
import warnings
import zipfile
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, NotRequired, TypedDict

import torch
from safetensors import SafetensorError
from safetensors.torch import load, save
from torch import Tensor, nn
from torch.nn.parameter import is_lazy

from fge.errors import UserError
from fge.files import RESTORE, check_file, parse_json, read_bytes, sha256, write_bytes
from fge.memory import check_fits
from fge.networks.naming import is_count, under_names, weights_within
from fge.networks.unsaved import check_unsaved
from fge.parallel import is_shard

_OPTIONS = type("Namespace", (), {"__module__": "argparse"})
"""Options, which may be beside the weights in a ``.pt`` file, are read as such a bare object."""
_SKELETON, _CHECKSUM = "skeleton", "sha256"
ENSEMBLE = "ensemble"
"""The entry of a file's metadata that says that it holds a whole ensemble."""
Weights = nn.Module | Mapping[str, Tensor] | str | Path
"""A network's weights: a module, a state dict, or a path to ``.safetensors`` or ``.pt``."""


class _Header(TypedDict):
    __metadata__: NotRequired[dict[str, str] | None]


def unwrap(model: nn.Module) -> nn.Module:
    """Return the user's module inside ``torch.compile`` and data-parallel wrappers."""
    while True:
        if isinstance(model, nn.parallel.DistributedDataParallel | nn.DataParallel):
            inner = model.module
        else:  # torch.compile's wrapper
            inner = getattr(model, "_orig_mod", None)
        if not isinstance(inner, nn.Module):
            return model
        model = inner


def state_of(weights: Weights) -> Mapping[str, Tensor]:
    """Return tensors by name: of a module its current ones, of a path those in the file.

    Raises:
        UserError: there is no such file, or it holds no state dict.
    """
    if isinstance(weights, str | Path):
        return read_weights(Path(weights))
    return unwrap(weights).state_dict() if isinstance(weights, nn.Module) else weights


def canonical_state(weights: Weights) -> dict[str, Tensor]:
    """Return the tensors by name: on the CPU, contiguous, each with its own memory.

    Raises:
        UserError: the state holds something other than tensors, or a file cannot be read.
    """
    state = state_of(weights)
    check_plain(state, "the model's state")
    return {
        name: tensor.detach().to("cpu").clone(memory_format=torch.contiguous_format)
        for name, tensor in state.items()
    }


def check_plain(state: Mapping[str, Any], source: object) -> None:
    """Check that every value is a tensor that has all its numbers here; ``source`` names them.

    Raises:
        UserError: naming the first that is something else, and the remedy.
    """
    for name, value in state.items():
        if not isinstance(value, Tensor):
            raise UserError(
                f"{source} {name!r} is a {type(value).__name__}; only tensors can be saved"
            )
        if is_shard(value):
            raise UserError(
                f"{source} {name!r} is sharded over processes; gather it whole before, "
                "with get_model_state_dict of torch.distributed.checkpoint.state_dict"
            )
        if is_lazy(value):
            raise UserError(
                f"{source} {name!r} has no shape yet; call the model on one batch first"
            )
        if value.is_meta:
            raise UserError(f"{source} {name!r} has no values, only a shape (device meta)")
        if value.is_nested or value.layout is not torch.strided:
            kind = "nested" if value.is_nested else f"sparse ({value.layout})"
            raise UserError(f"{source} {name!r} is {kind}; make it dense with .to_dense() first")
        if value.is_quantized or "bits" in str(value.dtype):
            raise UserError(
                f"{source} {name!r} is of type {value.dtype}; make it plain numbers first, with "
                ".dequantize() if it is quantised"
            )


def state_bytes(model: nn.Module) -> int:
    """Return the size of the model's parameters and buffers in bytes."""
    return sum(t.numel() * t.element_size() for t in unwrap(model).state_dict().values())


def load_weights(model: nn.Module, state: Mapping[str, Tensor], source: object) -> None:
    """Copy ``state`` into ``model``; ``source`` names it in errors.

    The names of usual wrappers (``module.``, ``model.``, ``_orig_mod.``) are seen through.

    Raises:
        UserError: a tensor is missing, unknown, not finite, or of another shape or kind of number;
            the message names the first.
    """
    unwrap(model).load_state_dict(fitting(model, state, source))


def fitting(model: nn.Module, weights: Weights, source: object) -> dict[str, Tensor]:
    """Return the tensors of weights under the model's names; ``source`` names them in errors.

    Raises:
        UserError: as :func:`load_weights`; or a module has other values than the model in a buffer
            that is not in its state.
    """
    if isinstance(weights, nn.Module):
        check_unsaved(unwrap(model), unwrap(weights), source)
    expected = unwrap(model).state_dict()
    state = under_names(state_of(weights), expected)
    check_plain(state, f"{source}: tensor")
    for name, tensor in expected.items():
        if name not in state and is_count(name):
            continue
        if name not in state:
            raise missing_tensor(source, name, [] if state.keys() & expected.keys() else state)
        if state[name].shape != tensor.shape:
            raise misshapen(source, name, state[name], tensor)
    for name, tensor in state.items():
        if name not in expected:
            raise unknown_tensor(source, name)
        check_kind(source, name, tensor, expected[name])
        # A buffer may be infinite by design (an attention mask); it then equals the model's own.
        odd = not _is_finite(tensor)
        if odd and not torch.equal(tensor, expected[name].to(tensor)):
            raise not_finite(source, name)
    state = _with_counts(state, expected)
    return {name: state[name] for name in expected}


def check_kind(source: object, name: str, tensor: Tensor, wanted: Tensor) -> None:
    """Check that a tensor's numbers can be those of the model's tensor.

    Raises:
        UserError: they are complex where the model's are not, or integers for floating-point ones.
    """
    if tensor.is_complex() and not wanted.is_complex():
        raise UserError(
            f"{source}: tensor {name!r} is complex ({tensor.dtype}), and the model's is not"
        )
    inexact = tensor.is_floating_point() or tensor.is_complex()
    if wanted.is_floating_point() and not inexact:
        raise UserError(
            f"{source}: tensor {name!r} holds integers ({tensor.dtype}), and the model needs "
            f"{wanted.dtype}; save the weights as they were trained"
        )


def _with_counts(
    state: Mapping[str, Tensor], expected: Mapping[str, Tensor]
) -> Mapping[str, Tensor]:
    """Return a state with batch norm's counts of batches, 0 as PyTorch has it if it lacks them."""
    lacks = [name for name in expected if is_count(name) and name not in state]
    return {**state, **{n: torch.zeros_like(expected[n]) for n in lacks}} if lacks else state


def _is_finite(tensor: Tensor) -> bool:
    if tensor.is_floating_point() and tensor.element_size() == 1:  # no isfinite of 8 bits
        tensor = tensor.float()
    inexact = tensor.is_floating_point() or tensor.is_complex()
    return not inexact or bool(torch.isfinite(tensor).all())


def buffers_of(model: nn.Module) -> dict[str, Tensor]:
    """Return the buffers in a model's state, by name."""
    module = unwrap(model)
    saved = module.state_dict().keys()
    return {name: buffer for name, buffer in module.named_buffers() if name in saved}


def buffers_within(weights: Weights, model: nn.Module) -> dict[str, Tensor] | None:
    """Return copies of the buffers in weights of a model, on its device; None if some are missing.

    Raises:
        UserError: one is of another shape or kind than the model's; or a module has other values
            than the model in a buffer that is not in its state.
    """
    if isinstance(weights, nn.Module):
        check_unsaved(unwrap(model), unwrap(weights), "the weights")
    own = buffers_of(model)
    state = _with_counts(under_names(state_of(weights), unwrap(model).state_dict()), own)
    if not own.keys() <= state.keys():
        return None
    for name, buffer in own.items():
        if state[name].shape != buffer.shape:
            raise misshapen("the weights", name, state[name], buffer)
        check_kind("the weights", name, state[name], buffer)
    return {name: state[name].detach().to(buffer, copy=True) for name, buffer in own.items()}


def missing_tensor(source: object, name: str, others: Iterable[str] = ()) -> UserError:
    """Return the error for weights without a tensor of the model, which have others instead."""
    first = next(iter(others), None)
    hint = "" if first is None else f"; none of its names is the model's: the first is {first!r}"
    return UserError(f"{source} has no tensor {name!r}, but the model needs it{hint}")


def unknown_tensor(source: object, name: str) -> UserError:
    """Return the error for weights with a tensor that the model does not have."""
    return UserError(f"{source} has a tensor {name!r}, but the model has none of that name")


def misshapen(source: object, name: str, tensor: Tensor, wanted: Tensor) -> UserError:
    """Return the error for a tensor that is not of the model's shape."""
    return UserError(
        f"{source}: tensor {name!r} has shape {tuple(tensor.shape)}, "
        f"the model needs {tuple(wanted.shape)}"
    )


def first_not_finite(tensors: Iterable[tuple[str, Tensor]]) -> str | None:
    """Return the name of the first tensor with NaN or infinity; waits for the device once."""
    named = list(tensors)
    if not named:
        return None
    finite = torch.stack([torch.isfinite(tensor).all() for _, tensor in named]).tolist()
    return next((name for (name, _), sound in zip(named, finite, strict=True) if not sound), None)


def not_finite(source: object, name: str) -> UserError:
    """Return the error for a tensor with NaN or infinity."""
    return UserError(f"{source}: tensor {name!r} holds values that are not finite")


def encode_weights(state: Mapping[str, Tensor], metadata: Mapping[str, str] | None = None) -> bytes:
    """Return a state dict as the bytes of a ``.safetensors`` file: equal ones, equal bytes."""
    data = save(dict(state), metadata=dict(metadata) if metadata else None)
    return _with_sorted_metadata(data) if metadata and len(metadata) > 1 else data


def _with_sorted_metadata(data: bytes) -> bytes:
    """Return safetensors bytes with sorted metadata, which ``save`` writes in any order.

    Spaces pad the header to a multiple of 8.
    """
    header, rest = _split_header(data, "what was written")
    header["__metadata__"] = dict(sorted((header["__metadata__"] or {}).items()))
    text = json.dumps(header, separators=(",", ":"), ensure_ascii=False).encode()
    text += b" " * (-len(text) % 8)
    return len(text).to_bytes(8, "little") + text + rest


def decode_weights(data: bytes, source: object) -> dict[str, Tensor]:
    """Return the tensors in ``.safetensors`` bytes; ``source`` names them in errors.

    Raises:
        UserError: the bytes are not a complete safetensors file.
    """
    try:
        return load(data)
    except (SafetensorError, ValueError, TypeError, RuntimeError) as error:
        reason = str(error).split("\n")[0]
    except KeyError as error:
        reason = f"this version of safetensors does not know its type {error}"
    raise UserError(f"{source} is not a complete safetensors file: {reason}; {RESTORE}") from None


def read_weights(path: str | Path) -> dict[str, Tensor]:
    """Return the state dict in a ``.safetensors`` file or, unpickled safely, a ``.pt`` file.

    For a training state of :func:`write_state` these are its model's weights.

    Raises:
        UserError: no such file, or it holds no state dict, several, or an ensemble.
    """
    path = Path(path)
    if path.name.endswith(".index.json") or path.suffix == ".npz":
        raise UserError(_NOT_WEIGHTS[path.suffix].format(path))
    if path.suffix == ".safetensors":
        data = read_bytes(path, "weights file")
        tensors, metadata = decode_weights(data, path), read_metadata(data, path)
        if ENSEMBLE in metadata:
            raise UserError(
                f"{path} holds an ensemble and not one network; load it with "
                "fge.Ensemble.load(path, model)"
            )
        return _model_weights(tensors) if _SKELETON in metadata else tensors
    return _read_torch_weights(path)


_NOT_WEIGHTS = {
    ".json": "{} lists the files of a model in parts; load it with its library and save "
    "model.state_dict()",
    ".npz": "{} holds NumPy arrays, not weights; save model.state_dict() as .safetensors or .pt",
}


def is_state(path: Path) -> bool:
    """Return whether a ``.safetensors`` file is a training state of :func:`write_state`."""
    return _SKELETON in read_metadata(read_bytes(path), path)


def _model_weights(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return the weights in the state of a learner or in a run's checkpoint."""
    for prefix in ("model.", "learner.model."):
        named = {k.removeprefix(prefix): v for k, v in tensors.items() if k.startswith(prefix)}
        if named:
            return named
    return {}


def _read_torch_weights(path: Path) -> dict[str, Tensor]:
    check_file(path, "weights file")
    check_fits(_unpacked_size(path), f"{path} needs", "give a smaller file")
    try:
        with warnings.catch_warnings():  # about kinds of tensors that are refused below
            warnings.simplefilter("ignore")
            with torch.serialization.safe_globals([_OPTIONS]):
                value = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # torch raises many types for a bad file
        pickled = re.search(r"GLOBAL ([\w.]+)", str(error))
        # PyTorch's own reasons advise to read the file unsafely.
        reason = "it holds something else, or is damaged; save model.state_dict()"
        if path.stat().st_size == 0:
            reason = "it is empty"
        if pickled:
            reason = f"it holds a pickled {pickled[1]}; save model.state_dict() alone"
        if "TorchScript archive" in str(error):
            raise UserError(f"{path} is a TorchScript archive; save model.state_dict()") from None
        raise UserError(f"{path} cannot be loaded as a plain state dict: {reason}") from None
    value = weights_within(value, path)
    if not isinstance(value, dict) or not all(_names_tensor(*entry) for entry in value.items()):
        raise UserError(f"{path} holds no state dict (a mapping of names to tensors){_of(value)}")
    check_plain(value, f"{path}: tensor")
    # An expanded tensor is smaller in its file than here.
    needed = sum(tensor.numel() * tensor.element_size() for tensor in value.values())
    check_fits(needed, f"the tensors in {path} need", "give a smaller file")
    return canonical_state(value)


def _unpacked_size(path: Path) -> int:
    """Return the bytes that a ``.pt`` file holds: it is a zip, which somebody may have packed."""
    try:
        with zipfile.ZipFile(path) as archive:
            unpacked = sum(info.file_size for info in archive.infolist())
    except Exception:  # an older format, or a damaged file, which is told when it is loaded
        unpacked = 0
    return max(unpacked, path.stat().st_size)


def _names_tensor(name: Any, value: Any) -> bool:
    return isinstance(name, str) and isinstance(value, Tensor)


def _of(value: Any) -> str:
    """Return words for what a file holds instead of a state dict."""
    if not isinstance(value, dict):
        return f", but a {type(value).__name__}; save model.state_dict()"
    odd = next(name for name, entry in value.items() if not _names_tensor(name, entry))
    what = type(value[odd]).__name__ if isinstance(odd, str) else "tensor without a name"
    return f": its entry {odd!r} is a {what}; save model.state_dict() alone"


def write_state(path: str | Path, value: dict[str, Any]) -> None:
    """Write a nested value of dicts, lists, plain scalars and tensors, atomically."""
    tensors: dict[str, Tensor] = {}
    skeleton = _split(value, "", tensors)
    skeleton[_CHECKSUM] = _checksum(skeleton, tensors)
    write_bytes(Path(path), save(tensors, metadata={_SKELETON: json.dumps(skeleton)}))


def read_state(path: str | Path) -> dict[str, Any]:
    """Return what :func:`write_state` wrote.

    Raises:
        UserError: the file is incomplete or not a training state.
    """
    return decode_state(read_bytes(path), path)


def decode_state(data: bytes, source: object) -> dict[str, Any]:
    """Return the state in bytes from :func:`write_state`; ``source`` names them in errors.

    Raises:
        UserError: the bytes are incomplete, changed, or not a training state.
    """
    tensors = decode_weights(data, source)
    metadata = read_metadata(data, source)
    if _SKELETON not in metadata:
        raise UserError(f"{source} is not a training state; {RESTORE}")
    damaged = f"{source} has a damaged header and is not a training state any more"
    text = metadata[_SKELETON].encode()
    skeleton = parse_json(text, dict[str, Any], damaged, infinite=True)
    # States of earlier versions have no checksum.
    if skeleton.pop(_CHECKSUM, None) not in (None, _checksum(skeleton, tensors)):
        raise UserError(f"{damaged}: its checksum is another; {RESTORE}")
    try:
        joined = _join(skeleton, tensors)
    except ValueError as error:
        raise UserError(f"{damaged}: {error}; {RESTORE}") from None
    if not isinstance(joined, dict):
        raise UserError(f"{damaged}: it holds no names; {RESTORE}")
    return joined


def read_metadata(data: bytes, source: object) -> dict[str, str]:
    """Return what the header of safetensors bytes says beside the tensors, by name.

    Raises:
        UserError: there is no such header; ``source`` names the bytes.
    """
    return _split_header(data, source)[0].get("__metadata__") or {}


def _split_header(data: bytes, source: object) -> tuple[_Header, bytes]:
    """Return the JSON header of safetensors bytes, which follows its 8-byte length, and the rest.

    Raises:
        UserError: there is no such header; ``source`` names the bytes.
    """
    end = 8 + int.from_bytes(data[:8], "little")
    damaged = f"{source} is not a complete safetensors file"
    return parse_json(data[8:end], _Header, damaged), data[end:]


def _checksum(skeleton: dict[str, Any], tensors: Mapping[str, Tensor]) -> str:
    """Return the SHA-256 of what the header of a state says."""
    kinds = [[name, str(tensors[name].dtype), [*tensors[name].shape]] for name in sorted(tensors)]
    return sha256(json.dumps([skeleton, kinds]).encode())


def _split(value: Any, name: str, tensors: dict[str, Tensor]) -> Any:
    """Move the tensors of a nested value into ``tensors``; return the rest as JSON."""
    if isinstance(value, Tensor):
        while name in tensors:  # {"a": {"b": ..}, "a.b": ..}
            name += "_"
        tensors[name] = value.detach().to("cpu").clone(memory_format=torch.contiguous_format)
        return {"tensor": name}
    if isinstance(value, Mapping):
        prefix = f"{name}." if name else ""
        return {"items": [[k, _split(v, f"{prefix}{k}", tensors)] for k, v in value.items()]}
    if isinstance(value, list | tuple):
        return {"list": [_split(v, f"{name}.{i}", tensors) for i, v in enumerate(value)]}
    if value is None or isinstance(value, bool | int | float | str):
        return {"value": value}
    raise TypeError(f"cannot store a {type(value).__name__} at {name!r}")


def _join(node: Any, tensors: Mapping[str, Tensor]) -> Any:
    """Return the value whose tensors :func:`_split` moved, or raise a ValueError."""
    match node:
        case {"tensor": str(name)} if name in tensors:
            return tensors[name]
        case {"items": list(pairs)} if all(_is_pair(pair) for pair in pairs):
            return {key: _join(child, tensors) for key, child in pairs}
        case {"list": list(parts)}:
            return [_join(part, tensors) for part in parts]
        case {"value": (None | bool() | int() | float() | str()) as value}:
            return value
    raise ValueError(f"{str(node)[:60]!r} stands for no value")


def _is_pair(pair: Any) -> bool:
    """Return whether this is a key, which is a name or a number, and what it stands for."""
    return isinstance(pair, list) and len(pair) == 2 and isinstance(pair[0], str | int | float)
