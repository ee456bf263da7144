"""Which runs a comparison needs, and which of their results make up each of its cells."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any
from urllib.parse import quote

from fge.compare.cells import Cell, cell_name
from fge.config import (
    CURVE_END_SHARE,
    CURVE_POINTS,
    OF_FGE_RUN,
    CompareConfig,
    CurveEnsembleConfig,
    FGEConfig,
    RunConfig,
    TrainConfig,
    options_for,
)
from fge.seeds import derive_seed
from fge.train import find_method


@dataclass(frozen=True)
class Job:
    """A run that a comparison needs.

    ``name``: of its folder; ``lines``: of its report, which tell that it is done; ``needs``: jobs
    that come before; ``epochs``: of training, for the progress shown.
    """

    name: str
    command: str
    config: RunConfig
    lines: tuple[str, ...]
    epochs: int
    needs: tuple[Job, ...] = ()


@dataclass(frozen=True)
class Part:
    """A line of a run's report whose members belong to a cell.

    ``given_epochs`` were trained elsewhere for networks that the run read from files.
    """

    job: Job
    line: str
    given_epochs: int = 0

    @property
    def name(self) -> str:
        """What it is called wherever it was trained: alone, or with the others of an fge run."""
        if self.job.command != "fge":
            return self.job.name
        return f"{self.line}{self.job.name.removeprefix('fge')}"


@dataclass(frozen=True)
class PlannedCell:
    """One method at one budget (in multiples of the epochs) with one seed, and its parts.

    ``pooled``: how many seeds' runs they are from, this one's and the next ones', going round.
    """

    method: str
    budget: int
    seed: int
    parts: tuple[Part, ...]
    note: str = ""
    pooled: int = 1

    @property
    def name(self) -> str:
        """What the files of the cell are called."""
        return cell_name(self.method, self.budget, self.seed)

    @property
    def part_names(self) -> tuple[str, ...]:
        """What the parts are called: other ones make another cell of the same name."""
        return tuple(part.name for part in self.parts)

    def is_measured_in(self, cell: Cell) -> bool:
        """Say whether the cell of this name is of these parts: of more seeds it may be of others.

        Of a cell that was written without its parts it is not known what it pools.
        """
        if cell.parts:
            return cell.parts == self.part_names
        return cell.pooled == self.pooled == 1


class Plan:
    """The cells of a comparison and the runs behind them.

    Args:
        config: settled options.
        runs: the folder of the runs.

    Raises:
        UserError: a method of the user's own that cannot be imported, or is none.
    """

    def __init__(self, config: CompareConfig, runs: Path) -> None:
        self.config = config
        self.runs = runs
        places = {
            (method, budget): None
            for budget in config.budgets
            for method in config.methods
            if method != "curve-ensemble-2B" or budget == min(config.budgets)
        }
        # The single network is what all are held against, and pools of it cost nothing more: the
        # deep-ensemble equivalent is read off them.
        places |= {("single", 1): None}
        places |= {("deep-ensemble", k): None for k in range(2, config.seeds + 1)}
        self.cells = [self._cell(*place, seed) for place in places for seed in config.all_seeds]

    def jobs(self, cells: list[PlannedCell]) -> list[Job]:
        """Return the jobs that the cells need, each once, those that others need first."""
        found: dict[str, Job] = {}

        def add(job: Job) -> None:
            for needed in job.needs:
                add(needed)
            found.setdefault(job.name, job)

        for cell in cells:
            for part in cell.parts:
                add(part.job)
        return list(found.values())

    def measured(self, cells: Iterable[Cell]) -> dict[str, Cell]:
        """Return those of the cells, by name, that are cells of this plan."""
        found = {cell.name: cell for cell in cells}
        return {
            planned.name: found[planned.name]
            for planned in self.cells
            if planned.name in found and planned.is_measured_in(found[planned.name])
        }

    def _cell(self, method: str, budget: int, seed: int) -> PlannedCell:
        parts, note = self._parts(method, budget, seed)
        pooled = 2 if method == "curve-ensemble-2B" else len(parts) if budget > 1 else 1
        return PlannedCell(method, budget, seed, tuple(parts), note, pooled)

    def _parts(self, method: str, budget: int, seed: int) -> tuple[list[Part], str]:
        if method == "single":
            return [self._single(budget, seed)], ""
        if method == "deep-ensemble" and budget == 1:
            return self._split(seed), f"one budget split among {self.config.split} networks"
        if method == "curve-ensemble":
            return [Part(self._curve(budget, seed), "curve")], ""
        if method == "curve-ensemble-2B":
            return [self._curve_of_singles(seed)], "two networks of a budget each, and the fit"
        seeds = self._pool(budget, seed)
        pooled = f"{budget} runs pooled; each is in {budget} pools" if budget > 1 else ""
        if method == "deep-ensemble":
            return [self._single(1, s) for s in seeds], f"the single networks again; {pooled}"
        if method in OF_FGE_RUN:
            return [Part(self._fge(s), method) for s in seeds], pooled
        return [self._trained(method, self.config.epochs, s) for s in seeds], pooled

    def _pool(self, budget: int, seed: int) -> list[int]:
        """Return so many seeds from ``seed`` on, going round."""
        seeds = self.config.all_seeds
        start = seed - seeds.start
        return [seeds[(start + k) % len(seeds)] for k in range(budget)]

    def _single(self, budget: int, seed: int) -> Part:
        alone = Part(self._train_job("single", budget * self.config.epochs, seed), "single")
        with_fge = any(method in OF_FGE_RUN for method in self.config.methods)
        trained_alone = (self.runs / alone.job.name / "report.json").is_file()
        if budget > 1 or not with_fge or trained_alone:
            return alone
        return Part(self._fge(seed), "single")

    def _fge(self, seed: int) -> Job:
        """Return the FGE run, which trains the single network from the shared start as well."""
        refit = "bezier" if "fge+refit" in self.config.methods else None
        config = options_for(FGEConfig, self.config, seed=seed, single=True, refit=refit)
        lines = ["single", "fge", "swa", *(["fold"] if config.val_fraction else [])]
        lines += ["fge+refit"] if refit else []
        wanted = [line for line in lines if line in ("single", *self.config.methods)]
        epochs = config.last_cycle_epoch + config.epochs - config.first_cycle_epoch
        return Job(f"fge-e{config.epochs}-s{seed}", "fge", config, tuple(wanted), epochs)

    def _train_job(self, method: str, epochs: int, seed: int, name: str = "") -> Job:
        config = options_for(
            TrainConfig,
            self.config,
            method=method,
            epochs=epochs,
            seed=seed,
            **self._rescaled(epochs),
        )
        folder = f"{quote(method, safe='+')}-e{epochs}-s{name or seed}"
        return Job(folder, "train", config, (find_method(method).name,), epochs)

    def _rescaled(self, epochs: int) -> dict[str, Any]:
        """Return cycle options for another budget, in which those given may not fit."""
        if epochs == self.config.epochs:
            return {}
        return {"start_epoch": None, "cycle_epochs": None}

    def _trained(self, method: str, epochs: int, seed: int) -> Part:
        job = self._train_job(method, epochs, seed)
        return Part(job, job.lines[0])

    def _split(self, seed: int) -> list[Part]:
        epochs = self.config.epochs // self.config.split
        parts = []
        for member in range(self.config.split):
            own = derive_seed(seed, "deep-ensemble", member)
            job = self._train_job("single", epochs, own, name=f"{seed}.{member}")
            parts.append(Part(job, "single"))
        return parts

    def _curve(self, budget: int, seed: int) -> Job:
        total = budget * self.config.epochs
        end = max(1, int(CURVE_END_SHARE * total))
        return self._curve_job(f"curve-e{total}-s{seed}", end, total - 2 * end, seed)

    def _curve_job(self, name: str, end: int, fit: int, seed: int, **own: Any) -> Job:
        recipe: Any = "average" if self.config.average_part > 0 else "endpoint"
        config = options_for(
            CurveEnsembleConfig,
            self.config,
            epochs=end,
            curve_epochs=fit,
            seed=seed,
            first=recipe,
            second=recipe,
            eval_points=CURVE_POINTS,
            ensemble_points=CURVE_POINTS,
        )
        return Job(name, "curve-ensemble", replace(config, **own), ("curve",), 2 * end + fit)

    def _curve_of_singles(self, seed: int) -> Part:
        """Return the curve between the single networks of this seed and the next."""
        seeds = self._pool(2, seed)
        singles = [self._single(1, s) for s in seeds]
        files = [self._weights(part) for part in singles]
        epochs = self.config.epochs
        job = self._curve_job(
            f"curve-2B-e{epochs}-s{seeds[0]}-s{seeds[1]}",
            epochs,
            max(1, epochs // 2),
            seed,
            first="G",
            second="G",
            first_weights=files[0],
            second_weights=files[1],
            lr=None,
        )
        needs = tuple(part.job for part in singles)
        return Part(
            replace(job, epochs=max(1, epochs // 2), needs=needs), "curve", given_epochs=2 * epochs
        )

    def _weights(self, part: Part) -> Path:
        store = "single" if part.job.command == "fge" else "snapshots"
        return self.runs / part.job.name / store / "0001.safetensors"
