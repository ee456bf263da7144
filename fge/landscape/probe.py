"""The sharpness of the training loss, measured while a network trains."""

from __future__ import annotations

from typing import Any

import torch

from fge.data import EvalBatches
from fge.errors import DivergenceError, UserError
from fge.landscape.sharpness import top_eigenvalues
from fge.networks import preserved
from fge.train import Learner

PROBE_IMAGES = 1024
"""Training images whose mean loss is looked at, as many as ``python cli.py sharpness`` takes."""


class SharpnessProbe:
    """Measures the top Hessian eigenvalue at the end of every so many epochs and at snapshots.

    The Hessian is that of the learner's loss, averaged over fixed images, without weight decay,
    with batch norm in evaluation mode and without autocast; see
    :func:`fge.landscape.top_eigenvalues`. What is trained stays as it is, bit for bit: weights,
    gradients, buffers, the optimizer's state, modes, and what is drawn from PyTorch's generators.
    What comes out follows from the weights and the seed alone. At a snapshot they are the weights
    that are kept: of the method ``ema``, the average.

    Args:
        batches: the images, not augmented.
        every: epochs from one measurement to the next.
        seed: of the start vectors.

    Raises:
        UserError: ``every`` is below 1.
    """

    def __init__(self, batches: EvalBatches, every: int, *, seed: int = 0) -> None:
        if every < 1:
            raise UserError(f"a probe measures every 1 epoch or more, got {every}")
        self.batches = batches
        self.every = every
        self.seed = seed
        self._snapshot: tuple[str, int] | None = None

    def measure(
        self, learner: Learner, stage: str, epoch: int, lr: float, snapshot: bool
    ) -> list[dict[str, Any]]:
        """Return the record of a measurement, if one is due here, in a list; else an empty one.

        At an epoch's end that is a snapshot too, the snapshot's is the only one.

        Args:
            learner: whose model is measured.
            stage: of the training.
            epoch: completed epochs.
            lr: the learning rate that a snapshot kept now belongs to.
            snapshot: whether a snapshot is kept here, or an epoch ends.

        Returns:
            ``event`` ("sharpness"), ``stage``, ``epoch``, ``lr``, ``snapshot``, ``eigenvalue``
            (nats per squared weight), ``residual`` (an eigenvalue lies within it), ``converged``
            (the residual is at most 1 % of the eigenvalue), ``examples``, ``products``
            (Hessian-vector products) and ``gradients`` (an estimate of their cost, in gradients
            over the examples).

        Raises:
            DivergenceError: the weights are not finite.
            UserError: the loss is not twice differentiable, or a product is not finite; it names
                the epoch.
        """
        if snapshot:
            self._snapshot = stage, epoch
        elif epoch % self.every or self._snapshot == (stage, epoch):
            return []
        _check_weights(learner, epoch, lr)
        try:
            return [self._record(learner, stage, epoch, lr, snapshot)]
        except UserError as error:
            raise UserError(
                f"sharpness after epoch {epoch} of stage {stage!r}: {error}; the training before "
                "this epoch is kept: go on without measuring by --resume --sharpness-every 0"
            ) from None

    def _record(
        self, learner: Learner, stage: str, epoch: int, lr: float, snapshot: bool
    ) -> dict[str, Any]:
        devices = [learner.device] if learner.device.type == "cuda" else []
        # A model of the user's may draw, or write into its buffers, in evaluation mode too.
        with preserved(learner.model), torch.random.fork_rng(devices):
            found = top_eigenvalues(
                learner.model,
                learner.loss_fn,
                self.batches,
                seed=self.seed,
                forward_fn=learner.forward_fn,
            )
        return {
            "event": "sharpness",
            "stage": stage,
            "epoch": epoch,
            "lr": lr,
            "snapshot": snapshot,
            "eigenvalue": float(found.values[0]),
            "residual": float(found.residuals[0]),
            "converged": found.converged,
            "examples": len(self.batches.split),
            "products": found.hessian_products,
            "gradients": round(found.gradient_cost, 4),
        }


def _check_weights(learner: Learner, epoch: int, lr: float) -> None:
    """Tell training that has diverged from a loss without second derivatives."""
    for name, parameter in learner.model.named_parameters():
        if not bool(torch.isfinite(parameter).all()):
            raise DivergenceError(
                f"the weights {name!r} are not finite after epoch {epoch}, learning rate {lr:g} "
                "next; lower the learning rates"
            )
