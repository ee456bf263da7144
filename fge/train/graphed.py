"""Forward and backward passes of full batches, recorded once as a CUDA graph and replayed."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

WARM_UP = 3
"""Ordinary batches before recording, during which kernels are chosen and compiled."""


class Recording(NamedTuple):
    """A recorded graph: the loss and gradients that it writes, and the call that replays it."""

    loss: Tensor
    gradients: list[Tensor | None]
    replay: Callable[[], None]


class GraphedPass:
    """Computes the loss and the gradients of a batch by replaying one recorded CUDA graph.

    For a small network the host takes longer to launch the kernels one by one than the GPU to run
    them; a graph is one launch. Python code in the model runs only during recording, so the model
    must do the same work for every batch. Batches of another form run without the graph.

    Args:
        compute: ``compute(batch) -> loss``: adds the gradients to those of the parameters and
            returns the detached loss.
        parameters: the parameters that get gradients.
    """

    def __init__(self, compute: Callable[[Any], Tensor], parameters: Iterable[nn.Parameter]):
        self.compute = compute
        self.parameters = list(parameters)
        self._warmed_up = 0
        self._inputs: list[Tensor] = []
        self._recording: Recording | None = None

    def __call__(self, batch: Any) -> Tensor:
        """Return the loss of a batch; its gradients are in the parameters."""
        if self._recording is None:
            if self._warmed_up < WARM_UP or not _is_plain(batch):
                self._warmed_up += 1
                return self.compute(batch)
            self._inputs = [part.clone() for part in batch]
            self._recording = record(lambda: self.compute(tuple(self._inputs)), self.parameters)
        if not self._fits(batch):
            return self.compute(batch)
        for static, part in zip(self._inputs, batch, strict=True):
            static.copy_(part)
        self._recording.replay()
        for parameter, gradient in zip(self.parameters, self._recording.gradients, strict=True):
            parameter.grad = gradient
        return self._recording.loss.clone()  # the next replay overwrites it

    def _fits(self, batch: Any) -> bool:
        """Return whether the batch has the form of the recorded one."""
        return (
            _is_plain(batch)
            and len(batch) == len(self._inputs)
            and all(
                part.shape == static.shape and part.dtype == static.dtype
                for part, static in zip(batch, self._inputs, strict=True)
            )
        )


def _is_plain(batch: Any) -> bool:
    return isinstance(batch, list | tuple) and all(isinstance(part, Tensor) for part in batch)


def record(work: Callable[[], Tensor], parameters: list[nn.Parameter]) -> Recording:
    """Record ``work``, which returns a loss and adds to the parameters' gradients, as a graph."""
    graph = torch.cuda.CUDAGraph()
    # Other threads (pinning memory, for example) may use the device during recording.
    with torch.cuda.graph(graph, capture_error_mode="thread_local"):
        loss = work()
    return Recording(loss, [parameter.grad for parameter in parameters], graph.replay)
