"""How much ``sharpness`` measures by default: as much as takes about a minute on two cores."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import NamedTuple

import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from fge.config import SharpnessConfig
from fge.landscape import measuring
from fge.networks import preserved

KRYLOV = (10, 30)
"""The usual steps of k products until the top eigenvalues converge; 100 is the limit."""
OPERATIONS = 2e12
"""What two cores do in well under a minute of Hessian products, as counted here."""
_PER_FORWARD = 6
"""Operations of a Hessian product, in forward passes."""


class Effort(NamedTuple):
    """The images in the loss and the number of random vectors, which set what it costs."""

    examples: int
    trace_samples: int
    spectrum_vectors: int
    spectrum_steps: int

    @classmethod
    def of(cls, config: SharpnessConfig) -> Effort:
        """Return that of options, all of which are given."""
        found = [getattr(config, name) for name in cls._fields]
        assert None not in found, "the options are settled first"
        return cls(*found)

    def products(self, networks: int, k: int, steps: int, *, spectrum: bool = True) -> int:
        """Return the Hessian products of so many networks, if k eigenvalues take so many steps."""
        last = self.spectrum_vectors * self.spectrum_steps if spectrum else 0
        return networks * (steps * k + self.trace_samples) + last


_EFFORTS = (
    Effort(1024, 32, 4, 60),
    Effort(512, 16, 2, 60),
    Effort(256, 16, 2, 40),
    Effort(128, 8, 1, 40),
    Effort(64, 8, 1, 30),
    Effort(32, 8, 1, 30),
    Effort(16, 8, 1, 30),
)


def settled(
    config: SharpnessConfig, model: nn.Module, image: torch.Tensor, networks: int, images: int
) -> SharpnessConfig:
    """Return the options with the effort that they leave open.

    It is counted and not timed, so that the same command measures the same each time.

    Args:
        config: the options; what is given stays.
        model: one of the networks.
        image: one input (1, C, H, W).
        networks: their number.
        images: the number of training images.
    """
    given = {n: getattr(config, n) for n in Effort._fields if getattr(config, n) is not None}
    if len(given) == len(Effort._fields):
        return config
    cost = _PER_FORWARD * _operations(model, image)
    for effort in _EFFORTS:
        chosen = effort._replace(**given)
        work = cost * chosen.products(networks, config.k, sum(KRYLOV) // 2)
        if work * min(chosen.examples or images, images) <= OPERATIONS:
            break
    return replace(config, **chosen._asdict())


def _operations(model: nn.Module, image: torch.Tensor) -> int:
    """Return the floating-point operations of a forward pass, in layers that multiply matrices."""
    with preserved(model), _visible(model, image), FlopCounterMode(display=False) as counter:
        model(image)
    return int(counter.get_total_flops())


@contextmanager
def _visible(model: nn.Module, image: torch.Tensor) -> Iterator[None]:
    """Have no fused attention and recurrence, which the counter does not see through."""
    with warnings.catch_warnings(), measuring(model, image.device):
        warnings.simplefilter("ignore", UserWarning)  # of flags that are left as they are
        with torch.backends.mkldnn.flags(enabled=False):
            yield
