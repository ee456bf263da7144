"""Products of a loss's Hessian with vectors, averaged over data in chunks."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from fge.errors import UserError
from fge.landscape.graphs import GradientGraph, measuring
from fge.networks.apply import (
    ForwardFn,
    LossFn,
    call_model,
    check_reiterable,
    cut,
    tensors,
    to_device,
)
from fge.networks.flat import Layout, named_parameters
from fge.networks.state import unwrap

CHUNK = 256
GRAPH_MEMORY = 2 * 1024**3
"""Bytes of graphs that are kept by default."""

GRAPH_COST, PRODUCT_COST = 1.3, 2.6
"""What the gradient's graph, and a product from it, are estimated to cost in gradients: medians
over the runs of ``benchmarks/hessian.py`` (convolutions, CPU), in which a product took
2.3 to 2.7 from a kept graph and 3.4 to 4.2 with the graph made anew."""


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
