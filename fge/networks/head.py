"""The head of a classifier, and weights from elsewhere, whose head may be that of other classes."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence

from torch import Tensor, nn
from torch.nn.modules.batchnorm import _NormBase
from torch.nn.utils import parametrize

from fge.errors import UserError
from fge.networks.naming import body_under_names, is_count, under_names
from fge.networks.state import check_plain, fitting, unwrap

_AUXILIARY = re.compile(r"(^|\.)(aux1|aux2|AuxLogits)\.")
"""Names in torchvision's auxiliary heads."""
_NO_HEADS = (nn.PReLU, _NormBase, nn.GroupNorm, nn.LayerNorm)
"""Layers with parameters that may stand behind a head."""


def find_head(model: nn.Module) -> tuple[str, ...]:
    """Return the names of the parameters of a classifier's head.

    It is what ``get_classifier`` returns (timm has it), else of torchvision's models the last
    linear layer, else the last module with parameters of its own, norms and activations apart.

    >>> find_head(nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 3)))
    ('2.weight', '2.bias')

    Raises:
        UserError: the model has no parameters, or all of them belong to the head.
    """
    module = unwrap(model)
    heads = _classifiers(module) or _last_linear(module) or _last_module(module)
    inside = {id(p) for head in heads for p in head.parameters()}
    names = tuple(name for name, p in module.named_parameters() if id(p) in inside)
    if not names:
        raise UserError(f"the model, a {type(module).__name__}, has no parameters")
    return names


def _classifiers(module: nn.Module) -> Sequence[nn.Module]:
    """Return what a timm model says is its classifier, if that has parameters."""
    getter = getattr(module, "get_classifier", None)
    if not callable(getter):
        return []
    found = getter()
    parts = found if isinstance(found, list | tuple) else [found]
    return [part for part in parts if isinstance(part, nn.Module) and _has_parameters(part)]


def _last_linear(module: nn.Module) -> Sequence[nn.Module]:
    if not type(module).__module__.startswith("torchvision."):
        return []
    return [part for part in module.modules() if isinstance(part, nn.Linear)][-1:]


def _has_parameters(module: nn.Module) -> bool:
    return next(module.parameters(), None) is not None


def _last_module(module: nn.Module) -> Sequence[nn.Module]:
    """Return the last module with parameters of its own that is no norm and no activation."""
    own = [
        part
        for part in _without_parametrizations(module)
        if parametrize.is_parametrized(part)
        or next(part.parameters(recurse=False), None) is not None
    ]
    weighted = [part for part in own if not isinstance(part, _NO_HEADS)]
    return (weighted or own)[-1:]


def _without_parametrizations(module: nn.Module) -> Iterator[nn.Module]:
    """Yield modules, those that compute the weights of another one apart."""
    yield module
    for name, child in module.named_children():
        if not (name == "parametrizations" and parametrize.is_parametrized(module)):
            yield from _without_parametrizations(child)


def fitting_backbone(
    model: nn.Module, state: Mapping[str, Tensor], source: object
) -> tuple[dict[str, Tensor], tuple[str, ...]]:
    """Return ``state`` under the model's names, without a head that does not fit, and that head.

    The names of usual wrappers (``module.``, ``model.``, ``_orig_mod.``) are seen through, and what
    is beside the network is left out. The head is left out as a whole if a tensor of it has another
    shape than the model's, or another name, or is missing. So are auxiliary heads of torchvision's
    models that the model does without.

    Args:
        model: of the wanted names and shapes.
        state: tensors by name, of a network that may be for other classes, or have no head.
        source: names it in errors.

    Returns:
        What the model can load, and the names of the tensors of its head that are left out.

    Raises:
        UserError: another tensor is missing, unknown, not finite or of another shape; the message
            names the first.
    """
    module = unwrap(model)
    expected = module.state_dict()
    if getattr(module, "aux_logits", True) is False:
        state = {n: t for n, t in state.items() if not _AUXILIARY.search(n)}
    head = [name for name in find_head(model) if name in expected]
    body = [name for name in expected if name not in head]
    found = under_names(state, expected)
    if not expected.keys() <= found.keys() | set(filter(is_count, expected)):
        found = body_under_names(state, body, head) or found
    check_plain(found, f"{source}: tensor")
    left_out = any(name not in found or found[name].shape != expected[name].shape for name in head)
    whole = all(name in found or is_count(name) for name in body)
    if not (left_out and body and whole):
        return fitting(model, found, source), ()
    own = {name: tensor for name, tensor in expected.items() if name in head}
    others = {name: tensor for name, tensor in found.items() if name not in head}
    fitted = fitting(model, {**others, **own}, source)
    return {name: tensor for name, tensor in fitted.items() if name not in head}, tuple(head)
