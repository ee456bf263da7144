"""Finding the processes over which a model is spread."""

from __future__ import annotations

from typing import Any

import pytest
import torch.distributed as dist
from torch import nn

from fge.networks import spread


class Mesh:
    """Two processes of four. Its hash decides where it stands in a set."""

    ndim = 1

    def __init__(self, group: str, place: int) -> None:
        self.group = group
        self.place = place

    def __hash__(self) -> int:
        return self.place

    def size(self) -> int:
        return 2

    def get_group(self) -> str:
        return self.group


@pytest.mark.parametrize("places", [(1, 2), (2, 1)])
def test_of_two_meshes_of_one_size_the_first_parameters_is_taken(
    monkeypatch: pytest.MonkeyPatch, places: tuple[int, int]
) -> None:
    """Hashes of meshes may differ from process to process; then each would take its own."""
    model: Any = nn.Sequential(nn.Linear(2, 2, bias=False), nn.Linear(2, 2, bias=False))
    for layer, group, place in zip(model, ("first", "second"), places, strict=True):
        layer.weight.device_mesh = Mesh(group, place)
    monkeypatch.setattr(spread, "is_shard", lambda _: True)
    monkeypatch.setattr(dist, "get_world_size", lambda group=None: 2 if group else 4)
    monkeypatch.setattr(dist, "get_rank", lambda _group: 0)
    found: Any = spread.ranks_of(model).group
    assert found == "first"
