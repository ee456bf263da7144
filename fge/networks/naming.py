"""Names of tensors under the usual wrappers of a network, seen through where nothing is lost.

``DistributedDataParallel`` and ``DataParallel`` put ``module.`` before every name, Lightning
``model.``, ``torch.compile`` ``_orig_mod.``; FSDP and activation checkpoints put theirs anywhere.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Any

from torch import Tensor

_ANYWHERE = ("_orig_mod.", "_fsdp_wrapped_module.", "_checkpoint_wrapped_module.")
_AVERAGED_MODEL = "n_averaged"
"""What ``torch.optim.swa_utils.AveragedModel`` keeps beside its ``module.``."""
_CONTAINERS = ("state_dict", "model_state_dict", "model_state", "model", "module", "network", "net")
"""The keys under which checkpoints usually keep the weights, the first of which counts."""


def weights_within(checkpoint: Any) -> Any:
    """Return the state dict in a checkpoint such as ``{"epoch": 3, "model_state_dict": ...}``.

    >>> weights_within({"epoch": 3, "state_dict": {"weight": 1.0}})
    {'weight': 1.0}
    """
    while isinstance(checkpoint, Mapping):
        inner = (checkpoint[key] for key in _CONTAINERS if isinstance(checkpoint.get(key), Mapping))
        found = next(inner, None)
        if found is None:
            break
        checkpoint = found
    return checkpoint


def under_names(state: Mapping[str, Tensor], names: Collection[str]) -> Mapping[str, Tensor]:
    """Return a state under the given names if it differs from them by wrappers only.

    A prefix is dropped if all names have it; so is what is not under Lightning's ``model.``. The
    names must then be exactly the given ones; otherwise the state is returned as it is.

    >>> under_names({"module.weight": 1, "module.bias": 2}, ["weight", "bias"])
    {'weight': 1, 'bias': 2}
    >>> under_names({"model.weight": 1, "loss.weight": 2}, ["weight"])
    {'weight': 1}
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
    inner = {name.removeprefix(prefix): t for name, t in state.items() if name.startswith(prefix)}
    return inner if part and inner else None
