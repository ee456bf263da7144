"""The two-network baseline that was measured elsewhere, for reports of the job it belongs to."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from importlib import resources
from typing import Any, NotRequired, TypedDict

from fge.files import parse_json
from fge.report.methods import COLUMNS
from fge.schemas import NotNegative, Positive

_FILE = "published_baseline.json"
"""Written by ``benchmarks/published_baseline.py``."""


class _Figure(TypedDict):
    mean: float
    deviation: NotNegative


class _Figures(TypedDict):
    error: _Figure
    nll: _Figure
    brier: _Figure
    ece: _Figure


class _Cost(TypedDict):
    members: Positive
    train_epochs: NotNegative
    forward_passes: Positive


class _Environment(TypedDict):
    device: str
    hardware: NotRequired[str]
    torch: NotRequired[str]


class _Facts(TypedDict):
    """What the package ships."""

    method: str
    recipe: str
    seeds: list[int]
    figures: _Figures
    cost: _Cost
    options: dict[str, Any]
    images_sha256: str
    environment: _Environment


@dataclass(frozen=True)
class Published:
    """The mean over seeds of a curve ensemble, measured elsewhere on the same job.

    ``facts`` is what the package ships: ``options`` of the job; ``seeds``; ``figures`` with
    ``mean`` and ``deviation`` of error (percent), NLL (nats per image), Brier and ECE; ``cost``;
    the ``recipe`` of its networks, and the ``environment``, as far as it was recorded.
    """

    facts: _Facts

    @property
    def name(self) -> str:
        """What its row is called."""
        return f"{self.facts['method']} (published)"

    @property
    def row(self) -> list[str]:
        """The cells of its row in the method table."""
        figures: Mapping[str, Any] = self.facts["figures"]
        means = {key: one["mean"] for key, one in figures.items()}
        values = {**means, **self.facts["cost"], "name": self.name}
        return [form.format(values[key]) for key, _, form in COLUMNS]

    @property
    def note(self) -> str:
        """What has to be said below a table with its row."""
        return f"`{self.name}` was not measured here: it is the mean of {self._seeds} elsewhere."

    @property
    def sentence(self) -> str:
        """What it is, where it is from and how to measure it here."""
        error, nll = (self.facts["figures"][key] for key in ("error", "nll"))
        cost = self.facts["cost"]
        return (
            f"Published, not measured in this run: the two-network curve ensemble at the same "
            f"budget ({cost['train_epochs']:g} epochs, {cost['forward_passes']} passes per "
            f"prediction) has {error['mean']:.2f} ± {error['deviation']:.2f} % error and NLL "
            f"{nll['mean']:.4f} ± {nll['deviation']:.4f} (mean ± standard deviation of "
            f"{self._seeds}; networks of recipe {self.facts['recipe']}; measured on "
            f"{self._hardware}). --baseline auto measures it here."
        )

    @property
    def _seeds(self) -> str:
        return f"{len(self.facts['seeds'])} seeds"

    @property
    def _hardware(self) -> str:
        environment = self.facts["environment"]
        if "hardware" not in environment:
            kind = "CPU" if environment["device"] == "cpu" else "GPU"
            return f"a {kind}, hardware and versions not recorded"
        versions = [f"{name} {environment[name]}" for name in ("torch",) if name in environment]
        return ", ".join([environment["hardware"], *versions])


def published_for(options: Mapping[str, Any], fingerprint: str) -> Published | None:
    """Return the published baseline of a run, if it has the same data, model and training.

    Args:
        options: of the run, settled, as JSON values; those of its ensemble do not matter.
        fingerprint: of its images.
    """
    facts = _read()
    same = all(options.get(name) == value for name, value in facts["options"].items())
    if not same or facts["images_sha256"] != fingerprint or options.get("pretrained"):
        return None
    return Published(facts)


def _read() -> _Facts:
    """Return what the package ships."""
    data = (resources.files("fge.report") / _FILE).read_bytes()
    return parse_json(data, _Facts, f"{_FILE} is damaged", "install fge again")
