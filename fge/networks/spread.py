"""Models that PyTorch spreads over processes: which processes those are, and the whole state."""

from __future__ import annotations

from typing import cast

import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from fge.errors import UserError
from fge.networks.state import unwrap
from fge.parallel import Ranks, default_ranks, is_shard


def is_sharded(model: nn.Module) -> bool:
    """Say whether the parameters of a model are spread over processes, by ``fully_shard``."""
    return any(is_shard(parameter) for parameter in model.parameters())


def check_whole(model: nn.Module) -> None:
    """Check that a model can be copied and take whole weights.

    Raises:
        UserError: it is sharded.
    """
    if is_sharded(model):
        raise UserError(
            "the model is sharded by fully_shard, so it cannot be copied; give an unsharded model "
            "of the same architecture, whatever its weights (cycle.ensemble(model), say)"
        )


def ranks_of(model: nn.Module) -> Ranks:
    """Return the processes over which PyTorch spreads a model, if any.

    They are those of ``DistributedDataParallel``, or of the mesh of ``fully_shard``.

    Raises:
        UserError: a mesh of several dimensions that leaves processes out.
    """
    inner: object = model
    while isinstance(inner, nn.Module):
        if isinstance(inner, DistributedDataParallel):
            group = inner.process_group
            return Ranks(dist.get_rank(group), dist.get_world_size(group), group)
        inner = getattr(inner, "_orig_mod", None)  # what torch.compile returns
    # In the order of the parameters: of two meshes of one size, all processes take the first.
    shards = [p for p in model.parameters() if is_shard(p)]
    meshes = dict.fromkeys(p.device_mesh for p in shards)  # type: ignore[attr-defined]
    if not meshes:
        return Ranks()
    mesh = max(meshes, key=lambda mesh: int(mesh.size()))
    if mesh.size() == dist.get_world_size():
        return default_ranks()
    if mesh.ndim > 1:
        raise UserError(
            f"a model sharded over a mesh of {mesh.ndim} dimensions must be spread over all "
            f"{dist.get_world_size()} processes, got {mesh.size()} of them"
        )
    group = mesh.get_group()
    return Ranks(dist.get_rank(group), dist.get_world_size(group), group)


def gather_state(model: nn.Module, ranks: Ranks, *, keeps: bool) -> dict[str, Tensor]:
    """Return the whole state of a sharded model; its processes call this together.

    Args:
        model: sharded by ``fully_shard``.
        ranks: from :func:`ranks_of`.
        keeps: whether this process is to have the state; it is empty in others if only the first
            of all processes is to have it.
    """
    from torch.distributed.checkpoint.state_dict import StateDictOptions, get_model_state_dict

    # PyTorch gathers on the CPU for the first of all processes, tensor by tensor, or in the
    # memory of every device.
    keepers = ranks.gather(dist.get_rank() if keeps else None)
    first_alone = all(keeper in (0, None) for keeper in keepers)
    options = StateDictOptions(full_state_dict=True, cpu_offload=first_alone)
    state = get_model_state_dict(unwrap(model), options=options)
    return cast(dict[str, Tensor], state) if keeps else {}
