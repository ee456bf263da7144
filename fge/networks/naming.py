"""Names of tensors under the usual wrappers of a network, seen through where nothing is lost.

``DistributedDataParallel`` and ``DataParallel`` put ``module.`` before every name, Lightning
``model.``, ``torch.compile`` ``_orig_mod.``; FSDP and activation checkpoints put theirs anywhere.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Any

import torch
from torch import Tensor

from fge.errors import UserError

_ANYWHERE = ("_orig_mod.", "_fsdp_wrapped_module.", "_checkpoint_wrapped_module.")
_AVERAGED_MODEL = "n_averaged"
"""What ``torch.optim.swa_utils.AveragedModel`` keeps beside its ``module.``."""
_CONTAINERS = ("state_dict", "model_state_dict", "model_state", "model", "module", "network", "net")
"""The keys under which checkpoints usually keep the weights, the first of which counts."""


def weights_within(checkpoint: Any, source: object = "the checkpoint") -> Any:
    """Return the state dict in a checkpoint such as ``{"epoch": 3, "model_state_dict": ...}``.

    Of weights that are kept twice, as those of an exponential average (``ema``) beside the trained
    ones, none is preferred. ``source`` names the checkpoint in errors.

    >>> weights_within({"epoch": 3, "state_dict": {"weight": 1.0}})
    {'weight': 1.0}

    Raises:
        UserError: there are other weights of the same names.
    """
    while isinstance(checkpoint, Mapping):
        keys = (key for key in _CONTAINERS if isinstance(checkpoint.get(key), Mapping))
        chosen = next(keys, None)
        if chosen is None:
            break
        _check_only(checkpoint, chosen, source)
        checkpoint = checkpoint[chosen]
    return checkpoint


def _check_only(checkpoint: Mapping[Any, Any], chosen: str, source: object) -> None:
    """Check that no other entry of a checkpoint holds other weights of the chosen one's names."""
    weights = checkpoint[chosen]
    if not _are_weights(weights):  # a container within
        return
    for key, value in checkpoint.items():
        if key != chosen and isinstance(value, Mapping):
            rival = weights_within(value, source)
            if _are_weights(rival) and _differ(weights, rival):
                raise _ambiguous(source, chosen, key)


def _are_weights(value: Any) -> bool:
    return (
        isinstance(value, Mapping)
        and len(value) > 0
        and all(isinstance(n, str) and isinstance(t, Tensor) for n, t in value.items())
    )


def _differ(weights: Mapping[str, Tensor], rival: Mapping[str, Tensor]) -> bool:
    """Return whether two states have the same names, perhaps under wrappers, and other values."""
    renamed = under_names(rival, weights)
    if renamed.keys() != weights.keys():
        return False
    pairs = ((weights[name], tensor) for name, tensor in renamed.items())
    return not all(_are_equal(*pair) for pair in pairs)


def _are_equal(one: Tensor, other: Tensor) -> bool:
    if (one.dtype, one.shape, one.device) != (other.dtype, other.shape, other.device):
        return False
    try:
        return torch.equal(one, other)
    except (NotImplementedError, RuntimeError):  # sparse, or without values
        return False


def _ambiguous(source: object, chosen: object, key: object) -> UserError:
    return UserError(
        f"{source} holds weights of the same names under {chosen!r} and under {key!r}, and they "
        "differ; save alone the ones that are meant"
    )


def under_names(state: Mapping[str, Tensor], names: Collection[str]) -> Mapping[str, Tensor]:
    """Return a state under the given names if it differs from them by wrappers only.

    A prefix is dropped if all names have it; so is what is not under Lightning's ``model.``. The
    names must then be exactly the given ones; otherwise the state is returned as it is.

    >>> under_names({"module.weight": 1, "module.bias": 2}, ["weight", "bias"])
    {'weight': 1, 'bias': 2}
    >>> under_names({"model.weight": 1, "loss.weight": 2}, ["weight"])
    {'weight': 1}

    Raises:
        UserError: what is not under ``model.`` are other weights of the same names.
    """
    if state.keys() == set(names):
        return state
    wanted = {_bare(name): name for name in names}
    found = {_bare(name): tensor for name, tensor in state.items()}
    if len(wanted) < len(names) or len(found) < len(state):
        return state
    while found.keys() != wanted.keys():
        inner = _without_prefix(found)
        if inner is None:
            return state
        found = inner
    return {wanted[name]: tensor for name, tensor in found.items()}


def _bare(name: str) -> str:
    for wrapper in _ANYWHERE:
        name = name.replace(wrapper, "")
    return name


def _without_prefix(state: Mapping[str, Tensor]) -> dict[str, Tensor] | None:
    """Return a state without the first part of its names, or None if there is no wrapper."""
    parts = {name.partition(".")[0] for name in state} - {_AVERAGED_MODEL}
    part = next(iter(parts)) if len(parts) == 1 else "model" if "model" in parts else None
    prefix = f"{part}."
    inner = _below(state, prefix)
    for other in parts - {part} if inner else ():
        rival = _below(state, f"{other}.")
        if _are_weights(inner) and _are_weights(rival) and _differ(inner, rival):
            raise _ambiguous("the state", prefix, f"{other}.")
    return inner if part and inner else None


def _below(state: Mapping[str, Tensor], prefix: str) -> dict[str, Tensor]:
    return {name.removeprefix(prefix): t for name, t in state.items() if name.startswith(prefix)}
