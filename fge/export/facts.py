"""What an exported file says of itself: its classes, the images it takes, and what is in it."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass

from fge import __version__

FACTS = "facts"
"""The key of the facts, as JSON, in the metadata of an exported file."""
SCHEMA_VERSION = 1


@dataclass(frozen=True)
class Facts:
    """The facts in an exported file.

    Args:
        classes: the names of the classes, in the order of the probabilities.
        channels: of the images: 1 for grey ones, 3 for RGB.
        height: of the images.
        width: of the images.
        mean: of each channel, in grey levels from 0 to 255; it is subtracted within the file.
        std: of each channel; it divides within the file.
        resize: the shorter side to which images are resized before their centre is cropped, which
            is not within the file; None if they were used as they are.
        members: the numbers of the snapshots.
        averaged: whether their weights are averaged into one network.
        precision: ``"float32"`` or ``"float16"``, in which the networks compute.
        model: the name of the architecture.
    """

    classes: tuple[str, ...]
    channels: int
    height: int
    width: int
    mean: tuple[float, ...]
    std: tuple[float, ...]
    resize: int | None
    members: tuple[int, ...]
    averaged: bool
    precision: str
    model: str

    def text(self) -> str:
        """Return the facts as JSON, with words for what goes in and comes out."""
        content = {
            "schema_version": SCHEMA_VERSION,
            "program": f"fast-geometric-ensembling {__version__}",
            "input": f"images: uint8 (batch, {self.channels}, {self.height}, {self.width}), grey "
            "levels from 0 to 255; they are normalised within the file",
            "output": "probabilities: float32 (batch, classes), rows sum to 1",
            **asdict(self),
        }
        return json.dumps(content)
