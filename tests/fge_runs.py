"""Options of short runs of ``fge`` on the tiny data."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from conftest import PLAIN

from fge.config import FGEConfig


def config(tiny_npz: Path, out: Path, **changes: Any) -> FGEConfig:
    values: dict[str, Any] = {
        "data": str(tiny_npz),
        "out": out,
        "epochs": 6,
        "start_epoch": 1,
        "cycle_epochs": 2,
        **PLAIN,
        "val_fraction": 0.25,
        **changes,
    }
    return FGEConfig(**values)
