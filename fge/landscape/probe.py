"""The sharpness of the training loss, measured while a network trains."""

from __future__ import annotations

from typing import Any

import torch

from fge.data import EvalBatches
from fge.errors import DivergenceError, UserError
from fge.landscape.sharpness import top_eigenvalues
from fge.networks import first_not_finite, preserved
from fge.train import Learner

PROBE_IMAGES = 1024
"""Training images for the mean loss; ``python cli.py sharpness`` uses as many."""


class SharpnessProbe:
    """Measures the top Hessian eigenvalue after every ``every`` epochs and at snapshots.

    The Hessian is that of the learner's mean loss over fixed images, without weight decay, with
    batch norm in evaluation mode and without autocast; see
    :func:`fge.landscape.top_eigenvalues`. The measurement does not change the training, bit for
    bit: weights, gradients, buffers, the optimizer's state, modes and PyTorch's generators. The
    result depends only on the weights and the seed. At a snapshot the weights are those saved: for
    the method ``ema``, the average.

    Args:
        batches: the images, not augmented.
        every: epochs between measurements.
        seed: of the start vectors.

    Raises:
        UserError: ``every`` is below 1.
    """

    def __init__(self, batches: EvalBatches, every: int, *, seed: int = 0) -> None:
        if every < 1:
            raise UserError(f"every must be >= 1 epoch, got {every}")
        self.batches = batches
        self.every = every
        self.seed = seed
        self._snapshot: tuple[str, int] | None = None

    def measure(
        self, learner: Learner, stage: str, epoch: int, lr: float, snapshot: bool
    ) -> list[dict[str, Any]]:
        """Return a list with the record of a measurement, or an empty list if none is due.

        If a snapshot is saved at the end of an epoch, only the snapshot is measured.

        Args:
            learner: its model is measured.
            stage: of the training.
            epoch: completed epochs.
            lr: the learning rate of a snapshot saved now.
            snapshot: whether a snapshot is saved; otherwise an epoch ends.

        Returns:
            ``event`` ("sharpness"), ``stage``, ``epoch``, ``lr``, ``snapshot``, ``eigenvalue``
            (nats per squared weight), ``residual`` (an eigenvalue lies within it), ``converged``
            (the residual is at most 1 % of the eigenvalue), ``examples``, ``products``
            (Hessian-vector products), ``gradients`` (an estimate of their cost, in gradients over
            the examples) and ``agreement`` (how the products were checked, a sentence).

        Raises:
            DivergenceError: the weights are not finite.
            UserError: the loss is not twice differentiable, or a product is not finite; the
                message names the epoch.
        """
        if snapshot:
            self._snapshot = stage, epoch
        elif epoch % self.every or self._snapshot == (stage, epoch):
            return []
        _check_finite(learner, epoch, lr)
        try:
            return [self._record(learner, stage, epoch, lr, snapshot)]
        except UserError as error:
            raise UserError(
                f"sharpness after epoch {epoch} of stage {stage!r}: {error}; the training up to "
                "this epoch is saved: continue without measuring with --resume --sharpness-every 0"
            ) from None

    def _record(
        self, learner: Learner, stage: str, epoch: int, lr: float, snapshot: bool
    ) -> dict[str, Any]:
        devices = [learner.device] if learner.device.type == "cuda" else []
        # A user's model may draw random numbers or write buffers in evaluation mode too.
        with preserved(learner.model), torch.random.fork_rng(devices):
            top = top_eigenvalues(
                learner.model,
                learner.loss_fn,
                self.batches,
                seed=self.seed,
                forward_fn=learner.forward_fn,
                target_fn=learner.target_fn,
            )
        return {
            "event": "sharpness",
            "stage": stage,
            "epoch": epoch,
            "lr": lr,
            "snapshot": snapshot,
            "eigenvalue": float(top.values[0]),
            "residual": float(top.residuals[0]),
            "converged": top.converged,
            "examples": len(self.batches.split),
            "products": top.hessian_products,
            "gradients": round(top.gradient_cost, 4),
            "agreement": str(top.agreement),
        }


def _check_finite(learner: Learner, epoch: int, lr: float) -> None:
    """Report diverged weights as such, and not as a loss without second derivatives."""
    name = first_not_finite(learner.model.named_parameters())
    if name is not None:
        raise DivergenceError(
            f"the weights {name!r} are not finite after epoch {epoch}, with learning rate {lr:g} "
            "next; lower the learning rates"
        )
