"""A learner that keeps, beside the weights it trains, their exponential moving average."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any

from fge.networks.average import ExponentialAverage
from fge.networks.batchnorm import refresh_batch_norm
from fge.train.learner import Learner

REFRESH_IMAGES = 5120
"""Training images for the batch-norm statistics of the average."""


class EmaLearner(Learner):
    """A learner whose snapshots are the average of its weights over the steps.

    Args:
        arguments: of :class:`fge.train.Learner`.
        decay: of the average, per step; see :class:`fge.networks.ExponentialAverage`.
        refresh: training images without augmentation, which give the average its batch-norm
            statistics.
        options: of :class:`fge.train.Learner`.
    """

    def __init__(
        self, *arguments: Any, decay: float, refresh: Iterable[Any], **options: Any
    ) -> None:
        super().__init__(*arguments, **options)
        self.average = ExponentialAverage(self.model, decay=decay)
        self.refresh = refresh

    def _update(self) -> None:
        super()._update()
        self.average.update(self.model)

    @contextmanager
    def kept(self) -> Iterator[int]:
        """Have the average, with statistics of its own, in the model during a block.

        The block gets the images that were passed forward for them. Of several processes one may
        do this alone: nothing is exchanged.
        """
        with self.average.swapped(self.model):
            yield refresh_batch_norm(
                self.model, self.refresh, num_images=REFRESH_IMAGES, forward_fn=self.forward_fn
            )

    def state_dict(self) -> dict[str, Any]:
        """Return the state with that of the average."""
        return {**super().state_dict(), "average": self.average.state_dict()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go back to a saved state."""
        super().load_state_dict(state)
        self.average.load_state_dict(state["average"])
