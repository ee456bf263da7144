"""The trivial path of constant error through the origin, for homogeneous networks.

A ReLU network keeps its decisions while its weights shrink to zero, so any two networks are
connected through a useless one (Garipov et al. 2018, arXiv 1802.10026, supplement on trivial
connecting curves). Here each weight tensor has its own power of t, so that batch norm, sums and
concatenations work too: running statistics and ``eps`` are scaled along with the weights.
Therefore this is not a :class:`fge.curves.Curve`, which moves only parameters; do not estimate
batch-norm statistics on it.
"""

from __future__ import annotations

import inspect
import operator
from collections.abc import Iterable, Sequence
from typing import Any, NoReturn

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from scipy.optimize import Bounds, LinearConstraint, milp
from scipy.sparse import csr_array
from torch import Tensor, fx, nn

from fge.errors import UserError
from fge.networks import copy_module

_CONVOLUTIONS = "conv1d conv2d conv3d conv_transpose1d conv_transpose2d conv_transpose3d"
_POOLS = (
    "max_pool1d max_pool2d max_pool3d avg_pool1d avg_pool2d avg_pool3d "
    "adaptive_max_pool1d adaptive_max_pool2d adaptive_max_pool3d "
    "adaptive_avg_pool1d adaptive_avg_pool2d adaptive_avg_pool3d"
)
_HOOKED = "has hooks, which may change its output; remove them"
Array = NDArray[np.float64]


class OriginPath:
    """The path of constant error from a network to the origin, on which logits only shrink.

    At t, the parameter ``name`` is multiplied by t^k with k = ``exponents[name]`` >= 1, running
    statistics and ``eps`` by the powers that keep batch norm homogeneous; the logits are
    t^``output_degree`` times those of the network. The powers are the smallest integers for which
    all activations that are added or concatenated have equal powers: for an input of power d, a
    linear layer or convolution of weight power k has output power d + k, and so has its bias; batch
    norm in evaluation mode has its mean scaled by t^d, its variance and ``eps`` by t^(2d), its
    affine parameters by t^k, and output power k; ReLU, pooling and similar layers keep d.

    The error is constant along the path. If ``output_degree`` >= 1, the cross-entropy tends to
    log C, for C classes, as t tends to 0.

    Args:
        model: any module that ``torch.fx`` can trace; it is copied, not changed, and used in
            evaluation mode, without dropout.

    Attributes:
        exponents: the power of t of each parameter, by name; tied parameters once.
        buffer_exponents: the powers of the running statistics, >= 0.
        eps_exponents: the power of the ``eps`` of each batch-norm layer, by the layer's name.
        output_degree: the power of t of the output.
        smallest_t: the smallest t > 0 whose powers do not underflow the parameters' dtype.

    Raises:
        UserError: ``torch.fx`` cannot trace the model; a layer is not homogeneous (GELU, layer
            norm, softmax, PReLU, products of activations, ...); or branches cannot have equal
            powers (an identity shortcut around a branch without batch norm). The message names
            the layer.
    """

    def __init__(self, model: nn.Module) -> None:
        self._model = copy_module(model).eval()
        reader = PowerReader(self._model)
        weights = {name: reader.tensors[id(p)] for name, p in self._model.named_parameters()}
        powers = reader.powers.solve(weights.values())
        self.exponents = {name: powers[index] for name, index in weights.items()}
        self.buffer_exponents = {
            name: powers[reader.tensors[id(buffer)]]
            for name, buffer in self._model.named_buffers()
            if id(buffer) in reader.tensors
        }
        self.eps_exponents = {
            name: powers[reader.eps[id(module)]]
            for name, module in self._model.named_modules()
            if id(module) in reader.eps
        }
        self.output_degree = powers[reader.output]
        self.smallest_t = self._smallest_t(max(powers))

    def _smallest_t(self, power: int) -> float:
        dtypes = {p.dtype for p in self._model.parameters() if p.is_floating_point()}
        tiny = max((torch.finfo(dtype).tiny for dtype in dtypes), default=0.0)
        bounds = [tiny ** (1 / max(power, 1))]
        for name, exponent in self.eps_exponents.items():
            eps = float(self._model.get_submodule(name).eps)  # type: ignore[arg-type]
            if exponent and eps:  # kernels use at least float32 for eps
                bounds.append((min(tiny, torch.finfo(torch.float32).tiny) / eps) ** (1 / exponent))
        return float(min(1.0, max(bounds)))

    def model_at(self, t: float) -> nn.Module:
        """Return the network at ``t``: a copy in evaluation mode; at 0 the origin itself.

        Args:
            t: from 1, the given network, bitwise, to 0, the origin. The origin keeps ``eps``, so
                its output is 0 and not 0 / 0.

        Raises:
            UserError: ``t`` is outside [0, 1], or so close to 0 that its powers underflow.
        """
        if not 0 <= t <= 1:
            raise UserError(f"t must be from 0 (the origin) to 1 (the network), got {t}")
        if 0 < t < self.smallest_t:
            raise UserError(
                f"t = {t} is so small that its powers underflow; give 0, or at least "
                f"{self.smallest_t:.3g}, or a model of a wider dtype"
            )
        model = copy_module(self._model)
        tensors = {**dict(model.named_parameters()), **dict(model.named_buffers())}
        with torch.no_grad():
            for name, exponent in (*self.exponents.items(), *self.buffer_exponents.items()):
                tensors[name].mul_(t**exponent)
        for name, exponent in self.eps_exponents.items() if t else ():
            module: Any = model.get_submodule(name)
            module.eps *= t**exponent
        return model


class TrivialPath:
    """The path between two networks of one architecture through the origin.

    Args:
        first: the path from the first network to the origin.
        second: the path of the second network, used from the origin to the network.

    Raises:
        UserError: the architectures differ.
    """

    def __init__(self, first: OriginPath, second: OriginPath) -> None:
        shapes = [[t.shape for t in p._model.state_dict().values()] for p in (first, second)]
        if first.exponents != second.exponents or shapes[0] != shapes[1]:
            raise UserError("the two networks of a trivial path must have the same architecture")
        self.first = first
        self.second = second

    def model_at(self, t: float) -> nn.Module:
        """Return the network at ``t``: the first at 0, the origin at 1/2, the second at 1.

        Raises:
            UserError: ``t`` is outside [0, 1], or so close to 1/2 that powers underflow.
        """
        if not 0 <= t <= 1:
            raise UserError(f"t must be from 0 to 1, got {t}")
        return self.first.model_at(1 - 2 * t) if t <= 0.5 else self.second.model_at(2 * t - 1)


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


_WEIGHTED = _Operations(f"linear {_CONVOLUTIONS}")


_DROPOUTS = _Operations("dropout dropout1d dropout2d dropout3d alpha_dropout")


_UNCHANGED = _Operations(
    f"{_POOLS} relu relu_ leaky_relu leaky_relu_ interpolate pixel_shuffle pixel_unshuffle "
    "channel_shuffle flatten unflatten view view_as reshape reshape_as permute transpose t T mT "
    "swapaxes movedim squeeze unsqueeze expand expand_as repeat contiguous clone detach to float "
    "double mean sum amax amin abs neg flip roll chunk split unbind narrow select getitem cat "
    "concat stack maximum minimum"
)


_PARTS = ("data", "real", "imag")
"""Attributes of a tensor that scale as it does."""
_FACTS = ("shape", "dtype", "device", "ndim", "layout", "is_cuda", "requires_grad")
"""Attributes of a tensor that are none."""


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


def _is(module: nn.Module, kinds: Sequence[type[nn.Module]]) -> bool:
    """Return whether the module is of one of these kinds and uses its ``forward``."""
    return any(isinstance(module, kind) and type(module).forward is kind.forward for kind in kinds)


class _Tracer(fx.Tracer):
    """Does not trace into a user's layer that inherits the ``forward`` of a known kind."""

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
    except Exception as error:  # the model's code may raise anything on symbolic inputs
        reason = f"{type(error).__name__}: {str(error).strip()}".split("\n")[0]
        raise UserError(
            f"no path through the origin: torch.fx cannot trace {type(model).__name__}; its "
            f"forward must not branch on, iterate over or assign into tensors ({reason})"
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
    """Follows the power of t through a network in evaluation mode and collects equations.

    ``powers``: the unknown powers and their equations; ``tensors``: the unknown of each parameter
    and running statistic, by the tensor's ``id``; ``eps``: that of each batch-norm layer's ``eps``,
    by the layer's ``id``; ``output``: that of the output. The input has power 0.
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
            return self._attribute(str(node.args[1]), joined[0])
        return self._join(node, joined) if node.op == "output" else self._operation(node, joined)

    def _attribute(self, name: str, degree: int) -> int | None:
        if name in _UNCHANGED.names or name in _PARTS:
            return degree
        if name not in _FACTS:  # torch.fx cannot tell which layer reads it
            raise UserError(
                f"no path through the origin: the network reads {name!r} of a tensor, which is not "
                "known to be homogeneous"
            )
        return None

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
                self.powers.equate(_layer_of(node), self.tensors[id(tensor)], *parts)
        if id(module) not in self.eps:
            self.eps[id(module)] = self.powers.unknown(0)
        self.powers.equate(_layer_of(node), self.eps[id(module)], *squared)
        if module.weight is None:
            return self.zero
        weight = self._tensor(node, module.weight)
        if module.bias is not None:
            self.powers.equate(_layer_of(node), self._tensor(node, module.bias), weight)
        return weight

    def _operation(self, node: fx.Node, joined: list[int]) -> int:
        if node in _DROPOUTS and node.kwargs.get("training", node.kwargs.get("train", True)):
            self._refuse(node, "is active in evaluation mode too")
        if node.target is F.pad and node.kwargs.get("value"):
            self._refuse(node, "pads with a value other than 0")
        if node in _UNCHANGED or node in _DROPOUTS or node.target is F.pad:
            return self._join(node, joined)
        if node in _WEIGHTED:
            return self._functional(node)
        named = [node.kwargs[name] for name in ("input", "other") if name in node.kwargs]
        operands = [*node.args[:2], *named]
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
            self._refuse(node, "combines two activations, which is not supported")
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
            self.powers.equate(_layer_of(node), bias, total)
        return total

    def _total(self, node: fx.Node, parts: list[int]) -> int:
        total = self.powers.unknown(0)
        self.powers.equate(_layer_of(node), total, *parts)
        return total

    def _join(self, node: fx.Node, degrees: list[int]) -> int:
        """Require equal powers of t for all inputs of the node."""
        for other in dict.fromkeys(degrees):
            if other != degrees[0]:
                self.powers.equate(_layer_of(node), degrees[0], other)
        return degrees[0]

    def _constant(self, operand: Any) -> int:
        """Return the power of an operand; numbers do not change along the path."""
        degree = self.degrees[operand] if isinstance(operand, fx.Node) else None
        return self.zero if degree is None else degree

    def _tensor(self, node: fx.Node, tensor: Tensor) -> int:
        if id(tensor) not in self.tensors:
            self._refuse(node, "computes its weights from other tensors (a parametrization)")
        return self.tensors[id(tensor)]

    def _refuse(self, node: fx.Node, reason: str) -> NoReturn:
        raise UserError(f"no path through the origin: {_layer_of(node)} {reason}")


def _layer_of(node: fx.Node) -> str:
    """Return the name of a node's layer; for a function, its name and the calling module's."""
    stack = list(node.meta.get("nn_module_stack", {}).values())
    name, kind = stack[-1] if stack else ("", None)
    layer = f"{name!r} ({getattr(kind, '__name__', kind)})" if stack else "the network's forward"
    if node.op == "call_module":
        return f"layer {layer}"
    operation = getattr(node.target, "__name__", str(node.target))
    return f"{operation!r} in {layer}"


class Powers:
    """Integer unknowns with lower bounds, and equations between them."""

    def __init__(self) -> None:
        self.lower: list[int] = []
        self.upper: list[float] = []
        self.equations: list[tuple[str, int, tuple[int, ...]]] = []

    def unknown(self, lower: int, upper: float = np.inf) -> int:
        """Return the index of a new unknown."""
        self.lower.append(lower)
        self.upper.append(upper)
        return len(self.lower) - 1

    def equate(self, layer: str, total: int, *parts: int) -> None:
        """Require total = sum of parts; ``layer`` is the layer that requires it."""
        self.equations.append((layer, total, parts))

    def solve(self, weights: Iterable[int]) -> list[int]:
        """Return the solution with the smallest sum over ``weights``."""
        cost = np.zeros(len(self.lower))
        cost[list(weights)] = 1.0
        solution = self._attempt(cost, len(self.equations))
        if solution is not None:
            return [round(float(value)) for value in solution]
        low, high = 0, len(self.equations)  # the first `high` cannot be met, the first `low` can
        while high - low > 1:
            middle = (low + high) // 2
            met = self._attempt(cost, middle) is not None
            low, high = (middle, high) if met else (low, middle)
        raise UserError(
            f"no path through the origin: {self.equations[high - 1][0]} joins terms with unequal "
            "powers of t, for any powers of the weights"
        )

    def _attempt(self, cost: Array, count: int) -> Array | None:
        entries = [
            (row, column, sign)
            for row, (_, total, parts) in enumerate(self.equations[:count])
            for column, sign in ((total, 1.0), *((part, -1.0) for part in parts))
        ]
        constraints = []
        if entries:
            rows, columns, signs = zip(*entries, strict=True)
            matrix = csr_array((signs, (rows, columns)), shape=(count, len(cost)))
            constraints = [LinearConstraint(matrix, 0, 0)]
        result = milp(
            cost,
            integrality=np.ones(len(cost)),
            bounds=Bounds(np.array(self.lower), np.array(self.upper)),
            constraints=constraints,
        )
        return result.x if result.success else None
