"""Made-up images and rows on which an exported file is compared with the ensemble of a run."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from fge.commands.finished import DataFacts
from fge.data import Column, Encoder, Normaliser, Table, TableFacts
from fge.export import raw_rows
from fge.seeds import generator

_OF_A_KIND = 8
PROBES = 3 * _OF_A_KIND
"""Their number."""
_PATCH = 4
"""The side of the patches of smooth images, in pixels."""
_GAPS = 6
"""One number in so many is missing."""
_CPU = torch.device("cpu")


def image_probes(data: DataFacts) -> tuple[Tensor, Tensor]:
    """Return images (N, C, H, W) uint8 like the run's, and what its network takes for them.

    They are noise, smooth ones of the run's mean and std, and black, white or of one colour.
    """
    height, width = data.image_size
    rng = generator(0, "probes")
    mean, std = (torch.tensor(values).view(1, -1, 1, 1) for values in (data.mean, data.std))
    noise = torch.randn(_OF_A_KIND, data.channels, height, width, generator=rng)
    coarse = (_OF_A_KIND, data.channels, -(-height // _PATCH) + 1, -(-width // _PATCH) + 1)
    smooth = F.interpolate(torch.randn(coarse, generator=rng), (height, width), mode="bilinear")
    plain = torch.linspace(-1, 1, _OF_A_KIND).view(-1, 1, 1, 1) * 255 / std
    images = mean + std * torch.cat([noise, smooth, plain.expand_as(noise)])
    images = images.clamp(0, 255).round().to(torch.uint8)
    return images, Normaliser(data.mean, data.std, _CPU)(images)


def row_probes(facts: TableFacts) -> tuple[Tensor, Tensor]:
    """Return rows (N, columns) as an exported file takes them, and the features (N, F) of a run.

    Numbers have the mean and std of the training rows, and some are missing; every word occurs as
    long as there are rows, and one that no training row had.
    """
    encoder, rng = Encoder.of(facts), np.random.default_rng(0)
    values = {column.name: _values(column, rng) for column in encoder.columns}
    table = Table(Path("made-up rows"), values)
    return raw_rows(encoder.columns, table), torch.from_numpy(encoder.encode(table))


def _values(column: Column, rng: np.random.Generator) -> NDArray[Any]:
    if not column.categories:
        numbers = column.mean + column.std * rng.normal(size=PROBES)
        return np.where(rng.integers(_GAPS, size=PROBES) == 0, np.nan, numbers)
    unknown = max((word for word in column.categories if word is not None), default="") + "?"
    words = np.array([unknown, *column.categories], dtype=object)
    return rng.permutation(np.resize(words, PROBES))
