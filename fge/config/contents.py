"""What a ``config.json`` holds beside its options, as far as it is used.

This is a file of its own because parsing options needs no schema: it is imported to read a file.
"""

from __future__ import annotations

from typing import Any, Literal, NotRequired, TypedDict

from fge.schemas import Positive


class Images(TypedDict):
    """The fingerprint of images."""

    sha256: str


class DataFacts(TypedDict):
    """What the images of a run were; ``predict`` needs more of it."""

    sha256: NotRequired[str]
    names_sha256: NotRequired[str]
    ood: NotRequired[dict[str, Images]]


class ConfigFile(TypedDict):
    """The options of a command, and facts about its run."""

    options: NotRequired[dict[str, Any]]
    schema_version: NotRequired[Positive]
    command: NotRequired[str]
    dataset: NotRequired[DataFacts | None]
    processes: NotRequired[Positive]
    combine: NotRequired[Literal["probabilities", "weights"] | None]
    job_threads: NotRequired[Positive]
