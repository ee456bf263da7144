"""Which runs a comparison needs, and which of their results make up each of its cells."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any
from urllib.parse import quote

from fge.compare.cells import Cell, cell_name
from fge.config import (
    AVERAGED,
    CURVE_END_SHARE,
    CURVE_ENSEMBLE,
    CURVE_POINTS,
    DEEP_ENSEMBLE,
    DEEP_ENSEMBLE_AVERAGED,
    FGE,
    OF_AVERAGED_RUN,
    OF_PAPER_RUN,
    SINGLE,
    VIEWS_SUFFIX,
    CompareConfig,
    CurveEnsembleConfig,
    ExampleOptions,
    FGEConfig,
    OptimizerOptions,
    RunConfig,
    TrainConfig,
    options_for,
    without_views,
)
from fge.seeds import derive_seed
from fge.train import find_method

_LONGER = (SINGLE, AVERAGED, "auto")
"""Methods of one run that train for k times as long at k budgets; the others pool k runs."""


@dataclass(frozen=True)
class Job:
    """A run that a comparison needs.

    ``name``: of its folder; ``lines``: the lines that its report has when it is finished;
    ``needs``: jobs that have to finish first; ``epochs``: of training, for the progress display.
    """

    name: str
    command: str
    config: RunConfig
    lines: tuple[str, ...]
    epochs: int
    needs: tuple[Job, ...] = ()

    def merged(self, other: Job) -> Job:
        """Return the job with the lines of another one of its name, and with its views."""
        views = [getattr(job.config, "tta", None) for job in (self, other)]
        config = self.config if views[1] is None else other.config
        return replace(self, config=config, lines=tuple(dict.fromkeys((*self.lines, *other.lines))))


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
        """The name of the part, the same for a run alone and for a line of an fge run."""
        if self.job.command != "fge":
            return self.job.name
        return f"{without_views(self.line)}{self.job.name.removeprefix('fge')}"

    def with_views(self, views: int | None) -> Part:
        """Return the same members with test-time augmentation."""
        line = f"{self.line}{VIEWS_SUFFIX}"
        config = replace(self.job.config, tta=views)  # type: ignore[call-arg]
        return replace(self, job=replace(self.job, config=config, lines=(line,)), line=line)


@dataclass(frozen=True)
class PlannedCell:
    """One method at one budget (in multiples of the epochs) with one seed, and its parts.

    ``pooled``: the number of seeds whose runs are pooled: this seed and the following ones,
    starting again from the first seed after the last.
    """

    method: str
    budget: int
    seed: int
    parts: tuple[Part, ...]
    note: str = ""
    pooled: int = 1

    @property
    def name(self) -> str:
        """The name of the cell's files, without the suffix."""
        return cell_name(self.method, self.budget, self.seed)

    @property
    def part_names(self) -> tuple[str, ...]:
        """The names of the parts; cells of the same name may have different parts."""
        return tuple(part.name for part in self.parts)

    def is_measured_in(self, cell: Cell) -> bool:
        """Return whether a measured cell of this name has the same parts.

        With another number of seeds a cell may pool other runs. A cell from an earlier version
        does not record its parts; it is accepted only if it pools nothing.
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
        UserError: a method of the user's own cannot be imported, or is not a ``Method``.
    """

    def __init__(self, config: CompareConfig, runs: Path) -> None:
        self.views = config.tta
        # Runs are those of the methods without views, which some of them are given then.
        plain = tuple(dict.fromkeys(map(without_views, config.methods)))
        self.config = replace(config, methods=plain, tta=None)
        self.runs = runs
        self.averages = config.average_part > 0
        self._made: dict[tuple[Any, ...], Part] = {}
        places = {
            (method, budget): None
            for budget in config.budgets
            for method in config.methods
            if method != "curve-ensemble-2B" or budget == min(config.budgets)
        }
        # All methods are compared with the single network. Pools of it cost no more training and
        # give the scale of the deep-ensemble equivalent; so do pools of averages.
        pools = {SINGLE: DEEP_ENSEMBLE}
        if {AVERAGED, DEEP_ENSEMBLE_AVERAGED} & set(plain):
            pools[AVERAGED] = DEEP_ENSEMBLE_AVERAGED
        for network, pool in pools.items():
            places |= {(network, 1): None}
            places |= {(pool, k): None for k in range(2, config.seeds + 1)}
        # One budget that averages share is the method split.
        places.pop((DEEP_ENSEMBLE_AVERAGED, 1), None)
        self.cells = [self._cell(*place, seed) for place in places for seed in config.all_seeds]

    def jobs(self, cells: list[PlannedCell]) -> list[Job]:
        """Return the jobs that the cells need, each once, those that others need first.

        They come seed by seed: an interrupted comparison has all methods of its first seeds.
        """
        found: dict[str, Job] = {}
        added: set[int] = set()

        def add(job: Job) -> None:
            if id(job) in added:  # as one of another pool
                return
            added.add(id(job))
            for needed in job.needs:
                add(needed)
            known = found.get(job.name)
            found[job.name] = job if known is None else known.merged(job)

        for cell in sorted(cells, key=lambda cell: (cell.pooled > 1, cell.seed)):
            for part in cell.parts:
                add(part.job)
        return list(found.values())

    def measured(self, cells: Iterable[Cell]) -> dict[str, Cell]:
        """Return the cells that belong to this plan, by name."""
        by_name = {cell.name: cell for cell in cells}
        return {
            planned.name: by_name[planned.name]
            for planned in self.cells
            if planned.name in by_name and planned.is_measured_in(by_name[planned.name])
        }

    def _cell(self, method: str, budget: int, seed: int) -> PlannedCell:
        parts, note = self._parts(without_views(method), budget, seed)
        if method != without_views(method):
            parts = [part.with_views(self.views) for part in parts]
            note = "; ".join(filter(None, [note, f"{self.views} views of each image"]))
        pooled = 2 if method == "curve-ensemble-2B" else len(parts) if budget > 1 else 1
        return PlannedCell(method, budget, seed, tuple(parts), note, pooled)

    def _parts(self, method: str, budget: int, seed: int) -> tuple[list[Part], str]:
        if method == SINGLE:
            return [self._single(budget, seed)], ""
        if method in _LONGER:
            return [self._trained(method, budget * self.config.epochs, seed)], ""
        if method == DEEP_ENSEMBLE and budget == 1:
            return self._split(seed), f"one budget split among {self.config.split} networks"
        if method == CURVE_ENSEMBLE:
            return [Part(self._curve(budget, seed), "curve")], ""
        if method == "curve-ensemble-2B":
            return [self._curve_of_singles(seed)], "two networks of a budget each, and the fit"
        seeds = self._pool(budget, seed)
        pooled = f"{budget} runs pooled; each is in {budget} pools" if budget > 1 else ""
        if method == DEEP_ENSEMBLE:
            return [self._single(1, s) for s in seeds], f"the single networks again; {pooled}"
        if method == DEEP_ENSEMBLE_AVERAGED:
            parts = [self._trained(AVERAGED, self.config.epochs, s) for s in seeds]
            return parts, f"the averages again; {pooled}"
        if method in OF_PAPER_RUN:
            line = FGE if method == "fge-paper" else method
            return [Part(self._paper(s), line) for s in seeds], pooled
        if method in OF_AVERAGED_RUN:
            run = self._averaged if self.averages else self._paper
            return [Part(run(s), method) for s in seeds], pooled
        return [self._trained(method, self.config.epochs, s) for s in seeds], pooled

    def _pool(self, budget: int, seed: int) -> list[int]:
        """Return ``budget`` seeds from ``seed`` on; after the last comes the first again."""
        seeds = self.config.all_seeds
        start = seed - seeds.start
        return [seeds[(start + k) % len(seeds)] for k in range(budget)]

    def _single(self, budget: int, seed: int) -> Part:
        return self._once(self._make_single, budget, seed)

    def _once(self, make: Callable[..., Part], *key: Any) -> Part:
        """Return a part, made once: each run of many seeds is in many pools."""
        name = (make.__name__, *key)
        if name not in self._made:
            self._made[name] = make(*key)
        return self._made[name]

    def _make_single(self, budget: int, seed: int) -> Part:
        alone = Part(self._train_job(SINGLE, budget * self.config.epochs, seed), SINGLE)
        beside = OF_PAPER_RUN if self.averages else (*OF_PAPER_RUN, *OF_AVERAGED_RUN)
        with_fge = any(method in beside for method in self.config.methods)
        trained_alone = (self.runs / alone.job.name / "report.json").is_file()
        if budget > 1 or not with_fge or trained_alone or self.config.pretrained is not None:
            return alone
        return Part(self._paper(seed), SINGLE)

    def _paper(self, seed: int) -> Job:
        """Return the FGE run as published, which trains the single network from its start as well.

        From given weights it trains FGE alone.

        Where nothing is averaged it is the only FGE run.
        """
        single = self.config.pretrained is None  # it starts from initial weights
        wanted = dict.fromkeys((*([SINGLE] if single else []), *self._lines_of(OF_PAPER_RUN)))
        if "fge-paper" in wanted:
            wanted |= {FGE: None}
            del wanted["fge-paper"]
        refit = None
        if not self.averages:
            wanted |= dict.fromkeys(self._lines_of(OF_AVERAGED_RUN))
            refit = self._refit()
        config = options_for(
            FGEConfig, self.config, seed=seed, single=single, refit=refit, average=0.0
        )
        epochs = config.last_cycle_epoch
        epochs += config.epochs - config.first_cycle_epoch if single else 0
        return Job(f"fge-e{config.epochs}-s{seed}", "fge", config, tuple(wanted), epochs)

    def _averaged(self, seed: int) -> Job:
        """Return the FGE run whose members are averages."""
        config = options_for(FGEConfig, self.config, seed=seed, refit=self._refit())
        name = f"fge-avg-e{config.epochs}-s{seed}"
        lines = self._lines_of(OF_AVERAGED_RUN)
        return Job(name, "fge", config, tuple(lines), config.last_cycle_epoch)

    def _refit(self) -> str | None:
        return "bezier" if "fge+refit" in self.config.methods else None

    def _lines_of(self, methods: Sequence[str]) -> list[str]:
        return [method for method in methods if method in self.config.methods]

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
        return self._once(self._make_trained, method, epochs, seed)

    def _make_trained(self, method: str, epochs: int, seed: int) -> Part:
        job = self._train_job(method, epochs, seed)
        return Part(job, job.lines[0])

    def _split(self, seed: int) -> list[Part]:
        epochs = self.config.epochs // self.config.split
        parts = []
        for member in range(self.config.split):
            member_seed = derive_seed(seed, "deep-ensemble", member)
            job = self._train_job("single", epochs, member_seed, name=f"{seed}.{member}")
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
            **self._untrained(),
        )
        needs = tuple(part.job for part in singles)
        return Part(
            replace(job, epochs=max(1, epochs // 2), needs=needs), "curve", given_epochs=2 * epochs
        )

    def _untrained(self) -> dict[str, Any]:
        """Return the options of training as of a run that trains no network, only a curve."""
        own = (*fields(OptimizerOptions), *fields(ExampleOptions))
        left: dict[str, Any] = {f.name: f.default for f in own}
        if self.config.optimizer != left["optimizer"]:  # whose default decay may be another
            left["weight_decay"] = self.config.l2_penalty
        return {**left, "lr": None, "pretrained": None}

    def _weights(self, part: Part) -> Path:
        store = "single" if part.job.command == "fge" else "snapshots"
        return self.runs / part.job.name / store / "0001.safetensors"
