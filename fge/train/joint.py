"""The gradient of a batch that several processes share, by ``DistributedDataParallel``."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from fge.networks import TargetFn, count_examples, rows, unwrap
from fge.parallel import Ranks, running_statistics


def parts_in(count: int, size: int) -> int:
    """Return the parts of about ``size`` examples into which a batch of ``count`` is cut.

    No part has a single example, which batch norm does not take, unless ``size`` is 1.

    >>> parts_in(32, 8), parts_in(33, 8), parts_in(3, 2), parts_in(3, 1)
    (4, 5, 1, 3)
    """
    parts = max(1, -(-count // size))
    return parts if size == 1 else min(parts, max(1, count // 2))


class JointStep:
    """Computes the loss and the gradients of a joint batch, of which each process has a share.

    PyTorch averages gradients over the processes, each with the same weight. So each multiplies
    its loss by processes x images of its share / images of the joint batch: the gradient is that
    of the mean loss over the joint batch, whatever the shares. Loss and running statistics become
    means by images too. Batch norm normalises each share by itself.

    A parameter for which no process has a gradient keeps none.

    Args:
        model: whose parameters and buffers become those of the first process.
        ranks: the processes.
        target_fn: ``target_fn(batch) -> targets``, which count the examples where lengths differ.
    """

    # The context ``join`` of PyTorch's wrapper does not fit a process without an image: that
    # process would take part in the others' sums, but get no gradients for its own optimizer.

    def __init__(self, model: nn.Module, ranks: Ranks, target_fn: TargetFn | None = None) -> None:
        self.model = unwrap(model)
        self.ranks = ranks
        self.target_fn = target_fn
        self.images = 0
        """Images of the last joint batch."""
        ranks.broadcast(self.model.buffers())
        # Which parameters a pass uses may differ by process and by batch: PyTorch looks for those
        # that it does not use.
        self._parallel = DistributedDataParallel(
            _Part(self.model),
            process_group=ranks.group,
            find_unused_parameters=True,
            gradient_as_bucket_view=True,
        )

    def take(
        self,
        batch: Any,
        loss_of: Callable[[Any], Tensor],
        differentiate: Callable[[Tensor], None],
        *,
        part_size: int | None = None,
    ) -> Tensor:
        """Leave the joint gradients in the parameters; return the joint mean loss, detached.

        Args:
            batch: the share of this process; it may be empty.
            loss_of: ``loss_of(batch)``, the mean loss with its graph.
            differentiate: runs the backward pass of a loss.
            part_size: images of one pass of a process: gradients of the parts of a larger batch
                are added up.

        Raises:
            UserError: another process is gone.
        """
        if part_size is None:
            mean, self.images = self._pass(batch, loss_of, differentiate)
            return mean
        count = count_examples(batch, self.target_fn)
        total = self.ranks.begin_sum(count)()
        pieces = parts_in(total // self.ranks.size, part_size)
        loss = None
        for piece in range(pieces):
            start, stop = count * piece // pieces, count * (piece + 1) // pieces
            part = rows(batch, start, stop, count)
            mean, images = self._pass(part, loss_of, differentiate, joint=total)
            part_of_loss = mean * (images / total)
            loss = part_of_loss if loss is None else loss + part_of_loss
        assert loss is not None
        self.images = total
        return loss

    def _pass(
        self,
        batch: Any,
        loss_of: Callable[[Any], Tensor],
        differentiate: Callable[[Tensor], None],
        joint: int | None = None,
    ) -> tuple[Tensor, int]:
        """Add the gradient of a joint batch, or of a part of one of ``joint`` images.

        Returns:
            Its mean loss, detached, and its images.
        """
        count = count_examples(batch, self.target_fn)
        total = self.ranks.begin_sum(count)
        with self.ranks.exchange():
            loss = self._parallel(loss_of, batch, count)
            images = total()
            differentiate(loss * (self.ranks.size * count / (joint or images)))
        mean = self._in_common_dtype(loss.detach())
        statistics = running_statistics(self.model.modules())
        self.ranks.average([*statistics, mean], count, images)
        return mean, images

    def _in_common_dtype(self, loss: Tensor) -> Tensor:
        """Return a copy of the loss in a dtype that all processes know."""
        like = next(self.model.parameters())
        dtype = torch.promote_types(like.dtype, torch.float32)
        return torch.zeros((), dtype=dtype, device=like.device).copy_(loss)


class _Part(nn.Module):
    """What a process computes of a joint loss, as a module that has the parameters alone.

    PyTorch's wrapper knows parameters by their gradients: the model may be called in its plain or
    in its compiled form. The wrapper sees no buffers, so it leaves running statistics alone.
    """

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        parameters = list(model.parameters())
        # Only empty shares use it. So there is always an unused parameter; PyTorch would print a
        # warning without one.
        self.nothing = nn.Parameter(torch.zeros_like(parameters[0].detach().flatten()[:1]))
        self.parts = nn.ParameterList(parameters)

    def forward(self, loss_of: Callable[[Any], Tensor], batch: Any, count: int) -> Tensor:
        """Return the loss of a share of ``count`` images.

        That of an empty share is 0 and uses no parameter of the model. Nothing passes through the
        model: it may not take an empty batch (batch norm does not), and its statistics must not
        move.
        """
        return loss_of(batch) if count else self.nothing.sum() * 0
