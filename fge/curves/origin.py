"""The trivial path of constant error through the origin, for homogeneous networks.

A ReLU network keeps its decisions while its weights shrink to zero, so that any two are connected
through a network that knows nothing (Garipov et al. 2018, arXiv 1802.10026, supplement on trivial
connecting curves). Here each weight tensor has its own power of t, which lets batch norm, sums
and concatenations take part: running statistics and ``eps`` are scaled along with the weights.
This is therefore its own path and no :class:`fge.curves.Curve`, which moves parameters alone;
statistics must not be estimated anew on it.
"""

from __future__ import annotations

import copy
from typing import Any

import torch
from torch import nn

from fge.curves.homogeneity import PowerReader
from fge.errors import UserError
from fge.networks.state import unwrap


class OriginPath:
    """The path of constant error from a network to the origin, on which logits only shrink.

    At t, the parameter ``name`` is multiplied by t^k with k = ``exponents[name]`` >= 1, running
    statistics and ``eps`` by the powers that keep batch norm homogeneous, and the logits come out
    as t^``output_degree`` times those of the network. The powers are the smallest whole numbers
    with which activations of one power meet wherever branches are added or concatenated: with
    power d in front, a linear layer or convolution of weight power k gives d + k, and so does its
    bias; batch norm in evaluation mode has its mean scaled by t^d, its variance and ``eps`` by
    t^(2d), its affine parameters by t^k, and gives k; ReLU, pooling and the like give d.

    The error is the same all along. When ``output_degree`` >= 1, the cross-entropy tends to
    log C, for C classes, as t tends to 0.

    Args:
        model: any module that ``torch.fx`` can trace; it is copied, not changed. Its evaluation
            mode is what counts: dropout is off.

    Attributes:
        exponents: the power of t of each parameter, by name; tied ones once.
        buffer_exponents: the same of the running statistics, >= 0.
        eps_exponents: the same of the ``eps`` of each batch-norm layer, by the layer's name.
        output_degree: the power of t of the output.
        smallest_t: below it, down to 0, powers of t underflow the parameters' dtype.

    Raises:
        UserError: ``torch.fx`` cannot trace the model; a layer is not homogeneous (GELU, layer
            norm, softmax, PReLU, products of activations, ...); branches cannot arrive with
            equal powers (an identity shortcut around a branch without batch norm). The layer
            is named.
    """

    def __init__(self, model: nn.Module) -> None:
        self._model = copy.deepcopy(unwrap(model)).eval()
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
            if exponent and eps:  # kernels hold eps in float32 at least
                bounds.append((min(tiny, torch.finfo(torch.float32).tiny) / eps) ** (1 / exponent))
        return float(min(1.0, max(bounds)))

    def model_at(self, t: float) -> nn.Module:
        """Return the network at ``t``: a copy in evaluation mode; at 0 the origin itself.

        Args:
            t: from 1, the network as it was given, bitwise, to 0. The origin keeps ``eps`` as it
                is, so that its output is 0 and not 0 / 0.

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
        model = copy.deepcopy(self._model)
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
        first: the path that is gone down, from its network to the origin.
        second: the path that is gone up, from the origin to its network.

    Raises:
        UserError: the two are of different architectures.
    """

    def __init__(self, first: OriginPath, second: OriginPath) -> None:
        shapes = [[t.shape for t in p._model.state_dict().values()] for p in (first, second)]
        if first.exponents != second.exponents or shapes[0] != shapes[1]:
            raise UserError("the two networks of a trivial path must be of one architecture")
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
