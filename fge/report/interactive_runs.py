"""Interactive plots of single runs: training, curves, sharpness."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from fge.report.interactive import COLOURS, INK, LINE, LOG, Plot, Series, layout, line, lines_plot

if TYPE_CHECKING:
    from fge.report.plots import TrainingCurves
    from fge.report.sharpness import SharpnessCurves

Records = Sequence[Mapping[str, Any]]
_BLUE, _AMBER, _GREY = 0, 1, 7
_EPOCHS = "epochs"


def training_plot(curves: TrainingCurves) -> Plot:
    """Return learning rate, validation errors and snapshot distances, one above the other.

    Args:
        curves: as :func:`fge.report.training_figure` takes them.
    """
    errors, distances = "validation error (%)", "distance"
    rate = line(
        Series("learning rate", curves.rate_epochs, curves.rates),
        x=_EPOCHS,
        y="learning rate",
        style=0,
    )
    rate["line"] = {"color": INK, "width": 1.5}
    data = [rate]
    found = layout(_EPOCHS, ["learning rate", errors, distances], height=720)
    if curves.snapshot_error:
        both = {"snapshot": curves.snapshot_error, "ensemble so far": curves.ensemble_error}
        for style, (name, values) in zip((_AMBER, _BLUE), both.items(), strict=True):
            one = Series(name, curves.epochs, values)
            data.append(line(one, x=_EPOCHS, y=errors, style=style, panel=1, marks=True))
    if curves.single is not None:
        one = Series("single network", [curves.single[0]], [curves.single[1]])
        data.append(line(one, x=_EPOCHS, y=errors, style=_GREY, panel=1, marks=True))
    steps = Series("distance to previous snapshot", curves.epochs[1:], curves.distances)
    data.append(line(steps, x=_EPOCHS, y=distances, style=4, panel=2, marks=True))
    found["yaxis"] |= {"rangemode": "tozero"}
    found["yaxis3"] |= {"rangemode": "tozero"}
    found["shapes"] = _marks(curves.epochs)
    return Plot(data, found)


def curve_plot(curve: Records, segment: Records, *, place: str) -> Plot:
    """Return loss and error along a curve and along the segment, on training and test images.

    Args:
        curve: records of :func:`fge.evaluate_curve` with keys ``t``, ``train_loss``,
            ``train_error``, ``test_loss``, ``test_error``.
        segment: likewise.
        place: what ``t`` is.
    """
    panels = {"loss": "loss (nats)", "error": "error (%)"}
    data = []
    for panel, (key, title) in enumerate(panels.items()):
        for style, (name, records) in enumerate({"curve": curve, "segment": segment}.items()):
            for split, dash in (("test", "solid"), ("train", "dot")):
                ts, values = ([r[k] for r in records] for k in ("t", f"{split}_{key}"))
                one = Series(f"{name}, {split}", ts, values)
                trace = line(one, x="t", y=title, style=style, panel=panel)
                trace["line"]["dash"] = dash
                trace |= {"legendgroup": f"{name} {split}", "showlegend": panel == 0}
                data.append(trace)
    return Plot(data, layout(place, list(panels.values()), height=620))


def ensemble_plot(paths: Mapping[str, Records], labels: Mapping[str, str]) -> Plot:
    """Return the test error of the two networks {w(0), w(t)} against their distance.

    Args:
        paths: records with keys ``distance`` and ``ensemble_error``, by the path's name.
        labels: what the paths are called in the legend.
    """
    series = [
        Series(
            labels.get(name, name),
            [record["distance"] for record in records],
            [record["ensemble_error"] for record in records],
        )
        for name, records in paths.items()
    ]
    where = "distance from the first network"
    return lines_plot(series, x=where, y="test error of the two (%)", dashes=True)


def sharpness_plot(
    places: Sequence[float],
    eigenvalues: Sequence[Sequence[float]],
    *,
    place: str,
    thresholds: Sequence[float] | None = None,
) -> Plot:
    """Return the largest eigenvalues over epochs or along a curve, on a logarithmic axis.

    Args:
        places: (n,) of the networks on the horizontal axis.
        eigenvalues: (n, k), largest first.
        place: what the places are.
        thresholds: (n,) 2 (1 + momentum) / lr at each of them.
    """
    title = "eigenvalue of the Hessian"
    data = []
    for rank, values in enumerate(zip(*eigenvalues, strict=True)):
        one = Series("top eigenvalue" if rank == 0 else f"eigenvalue {rank + 1}", places, values)
        data.append(line(one, x=place, y=title, style=rank if rank == 0 else rank + 1, marks=True))
    if thresholds is not None:
        one = Series("2 (1 + momentum) / learning rate", places, thresholds)
        data.append(line(one, x=place, y="threshold", style=_AMBER, marks=True))
        data[-1]["line"]["dash"] = "dash"
    found = layout(place, [title], height=440)
    if all(value > 0 for row in eigenvalues for value in row):
        found["yaxis"] |= LOG
    return Plot(data, found)


def dynamics_plot(curves: SharpnessCurves) -> Plot:
    """Return the top eigenvalue through a training above the learning rate.

    Args:
        curves: as :func:`fge.report.dynamics_figure` takes them.
    """
    title = "top eigenvalue"
    data = []
    if curves.thresholds:
        one = Series("2 (1 + momentum) / learning rate", curves.rate_epochs, curves.thresholds)
        data.append(line(one, x=_EPOCHS, y="threshold", style=_AMBER))
        data[0]["line"]["dash"] = "dash"
    own = Series(title, curves.epochs, curves.eigenvalues)
    data.append(line(own, x=_EPOCHS, y=title, style=_BLUE, marks=True))
    if curves.single[0]:
        one = Series("single network", *curves.single)
        data.append(line(one, x=_EPOCHS, y=title, style=_GREY, marks=True))
    rate = Series("learning rate", curves.rate_epochs, curves.rates)
    data.append(line(rate, x=_EPOCHS, y="learning rate", style=_BLUE, panel=1))
    data[-1]["line"] = {"color": INK, "width": 1.5}
    found = layout(_EPOCHS, [title, "learning rate"], height=620)
    if all(value > 0 for value in (*curves.eigenvalues, *curves.single[1])):
        found["yaxis"] |= LOG
    found["shapes"] = _marks(curves.snapshots)
    return Plot(data, found)


def spectrum_plot(grid: Sequence[float], density: Sequence[float]) -> Plot:
    """Return a spectral density (g,) over eigenvalues (g,) on a logarithmic axis."""
    largest = max(density)
    # Between nodes the smoothed density falls to nothing; what is shown spans eight decades.
    shown = [value if value > 1e-8 * largest else float("nan") for value in density]
    plot = lines_plot(
        [Series("density", grid, shown)],
        x="eigenvalue of the Hessian",
        y="density (per unit of eigenvalue)",
        log=True,
    )
    return Plot([{**plot.data[0], "line": {"color": COLOURS[0], "width": 1.5}}], plot.layout)


def _marks(places: Sequence[float]) -> list[dict[str, Any]]:
    """Return faint lines from top to bottom."""
    return [
        {
            "type": "line",
            "layer": "below",
            "xref": "x",
            "yref": "paper",
            "x0": place,
            "x1": place,
            "y0": 0,
            "y1": 1,
            "line": {"color": LINE, "width": 1},
        }
        for place in places
    ]
