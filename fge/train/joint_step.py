"""One training step of several processes: gradients and statistics of the joint batch."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from fge.networks.state import unwrap
from fge.parallel import Ranks, running_statistics


class JointStep:
    """Makes of each process's gradients those of the joint batch, between backward and update.

    Loss, gradients and running statistics become means over the processes, each weighing by its
    images. So the gradient is that of the mean loss over the joint batch, whatever the shares;
    batch norm normalises each share by itself and keeps the same running statistics everywhere.

    Args:
        model: whose parameters and buffers are made the same as in the first process.
        ranks: the processes.
    """

    # PyTorch's DistributedDataParallel does not fit: it weighs processes equally, so that the
    # last, smaller batch comes out wrong; a process without an image would have to run a made-up
    # one; and its hooks belong to one forward path, while a learner has two, compiled for full
    # batches and plain for others. One flat message costs the overlap with the backward pass.

    def __init__(self, model: nn.Module, ranks: Ranks) -> None:
        self.model = unwrap(model)
        self.ranks = ranks
        self.images = 0
        """Images of the last joint batch."""
        ranks.broadcast([*self.model.parameters(), *self.model.buffers()])

    @torch.no_grad()
    def reduce(self, loss: Tensor | None, count: int) -> Tensor:
        """Put the joint gradients in the place of this process's; return the joint mean loss.

        A parameter that no process has a gradient for keeps none.

        Args:
            loss: of this process's share; None where it has no image.
            count: images of the share.
        """
        parameters = list(self.model.parameters())
        facts = torch.tensor([count, *(p.grad is not None for p in parameters)])
        self.images, *users = self.ranks.sum_facts(facts)
        used = [p for p, number in zip(parameters, users, strict=True) if number]
        for parameter in used:
            if parameter.grad is None:
                parameter.grad = torch.zeros_like(parameter)
        mean = self._loss(loss, parameters[0])
        gradients = [p.grad for p in used if p.grad is not None]
        statistics = running_statistics(self.model.modules())
        self.ranks.average([*gradients, *statistics, mean], count, self.images)
        return mean

    def _loss(self, loss: Tensor | None, like: Tensor) -> Tensor:
        """Return a copy of the loss in a dtype that all processes know."""
        dtype = torch.promote_types(like.dtype, torch.float32)
        mean = torch.zeros((), dtype=dtype, device=like.device)
        return mean if loss is None else mean.copy_(loss)
