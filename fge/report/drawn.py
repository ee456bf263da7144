"""The figures of a page: drawn into the run's folder, each with caption and interactive plot."""

from __future__ import annotations

from pathlib import Path

from matplotlib.figure import Figure

from fge.report.interactive import Plot
from fge.report.plots import save_figure


class Figures:
    """Figures of a run, in the order in which they are added.

    Args:
        folder: of the files.

    Attributes:
        captions: by file name.
        plots: what stands in for a figure on a page, by file name.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.captions: dict[str, str] = {}
        self.plots: dict[str, Plot] = {}

    def add(self, name: str, figure: Figure, caption: str, plot: Plot | None = None) -> None:
        """Save a figure as PNG.

        Args:
            name: of the file.
            figure: as it is printed.
            caption: says what it shows.
            plot: the same for a page that can be zoomed into.
        """
        save_figure(figure, self.folder / name)
        self.captions[name] = caption
        if plot is not None:
            self.plots[name] = plot
