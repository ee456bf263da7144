"""Products of a loss's Hessian with vectors, averaged over chunks of data."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager, nullcontext, suppress
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.graph import Node
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.nn.modules.batchnorm import _BatchNorm

from fge.errors import UserError, check_at_least
from fge.landscape.agreement import EXAMPLES, Agreement, Differentiable, Products, check_products
from fge.landscape.unfused import INTO_OUT, Unfused, check_gradients_true, refused_part
from fge.networks import (
    ForwardFn,
    Layout,
    LossFn,
    Passes,
    TargetFn,
    call_model,
    check_reiterable,
    count_examples,
    cut,
    keeps_statistics,
    loss_of,
    named_parameters,
    nothing_yielded,
    to_device,
    unwrap,
)
from fge.observer import counted

CHUNK = 256
GRAPH_MEMORY = 2 * 1024**3
"""Bytes of graphs kept in memory by default."""
GRAPH_COST, PRODUCT_COST = 1.3, 2.6
"""Estimated cost of the gradient's graph and of a product from it, in gradients: medians over the
runs of ``benchmarks/hessian.py`` (convolutions, CPU), where a product took 2.3 to 2.7 gradients
from a kept graph and 3.4 to 4.2 with a new graph."""
_MISSING = ("not implemented", "twice", "double backward", INTO_OUT)
"""Parts of autograd's errors about second derivatives."""
_NOT_TWICE = "the loss is not twice differentiable here: "


class HessianOperator:
    """The Hessian (P, P) of the mean loss over a data set, as a linear map of vectors (P,).

    P is the number of values of the parameters with ``requires_grad``, in the order of
    ``named_parameters()``, each in C order. A product is the derivative of gradient times vector
    (Pearlmutter 1994, https://doi.org/10.1162/neco.1994.6.1.147), averaged over chunks weighted by
    their examples. The graphs of the chunks' gradients are kept from the first pass, as many as
    fit in ``graph_memory``; a product costs an estimated 2.6 gradients from a kept graph and 3.9
    with a new one.

    The model runs in evaluation mode; modes, gradients and buffers are restored after each
    product. Parameters and data must not change between products. Compilation, data-parallel
    wrappers, autocast, sparse gradients and PyTorch's fused operations without a right second
    derivative (attention, weight normalisation, recurrent layers of cuDNN) are bypassed. An
    embedding's row of padding is a constant of the loss, since PyTorch gives it no gradient: its
    rows and columns of the Hessian are 0, unless another layer uses the same weights. Before the
    first product, products on 8 examples are checked: whether they are symmetric, and agree with a
    finite difference of gradients.

    Args:
        model: any module.
        loss_fn: of outputs and targets, averaged over the batch.
        batches: re-iterable of ``(x, y)``, or of what ``forward_fn`` and ``target_fn`` take, in
            the same order on each pass. They are moved to the model's device.
        weight_decay: adds weight_decay / 2 * |w|^2 to the loss.
        batch_statistics: batch norm uses the statistics of each chunk, which depend on the
            parameters too, instead of its running statistics; that of frozen modules does not, as
            in their training.
        forward_fn: ``forward_fn(model, batch) -> outputs`` for models that are not called as
            ``model(x)``.
        target_fn: ``target_fn(batch) -> targets`` where they are not the second of two parts.
        chunk: the largest number of examples per chunk; batches of tensors of equal length are cut
            evenly, unless they may lie time first.
        graph_memory: bytes of graphs to keep; 0 keeps none.

    Attributes:
        size: P.
        layout: of the vectors.
        dtype: of the parameters.
        device: of the parameters.
        products: the number of products so far.
        cost: their estimated cost, in gradients over the whole data set, from the two estimates
            above; the check is not counted.
        agreement: what the check found, once there was a product or a gradient.

    Raises:
        UserError: ``batches`` can be iterated only once, ``chunk`` is below 1, no parameter
            requires a gradient, they are of several dtypes or devices, an embedding scales its
            gradient or shortens its weights, or a part is a TorchScript module.
    """

    def __init__(
        self,
        model: nn.Module,
        loss_fn: LossFn,
        batches: Iterable[Any],
        *,
        weight_decay: float = 0.0,
        batch_statistics: bool = False,
        forward_fn: ForwardFn | None = None,
        target_fn: TargetFn | None = None,
        chunk: int = CHUNK,
        graph_memory: int = GRAPH_MEMORY,
    ) -> None:
        check_reiterable(batches)
        check_at_least(1, chunk=chunk)
        if any(isinstance(module, torch.jit.ScriptModule) for module in model.modules()):
            raise UserError(
                "a TorchScript module has no Hessian products here, as its buffers cannot be "
                "exchanged; give the module before torch.jit.script"
            )
        trainable = {n: p for n, p in named_parameters(model).items() if p.requires_grad}
        if not trainable:
            raise UserError("no parameter of the model requires a gradient; set requires_grad")
        self.model = unwrap(model)
        check_gradients_true(self.model)
        self.loss_fn = loss_fn
        self.batches = batches
        self.weight_decay = weight_decay
        self.batch_statistics = batch_statistics
        self.forward_fn = call_model if forward_fn is None else forward_fn
        self.target_fn = target_fn
        self.chunk = chunk
        self.parameters = list(trainable.values())
        self.layout = Layout(tuple(trainable), tuple(tuple(p.shape) for p in self.parameters))
        self.size = self.layout.numel
        self.dtype, self.device = self.parameters[0].dtype, self.parameters[0].device
        self.products = 0
        self.cost = 0.0
        self.agreement: Agreement | None = None
        self._store = _GraphStore(graph_memory)
        self._chunks = 0  # known after the first pass
        self._passes = Passes()

    def __repr__(self) -> str:
        """Return the number of parameters and of products so far."""
        size, products = counted(self.size, "parameter"), counted(self.products, "product")
        return f"HessianOperator({size}, {products})"

    @property
    def keeps_all_graphs(self) -> bool:
        """Whether every chunk's graph is kept, so that the data are not read again."""
        return 0 < self._chunks == len(self._store.graphs)

    def matvec(self, vector: Tensor) -> Tensor:
        """Return the Hessian times a vector (P,), in the vector's dtype, on the model's device.

        Raises:
            UserError: the vector is not of shape (P,), there are no data, they change between
                passes, the loss is not finite or not twice differentiable by autograd, or the
                product is not finite.
        """
        moved = vector.detach().to(self.device, self.dtype)
        directions = list(self.layout.split(moved).values())
        total: Tensor | None = None
        examples, work = 0, 0.0
        for graph, kept, cost in self._graphs():
            product = self._flat(graph.product(directions, keep=kept))
            # A pass over (P,) costs as much as a small chunk, so there are as few as possible.
            if total is None:
                total = product.mul_(graph.count)
            else:
                total.add_(product, alpha=graph.count)
            examples += graph.count
            work += graph.count * (cost + PRODUCT_COST)
        assert total is not None, "without chunks the pass over the data raises"
        self.products += 1
        self.cost += work / examples
        result = total.div_(examples)
        if self.weight_decay:
            result.add_(moved, alpha=self.weight_decay)
        if not (bool(torch.isfinite(result.sum())) or bool(torch.isfinite(result).all())):
            raise UserError(
                "a Hessian product is not finite; check for infinite second derivatives (sqrt or "
                "norm at 0) and for weights or data that are too large"
            )
        return result.to(vector.dtype)

    def _flat(self, parts: Sequence[Tensor | None]) -> Tensor:
        """Return tensors with the parameters' shapes as one new vector (P,); None stands for 0."""
        pairs = zip(parts, self.parameters, strict=True)
        return torch.cat(
            [(torch.zeros_like(p) if part is None else part).reshape(-1) for part, p in pairs]
        )

    def gradient(self) -> Tensor:
        """Return the gradient (P,) of the mean loss, weight decay included; its graph is kept.

        Raises:
            UserError: as :meth:`matvec`, except for the product.
        """
        weights = torch.cat([p.detach().reshape(-1) for p in self.parameters])
        total = torch.zeros_like(weights)
        parts = list(self.layout.split(total).values())
        examples, work = 0, 0.0
        for graph, _, cost in self._graphs():
            for part, gradient in zip(parts, graph.gradients, strict=True):
                if gradient is not None:
                    part.add_(gradient.detach(), alpha=graph.count)
            examples += graph.count
            work += graph.count * cost
        self.cost += work / examples
        return total.div_(examples).add_(weights, alpha=self.weight_decay)

    def dense(self) -> Tensor:
        """Return the whole matrix (P, P), column by column: P products, for small models."""
        identity = torch.eye(self.size, dtype=self.dtype, device=self.device)
        return torch.stack([self.matvec(column) for column in identity], dim=1)

    def _graphs(self) -> Iterator[tuple[GradientGraph, bool, float]]:
        """Yield each chunk's graph, whether it is kept, and the cost of making it now."""
        if self.keeps_all_graphs:
            for graph in self._store.graphs.values():
                yield graph, True, 0.0
            return
        index = 0
        self._passes.begin()
        for batch in self.batches:
            for piece, count in self._cut(batch, self.chunk):
                self._passes.look(batch, count)
                if self.agreement is None:  # before there is a graph, whose buffers it writes
                    self.agreement = self._checked(piece)
                known = self._store.graphs.get(index)
                graph = known or self._differentiate(piece, count)
                # The first pass decides which graphs to keep; later passes drop theirs.
                kept = known is not None or (not self._chunks and self._store.keep(index, graph))
                yield graph, kept, 0.0 if known else GRAPH_COST
                index += 1
        if not self._passes.examples:
            raise nothing_yielded()
        self._passes.end()
        self._chunks = index

    def _cut(self, batch: Any, chunk: int) -> Iterator[tuple[Any, int]]:
        return cut(batch, chunk, model=self.model, target_fn=self.target_fn)

    def _differentiate(self, piece: Any, count: int) -> GradientGraph:
        batch = to_device(piece, self.device)
        if (
            self.batch_statistics
            and count_examples(batch, self.target_fn) == 1
            and _batch_norms(self.model)
        ):
            raise UserError(
                "a single example has no batch statistics; give batches of two or more, without a "
                "rest of one, or batch_statistics=False"
            )
        with measuring(self.model, self.device, batch_statistics=self.batch_statistics):
            outputs = self.forward_fn(self.model, batch)
            loss = loss_of(outputs, batch, self.loss_fn, self.target_fn)
            return GradientGraph.of(loss, self.parameters, count)

    def _checked(self, piece: Any) -> Agreement:
        """Check products on the first examples, or on a piece that cannot be cut."""
        whole = to_device(piece, self.device)
        few = next(self._cut(whole, EXAMPLES))[0]

        def gradients(batch: Any) -> tuple[Sequence[Tensor | None], Products]:
            graph = self._differentiate(batch, 1)
            graph.check()
            return graph.gradients, partial(graph.product, keep=True)

        subject = Differentiable(self.model, self.parameters, gradients)
        try:
            return check_products(subject, few)
        except UserError:
            raise
        except Exception:  # model or loss may know the size of their batch
            return check_products(subject, whole)


class _GraphStore:
    """Graphs by the number of their chunk, up to a total size in bytes."""

    def __init__(self, memory: int) -> None:
        self.graphs: dict[int, GradientGraph] = {}
        self._memory = memory
        self._storages: dict[int, int] = {}
        self._full = memory <= 0

    def keep(self, index: int, graph: GradientGraph) -> bool:
        """Keep a graph unless it, or an earlier one, is too large; return whether it is kept."""
        if self._full:
            return False
        together = self._storages | graph.saved_storages()
        self._full = sum(together.values()) > self._memory
        if not self._full:
            self._storages = together
            self.graphs[index] = graph
        return not self._full


@dataclass(frozen=True)
class GradientGraph:
    """The gradient of a mean loss over ``count`` examples, with its graph.

    ``gradients`` has one tensor per parameter, None if the loss does not depend on it.
    """

    parameters: Sequence[Tensor]
    gradients: Sequence[Tensor | None]
    count: int

    @classmethod
    def of(cls, loss: Tensor, parameters: Sequence[Tensor], count: int) -> GradientGraph:
        """Differentiate a loss once; refuse a loss that has no Hessian."""
        if not bool(torch.isfinite(loss)):
            raise UserError(f"the loss is {loss.item()}, but only a finite loss has a Hessian")
        if not loss.requires_grad:
            raise UserError(f"{_NOT_TWICE}it does not depend on the parameters through autograd")
        with _refusals():
            gradients = torch.autograd.grad(loss, parameters, create_graph=True, allow_unused=True)
        if any(g is not None and g.layout != torch.strided for g in gradients):
            raise UserError(
                f"{_NOT_TWICE}a parameter has a sparse gradient; use sparse=False (of "
                "torch.gather: sparse_grad=False)"
            )
        if not any(g is not None and g.requires_grad for g in gradients):
            raise UserError(
                f"{_NOT_TWICE}its gradient does not depend on the parameters through autograd "
                "(loss and model are piecewise linear, or a part defines its own gradient)"
            )
        return cls(parameters, gradients, count)

    def product(self, directions: Sequence[Tensor], *, keep: bool) -> Sequence[Tensor | None]:
        """Return the Hessian times ``directions``, one tensor per parameter; None stands for 0."""
        pairs = zip(self.gradients, directions, strict=True)
        varying = [(g, d) for g, d in pairs if g is not None and g.requires_grad]
        with _refusals():
            return torch.autograd.grad(
                [gradient for gradient, _ in varying],
                self.parameters,
                grad_outputs=[direction for _, direction in varying],
                retain_graph=keep,
                allow_unused=True,
            )

    def check(self) -> None:
        """Check that no part of the graph is marked ``once_differentiable``.

        Autograd ignores the mark when it differentiates with respect to the parameters, and would
        silently leave out that part's second derivatives.
        """
        if any(node.name() == "torch::autograd::Error" for node in self._nodes()):
            raise UserError(
                f"{_NOT_TWICE}a part of it is marked once_differentiable; replace that function "
                "by differentiable operations"
            )

    def saved_storages(self) -> dict[int, int]:
        """Return the bytes of each storage that the graph holds, by address."""
        weights = {p.untyped_storage().data_ptr() for p in self.parameters}
        storages = [t.untyped_storage() for node in self._nodes() for t in _saved_tensors(node)]
        return {s.data_ptr(): s.nbytes() for s in storages if s.data_ptr() not in weights}

    def _nodes(self) -> Iterator[Node]:
        roots = [g.grad_fn for g in self.gradients if g is not None]
        waiting = [node for node in roots if node is not None]
        seen = set(waiting)
        while waiting:
            node = waiting.pop()
            yield node
            new = {n for n, _ in node.next_functions if n is not None} - seen
            seen |= new
            waiting += new


def _saved_tensors(node: Node) -> Iterator[Tensor]:
    for name in dir(node):
        if not name.startswith("_saved_") and name != "saved_tensors":
            continue
        with suppress(RuntimeError):  # changed in place after it was saved
            value = getattr(node, name)
            for part in value if isinstance(value, list | tuple) else (value,):
                if isinstance(part, Tensor):
                    yield part


@contextmanager
def measuring(
    model: nn.Module, device: torch.device, *, batch_statistics: bool = False
) -> Iterator[None]:
    """Make a model's computations twice differentiable during a ``with`` block.

    All modules are in evaluation mode, without autocast and without fused operations that have no
    right second derivative. With ``batch_statistics`` the batch-norm layers use the statistics of
    the batch and do not change their running ones.
    """
    modes = [(module, module.training) for module in model.modules()]
    layers = _batch_norms(model) if batch_statistics else []
    tracking = [layer.track_running_stats for layer in layers]
    autocast = torch.amp.is_autocast_available(device.type)
    try:
        for module, _ in modes:
            module.training = False
        for layer in layers:
            layer.training, layer.track_running_stats = True, False
        with (
            torch.enable_grad(),
            torch.autocast(device.type, enabled=False) if autocast else nullcontext(),
            sdpa_kernel(SDPBackend.MATH),
            Unfused(),
        ):
            yield
    finally:
        for module, training in modes:
            module.training = training
        for layer, tracked in zip(layers, tracking, strict=True):
            layer.track_running_stats = tracked


def _batch_norms(model: nn.Module) -> list[_BatchNorm]:
    """Return the layers that use a batch's statistics in training: none of a frozen module."""
    layers = (module for module in model.modules() if isinstance(module, _BatchNorm))
    return [layer for layer in layers if not keeps_statistics(layer)]


@contextmanager
def _refusals() -> Iterator[None]:
    """Turn autograd's errors about second derivatives into UserErrors."""
    try:
        yield
    except RuntimeError as error:
        reason = str(error).split("\n")[0]
        if not any(part in reason for part in _MISSING):
            raise
        raise UserError(_NOT_TWICE + refused_part(reason)) from None
