"""Which powers of t per tensor make a network's output scale with one power of t.

Multiplying a ReLU network's weights by powers of t multiplies each activation by a power of t, as
long as activations of one power meet wherever branches join. The network is traced with
``torch.fx``, and what each of its operations demands becomes an equation between powers.
"""

from __future__ import annotations

import inspect
import operator
from collections.abc import Sequence
from typing import Any, NoReturn

import torch
import torch.nn.functional as F
from torch import Tensor, fx, nn

from fge.curves.powers import Powers
from fge.errors import UserError


class _Operations:
    """Operations by name: functions of ``torch`` and ``operator``, and methods of tensors."""

    def __init__(self, names: str) -> None:
        self.names = frozenset(names.split())
        spaces = (F, torch, operator)
        self.functions = {getattr(s, n) for n in self.names for s in spaces if hasattr(s, n)}

    def __contains__(self, node: fx.Node) -> bool:
        known: Any = self.names if node.op == "call_method" else self.functions
        return node.target in known


def _classes(names: str) -> tuple[type[nn.Module], ...]:
    return tuple(getattr(nn, name) for name in names.split())


_CONVOLUTIONS = "conv1d conv2d conv3d conv_transpose1d conv_transpose2d conv_transpose3d"
_POOLS = (
    "max_pool1d max_pool2d max_pool3d avg_pool1d avg_pool2d avg_pool3d "
    "adaptive_max_pool1d adaptive_max_pool2d adaptive_max_pool3d "
    "adaptive_avg_pool1d adaptive_avg_pool2d adaptive_avg_pool3d"
)
_WEIGHTED = _Operations(f"linear {_CONVOLUTIONS}")
_DROPOUTS = _Operations("dropout dropout1d dropout2d dropout3d alpha_dropout")
_UNCHANGED = _Operations(
    f"{_POOLS} relu relu_ leaky_relu leaky_relu_ interpolate pixel_shuffle pixel_unshuffle "
    "channel_shuffle flatten unflatten view view_as reshape reshape_as permute transpose t T mT "
    "swapaxes movedim squeeze unsqueeze expand expand_as repeat contiguous clone detach to float "
    "double mean sum amax amin abs neg flip roll chunk split unbind narrow select getitem cat "
    "concat stack maximum minimum"
)
_SUMS = _Operations("add add_ sub sub_ iadd isub")
_PRODUCTS = _Operations("mul multiply matmul")
_QUOTIENTS = _Operations("truediv div divide")
_SHAPES = _Operations("size dim ndimension numel stride")

_WEIGHTED_LAYERS = _classes(
    "Linear Conv1d Conv2d Conv3d ConvTranspose1d ConvTranspose2d ConvTranspose3d"
)
_NORM_LAYERS = _classes("BatchNorm1d BatchNorm2d BatchNorm3d SyncBatchNorm")
_UNCHANGED_LAYERS = _classes(
    "Identity ReLU LeakyReLU RReLU Flatten Unflatten Upsample UpsamplingNearest2d "
    "UpsamplingBilinear2d PixelShuffle PixelUnshuffle ChannelShuffle "
    "Dropout Dropout1d Dropout2d Dropout3d AlphaDropout FeatureAlphaDropout "
    "MaxPool1d MaxPool2d MaxPool3d AvgPool1d AvgPool2d AvgPool3d "
    "AdaptiveMaxPool1d AdaptiveMaxPool2d AdaptiveMaxPool3d "
    "AdaptiveAvgPool1d AdaptiveAvgPool2d AdaptiveAvgPool3d "
    "ZeroPad1d ZeroPad2d ZeroPad3d ReflectionPad1d ReflectionPad2d ReflectionPad3d "
    "ReplicationPad1d ReplicationPad2d ReplicationPad3d CircularPad1d CircularPad2d CircularPad3d"
)

_HOOKED = "has hooks, which may change what it computes; remove them"


def _is(module: nn.Module, kinds: Sequence[type[nn.Module]]) -> bool:
    """Say whether the module is of such a kind and computes what that kind does."""
    return any(isinstance(module, kind) and type(module).forward is kind.forward for kind in kinds)


class _Tracer(fx.Tracer):
    """Takes layers of the user's own as a whole where they compute what a known kind does."""

    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        known = _is(m, (*_WEIGHTED_LAYERS, *_NORM_LAYERS, *_UNCHANGED_LAYERS))
        return known or super().is_leaf_module(m, module_qualified_name)


def _trace(model: nn.Module) -> list[fx.Node]:
    """Return the operations that the output depends on, in the order of their execution."""
    options = {
        name: parameter.default
        for name, parameter in inspect.signature(model.forward).parameters.items()
        if parameter.default is None or isinstance(parameter.default, bool | int | float | str)
    }
    try:
        graph = _Tracer().trace(model, concrete_args=options)
    except Exception as error:  # whatever the model's own code raises on symbolic inputs
        reason = f"{type(error).__name__}: {str(error).strip()}".split("\n")[0]
        raise UserError(
            f"no path through the origin: torch.fx cannot trace {type(model).__name__}, whose "
            f"forward may not branch on, iterate over or assign into its tensors ({reason})"
        ) from None
    needed: set[fx.Node] = set()
    for node in reversed(graph.nodes):
        changes_input = node.op == "call_method" and str(node.target).endswith("_")
        if node.op == "output" or changes_input:
            needed.add(node)
        if node in needed:
            needed.update(node.all_input_nodes)
    return [node for node in graph.nodes if node in needed]


class PowerReader:
    """Follows the power of t through a network, from 0 at its input, and collects equations.

    Args:
        model: in evaluation mode; what it computes there counts.

    Attributes:
        powers: the unknown powers and their equations, to be solved.
        tensors: the unknown of each parameter and running statistic, by the tensor's ``id``.
        eps: the unknown of each batch-norm layer's ``eps``, by the layer's ``id``.
        output: the unknown power of the output.

    Raises:
        UserError: the model cannot be traced, or something in it is not homogeneous.
    """

    def __init__(self, model: nn.Module) -> None:
        if model._forward_hooks or model._forward_pre_hooks:
            raise UserError(f"no path through the origin: the network {_HOOKED}")
        self.model = model
        self.powers = Powers()
        self.zero = self.powers.unknown(0, 0)
        self.tensors = {id(p): self.powers.unknown(1) for p in model.parameters()}
        self.eps: dict[int, int] = {}
        self.degrees: dict[fx.Node, int | None] = {}  # None: not a tensor of the network
        self.moving: set[fx.Node] = set()  # depends on the input
        for node in _trace(model):
            if node.op == "placeholder" or self.moving.intersection(node.all_input_nodes):
                self.moving.add(node)
            self.degrees[node] = self._degree(node)
            self.output = self._constant(node)

    def _degree(self, node: fx.Node) -> int | None:
        if node.op == "placeholder":
            return self.zero
        if node.op == "get_attr":
            value = operator.attrgetter(str(node.target))(self.model)
            return self.tensors.get(id(value), self.zero)
        joined = [d for n in node.all_input_nodes if (d := self.degrees[n]) is not None]
        if node.op == "call_module":
            return self._layer(node, self._join(node, joined or [self.zero]))
        if not joined or node in _SHAPES:
            return None
        if node.target is getattr:
            return joined[0] if node.args[1] in _UNCHANGED.names else None
        return self._join(node, joined) if node.op == "output" else self._operation(node, joined)

    def _layer(self, node: fx.Node, degree: int) -> int:
        module: Any = self.model.get_submodule(str(node.target))
        if module._forward_hooks or module._forward_pre_hooks:
            self._refuse(node, _HOOKED)
        if _is(module, _UNCHANGED_LAYERS):
            return degree
        if _is(module, _WEIGHTED_LAYERS):
            bias = None if module.bias is None else self._tensor(node, module.bias)
            return self._affine(node, degree, self._tensor(node, module.weight), bias)
        if _is(module, _NORM_LAYERS):
            return self._batch_norm(node, module, degree)
        return self._refuse(node, "is not known to be homogeneous")

    def _batch_norm(self, node: fx.Node, module: Any, degree: int) -> int:
        squared = [degree, degree]
        for tensor, parts in ((module.running_mean, [degree]), (module.running_var, squared)):
            if tensor is not None:
                if id(tensor) not in self.tensors:
                    self.tensors[id(tensor)] = self.powers.unknown(0)
                self.powers.equate(_place(node), self.tensors[id(tensor)], *parts)
        if id(module) not in self.eps:
            self.eps[id(module)] = self.powers.unknown(0)
        self.powers.equate(_place(node), self.eps[id(module)], *squared)
        if module.weight is None:
            return self.zero
        weight = self._tensor(node, module.weight)
        if module.bias is not None:
            self.powers.equate(_place(node), self._tensor(node, module.bias), weight)
        return weight

    def _operation(self, node: fx.Node, joined: list[int]) -> int:
        if node in _DROPOUTS and node.kwargs.get("training", node.kwargs.get("train", True)):
            self._refuse(node, "is switched on in evaluation too")
        if node.target is F.pad and node.kwargs.get("value"):
            self._refuse(node, "pads with a value other than 0")
        if node in _UNCHANGED or node in _DROPOUTS or node.target is F.pad:
            return self._join(node, joined)
        if node in _WEIGHTED:
            return self._functional(node)
        operands = [*node.args[:2], *(v for k, v in node.kwargs.items() if k == "other")]
        if node in _SUMS:
            return self._join(node, [self._constant(o) for o in operands if o != 0])
        if node.kwargs.get("rounding_mode"):
            self._refuse(node, "rounds its result")
        divisors = operands[1:] if node in _QUOTIENTS else []
        if any(self._constant(operand) != self.zero for operand in divisors):
            self._refuse(node, "divides by something that scales with t")
        if node not in _PRODUCTS and node not in _QUOTIENTS:
            self._refuse(node, "is not known to be homogeneous")
        if sum(operand in self.moving for operand in operands) > 1:
            self._refuse(node, "combines two activations, which is not followed")
        return self._total(node, [self._constant(operand) for operand in operands])

    def _functional(self, node: fx.Node) -> int:
        named = [node.kwargs[k] for k in ("input", "weight", "bias") if k in node.kwargs]
        inputs, weight, bias = [*node.args[:3], *named, None][:3]
        if weight in self.moving:
            self._refuse(node, "computes its weights from activations")
        shift = None if bias is None else self._constant(bias)
        return self._affine(node, self._constant(inputs), self._constant(weight), shift)

    def _affine(self, node: fx.Node, degree: int, weight: int, bias: int | None) -> int:
        total = self._total(node, [degree, weight])
        if bias is not None:
            self.powers.equate(_place(node), bias, total)
        return total

    def _total(self, node: fx.Node, parts: list[int]) -> int:
        total = self.powers.unknown(0)
        self.powers.equate(_place(node), total, *parts)
        return total

    def _join(self, node: fx.Node, degrees: list[int]) -> int:
        """Demand that what meets at the node has one power of t."""
        for other in dict.fromkeys(degrees):
            if other != degrees[0]:
                self.powers.equate(_place(node), degrees[0], other)
        return degrees[0]

    def _constant(self, operand: Any) -> int:
        """Return the power of an operand; a number stays as it is along the path."""
        degree = self.degrees[operand] if isinstance(operand, fx.Node) else None
        return self.zero if degree is None else degree

    def _tensor(self, node: fx.Node, tensor: Tensor) -> int:
        if id(tensor) not in self.tensors:
            self._refuse(node, "computes its weights from other tensors (a parametrization)")
        return self.tensors[id(tensor)]

    def _refuse(self, node: fx.Node, reason: str) -> NoReturn:
        raise UserError(f"no path through the origin: {_place(node)} {reason}")


def _place(node: fx.Node) -> str:
    """Name the layer of a node; for a function, the function and the module that calls it."""
    stack = list(node.meta.get("nn_module_stack", {}).values())
    name, kind = stack[-1] if stack else ("", None)
    layer = f"{name!r} ({getattr(kind, '__name__', kind)})" if stack else "the network's forward"
    if node.op == "call_module":
        return f"layer {layer}"
    operation = getattr(node.target, "__name__", str(node.target))
    return f"{operation!r} in {layer}"
