"""Names of tensors under the usual wrappers of a network, seen through where nothing is lost.

``DistributedDataParallel`` and ``DataParallel`` put ``module.`` before every name, Lightning
``model.``, ``torch.compile`` ``_orig_mod.``; FSDP and activation checkpoints put theirs anywhere.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from fge.errors import UserError

_ANYWHERE = ("_orig_mod.", "_fsdp_wrapped_module.", "_checkpoint_wrapped_module.")
_COUNT = "num_batches_tracked"
_CONTAINERS = (
    *("state_dict", "model_state_dict", "model_state", "model", "module", "network", "net"),
    *("weights", "params", "backbone", "encoder", "student", "teacher"),
    *("ema", "model_ema", "ema_model", "state_dict_ema", "ema_state_dict", "params_ema"),
)
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

    A prefix is dropped if all names have it, and so is what is beside it, as a criterion beside
    Lightning's ``model.``. The names must then be exactly the given ones, but for the counts of
    batch norm, which older files lack; otherwise the state is returned as it is.

    >>> under_names({"module.weight": 1, "module.bias": 2}, ["weight", "bias"])
    {'weight': 1, 'bias': 2}
    >>> under_names({"model.fc.weight": 1, "loss.weight": 2}, ["fc.weight"])
    {'fc.weight': 1}

    Raises:
        UserError: there are two such states, under different prefixes, and they differ.
    """
    if state.keys() == set(names):
        return state
    found, wanted = _bare_names(state), _bare_names(dict.fromkeys(names))
    if found is None or wanted is None:
        return state
    exact = [
        prefix
        for prefix in _prefixes(found, wanted)
        if all(n.removeprefix(prefix) in wanted for n in found if n.startswith(prefix))
    ]
    return _taken(state, found, wanted, exact) if exact else state


def body_under_names(
    state: Mapping[str, Tensor], body: Collection[str], head: Collection[str]
) -> Mapping[str, Tensor] | None:
    """Return the body of a network in a state whose head has other names, or None.

    What is beside the body must have none of its modules, and none of the names of the head: else
    it could be a deeper body.

    >>> body_under_names({"net.a.weight": 1, "net.fc.bias": 2, "x": 3}, ["a.weight"], ["b.weight"])
    {'a.weight': 1}
    >>> body_under_names({"a.0.weight": 1, "a.1.weight": 2}, ["a.0.weight"], ["b.weight"])

    Raises:
        UserError: as :func:`under_names`.
    """
    found, wanted = _bare_names(state), _bare_names(dict.fromkeys(body))
    if not wanted or found is None:
        return None
    modules = {name.partition(".")[0] for name in wanted} | {_bare(name) for name in head}
    fitting = []
    for prefix in _prefixes(found, wanted):
        inside = {n.removeprefix(prefix) for n in found if n.startswith(prefix)}
        others = {name for name in inside if name not in wanted}
        if not {part for name in others for part in (name, name.partition(".")[0])} & modules:
            fitting.append(prefix)
    return _taken(state, found, wanted, fitting) if fitting else None


def is_count(name: str) -> bool:
    """Return whether a name is that of a batch norm's count of batches."""
    return name.rpartition(".")[2] == _COUNT


def _bare_names(state: Mapping[str, Any]) -> dict[str, str] | None:
    """Return names by what they are without wrappers; None if two of them become the same."""
    bare = {_bare(name): name for name in state}
    return bare if len(bare) == len(state) else None


def _prefixes(found: Mapping[str, Any], wanted: Mapping[str, Any]) -> list[str]:
    """Return the prefixes under which all wanted names are found."""
    needed = [name for name in wanted if not is_count(name)]
    if not needed:
        return []
    some = max(needed, key=len)
    possible = [n.removesuffix(some) for n in found if n == some or n.endswith(f".{some}")]
    return [prefix for prefix in possible if all(prefix + name in found for name in needed)]


def _taken(
    state: Mapping[str, Tensor],
    found: Mapping[str, str],
    wanted: Mapping[str, str],
    prefixes: Sequence[str],
) -> dict[str, Tensor]:
    """Return the tensors under a prefix; there may be several if they hold the same."""
    first, *others = (
        {own: state[found[p + name]] for name, own in wanted.items() if p + name in found}
        for p in prefixes
    )
    for prefix, other in zip(prefixes[1:], others, strict=True):
        if not all(_are_equal(first[name], other[name]) for name in first.keys() & other.keys()):
            raise _ambiguous("the state", prefixes[0], prefix)
    return first


def _bare(name: str) -> str:
    for wrapper in _ANYWHERE:
        name = name.replace(wrapper, "")
    return name
