"""A comparison of methods as tables, JSON and CSV."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

from fge.compare.comparison import (
    BASELINES,
    Comparison,
    Difference,
    MethodRow,
    level_among,
)
from fge.compare.worth import WHOLE, Scale, Worth
from fge.config import CLASSIFICATION, DEEP_ENSEMBLE, DEEP_ENSEMBLE_AVERAGED
from fge.metrics import Interval
from fge.report import OOD_SCORES, Table, csv_text
from fge.tasks import BALANCED, Column

SCHEMA_VERSION = 1
NOTHING = "-"
_NLLS = {"nll": "NLL", "calibrated_nll": "cal. NLL"}
_COSTS = ("method", "seeds", "members", "epochs", "passes", "MB")
_UNITS = (
    "Mean over seeds ± standard deviation, on {images} test {example}s. Epochs count all training "
    "of a method, fits included; passes are network evaluations per prediction; MB (10⁶ bytes) is "
    "the size of all its weights. {figures} DEE, the deep-ensemble equivalent, is the number of "
    "independent networks of B epochs each with the same calibrated NLL (≥: better than every deep "
    "ensemble here)."
)
_OF_CLASSES = (
    "NLL is in nats per {example}. Calibrated numbers are at the optimal temperature "
    "(arXiv 2002.06470). ECE is a fraction, over 15 bins."
)
_MARKED = (
    " Bold: the lowest {first} or calibrated NLL, if it is significantly lower than that of every "
    "other method of the budget (paired intervals of {level}: 95 % for all together, Bonferroni)."
)
_INTERVALS_NOTE = (
    "The method minus the baseline, on the same seeds and test {example}s, with a 95 % interval "
    "over both (seeds and {example}s are resampled; the part of the seeds is widened for their "
    "number, arXiv 1411.5279). Below 0, the method is better. {units}, NLL in nats per {example}. "
    "Read each interval by itself: some of so many exclude 0 by chance."
)
_POOLED_NOTE = (
    " Pooled cells of neighbouring seeds share runs; the intervals allow for it. If all seeds are "
    "pooled, there is one value and no interval."
)
_DIVERSITY_NOTE = (
    "Disagreement is the percentage of {what} that two members classify differently; the error "
    "correlation is that of two members; both are means over pairs. The gain is the mean of the "
    "members minus the value of the ensemble."
)
_SPREAD_NOTE = (
    "Spread is the standard deviation of the members around their mean, in the units of the "
    "target; its square is the gain in squared error (Krogh and Vedelsby 1995). The gain is the "
    "mean of the members minus the value of the ensemble."
)
_AURC_NOTE = (
    "AURC is the area under the risk-coverage curve, a fraction (arXiv 1805.08206): lower is "
    "better."
)
_OOD_NOTE = (
    "AUROC measures how well doubt (a low largest probability, the entropy, or the variance over "
    "members) detects OOD images: 0.5 is chance, 1 is perfect."
)
_WORTH_NOTE = (
    "How many independent networks of B epochs each form an ensemble with the calibrated NLL of "
    "the method. Conventional networks are the measure of the papers (arXiv 2002.06470); networks "
    "averaged over a tail are better, and the harder rivals. DEE is linear between the ensembles "
    "that were measured (≥: better than all of them). The power law L(m) = c + b m^-a (arXiv "
    "2007.08483) is fitted to them, and read from 1 network to twice the largest ensemble (≥: that "
    "or more). Gain is the part of the gain of the largest ensemble over one of its networks, in "
    "percent, or all of it; there is none where that gain is not significantly above 0."
)
_SQUARED = "the squared units of the target"
NAMES = {DEEP_ENSEMBLE: "conventional", DEEP_ENSEMBLE_AVERAGED: "averaged"}
"""Of the networks of a scale."""


def comparison_tables(comparison: Comparison) -> list[Table]:
    """Return the tables: four per budget, deep ensembles, and methods beyond the budget."""
    tables = []
    for budget in comparison.budgets:
        tables += [_main_table(comparison, budget), _intervals_table(comparison, budget)]
        tables += _diversity_table(comparison, budget) + _ood_table(comparison, budget)
    tables += _deep_ensembles_table(comparison) + _worth_table(comparison)
    if comparison.beyond:
        lines = [_placed_cells(row, comparison) for row in comparison.beyond]
        note = _with_notes(
            "These methods train for longer than the budget; no method is compared with them. "
            + _units(comparison),
            comparison.beyond,
        )
        headings = _main_headings(comparison)
        tables.append(Table("Beyond the budget", headings, lines, note))
    return tables


def _deep_ensembles_table(comparison: Comparison) -> list[Table]:
    """Return the deep ensembles at budgets without other methods: the scale of the DEE."""
    within = [row for row in comparison.rows if not row.beyond]
    rows = [row for row in within if row.budget not in comparison.budgets]
    note = (
        "Ensembles of k whole networks, at k B: the scales of the deep-ensemble equivalents. "
        "Ensembles of neighbouring seeds share networks, so the deviations are too small; the "
        "ensemble of all seeds is one value, without deviation or interval."
    )
    lines = [_placed_cells(row, comparison) for row in rows]
    title = "Deep ensembles of whole networks"
    return [Table(title, _main_headings(comparison), lines, note)] if rows else []


def _worth_table(comparison: Comparison) -> list[Table]:
    """Return what the methods are worth on each scale, those beyond their budget too."""
    if not comparison.scales:
        return []
    headings = ["method"]
    for scale in comparison.scales:
        headings += [f"{NAMES[scale.pool]}: DEE", "by power law", "gain %"]
    several = len(comparison.budgets) > 1
    lines = []
    for row in comparison.rows:
        if row.budget in comparison.budgets:
            where = f" (at {row.budget} B)" if several or row.beyond else ""
            line = [f"{row.method}{where}"]
            for worth in row.worths:
                line += _worth_cells(worth)
            lines.append(line)
    note = " ".join([_WORTH_NOTE, *map(_scale_text, comparison.scales)])
    return [Table("Worth in networks", headings, lines, note)]


def _worth_cells(worth: Worth) -> list[str]:
    share = NOTHING
    if worth.gain_share is not None:
        share = "all" if worth.gain_share >= WHOLE else f"{worth.gain_share:.0f}"
    by_law = NOTHING
    if worth.power_law is not None:
        by_law = networks_text(worth.power_law, is_bound=worth.power_law_is_bound)
    return [networks_text(worth.linear, is_bound=worth.linear_is_bound), by_law, share]


def _scale_text(scale: Scale) -> str:
    """Return the sizes and the law of a scale in a sentence."""
    text = f"{NAMES[scale.pool].capitalize()}: 1 to {scale.largest} networks, "
    if scale.law is None:
        return f"{text}without a power law, which needs 3 sizes and an NLL that falls."
    c, b, a = scale.law
    return f"{text}L(m) = {c:.4f} + {b:.4f} m^-{a:.2f}."


def networks_text(networks: float, *, is_bound: bool) -> str:
    """Return a number of networks in words.

    >>> networks_text(2.5, is_bound=False), networks_text(10, is_bound=True)
    ('2.5', '≥ 10.0')
    """
    return f"{'≥ ' if is_bound else ''}{networks:.1f}"


def _placed_cells(row: MethodRow, comparison: Comparison) -> list[str]:
    return [f"{row.method} (at {row.budget} B)", *_main_cells(row, comparison)[1:]]


def _main_headings(comparison: Comparison) -> tuple[str, ...]:
    measure = comparison.task.measure
    first = f"{measure.word} {measure.unit}".strip()
    more = (heading for _, heading, _ in _more(comparison))
    return (*_COSTS, first, *_NLLS.values(), *more, "DEE")


def _more(comparison: Comparison) -> list[Column]:
    """Return the columns after the NLLs: the balanced error too if the cells have it."""
    more = list(comparison.task.more)
    known = any(BALANCED[0] in row.mean for row in comparison.rows)
    return [BALANCED, *more] if known and BALANCED not in more else more


def epochs_of(comparison: Comparison, budget: int) -> str:
    """Return a budget in words: "1 B (24 epochs)"."""
    return f"{budget} B ({budget * comparison.budget_epochs:g} epochs)"


def percent(level: float) -> str:
    """Return a level in words.

    >>> percent(0.99375), percent(0.95)
    ('99.4 %', '95 %')
    """
    return f"{100 * level:.3g} %"


def interval_text(metric: str, interval: Interval) -> str:
    """Return a difference with its interval, with the metric's decimals and a sign.

    >>> interval_text("error", Interval(-1.0, -1.5, 0.0))
    '-1.00 [-1.50, +0.00]'
    """
    if metric == "mse":
        difference, low, high = (f"{value + 0.0:+.4g}" for value in interval)
    else:
        places = 2 if metric == "error" else 4
        difference, low, high = (f"{round(value, places) + 0.0:+.{places}f}" for value in interval)
    return f"{difference} [{low}, {high}]"


def _main_table(comparison: Comparison, budget: int) -> Table:
    rows = comparison.at(budget)
    marked = {
        (best.method, best.metric)
        for best in comparison.best
        if best.budget == budget and best.sure
    }
    first = comparison.task.compared.word
    marks = _MARKED.format(level=percent(level_among(len(rows))), first=first)
    note = _with_notes(_units(comparison) + marks, rows)
    cells = [
        _main_cells(row, comparison, [m for name, m in marked if name == row.method])
        for row in rows
    ]
    headings = _main_headings(comparison)
    return Table(f"Methods at {epochs_of(comparison, budget)}", headings, cells, note)


def _main_cells(row: MethodRow, comparison: Comparison, marked: Sequence[str] = ()) -> list[str]:
    task = comparison.task
    costs = [f"{row.costs[key]:g}" for key in ("members", "train_epochs", "forward_passes")]
    figures = []
    first, form = task.measure, "{:.4f}"
    for metric, shown in {
        task.compared.key: first.key,
        **dict(zip(_NLLS, _NLLS, strict=True)),
    }.items():
        text = _with_deviation(row, shown, first.form if shown == first.key else form)
        figures.append(f"**{text}**" if metric in marked else text)
    figures += [_figure(row, key, form) for key, _, form in _more(comparison)]
    size = f"{row.costs['weight_bytes'] / 1e6:.2f}"
    return [row.method, _seeds(row), *costs, size, *figures, _equivalent(row)]


def _seeds(row: MethodRow) -> str:
    return f"{len(row.seeds)}{' (1 value)' if row.values < len(row.seeds) else ''}"


def _with_deviation(row: MethodRow, metric: str, form: str) -> str:
    mean = form.format(row.mean[metric])
    return f"{mean} ± {form.format(row.deviation[metric])}" if row.deviation else mean


def _figure(row: MethodRow, key: str, form: str) -> str:
    return form.format(row.mean[key]) if key in row.mean else NOTHING


def _equivalent(row: MethodRow) -> str:
    if row.equivalent is None:
        return NOTHING
    return networks_text(row.equivalent, is_bound=row.equivalent_is_bound)


def _units(comparison: Comparison) -> str:
    task, example = comparison.task, comparison.example
    figures = f"{task.units} {task.calibration}" if task.name != CLASSIFICATION else _OF_CLASSES
    return _UNITS.format(
        images=len(comparison.cells[0].wrong),
        example=example,
        figures=figures.format(example=example),
    )


def _with_notes(note: str, rows: Sequence[MethodRow]) -> str:
    """Return a note with those of the methods, each once."""
    notes = dict.fromkeys(row.note for row in rows if row.note)
    names = [", ".join(row.method for row in rows if row.note == text) for text in notes]
    return " ".join([note, *(f"{who}: {text}." for who, text in zip(names, notes, strict=True))])


def _intervals_table(comparison: Comparison, budget: int) -> Table:
    rows = comparison.at(budget)
    present = [name for name in BASELINES if name in {row.method for row in rows}]
    headings = ["method"]
    for baseline in present:
        headings += [f"against {baseline}: {comparison.task.compared.word}", *_NLLS.values()]
    lines = []
    for row in rows:
        line = [row.method]
        for baseline in present:
            for metric in comparison.compared:
                difference = comparison.difference(row.method, baseline, budget, metric)
                line.append(
                    NOTHING if difference is None else interval_text(metric, difference.interval)
                )
        lines.append(line)
    compared = comparison.task.compared
    units = f"{compared.word.capitalize()} is in {'points' if compared.unit else _SQUARED}"
    note = _INTERVALS_NOTE.format(example=comparison.example, units=units)
    if any(cell.pooled > 1 for row in rows for cell in comparison.cells_of(row.method, budget)):
        note += _POOLED_NOTE
    return Table(f"Differences at {epochs_of(comparison, budget)}", headings, lines, note)


def _diversity_table(comparison: Comparison, budget: int) -> list[Table]:
    rows = comparison.at(budget)
    if comparison.task.uses_noise:
        return _spread_table(rows, budget)
    several = [row for row in rows if "disagreement" in row.mean]
    headings = ["method", "members", "disagreement %", "error correlation"]
    headings += ["mean member error %", "ensemble error %", "gain: error", "NLL"]
    lines = [
        [
            row.method,
            f"{row.costs['members']:g}",
            _figure(row, "disagreement", "{:.2f}"),
            _figure(row, "error_correlation", "{:.3f}"),
            _figure(row, "mean_member_error", "{:.2f}"),
            _figure(row, "error", "{:.2f}"),
            f"{row.mean['mean_member_error'] - row.mean['error']:.2f}",
            f"{row.mean['mean_member_nll'] - row.mean['nll']:.4f}",
        ]
        for row in several
    ]
    title = f"Members at {budget} B"
    what = f"{comparison.example}s" if comparison.task.of_classes else "labels"
    return [Table(title, headings, lines, _DIVERSITY_NOTE.format(what=what))] if several else []


def _spread_table(rows: Sequence[MethodRow], budget: int) -> list[Table]:
    """Return how far the members of a regression are apart, and what averaging them gains."""
    several = [row for row in rows if "spread" in row.mean]
    headings = ["method", "members", "spread", "mean member squared error"]
    headings += ["ensemble squared error", "gain: squared error", "cal. NLL"]
    lines = [
        [
            row.method,
            f"{row.costs['members']:g}",
            *(_figure(row, key, "{:.4g}") for key in ("spread", "mean_member_mse", "mse")),
            f"{row.mean['mean_member_mse'] - row.mean['mse']:.4g}",
            f"{row.mean['mean_member_nll'] - row.mean['calibrated_nll']:.4f}",
        ]
        for row in several
    ]
    return [Table(f"Members at {budget} B", headings, lines, _SPREAD_NOTE)] if several else []


def _ood_table(comparison: Comparison, budget: int) -> list[Table]:
    rows = comparison.at(budget)
    known = dict.fromkeys(key for row in rows for key in row.mean if key.startswith("ood_"))
    columns = [("aurc", "AURC", "{:.4f}")] if any("aurc" in row.mean for row in rows) else []
    notes = [_AURC_NOTE] if columns else []
    if known:
        columns += [(key, _ood_heading(key), "{:.3f}") for key in known]
        notes.append(_OOD_NOTE)
    if not columns:
        return []
    headings = ["method", *(heading for _, heading, _ in columns)]
    lines = [[row.method, *(_figure(row, key, form) for key, _, form in columns)] for row in rows]
    return [Table(f"Uncertainty at {budget} B", headings, lines, " ".join(notes))]


def _ood_heading(key: str) -> str:
    """Return the heading of a figure ``ood_NAME_SCORE``, whose score is one of three.

    >>> _ood_heading("ood_my_set_max_probability")
    'my_set: AUROC by max probability'
    """
    name = key.removeprefix("ood_")
    for score, (heading, _) in OOD_SCORES.items():
        if name.endswith(f"_{score}"):
            name = f"{name.removesuffix(f'_{score}')}: AUROC by {heading}"
    return name


def as_json(comparison: Comparison) -> dict[str, Any]:
    """Return the content of ``compare.json``: every mean, interval and ranking."""
    rankings = {
        name: [{**asdict(best), "sure": best.sure} for best in found]
        for name, found in (
            ("best", comparison.best),
            ("best_of_one_pass", comparison.best_of_one_pass),
        )
    }
    return {
        "schema_version": SCHEMA_VERSION,
        "budget_epochs": comparison.budget_epochs,
        "test_images": len(comparison.cells[0].wrong),
        "methods": [_row_as_json(row) for row in comparison.rows],
        "differences": [_as_dict(difference) for difference in comparison.differences],
        "fge_differences": [_as_dict(difference) for difference in comparison.fge_differences],
        **rankings,
        "deep_ensembles": [list(level) for level in comparison.deep_ensembles],
        "scales": [_scale_as_json(scale) for scale in comparison.scales],
    }


def _scale_as_json(scale: Scale) -> dict[str, Any]:
    law = scale.law._asdict() if scale.law else None
    return {"pool": scale.pool, "levels": [list(level) for level in scale.levels], "law": law}


def _as_dict(difference: Difference) -> dict[str, Any]:
    return asdict(difference) | {"interval": difference.interval._asdict()}


def _row_as_json(row: MethodRow) -> dict[str, Any]:
    """Return a row with its means and costs at the top level, as in ``report.json``."""
    facts = asdict(row)
    name, costs, mean = (facts.pop(key) for key in ("method", "costs", "mean"))
    return {"name": name, **costs, **mean, **facts, "seeds": list(row.seeds)}


def _worth_columns(row: MethodRow) -> dict[str, float | None]:
    """Return networks and percent by column: ``dee``, ``dee_averaged``, ..."""
    found: dict[str, float | None] = {}
    for worth in row.worths:
        end = "_averaged" if worth.pool == DEEP_ENSEMBLE_AVERAGED else ""
        found |= {
            f"dee{end}": worth.linear,
            f"dee_power_law{end}": worth.power_law,
            f"gain_share{end}": worth.gain_share,
        }
    return found


def as_csv(comparison: Comparison) -> str:
    """Return a line for each cell, with all its costs and figures; missing ones are empty.

    What a method is worth in networks is that of its mean over seeds: the same in all its lines.
    Where each cell pools the runs of all seeds they are one value: there is one line, no seed.
    """
    facts: list[dict[str, Any]] = []
    for row in comparison.rows:
        cells = comparison.cells_of(row.method, row.budget)
        one_value = row.values < len(cells)
        facts += (
            {
                "method": cell.method,
                "budget": cell.budget,
                "seed": "" if one_value else cell.seed,
                **asdict(cell.cost),
                **(row.mean if one_value else cell.figures),
                **_worth_columns(row),
                "pooled": cell.pooled,
                "note": row.note if one_value else cell.note,
            }
            for cell in cells[: row.values]
        )
    columns = list(dict.fromkeys(key for line in facts for key in line))
    columns = [key for key in columns if key not in ("pooled", "note")] + ["pooled", "note"]
    return csv_text([columns, *([line.get(key, "") for key in columns] for line in facts)])
