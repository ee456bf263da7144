"""Products of a loss's Hessian with vectors, averaged over data in chunks."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager, nullcontext, suppress
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.graph import Node
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.nn.modules.batchnorm import _BatchNorm

from fge.errors import UserError
from fge.networks import (
    ForwardFn,
    Layout,
    LossFn,
    call_model,
    check_reiterable,
    cut,
    named_parameters,
    tensors,
    to_device,
    unwrap,
)

CHUNK = 256
GRAPH_MEMORY = 2 * 1024**3
"""Bytes of graphs that are kept by default."""
GRAPH_COST, PRODUCT_COST = 1.3, 2.6
"""What the gradient's graph, and a product from it, are estimated to cost in gradients: medians
over the runs of ``benchmarks/hessian.py`` (convolutions, CPU), in which a product took
2.3 to 2.7 from a kept graph and 3.4 to 4.2 with the graph made anew."""
_NOT_TWICE = "the loss is not twice differentiable here: "


class HessianOperator:
    """The Hessian (P, P) of the mean loss over a data set, as a linear map of vectors (P,).

    P counts the parameters with ``requires_grad``, in the order of ``named_parameters()``, each in
    C order. A product is the derivative of gradient times vector (Pearlmutter 1994,
    https://doi.org/10.1162/neco.1994.6.1.147), averaged over chunks weighing by their examples.
    Graphs of the chunks' gradients are kept from the first pass on, as many as fit in
    ``graph_memory``; a product from one costs an estimated 2.6 gradients, one with a graph built
    anew 3.9.

    The model runs in evaluation mode; modes, gradients and buffers are as before after each
    product. Parameters and data must stay as they are between products. Compilation,
    data-parallel wrappers, autocast and fused attention, none of which can be differentiated
    twice, are bypassed.

    Args:
        model: any module.
        loss_fn: of outputs and targets, averaged over the batch.
        batches: re-iterable of ``(x, y, ...)``, or of what ``forward_fn`` and ``loss_fn`` take, in
            the same order at each pass. They are moved to the model's device.
        weight_decay: adds weight_decay / 2 * |w|^2 to the loss.
        batch_statistics: batch norm uses the statistics of each chunk, through which the loss
            depends on the parameters too, instead of its running ones.
        forward_fn: ``forward_fn(model, batch) -> outputs`` where the model is not called as
            ``model(x)``.
        chunk: the most examples per chunk; batches of tensors of one length are cut evenly.
        graph_memory: bytes of graphs to keep; 0 keeps none.

    Attributes:
        size: P.
        layout: of the vectors.
        dtype: of the parameters.
        device: of the parameters.
        products: how many were taken.
        cost: an estimate of what they took, in gradients over the whole data set, by the two
            figures above.

    Raises:
        UserError: ``batches`` can be iterated only once, ``chunk`` is below 1, no parameter
            requires a gradient, or they are of several dtypes or devices.
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
        chunk: int = CHUNK,
        graph_memory: int = GRAPH_MEMORY,
    ) -> None:
        check_reiterable(batches)
        if chunk < 1:
            raise UserError(f"chunk must be >= 1 example, got {chunk}")
        trainable = {n: p for n, p in named_parameters(model).items() if p.requires_grad}
        if not trainable:
            raise UserError("no parameter of the model requires a gradient; set requires_grad")
        self.model = unwrap(model)
        self.loss_fn = loss_fn
        self.batches = batches
        self.weight_decay = weight_decay
        self.batch_statistics = batch_statistics
        self.forward_fn = forward_fn or call_model
        self.chunk = chunk
        self.parameters = list(trainable.values())
        self.layout = Layout(tuple(trainable), tuple(tuple(p.shape) for p in self.parameters))
        self.size = self.layout.numel
        self.dtype, self.device = self.parameters[0].dtype, self.parameters[0].device
        self.products = 0
        self.cost = 0.0
        self._store = _GraphStore(graph_memory)
        self._chunks = self._examples = 0  # known after the first pass
        self._first: Tensor | None = None

    @property
    def keeps_all_graphs(self) -> bool:
        """Whether every chunk's graph is kept; the data are not read again then."""
        return 0 < self._chunks == len(self._store.graphs)

    def matvec(self, vector: Tensor) -> Tensor:
        """Return the Hessian times a vector (P,), in the vector's dtype, on the model's device.

        Raises:
            UserError: the vector is not of shape (P,); there are no data, or they change between
                passes; the loss is not finite, or not twice differentiable by autograd; or the
                product is not finite.
        """
        moved = vector.detach().to(self.device, self.dtype)
        directions = list(self.layout.split(moved).values())
        total: Tensor | None = None
        examples, work = 0, 0.0
        for graph, kept, cost in self._graphs():
            product = self._flat(graph.product(directions, keep=kept))
            # Passes over (P,) cost as much as a small chunk does: no more of them than needed.
            if total is None:
                total = product.mul_(graph.count)
            else:
                total.add_(product, alpha=graph.count)
            examples += graph.count
            work += graph.count * (cost + PRODUCT_COST)
        assert total is not None, "there are chunks, or the pass over the data has raised"
        self.products += 1
        self.cost += work / examples
        result = total.div_(examples)
        if self.weight_decay:
            result.add_(moved, alpha=self.weight_decay)
        if not (bool(torch.isfinite(result.sum())) or bool(torch.isfinite(result).all())):
            raise UserError(
                "a Hessian product is not finite; look for infinite second derivatives (sqrt or "
                "norm at 0) and for weights or data that are too large"
            )
        return result.to(vector.dtype)

    def _flat(self, parts: Sequence[Tensor | None]) -> Tensor:
        """Return tensors shaped as the parameters as one new vector (P,); None stands for 0."""
        pairs = zip(parts, self.parameters, strict=True)
        return torch.cat(
            [(torch.zeros_like(p) if part is None else part).reshape(-1) for part, p in pairs]
        )

    def gradient(self) -> Tensor:
        """Return the gradient (P,) of the mean loss, weight decay included; its graph is kept.

        Raises:
            UserError: what :meth:`matvec` refuses, but for the product.
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
        """Yield each chunk's graph, whether it is kept, and what making it now has cost."""
        if self.keeps_all_graphs:
            for graph in self._store.graphs.values():
                yield graph, True, 0.0
            return
        index = examples = 0
        for batch in self.batches:
            if index == 0:
                self._check_order(batch)
            for piece, count in cut(batch, self.chunk):
                known = self._store.graphs.get(index)
                graph = known or self._differentiate(piece, count)
                if index == self._chunks == 0:
                    graph.check()
                # Graphs of later passes are dropped: which ones to keep was settled in the first.
                kept = known is not None or (not self._chunks and self._store.keep(index, graph))
                yield graph, kept, 0.0 if known else GRAPH_COST
                index, examples = index + 1, examples + count
        self._check_amount(examples)
        self._chunks, self._examples = index, examples

    def _differentiate(self, piece: Any, count: int) -> GradientGraph:
        batch = to_device(piece, self.device)
        with measuring(self.model, self.device, batch_statistics=self.batch_statistics):
            outputs = self.forward_fn(self.model, batch)
            targeted = isinstance(batch, list) and len(batch) > 1
            loss = self.loss_fn(outputs, batch[1] if targeted else batch)
            return GradientGraph.of(loss, self.parameters, count)

    def _check_order(self, batch: Any) -> None:
        first = next(tensors(batch), None)
        if first is None:
            return  # counting its examples says so
        if self._first is None:
            self._first = first.clone()
        if not torch.equal(self._first, first):
            raise UserError(
                "batches come in another order at each pass; switch shuffling and augmentation off"
            )

    def _check_amount(self, examples: int) -> None:
        if examples == 0:
            raise UserError(
                "batches yielded nothing: give data, and not a generator that is used up already"
            )
        if self._examples not in (0, examples):
            raise UserError(
                f"batches yielded {self._examples} examples at first and {examples} in a later "
                "pass; give the same data each time"
            )


class _GraphStore:
    """Graphs by the number of their chunk, up to a size in bytes."""

    def __init__(self, memory: int) -> None:
        self.graphs: dict[int, GradientGraph] = {}
        self._memory = memory
        self._storages: dict[int, int] = {}
        self._full = memory <= 0

    def keep(self, index: int, graph: GradientGraph) -> bool:
        """Keep a graph unless it, or one before it, is too large; say whether it is kept."""
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
    """The gradient of a mean loss over some examples, with the graph that it was made by.

    Attributes:
        parameters: what the loss was differentiated by.
        gradients: of each parameter; None where the loss does not depend on it.
        count: the examples.
    """

    parameters: Sequence[Tensor]
    gradients: Sequence[Tensor | None]
    count: int

    @classmethod
    def of(cls, loss: Any, parameters: Sequence[Tensor], count: int) -> GradientGraph:
        """Differentiate a loss once.

        Raises:
            UserError: it is not one finite number, or its gradient does not depend on the
                parameters as far as autograd can tell.
        """
        if not isinstance(loss, Tensor) or loss.numel() != 1:
            found = tuple(loss.shape) if isinstance(loss, Tensor) else type(loss).__name__
            raise UserError(f"loss_fn must return one number, the mean over a batch, got {found}")
        if not bool(torch.isfinite(loss)):
            raise UserError(f"the loss is {loss.item()}; only a finite one has a Hessian")
        if not loss.requires_grad:
            raise UserError(f"{_NOT_TWICE}it does not depend on the parameters through autograd")
        with _refusals():
            gradients = torch.autograd.grad(loss, parameters, create_graph=True, allow_unused=True)
        if not any(g is not None and g.requires_grad for g in gradients):
            raise UserError(
                f"{_NOT_TWICE}its gradient does not depend on the parameters through autograd "
                "(loss and model are piecewise linear, or a part defines its own gradient)"
            )
        return cls(parameters, gradients, count)

    def product(self, directions: Sequence[Tensor], *, keep: bool) -> Sequence[Tensor | None]:
        """Return the Hessian times ``directions``, one tensor per parameter; None stands for 0.

        Args:
            directions: shaped as the parameters.
            keep: whether the graph is to be used again.

        Raises:
            UserError: a part of the model has no second derivative.
        """
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
        """Check that no part of the graph is marked as differentiable once only.

        Autograd does not come across the mark when it differentiates by the parameters: it would
        leave that part's second derivatives out without a word.

        Raises:
            UserError: a part is, by ``once_differentiable``.
        """
        if any(node.name() == "torch::autograd::Error" for node in self._nodes()):
            raise UserError(
                f"{_NOT_TWICE}a part of it is marked once_differentiable; replace that function "
                "by one of differentiable operations"
            )

    def saved_storages(self) -> dict[int, int]:
        """Return the bytes of each storage that the graph holds, by address."""
        own = {p.untyped_storage().data_ptr() for p in self.parameters}
        storages = [t.untyped_storage() for node in self._nodes() for t in _saved_tensors(node)]
        return {s.data_ptr(): s.nbytes() for s in storages if s.data_ptr() not in own}

    def _nodes(self) -> Iterator[Node]:
        found = [g.grad_fn for g in self.gradients if g is not None]
        waiting = [node for node in found if node is not None]
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
        with suppress(RuntimeError):  # saved and changed in place since
            value = getattr(node, name)
            for part in value if isinstance(value, list | tuple) else (value,):
                if isinstance(part, Tensor):
                    yield part


@contextmanager
def measuring(
    model: nn.Module, device: torch.device, *, batch_statistics: bool = False
) -> Iterator[None]:
    """Run a model such that what it computes can be differentiated twice; restore it after.

    All modules are in evaluation mode, without autocast, without the fused kernels of attention.

    Args:
        model: its modes are restored.
        device: that it runs on.
        batch_statistics: have the batch-norm layers use the statistics of the batch, and leave
            their running ones alone.
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
        ):
            yield
    finally:
        for module, training in modes:
            module.training = training
        for layer, tracked in zip(layers, tracking, strict=True):
            layer.track_running_stats = tracked


def _batch_norms(model: nn.Module) -> list[_BatchNorm]:
    return [module for module in model.modules() if isinstance(module, _BatchNorm)]


@contextmanager
def _refusals() -> Iterator[None]:
    """Put autograd's refusals to differentiate twice in the user's words."""
    try:
        yield
    except RuntimeError as error:
        reason = str(error).split("\n")[0]
        if not any(part in reason for part in ("not implemented", "twice", "double backward")):
            raise
        raise UserError(_NOT_TWICE + reason) from None
