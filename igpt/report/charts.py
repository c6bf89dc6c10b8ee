"""Line charts as SVG or PNG, each with the table behind it."""

import io
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, MaxNLocator, NullLocator

from igpt import files
from igpt.images.grid import OWN_MARK

INK, MUTED, GRID = "#1d2433", "#667085", "#e6e8ee"
BESIDE = 0.07
Form = Literal["line", "dots", "both"]
COLORS = ("#1f5fbf", "#d1662b", "#2f8f6b", "#8a4fbf", "#b0892a", "#c23f6b")

STYLE: Any = {
    "svg.fonttype": "none",  # text stays text: sharp, small, selectable
    "svg.hashsalt": "igpt",  # the same chart gives the same bytes
    "font.family": "sans-serif",
    "text.parse_math": False,  # a name with $ in it is a name
    "font.size": 9,
    "text.color": INK,
    "axes.edgecolor": MUTED,
    "axes.labelcolor": INK,
    "xtick.color": MUTED,
    "ytick.color": MUTED,
}


@dataclass(frozen=True, slots=True)
class Series:
    """One line, or dots where there are few points."""

    label: str
    x: Sequence[float]
    y: Sequence[float]
    form: Form = "line"
    error: Sequence[float | None] | None = None
    """Half the height of an error bar at each point; none where a point has no bar."""
    dashed: bool = False


@dataclass(frozen=True, slots=True)
class Level:
    """A horizontal line to compare with."""

    label: str
    y: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Chart:
    """All that is needed to draw a chart, or to write its numbers down."""

    series: tuple[Series, ...]
    levels: tuple[Level, ...] = ()
    x_label: str
    y_label: str
    percent: bool = False
    """Show y as a percentage."""
    whole_x: bool = False
    """Ticks of x at whole numbers only."""
    x_names: tuple[str, ...] = ()
    """Names in place of numbers at x = 0, 1, ..."""
    log_x: bool = False
    y_top: float | None = None
    """Cut the axis here: what lies above says nothing."""

    def svg(self, *, width_in: float = 6.2, height_in: float = 3.3) -> str:
        """The chart as an SVG document."""
        return self._drawn("svg", width_in, height_in).decode()

    def png(self, *, width_in: float = 6.2, height_in: float = 3.3) -> bytes:
        """The chart as a PNG file of 200 dots an inch."""
        return self._drawn("png", width_in, height_in)

    def to_dict(self) -> dict[str, Any]:
        """The numbers, as plain values for JSON."""
        return {
            "x": self.x_label,
            "y": self.y_label,
            "series": {
                series.label: {
                    "x": list(series.x),
                    "y": list(series.y),
                    "error": None if series.error is None else list(series.error),
                }
                for series in self.series
            },
            "levels": {level.label: level.y for level in self.levels},
        }

    def _drawn(self, form: str, width_in: float, height_in: float) -> bytes:
        with matplotlib.rc_context(STYLE):
            figure = Figure(figsize=(width_in, height_in), layout="constrained")
            axes = figure.add_subplot()
            self._draw(axes, width_in)
            file = io.BytesIO()
            metadata = {"Date": None} if form == "svg" else dict([OWN_MARK])
            figure.savefig(file, format=form, dpi=200, metadata=metadata)
        return file.getvalue()

    def _draw(self, axes: Axes, width_in: float) -> None:
        for number, (series, color) in enumerate(
            zip(self.series, COLORS * len(self.series), strict=False)
        ):
            # Under names, dots of several series would hide each other.
            aside = BESIDE * (number - (len(self.series) - 1) / 2) if self.x_names else 0.0
            axes.errorbar(
                [x + aside for x in series.x],
                series.y,
                yerr=None if series.error is None else np.array(series.error, float),
                label=f"series {number}",
                color=color,
                linestyle="none" if series.form == "dots" else ("--" if series.dashed else "-"),
                linewidth=1.6,
                marker="" if series.form == "line" else "o",
                markersize=4.5,
                capsize=2.5,
            )
        for level in self.levels:
            axes.axhline(level.y, color=MUTED, linewidth=1.1, linestyle=(0, (4, 3)))
            axes.annotate(
                level.label,
                (0.995, level.y),
                xycoords=("axes fraction", "data"),
                xytext=(0, 3),
                textcoords="offset points",
                ha="right",
                color=MUTED,
                fontsize=8,
                bbox={"facecolor": "white", "edgecolor": "none", "pad": 0.5},
            )
        self._dress(axes, width_in)

    def _dress(self, axes: Axes, width_in: float) -> None:
        axes.set_xlabel(self.x_label)
        axes.set_ylabel(self.y_label)
        axes.grid(axis="y", color=GRID, linewidth=0.8)
        axes.set_axisbelow(True)
        axes.spines[["top", "right", "left"]].set_visible(False)
        axes.tick_params(length=0)
        axes.margins(x=0.02, y=0.12)
        axes.yaxis.set_major_locator(MaxNLocator(nbins=7, steps=[1, 2, 2.5, 5, 10]))
        self._dress_x(axes)
        if self.percent:
            axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{100 * value:.3g} %"))
            low, high = axes.get_ylim()
            edge = 0.02 * (high - low)  # room for half a marker
            axes.set_ylim(max(low, -edge), min(high, 1 + edge))
        if self.y_top is not None:
            axes.set_ylim(top=self.y_top)
        if len(self.series) > 1:
            columns = max(1, round(width_in / 2.2))
            # A label that begins with _ would be left out: the words are given afterwards.
            drawn, _ = axes.get_legend_handles_labels()
            legend = axes.legend(
                drawn,
                [f"series {number}" for number in range(len(drawn))],
                loc="lower left",
                bbox_to_anchor=(0, 1),
                ncols=columns,
                frameon=False,
                borderaxespad=0.2,
            )
            for text, series in zip(legend.get_texts(), self.series, strict=True):
                text.set_text(series.label)

    def _dress_x(self, axes: Axes) -> None:
        if self.x_names:
            axes.set_xticks(range(len(self.x_names)), self.x_names)
            axes.set_xlim(-0.5, len(self.x_names) - 0.5)
            return
        if self.log_x:
            axes.set_xscale("log")
            shown = sorted({x for series in self.series for x in series.x})
            axes.set_xticks(shown)
            axes.xaxis.set_minor_locator(NullLocator())
        else:
            axes.xaxis.set_major_locator(MaxNLocator(nbins=6, integer=self.whole_x))
        axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:,.6g}"))


def save_chart(folder: Path, name: str, chart: Chart) -> None:
    """Write NAME.svg, NAME.png and the numbers behind them as NAME.json."""
    files.write_bytes(folder / f"{name}.svg", chart.svg().encode())
    files.write_bytes(folder / f"{name}.png", chart.png())
    files.write_json(folder / f"{name}.json", chart.to_dict())
