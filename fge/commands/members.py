"""Which networks of a run its ensemble averages: all snapshots, those of a plan, or their mean."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from torch import Tensor

from fge.commands.averages import FILES as AVERAGE_FILES
from fge.config import CommandConfig, FGEConfig, TrainConfig
from fge.ensemble import PredictionFile, SnapshotStore, without_harmful
from fge.files import is_there, read_bytes, sha256
from fge.networks import read_weights
from fge.observer import counted
from fge.report import VALIDATION
from fge.runs import RunFolder
from fge.tasks import make_task
from fge.train import auto_plan

_AUTO = "auto"


@dataclass(frozen=True)
class RunMembers:
    """The networks of a run that predict.

    ``states``: their weights; ``keys``: the SHA-256 of each; ``what``: they are, in words.
    """

    states: Sequence[dict[str, Tensor]] | SnapshotStore
    keys: list[str]
    what: str


def members_of_run(
    run: Path, config: CommandConfig, store: SnapshotStore, *, averaged: bool
) -> RunMembers:
    """Return the networks that a run's report calls its ensemble, or the average of their weights.

    Args:
        run: its folder.
        config: its options.
        store: its snapshots.
        averaged: whether its method averages weights.

    Raises:
        UserError: a file of the run is damaged.
    """
    kept, keys = kept_members(run, config, store), keys_of(store)
    what = counted(len(kept), "snapshot")
    if averaged:
        path = run / AVERAGE_FILES["swa"]
        return RunMembers(
            [read_weights(path)], [sha256(read_bytes(path))], f"the average of {what}"
        )
    states = store if len(kept) == len(store) else [store[k] for k in kept]
    return RunMembers(states, [keys[k] for k in kept], what)


def keys_of(store: SnapshotStore) -> list[str]:
    """Return the SHA-256 of the weights of each snapshot."""
    return [store.facts(position)["sha256"] for position in range(len(store))]


def kept_members(run: Path, config: CommandConfig, store: SnapshotStore) -> list[int]:
    """Return the positions of the members: all, or those of a plan.

    A plan keeps several averages of each network and uses one of them, without those networks that
    validation found harmful. Its decisions are in the log.
    """
    everything = list(range(len(store)))
    if not isinstance(config, FGEConfig | TrainConfig):
        return everything
    if (config.plan if isinstance(config, FGEConfig) else config.method) != _AUTO:
        return everything
    records = RunFolder(run).records()
    positions = [k for k in auto_plan(config).kept(records) if k < len(store)] or everything
    if not is_there(run / VALIDATION):
        return positions
    task = make_task(config.task, ())
    file, keys = PredictionFile.stored(run / VALIDATION, task), keys_of(store)
    names = [file.by_weights.get(keys[k]) for k in positions]
    found = [file.probabilities(name).numpy() for name in names if name is not None]
    if len(found) < len(positions):
        return positions
    return [positions[k] for k in without_harmful(found, file.targets, task)]
