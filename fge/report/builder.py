"""The builder of reports: it turns sentences, tables, charts and facts into files of a run."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fge.files import write_bytes
from fge.report.charts import Chart, PlaneChart
from fge.report.page import FILES, Gallery, Page, Picture, Table, write_report
from fge.report.pictures import png_of
from fge.report.render_interactive import plot_of
from fge.report.render_static import draw, save_figure
from fge.runs import RunFolder


class ReportBuilder:
    """Collects the parts of a report, in the order in which they are added.

    Args:
        folder: of the run.
        figure_format: ``png``; or ``svg`` or ``pdf``, which is written in addition to PNG.
        files: of the folder that the page links to.

    Attributes:
        files: of the folder that the page links to; more may be added.
        content: of ``report.json``, in addition to the facts about every run.
    """

    def __init__(
        self, folder: RunFolder, *, figure_format: str = "png", files: Sequence[str] = FILES
    ) -> None:
        self.folder = folder
        self.figure_format = figure_format
        self.content: dict[str, Any] = {}
        self._sentences: list[str] = []
        self.files = list(files)
        self._page = Page("", "", [])

    def say(self, *sentences: str) -> None:
        """Add sentences: the first of a report is its verdict in one line, the rest is folded."""
        self._sentences += sentences

    def table(self, *tables: Table) -> None:
        """Add tables."""
        self._page = replace(self._page, tables=[*self._page.tables, *tables])

    def chart(self, name: str, chart: Chart | PlaneChart, caption: str) -> None:
        """Draw a chart as a figure, and keep it as an interactive plot.

        Args:
            name: of the PNG in ``figures``.
            chart: what it shows.
            caption: says so.
        """
        figure, path = draw(chart), self.folder.figures / name
        for form in dict.fromkeys(("png", self.figure_format)):
            save_figure(figure, path.with_suffix(f".{form}"))
        figures, plots = {**self._page.figures, name: caption}, dict(self._page.plots)
        self._page = replace(self._page, figures=figures, plots={**plots, name: plot_of(chart)})

    def gallery(
        self, title: str, pictures: Sequence[tuple[str, NDArray[np.uint8], str]], note: str = ""
    ) -> None:
        """Show images of the data, as small PNG files in ``figures``.

        Args:
            title: of the gallery.
            pictures: of each the name of its file, the image (C, H, W), and what to say of it.
            note: says why these.
        """
        shown = []
        for name, image, caption in pictures:
            write_bytes(self.folder.figures / name, png_of(image))
            shown.append(Picture(name, caption))
        galleries = [*self._page.galleries, Gallery(title, shown, note)]
        self._page = replace(self._page, galleries=galleries)

    def facts(self, **content: Any) -> None:
        """Add to ``report.json``."""
        self.content |= content

    def page(self, title: str) -> Page:
        """Return the page of what was added so far."""
        verdict = "\n\n".join(self._sentences)
        return replace(
            self._page,
            title=title,
            verdict=verdict,
            files=self.files,
            figure_format=self.figure_format,
        )

    def write(self, title: str, facts: Mapping[str, Any]) -> Page:
        """Write ``page.json``, ``report.md``, ``report.html`` and ``report.json``.

        Args:
            title: of the page.
            facts: what ``report.json`` says of every run.

        Returns:
            what the page shows.
        """
        page = self.page(title)
        write_report(self.folder, page, {**facts, **self.content})
        return page
