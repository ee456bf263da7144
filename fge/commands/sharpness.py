"""The command ``sharpness``: top Hessian eigenvalues, trace and spectrum of networks."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Annotated, Any, NotRequired, TypedDict

from msgspec import Meta
from torch import Tensor, nn

from fge.commands.effort import KRYLOV, Effort, settled
from fge.commands.run import Run, check_kept, open_run, prepare
from fge.commands.studied import (
    StudiedNetwork,
    recorded,
    refresh_batches,
    sharpness_networks,
    snapshot_recipe,
    training_part,
)
from fge.config import SharpnessConfig, check_same_images
from fge.data import EvalBatches
from fge.errors import UserError
from fge.files import RESTORE
from fge.landscape import HessianOperator, spectral_density, top_eigenvalues, trace
from fge.networks import (
    REFRESH_IMAGES,
    Layout,
    load_weights,
    preserved,
    refresh_batch_norm,
)
from fge.report import (
    ALONG,
    eigenvalue_chart,
    line_momentum,
    no_line_of,
    sharpness_table,
    sharpness_verdict,
    spectrum_chart,
    thresholds_of,
)
from fge.schemas import Count, NotNegative


class _Sharpness(TypedDict):
    """The sharpness of a network in the log."""

    name: str
    eigenvalues: Annotated[list[float], Meta(min_length=1)]
    residuals: list[NotNegative]
    converged: bool
    trace: float
    trace_standard_error: NotNegative
    hessian_products: Count
    gradient_cost: NotNegative
    agreement: NotRequired[str]


class _Spectrum(TypedDict):
    """The spectrum of a network in the log."""

    name: str
    grid: Annotated[list[float], Meta(min_length=1)]
    density: list[float]
    hessian_products: Count
    gradient_cost: NotNegative


def sharpness(config: SharpnessConfig) -> Path:
    """Measure top eigenvalues, trace and spectral density of networks; return the run folder."""
    check_kept(config, (config.run, *config.weights))
    config, setup = prepare(config, "sharpness")
    check_same_images(config, setup.dataset.fingerprint)
    model = setup.new_model()
    studied = sharpness_networks(config, model)
    count = Layout.of(model).numel
    if config.k > count:
        raise UserError(f"k must be from 1 to the {count} parameters, got {config.k}")
    images = setup.dataset.train
    image, _ = next(iter(setup.eval_batches(images.first(1))))
    config = settled(config, model, image, len(studied), len(images))
    with open_run(config, "sharpness", setup, model, epochs=1) as run:
        with preserved(model):
            _announce(run, model, studied)
            networks = _measure_sharpness(run, model, studied)
            spectrum = _measure_spectrum(run, model, studied[-1])
        _report_sharpness(run, networks, spectrum)
    return run.folder.path


def _announce(
    run: Run[SharpnessConfig], model: nn.Module, networks: Sequence[StudiedNetwork]
) -> None:
    """Say how long the measurements that are not in the log will take, from one product."""
    known, effort = recorded(run, "network", _Sharpness), Effort.of(run.config)
    left = [network for network in networks if network.name not in known]
    spectrum = not recorded(run, "spectrum", _Spectrum)
    if not (left or spectrum):
        return
    first = left[0] if left else networks[-1]
    _set_up(run, model, first)
    seconds = _seconds_per_product(run, model, first)
    low, high = (
        effort.products(len(left), run.config.k, steps, spectrum=spectrum) for steps in KRYLOV
    )
    span = " to ".join(dict.fromkeys(_duration(seconds * count) for count in (low, high)))
    examples = f"{effort.examples or 'all'} {run.dataset.example}s"
    run.observer.note(
        f"about {span}: {low} to {high} Hessian products on {examples}, "
        f"{seconds:.2g} s each; more --examples, --trace-samples, --spectrum-vectors and "
        "--spectrum-steps are more exact, and fewer take less"
    )


def _seconds_per_product(
    run: Run[SharpnessConfig], model: nn.Module, network: StudiedNetwork
) -> float:
    """Return the least time of three Hessian products, after one that builds the graphs."""
    options = {name: value for name, value in _hessian_options(run).items() if name != "seed"}
    try:
        operator = HessianOperator(model, **options)
        vector = operator.gradient()
        float(operator.matvec(vector).sum())
        return min(_seconds(lambda: operator.matvec(vector)) for _ in range(3))
    except UserError as error:
        raise UserError(f"{network.name}: {error}") from None


def _seconds(call: Callable[[], Tensor]) -> float:
    start = time.perf_counter()
    float(call().sum())  # a number, so that a GPU has finished
    return time.perf_counter() - start


def _duration(seconds: float) -> str:
    """Return a duration in words.

    >>> _duration(0.2), _duration(75), _duration(1500)
    ('1 s', '75 s', '25 min')
    """
    return f"{max(seconds, 1):.0f} s" if seconds < 120 else f"{seconds / 60:.0f} min"


def _progress(run: Run[SharpnessConfig], what: str) -> Callable[[int, int], None]:
    return lambda done, most: run.observer.point(what, done, most)


def _hessian_options(run: Run[SharpnessConfig]) -> dict[str, Any]:
    config = run.config
    # Batches of another size than the chunks would be cut into smaller ones.
    part = training_part(run, Effort.of(config).examples)
    batches = EvalBatches(part, run.setup.normaliser, config.chunk)
    return {
        "loss_fn": run.setup.task.loss(run.device),
        "batches": batches,
        "weight_decay": config.loss_decay,
        "batch_statistics": config.batch_statistics,
        "chunk": config.chunk,
        "seed": config.seed,
    }


def _set_up(run: Run[SharpnessConfig], model: nn.Module, network: StudiedNetwork) -> None:
    """Load a network's weights into the model, with statistics of these weights.

    They are those of the same network in :func:`fge.evaluate_curve`.
    """
    load_weights(model, network.state, network.name)
    if not network.measured:
        images = refresh_batches(run, REFRESH_IMAGES)
        refresh_batch_norm(model, images, num_images=None, instance_norm=not network.own)


def _measure_sharpness(
    run: Run[SharpnessConfig], model: nn.Module, networks: Sequence[StudiedNetwork]
) -> list[dict[str, Any]]:
    options, effort = _hessian_options(run), Effort.of(run.config)
    known = recorded(run, "network", _Sharpness)
    for done, network in enumerate(networks, start=1):
        if network.name in known:
            continue
        _set_up(run, model, network)
        try:
            told = _progress(run, f"{network.name}: products for the top eigenvalues")
            top = top_eigenvalues(model, k=run.config.k, on_product=told, **options)
            told = _progress(run, f"{network.name}: products for the trace")
            size = trace(model, num_samples=effort.trace_samples, on_product=told, **options)
        except UserError as error:
            raise UserError(f"{network.name}: {error}") from None
        record = known[network.name] = {
            "event": "network",
            "name": network.name,
            **network.facts,
            "eigenvalues": top.values.tolist(),
            "residuals": top.residuals.tolist(),
            "converged": top.converged,
            "trace": size.value,
            "trace_standard_error": size.standard_error,
            "hessian_products": top.hessian_products + size.hessian_products,
            "gradient_cost": top.gradient_cost + size.gradient_cost,
            "agreement": str(top.agreement),
        }
        run.folder.log(record)
        run.observer.point("sharpness", done, len(networks))
        run.observer.note(
            f"{network.name}: top eigenvalue {record['eigenvalues'][0]:.4g}, "
            f"trace {size.value:.4g} ± {size.standard_error:.2g}"
        )
    found = [{**known[network.name], **network.facts} for network in networks]
    for record in found:
        _check_length(run, record, run.config.k, "eigenvalues", "residuals")
    return found


def _check_length(
    run: Run[SharpnessConfig], record: dict[str, Any], length: int, *keys: str
) -> None:
    """Check that lists of a record have so many numbers."""
    for key in keys:
        if len(record[key]) != length:
            raise UserError(
                f"{run.folder.log_file} is damaged: the record of {record['name']!r} has "
                f"{len(record[key])} {key}, not {length}; {RESTORE}"
            )


def _measure_spectrum(
    run: Run[SharpnessConfig], model: nn.Module, network: StudiedNetwork
) -> dict[str, Any]:
    known, effort = recorded(run, "spectrum", _Spectrum), Effort.of(run.config)
    if network.name not in known:
        _set_up(run, model, network)
        density = spectral_density(
            model,
            num_vectors=effort.spectrum_vectors,
            num_steps=effort.spectrum_steps,
            on_product=_progress(run, f"{network.name}: products for the spectrum"),
            **_hessian_options(run),
        )
        record: dict[str, Any] = {"event": "spectrum", "name": network.name, "sigma": density.sigma}
        for key in ("nodes", "weights", "grid", "density"):
            record[key] = getattr(density, key).tolist()
        record["hessian_products"] = density.hessian_products
        record["gradient_cost"] = density.gradient_cost
        run.folder.log(record)
        known[network.name] = record
    found = known[network.name]
    _check_length(run, found, len(found["grid"]), "density")
    return found


def _report_sharpness(
    run: Run[SharpnessConfig],
    networks: Sequence[dict[str, Any]],
    spectrum: dict[str, Any],
) -> None:
    thresholds, no_line = _stability_line(run.config, networks)
    if len(networks) > 1:
        _add_eigenvalues(run, networks, thresholds)
    caption = (
        f"Spectral density of the Hessian of {spectrum['name']} "
        f"({spectrum['hessian_products']} products, an estimated {spectrum['gradient_cost']:.0f} "
        "gradients)"
    )
    chart = spectrum_chart(spectrum["grid"], spectrum["density"])
    run.report.chart("spectrum.png", chart, caption)
    examples = len(training_part(run, Effort.of(run.config).examples))
    found = sharpness_table(
        networks,
        examples=examples,
        thresholds=thresholds,
        no_line=no_line,
        task=run.setup.task,
        example=run.dataset.example,
    )
    run.report.table(found)
    total, example = len(run.dataset.train), run.dataset.example
    run.report.say(
        *sharpness_verdict(networks, thresholds, examples=examples, total=total, example=example)
    )
    run.report.say(*(n["agreement"] for n in networks[-1:] if "agreement" in n))
    run.report.facts(methods=[], networks=networks, spectrum=spectrum)
    run.finish(f"Sharpness of {run.config.model} on {run.dataset.name}")


def _stability_line(
    config: SharpnessConfig, networks: Sequence[dict[str, Any]]
) -> tuple[list[float] | None, str]:
    """Return 2 (1 + momentum) / lr for each network, or None and the reason."""
    if config.run is None or not all("lr" in network for network in networks):
        return None, ""
    recipe, method = snapshot_recipe(config.run)
    if recipe is None:
        return None, (
            f"There is no threshold 2(1+m)/lr: the optimizer of the method {method} is unknown, "
            "because its code is not imported."
        )
    momentum = line_momentum(recipe)
    no_line = "" if momentum is not None else no_line_of(recipe.optimizer)
    return thresholds_of(networks, momentum), no_line


def _add_eigenvalues(
    run: Run[SharpnessConfig],
    networks: Sequence[dict[str, Any]],
    thresholds: Sequence[float] | None,
) -> None:
    places = {"epoch": "epochs", "t": ALONG}
    key = next((key for key in places if all(key in n for n in networks)), None)
    where = [n[key] for n in networks] if key else list(range(1, len(networks) + 1))
    values = [n["eigenvalues"] for n in networks]
    place = places[key] if key else "number of the file"
    chart = eigenvalue_chart(where, values, place=place, thresholds=thresholds)
    run.report.chart("sharpness.png", chart, "Largest eigenvalues of the Hessian of each network")
