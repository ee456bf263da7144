"""Weights of a convnet for other classes, from which tests of fine-tuning start."""

from __future__ import annotations

import re
from pathlib import Path

import torch
from torch import Tensor

from fge.networks import build_model

FROZEN = r"^[0-7]\."


def write_given(path: Path) -> Path:
    """Write weights of a convnet for seven classes, as a data-parallel checkpoint."""
    torch.manual_seed(5)
    model = build_model("convnet", in_channels=1, num_classes=7, image_size=(8, 8))
    state = {f"module.{name}": tensor for name, tensor in model.state_dict().items()}
    torch.save({"epoch": 9, "state_dict": state}, path)
    return path


def given(weights: Path) -> dict[str, Tensor]:
    """Return the tensors in a file of :func:`write_given` by the names of the model."""
    state: dict[str, Tensor] = torch.load(weights)["state_dict"]
    return {name.removeprefix("module."): tensor for name, tensor in state.items()}


def frozen_names(state: dict[str, Tensor]) -> list[str]:
    """Return the names that ``FROZEN`` matches."""
    return [name for name in state if re.search(FROZEN, name)]
