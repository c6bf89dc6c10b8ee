"""Pieces of a self-contained HTML page: no script, no font, no file but itself."""

import base64
import io
from collections.abc import Container, Iterable, Sequence
from dataclasses import dataclass
from html import escape
from pathlib import Path
from typing import Any

import matplotlib
from matplotlib.figure import Figure

from igpt import files
from igpt.images.grid import OWN_MARK
from igpt.report import charts
from igpt.report.charts import GRID, INK, MUTED, Chart

STYLE = """
:root { --ink: #1d2433; --muted: #667085; --line: #e3e6ec; --accent: #1f5fbf; --paper: #fff; }
* { box-sizing: border-box; }
html { background: #f4f5f8; }
body { margin: 0 auto; max-width: 860px; padding: 3.5rem 3.25rem 4rem; background: var(--paper);
  color: var(--ink); font: 16px/1.6 system-ui, -apple-system, "Segoe UI", Roboto, sans-serif; }
h1, h2 { font-family: "Iowan Old Style", "Palatino Linotype", Palatino, Georgia, serif;
  font-weight: 600; line-height: 1.2; letter-spacing: -.01em; }
h1 { font-size: 2.5rem; margin: 0 0 .6rem; }
h2 { font-size: 1.55rem; margin: 3.2rem 0 .4rem; }
p { margin: .4rem 0 1rem; max-width: 66ch; }
.lead { font-size: 1.1rem; color: #3d4658; }
.tiles { display: grid; grid-template-columns: repeat(auto-fit, minmax(150px, 1fr)); gap: 1px;
  margin: 2rem 0 0; background: var(--line); border: 1px solid var(--line); border-radius: 10px;
  overflow: hidden; }
.tile { background: var(--paper); padding: 1rem 1.1rem .9rem; }
.tile b { display: block; font-size: 1.7rem; font-weight: 600; line-height: 1.15;
  font-variant-numeric: tabular-nums; white-space: nowrap; }
.tile span { color: var(--muted); font-size: .85rem; line-height: 1.35; display: block;
  margin-top: .3rem; }
figure { margin: 1.2rem 0 .6rem; }
figure img { display: block; width: 100%; height: auto; }
figure img.pixels { image-rendering: pixelated; border-radius: 4px; }
figcaption { color: var(--muted); font-size: .88rem; line-height: 1.5; margin-top: .6rem;
  max-width: 74ch; }
details { margin: .4rem 0 1rem; font-size: .88rem; }
summary { cursor: pointer; color: var(--accent); width: fit-content; }
.scroll { overflow-x: auto; }
table { border-collapse: collapse; width: 100%; margin: .7rem 0; font-size: .88rem;
  font-variant-numeric: tabular-nums; }
th, td { text-align: left; padding: .42rem .9rem .42rem 0; vertical-align: top;
  border-bottom: 1px solid var(--line); }
th { color: var(--muted); font-weight: 500; }
td.number, th.number { text-align: right; white-space: nowrap; }
tr.best td { font-weight: 650; }
code { font: .82em/1.5 ui-monospace, "SF Mono", Menlo, Consolas, monospace; color: #3d4658;
  overflow-wrap: anywhere; }
footer { margin-top: 3.5rem; padding-top: 1rem; border-top: 1px solid var(--line);
  color: var(--muted); font-size: .85rem; }
@media (max-width: 560px) {
  body { padding: 1.6rem 1.1rem 2.5rem; font-size: 15.5px; }
  h1 { font-size: 1.9rem; } h2 { font-size: 1.35rem; margin-top: 2.4rem; }
  .tiles { grid-template-columns: 1fr 1fr; } .tile { padding: .8rem .85rem; }
  .tile b { font-size: 1.35rem; } table { font-size: .8rem; } th, td { padding-right: .5rem; }
  table:has(th:nth-child(5)) { min-width: 36rem; }
}
@page { margin: 16mm; }
@media print {
  html { background: none; } body { max-width: none; padding: 0; font-size: 10.5pt; }
  figure, .tiles, tr { break-inside: avoid; } h2 { break-after: avoid; }
  details:not([open]) { display: none; } .scroll { overflow: visible; }
}
"""


def document(title: str, parts: Iterable[str]) -> str:
    """The whole page around parts that are HTML already."""
    return (
        '<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        # Nothing may be fetched: the page is the same offline and in ten years.
        '<meta http-equiv="Content-Security-Policy" '
        "content=\"default-src 'none'; img-src data:; style-src 'unsafe-inline'\">\n"
        f"<title>{escape(title)}</title>\n<style>{STYLE}</style>\n</head>\n<body>\n"
        + "\n".join(part for part in parts if part)
        + "\n</body>\n</html>\n"
    )


def percent(share: float) -> str:
    """A share as a percentage with one decimal."""
    return f"{100 * share:.1f} %"


def section(title: str, *parts: str) -> str:
    """A heading and what belongs to it."""
    return f"<section>\n<h2>{escape(title)}</h2>\n" + "\n".join(parts) + "\n</section>"


def paragraph(text: str, *, lead: bool = False) -> str:
    """Plain text as a paragraph."""
    return f'<p class="lead">{escape(text)}</p>' if lead else f"<p>{escape(text)}</p>"


def tiles(values: Sequence[tuple[str, str]]) -> str:
    """Large numbers, each with what it is."""
    cells = (
        f'<div class="tile"><b>{escape(v)}</b><span>{escape(t)}</span></div>' for v, t in values
    )
    return f'<div class="tiles">{"".join(cells)}</div>'


def picture(png: bytes, *, alt: str, caption: str) -> str:
    """An image of few pixels, shown large and sharp."""
    source = base64.b64encode(png).decode()
    return (
        f'<figure><img class="pixels" src="data:image/png;base64,{source}" alt="{escape(alt)}">'
        f"<figcaption>{escape(caption)}</figcaption></figure>"
    )


def chart_figure(chart: Chart, *, alt: str, caption: str) -> str:
    """A chart drawn twice: for a page, and narrow with equally large letters for a phone."""
    wide, narrow = (
        "data:image/svg+xml;base64," + base64.b64encode(svg.encode()).decode()
        for svg in (chart.svg(), chart.svg(width_in=3.7, height_in=2.9))
    )
    return (
        f'<figure><picture><source media="(max-width: 560px)" srcset="{narrow}">'
        f'<img src="{wide}" alt="{escape(alt)}"></picture>'
        f"<figcaption>{escape(caption)}</figcaption></figure>"
    )


def table(
    head: Sequence[str],
    rows: Iterable[Sequence[str]],
    *,
    numbers: Sequence[int] = (),
    best: Container[int] = (),
) -> str:
    """A table; `numbers` are columns to align to the right, `best` are rows to stand out."""

    def cell(tag: str, column: int, text: str) -> str:
        kind = ' class="number"' if column in numbers else ""
        return f"<{tag}{kind}>{text}</{tag}>"

    top = "".join(cell("th", i, escape(text)) for i, text in enumerate(head))
    body = []
    for index, row in enumerate(rows):
        kind = ' class="best"' if index in best else ""
        body.append(
            f"<tr{kind}>"
            + "".join(cell("td", i, _marked(text)) for i, text in enumerate(row))
            + "</tr>"
        )
    return (
        f'<div class="scroll"><table><thead><tr>{top}</tr></thead>'
        f"<tbody>{''.join(body)}</tbody></table></div>"
    )


def _marked(text: str) -> str:
    """Text with `...` as code."""
    parts = escape(text).split("`")
    return "".join(f"<code>{p}</code>" if i % 2 else p for i, p in enumerate(parts))


def folded(title: str, content: str) -> str:
    """Content that opens on a click."""
    return f"<details><summary>{escape(title)}</summary>{content}</details>"


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
        return table(self.head, self.rows, numbers=self.numbers, best=range(self.n_ours))

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
        with matplotlib.rc_context(charts.STYLE):
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
            metadata = {"Date": None} if form == "svg" else dict([OWN_MARK])
            figure.savefig(file, format=form, dpi=200, metadata=metadata)
        return file.getvalue()


def save_sheet(folder: Path, sheet: Sheet) -> None:
    """Write the table as NAME.svg, NAME.png and NAME.json."""
    files.write_bytes(folder / f"{sheet.name}.svg", sheet.svg().encode())
    files.write_bytes(folder / f"{sheet.name}.png", sheet.png())
    files.write_json(folder / f"{sheet.name}.json", sheet.to_dict())
