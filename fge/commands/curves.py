"""The commands that fit curves: ``curve-ensemble`` and ``connect``."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn

from fge.commands.endpoints import (
    Network,
    named_files,
    predict_network,
    read_networks,
    train_network,
)
from fge.commands.fit_plan import FitPlan
from fge.commands.pairs import (
    MIDDLE,
    CurveStudy,
    Measured,
    ensemble_results,
    make_study,
    measure_pair,
    member_ts,
)
from fge.commands.run import Run, check_kept, open_run, prepare
from fge.commands.start import GivenWeights, Start, starting_model
from fge.config import ConnectConfig, CurveConfig, CurveEnsembleConfig, check_used, pairs_of
from fge.errors import UserError
from fge.networks import frozen_tensors, load_weights, preserved, state_bytes
from fge.report import (
    PREDICTIONS,
    ClassCounts,
    MethodResult,
    Table,
    add_classes,
    as_methods,
    connection_verdict,
    curve_chart,
    dataset_facts,
    ensemble_chart,
    ood_tables,
    pair_verdict,
    pairs_table,
    path_table,
    plain_name,
    splits_note,
    strategy_table,
    table_rows,
    units_note,
    with_balanced_error,
    with_ood,
)
from fge.train import RECIPES, Recipe, average_recipe, endpoint_recipe, recipe, scale_initialisation

_COST = (
    "Networks on paths and means of weights have their own batch-norm statistics, estimated on "
    "training {example}s, varied as in training (refresh_images in report.json counts them); other "
    "networks keep the statistics of their training. probe_images counts the {example}s that "
    "measured the paths."
)
_UNKNOWN_COST = " A network from a file counts as 0 epochs: its training is unknown."


def curve_ensemble(config: CurveEnsembleConfig) -> Path:
    """Train two networks, connect them and ensemble along the curve; return the run folder."""
    check_used(config)
    check_kept(config, (config.first_weights, config.second_weights, config.pretrained))
    config, setup = prepare(config, "curve-ensemble")
    recipes = config.recipes if config.strategies == "none" else list(RECIPES)
    start = starting_model(config, setup, _recipe(config, config.recipes[0]))
    _check_recipes(config, setup.new_model(), recipes)
    given = _given_networks(config, start)
    with open_run(config, "curve-ensemble", setup, start.model, epochs=config.epochs) as run:
        train_curve_ensemble(run, start, given)
    return run.folder.path


def train_curve_ensemble(
    run: Run[CurveEnsembleConfig], start: Start, given: Mapping[int, Network]
) -> None:
    """Train the networks of a run that are not given, connect them, ensemble and report.

    Args:
        run: the current run.
        start: what the networks that are trained start from; its model is changed.
        given: networks from files, by position 0 or 1.
    """
    one, other = run.config.recipes
    seconds = [other] if run.config.strategies == "none" else list(RECIPES)
    first = given.get(0) or _train(run, start, one, 0)
    pairs = []
    for name in seconds:
        second = given.get(1) or _train(run, start, name, 1)
        pairs.append(_connect_pair(run, start.model, (first, second)))
    _report_ensembles(run, pairs)


def connect(config: ConnectConfig) -> Path:
    """Fit curves between networks in files, and measure them; return the run folder.

    Raises:
        UserError: an error that the user can fix; no file was lost.
        DivergenceError: a loss stopped being finite.
        KeyboardInterrupt: after saying how to resume.
    """
    check_kept(config, config.weights)
    config, setup = prepare(config, "connect")
    model = setup.new_model()
    pairs = pairs_of(config.weights, closed=config.closed)
    networks = read_networks(named_files(config.weights), model, pairs)
    with open_run(config, "connect", setup, model, epochs=config.epochs) as run:
        measured = []
        for first, second in pairs:
            study = _study(run, model, networks[first], networks[second])
            measured.append(measure_pair(study, ()))
            _add_curve(run, measured[-1])
        _report_connections(run, measured)
    return run.folder.path


@dataclass(frozen=True)
class _Ensembled:
    """A measured pair with the results of its ensembles."""

    measured: Measured
    results: list[MethodResult]


def _check_recipes(config: CurveEnsembleConfig, model: nn.Module, names: Sequence[str]) -> None:
    """Check before training that the recipes fit the model; this changes ``model``."""
    for name in names:
        scale_initialisation(model, _recipe(config, name))


def _given_networks(config: CurveEnsembleConfig, start: Start) -> dict[int, Network]:
    """Return the networks given as files, by position 0 or 1; this changes the model.

    Raises:
        UserError: a frozen parameter is not the same in both networks of the curve.
    """
    paths = {0: config.first_weights, 1: config.second_weights}
    files = {
        i: (path, f"{plain_name(path.stem)}-{i + 1}")
        for i, path in paths.items()
        if path is not None
    }
    pairs = [(0, 1)] if len(files) == 2 else []
    networks = dict(
        zip(files, read_networks(list(files.values()), start.model, pairs), strict=True)
    )
    if start.frozen:
        _check_frozen(start, {files[i][0]: network for i, network in networks.items()})
    return networks


def _check_frozen(start: Start, networks: Mapping[Path, Network]) -> None:
    """Check that the networks in files have the frozen tensors of the curve's other network."""
    known: Mapping[str, Tensor] | None = start.frozen if len(networks) == 1 else None
    for path, network in networks.items():
        load_weights(start.model, network.state, path)
        own = {name: value.clone() for name, value in frozen_tensors(start.model).items()}
        known = own if known is None else known
        for name, value in own.items():
            if not torch.equal(value, known[name].to(value.dtype)):
                raise UserError(
                    f"{path}: the frozen {name!r} is not that of the other network of the curve; "
                    "leave out --freeze, or freeze what both have in common"
                )


def _train(run: Run[CurveEnsembleConfig], start: Start, name: str, position: int) -> Network:
    return train_network(
        run.setup,
        _recipe(run.config, name),
        epochs=run.config.epochs,
        name=f"{name}-{position + 1}",
        position=position,
        folder=run.folder.path / "networks",
        observer=run.observer,
        start=start,
    )


def _recipe(config: CurveEnsembleConfig, name: str) -> Recipe:
    if name == "endpoint":
        return endpoint_recipe(config)
    if name == "average":
        return average_recipe(config)
    options = {
        "A": {"large_batch_lr": config.large_batch_lr},
        "B": {"adam_lr": config.adam_lr},
        "D": {"weight_decay": config.small_weight_decay},
        "E": {"init_variance": config.init_variance},
    }
    return recipe(name, **options.get(name, {}))


def _study(run: Run[CurveConfig], model: nn.Module, first: Network, second: Network) -> CurveStudy:
    """Return the study of the curve between two networks, in the run's folder ``curves``."""
    load_weights(model, first.state, first.name)  # baselines have its buffers
    return make_study(
        FitPlan.of(run.config),
        run.setup,
        model,
        folder=run.folder.path / "curves",
        name=f"{first.name}--{second.name}",
        ends=(first.state, second.state),
        predictions=run.setup.predictions(run.folder).with_held_out(),
        observer=run.observer,
    )


def _connect_pair(
    run: Run[CurveEnsembleConfig],
    model: nn.Module,
    networks: tuple[Network, Network],
) -> _Ensembled:
    """Fit, measure, ensemble and show one pair."""
    study = _study(run, model, *networks)
    with preserved(model):
        for network in networks:
            predict_network(network, run.setup.speed, model, study.predictions)
    points = run.config.ensemble_points
    measured = measure_pair(study, sorted({*member_ts(points), MIDDLE}))
    _add_curve(run, measured)
    results = ensemble_results(study, networks, points=points, weight_bytes=state_bytes(model))
    return _Ensembled(measured, with_ood(results, study.predictions))


def _add_curve(run: Run[CurveConfig], measured: Measured) -> None:
    name, paths = measured.pair.name, [measured.paths[key] for key in ("curve", "segment")]
    task, example = measured.pair.task, measured.pair.example
    caption = (
        f"Loss and {task.measure.word} along curve and segment of {name}, on training and test "
        f"{example}s"
    )
    run.report.chart(f"curve-{name}.png", curve_chart(*paths, task=task), caption)


def _add_ensemble(run: Run[CurveConfig], measured: Measured) -> int:
    """Show the ensembles of two networks; return the images passed forward for the baselines."""
    study = measured.study
    baselines = study.measure_baselines(study.fit())
    paths = {"curve": measured.paths["curve"], **baselines}
    name, task = f"ensemble-{measured.pair.name}.png", measured.pair.task
    caption = (
        f"Test {task.measure.word} of the two networks {{w(0), w(t)}} against the distance between "
        "them"
    )
    run.report.chart(name, ensemble_chart(paths, task=task), caption)
    images = study.refresh_images + len(study.data.test.split)
    return sum(map(len, baselines.values())) * images


def _report_ensembles(run: Run[CurveEnsembleConfig], pairs: Sequence[_Ensembled]) -> None:
    main, report = pairs[0], run.report
    probed = _add_ensemble(run, main.measured)
    pair = main.measured.pair
    title = f"Ensembles of {pair.name} on the test set"
    test = main.measured.study.predictions.test
    results = with_balanced_error(main.results, test)
    balanced = ClassCounts.of(run.dataset).imbalanced
    report.table(Table(title, *table_rows(results, balanced=balanced), note=_note(run)))
    report.table(*ood_tables(main.results, run.dataset), path_table(pair))
    if len(pairs) > 1:
        report.table(strategy_table([(p.measured.pair, p.results) for p in pairs]))
    report.say(*pair_verdict(pair, main.results))
    add_classes(report, results, test, run.dataset, main="curve")
    report.files.append(PREDICTIONS)
    methods = as_methods(results)
    for other in pairs[1:]:
        named = as_methods(other.results)
        methods += [{**m, "name": f"{m['name']} {other.measured.pair.name}"} for m in named]
    measured = [p.measured.pair for p in pairs]
    probed += sum(each.probe_images for each in measured)
    report.facts(methods=methods, pairs=[m.as_json() for m in measured], probe_images=probed)
    if run.config.pretrained is not None:
        GivenWeights().add_to(report)
    run.finish(
        f"Curve ensemble of {run.config.model} on {run.dataset.name}, seed {run.config.seed}"
    )


def _note(run: Run[CurveEnsembleConfig]) -> str:
    splits = splits_note(dataset_facts(run.dataset))
    given = run.config.first_weights or run.config.second_weights
    units = units_note(run.setup.task, run.dataset)
    cost = _COST.format(example=run.dataset.example)
    return f"{splits} {units} {cost}{_UNKNOWN_COST if given else ''}"


def _report_connections(run: Run[ConnectConfig], measured: Sequence[Measured]) -> None:
    pairs, report = [m.pair for m in measured], run.report
    report.table(pairs_table(pairs, "Connected networks"), *(path_table(pair) for pair in pairs))
    report.say(*connection_verdict(pairs))
    report.files.append(PREDICTIONS)
    probed = sum(pair.probe_images for pair in pairs)
    report.facts(methods=[], pairs=[p.as_json() for p in pairs], probe_images=probed)
    run.finish(f"Curves between {len(run.config.weights)} networks on {run.dataset.name}")
