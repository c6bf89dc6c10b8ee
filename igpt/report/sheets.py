"""A table of text that can stand on a page, be drawn as a picture, or be written down."""

import io
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import matplotlib
from matplotlib.figure import Figure

from igpt import files
from igpt.report import page
from igpt.report.charts import GRID, INK, MUTED, STYLE

ROW_IN = 0.27


@dataclass(frozen=True, slots=True, kw_only=True)
class Sheet:
    """Head and rows; the first `n_ours` rows stand out."""

    name: str
    """Of its files, such as table-1."""
    title: str
    head: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]
    numbers: tuple[int, ...] = ()
    """Columns to align to the right."""
    n_ours: int = 0

    def html(self) -> str:
        """The table for a page; the title is not in it."""
        return page.table(self.head, self.rows, numbers=self.numbers, best=range(self.n_ours))

    def to_dict(self) -> dict[str, Any]:
        """The cells, as plain values for JSON."""
        return {"title": self.title, "head": list(self.head), "rows": [list(r) for r in self.rows]}

    def svg(self) -> str:
        """The table as an SVG document."""
        return self._drawn("svg").decode()

    def png(self) -> bytes:
        """The table as a PNG file of 200 dots an inch."""
        return self._drawn("png")

    def _drawn(self, form: str) -> bytes:
        lines = [self.head, *self.rows]
        widths = [max(len(line[i]) for line in lines) + 3 for i in range(len(self.head))]
        size = max(5.0, 0.075 * sum(widths)), ROW_IN * (len(lines) + 1.6)
        with matplotlib.rc_context(STYLE):
            figure = Figure(figsize=size)
            axes = figure.add_axes((0.02, 0.0, 0.96, 1.0))
            axes.set_axis_off()
            axes.set_xlim(0, sum(widths))
            axes.set_ylim(len(lines) + 0.4, -1.2)  # downwards, the title at -1
            axes.text(0, -0.6, self.title, fontsize=9, va="center")
            for place, line in enumerate(lines):
                style: dict[str, Any] = {
                    "color": MUTED if place == 0 else INK,
                    "fontsize": 8.5,
                    "va": "center",
                }
                if 1 <= place <= self.n_ours:
                    style["weight"] = "bold"
                for column, text in enumerate(line):
                    right = column in self.numbers
                    x = sum(widths[: column + right]) - (2 if right else 0)
                    axes.text(x, place + 0.5, text, ha="right" if right else "left", **style)
                axes.axhline(place + 1, color=GRID, linewidth=0.8)
            file = io.BytesIO()
            metadata = {"Date": None} if form == "svg" else None
            figure.savefig(file, format=form, dpi=200, metadata=metadata)
        return file.getvalue()


def save_sheet(folder: Path, sheet: Sheet) -> None:
    """Write the table as NAME.svg, NAME.png and NAME.json."""
    files.write_bytes(folder / f"{sheet.name}.svg", sheet.svg().encode())
    files.write_bytes(folder / f"{sheet.name}.png", sheet.png())
    files.write_json(folder / f"{sheet.name}.json", sheet.to_dict())
